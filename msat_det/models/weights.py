"""Weights out of a file of whatever form, and those that torchvision publishes."""

import os
import zipfile
from pathlib import Path
from urllib.error import URLError

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights, list_models

from msat_det.base.errors import InputError, lack_of_memory
from msat_det.base.files import is_file, show
from msat_det.base.settings import SHARE
from msat_det.data.catalogue import get_with
from msat_det.models.checkpoint import DTYPES, FAULTS, Checkpoint, Foreign, Stored
from msat_det.models.state_dict import SAVE, find_weights, load_tensors, without_prefix

OWN_WEIGHTS = SHARE / "data" / "weights"  # of the demo networks, which come along


# What the first bytes of a file say that it is, where people give it for another kind of weights.
_BEGINNINGS = {
    b"PK\x03\x04": "a PyTorch checkpoint",
    **{b"\x80" + bytes([protocol]): "a PyTorch checkpoint" for protocol in (2, 3, 4, 5)},
    b"\x89HDF": "an HDF5 file, as Keras writes it",
    b"version https://git-lfs": "a pointer of Git LFS (`git lfs pull` fetches what it stands for)",
    b"<": "a web page (a download that went wrong)",
    b"\x1f\x8b": "a gzip archive (unpack it first)",
}


def kind_of(path: str | Path) -> str | None:
    """What kind of file its first bytes show, other than Darknet's weights. Raises OSError where it can't be read."""
    if not is_file(path):  # a pipe would wait for who writes into it
        raise OSError("no such file")
    with Path(path).open("rb") as file:
        head = file.read(265)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return "a safetensors file"
    if head[257:262] == b"ustar":
        return "a tar archive, the form of PyTorch before 0.1.10"
    return next((kind for beginning, kind in _BEGINNINGS.items() if head.startswith(beginning)), None)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of what ``torch.save`` wrote: a state dict, or a checkpoint around one.

    The file's content decides, not its suffix. Nothing of a pickle is run, see ``checkpoint``; where a checkpoint keeps
    its weights, see ``state_dict.find_weights``. Raises InputError.
    """
    try:
        kind = kind_of(path)
    except OSError as error:
        what = "safetensors" if Path(path).suffix == ".safetensors" else "weights"
        reason = error.strerror or str(error)
        mend = (not is_file(path) and get_with(Path(path))) or "give --model.weights a whole file"
        raise InputError(f"{path}: not readable as {what} ({reason}); {mend}") from None
    if kind == "a PyTorch checkpoint":
        return _finite(_read_checkpoint(path), path)
    if kind == "a safetensors file" or Path(path).suffix == ".safetensors":
        return _finite(_read_safetensors(path), path)
    reason = f"it is {kind}" if kind else "it is neither safetensors nor what torch.save writes"
    raise InputError(f"{path}: not readable as weights ({reason}); give --model.weights a whole file")


def fill(net: nn.Module, path: str | Path) -> nn.Module:
    """The network with the weights of a file that ``read_tensors`` reads. Raises InputError for those of another."""
    load_tensors(net, without_prefix(read_tensors(path), net.state_dict(), path), path)
    return net


def _read_safetensors(path: str | Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not readable as safetensors ({error}); give --model.weights a whole file") from None


def _read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    try:
        _require_stored(path)
        with Checkpoint(path) as file:
            weights = find_weights(file.content, path)
            for name, value in weights.items():
                if isinstance(value, Foreign) and value.tensor:
                    raise _not_plain(path, name, value.kind)
            return {name: file.tensor(value) for name, value in weights.items() if isinstance(value, Stored)}
    except FAULTS as error:
        if lack_of_memory(error):
            raise
        told = isinstance(error, ValueError | RuntimeError | OSError | zipfile.BadZipFile) and str(error)
        reason = told or f"it is damaged: {type(error).__name__}"
        raise InputError(f"{path}: not readable as weights ({reason}); give --model.weights a whole file") from error


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


def _require_stored(path: str | Path) -> None:
    """Refuse a zip that torch.save did not write, or that unpacks to more than it is: torch.save compresses nothing."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    ends = {member.filename.partition("/")[2] for member in members}
    if "constants.pkl" in ends:
        raise InputError(
            f"{path} is a TorchScript archive, a program: save a state dict: "
            "torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
        )
    if "data.pkl" not in ends:
        raise ValueError("a zip archive without data.pkl, which torch.save puts into it")
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > os.path.getsize(path):  # noqa: PTH202
        raise ValueError("its members are compressed")


def _not_plain(path: str | Path, name: str, kind: str) -> InputError:
    return InputError(f"{path}: holds no state dict of plain tensors, {show(name)} is {kind}; {SAVE}")


def _finite(tensors: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The tensors, if they are of as many finite numbers as the file has room for, of a kind that networks have."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            raise _not_plain(path, name, str(tensor.dtype))
    size = os.path.getsize(path)  # noqa: PTH202
    if sum(tensor.numel() * tensor.itemsize for tensor in tensors.values()) > 4 * size:  # some may share memory
        raise InputError(f"{path}: its tensors are larger than its {size} bytes; {SAVE}")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{path}: tensor {show(name)} holds NaN or infinite values; get an undamaged copy of the file"
            )
    return tensors
