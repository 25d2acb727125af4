"""Convolutions as three products on a GPU's tensor cores: precision tf32x3, between float32 and TF32.

A tensor core takes operands of 11 significant bits. A float32 number is the sum of two such ones to 2^-23 of it,
x = x₁ + x₂, w = w₁ + w₂, and x·w is x₁·w₁ + x₂·w₁ + x₁·w₂ to about as much. So a convolution over three times the
channels, [x₁, x₂, x₁] with [w₁, w₁, w₂], has exact enough products; but a tensor core cuts off what it adds up instead
of rounding it. On an H100 results of SSD300's layers are up to 1.1e-4 of the largest off, more the longer the sum
(float32 3.9e-6, TF32 3.3e-4), at three times the speed of cuDNN's float32. (Ootomo and Yokota 2022, "Recovering single
precision accuracy from Tensor Cores".)
"""

from typing import TypeGuard
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msat_det.graph.precision import arithmetic
from msat_det.spiking.kernels.layout import is_plain, version

# Multiply-adds of an input value from which three products on tensor cores and the traffic of splitting cost less than
# one on the other units; of an H100's rates.
LEAST = 256.0
_parts: WeakKeyDictionary[nn.Conv2d, tuple[int, Tensor]] = WeakKeyDictionary()


def convolution(conv: nn.Conv2d, parts: Tensor) -> Tensor:
    """``conv(x)``, from the parts of x as ``triton_split.split`` gives them."""
    with arithmetic("tf32", parts.device):
        return F.conv2d(parts, _weights(conv), conv.bias, conv.stride, conv.padding, conv.dilation)


def fits(conv: nn.Module, x: Tensor) -> TypeGuard[nn.Conv2d]:
    """Whether ``convolution`` computes ``conv(x)``, and is expected to pay."""
    if not is_plain(conv, x):
        return False
    rows, columns = conv.kernel_size
    down, right = conv.stride
    if conv.in_channels % 4 or conv.out_channels % 4:  # cuDNN would copy the operands
        return False
    return conv.out_channels * rows * columns >= LEAST * down * right


def _weights(conv: nn.Conv2d) -> Tensor:
    """(outputs, 3·inputs, rows, columns): high parts twice, low parts."""
    weight = conv.weight.detach()
    now, known = version(weight), _parts.get(conv)
    if known is None or known[0] != now or known[1].device != weight.device:
        high = rounded(weight)
        made = torch.cat((high, high, rounded(weight - high)), 1).contiguous(memory_format=torch.channels_last)
        known = _parts[conv] = now, made
    return known[1]


def rounded(x: Tensor) -> Tensor:
    """Float32 numbers to the nearest ones with 10 bits behind the point."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
