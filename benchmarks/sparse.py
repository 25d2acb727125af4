"""Does an event-driven convolution pay? The densities that simulations show, and the time of both kinds of convolution.

``sparse.cpp`` is built for this question alone and is no part of the product. Both convolutions run on the inputs that
the simulation hands to the layer, in turns, and on random ones of given density to find where they take the same time.
"""

import ctypes
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks import NEURONS, Bench
from benchmarks.timing import seconds_of
from msat_det.convert.conversion import spiking_network
from msat_det.kernels import compiled, keep_freed_memory

T = 8
REPEATS = 3
DENSITIES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.6, 1.0)
KINDS = ("pointwise", "depthwise", "other")
LANES, BLOCK = 16, 64  # output channels of a vector and of a block of weights in sparse.cpp


@cache
def kernel() -> ctypes.CDLL:
    """``sparse.cpp``, compiled. Raises InputError where it does not compile."""
    return compiled(Path(__file__).with_name("sparse.cpp"), "-ffp-contract=fast")


def shortest(call: Callable[[], Any]) -> float:
    """Seconds of the shortest of three calls after a first one, by the thread's own clock: it stands still while
    another program has the core."""
    call()
    return min(seconds_of(call, 1, time.thread_time) for _ in range(REPEATS))


class EventConvolution:
    """What ``conv`` computes on (B, C, h, w) float32, channels last, by one thread in time that follows the non-zero
    entries, of any value. Zero padding; any stride, dilation and groups."""

    def __init__(self, conv: nn.Conv2d):
        self.conv = conv
        weight, missing = conv.weight.detach(), -conv.out_channels % LANES
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.bias = functional.pad(bias, (0, missing))
        if conv.groups == 1:  # blocks of (kh, kw, Cin, up to 64 outputs)
            blocks = functional.pad(weight.permute(2, 3, 1, 0), (0, missing)).split(BLOCK, -1)
            self.weight = torch.cat([block.flatten() for block in blocks])
        else:  # (Cin, kh, kw, Cout/groups)
            self.weight = weight.unflatten(0, (conv.groups, -1)).permute(0, 2, 3, 4, 1).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        conv, (B, channels, H, W) = self.conv, x.shape
        size = [
            (n + 2 * pad - reach * (k - 1) - 1) // stride + 1
            for n, pad, reach, k, stride in zip(
                (H, W), conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
            )
        ]
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.empty(B, conv.out_channels, *size, memory_format=torch.channels_last)
        numbers = [B, H, W, channels, *size, conv.out_channels, conv.groups]
        numbers += [*conv.kernel_size, *conv.stride, *conv.padding, *conv.dilation]
        arrays = (ctypes.c_void_p(a.data_ptr()) for a in (x, self.weight, self.bias, y))
        kernel().event_convolution((ctypes.c_int64 * len(numbers))(*numbers), *arrays)
        return y


class Layer:
    """A convolution watched in a simulation: sums over the timesteps that it has seen.

    entries, spikes: of its input, all and non-zero. macs: multiply-adds of the dense convolution. dense, events:
    seconds of both convolutions. shape: of its last input, a chunk of timesteps (K·B, C, h, w).
    """

    def __init__(self, conv: nn.Conv2d):
        self.conv, self.by_events = conv, EventConvolution(conv)
        self.entries = self.spikes = self.macs = 0
        self.dense = self.events = 0.0
        self.shape: tuple[int, ...] = ()

    def see(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        """A forward pre-hook: ``forward`` is called past the hooks."""
        (x,) = inputs
        self.shape = tuple(x.shape)
        self.entries += x.numel()
        self.spikes += int(x.count_nonzero())
        self.macs += self.conv.forward(x).numel() * self.conv.weight[0].numel()
        self.dense += shortest(lambda: self.conv.forward(x))
        self.events += shortest(lambda: self.by_events(x))

    @property
    def density(self) -> float:
        return self.spikes / self.entries

    @property
    def kind(self) -> str:
        conv = self.conv
        if conv.groups == conv.in_channels == conv.out_channels > 1:
            return "depthwise"
        return "pointwise" if conv.kernel_size == (1, 1) and conv.groups == 1 else "other"

    @property
    def geometry(self) -> tuple:
        """Layers with the same one take the same time at the same density."""
        conv = self.conv
        return (self.shape, conv.out_channels, conv.groups, conv.kernel_size, conv.stride, conv.padding, conv.dilation)

    def crossover(self) -> float:
        """The density of random inputs at which both convolutions take the same time, see ``crossing``."""
        noise = torch.randn(self.shape).contiguous(memory_format=torch.channels_last)
        at = torch.rand_like(noise)
        seconds = []
        with torch.inference_mode():
            dense = shortest(lambda: self.conv.forward(noise))
            for density in DENSITIES:
                x = torch.where(at < density, noise, 0.0)
                seconds.append(shortest(lambda x=x: self.by_events(x)))
                if seconds[-1] > dense:
                    break
        return crossing(DENSITIES, seconds, dense)


def crossing(densities: Sequence[float], seconds: Sequence[float], dense: float) -> float:
    """Where ``seconds`` at ``densities`` first pass ``dense``, interpolated; the first or last density if they lie
    above or below it all along."""
    above = next((i for i, length in enumerate(seconds) if length > dense), None)
    if above is None or above == 0:
        return densities[len(seconds) - 1 if above is None else 0]
    share = (dense - seconds[above - 1]) / (seconds[above] - seconds[above - 1])
    return densities[above - 1] + share * (densities[above] - densities[above - 1])


def simulate(bench: Bench, neuron: str, images: int) -> tuple[float, list[Layer]]:
    """Seconds of a timestep at batch 1, and every convolution that spikes enter in each timestep, watched on so many
    images. What the constant image enters is left out, and what no neuron follows: it runs once a reading."""
    name, options = NEURONS[neuron]
    snn = spiking_network(name, options, bench.observation, T)
    step = shortest(lambda: snn.run(bench.images[:1], T)) / T
    called = {node.target for node in snn.plan.body if node.op == "call_module"}
    modules = [snn.graph.module.get_submodule(target) for target in sorted(called)]
    layers = [Layer(module) for module in modules if isinstance(module, nn.Conv2d)]
    hooks = [layer.conv.register_forward_pre_hook(layer.see) for layer in layers]
    try:
        for image in bench.images[:images].split(1):
            snn.run(image, T)
    finally:
        for hook in hooks:
            hook.remove()
    return step, layers


def rows(benches: Iterable[tuple[str, Bench]], neurons: list[str], images: int = 2) -> Iterator[dict]:
    """One dict for each network and neuron, by one thread.

    density: of the inputs, a mean weighted by multiply-adds. crossover_KIND: median over the layers. below: layers
    whose density is below their crossover. dense_ms, event_ms, cheaper_ms: of a timestep's convolutions, all dense, all
    event-driven, each the cheaper way; gain: the first over the last. step_gain: the same of the whole timestep.
    """
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, bench in benches:
            crossovers: dict[tuple, float] = {}
            for neuron in neurons:
                step, layers = simulate(bench, neuron, images)
                for layer in layers:
                    if layer.geometry not in crossovers:
                        crossovers[layer.geometry] = layer.crossover()
                kinds = {kind: [crossovers[a.geometry] for a in layers if a.kind == kind] for kind in KINDS}
                dense, events, cheaper = (
                    1e3 * sum(lengths) / (T * images)
                    for lengths in zip(*((a.dense, a.events, min(a.dense, a.events)) for a in layers), strict=True)
                )
                yield {
                    "network": name,
                    "neuron": neuron,
                    "T": T,
                    "convolutions": len(layers),
                    "density": sum(a.density * a.macs for a in layers) / sum(a.macs for a in layers),
                    **{f"crossover_{kind}": statistics.median(kinds[kind]) if kinds[kind] else None for kind in kinds},
                    "below": sum(a.density < crossovers[a.geometry] for a in layers),
                    "dense_ms": dense,
                    "event_ms": events,
                    "cheaper_ms": cheaper,
                    "gain": dense / cheaper,
                    "step_ms": 1e3 * step,
                    "step_gain": 1e3 * step / (1e3 * step - dense + cheaper),
                    "weights": bench.weights,
                }
    finally:
        torch.set_num_threads(threads)
