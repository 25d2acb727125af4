"""The neuron step fused over a chunk of timesteps, on a GPU, in Triton: ``spiking.neurons.step`` line by line.

One program takes ``BLOCK`` neurons of one image through the chunk: their state stays in registers, currents are read
once and outputs written once, and each program adds its counts to a slot of its own, so that nothing is added up in an
order that differs from run to run, and nothing waits for the host. ``enable_fp_fusion`` is off: where the threshold is
constant the numbers are those of PyTorch bit for bit. A NaN in the potential goes through to the counts.

``TRITON_INTERPRET=1``, set before this is imported, runs the kernel on the CPU, slowly; the tests do.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from msat_det.base.checks import present
from msat_det.base.device import brought
from msat_det.spiking.kernels.targets import is_enough, write_targets
from msat_det.spiking.kernels.triton_neuron import (
    Programs,
    adaptive_numbers,
    add_up,
    applied,
    at_least,
    at_most,
    by_terms,
    function_of,
    held,
    parameters,
    rows_of,
    units_of,
    varied,
)
from msat_det.spiking.levels import edge
from msat_det.spiking.masks import BITS, FACTORS, SHIFTS, STEP, mask_keys
from msat_det.spiking.neurons import EARLY, WHOLE, Chances, Neuron, State, at

# Neurons of a program and warps that share them, by family: the fastest on an H100 (docs/performance.md). "signed" is
# also for tracking neurons, those that forget charge and binary levels: as much state, and not timed.
SHAPES = {"constant": (1024, 8), "signed": (512, 4), "adaptive": (256, 2)}

_WHOLE, _EARLY = tl.constexpr(WHOLE), tl.constexpr(EARLY)
_HALF = tl.constexpr(float(edge(0.5)))  # whole numbers above it: all but 0
_STEP, _BITS = tl.constexpr(STEP), tl.constexpr((1 << BITS) - 1)
_SHIFT_0, _SHIFT_1 = map(tl.constexpr, SHIFTS)
_BELOW_0, _BELOW_1 = (tl.constexpr((1 << (64 - shift)) - 1) for shift in SHIFTS)  # what a logical shift leaves
_FACTOR_0, _FACTOR_1 = map(tl.constexpr, FACTORS)


def holds(neuron: Neuron) -> bool:
    """Whether the kernel computes this neuron: of an activation that it has not, it is told what the output sum shall
    be."""
    return function_of(neuron) is not None or is_enough(neuron)


def family_of(neuron: Neuron) -> str:
    """The neuron's key in ``SHAPES``."""
    if neuron.adaptive is not None:
        return "adaptive"
    return "signed" if neuron.signed or neuron.tracking or neuron.forgets or neuron.bits else "constant"


@triton.jit
def _kept(key, index, below):
    """The mask of ``masks.bernoulli``: its hash of (seed, image, call site, t), which is the key, and the element."""
    z = key + index.to(tl.int64) * _STEP
    z = (z ^ ((z >> _SHIFT_0) & _BELOW_0)) * _FACTOR_0
    z = (z ^ ((z >> _SHIFT_1) & _BELOW_1)) * _FACTOR_1
    z = z ^ ((z >> 33) & 0x7FFFFFFF)
    return (z & _BITS) < below


@triton.jit
def _staged(theta, overflow, table, t, last_stage, STAGES: tl.constexpr):
    """The stage at t, θ times it, how many spikes of that height are an overflow, and the terms of a timestep."""
    zero = tl.zeros(theta.shape, tl.float32)
    stage, full, most, terms = 1.0, theta, zero + overflow, 0
    if STAGES:
        table += tl.minimum(t, last_stage)
        stage = tl.load(table)
        most = zero + tl.load(table + last_stage + 1)
        terms = tl.load(table + 2 * (last_stage + 1)).to(tl.int32)
        full = theta * stage
    return stage, full, most, terms


@triton.jit
def _lacking(
    goal, total, n, given, start, slope, upper,
    FORGETS: tl.constexpr, FUNCTION: tl.constexpr, IMBALANCED: tl.constexpr, SIGNED: tl.constexpr,
    TRACKING: tl.constexpr,
):  # fmt: skip
    """What the output sum lacks to the activation of all that came in; below 0 what it can take back."""
    if FORGETS:
        goal = n * applied(tl.div_rn(total, 0.0 * total + n), slope, upper, FUNCTION) - given + start
    if not (TRACKING or IMBALANCED):
        goal = at_least(goal, start - given if SIGNED else 0.0)
    return goal


@triton.jit
def _fewest(goal, level, given, start, margin, SIGNED: tl.constexpr):
    """s_min: 0, or what a signed neuron may take back."""
    least = tl.zeros(goal.shape, tl.float32)
    if SIGNED:
        least = tl.where(goal - start < -margin * level, -tl.floor(tl.div_rn(given, level) + _WHOLE), 0.0)
    return least


@triton.jit
def _fired(
    goal, lacking, level, full, most, given, start, gamma, offset, margin, slope,
    CHECKED: tl.constexpr, IMBALANCED: tl.constexpr, SIGNED: tl.constexpr, TRACKING: tl.constexpr,
):  # fmt: skip
    """The spikes s, what is to be sent and the threshold that they were fired at: all that is lacking at once, by θ,
    where that is an overflow, else the goal by θ(t). CHECKED: the potential does not tell, or θ(t) may be next to 0."""
    late = goal != goal
    if CHECKED:
        late = tl.abs(lacking) >= most * full
        level = tl.where(late, full, level)
        goal = tl.where(late, lacking, goal)
    s = tl.floor(tl.div_rn(goal, level) + offset)
    if IMBALANCED:
        s = tl.where((goal < 0.0) & (late == 0), -tl.floor(tl.div_rn(-goal * slope, level)), s)
    elif not TRACKING:
        s = at_least(s, _fewest(goal, level, given, start, margin, SIGNED))
    if not CHECKED:
        late = tl.abs(s) >= most
    return tl.where(late, s, at_most(at_least(s, -gamma), gamma)), goal, level, late


@triton.jit
def _spent(before, goal, out, late, slope):
    """The charge of an imbalanced neuron's spikes: −θ takes θ/a. After an overflow what is lacking alone is left."""
    left = goal - out
    left = before - tl.where(left < 0.0, tl.div_rn(left, 0.0 * left + slope), left)
    return tl.where(late, left, tl.where(out < 0.0, tl.div_rn(out, 0.0 * out + slope), out))


@triton.jit(do_not_specialize=["t0", "K", "B", "inner", "last_stage", "kept_below", "digits"])
def _scan(
    x, y, v, o, total, mean, last, rows, stages, keys, fanout, counts,
    K, B, N, x_step, y_step, t0, stride, period, inner, last_stage, kept_below,
    gamma, overflow, offset, margin, upper, slope, digits, highest, per_highest,
    rest, alpha, k_a, k_i, C, tau_mp, tau_det,
    ROWS: tl.constexpr, STAGES: tl.constexpr, OUTPUT: tl.constexpr, FUNCTION: tl.constexpr, TRACKING: tl.constexpr,
    SIGNED: tl.constexpr, BOUNDED: tl.constexpr, BINARY: tl.constexpr, FORGETS: tl.constexpr, TO_ZERO: tl.constexpr,
    IMBALANCED: tl.constexpr,
    CONFIDENCE: tl.constexpr, KEEP: tl.constexpr, ADAPTIVE: tl.constexpr, NORMALISED: tl.constexpr,
    DEPOLARISATION: tl.constexpr, DTT: tl.constexpr, DET: tl.constexpr, UNIT: tl.constexpr,
    REST_IS_MAX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x, y: (K, B, N), x_step 0 for a current that is constant in time. v, o, total, mean, last: (B, N), the state.

    stages: (3, last_stage + 1), the factor on θ, the spikes from which on all that are wanted are sent, and terms.
    rows: (4, period) of ``parameters``, of neuron i at i // stride % period. keys: (EARLY, B). counts: (B, blocks, 4).
    inner: channels where they lie innermost in memory, else 1. FUNCTION: ``given`` where x is what the output sum shall
    be.
    """
    b, block = tl.program_id(0) % B, tl.program_id(0) // B  # images in turn: their rows and fan-out are the same
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    first = b.to(tl.int64) * N
    x += first
    y += first
    coming = tl.load(x + i, mask=inside, other=0.0)

    theta, theta_max, start, bias = parameters(rows, i, stride, period, ROWS)
    zero = tl.zeros([BLOCK], tl.float32)
    per_k_i, per_C, resting, alive = units_of(theta, theta_max, rest, k_i, C, tau_mp, NORMALISED, REST_IS_MAX)

    volt = held(v + first + i, inside, ADAPTIVE or not TRACKING)
    given = held(o + first + i, inside, OUTPUT)
    SUMS: tl.constexpr = FORGETS or (TRACKING and FUNCTION != "given")
    summed = held(total + first + i, inside, SUMS)
    average = held(mean + first + i, inside, ADAPTIVE)
    before_last = held(last + first + i, inside, DEPOLARISATION)
    spikes, events = zero, zero

    for k in range(K):
        t = t0 + k
        n = (t + 1).to(tl.float32)
        current = coming + bias
        x += x_step
        coming = tl.load(x + i, mask=inside & (k + 1 < K), other=0.0)

        if SUMS:
            summed += current
        if FUNCTION == "given":
            before = current - given
        elif TRACKING:
            before = n * applied(tl.div_rn(summed, zero + n), slope, upper, FUNCTION) - given
        else:
            before = volt + current
        stage, full, most, terms = _staged(theta, overflow, stages, t, last_stage, STAGES)
        level = full
        if ADAPTIVE:  # noqa: SIM102 (a branch of the compiler around one of the device)
            if t > 0:
                drive = before - before_last if DEPOLARISATION else current
                level = stage * varied(
                    theta, volt - average, drive, per_k_i, per_C, resting, alive, alpha, k_a, k_i, tau_mp, tau_det,
                    DTT, DET, UNIT,
                )  # fmt: skip
        goal = at_most(before, n * upper - given + start) if BOUNDED else before
        lacking = _lacking(
            goal, summed, n, given, start, slope, upper, FORGETS, FUNCTION, IMBALANCED, SIGNED, TRACKING
        )  # fmt: skip
        s, goal, level, late = _fired(
            goal, lacking, level, full, most, given, start, gamma, offset, margin, slope,
            ADAPTIVE or FORGETS, IMBALANCED, SIGNED, TRACKING,
        )  # fmt: skip
        if BINARY:
            s, _ = by_terms(s, _HALF, 2.0 * highest, highest, per_highest, terms, 0.5, 0.0)

        out = s * level
        if SIGNED and not (TRACKING or IMBALANCED):
            out = at_least(out, -given)
        charge = _spent(before, goal, out, late, slope) if IMBALANCED else out
        fired = s != 0.0
        if CONFIDENCE:  # noqa: SIM102
            if t < _EARLY:
                index = i % inner * (N // inner) + i // inner
                kept = _kept(tl.load(keys + t * B + b), index, kept_below)
                s = tl.where(kept, s, s * 0.0)
                out = tl.where(kept, out, out * 0.0)
                if KEEP:
                    charge = tl.where(kept, charge, charge * 0.0)
                    fired = fired & kept
        volt = tl.where(fired, 0.0, before) if TO_ZERO else before - charge
        if OUTPUT:
            given += out
        if ADAPTIVE:
            average += (volt - average) * (1.0 / n)
        if DEPOLARISATION:
            before_last = before
        tl.store(y + i, out, mask=inside)
        y += y_step
        size = tl.abs(s)
        events += at_most(size, 1.0)
        if BINARY:
            _, size = by_terms(size, _HALF, 2.0 * highest, highest, per_highest, digits, 0.5, 0.0)
        spikes += size

    tl.store(v + first + i, volt, mask=inside)
    if OUTPUT:
        tl.store(o + first + i, given, mask=inside)
    if SUMS:
        tl.store(total + first + i, summed, mask=inside)
    if ADAPTIVE:
        tl.store(mean + first + i, average, mask=inside)
    if DEPOLARISATION:
        tl.store(last + first + i, before_last, mask=inside)
    reach = tl.load(fanout + i, mask=inside, other=0.0).to(tl.float64)
    slot = counts + (b * tl.cdiv(N, BLOCK) + block) * 4
    add_up(slot, spikes, reach, inside)
    add_up(slot + 2, events, reach, inside)


class Fused(Programs):
    """The kernel's arguments for one population; ``Scan`` holds the state."""

    def __init__(self, neuron: Neuron, currents: Tensor, state: State, fanout: Tensor, chances: Chances | None):
        """currents: (B, C, …) float32, dense in the memory format of the state. fanout: (N,) in memory order."""
        n, m, device = neuron, neuron.adaptive, currents.device
        self.neuron, self.state, self.given = n, state, function_of(n) is None
        rows, stride = rows_of(neuron, currents, None if self.given else n.steady_bias)
        confident = n.confidence < 1
        drawn = _keys(present(chances), device) if confident else rows
        staged, highest = tuple(n.stages) != (1.0,) or n.bits is not None, float(1 << (n.bits or 1) - 1)
        block, self.warps = SHAPES[family_of(n)]
        super().__init__(currents.shape[0], currents[0].numel(), block, 4, device)
        missing = state.v
        self.tensors = dict(
            v=state.v, o=_or(state.o, missing), total=_or(state.x, missing), mean=_or(state.mean, missing),
            last=_or(state.before, missing), rows=rows, keys=drawn, fanout=fanout, counts=self.partial,
            stages=_stages(neuron, device) if staged else rows,
        )  # fmt: skip
        innermost = currents.dim() == 4 and not currents.is_contiguous()
        self.values = dict(
            B=self.B, N=self.N, stride=stride, period=rows.shape[1], inner=currents.shape[1] if innermost else 1,
            last_stage=max(len(n.stages), len(n.terms)) - 1, kept_below=round(n.confidence * (1 << BITS)),
            gamma=float(n.gamma), overflow=n.overflow, offset=n.offset,
            margin=n.margin, upper=n.activation.upper, slope=n.activation.slope,
            digits=n.bits or 0, highest=highest, per_highest=1 / highest,
            ROWS=rows.shape[1] > 1, STAGES=staged, OUTPUT=state.o is not None, FUNCTION=function_of(n) or "given",
            TRACKING=n.tracking, SIGNED=n.signed, BOUNDED=n.bounded, BINARY=n.bits is not None, FORGETS=n.forgets,
            TO_ZERO=n.reset == "zero" and not n.tracking, IMBALANCED=n.imbalanced, CONFIDENCE=confident,
            KEEP=n.drop == "keep", ADAPTIVE=m is not None, BLOCK=block, **adaptive_numbers(neuron),
        )  # fmt: skip

    def run(self, x: Tensor, y: Tensor, t0: int, steps: int, constant: bool) -> None:
        """x: (steps·B, C, …), or (B, C, …) where constant in time; y: (steps·B, C, …), which may be x."""
        if self.given:
            write_targets(self.neuron, self.state.x, x, y, t0)
            x, constant = y, False
        plane = self.B * self.N
        with torch.cuda.device_of(x):
            _scan[self.grid](
                x, y, K=steps, x_step=0 if constant else plane, y_step=plane, t0=t0, **self.tensors, **self.values,
                num_warps=self.warps, enable_fp_fusion=False,
            )  # fmt: skip


def _or(tensor: Tensor | None, missing: Tensor) -> Tensor:
    return missing if tensor is None else tensor


def _keys(chances: Chances, device: torch.device) -> Tensor:
    """(EARLY, B) int64, what spike confidence draws by."""
    c = chances
    drawn = [mask_keys(c.seed, c.images, c.site, t, torch.device("cpu")) for t in range(EARLY)]
    return brought(torch.stack(drawn), device)


def _stages(neuron: Neuron, device: torch.device) -> Tensor:
    """(3, L): the factor on θ, the spikes that are an overflow, and the terms of a timestep, the last ones held."""
    n, L = neuron, max(len(neuron.stages), len(neuron.terms))
    rows = [[n.stage(t), n.overflow / n.stage(t), float(at(n.terms, t))] for t in range(L)]
    return brought(torch.tensor(rows).T.contiguous(), device)
