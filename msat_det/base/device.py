"""Which device a command runs on."""

import re
import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from msat_det.base import ranks
from msat_det.base.errors import InputError
from msat_det.base.files import show


def find_device(name: str) -> torch.device:
    """The device called ``name``: auto (a GPU where there is one, which a line on stderr says), cpu, cuda, cuda:N, mps.

    cuda, and auto where that is one, is the first GPU, and under torchrun one for each rank of a machine, in turn.
    Raises InputError where it is not there, or there is no such kind.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise InputError(f"device is {show(name)}: give auto, cpu, cuda, cuda:N or mps")
    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if found != "cpu" and ranks.rank() == 0:
            called = f"cuda ({torch.cuda.get_device_name()})" if found == "cuda" else found
            print(f"msat-det: on {called}; --device cpu for the CPU", file=sys.stderr)
        name = found
    kind, _, number = name.partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("device is mps, and there is none here: give --device auto or cpu")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InputError(f"device is {name}, and PyTorch sees no CUDA device here: give --device auto or cpu")
        if int(number or 0) >= count:
            raise InputError(f"device is {name}, and there are {count} here: give cuda:0 to cuda:{count - 1}")
        return torch.device("cuda", int(number or ranks.local_rank() % count))
    return torch.device(kind)


def wide(x: Tensor) -> Tensor:
    """x in float64: where it lies, or on the CPU where its device has none, as Apple's have not."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def brought(x: Tensor, to: Tensor | torch.device) -> Tensor:
    """x on a device, or as a tensor is, where that lies and in its dtype. A CUDA device is not waited for; Apple's is,
    for a copy there reads memory that may be free by then (https://github.com/pytorch/pytorch/issues/189690)."""
    device, dtype = (to.device, to.dtype) if isinstance(to, Tensor) else (to, x.dtype)
    return x.to(device, dtype, non_blocking=device.type == "cuda")


def current(device: torch.device) -> AbstractContextManager:
    """Within it this is PyTorch's current device, where it is a GPU: memory is pinned for it, graphs captured on it."""
    return torch.cuda.device(device) if device.type == "cuda" and torch.cuda.is_available() else nullcontext()
