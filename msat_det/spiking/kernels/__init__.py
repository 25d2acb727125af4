"""The neuron step fused over a chunk of timesteps, a file a backend: ``cpu`` in C++, ``triton_scan`` on a CUDA device.

Where there is no C++ compiler or no Triton, and for what a kernel does not hold (see their ``holds``),
``spiking.neurons.step`` runs instead: the same arithmetic, only slower. ``MSAT_DET_KERNEL=off`` forces it.
"""

import functools
import os
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from msat_det.base.checks import present
from msat_det.base.device import wide
from msat_det.spiking.kernels import cpu, product, split
from msat_det.spiking.kernels.build import keep_freed_memory as keep_freed_memory
from msat_det.spiking.kernels.layout import counted, laid_out, memory_format
from msat_det.spiking.neurons import Chances, Neuron, State, initial_potential, new_state, spikes, step, threshold


class Triton(NamedTuple):
    """The modules of Triton's kernels: neurons under rate and under delta coding, max pooling, ``split``."""

    scan: ModuleType
    delta: ModuleType
    pool: ModuleType
    split: ModuleType


@functools.cache
def on_gpu() -> Triton | None:
    """Triton's kernels, or None: no Triton, or MSAT_DET_KERNEL=off."""
    if os.environ.get("MSAT_DET_KERNEL") == "off":
        return None
    try:
        from msat_det.spiking.kernels import triton_delta, triton_pool, triton_scan, triton_split
    except ImportError:
        return None
    return Triton(triton_scan, triton_delta, triton_pool, triton_split)


def backend(neuron: Neuron, x: Tensor) -> Literal["eager", "cpu", "triton"]:
    """What runs this neuron on currents like x (B, C, …): ``step``, ``scan.cpp`` or Triton's kernel."""
    if x.dtype != torch.float32:
        return "eager"
    if x.is_cuda:
        return "triton" if (gpu := on_gpu()) and gpu.scan.holds(neuron) else "eager"
    return "cpu" if x.device.type == "cpu" and cpu.holds(neuron) else "eager"


class Scan:
    """A population of neurons of one call site, for one batch: its parameters laid out, its state, and its counts.

    currents: an example of the input (B, C, …), whose memory format the state takes over.
    fanout: (C, …) multiply-adds that a spike of each neuron reaches. with_output: keep the output sum.
    counts: Σ|s|, Σ|s|·fan-out, Σ[s≠0] and Σ[s≠0]·fan-out of each image so far. ``backend``: see there.
    """

    def __init__(
        self, neuron: Neuron, currents: Tensor, fanout: Tensor, with_output: bool, chances: Chances | None = None
    ):
        self._format = memory_format(currents)
        currents = currents.contiguous(memory_format=self._format)
        self.neuron, self.chances = neuron, chances
        self.state: State = new_state(neuron, currents, with_output)
        self._start = initial_potential(neuron, currents)
        self.fanout = fanout.to(currents.device)
        self._counts = wide(torch.zeros(currents.shape[0], 4, device=currents.device))
        self.backend = backend(neuron, currents)
        self._kernel: Any = None
        if self.backend != "eager":
            own = neuron, currents, self.state, laid_out(self.fanout, currents)
            self._kernel = cpu.Compiled(*own) if self.backend == "cpu" else present(on_gpu()).scan.Fused(*own, chances)

    @property
    def output(self) -> Tensor:
        """The output sums (B, C, …), of a population that keeps them."""
        return self.state.o

    @property
    def repeats(self) -> bool:
        """Whether the same kernels run for every batch, and nothing but their numbers differs."""
        return self.backend == "triton" and self.neuron.confidence >= 1 and not self.neuron.window

    def restart(self) -> None:
        """Back to before the first timestep, in the same memory."""
        for value in (*vars(self.state).values(), self._counts):
            if value is not None:
                value.zero_()
        self.state.v += self._start
        if self._kernel:
            self._kernel.restart()

    @property
    def counts(self) -> Tensor:
        """(B, 4) float64, on the neurons' device where that has it."""
        return self._counts + self._kernel.counts if self._kernel else self._counts

    def takes(self, currents: Tensor) -> bool:
        """Whether the state is laid out as these currents (B, C, …) are."""
        v = self.state.v
        alike = (currents.shape, currents.dtype, currents.device) == (v.shape, v.dtype, v.device)
        return alike and memory_format(currents) is self._format

    def run(self, x: Tensor, t0: int, steps: int, in_place: bool = False) -> Tensor:
        """Advance by ``steps`` timesteps from t0.

        x: (steps, B, C, …) input currents, or (1, B, C, …) for a current that is constant in time. in_place: the result
        may overwrite x. Returns the output s·θ (steps, B, C, …).
        """
        y = self._run_kernel(x, t0, steps, in_place) if self._kernel else self._run_steps(x, t0, steps)
        if self.neuron.window:
            self._count_pairs(y, t0)
        return y

    def _count_pairs(self, y: Tensor, t0: int) -> None:
        """A value beyond its window is sent by several pairs of spikes; the count of events has it as one."""
        full = self.neuron.gamma * threshold(self.neuron, y[0])
        for k, sent in enumerate(y.abs()):
            pairs = (sent / (full * self.neuron.stage(t0 + k)) - 1e-4).ceil()  # less than a spike, more than rounding
            more = wide((pairs - 1).clamp(min=0).flatten(1))
            reach = wide(self.fanout.expand(y.shape[2:]).reshape(-1))
            self._counts[:, 2:] += torch.stack((more.sum(1), more @ reach), 1)

    def _run_steps(self, x: Tensor, t0: int, steps: int) -> Tensor:
        outputs = []
        for k in range(steps):
            s, y = step(self.neuron, self.state, x[k if x.shape[0] > 1 else 0], t0 + k, self.chances)
            self._counts += counted(spikes(self.neuron, s), self.fanout)
            outputs.append(y)
        return torch.stack(outputs)

    def _run_kernel(self, x: Tensor, t0: int, steps: int, in_place: bool) -> Tensor:
        n = self.neuron
        if n.bias is not None and n.bias.dim() == 2:
            bias = torch.stack([n.bias_at(t0 + k) for k in range(steps)]).to(x)
            x = x + bias.reshape(steps, *(-1 if d == n.axis else 1 for d in range(x.dim() - 1)))
        constant, images = x.shape[0] == 1 and steps > 1, x.shape[1]
        flat = x.flatten(0, 1)
        if not flat.is_contiguous(memory_format=self._format):
            flat = flat.contiguous(memory_format=self._format)
        y = flat
        if constant or not in_place:
            size = (steps * images, *flat.shape[1:])
            y = torch.empty(size, device=x.device, memory_format=self._format)
        self._kernel.run(flat, y, t0, steps, constant)
        return y.unflatten(0, (steps, images))


def pool_in_triton(x: Tensor) -> bool:
    """Whether Triton's kernel takes the differences of max pooling x (rows, C, H, W)."""
    return x.is_cuda and x.dtype == torch.float32 and on_gpu() is not None


def convolution(conv: nn.Module, x: Tensor, precision: str) -> Tensor | None:
    """``conv(x)`` on a GPU by ``split`` or by ``product``, or None where neither pays or is possible: call the module
    then. precision: one of ``graph.precision``."""
    gpu = on_gpu() if x.is_cuda else None
    if gpu and precision == "tf32x3" and split.fits(conv, x):
        return split.convolution(conv, gpu.split.split(x))
    if x.is_cuda and precision in ("float32", "tf32x3") and product.fits(conv, x):
        return product.convolution(conv, x)
    return None
