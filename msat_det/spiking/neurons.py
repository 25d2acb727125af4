"""The neurons: integrate-and-fire and MSAT, their state, and one readable step (DESIGN §3).

``step`` is the reference: every equation stands in one function that names it. ``kernels.scan`` is the same step fused
over a chunk of timesteps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from msat_det.graph.ops import Activation
from msat_det.spiking.levels import digits, leading
from msat_det.spiking.masks import bernoulli

DEAD = 1e30  # the threshold of a dead channel: never reached, and finite, so that nothing divides by zero
EARLY = 16  # spike confidence applies to the first 16 timesteps
SMALLEST = 1e-38  # θ(t): a tiny θ over e^88 would be 0
_WHOLE = 1e-4  # tolerance of floor(O/θ): an output sum of k thresholds is k, whatever the rounding of its float sum


@dataclass(frozen=True)
class Msat:
    """Parameters of the multi-stage adaptive threshold (paper eqs. 15–17), by Table 2's column VGG16.

    rest: V_T; None stands for −θ_max (−1 when normalised). normalised: Δ, V_T and D in units of θ_max instead of raw
    volts. drive: D of eq. 17, the input current (reference implementation) or V⁺(t) − V⁺(t−1) (paper).
    twice: eq. 15 multiplies by τ_rd although eq. 17 already holds it, as printed in the paper.
    """

    alpha: float = 0.03
    k_a: float = 1.0
    k_i: float = 1.0
    C: float = 5.0
    tau_mp: float = 1.0
    tau_rd: float = 1.0
    rest: float | None = None
    normalised: bool = False
    drive: Literal["current", "depolarisation"] = "current"
    dtt: bool = True
    det: bool = True
    twice: bool = False


@dataclass(frozen=True)
class Neuron:
    """What a method makes of one call site.

    theta: θ, () for a layer or (C,) for its channels, ≥ 0; a channel with θ = 0 is dead and never fires.
    activation: the function that the firing approximates; not rectified = a tracking neuron.
    signed, margin: spikes may take back what was given, once the error is below −margin·θ.
    gamma: most spikes in one timestep. initial: V(−1) in units of θ, a number or (C,). rounding: ``fixed`` floors V⁺/θ,
    ``track`` starts at 0 and rounds to nearest in every step. stages: factor on θ at each timestep, the last one held.
    reset: ``soft`` subtracts the spike, ``zero`` sets the potential to 0. bias: (C,) added to the current each step, or
    (K, C) where it differs over the first K timesteps, the last one held.
    confidence, drop: eq. 18, the probability that an early spike is kept, and what a dropped one does to its charge.
    adaptive: the MSAT threshold; None for a constant one. imbalanced: leaky ReLU with slope a as channel-norm has it,
    an integrate-and-fire neuron that fires −1 at −θ/a. window: a step stands for that many timesteps, and s is the time
    from an opening to a closing spike (temporal switch coding).
    coding: ``rate``, or ``delta`` (``delta.py``): the sum of the output is the value, and corrections of it are sent.
    bits: an event carries ±2^k·θ, k < bits; None: bursts of single spikes, at most γ. terms: such events in a timestep,
    over time; zone: errors below zone·θ are left alone, over time (under delta coding).
    dense: the 8-bit control, whose values go to every connection as numbers. late: timesteps before its output counts
    in the network's outputs.
    """

    theta: Tensor
    activation: Activation
    signed: bool = False
    margin: float = 0.5
    gamma: int = 1
    initial: float | Tensor = 0.0
    rounding: Literal["fixed", "track"] = "fixed"
    stages: Sequence[float] = (1.0,)
    reset: Literal["soft", "zero"] = "soft"
    bias: Tensor | None = None
    confidence: float = 1.0
    drop: Literal["keep", "lossy"] = "keep"
    adaptive: Msat | None = None
    imbalanced: bool = False
    window: int | None = None
    coding: Literal["rate", "delta"] = "rate"
    bits: int | None = None
    terms: Sequence[int] = (1,)
    zone: Sequence[float] = (0.5,)
    dense: bool = False
    late: int = 0

    @property
    def tracking(self) -> bool:
        return not self.activation.rectified and not self.imbalanced

    @cached_property
    def bounded(self) -> bool:
        """Whether firing at full rate would pass the activation's upper bound, so that spikes must be held back."""
        height = self.gamma * max(self.stages) * float(self.theta.max())
        return self.activation.rectified and height > self.activation.upper

    @property
    def offset(self) -> float:
        """What is added before the floor: ½ rounds to nearest."""
        return 0.5 if self.rounding == "track" or self.tracking else 0.0

    @property
    def graded(self) -> bool:
        """Whether a spike's height differs by neuron and time, so that it cannot be folded into the weights."""
        return self.adaptive is not None

    @property
    def keeps(self) -> tuple[str, ...]:
        """What the neuron must remember from one timestep to the next, by the names of ``State``."""
        adaptive = self.adaptive
        delta = self.coding == "delta"
        kept = {
            # a tracking neuron's potential is its error, which only an adaptive threshold looks back at
            "v": not (self.tracking or delta) or adaptive is not None,
            "o": self.signed or self.tracking or self.bounded or delta,
            "x": adaptive is not None and adaptive.drive == "current" if delta else self.tracking,
            "mean": adaptive is not None,
            "before": adaptive is not None and adaptive.drive == "depolarisation",
        }
        return tuple(name for name, needed in kept.items() if needed)

    def stage(self, t: int | Tensor) -> float | Tensor:
        """The factor on the threshold at timestep t."""
        return at(self.stages, t)

    def bias_at(self, t: int | Tensor) -> Tensor:
        """The bias (C,) at timestep t."""
        if self.bias.dim() < 2:
            return self.bias
        last = len(self.bias) - 1
        return self.bias[t.clamp(max=last) if isinstance(t, Tensor) else min(t, last)]


def at(values: Sequence[float], t: int | Tensor) -> float | Tensor:
    """Of values over the timesteps the one at t, the last one held."""
    last = len(values) - 1
    if last and isinstance(t, Tensor):
        return torch.tensor(values, device=t.device)[t.clamp(max=last)]
    return values[min(t, last) if last else 0]


def per_channel(value: Tensor | float, like: Tensor) -> Tensor:
    """A per-channel value (C,) or scalar, shaped to broadcast over (…, C, spatial…) activations of one image."""
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return value if value.dim() == 0 else value.reshape(-1, *([1] * (like.dim() - 2)))


@dataclass
class State:
    """The state of a population for a batch: every tensor is (B, C, …) like its input current.

    v: potential after the spike. o: output sum (kept where something needs it). x: input sum of a tracking neuron.
    mean: running mean of v. before: potential before the last spike (for the depolarisation).
    """

    v: Tensor
    o: Tensor | None = None
    x: Tensor | None = None
    mean: Tensor | None = None
    before: Tensor | None = None


@dataclass
class Chances:
    """Where spike confidence draws from: masks depend on seed, image, call site and timestep alone."""

    seed: int = 0
    images: list[int] = field(default_factory=list)
    site: int = 0


def threshold(neuron: Neuron, like: Tensor) -> Tensor:
    """θ shaped like one image's activation, dead channels at ``DEAD``."""
    theta = per_channel(neuron.theta, like)
    return torch.where(theta > 0, theta, torch.full_like(theta, DEAD))


def new_state(neuron: Neuron, like: Tensor, with_output: bool) -> State:
    """The state before the first timestep of a batch whose currents look like ``like`` (B, C, …)."""

    def zeros() -> Tensor:
        return torch.zeros_like(like)

    v = zeros()
    if neuron.offset == 0.0:
        v += per_channel(neuron.initial, like) * per_channel(neuron.theta, like)
    kept = {*neuron.keeps, "o"} if with_output else set(neuron.keeps)
    return State(v=v, **{name: zeros() for name in ("o", "x", "mean", "before") if name in kept})


def dynamic_tracking_threshold(m: Msat, delta: Tensor, rest: Tensor | float) -> Tensor:
    """DTT, eq. 16: α·Δ + V_T + k_a·ln(1 + e^(Δ/k_i)), Δ the potential above its running mean."""
    return m.alpha * delta + rest + m.k_a * F.softplus(delta / m.k_i, threshold=80)


def dynamic_evoked_threshold(m: Msat, drive: Tensor) -> Tensor:
    """DET, eq. 17: τ_rd·e^(−D/C)."""
    return m.tau_rd * torch.exp(-drive / m.C)


def adaptive_threshold(neuron: Neuron, state: State, x: Tensor, before: Tensor, t: int | Tensor) -> Tensor:
    """θ(t) = θ_max·sigmoid(τ_mp·DTT + τ_rd·DET), eq. 15 and Algorithm 1; θ_max itself in the first timestep."""
    m, theta = neuron.adaptive, threshold(neuron, x)
    if isinstance(t, int) and t == 0:
        return theta
    scale = theta if m.normalised else 1.0
    total = torch.zeros_like(x)
    if m.dtt:
        largest = per_channel(neuron.theta, x)
        default = -torch.ones_like(largest) if m.normalised else -largest
        rest = default if m.rest is None else m.rest
        total += m.tau_mp * dynamic_tracking_threshold(m, (state.v - state.mean) / scale, rest)
    if m.det:
        drive = before - state.before if m.drive == "depolarisation" else x
        total += (m.tau_rd if m.twice else 1.0) * dynamic_evoked_threshold(m, drive / scale)
    # e^88 bounds the sigmoid away from 0 in single precision: V⁺/θ stays a number; a dead channel keeps its threshold
    varying = (theta / (1 + torch.exp((-total).clamp(max=88.0)))).clamp(min=SMALLEST)
    varying = torch.where(per_channel(neuron.theta, x) > 0, varying, theta)
    return varying if isinstance(t, int) else torch.where(t == 0, theta, varying)


def _charge(neuron: Neuron, state: State, x: Tensor, t: int | Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """The input sum of a tracking neuron with the current x in it, the potential before the spike, and θ(t)."""
    total = state.x
    if neuron.bias is not None:
        x = x + per_channel(neuron.bias_at(t), x)
    if neuron.tracking:
        total = total + x
        before = (t + 1) * neuron.activation.fn(total / (t + 1)) - state.o
    else:
        before = state.v + x
    theta = adaptive_threshold(neuron, state, x, before, t) if neuron.adaptive else threshold(neuron, x)
    return total, before, theta * neuron.stage(t)


def coming_threshold(neuron: Neuron, state: State, x: Tensor, t: int) -> Tensor:
    """θ(t), stage included, that ``step`` is about to fire at on the current x (B, C, …); the state stays as it is."""
    return _charge(neuron, state, x, t)[2]


def step(
    neuron: Neuron, state: State, x: Tensor, t: int | Tensor, chances: Chances | None = None
) -> tuple[Tensor, Tensor]:
    """One timestep of a population.

    x: input current (B, C, …) at timestep t = 0, 1, … (a tensor () where the step is exported). Advances ``state`` and
    returns (s, y): the spikes (bursts count, negative ones take back) and the output s·θ(t), both (B, C, …).
    """
    n = t + 1
    state.x, before, theta = _charge(neuron, state, x, t)
    start = 0.0 if neuron.offset else per_channel(neuron.initial, x) * per_channel(neuron.theta, x)
    goal = torch.minimum(before, n * neuron.activation.upper - state.o + start) if neuron.bounded else before
    s = torch.floor(goal / theta + neuron.offset)
    if neuron.imbalanced:
        slope = neuron.activation.slope
        s = torch.where(goal < 0, -torch.floor(-goal * slope / theta), s)
    s = torch.maximum(s, _fewest(neuron, state, goal - start, theta))
    s = torch.clamp(s, max=neuron.gamma)
    if neuron.bits:
        s = leading(s, neuron.bits, max(neuron.terms) if isinstance(t, Tensor) else at(neuron.terms, t))

    y = s * theta
    if neuron.signed and not neuron.tracking and not neuron.imbalanced:
        y = torch.maximum(y, -state.o)
    charge = torch.where(s < 0, y / slope, y) if neuron.imbalanced else y
    fired = s != 0
    if neuron.confidence < 1 and t < EARLY:
        kept = bernoulli(neuron.confidence, chances.seed, chances.images, chances.site, t, x)
        s, y = s * kept, y * kept
        if neuron.drop == "keep":
            charge, fired = charge * kept, fired & (kept > 0)
    to_zero = neuron.reset == "zero" and not neuron.tracking  # a tracking neuron's potential is its error
    state.v = torch.where(fired, 0.0, before) if to_zero else before - charge
    if state.o is not None:
        state.o = state.o + y
    if state.mean is not None:
        state.mean = state.mean + (state.v - state.mean) / n
    if state.before is not None:
        state.before = before
    return s, y


def spikes(neuron: Neuron, s: Tensor) -> Tensor:
    """How many spikes ``step``'s s takes: |s|, of binary levels the digits that are sent."""
    return digits(s.abs(), neuron.bits) if neuron.bits else s.abs()


def _fewest(neuron: Neuron, state: State, error: Tensor, theta: Tensor) -> Tensor:
    """s_min: 0, what a signed neuron may take back, or −γ where the output may have both signs."""
    if neuron.tracking or neuron.imbalanced:
        return torch.full_like(error, -neuron.gamma)
    if not neuron.signed:
        return torch.zeros_like(error)
    given = torch.clamp(torch.floor(state.o / theta + _WHOLE), max=neuron.gamma)
    return torch.where(error < -neuron.margin * theta, -given, torch.zeros_like(given))
