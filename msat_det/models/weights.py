"""What the builders of detectors share: reading class names and weights, and the options a configuration sets."""

import os
import zipfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights, list_models
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights

from msat_det.base.errors import InputError
from msat_det.base.files import is_file, show, text_of
from msat_det.data import VOC_CLASSES

COCO_COLUMNS = SSDLite320_MobileNet_V3_Large_Weights.COCO_V1.meta["categories"]  # background, then ids 1 to 90
DTYPES = {
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
MAX_NAMES = 1 << 20  # bytes of a file of class names
NO_CLASS = {"???", "N/A", "__background__"}
COCO_CLASSES = [name for name in COCO_COLUMNS if name not in NO_CLASS]


def given(model: Any, *keys: str) -> dict[str, Any]:
    """Those of a model configuration's fields that are set (not None)."""
    return {key: value for key in keys if (value := getattr(model, key)) is not None}


def read_names(path: str | Path) -> list[str]:
    """VOC's 20 class names for "voc", COCO's 80 for "coco", or those of a file, one a line."""
    if path in ("voc", "coco"):
        return list(VOC_CLASSES if path == "voc" else COCO_CLASSES)
    try:
        names = [line.strip() for line in text_of(path, MAX_NAMES).rstrip().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: class names not readable ({error}); give --model.names a text file") from None
    if not names:
        raise InputError(f"{path}: holds no class names; write one name a line")
    return names


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a missing or damaged file, or a value that isn't finite, is an InputError."""
    try:
        _require_file(path)
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not readable as safetensors ({error}); give --model.weights a whole file") from None
    return _finite(tensors, path)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or, for any other suffix, of a state dict that ``torch.save`` wrote.

    The state dict may lie under ``state_dict`` or ``model``. Nothing but tensors is unpickled. Raises InputError.
    """
    if Path(path).suffix == ".safetensors":
        return read_safetensors(path)
    try:
        _require_file(path)
        _require_stored(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises a dozen types on damaged files
        reason = str(error).strip().partition("\n")[0][:100] or type(error).__name__
        raise InputError(f"{path}: not readable as weights ({reason}); give --model.weights a whole file") from error
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path}: holds no state dict (names with tensors); save the network's state_dict()")
    return _finite(content, path)


def published(name: str, weights: str) -> WeightsEnum:
    """The member ``weights`` (DEFAULT, say) of the enum of torchvision's model ``name``. Raises InputError."""
    members = [*get_model_weights(name).__members__] if name in list_models() else []
    if weights not in members:
        known = f"{name}'s names are {', '.join(members)}" if members else f"{name} has no weights by name"
        raise InputError(f"no weights {weights!r}: {known}; a file needs its suffix, as in {weights}.safetensors")
    return get_model_weights(name)[weights]


def download(enum: WeightsEnum) -> dict[str, Tensor]:
    """torchvision's published weights, out of the cache of ``torch.hub`` where they are there. Raises InputError."""
    try:
        return enum.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{enum.url} can't be fetched ({reason}): msat-det fetch torchvision:MODEL goes on after a break and takes "
            "mirrors; or give the file as --model.weights FILE"
        ) from error


def _require_file(path: str | Path) -> None:
    if not is_file(path):  # a pipe would wait for who writes into it
        raise OSError("no such file")


def _require_stored(path: str | Path) -> None:
    """Refuse a zip that unpacks to more than it is: torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > os.path.getsize(path):  # noqa: PTH202
                raise ValueError("its members are compressed")


def _finite(tensors: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The values, if they are tensors in this process's memory of as many finite numbers as the file has room for."""
    for name, tensor in tensors.items():
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and not tensor.is_nested
        if not (plain and tensor.layout is torch.strided and tensor.dtype in DTYPES):
            kind = type(tensor).__name__
            if isinstance(tensor, Tensor):
                kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise InputError(
                f"{path}: holds no state dict of plain tensors, {show(name)} is {kind}; save the network's state_dict()"
            )
    size = os.path.getsize(path)  # noqa: PTH202
    if sum(tensor.numel() * tensor.itemsize for tensor in tensors.values()) > 4 * size:  # some may share memory
        raise InputError(f"{path}: its tensors are larger than its {size} bytes; save the network's state_dict()")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{path}: tensor {show(name)} holds NaN or infinite values; get an undamaged copy of the file"
            )
    return tensors


def load_tensors(net: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    """``load_state_dict`` that says in one line which tensor of the file at ``path`` doesn't fit ``net``.

    Batch norm's counters of training steps may be missing: files older than PyTorch 0.4.1 have none.
    """
    wanted = net.state_dict()
    counters = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    tensors = counters | tensors
    for name in sorted(wanted.keys() | tensors.keys()):
        shapes = [tuple(group[name].shape) if name in group else None for group in (wanted, tensors)]
        if shapes[0] != shapes[1]:
            need, got = ("no such tensor" if shape is None else f"shape {shape}" for shape in shapes)
            raise InputError(
                f"{path}: {show(name)}: the network has {need}, the file {got}; give weights of this network"
            )
    wanted.update(tensors)  # unlike a plain dict it tells the layout's version, which MNASNet asks for
    net.load_state_dict(wanted)
