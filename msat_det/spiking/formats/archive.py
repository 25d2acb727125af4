"""One file of tensors and a JSON document: safetensors with the document in its header. Nothing in it is ever run."""

import json
import struct
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from msat_det.base.errors import InputError, lack_of_memory
from msat_det.base.files import is_file, one_line, show, write_whole

MAX_HEADER = 8 << 20  # bytes of names, shapes and document: a parsed document stays below half a gigabyte
_KEY = "msat_det"


def write_archive(path: str | Path, kind: str, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a file whole or not at all. kind: what it holds, asked for again at reading. Raises InputError."""
    path = Path(path)
    text = json.dumps({"kind": kind} | document, allow_nan=False, separators=(",", ":"))
    if len(text) > MAX_HEADER // 2:
        raise InputError(f"{path}: {len(text)} characters beside the tensors are more than a file may have")
    # clones, so that tensors that share memory are written one by one
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    content = safetensors.torch.save(whole, {_KEY: text})
    write_whole(path, lambda file: file.write_bytes(content))


def read_archive(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and the tensors of a file that ``write_archive`` wrote, both still to be checked by the caller.

    Raises InputError for anything else.
    """
    path = Path(path)
    if not is_file(path):
        raise InputError(f"no file {path}: give the path of a saved {kind}")
    try:
        _check_header(path)
        with safe_open(path, "pt") as file:
            document = json.loads((file.metadata() or {})[_KEY], parse_constant=_no_number)
            # clones: PyTorch's own alignment, on which the last bits of a convolution may depend
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError, RuntimeError) as error:
        if lack_of_memory(error):
            raise
        reason = one_line(error)[:100]
        raise InputError(f"{path} is no saved {kind} of msat-det, or damaged ({reason}): save it again") from error
    if not isinstance(document, dict) or document.pop("kind", None) != kind:
        raise InputError(f"{path} holds no {kind}: give the path of a saved one")
    return document, tensors


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8 or struct.unpack("<Q", start)[0] > MAX_HEADER:
        raise ValueError("its header is cut off or far too long")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor, if it is a dense one of finite real numbers. Raises InputError."""
    if tensor.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise InputError(f"tensor {show(name)} holds {tensor.dtype}: give real numbers")
    if not tensor.isfinite().all():
        raise InputError(f"tensor {show(name)} holds NaN or infinite values: save it again from a sound network")
    return tensor
