"""Simulations that go on in the memory of the last one, as they are and with a stand-in for CUDA graphs, which calls
again what it captured; test_gpu_graphs.py has real ones."""

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from support.networks import Residual, Yolo
from torch import Tensor, nn

import msat_det
from msat_det.base.checks import present
from msat_det.base.errors import InputError
from msat_det.methods.observe import observe
from msat_det.spiking import replay, simulate
from msat_det.spiking.delta_engine import DeltaRun
from msat_det.spiking.engine import Run
from msat_det.spiking.network import SpikingNetwork

METHODS = {
    "signed bursts": ("constant", {"signed": True, "gamma": 3, "initial": "half"}),
    "msat": ("msat", {"variant": "normalised", "signed": True}),
    "calibration": ("calibration", {}),
}


DELTA = {"delta": ("delta", {"bits": 6, "terms": (2, 1)})}


class Again:
    """In a CUDA graph's place: a replay calls once more, and puts what that gives where the first call left it."""

    def __init__(self, call: Callable[[], Any], pool: tuple[int, int], result: Any):
        self.call, self.pool, self.result, self.replays = call, pool, result, 0

    def replay(self) -> None:
        self.replays += 1
        if self.replays > 1:
            pytree.tree_map(lambda old, new: old if old is None else old.copy_(new), self.result, self.call())


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Run | DeltaRun]:
    """All runs that are made; every two simulations of one shape, T and record are alike."""
    found: list[Run | DeltaRun] = []

    for kind in (Run, DeltaRun):
        monkeypatch.setattr(simulate, kind.__name__, lambda *given, kind=kind: found.append(kind(*given)) or found[-1])
    monkeypatch.setattr(simulate, "key_of", lambda setup, inputs, T, record: (shapes(inputs), T, tuple(record)))
    monkeypatch.setattr(replay, "fits", lambda run: True)
    return found


@pytest.fixture
def captured(kept: list[Run], monkeypatch: pytest.MonkeyPatch) -> list[Again]:
    """All that is captured."""
    found: list[Again] = []
    pools = ((0, number) for number in itertools.count(1))

    def capture(call: Callable[[], Any], pool: tuple[int, int]) -> tuple[Again, Any]:
        result = call()
        found.append(Again(call, pool, result))
        return found[-1], result

    monkeypatch.setenv("MSAT_DET_CUDA_GRAPHS", "on")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(replay, "_captured", capture)
    return found


def plain() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.GroupNorm(2, 8)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(8, 2, 1))


def shapes(inputs: dict[str, Tensor]) -> list[torch.Size]:
    return [value.shape for value in inputs.values()]


def images(seed: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def converted(make: Callable[[], nn.Module] = plain, method: str = "signed bursts") -> SpikingNetwork:
    torch.manual_seed(0)
    name, options = {**METHODS, **DELTA}[method]
    snn = msat_det.convert(observe(make().eval(), [images(0)]), method=name, T=6, **options)
    snn.chunk = 2
    return snn


def numbers(snn: SpikingNetwork, seed: int, record: tuple[int, ...] = (3, 6)) -> list[Tensor]:
    """Outputs and counts of one batch."""
    outputs = snn.run(images(seed), record[-1], record)
    return [*pytree.tree_leaves(outputs), *(snn.counts[t].figures for t in record)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [plain, Residual, Yolo])
def test_every_batch_begins_from_rest(make: Callable[[], nn.Module], method: str, kept: list[Run]) -> None:
    snn = converted(make, method)
    expected = [numbers(converted(make, method), seed) for seed in (1, 2, 3)]
    kept.clear()
    for seed, numbers_then in zip((1, 2, 3), expected, strict=True):
        assert same(numbers(snn, seed), numbers_then)
        (run,) = kept
        assert not run.static  # nothing but the neurons' states is kept
        assert not run.sums


@pytest.mark.parametrize("make", [plain, Residual, Yolo])
def test_every_batch_begins_from_rest_under_delta_coding(
    make: Callable[[], nn.Module], kept: list[DeltaRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same kernels; and no graph of it is captured."""
    monkeypatch.setenv("MSAT_DET_CUDA_GRAPHS", "on")
    snn = converted(make, "delta")
    for seed in (1, 2, 3):
        expected = numbers(converted(make, "delta"), seed)
        kept.clear()
        found = numbers(snn, seed)
        assert same(found, expected)
        assert (kept == []) == (seed > 1)
    run = present(snn._replays.replay).run
    assert not run.values
    assert not run.pools
    assert snn._replays.replay.pool is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [plain, Residual, Yolo])
def test_a_graph_of_it_is_replayed(make: Callable[[], nn.Module], method: str, captured: list[Again]) -> None:
    snn = converted(make, method)
    expected = [numbers(converted(make, method), seed) for seed in (1, 2, 3)]
    captured.clear()
    assert not same(expected[0], expected[1])
    for seed, numbers_then in zip((1, 2, 3), expected, strict=True):
        assert same(numbers(snn, seed), numbers_then)
    # the beginning, four chunks (of 2 and 1 timesteps twice) and two readings, captured at the second batch
    assert [one.replays for one in captured] == [2] * 9


@pytest.mark.parametrize("method", [*METHODS, *DELTA])
def test_results_are_still_there_when_the_next_batch_has_run(method: str, captured: list[Again]) -> None:
    """On a GPU they are read then: outputs and counts of a graph lie in memory that its next replay writes."""
    snn = converted(plain, method)
    results = [snn.simulate(images(seed), 6, (3, 6)) for seed in (1, 2, 3, 4)]
    for seed, result in enumerate(results, 1):
        found = [*pytree.tree_leaves(result.outputs), *(result.counts[t].figures for t in (3, 6))]
        assert same(found, numbers(converted(plain, method), seed))


def test_another_record_or_shape_is_captured_anew(captured: list[Again]) -> None:
    snn = converted()
    for record, captures in [((6,), 0), ((6,), 6), ((3, 6), 6), ((3, 6), 15), ((6,), 15)]:
        assert same(numbers(snn, 1, record), numbers(converted(), 1, record))
        assert len(captured) == captures
    snn.run(images(1, count=3), 6, [6])
    assert len(captured) == 15
    # a pool is of one simulation alone: PyTorch takes none again whose graphs are gone
    pools = [one.pool for one in captured]
    assert (len({*pools[:6]}), len({*pools[6:]}), len({*pools})) == (1, 1, 2)


def test_what_looks_inside_runs_as_it_is(kept: list[Run]) -> None:
    snn = converted()
    for _ in range(2):
        snn.run(images(1), 6, tap=lambda site, y: None)
        snn.run(images(1), 6, watch=lambda site, scan, x: None)
        snn.run(images(1), 6, stop=lambda outputs: False)
    assert len(kept) == 6


class Refused:
    """A CUDA graph whose capture fails as PyTorch's does: at once, or when it is to end."""

    def __init__(self, begins: bool):
        self.begins, self.ended = begins, 0

    def capture_begin(self, pool: tuple[int, int], mode: str) -> None:
        if not self.begins:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED\nplease report a bug")

    def capture_end(self) -> None:
        self.ended += 1
        raise RuntimeError("operation failed due to a previous error during capture\nCUDA kernel errors might …")


@pytest.mark.parametrize("begins", [False, True])
def test_a_capture_that_fails_ends_the_simulation(
    begins: bool, kept: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on would give anything: PyTorch's allocator and generators stay as they are during a capture."""
    graphs = []
    monkeypatch.setenv("MSAT_DET_CUDA_GRAPHS", "on")
    for name, value in {
        "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": lambda: graphs.append(Refused(begins)) or graphs[-1],
        "current_device": lambda: 0,
        "synchronize": lambda: None,
        "stream": contextlib.nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(replay, "_stream", lambda device: None)
    snn = converted()
    numbers(snn, 1)
    reason = "operation failed due to a previous error during capture" if begins else "use_count > 0 INTERNAL"
    with pytest.raises(InputError, match=f"run again without MSAT_DET_CUDA_GRAPHS .{reason}"):
        numbers(snn, 2)
    assert [graph.ended for graph in graphs] == [2 if begins else 1]


def test_on_a_cpu_nothing_is_kept() -> None:
    snn = converted()
    numbers(snn, 1)
    numbers(snn, 2)
    assert snn._replays.replay is None
