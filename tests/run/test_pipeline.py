"""What a network has found on a GPU is read one behind: with a log in the GPU's place, and in whole runs."""

import contextlib
import itertools
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.devices import CPU, CUDA, MPS
from support.on_gpu import needs_gpu
from support.small_runs import contents, run_quietly, tiny

from msat_det.base.errors import InputError
from msat_det.graph.graph import Graph
from msat_det.measure.batch_files import Parts
from msat_det.models.yolo import YoloDetector
from msat_det.run import batches
from msat_det.run.loader import Reader
from msat_det.run.pipeline import Pipeline
from msat_det.spiking.network import SpikingNetwork

EXIT = ("--exit.methods", "signed", "--exit.images", "2")


class Launched:
    """A network's outputs."""


def launch(pipeline: Pipeline, log: list[str], *names: str) -> None:
    """Each is read and then kept; what is called bad can't be read."""

    def read(name: str, found: Launched) -> None:
        if name == "bad":
            raise InputError("NaN")
        log.append(f"read {name}")

    for name in names:
        log.append(f"launch {name}")
        pipeline.read(partial(read, name, Launched()))
        pipeline.after(partial(log.append, f"keep {name}"))


def test_reading_waits_for_what_it_reads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what was launched then; and nothing is launched any more before the reading stream is done."""
    log: list[str] = []
    reading = SimpleNamespace(
        wait_event=lambda event: log.append(f"wait for {event}"), synchronize=lambda: log.append("done")
    )
    events = iter("ab")
    computing = SimpleNamespace(record_event=lambda: log.append("event") or next(events))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: reading)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    with Pipeline(CUDA) as pipeline:
        launch(pipeline, log, "a", "b")
    assert log == [
        *("launch a", "event", "done", "wait for a"),
        *("launch b", "event", "read a", "keep a", "done", "wait for b"),
        *("read b", "keep b", "done"),
    ]


@pytest.mark.parametrize("device", [CPU, MPS])
def test_elsewhere_everything_is_read_at_once(device: torch.device) -> None:
    log: list[str] = []
    with Pipeline(device) as pipeline:
        launch(pipeline, log, "a", "b")
        assert log == ["launch a", "read a", "keep a", "launch b", "read b", "keep b"]


def test_whatever_fails_what_was_launched_before_is_kept() -> None:
    log: list[str] = []

    def interrupted() -> None:
        with Pipeline(CUDA) as pipeline:
            launch(pipeline, log, "a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert log == ["launch a", "read a", "keep a"]
    log.clear()
    with pytest.raises(InputError, match="NaN"), Pipeline(CUDA) as pipeline:
        launch(pipeline, log, "a", "bad", "c")
    assert log == ["launch a", "launch bad", "read a", "keep a", "launch c"]


def fails(call: Callable[[], None], error: Exception | None) -> None:
    with Pipeline(CUDA) as pipeline:
        pipeline.read(call)
        if error:
            raise error


def test_a_gpu_that_failed_and_can_not_be_read_tells_what_it_failed_at() -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.raises(InputError, match="capturing"):
        fails(lost, InputError("capturing CUDA graphs fails"))
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        fails(lost, None)


def test_outputs_of_two_networks_are_held_at_most() -> None:
    held: list[weakref.ref] = []
    most = []
    with Pipeline(CUDA) as pipeline:
        for _ in range(4):
            found = Launched()
            held.append(weakref.ref(found))
            most.append(sum(each() is not None for each in held))
            pipeline.read(partial(lambda found: None, found))
    assert most == [1, 2, 2, 2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a GPU."""
    out = tmp_path_factory.mktemp("whole")
    run_quietly(tiny(out, *EXIT))
    return out


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, but in the order of a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(batches, "Pipeline", lambda device: Pipeline(CUDA))


def test_the_next_batch_is_launched_before_a_batch_is_read(
    whole: Path, tmp_path: Path, behind: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the files are those of a run that reads at once."""
    log: list[str] = []
    decode, forward, simulate = YoloDetector.decode, Graph.__call__, SpikingNetwork.simulate

    def noting(name: str, call: Callable) -> Callable:
        return lambda *given: log.append(name) or call(*given)

    monkeypatch.setattr(YoloDetector, "decode", noting("read", decode))
    monkeypatch.setattr(Graph, "__call__", noting("float", forward))
    monkeypatch.setattr(SpikingNetwork, "simulate", noting("launch", simulate))
    batch, every = batches.simulate_batch, []
    monkeypatch.setattr(batches, "simulate_batch", lambda *given: every.append(len(log)) or batch(*given))
    run_quietly(tiny(tmp_path / "run", *EXIT))
    first = ["float", "launch", "read", "launch", "read", "read"]  # signed is read at t = 1 and 4
    assert log[every[0] :][: 4 * 7] == [*first, *(["float", "read", *first[1:]] * 3), "read"]
    assert contents(tmp_path / "run") == contents(whole)


@pytest.mark.parametrize(("place", "done"), [("reading", {0}), ("loading", {0, 1}), ("launching", {0, 1})])
def test_an_error_leaves_what_was_launched_before(
    place: str, done: set[int], whole: Path, tmp_path: Path, behind: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second batch of four where it is read, in the third where that is loaded or launched."""
    target, name, fatal = {
        "reading": (YoloDetector, "decode", 5),  # three times a batch
        "loading": (Reader, "__getitem__", 3),
        "launching": (SpikingNetwork, "simulate", 6),  # once for the exit rule, twice a batch
    }[place]
    call, calls = getattr(target, name), itertools.count(1)

    def failing(*given: Any) -> Any:
        if next(calls) == fatal:
            raise InputError("it is bad")
        return call(*given)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, failing)
        with pytest.raises(InputError, match="it is bad"):
            run_quietly(tiny(tmp_path / "run", *EXIT))
    assert Parts(tmp_path / "run/parts").done() == done
    run_quietly(tiny(tmp_path / "run", *EXIT, "--resume"))
    assert contents(tmp_path / "run") == contents(whole)


@needs_gpu
@pytest.mark.parametrize("graphs", ["off", "on"])
def test_a_gpu_gives_the_files_that_reading_at_once_gives(
    graphs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSAT_DET_CUDA_GRAPHS", graphs)
    run_quietly(tiny(tmp_path / "behind", *EXIT, "--device", "cuda"))
    monkeypatch.setattr(batches, "Pipeline", lambda device: Pipeline(CPU))
    run_quietly(tiny(tmp_path / "at once", *EXIT, "--device", "cuda"))
    assert contents(tmp_path / "behind") == contents(tmp_path / "at once")
