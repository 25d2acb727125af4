"""The neurons alone on a GPU: GB/s of a scan beside a copy of the same bytes, by the kernel's block and warps."""

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu_correctness import RELU
from benchmarks.timing import Clock
from msat_det.spiking import kernels
from msat_det.spiking.kernels import Scan
from msat_det.spiking.kernels.delta import Corrections
from msat_det.spiking.neurons import Msat, Neuron


def copy_speed(clock: Clock, x: Tensor) -> float:
    """GB/s of a copy on the device, bytes read and written."""
    y = torch.empty_like(x)
    y.copy_(x)
    return 8 * x.numel() / clock.median(lambda: y.copy_(x), 0.3) / 1e9


def scanned(theta: Tensor) -> dict[str, Neuron]:
    """The neurons that are measured. theta: (C,), of those that have a threshold for each channel."""
    return {
        "if": Neuron(torch.tensor(1.0), RELU, initial=0.5),
        "if-signed-burst": Neuron(theta, RELU, signed=True, gamma=3, initial=0.5),
        "msat": Neuron(torch.tensor(1.0), RELU, adaptive=Msat()),
        "msat-signed": Neuron(theta, RELU, adaptive=Msat(normalised=True), signed=True, gamma=3),
    }


def scan_rows(clock: Clock) -> Iterator[dict]:
    """GB/s of a scan, charged 8 bytes an element, beside a copy of as many, by the kernel's block and warps."""
    steps, shape = (16, (16, 64, 150, 150)) if clock.device.type == "cuda" else (4, (1, 16, 75, 75))
    x = torch.randn(steps * shape[0], *shape[1:], device=clock.device)
    x = x.contiguous(memory_format=torch.channels_last)
    size, copied = 8 * x.numel(), copy_speed(clock, x)
    yield {"scan": "copy", "gb_per_s": copied}
    currents = x.unflatten(0, (steps, shape[0]))
    reach = torch.ones(shape[1:], device=clock.device)
    gpu = kernels.on_gpu()
    own = dict(gpu.scan.SHAPES) if gpu else {}
    shapes = [(256, 2), (512, 4), (1024, 4), (1024, 8), (2048, 8)] if clock.device.type == "cuda" else [None]
    for name, neuron in scanned(torch.rand(shape[1], device=clock.device) + 0.5).items():
        chosen = own[gpu.scan.family_of(neuron)] if gpu else None
        for kernel in shapes:
            if gpu and kernel:
                gpu.scan.SHAPES.update(dict.fromkeys(own, kernel))
            for in_place in (False, True) if kernel in (chosen, None) else (False,):
                scan = Scan(neuron, currents[0], reach, with_output=False)
                given = currents.clone() if in_place else currents
                run = partial(scan.run, given, 16, steps, in_place=in_place)
                run()
                speed = size / clock.median(run, 0.2) / 1e9
                yield {
                    "scan": name,
                    "block,warps": str(kernel),
                    "in_place": in_place,
                    "chosen": kernel == chosen,
                    "gb_per_s": speed,
                    "of_copy": speed / copied,
                }
                del scan
    if gpu:
        gpu.scan.SHAPES.update(own)


def corrections_rows(clock: Clock) -> Iterator[dict]:
    """GB/s of a timestep of delta coding, charged 12 bytes an element, sums read and output sums read and written, by
    the kernel's block and warps: of new sums, and of the same ones again, which have little to send."""
    shape = (64, 64, 150, 150) if clock.device.type == "cuda" else (1, 16, 75, 75)
    new = [torch.randn(shape, device=clock.device).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    size, copied = 12 * new[0].numel(), copy_speed(clock, new[0])
    yield {"corrections": "copy", "gb_per_s": copied}
    theta = torch.rand(shape[1], device=clock.device) + 0.5
    neuron = Neuron(theta / 32, RELU, coding="delta", bits=7, terms=(3,))
    gpu = kernels.on_gpu()
    own = dict(gpu.delta.SHAPES) if gpu else {}
    for kernel in [(512, 4), (1024, 4), (1024, 8), (2048, 8)] if clock.device.type == "cuda" else [None]:
        if gpu and kernel:
            gpu.delta.SHAPES["constant"] = kernel
        scan = Corrections(neuron, new[0], torch.ones(shape[1:]))
        for sums, name in ((new, "new sums"), (new[:1], "the same sums")):
            turn = itertools.cycle(sums)
            for x in (new[0], new[0]):
                scan.step(x, 1, wanted=False)
            speed = size / clock.median(partial(_step, scan, turn), 0.2) / 1e9
            row = {"corrections": name, "block,warps": str(kernel), "chosen": kernel == own.get("constant")}
            yield row | {"gb_per_s": speed, "of_copy": speed / copied}
    if gpu:
        gpu.delta.SHAPES.update(own)


def _step(scan: Corrections, sums: Iterator[Tensor]) -> None:
    scan.step(next(sums), 1, wanted=False)
