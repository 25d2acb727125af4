"""What people give as calibration, batch and timesteps → what the converter takes, or one line that says the mend."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from msat_det.base.errors import InputError
from msat_det.base.files import show

Batch = Tensor | tuple | list | dict

# What PyTorch and a network's own code raise on inputs that do not fit.
MISFIT = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
AS_IT_TAKES = (
    "give float batches (B, …) as the network takes them, dimension 0 for images alone: one image as image[None], "
    "several as torch.stack(images)"
)


def reason(error: Exception) -> str:
    """What another library's error says in its first line. Raises the error itself where memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
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


def recorded(T: Any, record: Any = None) -> list[int]:
    """The timesteps to be recorded, in their order: ``record``'s, one or several, or T alone. Raises InputError."""
    if record is None:
        record = [T]
    elif not isinstance(record, Iterable) or getattr(record, "ndim", None) == 0:
        record = [record]
    times = sorted({whole("one of the recorded timesteps", t) for t in record})
    last = whole("T", T)
    if not times or times[0] < 1 or times[-1] > last:
        raise InputError(f"recorded timesteps {times} must lie in 1..T = {last}: give at least one, and T as the last")
    return times


def as_input(name: str, value: Any, device: torch.device | None) -> Tensor:
    """One input of a network: real numbers in float32, on the network's device. Raises InputError."""
    if not isinstance(value, Tensor):
        raise InputError(f"input '{name}' is {kind(value)}: give a tensor (B, …)")
    if value.dim() == 0 or value.layout is not torch.strided or value.is_complex() or value.is_meta:
        raise InputError(f"input '{name}' is {kind(value)}: give a dense tensor of real numbers (B, …)")
    if len(value) == 0:
        raise InputError(f"input '{name}' is {kind(value)}, which holds no image: give at least one")
    return value.to(device, torch.float32 if value.is_floating_point() else value.dtype)


def kind(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    inner = f" of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else ""
    return f"a {type(value).__name__}{inner}"


def calibration_batches(given: Any, net: nn.Module) -> list[Batch]:
    """Calibration as people have it → batches as ``net`` takes them.

    given: one batch, or an iterable of batches, which is gone through once. A batch is a tensor (B, …), a sequence of
    the network's inputs in their order, or a mapping of their names; labels beside them are left out.
    Raises InputError for anything else, and for batches whose images differ in more than their size.
    """
    batches = [_batch(number, batch, net) for number, batch in enumerate(items(given))]
    for number, batch in enumerate(batches):
        for one, first in zip(_tensors(batch), _tensors(batches[0]), strict=False):
            if one.dim() != first.dim() or one.is_floating_point() != first.is_floating_point():
                raise InputError(
                    f"calibration batch {number} is {kind(one)}, but batch 0 {kind(first)}: give batches alike, "
                    "without labels"
                )
    return batches


def items(given: Any) -> list[Any]:
    """The batches of a calibration."""
    if isinstance(given, Tensor | Mapping):
        return [given]
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        raise InputError(
            f"calibration is {kind(given)}: give a DataLoader over some of it, for a detector a list of its images"
        )
    if isinstance(given, str | bytes) or not isinstance(given, Iterable) or hasattr(given, "dtype"):
        raise InputError(f"calibration is {kind(given)}: give a tensor (B, …) or an iterable of batches")
    return list(given)


def _tensors(batch: Batch) -> list[Tensor]:
    return [batch] if isinstance(batch, Tensor) else list(batch.values() if isinstance(batch, dict) else batch)


def _batch(number: int, batch: Any, net: nn.Module) -> Batch:
    where = f"calibration batch {number}"
    if isinstance(batch, Tensor):
        return batch
    parameters = inspect.signature(net.forward).parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [p.name for p in parameters if p.name in names and p.default is p.empty]
    if isinstance(batch, Mapping):
        return _by_name(where, batch, names, needed)
    if not isinstance(batch, Sequence) or isinstance(batch, str) or not batch or not isinstance(batch[0], Tensor):
        raise InputError(
            f"{where} is {kind(batch)}: give a float tensor (B, …) as the network takes it, images of files or of "
            "NumPy made into one"
        )
    return _by_position(where, list(batch), names, needed)


def _by_name(where: str, batch: Mapping, names: list[str], needed: list[str]) -> Batch:
    if set(needed) <= set(batch):
        return {name: batch[name] for name in names if name in batch}
    images = [value for value in batch.values() if isinstance(value, Tensor) and value.is_floating_point()]
    if len(needed) == len(images) == 1:
        return images[0]
    raise InputError(f"{where} has {show(list(batch))}, the network takes {needed}: name its inputs as forward does")


def _by_position(where: str, batch: list, names: list[str], needed: list[str]) -> Batch:
    """The network's inputs at the front of a batch; behind them labels, which are not float or of another rank."""
    count = min(len(batch), len(names)) if names else len(batch)
    while count > len(needed) and not (isinstance(batch[count - 1], Tensor) and batch[count - 1].is_floating_point()):
        count -= 1
    for label in batch[count:]:
        if isinstance(label, Tensor) and label.is_floating_point() and label.dim() == batch[0].dim():
            raise InputError(
                f"{where} is {kind(batch)}, {len(batch)} of them, and the network takes {count}: give one tensor "
                "(B, …), single images as torch.stack(images), and no targets"
            )
    return tuple(batch[:count]) if count > 1 else batch[0]
