"""Do event-driven convolutions pay? Densities of real runs, where both kinds take the same time, and what a step gains.

Both kinds of convolution run on the inputs that a simulation hands to the layer, in turns, and on random ones of given
density to find the crossover. Whole timesteps are measured with event-driven convolutions on and off.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import NEURONS, Bench
from benchmarks.timing import one_thread, seconds_of
from msat_det.methods.convert import spiking_network
from msat_det.spiking.kernels import events, keep_freed_memory

T = 8
REPEATS = 3
DENSITIES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 1.0)
KINDS = ("pointwise", "larger")


def shortest(call: Callable[[], Any]) -> float:
    """Seconds of the shortest of three calls after a first one, by the thread's own clock: it stands still while
    another program has the core."""
    call()
    return min(seconds_of(call, 1, time.thread_time) for _ in range(REPEATS))


@contextmanager
def dense() -> Iterator[None]:
    """All convolutions in here are dense."""
    worth, events.WORTH = events.WORTH, -1.0
    try:
        yield
    finally:
        events.WORTH = worth


class Layer:
    """A convolution watched in a simulation: sums over the timesteps that it has seen.

    entries, spikes: of its input, all and non-zero. macs: multiply-adds of the dense convolution. dense, events,
    chosen: seconds of both kinds, and of the one that the product chose. shape: of its last input (K·B, C, h, w).
    """

    def __init__(self, conv: nn.Conv2d):
        self.conv, self.by_events, self.densest = conv, events.EventConvolution(conv), events.crossover(conv)
        self.entries = self.spikes = self.macs = 0
        self.dense = self.events = self.chosen = 0.0
        self.shape: tuple[int, ...] = ()

    def see(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        """A forward pre-hook: ``forward`` is called past the hooks."""
        (x,) = inputs
        self.shape = tuple(x.shape)
        self.entries += x.numel()
        self.spikes += int(x.count_nonzero())
        self.macs += self.conv.forward(x).numel() * self.conv.weight[0].numel()
        dense, by_events = shortest(lambda: self.conv.forward(x)), shortest(lambda: self.by_events(x))
        self.dense += dense
        self.events += by_events
        self.chosen += by_events if events.density(x) <= self.densest else dense

    @property
    def density(self) -> float:
        return self.spikes / self.entries

    @property
    def kind(self) -> str:
        return KINDS[max(self.conv.kernel_size) > 1]

    @property
    def geometry(self) -> tuple:
        """Layers with the same one take the same time at the same density."""
        conv = self.conv
        return (self.shape, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)

    def crossover(self) -> float:
        """The density of random inputs at which both convolutions take the same time, see ``crossing``."""
        noise = torch.randn(self.shape).contiguous(memory_format=torch.channels_last)
        at = torch.rand_like(noise)
        seconds = []
        with torch.inference_mode():
            dense = shortest(lambda: self.conv.forward(noise))
            for density in DENSITIES:
                x = torch.where(at < density, noise, 0.0)
                seconds.append(shortest(partial(self.by_events, x)))
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


def watch(bench: Bench, neuron: str, images: int) -> tuple[float, float, list[Layer]]:
    """Seconds of a timestep at batch 1, all dense and as the product runs it; and every convolution without groups that
    spikes enter in each timestep, watched on so many images."""
    name, options = NEURONS[neuron]
    snn, image = spiking_network(name, options, bench.observation, T), bench.images[:1]
    with dense():
        before = shortest(lambda: snn.run(image, T)) / T
    after = shortest(lambda: snn.run(image, T)) / T
    called = {str(node.target): snn.graph.layer(node) for node in snn.schedule.body if node.op == "call_module"}
    modules = [module for _, module in sorted(called.items())]
    layers = [Layer(module) for module in modules if isinstance(module, nn.Conv2d) and module.groups == 1]
    hooks = [layer.conv.register_forward_pre_hook(layer.see) for layer in layers]
    try:
        with dense():  # events pass the hooks by
            for image in bench.images[:images].split(1):
                snn.run(image, T)
    finally:
        for hook in hooks:
            hook.remove()
    return before, after, layers


def rows(benches: Iterable[tuple[str, Bench]], neurons: list[str], images: int = 2) -> Iterator[dict]:
    """One dict for each network and neuron, by one thread. Convolutions: those without groups.

    density: of the inputs, a mean weighted by multiply-adds. crossover_KIND: median over the layers. dense_ms,
    event_ms, chosen_ms: of a timestep's convolutions, all dense, all event-driven, as the product chooses.
    step_dense_ms, step_ms: a whole timestep, all dense and as the product runs it; gain: the first over the second.
    """
    keep_freed_memory()
    with one_thread():
        for name, bench in benches:
            crossovers: dict[tuple, float] = {}
            for neuron in neurons:
                before, after, layers = watch(bench, neuron, images)
                for layer in layers:
                    if layer.geometry not in crossovers:
                        crossovers[layer.geometry] = layer.crossover()
                kinds = {kind: [crossovers[a.geometry] for a in layers if a.kind == kind] for kind in KINDS}
                lengths = zip(*((a.dense, a.events, a.chosen) for a in layers), strict=True)
                per_step = [1e3 * sum(each) / (T * images) for each in lengths]
                yield {
                    "network": name,
                    "neuron": neuron,
                    "T": T,
                    "convolutions": len(layers),
                    "density": sum(a.density * a.macs for a in layers) / sum(a.macs for a in layers),
                    **{f"crossover_{kind}": statistics.median(kinds[kind]) if kinds[kind] else None for kind in kinds},
                    **dict(zip(("dense_ms", "event_ms", "chosen_ms"), per_step, strict=True)),
                    "step_dense_ms": 1e3 * before,
                    "step_ms": 1e3 * after,
                    "gain": before / after,
                    "weights": bench.weights,
                }
