"""A simulation from rest to T, on plain values: outputs and counts at every recorded t."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from msat_det.base.device import current
from msat_det.base.errors import InputError
from msat_det.graph.inputs import Batch, recorded
from msat_det.spiking.delta_engine import DeltaRun
from msat_det.spiking.energy import Counts, count
from msat_det.spiking.engine import Columns, Run, apart
from msat_det.spiking.kernels import Scan
from msat_det.spiking.replay import Replay, Replays, key_of
from msat_det.spiking.schedule import Setup


@dataclass(frozen=True)
class Result:
    """What a simulation gives: on a GPU it has been launched then, and may be running.

    outputs: {t: the outputs in the network's own structure}. counted: {t: ``Run.counted``}, columns: what it has side
    by side.
    """

    outputs: dict[int, Any]
    counted: dict[int, Tensor]
    columns: Columns
    setup: Setup

    @cached_property
    def counts(self) -> dict[int, Counts]:
        """{t: spikes and operations up to t}; a GPU is waited for.

        Raises InputError, naming the call site, where a potential is NaN.
        """
        setup = self.setup
        about = setup.graph, setup.neurons, setup.fanout
        return {
            t: count(*about, *apart(self.columns, counted, t // setup.window), t, setup.energy)
            for t, counted in self.counted.items()
        }


@dataclass(frozen=True)
class Watchers:
    """What looks on while a network runs, see ``SpikingNetwork.run``."""

    tap: Callable[[str, Tensor], None] | None = None
    watch: Callable[[str, Scan, Tensor], None] | None = None
    stop: Callable[[dict[int, Any]], bool] | None = None


def simulate(
    setup: Setup,
    batch: Batch,
    T: int,
    record: Iterable[int] | None = None,
    images: list | None = None,
    watchers: Watchers | None = None,
    replays: Replays | None = None,
) -> Result:
    """Run T timesteps of one batch of the images that ``setup.graph`` is measured for.

    record, images: see ``SpikingNetwork.run``. replays: what the last simulation has left for the next one, on a GPU.
    Raises InputError as ``SpikingNetwork.run`` does; a potential that is NaN a GPU tells with ``Result.counts`` alone.
    """
    times, on = recorded(T, record), watchers or Watchers()
    if times[0] % setup.window:
        raise InputError(f"recorded timestep {times[0]} is no whole number of windows of {setup.window} timesteps")
    with torch.inference_mode(), current(setup.graph.device or torch.device("cpu")):
        return _run(setup, batch, times, images, on, replays)


def _run(
    setup: Setup, batch: Batch, times: list[int], images: list | None, on: Watchers, replays: Replays | None
) -> Result:
    """In the memory of the last simulation, where there is one like it, else in one that is kept for the next."""
    if replays is None or on != Watchers():
        return _read(_begun(setup, batch, times, images, on), setup, times, on.stop)
    key = key_of(setup, batch, times[-1], times)
    run: Run | DeltaRun | Replay | None = replays.find(key)
    if isinstance(run, Replay):
        run.begin(batch)
    else:
        run = _begun(setup, batch, times, images, on)
    result = _read(run, setup, times, None)
    replays.keep(key, run, batch)
    return result


def _begun(setup: Setup, batch: Batch, times: list[int], images: list | None, on: Watchers) -> Run | DeltaRun:
    if setup.coding == "delta":
        return DeltaRun(setup, batch, times[-1], on.tap, on.watch)
    return Run(setup, batch, images, on.tap, on.watch)


def _read(run: Run | Replay | DeltaRun, setup: Setup, times: list[int], stop: Callable | None) -> Result:
    """Run to each recorded timestep: the outputs and the counts there."""
    outputs, counted = dict[int, Any](), dict[int, Tensor]()
    t, window, late = 0, setup.window, setup.late
    for until in times:
        while t < until // window:
            left = (late if t < late < until else until // window) - t
            steps = -(-left // -(-left // run.chunk))  # chunks alike, for short ones cost more a timestep
            if t and t == late:  # what is read at that very t has nothing later
                run.forget(t)
            run.advance(t, steps)
            t += steps
        reading = run.reading(t)
        with torch.inference_mode(False):  # copies that the caller may write into: a neuron's state goes on
            outputs[until], counted[until] = pytree.tree_map_only(Tensor, torch.clone, reading)
        if stop and stop(outputs):
            break
    return Result(outputs, counted, run.columns(), setup)
