"""One batch after another of the same shape (on a GPU): neurons stay laid out, and are put to rest again.

With MSAT_DET_CUDA_GRAPHS=on, under rate coding, what the first batch of a shape has run is captured when the second one
comes, a CUDA graph for each chunk and reading, and replayed from then on: the same kernels on the same numbers, without
Python between them. It is off by default, for a capture that fails leaves PyTorch's allocator and random numbers in a
state from which nothing brings them back (https://github.com/pytorch/pytorch/pull/190308).
"""

import contextlib
import functools
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.graph.facts import facts
from msat_det.graph.inputs import Batch
from msat_det.graph.ops import REGIONS
from msat_det.spiking.delta_engine import DeltaRun
from msat_det.spiking.engine import Columns, Run
from msat_det.spiking.kernels.layout import version
from msat_det.spiking.schedule import Setup

SHARE = 8  # states are kept from batch to batch where they take no more than this part of the memory that is free


def key_of(setup: Setup, batch: Batch, T: int, record: Sequence[int]) -> Hashable:
    """What two simulations must share for one to go on in the memory of the other; None on a CPU."""
    inputs = setup.graph.bind(batch)
    if not torch.cuda.is_available() or any(value.device.type != "cuda" for value in inputs.values()):
        return None
    weights = [*setup.graph.module.parameters(), *setup.graph.module.buffers()]
    return (
        T,
        tuple(record),
        (setup.seed, setup.chunk, setup.graph.precision),
        tuple((name, value.shape, value.dtype) for name, value in inputs.items()),
        tuple((name, id(neuron)) for name, neuron in setup.neurons.items()),
        tuple((value.data_ptr(), version(value)) for value in weights),
    )


def fits(run: Run | DeltaRun) -> bool:
    """Whether a run can be repeated: neurons in kernels, nothing drawn by image, and memory for the states."""
    if not all(scan.repeats for scan in run.scans.values()):
        return False
    states = sum(
        value.nbytes for scan in run.scans.values() for value in vars(scan.state).values() if value is not None
    )
    return states <= torch.cuda.mem_get_info(run.device)[0] / SHARE


def captures() -> bool:
    """Whether what repeats is captured as CUDA graphs: MSAT_DET_CUDA_GRAPHS=on."""
    return os.environ.get("MSAT_DET_CUDA_GRAPHS") == "on"


class Replay:
    """A run that begins anew with every batch; in every other way as ``engine.Run`` or ``delta_engine.DeltaRun``.

    Its graphs share one pool of memory, which is no other's: they are replayed in the order in which they were
    captured, and all of them go at once. A pool may not be captured into once more when its last graph has gone.
    """

    def __init__(self, run: Run | DeltaRun, batch: Batch):
        self.run, self.chunk = run, run.chunk
        alike = isinstance(run, Run)  # what a timestep of delta coding runs depends on what the one before has sent
        alike &= not any(facts(node).op in REGIONS for node in run.graph.nodes)
        self.pool = torch.cuda.graph_pool_handle() if captures() and alike else None
        self.inputs = {name: value.clone() for name, value in run.graph.bind(batch).items()} if self.pool else {}
        self.graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}
        run.rest()

    def begin(self, batch: Batch) -> None:
        for name, value in self.inputs.items():
            value.copy_(self.run.graph.bind(batch)[name], non_blocking=True)
        self._done("begin", lambda: self.run.restart(self.inputs or batch))

    def advance(self, t0: int, steps: int) -> None:
        self._done(t0, lambda: self.run.advance(t0, steps))

    def forget(self, t: int) -> None:
        self._done("forget", lambda: self.run.forget(t))

    def reading(self, t: int) -> tuple[Any, Tensor]:
        return self._done(("readout", t), lambda: self.run.readout(t)), self._done(("counted", t), self.run.counted)

    def columns(self) -> Columns:
        return self.run.columns()

    def rest(self) -> None:
        if self.pool is None:  # else that memory is the graphs'
            self.run.rest()

    def _done(self, key: Hashable, call: Callable[[], Any]) -> Any:
        if self.pool is None:
            return call()
        if key not in self.graphs:
            self.graphs[key] = _captured(call, self.pool)
        graph, result = self.graphs[key]
        graph.replay()
        return result


class Replays:
    """What a network keeps of its last simulation, in case that the next one is like it."""

    def __init__(self) -> None:
        self.key: Hashable = None
        self.replay: Replay | None = None

    def find(self, key: Hashable) -> Replay | None:
        """The simulation of that key. Any other one is given up, for the sake of its memory."""
        if key is None or key != self.key:
            self.key = self.replay = None
        return self.replay

    def keep(self, key: Hashable, run: Run | DeltaRun | Replay, batch: Batch) -> None:
        """Keep a simulation that has been read."""
        if isinstance(run, Replay):
            run.rest()
        elif key is not None and fits(run):
            self.key, self.replay = key, Replay(run, batch)


@functools.cache
def _stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _captured(call: Callable[[], Any], pool: Any) -> tuple[torch.cuda.CUDAGraph, Any]:
    """What ``call`` does on the GPU, not done yet, and what it returns, which a replay fills.

    Raises InputError where that fails: what PyTorch calculates in this process from then on can't be relied on.
    """
    graph, stream = torch.cuda.CUDAGraph(), _stream(torch.cuda.current_device())
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        try:
            with torch.inference_mode(False):  # else graphs that the caller captures outside of it fail
                graph.capture_begin(pool, "thread_local")  # other threads read images into pinned memory
            result = call()
            graph.capture_end()
        except RuntimeError as error:
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"capturing CUDA graphs fails, and PyTorch is unsound from then on: run again without "
                f"MSAT_DET_CUDA_GRAPHS ({reason})"
            ) from error
    return graph, result
