"""What the Triton kernels of neurons share, rate coding's and delta coding's: activations, the adaptive threshold, the
parameters of channels, and the counts.

Everything is ``tl``'s in the order of ``spiking.neurons``, so that numbers are those of PyTorch bit for bit where no
exponential is in them (``enable_fp_fusion`` is off at every launch).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from msat_det.spiking.neurons import SMALLEST, Neuron, initial_potential, per_channel, threshold

FUNCTIONS = set("identity leakyrelu silu sigmoid tanh hardswish hardsigmoid mish".split())

_LOG2_E, _LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
_EXPONENT, _ONE_UP = tl.constexpr(0x7F800000), tl.constexpr(1 << 23)  # of a float32: its exponent's bits, and one of it
_LEAST = tl.constexpr(max(SMALLEST, 1.2e-38))  # below 2^-126 Triton would take it for a double


@triton.jit
def exp(x):
    return tl.exp2(x * _LOG2_E)


@triton.jit
def at_least(x, low):
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_most(x, high):
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def applied(a, slope, upper, NAME: tl.constexpr):
    """f(a) of an activation, by the name in ``function_of``."""
    if NAME == "rectified":
        a = at_most(at_least(a, 0.0), upper)
    elif NAME == "leakyrelu":
        a = tl.where(a > 0.0, a, a * slope)
    elif NAME == "silu":
        a = tl.div_rn(a, 1.0 + exp(-a))
    elif NAME == "sigmoid":
        a = tl.div_rn(1.0 + 0.0 * a, 1.0 + exp(-a))
    elif NAME == "tanh":
        u = exp(-2.0 * tl.abs(a))
        size = tl.div_rn(1.0 - u, 1.0 + u)
        a = tl.where(a < 0.0, -size, size)
    elif NAME == "hardswish":
        a = a * at_most(at_least(a + 3.0, 0.0), 6.0) / 6.0
    elif NAME == "hardsigmoid":
        a = at_most(at_least(a + 3.0, 0.0), 6.0) / 6.0
    elif NAME == "mish":  # tanh(ln(1 + e^a)) = w / (w + 2), w = e^a·(e^a + 2); beyond 20 it is 1
        e = exp(at_most(a, 20.0))
        w = e * (e + 2.0)
        a = a * tl.div_rn(w, w + 2.0)
    return a


@triton.jit
def units_of(
    theta, theta_max, rest, k_i, C, tau_mp, NORMALISED: tl.constexpr, REST_IS_MAX: tl.constexpr
):  # fmt: skip
    """What of the adaptive threshold does not change in time: 1/k_i and −1/C in the neurons' units, −τ_mp·V_T, and 0
    for dead ones."""
    zero = tl.zeros(theta.shape, tl.float32)
    scale = 1.0 / theta if NORMALISED else zero + 1.0
    resting = tau_mp * theta_max if REST_IS_MAX else zero - tau_mp * rest
    return scale / k_i, -scale / C, resting, tl.where(theta_max > 0.0, 1.0, 0.0)


@triton.jit
def varied(
    theta, difference, drive, per_k_i, per_C, resting, alive, alpha, k_a, k_i, tau_mp, tau_det,
    DTT: tl.constexpr, DET: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """θ(t) of the adaptive threshold, eqs. 15-17: θ/(1 + e^below); θ for a dead neuron.

    A NaN may become a number here, but not where it counts: in the potential that it comes from.
    """
    slope, gain = -tau_mp * alpha * k_i, tau_mp * k_a
    below = 0.0 * difference
    under = below + 1.0
    if DTT:
        z = difference * per_k_i  # Δ / k_i
        decay = exp(-tl.abs(z))
        below = tl.fma(slope, z, resting)
        if UNIT:  # k_a·τ_mp = 1: e^-softplus(z) is e^-max(z, 0) / (1 + decay), and there is no logarithm to take
            below -= tl.maximum(z, 0.0)
            under += decay
        else:
            below -= gain * (tl.maximum(z, 0.0) + _LN_2 * tl.log2(1.0 + decay))
    if DET:
        below = tl.fma(-tau_det, exp(drive * per_C), below)
    return at_least(theta * (under / tl.fma(alive, exp(tl.minimum(below, 88.0)), under)), _LEAST)


@triton.jit
def parameters(rows, i, stride, period, ROWS: tl.constexpr):
    """θ, θ with 0 for dead channels, V(−1) and the bias of neurons i."""
    if ROWS:
        at = i // stride % period
        theta, theta_max = tl.load(rows + at), tl.load(rows + period + at)
        return theta, theta_max, tl.load(rows + 2 * period + at), tl.load(rows + 3 * period + at)
    else:
        zero = tl.zeros(i.shape, tl.float32)
        return zero + tl.load(rows), zero + tl.load(rows + 1), zero + tl.load(rows + 2), zero + tl.load(rows + 3)


@triton.jit
def held(values, inside, HELD: tl.constexpr):
    """What the neurons remember, or zeros where they do not."""
    value = tl.zeros(inside.shape, tl.float32)
    if HELD:
        value = tl.load(values, mask=inside, other=0.0)
    return value


@triton.jit
def by_terms(error, zone, most, highest, per_highest, terms, per_ratio, half):
    """What is sent of an error in units of the threshold in binary levels, and in how many spikes, as
    ``levels.quantise`` has it: of neighbouring powers by the ratio 1/per_ratio, the top one rounded by ``half``."""
    size, none = tl.abs(error), error - error  # 0, and NaN of ∞ and NaN
    over = (size >= most) & (size > zone)
    spikes = none + tl.where(over, tl.floor(size * per_highest + half), 0.0)
    sent = tl.where(error < 0.0, -spikes * highest, spikes * highest)
    rest = error - sent
    for _ in range(terms):
        below = tl.minimum(tl.maximum(tl.abs(rest) * per_ratio, 0.5), 0.5 * highest)
        power = ((below.to(tl.int32, bitcast=True) & _EXPONENT) + _ONE_UP).to(tl.float32, bitcast=True)
        part = tl.where(tl.abs(rest) > zone, tl.where(rest < 0.0, -power, power), 0.0)
        rest -= part
        sent += part
        spikes += tl.where(part != 0.0, 1.0, 0.0)
    return sent, spikes


@triton.jit
def add_up(slot, numbers, reach, inside):
    """Add Σ and Σ·fan-out of what the neurons have sent to a program's own two places."""
    numbers = tl.where(inside, numbers, 0.0).to(tl.float64)
    tl.store(slot, tl.load(slot) + tl.sum(numbers, 0))
    tl.store(slot + 1, tl.load(slot + 1) + tl.sum(numbers * reach, 0))


class Programs:
    """The programs of a kernel for B images, N numbers of each, ``block`` for a program.

    partial: (B, blocks, values), what each program has counted, in float64. counts: (B, values) of each image.
    """

    def __init__(self, B: int, N: int, block: int, values: int, device: torch.device):
        self.B, self.N = B, N
        self.partial = torch.zeros(B, triton.cdiv(N, block), values, dtype=torch.float64, device=device)

    @property
    def grid(self) -> tuple[int]:
        return (self.B * self.partial.shape[1],)

    @property
    def counts(self) -> Tensor:
        return self.partial.sum(1)

    def restart(self) -> None:
        """Counts from 0."""
        self.partial.zero_()


def function_of(neuron: Neuron) -> str | None:
    """The name under which the kernels know the neuron's activation, or None: they do not."""
    if neuron.activation.rectified:
        return "rectified"
    return neuron.activation.name if neuron.activation.name in FUNCTIONS else None


def rows_of(neuron: Neuron, like: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
    """A kernel's rows (4, period) of ``parameters``, and the distance in memory at which they change.

    bias: () or (C,).
    """
    n = neuron
    start = per_channel(initial_potential(n, like), like, None)
    each = [threshold(n, like), per_channel(n.theta, like, n.axis), start]
    rows = torch.stack(torch.broadcast_tensors(*each, per_channel(0.0 if bias is None else bias, like, n.axis)))
    rows = rows.reshape(4, -1).contiguous()
    return rows, 1 if n.axis is None or rows.shape[1] == 1 else like.stride(n.axis)


def adaptive_numbers(neuron: Neuron) -> dict:
    """A kernel's arguments of the adaptive threshold, none of which is looked at where there is none."""
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
