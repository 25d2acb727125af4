"""Evaluated images come as batches, whoever reads them and wherever they go."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from support.devices import CUDA, StandIn
from support.on_gpu import needs_gpu
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.data.images import CorruptImage
from msat_det.run import loader


class Squares:
    """A data set of images 8 × 8 of one grey each, number 3 of them corrupt, with a network's preprocessing."""

    ids: ClassVar = list(range(10))

    def image(self, id: int) -> Tensor:
        if id == 3:
            raise CorruptImage("can't read image 3")
        return torch.full((3, 8, 8), id, dtype=torch.uint8)

    def misfit(self, id: int, image: Tensor) -> str | None:
        return "image 5 is turned" if id == 5 else None

    def preprocess(self, image: Tensor) -> tuple[Tensor, int]:
        if image[0, 0, 0] == self.refused:
            raise InputError("image 7 has no size")
        return image / 255, int(image[0, 0, 0])

    refused = -1


@pytest.mark.parametrize(("piece", "room"), [(2, 1 << 40), (8, 0)], ids=["processes, in pieces", "thread"])
def test_batches_are_read_alike_for_a_cpu_and_a_gpu(piece: int, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    squares, ids = Squares(), [[0, 1, 2], [3], [6, 7, 8, 9], [4, 5]]
    monkeypatch.setattr(loader, "PIECE", piece)
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda path: SimpleNamespace(free=room))
    began = []
    by_processes = loader.DataLoader
    monkeypatch.setattr(loader, "DataLoader", lambda *given, **more: began.append(1) or by_processes(*given, **more))

    def load(device: str, strict: bool = False) -> list[loader.Loaded]:
        return list(loader.load_batches(squares, squares, ids, torch.device(device), strict))

    here = load("cpu")
    assert [(one.ids, one.metas) for one in here] == [
        ([0, 1, 2], [0, 1, 2]), ([], []), ([6, 7, 8, 9], [6, 7, 8, 9]), ([4, 5], [4, 5])
    ]  # fmt: skip
    assert (here[1].corrupt, here[1].inputs, here[3].misfit) == (["can't read image 3"], None, ["image 5 is turned"])
    assert torch.equal(here[3].inputs, torch.stack([squares.preprocess(squares.image(id))[0] for id in (4, 5)]))
    assert began == []
    with StandIn(CUDA):
        for one, there in zip(here, load("cuda:0"), strict=True):
            assert there.inputs is None or (there.inputs.device == CUDA and torch.equal(there.inputs.cpu(), one.inputs))
            assert replace(there, inputs=None) == replace(one, inputs=None)
        assert began == [1] * (room > 0)
        assert list(loader.load_batches(squares, squares, [], CUDA, strict=True)) == []
        with pytest.raises(CorruptImage, match=r"^can't read image 3$"):
            load("cuda:0", strict=True)
        squares.refused = 7
        with pytest.raises(InputError, match=r"^image 7 has no size$"):
            load("cuda:0")


@needs_gpu
@pytest.mark.parametrize("room", [1 << 40, 0], ids=["processes", "thread"])
def test_batches_on_a_gpu_are_those_of_the_cpu(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is changed where it lies while the next one is copied, as a simulation that takes long may find it."""
    squares, ids = Squares(), [[i, i + 1] * 20 for i in range(4, 9)] * 4
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda path: SimpleNamespace(free=room))
    here, there = (
        loader.load_batches(squares, squares, ids, torch.device(device), strict=True) for device in ("cpu", "cuda:0")
    )
    for one, other in zip(here, there, strict=True):
        torch.cuda._sleep(10_000_000)
        assert torch.equal(other.inputs.cpu(), one.inputs)
        other.inputs.zero_()
        assert other.metas == one.metas


@pytest.mark.parametrize(
    ("cores", "ranks", "room", "readers", "piece"),
    [
        *((16, 1, 1 << 40, 15, 8), (64, 1, 1 << 40, 16, 8), (16, 4, 1 << 40, 3, 8), (1, 1, 1 << 40, 1, 8)),
        *((16, 1, 64 << 20, 15, 1), (16, 1, 256 << 20, 15, 4), (16, 1, 32 << 20, 8, 1), (16, 2, 32 << 20, 4, 1)),
        (16, 1, 1 << 20, 0, 0),
    ],
)
def test_readers_leave_a_core_and_half_of_the_shared_memory(
    cores: int, ranks: int, room: int, readers: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs of a megabyte, and two pieces of each reader in memory."""
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    monkeypatch.setattr(loader.ranks, "local_count", lambda: ranks)
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda path: SimpleNamespace(free=room))
    assert loader._shares(1 << 20) == (readers, piece)


def test_the_loader_pins_the_inputs_of_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """By PyTorch's own function for it, which leaves what it does not know as it is."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: "pinned")
    pin = torch.utils.data._utils.pin_memory.pin_memory
    assert pin(loader.Loaded([1], inputs=torch.zeros(1))) == loader.Loaded([1], inputs="pinned")
    assert pin(loader.Loaded(corrupt=["it is"])) == loader.Loaded(corrupt=["it is"])


def test_the_next_batch_is_copied_while_one_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU waits for the copying that has been asked for by then, which is that of the batch handed over."""
    log: list[str] = []

    class Copied:
        def __init__(self, name: str):
            self.name = name
            log.append(f"copy {name}")

        def record_stream(self, stream: SimpleNamespace) -> None:
            log.append(f"{self.name} is used by {stream.name}")

    computing = SimpleNamespace(name="computing", wait_stream=lambda stream: log.append(f"wait for {stream}"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "copying")
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(loader, "_joined", lambda pieces, device: loader.Loaded(inputs=Copied(pieces[0])))
    for loaded in loader._uploaded(iter([["a"], ["b"]]), CUDA):
        log.append(f"simulate {loaded.inputs.name}")
    assert log == [
        *("copy a", "wait for copying", "a is used by computing", "copy b", "simulate a"),
        *("wait for copying", "b is used by computing", "simulate b"),
    ]
