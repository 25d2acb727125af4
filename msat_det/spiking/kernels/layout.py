"""How a batch's neurons lie in memory, and what belongs to each of them in that order."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from msat_det.base.device import wide
from msat_det.spiking.neurons import Neuron


def is_plain(conv: nn.Module, x: Tensor) -> TypeGuard[nn.Conv2d]:
    """Whether it is a convolution of x (N, C, h, w), both in float32, without groups and padded by zeros, if at all."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and x.dim() == 4
        and x.dtype == conv.weight.dtype == torch.float32
    )


def version(*tensors: Tensor) -> int:
    """A number that grows with every write into one of these; inference tensors, which have none, count as 0."""
    return sum(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def memory_format(x: Tensor) -> torch.memory_format:
    """Whether the channels of a pixel of (B, C, …) lie side by side."""
    channels_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A value for every neuron (or one that broadcasts to it), in the memory order of one image of ``like``."""
    return value.float().expand(like.shape[1:]).unsqueeze(0).contiguous(memory_format=memory_format(like))


def counted(spikes: Tensor, fanout: Tensor) -> Tensor:
    """(B, 4) float64: Σ|s|, Σ|s|·fan-out, Σ[s≠0] and Σ[s≠0]·fan-out of a timestep's |s| (B, C, …)."""
    size = wide(spikes.flatten(1))
    events = torch.where(size > 0, 1.0, size)
    reach = wide(fanout.expand(spikes.shape[1:]).flatten())
    return torch.stack([(value * each).sum(1) for value in (size, events) for each in (1.0, reach)], 1)


def period_of(neuron: Neuron, x: Tensor) -> int:
    """After how many neurons the values per channel of currents (B, C, …) come again in memory; one image's
    where channels do not lie side by side."""
    innermost = 1 if memory_format(x) is torch.channels_last else x.dim() - 1
    return x.shape[innermost] if neuron.axis in (innermost, None) else x[0].numel()


def laid_out_by_channel(value: Tensor | float, x: Tensor, period: int, group: int) -> Tensor:
    """A value per channel: where channels lie side by side once, and on for a ``group``; else for every neuron."""
    value = torch.as_tensor(value)
    if period == x[0].numel():
        return laid_out(value, x)
    channels = value.float().flatten().expand(period)
    return channels.repeat(-(-(period + group) // period))
