"""Float32 convolutions on a GPU as one product of matrices, where cuDNN is slow.

Without TF32 cuDNN reaches a third to a half of an H100's rate, and for some sizes it takes algorithms that are 4 to 30
times slower still (256 channels at 75×75, 16 images: 11 ms; the dilated one of SSD300, 64 images: 282 ms). Laid out by
windows, (pixels, rows·columns·inputs), the same convolution is a product with the weights, whose rate depends on no
such choice. Every product and sum is float32's.
"""

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msat_det.graph.precision import arithmetic
from msat_det.spiking.kernels.layout import is_plain

# Outputs and terms of each from which laying out the windows costs little beside the product.
LEAST_OUTPUTS, LEAST_TERMS = 256, 512
BYTES = 512 << 20  # of windows at once


def fits(conv: nn.Module, x: Tensor) -> TypeGuard[nn.Conv2d]:
    """Whether ``convolution`` computes ``conv(x)``, and is expected to pay."""
    return (
        is_plain(conv, x)
        and not isinstance(conv.padding, str)
        and conv.out_channels >= LEAST_OUTPUTS
        and conv.weight[0].numel() >= LEAST_TERMS
    )


def convolution(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv(x)``, (N, O, h, w) with the channels of a pixel side by side."""
    windows = _windows(conv, x)
    N, h, w = windows.shape[:3]
    weight = conv.weight.detach().permute(0, 2, 3, 1).reshape(conv.out_channels, -1).t()
    bias = None if conv.bias is None else conv.bias.detach()
    y = x.new_empty(N, h, w, conv.out_channels)
    images = max(BYTES // (4 * windows[0].numel()), 1)
    with arithmetic("float32", x.device):
        for some, out in zip(windows.split(images), y.split(images), strict=True):
            rows, out = some.reshape(-1, len(weight)), out.view(-1, conv.out_channels)
            if bias is None:
                torch.mm(rows, weight, out=out)
            else:
                torch.addmm(bias, rows, weight, out=out)
    return y.permute(0, 3, 1, 2)


def _windows(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What each output pixel sees, (N, h, w, rows, columns, C), in the memory of x where there is no padding."""
    (down, right), (rows, columns), (apart, across) = conv.stride, conv.kernel_size, conv.dilation
    assert not isinstance(conv.padding, str)  # see ``fits``
    top, left = conv.padding
    x = F.pad(x, (left, left, top, top)) if top or left else x
    pixels = x.permute(0, 2, 3, 1).contiguous()
    N, H, W, C = pixels.shape
    h = (H - apart * (rows - 1) - 1) // down + 1
    w = (W - across * (columns - 1) - 1) // right + 1
    image, row, pixel, one = pixels.stride()
    strides = (image, down * row, right * pixel, apart * row, across * pixel, one)
    return pixels.as_strided((N, h, w, rows, columns, C), strides)
