"""Convolutions whose cost follows the spikes: ``events.cpp``, used where few enough of a layer's inputs are non-zero.

Worth it without groups only: in a depthwise layer an entry reaches k² multiply-adds, and finding it costs as much. What
is decided, and hence the last bits of a result, depends on the layer and the chunk alone, never on what ran before.
"""

import ctypes
import functools
from pathlib import Path
from typing import TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from msat_det.base.checks import present
from msat_det.spiking.kernels.build import wanted
from msat_det.spiking.kernels.layout import is_plain, version

# What events cost, measured (benchmarks/bench.py --part sparse): a multiply-add, where a dense one costs 1, under
# kernels of one pixel and of more; and vectors of 16 of these that pass while a pixel's list is begun and ended.
MARGINAL = {False: 1.5, True: 2.2}
FIXED = 130.0
WORTH = 0.9  # share of the dense cost that must be left
_LANES, _BLOCK = 16, 64  # output channels of a vector and of a block of weights in events.cpp
_SAMPLED, _STEP = 1 << 16, 11  # inputs that are counted one by one; of more, those of every 11th pixel
_packed: WeakKeyDictionary[nn.Conv2d, tuple[int, "EventConvolution"]] = WeakKeyDictionary()


@functools.cache
def library() -> ctypes.CDLL | None:
    """``events.cpp``, or None with a one-line notice on stderr where it cannot be had."""
    lib = wanted(Path(__file__).with_name("events.cpp"), "convolutions stay dense", "-ffp-contract=fast")
    if lib is None:
        return None
    lib.event_bands.restype = lib.events_among.restype = ctypes.c_int64
    lib.event_bands.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    lib.events_among.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3]
    return lib


def convolution(conv: nn.Module, x: Tensor) -> Tensor | None:
    """``conv(x)`` by its events, or None where that does not pay or is not possible: call the module then.

    x: spikes (N, C, h, w), graded or not.
    """
    if not _fits(conv, x):
        return None
    densest = crossover(conv)
    if densest <= 0 or not library() or density(x) > densest:
        return None
    return _prepared(conv)(x)


def update(conv: nn.Conv2d, y: Tensor, value: Tensor) -> bool:
    """Add to ``value``, which is ``conv(x)``, what changes in it when x changes by y, from the events of y.

    False where that is not possible: the value stays as it is.
    """
    if not _fits(conv, y) or not value.is_contiguous(memory_format=torch.channels_last) or not library():
        return False
    _prepared(conv)(y, value)
    return True


def _prepared(conv: nn.Conv2d) -> "EventConvolution":
    now = version(*conv.parameters())
    if conv not in _packed or _packed[conv][0] != now:
        _packed[conv] = now, EventConvolution(conv)
    return _packed[conv][1]


def crossover(conv: nn.Conv2d) -> float:
    """The share of non-zero inputs up to which events are expected to pay; below 0 where they never do."""
    rows, columns = conv.kernel_size
    vectors = rows * columns * conv.in_channels * min(conv.out_channels, _BLOCK) / _LANES
    return (WORTH - FIXED * rows / vectors) / MARGINAL[rows * columns > 1]


def _fits(conv: nn.Module, x: Tensor) -> TypeGuard[nn.Conv2d]:
    return (
        is_plain(conv, x)
        and not isinstance(conv.padding, str)
        and x.device.type == conv.weight.device.type == "cpu"
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def density(x: Tensor) -> float:
    """Share of non-zero entries of x (N, C, h, w), channels last, float32; of large ones that of a sample of pixels."""
    N, C, h, w = x.shape
    pixels = N * h * w
    step = 1 if x.numel() <= _SAMPLED else _STEP
    return present(library()).events_among(x.data_ptr(), pixels, C, step) / (C * -(-pixels // step))


class EventConvolution:
    """What ``conv`` computes on (N, C, h, w) float32, channels last, in time that follows the non-zero entries.

    No groups, zero padding; any stride and dilation. Sums run in another order than PyTorch's: the last bits differ.
    """

    def __init__(self, conv: nn.Conv2d):
        weight, missing = conv.weight.detach(), -conv.out_channels % _LANES
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.bias = functional.pad(bias, (0, missing))
        # blocks of (kh, kw, Cin, up to 64 outputs)
        blocks = functional.pad(weight.permute(2, 3, 1, 0), (0, missing)).split(_BLOCK, -1)
        self.weight = torch.cat([block.flatten() for block in blocks])
        self.outputs, self.kernel, self.stride = conv.out_channels, conv.kernel_size, conv.stride
        assert not isinstance(conv.padding, str)  # see ``_fits``
        self.padding, self.dilation = conv.padding, conv.dilation

    def __call__(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """The convolution; with ``onto`` (N, Cout, …), channels last, it is added there and the bias left out."""
        N, C, *inputs = x.shape
        axes = zip(inputs, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        size = [(n + 2 * pad - reach * (k - 1) - 1) // stride + 1 for n, k, stride, pad, reach in axes]
        shape = N, self.outputs, *size
        y = torch.empty(shape, memory_format=torch.channels_last) if onto is None else onto
        numbers = [N, *inputs, C, *size, self.outputs, *self.kernel, *self.stride, *self.padding, *self.dilation, 0]
        geometry = (ctypes.c_int64 * len(numbers))(*numbers)
        lib = present(library())
        geometry[-1] = lib.event_bands(geometry, torch.get_num_threads())
        bias = self.bias.data_ptr() if onto is None else None
        arrays = (ctypes.c_void_p(at) for at in (x.data_ptr(), self.weight.data_ptr(), bias, y.data_ptr()))
        lib.event_convolution(geometry, *arrays)
        return y
