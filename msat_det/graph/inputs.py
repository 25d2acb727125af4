"""What people give as calibration, batch and timesteps → what the converter takes, or one line that says the mend."""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from msat_det.base.errors import InputError, lack_of_memory
from msat_det.base.files import show

Batch = Tensor | tuple | list | dict

# What PyTorch and a network's own code raise on inputs that do not fit.
MISFIT = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
AS_IT_TAKES = (
    "give float batches (B, …) as the network takes them, dimension 0 for images alone: one image as image[None], "
    "several as torch.stack(images)"
)


def images_in(batch: Batch) -> int:
    """The number of a batch's images."""
    return len(pytree.tree_leaves(batch)[0])


def first_images(batch: Batch, count: int) -> Batch:
    """A batch of its first images alone."""
    return pytree.tree_map(lambda value: value[:count], batch)


def cut(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch as smaller ones of up to ``size`` images."""
    for first in range(0, images_in(batch), size):
        yield pytree.tree_map(lambda value, first=first: value[first : first + size], batch)


def mend(value: Any, shape: tuple[int, ...] | None = None) -> str:
    """What to do with an input that does not fit. shape: of one image, where it is known."""
    if isinstance(value, Tensor) and tuple(value.shape) == shape:
        return "it is one image without a batch axis: give image[None], several as torch.stack(images)"
    if isinstance(value, Tensor) and value.dtype == torch.uint8:
        return "give float batches (B, …): scale the bytes as the network was trained, images.float() / 255 for example"
    return AS_IT_TAKES


def reason(error: Exception) -> str:
    """What another library's error says in its first line. Raises the error itself where memory ran out."""
    if lack_of_memory(error):
        raise error
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number as an int: 2, 2.0, or one of NumPy or PyTorch. Raises InputError for anything else."""
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, int) and not isinstance(number, bool) and (least is None or number >= least):
        return number
    wanted = "a whole number" if least is None else f"a whole number of at least {least}"
    raise InputError(f"{name} is {show(value)}: give {wanted}")


def timesteps(record: Any) -> list[int]:
    """Recorded timesteps, one or several, each once and in their order. Raises InputError."""
    several = isinstance(record, Iterable) and getattr(record, "ndim", None) != 0
    return sorted({whole("one of the recorded timesteps", t) for t in (record if several else [record])})


def recorded(T: Any, record: Any = None) -> list[int]:
    """The timesteps that a simulation of T records: ``record``'s, or T alone. Raises InputError."""
    last = whole("T", T, 1)
    times = timesteps(last if record is None else record)
    if not times or times[0] < 1 or times[-1] > last:
        raise InputError(f"recorded timesteps {times} must lie in 1..T = {last}: give at least one, and T as the last")
    return times


def as_input(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """One input of a network for a batch of images: floats in float32, on the network's device. Raises InputError."""
    if torch.get_default_dtype() is not torch.float32 or any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        raise InputError("torch's default dtype is not float32, or autocast is on: neurons need float32, so set it so")
    if not isinstance(value, Tensor):
        raise InputError(
            f"{name} is {kind(value)}: give a float tensor (B, …), as torch.from_numpy makes one of NumPy's"
        )
    if value.dim() == 0 or value.layout is not torch.strided or value.is_complex() or value.is_meta:
        raise InputError(f"{name} is {kind(value)}: give a dense tensor of real numbers (B, …)")
    if len(value) == 0:
        raise InputError(f"{name} is {kind(value)}, which holds no image: give at least one")
    return value.to(device, torch.float32 if value.is_floating_point() else value.dtype)


def name_of(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def kind(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Tensor):
        where = " without values" if value.is_meta else "" if value.layout is torch.strided else " in a sparse layout"
        return f"a tensor {tuple(value.shape)} of {name_of(value.dtype)}{where}"
    inner = f" of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else ""
    return f"{'an' if type(value).__name__[0].lower() in 'aeio' else 'a'} {type(value).__name__}{inner}"


def calibration_batches(given: Any, net: nn.Module) -> list[Batch]:
    """Calibration as people have it → batches as ``net`` takes them.

    given: one batch, or an iterable of batches, which is gone through once. A batch is a tensor (B, …), a sequence of
    the network's inputs in their order, or a mapping of their names; labels beside them are left out.
    Raises InputError for anything else.
    """
    batches = items(given)
    if batches and len(_inputs(net)[1]) > 1 and all(isinstance(batch, Tensor) for batch in batches):
        batches = [tuple(batches)]  # a tensor alone is no batch of several inputs: together they are one
    return [_batch(f"calibration batch {number}", batch, net) for number, batch in enumerate(batches)]


def items(given: Any) -> list[Any]:
    """The batches of a calibration."""
    if isinstance(given, Tensor | Mapping):
        return [given]
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        raise InputError(
            f"calibration is {kind(given)}: give a DataLoader over some of it, for a detector a list of its images"
        )
    if isinstance(given, str | bytes) or not isinstance(given, Iterable) or hasattr(given, "dtype"):
        folder = ", for a detector a folder of images that is there" if isinstance(given, str | os.PathLike) else ""
        raise InputError(f"calibration is {kind(given)}: give a tensor (B, …) or an iterable of batches{folder}")
    return list(given)


def signature(net: nn.Module) -> inspect.Signature:
    """Of a network's forward, without the module itself."""
    if not isinstance(net, torch.jit.ScriptModule):
        return inspect.signature(net.forward)
    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    arguments = net._c._get_method("forward").schema.arguments[1:]
    return inspect.Signature(
        [
            inspect.Parameter(each.name, kind, default=each.default_value if each.has_default_value() else empty)
            for each in arguments
        ]
    )


def _inputs(net: nn.Module) -> tuple[list[str], list[str]]:
    """The names of a network's inputs, and of those that it needs."""
    parameters = signature(net).parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return names, [p.name for p in parameters if p.name in names and p.default is p.empty]


def _batch(where: str, batch: Any, net: nn.Module) -> Batch:
    names, needed = _inputs(net)
    if isinstance(batch, Mapping):
        inputs = _by_name(where, batch, names, needed)
    elif isinstance(batch, list | tuple) and batch:
        inputs = _by_position(where, batch, names, needed)
    else:
        inputs = batch
    for tensor in inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else [inputs]:
        as_input(where, tensor)
    return inputs


def _by_name(where: str, batch: Mapping, names: list[str], needed: list[str]) -> Batch:
    if set(needed) <= set(batch):
        return {name: batch[name] for name in names if name in batch}
    floats = sorted((v for v in batch.values() if _is_float(v)), key=Tensor.dim)
    if len(needed) == 1 and floats and (len(floats) == 1 or floats[-1].dim() > floats[-2].dim()):
        return floats[-1]
    raise InputError(f"{where} has {show(list(batch))}, the network takes {needed}: name its inputs as forward does")


def _by_position(where: str, batch: Sequence, names: list[str], needed: list[str]) -> Batch:
    """The network's inputs at the front of a batch; behind them labels, which are not float or of another rank."""
    count = min(len(batch), len(names)) if names else len(batch)
    while count > max(len(needed), 1) and not _is_float(batch[count - 1]):
        count -= 1
    if any(_is_float(one) and _is_float(batch[0]) and one.dim() == batch[0].dim() for one in batch[count:]):
        raise InputError(
            f"{where} is {kind(batch)}, {len(batch)} of them, and the network takes {count}: give one tensor "
            "(B, …), single images as torch.stack(images), and no targets"
        )
    return tuple(batch[:count]) if count > 1 else batch[0]


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class Cached(Sequence):
    """Batches that are made by a function of their index, the last few kept: ``Cached(n, make)``."""

    def __init__(self, count: int, make: Callable[[int], Batch], keep: int = 2):
        self.length, self.make = count, lru_cache(keep)(make)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override] # no slices
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.make(index)
