"""``python tests/support/compile_kernels.py``: every Triton kernel compiled for GPUs that are not there.

Triton's compiler and the assembler that comes with it need no GPU; its interpreter, in which the other tests run the
kernels, takes what the compiler refuses. A line for each kernel: the GPU's architecture, the kernel, registers of a
thread, bytes that did not fit into them.
"""

import os

os.environ.pop("TRITON_INTERPRET", None)
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from msat_det.graph.ops import Activation
from msat_det.spiking.kernels import triton_delta, triton_pool, triton_scan, triton_split
from msat_det.spiking.kernels.window import Window
from msat_det.spiking.neurons import Chances, Msat, Neuron, State, new_state

ARCHITECTURES = (80, 90)
THETA = torch.linspace(0.1, 2.0, 64)
RELU = Activation("relu", torch.relu, rectified=True)
RELU6 = Activation("relu6", F.relu6, rectified=True, upper=6.0)
SILU, LEAKY = Activation("silu", F.silu, curved=True), Activation("leakyrelu", F.leaky_relu, slope=0.01)
DEPOLARISED = Msat(normalised=True, drive="depolarisation")
RATE: dict[str, tuple[Activation, dict]] = {
    "plain": (RELU, {}),
    "signed": (RELU6, dict(signed=True, gamma=3, stages=(4.0, 1.0))),
    "msat": (RELU, dict(adaptive=Msat())),
    "msat signed": (RELU, dict(adaptive=DEPOLARISED, signed=True, gamma=3)),
    "tracking": (SILU, dict(gamma=3)),
    "tracking another": (Activation("gelu", F.gelu, curved=True), dict(gamma=3)),
    "reset to zero": (RELU6, dict(reset="zero", signed=True, gamma=3)),
    "imbalanced": (LEAKY, dict(imbalanced=True, gamma=3)),
    "powers of two": (RELU, dict(bits=4, terms=(3, 2), gamma=15)),
    "confidence": (RELU, dict(confidence=0.5)),
}
DELTA: dict[str, tuple[Activation, dict]] = {
    "terms": (RELU, dict(bits=6, terms=(2, 1))),
    "bursts": (LEAKY, dict(gamma=3)),
    "silu": (SILU, dict(bits=6)),
    "msat": (RELU, dict(adaptive=Msat())),
    "depolarised": (RELU, dict(adaptive=DEPOLARISED, bits=4)),
}


class Absent:
    """A GPU that can be compiled for, and that is all."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def launches() -> Iterator[str]:
    """Launch every kernel in turn, saying which."""
    x = torch.randn(2, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    fanout = torch.ones(x[0].numel())
    for name, (activation, options) in RATE.items():
        neuron = Neuron(THETA, activation, **options)
        kernel = triton_scan.Fused(neuron, x, new_state(neuron, x, False), fanout, Chances(images=[0, 1]))
        kernel.run(x, x, 0, 1, False)
        yield f"rate {name}"
    for name, (activation, options) in DELTA.items():
        neuron = Neuron(THETA, activation, coding="delta", **options)
        state, sums = State(**{key: torch.zeros_like(x) for key in neuron.keeps}), triton_delta.Fused(neuron, x, fanout)
        for first, sent in ((True, None), (False, torch.empty_like(x))):
            sums.advance(x, sent, state, 0, first, False)
            yield f"delta {name}, {'first' if first else 'later'}"
    for overlapping in (2, 3):
        window = Window((overlapping, overlapping), (2, 2), (0, 0), False)
        triton_pool.FusedPool(window, x, None).run(x, 0, 1)
        yield f"pool of {overlapping}"
    triton_split.split(x)
    yield "split"


def of_a_thread(kernel: Any, architecture: int) -> str:
    """Registers, and bytes spilled, by the assembler."""
    assembler = next(Path(triton.__file__).parent.rglob("bin/ptxas"))
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(kernel.asm["ptx"])
        file.flush()
        name = f"sm_{architecture}" + "a" * (architecture == 90)
        command = [str(assembler), "-v", f"--gpu-name={name}", "-o", os.devnull, file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    return f"{used and used[1]}\t{spilled and spilled[1]}"


def main() -> None:
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled.append(run(self, *args, grid=grid, warmup=True, **options))
        return compiled[-1]

    JITFunction.run = compile_only
    for architecture in ARCHITECTURES:
        driver.set_active(Absent(architecture))
        for name in launches():
            print(architecture, name, of_a_thread(compiled[-1], architecture), sep="\t")


if __name__ == "__main__":
    sys.exit(main())
