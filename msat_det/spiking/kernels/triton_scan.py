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
from msat_det.spiking.masks import BITS, FACTORS, SHIFTS, STEP, mask_keys
from msat_det.spiking.neurons import (
    EARLY,
    SMALLEST,
    WHOLE,
    Chances,
    Neuron,
    State,
    initial_potential,
    per_channel,
    threshold,
)

FUNCTIONS = set("identity leakyrelu silu sigmoid tanh hardswish hardsigmoid mish".split())  # of a tracking one
# Neurons of a program and warps that share them, by family: the fastest on an H100 (docs/performance.md). "signed" is
# also for tracking neurons, which keep as much state and were not timed.
SHAPES = {"constant": (1024, 8), "signed": (512, 4), "adaptive": (256, 2)}

_LOG2_E, _LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
_WHOLE, _EARLY = tl.constexpr(WHOLE), tl.constexpr(EARLY)
_SMALLEST = tl.constexpr(max(SMALLEST, 1.2e-38))  # below 2^-126 Triton would take it for a double
_STEP, _BITS = tl.constexpr(STEP), tl.constexpr((1 << BITS) - 1)
_SHIFT_0, _SHIFT_1 = map(tl.constexpr, SHIFTS)
_BELOW_0, _BELOW_1 = (tl.constexpr((1 << (64 - shift)) - 1) for shift in SHIFTS)  # what a logical shift leaves
_FACTOR_0, _FACTOR_1 = map(tl.constexpr, FACTORS)


def holds(neuron: Neuron) -> bool:
    """Whether the kernel computes this neuron: a tracking one only where it has its function. Neurons that forget
    charge (reset to zero, imbalanced) and those that send powers of two are left to ``step``."""
    known = not neuron.tracking or neuron.activation.name in FUNCTIONS
    return known and not neuron.forgets and neuron.bits is None


def family_of(neuron: Neuron) -> str:
    """The neuron's key in ``SHAPES``."""
    if neuron.adaptive is not None:
        return "adaptive"
    return "signed" if neuron.signed or neuron.tracking else "constant"


@triton.jit
def _exp(x):
    return tl.exp2(x * _LOG2_E)


@triton.jit
def _at_least(x, low):
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _at_most(x, high):
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _followed(a, slope, NAME: tl.constexpr):
    """f(a) of a tracking neuron."""
    if NAME == "leakyrelu":
        a = tl.where(a > 0.0, a, a * slope)
    elif NAME == "silu":
        a = tl.div_rn(a, 1.0 + _exp(-a))
    elif NAME == "sigmoid":
        a = tl.div_rn(1.0 + 0.0 * a, 1.0 + _exp(-a))
    elif NAME == "tanh":
        u = _exp(-2.0 * tl.abs(a))
        size = tl.div_rn(1.0 - u, 1.0 + u)
        a = tl.where(a < 0.0, -size, size)
    elif NAME == "hardswish":
        a = a * _at_most(_at_least(a + 3.0, 0.0), 6.0) / 6.0
    elif NAME == "hardsigmoid":
        a = _at_most(_at_least(a + 3.0, 0.0), 6.0) / 6.0
    elif NAME == "mish":  # tanh(ln(1 + e^a)) = w / (w + 2), w = e^a·(e^a + 2); beyond 20 it is 1
        e = _exp(_at_most(a, 20.0))
        w = e * (e + 2.0)
        a = a * tl.div_rn(w, w + 2.0)
    return a


@triton.jit
def _kept(key, index, below):
    """The mask of ``masks.bernoulli``: its hash of (seed, image, call site, t), which is the key, and the element."""
    z = key + index.to(tl.int64) * _STEP
    z = (z ^ ((z >> _SHIFT_0) & _BELOW_0)) * _FACTOR_0
    z = (z ^ ((z >> _SHIFT_1) & _BELOW_1)) * _FACTOR_1
    z = z ^ ((z >> 33) & 0x7FFFFFFF)
    return (z & _BITS) < below


@triton.jit
def _share(
    difference, drive, per_k_i, per_C, resting, alive, slope, gain, tau_det,
    DTT: tl.constexpr, DET: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """θ(t)/θ of the adaptive threshold, eqs. 15-17: 1/(1 + e^below); 1 for a dead neuron.

    A NaN may become a number here, but not where it counts: in the potential that it comes from.
    """
    below = 0.0 * difference
    under = below + 1.0
    if DTT:
        z = difference * per_k_i  # Δ / k_i
        decay = _exp(-tl.abs(z))
        below = tl.fma(slope, z, resting)
        if UNIT:  # k_a·τ_mp = 1: e^-softplus(z) is e^-max(z, 0) / (1 + decay), and there is no logarithm to take
            below -= tl.maximum(z, 0.0)
            under += decay
        else:
            below -= gain * (tl.maximum(z, 0.0) + _LN_2 * tl.log2(1.0 + decay))
    if DET:
        below = tl.fma(-tau_det, _exp(drive * per_C), below)
    return under / tl.fma(alive, _exp(tl.minimum(below, 88.0)), under)


@triton.jit
def _parameters(rows, i, stride, period, ROWS: tl.constexpr):
    """θ, θ with 0 for dead channels, V(−1) and the bias of neurons i."""
    if ROWS:
        at = i // stride % period
        theta, theta_max = tl.load(rows + at), tl.load(rows + period + at)
        return theta, theta_max, tl.load(rows + 2 * period + at), tl.load(rows + 3 * period + at)
    else:
        zero = tl.zeros(i.shape, tl.float32)
        return zero + tl.load(rows), zero + tl.load(rows + 1), zero + tl.load(rows + 2), zero + tl.load(rows + 3)


@triton.jit
def _held(values, inside, HELD: tl.constexpr):
    """What the neurons remember, or zeros where they do not."""
    value = tl.zeros(inside.shape, tl.float32)
    if HELD:
        value = tl.load(values, mask=inside, other=0.0)
    return value


@triton.jit
def _staged(theta, overflow, stages, t, last_stage, STAGES: tl.constexpr):
    """The stage at t, θ times it, and how many spikes of that height are an overflow."""
    zero = tl.zeros(theta.shape, tl.float32)
    stage, full, most = 1.0, theta, zero + overflow
    if STAGES:
        stage = tl.load(stages + tl.minimum(t, last_stage))
        most = zero + tl.load(stages + last_stage + 1 + tl.minimum(t, last_stage))
        full = theta * stage
    return stage, full, most


@triton.jit
def _fired(
    goal, level, full, most, given, start, gamma, offset, margin,
    ADAPTIVE: tl.constexpr, SIGNED: tl.constexpr, TRACKING: tl.constexpr,
):  # fmt: skip
    """The spikes s, and the threshold that they were fired at: θ(t), or θ where all that is lacking is sent at once."""
    late = goal != goal
    if ADAPTIVE:  # θ(t) may be next to nothing, and the spikes beyond counting
        lacking = goal
        if SIGNED and not TRACKING:
            lacking = _at_least(goal, start - given)
        elif not TRACKING:
            lacking = _at_least(goal, 0.0)
        late = tl.abs(lacking) >= most * full
        level = tl.where(late, full, level)
        goal = tl.where(late, lacking, goal)
    s = tl.floor(tl.div_rn(goal, level) + offset)
    if not TRACKING:
        least = tl.zeros(goal.shape, tl.float32)
        if SIGNED:
            least = tl.where(goal - start < -margin * level, -tl.floor(tl.div_rn(given, level) + _WHOLE), 0.0)
        s = _at_least(s, least)
    if not ADAPTIVE:
        late = tl.abs(s) >= most
    return tl.where(late, s, _at_most(_at_least(s, -gamma), gamma)), level


@triton.jit
def add_up(slot, numbers, reach, inside):
    """Add Σ and Σ·fan-out of what the neurons have sent to a program's own two places."""
    numbers = tl.where(inside, numbers, 0.0).to(tl.float64)
    tl.store(slot, tl.load(slot) + tl.sum(numbers, 0))
    tl.store(slot + 1, tl.load(slot + 1) + tl.sum(numbers * reach, 0))


@triton.jit(do_not_specialize=["t0", "K", "B", "inner", "last_stage", "kept_below"])
def _scan(
    x, y, v, o, total, mean, last, rows, stages, keys, fanout, counts,
    K, B, N, x_step, y_step, t0, stride, period, inner, last_stage, kept_below,
    gamma, overflow, offset, margin, upper, slope, rest, alpha, k_a, k_i, C, tau_mp, tau_det,
    ROWS: tl.constexpr, STAGES: tl.constexpr, OUTPUT: tl.constexpr, FUNCTION: tl.constexpr,
    SIGNED: tl.constexpr, BOUNDED: tl.constexpr,
    CONFIDENCE: tl.constexpr, KEEP: tl.constexpr, ADAPTIVE: tl.constexpr, NORMALISED: tl.constexpr,
    DEPOLARISATION: tl.constexpr, DTT: tl.constexpr, DET: tl.constexpr, UNIT: tl.constexpr,
    REST_IS_MAX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x, y: (K, B, N), x_step 0 for a current that is constant in time. v, o, total, mean, last: (B, N), the state.

    stages: (2, last_stage + 1), the factor on θ and the spikes from which on all that are wanted are sent.
    rows: (4, period) of ``_parameters``, of neuron i at i // stride % period. keys: (EARLY, B). counts:
    (B, blocks, 4). inner: channels where they lie innermost in memory, else 1.
    """
    b, block = tl.program_id(0) % B, tl.program_id(0) // B  # images in turn: their rows and fan-out are the same
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    first = b.to(tl.int64) * N
    x += first
    y += first
    coming = tl.load(x + i, mask=inside, other=0.0)

    theta, theta_max, start, bias = _parameters(rows, i, stride, period, ROWS)
    zero = tl.zeros([BLOCK], tl.float32)
    alive = tl.where(theta_max > 0.0, 1.0, 0.0)
    scale = 1.0 / theta if NORMALISED else zero + 1.0
    per_k_i, per_C = scale / k_i, -scale / C
    resting = tau_mp * theta_max if REST_IS_MAX else zero - tau_mp * rest

    TRACKING: tl.constexpr = FUNCTION != ""
    volt = _held(v + first + i, inside, ADAPTIVE or not TRACKING)
    given = _held(o + first + i, inside, OUTPUT)
    summed = _held(total + first + i, inside, TRACKING)
    average = _held(mean + first + i, inside, ADAPTIVE)
    before_last = _held(last + first + i, inside, DEPOLARISATION)
    spikes, events = zero, zero

    for k in range(K):
        t = t0 + k
        n = (t + 1).to(tl.float32)
        current = coming + bias
        x += x_step
        coming = tl.load(x + i, mask=inside & (k + 1 < K), other=0.0)

        if TRACKING:
            summed += current
            before = n * _followed(tl.div_rn(summed, zero + n), slope, FUNCTION) - given
        else:
            before = volt + current
        stage, full, most = _staged(theta, overflow, stages, t, last_stage, STAGES)
        level = full
        if ADAPTIVE:  # noqa: SIM102 (a branch of the compiler around one of the device)
            if t > 0:
                drive = before - before_last if DEPOLARISATION else current
                share = _share(
                    volt - average, drive, per_k_i, per_C, resting, alive, -tau_mp * alpha * k_i, tau_mp * k_a,
                    tau_det, DTT, DET, UNIT,
                )  # fmt: skip
                level = _at_least(theta * share, _SMALLEST) * stage
        goal = _at_most(before, n * upper - given + start) if BOUNDED else before
        s, level = _fired(goal, level, full, most, given, start, gamma, offset, margin, ADAPTIVE, SIGNED, TRACKING)

        out = s * level
        if SIGNED and not TRACKING:
            out = _at_least(out, -given)
        charge = out
        if CONFIDENCE:  # noqa: SIM102
            if t < _EARLY:
                index = i % inner * (N // inner) + i // inner
                kept = _kept(tl.load(keys + t * B + b), index, kept_below)
                s = tl.where(kept, s, s * 0.0)
                out = tl.where(kept, out, out * 0.0)
                if KEEP:
                    charge = tl.where(kept, charge, charge * 0.0)
        volt = before - charge
        if OUTPUT:
            given += out
        if ADAPTIVE:
            average += (volt - average) * (1.0 / n)
        if DEPOLARISATION:
            before_last = before
        tl.store(y + i, out, mask=inside)
        y += y_step
        spikes += tl.abs(s)
        events += _at_most(tl.abs(s), 1.0)

    tl.store(v + first + i, volt, mask=inside)
    if OUTPUT:
        tl.store(o + first + i, given, mask=inside)
    if TRACKING:
        tl.store(total + first + i, summed, mask=inside)
    if ADAPTIVE:
        tl.store(mean + first + i, average, mask=inside)
    if DEPOLARISATION:
        tl.store(last + first + i, before_last, mask=inside)
    reach = tl.load(fanout + i, mask=inside, other=0.0).to(tl.float64)
    slot = counts + (b * tl.cdiv(N, BLOCK) + block) * 4
    add_up(slot, spikes, reach, inside)
    add_up(slot + 2, events, reach, inside)


class Fused:
    """The kernel's arguments for one population; ``Scan`` holds the state."""

    def __init__(self, neuron: Neuron, currents: Tensor, state: State, fanout: Tensor, chances: Chances | None):
        """currents: (B, C, …) float32, dense in the memory format of the state. fanout: (N,) in memory order."""
        n, m, device = neuron, neuron.adaptive, currents.device
        self.B, self.N = currents.shape[0], currents[0].numel()
        rows, stride = _rows(neuron, currents)
        confident = n.confidence < 1
        drawn = _keys(present(chances), device) if confident else rows
        staged = tuple(n.stages) != (1.0,)
        block, self.warps = SHAPES[family_of(n)]
        self.partial = torch.zeros(self.B, triton.cdiv(self.N, block), 4, dtype=torch.float64, device=device)
        missing = state.v
        self.tensors = dict(
            v=state.v, o=_or(state.o, missing), total=_or(state.x, missing), mean=_or(state.mean, missing),
            last=_or(state.before, missing), rows=rows, keys=drawn, fanout=fanout, counts=self.partial,
            stages=_stages(neuron, device) if staged else rows,
        )  # fmt: skip
        innermost = currents.dim() == 4 and not currents.is_contiguous()
        self.values = dict(
            B=self.B, N=self.N, stride=stride, period=rows.shape[1], inner=currents.shape[1] if innermost else 1,
            last_stage=len(n.stages) - 1, kept_below=round(n.confidence * (1 << BITS)), gamma=float(n.gamma),
            overflow=n.overflow, offset=n.offset, margin=n.margin, upper=n.activation.upper, slope=n.activation.slope,
            ROWS=rows.shape[1] > 1, STAGES=staged, OUTPUT=state.o is not None,
            FUNCTION=n.activation.name if n.tracking else "", SIGNED=n.signed, BOUNDED=n.bounded, CONFIDENCE=confident,
            KEEP=n.drop == "keep", ADAPTIVE=m is not None, BLOCK=block, **_adaptive(neuron),
        )  # fmt: skip

    @property
    def counts(self) -> Tensor:
        """(B, 4), see ``Scan``."""
        return self.partial.sum(1)

    def restart(self) -> None:
        """Counts from 0."""
        self.partial.zero_()

    def run(self, x: Tensor, y: Tensor, t0: int, steps: int, constant: bool) -> None:
        """x: (steps·B, C, …), or (B, C, …) where constant in time; y: (steps·B, C, …), which may be x."""
        plane = self.B * self.N
        grid = (self.B * self.partial.shape[1],)
        _scan[grid](
            x, y, K=steps, x_step=0 if constant else plane, y_step=plane, t0=t0, **self.tensors, **self.values,
            num_warps=self.warps, enable_fp_fusion=False,
        )  # fmt: skip


def _or(tensor: Tensor | None, missing: Tensor) -> Tensor:
    return missing if tensor is None else tensor


def _keys(chances: Chances, device: torch.device) -> Tensor:
    """(EARLY, B) int64, what spike confidence draws by."""
    c = chances
    drawn = [mask_keys(c.seed, c.images, c.site, t, torch.device("cpu")) for t in range(EARLY)]
    return torch.stack(drawn).to(device)


def _stages(neuron: Neuron, device: torch.device) -> Tensor:
    return torch.tensor([list(neuron.stages), [neuron.overflow / stage for stage in neuron.stages]], device=device)


def _adaptive(neuron: Neuron) -> dict:
    m = neuron.adaptive
    if m is None:
        numbers = dict.fromkeys("rest alpha k_a k_i C tau_mp tau_det".split(), 1.0)
        return numbers | dict.fromkeys("NORMALISED DEPOLARISATION DTT DET UNIT REST_IS_MAX".split(), False)
    return dict(
        rest=-1.0 if m.rest is None else float(m.rest), alpha=m.alpha, k_a=m.k_a, k_i=m.k_i, C=m.C, tau_mp=m.tau_mp,
        tau_det=m.tau_rd * (m.tau_rd if m.twice else 1.0), NORMALISED=m.normalised,
        DEPOLARISATION=m.drive == "depolarisation", DTT=m.dtt, DET=m.det, UNIT=m.k_a * m.tau_mp == 1,
        REST_IS_MAX=m.rest is None and not m.normalised,
    )  # fmt: skip


def _rows(neuron: Neuron, like: Tensor) -> tuple[Tensor, int]:
    """The kernel's rows (4, period), and the distance in memory at which they change."""
    n = neuron
    theta_max = per_channel(n.theta, like, n.axis)
    start = torch.as_tensor(initial_potential(n, like), dtype=like.dtype, device=like.device)
    bias = torch.zeros_like(theta_max)
    if n.bias is not None and n.bias.dim() < 2:  # one that differs over time comes with the current
        bias = per_channel(n.bias, like, n.axis)
    rows = torch.stack(torch.broadcast_tensors(threshold(n, like), theta_max, start, bias))
    rows = rows.reshape(4, -1).contiguous()
    return rows, 1 if n.axis is None or rows.shape[1] == 1 else like.stride(n.axis)
