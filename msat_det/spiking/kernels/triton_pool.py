"""Differences of max pooling over running sums, fused over a chunk of timesteps, on a GPU, in Triton.

d(t) = maxpool(C(t)) − maxpool(C(t−1)), C the running sum of the input. One program takes some outputs of one image
through the chunk with the sums of their windows in registers: the input is read once (again where windows overlap, but
then from the cache), the sums once a chunk, and the differences are counted on the way.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from msat_det.spiking.kernels.triton_neuron import Programs, add_up
from msat_det.spiking.kernels.window import Window

# Outputs of a program, which is one warp: a thread holds whole windows, four where channels lie side by side, else one.
BLOCKS = {torch.channels_last: 128, torch.contiguous_format: 32}


@triton.jit
def _windows(
    i, C, H, W, OH, OW, step_h, step_w, pad_h, pad_w,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Of the windows of outputs i, (TAPS, outputs): where their inputs lie in (C, H, W), which are there, and which of
    these are the output's to write: an input that several windows hold is written by the last of them."""
    if LAST:
        c, column, row = i % C, i // C % OW, i // (C * OW)
    else:
        column, row, c = i % OW, i // OW % OH, i // (OW * OH)
    tap = tl.arange(0, TAPS)[:, None]
    dh, dw = tap // COLUMNS, tap % COLUMNS
    h, w = (row * step_h - pad_h)[None, :] + dh, (column * step_w - pad_w)[None, :] + dw
    valid = (tap < ROWS * COLUMNS) & (h >= 0) & (h < H) & (w >= 0) & (w < W) & (i < C * OH * OW)[None, :]
    at = (h * W + w) * C + c[None, :] if LAST else (c[None, :] * H + h) * W + w
    return at, valid, valid & ((dh < step_h) | (row == OH - 1)[None, :]) & ((dw < step_w) | (column == OW - 1)[None, :])


@triton.jit(do_not_specialize=["K", "B"])
def _pool(
    x, y, old, new, fanout, counts, K, B, C, H, W, OH, OW, step_h, step_w, pad_h, pad_w,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr, LAST: tl.constexpr, BEGIN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """x: (K, B, C, H, W), y: (K, B, C, OH, OW), channels innermost if LAST. old, new: (B, C, H, W), the sums before and
    after; the same where no windows overlap. counts: (B, blocks, 2). BEGIN: there are no sums yet."""
    b, block = tl.program_id(0) % B, tl.program_id(0) // B
    size, total = C * H * W, C * OH * OW
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < total
    at, valid, owned = _windows(
        i, C, H, W, OH, OW, step_h, step_w, pad_h, pad_w, ROWS, COLUMNS, TAPS, LAST
    )  # fmt: skip
    first = b.to(tl.int64) * size
    plane = B.to(tl.int64) * size
    x += first
    y += b.to(tl.int64) * total
    sums = tl.where(valid | ~inside[None, :], 0.0, float("-inf"))
    before = tl.zeros([BLOCK], tl.float32)
    if not BEGIN:
        sums += tl.load(old + first + at, mask=valid, other=0.0)
        before = tl.max(sums, 0)
    events = tl.zeros([BLOCK], tl.float32)
    for _ in range(K):
        sums += tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
        best = tl.max(sums, 0)
        difference = best - before
        before = best
        tl.store(y + i, difference, mask=inside)
        events += tl.where(difference != 0.0, 1.0, 0.0)
        x += plane
        y += B.to(tl.int64) * total
    tl.store(new + first + at, sums, mask=owned)
    reach = tl.load(fanout + i, mask=inside, other=0.0).to(tl.float64)
    add_up(counts + (b * tl.cdiv(total, BLOCK) + block) * 2, events, reach, inside)


class FusedPool(Programs):
    """One max pooling for a batch: its running sums, and its counts (B, 2) of differences that are not zero."""

    def __init__(self, window: Window, like: Tensor, fanout: Tensor | None):
        """like: (B, C, H, W) of the input, dense. fanout: (C, OH, OW) of the output, or None."""
        self.window = window
        self.format = torch.contiguous_format if like.is_contiguous() else torch.channels_last
        C, H, W = like.shape[1:]
        self.shape = (C, window.size(H, 0), window.size(W, 1))
        if fanout is None:
            fanout = torch.zeros(1, device=like.device).expand(self.shape)
        self.fanout = fanout.float().expand(self.shape).unsqueeze(0).contiguous(memory_format=self.format)
        super().__init__(like.shape[0], math.prod(self.shape), BLOCKS[self.format], 2, like.device)
        self.old = torch.empty_like(like, dtype=torch.float32, memory_format=self.format)
        self.new = torch.empty_like(self.old) if window.overlaps else self.old

    def run(self, x: Tensor, t0: int, steps: int) -> Tensor:
        """x: (steps·B, C, H, W) of timesteps t0 on → differences (steps·B, C, OH, OW)."""
        x = x.contiguous(memory_format=self.format)
        y = torch.empty((len(x), *self.shape), dtype=x.dtype, device=x.device, memory_format=self.format)
        (rows, columns), (step_h, step_w), (pad_h, pad_w) = self.window.kernel, self.window.stride, self.window.padding
        with torch.cuda.device_of(x):
            _pool[self.grid](
                x, y, self.old, self.new, self.fanout, self.partial, K=steps, B=self.B, C=x.shape[1], H=x.shape[2],
                W=x.shape[3], OH=self.shape[1], OW=self.shape[2],
                step_h=step_h, step_w=step_w, pad_h=pad_h, pad_w=pad_w,
                ROWS=rows, COLUMNS=columns, TAPS=triton.next_power_of_2(rows * columns),
                LAST=self.format is torch.channels_last, BEGIN=t0 == 0, BLOCK=BLOCKS[self.format], num_warps=1,
                enable_fp_fusion=False,
            )  # fmt: skip
        self.old, self.new = self.new, self.old
        return y
