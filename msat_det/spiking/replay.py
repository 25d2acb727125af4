"""A simulation captured as CUDA graphs, for one batch after another of the same shape (rate coding).

A GPU is done with the layers of a few images before Python has asked for the next one. So what the first batch of a
shape has run is captured when the second one comes, a graph for each chunk and reading, and replayed from then on: the
same kernels on the same numbers. Where that can't be (see ``key_of`` and ``fits``), and where capturing fails, a
simulation runs as it is; that is told once.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.graph.inputs import Batch
from msat_det.spiking.engine import Run
from msat_det.spiking.plan import Setup

SHARE = 8  # states are kept from batch to batch where they take no more than this part of the memory that is free


def key_of(setup: Setup, batch: Batch, T: int, record: Sequence[int]) -> Hashable:
    """What two simulations must share for one to be replayed as the other; None on a CPU."""
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
        tuple((value.data_ptr(), 0 if value.is_inference() else value._version) for value in weights),
    )


def fits(run: Run) -> bool:
    """Whether a run can be captured: neurons in kernels, nothing drawn by image, and memory for the states."""
    if not all(scan.repeats for scan in run.scans.values()):
        return False
    states = sum(
        value.nbytes for scan in run.scans.values() for value in vars(scan.state).values() if value is not None
    )
    return states <= torch.cuda.mem_get_info(run.device)[0] / SHARE


class Replay:
    """A run that begins anew with every batch; in every other way as ``engine.Run``.

    Its graphs share one pool of memory with those of all networks. That is sound because they are replayed one network
    after the other, always in the order in which they were captured, and what is read is copied before the next.
    """

    def __init__(self, run: Run, batch: Batch):
        self.run, self.chunk = run, run.chunk
        self.inputs = {name: value.clone() for name, value in run.graph.bind(batch).items()}
        self.graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}

    def begin(self, batch: Batch) -> None:
        for name, value in self.run.graph.bind(batch).items():
            self.inputs[name].copy_(value, non_blocking=True)
        self._done("begin", lambda: self.run.restart(self.inputs))

    def advance(self, t0: int, steps: int) -> None:
        self._done(t0, lambda: self.run.advance(t0, steps))

    def forget(self, t: int) -> None:
        self._done("forget", lambda: self.run.forget(t))

    def readout(self, t: int) -> Any:
        return self._done(("readout", t), lambda: self.run.readout(t))

    def spikes(self, t: int) -> tuple[dict[str, Tensor], dict[Node, Tensor]]:
        return self.run.apart(self._done(("spikes", t), self.run.counted), t)

    def _done(self, key: Hashable, call: Callable[[], Any]) -> Any:
        if key not in self.graphs:
            self.graphs[key] = _captured(call)
        graph, result = self.graphs[key]
        graph.replay()
        return result


class Replays:
    """What a network keeps of its last simulation, in case that the next one is like it."""

    def __init__(self) -> None:
        self.key: Hashable = None
        self.replay: Replay | None = None
        self.fails = False

    def find(self, key: Hashable) -> Replay | None:
        """The simulation of that key. Any other one is given up, for the sake of its memory."""
        if key is None or key != self.key:
            self.key = self.replay = None
        return self.replay

    def keep(self, key: Hashable, run: Run, batch: Batch) -> None:
        if key is not None and not self.fails and fits(run):
            self.key, self.replay = key, Replay(run, batch)

    def give_up(self, error: RuntimeError) -> None:
        self.key, self.replay, self.fails = None, None, True
        torch.cuda.synchronize()
        reason = str(error).partition("\n")[0]
        warnings.warn(f"this network runs without CUDA graphs, for capturing it fails: {reason}", stacklevel=4)


@functools.cache
def _pool() -> tuple[int, int]:
    return torch.cuda.graph_pool_handle()


@functools.cache
def _stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """What ``call`` does on the GPU, not done yet, and what it returns, which a replay fills."""
    graph, stream = torch.cuda.CUDAGraph(), _stream(torch.cuda.current_device())
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        with torch.inference_mode(False):  # else graphs that the caller captures outside of it fail
            graph.capture_begin(_pool(), "thread_local")  # other threads read images into pinned memory
        try:
            result = call()
        except BaseException:
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
    return graph, result
