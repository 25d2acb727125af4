"""The channels of an activation: along one dimension of it, which ``axes`` finds out, or one for all."""

from torch import Tensor

Axis = int | None  # a dimension of a batch (B, …), 1 in (B, C, H, W); None: one channel for all


def channels(shape: tuple[int, ...], axis: Axis) -> int:
    """The number of channels of one image's activation."""
    return 1 if axis is None else shape[axis - 1]


def mean_by_channel(x: Tensor, axis: Axis) -> Tensor:
    """The mean of (B, …) for each channel, (C,), or () where there is one for all."""
    return x.mean([d for d in range(x.dim()) if d != axis])


def rows_by_channel(x: Tensor, axis: Axis) -> Tensor:
    """(B, …) → (C, what belongs to each channel)."""
    return x.reshape(1, -1) if axis is None else x.transpose(0, axis).flatten(1)
