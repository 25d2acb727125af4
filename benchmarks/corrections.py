"""What a timestep of delta coding costs: it follows the events that it sends.

The timesteps of one simulation, whole simulations and float forward passes take turns, by the thread's own clock, which
stands still while another program has the core; of each the shortest counts.
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from functools import partial

import torch

from benchmarks.networks import Bench
from benchmarks.timing import one_thread, seconds_of
from msat_det.methods.convert import spiking_network
from msat_det.spiking.network import SpikingNetwork

T = 8
WHOLE = (1, 2, 4, 8)  # timesteps of the simulations that are measured as a whole, read once
REPEATS = 5
METHODS: dict[str, tuple[str, dict]] = {
    "delta-1": ("delta", {"bits": 8, "terms": 1, "zone": 0.75}),
    **{name: (name, {}) for name in ("delta-2", "delta-3", "dcgs")},
    "delta-fit-anytime": ("delta-fit-anytime", {"budget": 0.18, "budget_of": "energy", "price": 0.06}),
}


def timesteps(snn: SpikingNetwork, images: torch.Tensor) -> list[float]:
    """Seconds of each timestep, the reading of the outputs within them."""
    stamps = [time.thread_time()]

    def stamp(_: object) -> bool:
        stamps.append(time.thread_time())
        return False

    snn.run(images, T, range(1, T + 1), stop=stamp)
    return [after - before for before, after in itertools.pairwise(stamps)]


def rows(benches: Iterable[tuple[str, Bench]], batches: list[int]) -> Iterator[dict]:
    """One dict for each network, batch, method and timestep, by one thread.

    events: per neuron in that timestep alone. cost_over_float: of that timestep; cost_so_far: of it and those before,
    the outputs read at each. whole_over_float: of a simulation of t timesteps, its outputs read at the end.
    """
    with one_thread():
        for name, bench in benches:
            for batch in batches:
                yield from _rows(name, bench, batch)


def _rows(name: str, bench: Bench, batch: int) -> Iterator[dict]:
    images, forward = bench.images[:batch], bench.float_forward(batch)
    forward()
    for method, (kind, options) in METHODS.items():
        snn = spiking_network(kind, options, bench.observation, T)
        timesteps(snn, images)  # what happens once: kernel, memory
        floats, found = [], []
        wholes: dict[int, list[float]] = {t: [] for t in WHOLE}
        for _ in range(REPEATS):
            floats.append(seconds_of(forward, 1, time.thread_time))
            found.append(timesteps(snn, images))
            for t, seconds in wholes.items():
                seconds.append(seconds_of(partial(snn.run, images, t), 1, time.thread_time))
        timesteps(snn, images)  # for the events
        costs = [min(each) / min(floats) for each in zip(*found, strict=True)]
        events = [0.0, *(snn.counts[t].figures[:, 3].mean().item() for t in range(1, T + 1))]
        for t in range(1, T + 1):
            yield {
                "network": name,
                "batch": batch,
                "method": method,
                "t": t,
                "events": events[t] - events[t - 1],
                "cost_over_float": costs[t - 1],
                "cost_so_far": sum(costs[:t]),
                "whole_over_float": min(wholes[t]) / min(floats) if t in wholes else None,
                "weights": bench.weights,
            }
