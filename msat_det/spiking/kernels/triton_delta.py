"""A timestep of neurons under delta coding, fused, on a GPU, in Triton: ``spiking.delta.delta_step`` line by line.

One program takes ``BLOCK`` neurons of one image: the input sum is read once, the output sum read, and written where a
spike changed it. Counts stay on the device, as those of ``triton_scan`` do, and so does the last timestep in which
anything was sent.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from msat_det.spiking.kernels.triton_neuron import (
    Programs,
    adaptive_numbers,
    add_up,
    applied,
    at_most,
    by_terms,
    function_of,
    held,
    parameters,
    rows_of,
    units_of,
    varied,
)
from msat_det.spiking.levels import NEAREST, edge
from msat_det.spiking.neurons import Neuron, State, at

SHAPES = {
    "constant": (1024, 8),
    "adaptive": (256, 2),
}  # neurons of a program and its warps: rate coding's, not measured
_PER_RATIO = tl.constexpr(1 / NEAREST)


@triton.jit
def _burst(error, zone, most, gamma):
    """What is sent of an error in units of the threshold, and in how many spikes, as ``levels.quantise`` has it."""
    size = tl.abs(error)
    burst = tl.floor(size + 0.5)
    burst = tl.where(size >= most, burst, tl.minimum(burst, gamma))
    spikes = error - error + tl.where(size > zone, burst, 0.0)  # NaN of ∞ and NaN
    return tl.where(error < 0.0, -spikes, spikes), spikes


@triton.jit(do_not_specialize=["B", "t", "terms"])
def _correct(
    x, o, y, v, mean, last, rows, fanout, counts, latest,
    B, N, t, stride, period, terms, stage, zone, gamma, overflow, highest, per_highest, upper, slope,
    rest, alpha, k_a, k_i, C, tau_mp, tau_det,
    ROWS: tl.constexpr, BINARY: tl.constexpr, FIRST: tl.constexpr, WANTED: tl.constexpr, FUNCTION: tl.constexpr,
    ADAPTIVE: tl.constexpr, NORMALISED: tl.constexpr, DEPOLARISATION: tl.constexpr, DTT: tl.constexpr,
    DET: tl.constexpr, UNIT: tl.constexpr, REST_IS_MAX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x, o, y: (B, N), o may be x if FIRST: it is 0 then, and not read. v, mean, last: (B, N), the state of adaptive
    thresholds. rows: as ``triton_scan`` has them. counts: (B, blocks, 4). latest: (1,), t + 1 if anything is sent."""
    b, block = tl.program_id(0) % B, tl.program_id(0) // B
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    at = b.to(tl.int64) * N + i
    theta, theta_max, _, bias = parameters(rows, i, stride, period, ROWS)
    zero = tl.zeros([BLOCK], tl.float32)

    total = tl.load(x + at, mask=inside, other=0.0)
    given = held(o + at, inside, not FIRST)
    before = applied(total + bias, slope, upper, FUNCTION) - given

    full = theta * stage
    level, most = full, zero + overflow
    if ADAPTIVE:
        volt, average = held(v + at, inside, True), held(mean + at, inside, True)
        drive = (before if DEPOLARISATION else total) - held(last + at, inside, True)
        if t > 0:
            per_k_i, per_C, resting, alive = units_of(theta, theta_max, rest, k_i, C, tau_mp, NORMALISED, REST_IS_MAX)
            level = stage * varied(
                theta, volt - average, drive, per_k_i, per_C, resting, alive, alpha, k_a, k_i, tau_mp, tau_det,
                DTT, DET, UNIT,
            )  # fmt: skip
        late = tl.abs(before) >= overflow * full
        level, most = tl.where(late, full, level), tl.where(late, 0.0, float("inf"))
    error = tl.div_rn(before, level)
    if BINARY:
        sent, spikes = by_terms(error, zone, most, highest, per_highest, terms, _PER_RATIO, 0.5)
    else:
        sent, spikes = _burst(error, zone, most, gamma)
    out = sent * level

    moved = inside & (out != 0.0)
    tl.store(o + at, given + out, mask=inside if FIRST else moved)
    if WANTED:
        tl.store(y + at, out, mask=inside)
    if ADAPTIVE:
        volt = before - out
        tl.store(v + at, volt, mask=inside)
        tl.store(mean + at, average + (volt - average) * (1.0 / (t + 1).to(tl.float32)), mask=inside)
        tl.store(last + at, before if DEPOLARISATION else total, mask=inside)
    events = at_most(spikes, 1.0)
    if tl.max(tl.where(inside & (events != 0.0), 1, 0), 0) > 0:  # soon most programs have nothing to send
        reach = tl.load(fanout + i, mask=inside, other=0.0).to(tl.float64)
        slot = counts + (b * tl.cdiv(N, BLOCK) + block) * 4
        add_up(slot, spikes, reach, inside)
        add_up(slot + 2, events, reach, inside)
        tl.store(latest, t + 1)


class Fused(Programs):
    """The kernel's arguments for one population; ``Corrections`` holds the state. follows: whether it has f."""

    def __init__(self, neuron: Neuron, sums: Tensor, fanout: Tensor):
        """sums: (B, C, …) float32, dense in the memory format of the state. fanout: (N,) in memory order."""
        n, m, function = neuron, neuron.adaptive, function_of(neuron)
        self.neuron, self.follows = neuron, function is not None
        block, self.warps = SHAPES["adaptive" if m else "constant"]
        super().__init__(sums.shape[0], sums[0].numel(), block, 4, sums.device)
        self.latest = torch.zeros(1, dtype=torch.int32, device=sums.device)
        self.bias = neuron.bias if self.follows else None
        self.rows, stride = rows_of(neuron, sums, None if self.bias is None else neuron.bias_at(0))
        highest = float(1 << (n.bits or 1) - 1)
        self.tensors = dict(rows=self.rows, fanout=fanout, counts=self.partial, latest=self.latest)
        self.values = dict(
            B=self.B, N=self.N, stride=stride, period=self.rows.shape[1], gamma=float(n.gamma), overflow=n.overflow,
            highest=highest, per_highest=1 / highest, upper=n.activation.upper, slope=n.activation.slope,
            ROWS=self.rows.shape[1] > 1, BINARY=n.bits is not None, ADAPTIVE=m is not None, BLOCK=block,
            FUNCTION=function or "identity", **adaptive_numbers(neuron),
        )  # fmt: skip

    def restart(self) -> None:
        super().restart()
        self.latest.zero_()

    def advance(self, x: Tensor, y: Tensor | None, state: State, t: int, first: bool, same: bool) -> None:
        """As ``cpu_delta`` has it; those that slept are looked at again nevertheless."""
        n, o = self.neuron, state.o
        last = state.x if state.x is not None else state.before
        if self.bias is not None and self.bias.dim() > 1:
            self.rows[3] = n.bias_at(t).flatten()
        others = (o if each is None else each for each in (y, state.v, state.mean, last))  # none of which is looked at
        with torch.cuda.device_of(x):
            _correct[self.grid](
                x, o, *others, t=t, terms=at(n.terms, t), zone=float(edge(at(n.zone, t))), stage=float(n.stage(t)),
                FIRST=first, WANTED=y is not None, **self.tensors, **self.values, num_warps=self.warps,
                enable_fp_fusion=False,
            )  # fmt: skip
