"""Errors that are no fault of the file that is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from msat_det.data import images
from msat_det.measure import batch_files
from msat_det.models import checkpoint
from msat_det.models.weights import read_tensors
from msat_det.spiking.formats import archive

LACK = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"


def picture(folder: Path) -> Path:
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    return folder / "a.png"


def weights(folder: Path) -> Path:
    torch.save(nn.Linear(2, 2).state_dict(), folder / "w.pt")
    return folder / "w.pt"


def saved(folder: Path) -> Path:
    archive.write_archive(folder / "a.safetensors", "network", {}, {"a": torch.ones(2)})
    return folder / "a.safetensors"


def parts(folder: Path) -> Any:
    found = batch_files.Parts(folder)
    found.write(0, batch_files.Part([1], [], {("float", None): [torch.ones(2)]}))
    return found


READERS: dict[str, tuple[Callable[[Path], Any], Callable[[Any], Any], tuple[Any, str]]] = {
    "a picture": (picture, images.read_image, (images, "_decode")),
    "a picture's head": (picture, images.image_size, (images, "_open")),
    "weights": (weights, read_tensors, (checkpoint.Checkpoint, "tensor")),
    "a saved network": (saved, lambda path: archive.read_archive(path, "network"), (archive, "safe_open")),
    "a batch of a run": (parts, lambda parts: parts.found("float", None), (batch_files, "safe_open")),
}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(LACK)], ids=["Python's", "PyTorch's"])
@pytest.mark.parametrize("case", READERS)
def test_a_file_that_memory_lacks_for_is_not_called_damaged(
    case: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run leaves the picture out and goes on, and a person deletes what is sound."""
    make, read, place = READERS[case]
    file = make(tmp_path)

    def lacking(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*place, lacking)
        with pytest.raises(type(error)) as caught:
            read(file)
    assert caught.value is error
    read(file)  # nothing is wrong with it
