"""Float32 values as two that a tensor core multiplies exactly, on a GPU, in Triton (``split`` uses it)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048  # values of a program
_HALF, _KEPT = tl.constexpr(0x1000), tl.constexpr(-0x2000)  # TF32 leaves out the last 13 of a float's bits


@triton.jit
def _rounded(x):
    """The nearest number with 10 bits behind the point."""
    return ((x.to(tl.int32, bitcast=True) + _HALF) & _KEPT).to(tl.float32, bitcast=True)


@triton.jit
def _split(x, y, rows, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """x: (rows, C), y: (rows, 3·C)."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < rows) & (column < C)
    value = tl.load(x + row * C + column, mask=inside, other=0.0)
    high = _rounded(value)
    low = _rounded(value - high)  # a NaN is one here, whatever its bits have become above
    at = y + row * (3 * C) + column
    tl.store(at, high, mask=inside)
    tl.store(at + C, low, mask=inside)
    tl.store(at + 2 * C, high, mask=inside)


def split(x: Tensor) -> Tensor:
    """(N, C, h, w) float32 → (N, 3·C, h, w), both channels last: high parts, low parts, high parts. High + low is x to
    its last bit but one."""
    x = x.contiguous(memory_format=torch.channels_last)
    N, C, h, w = x.shape
    y = torch.empty((N, 3 * C, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    columns = min(triton.next_power_of_2(C), 128)
    rows = _BLOCK // columns
    grid = (triton.cdiv(N * h * w, rows), triton.cdiv(C, columns))
    with torch.cuda.device_of(x):
        _split[grid](x, y, N * h * w, C, ROWS=rows, COLUMNS=columns, num_warps=4)
    return y
