"""The neurons: integrate-and-fire and MSAT, their state, and one readable step.

``step`` is the reference: every equation stands in one function that names it. ``kernels`` has the same step fused over
a chunk of timesteps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from msat_det.base.checks import check_number, check_values, present
from msat_det.base.errors import InputError
from msat_det.graph.channels import channels
from msat_det.graph.ops import Activation
from msat_det.spiking.levels import OVERFLOW, check_sent, digits, leading
from msat_det.spiking.masks import bernoulli

DEAD = 1e30  # the threshold of a dead channel: never reached, and finite, so that nothing divides by zero
EARLY = 16  # spike confidence applies to the first 16 timesteps
SMALLEST = 1e-38  # θ(t): a tiny θ over e^88 would be 0
WHOLE = 1e-4  # tolerance of floor(O/θ): an output sum of k thresholds is k, whatever the rounding of its float sum

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Msat:
    """Parameters of the multi-stage adaptive threshold (paper eqs. 15–17), by Table 2's column VGG16.

    rest: V_T; None means −θ_max (−1 when normalised). normalised: Δ, V_T and D in units of θ_max instead of raw
    volts. drive: D of eq. 17, the input current (reference implementation) or V⁺(t) − V⁺(t−1) (paper).
    twice: eq. 15 multiplies by τ_rd although eq. 17 already contains it, as printed in the paper.
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

    def __post_init__(self) -> None:
        for key in ("k_i", "C"):
            check_number(f"MSAT's {key}", getattr(self, key), 0, above=True)


@dataclass(frozen=True, eq=False)
class Neuron:
    """What a method makes of one call site.

    theta: θ, () for a layer or (C,) for its channels, ≥ 0; a channel with θ = 0 is dead and never fires. axis: the
    dimension of a batch (B, …) that holds the channels; None where it is not known and all values are ().
    activation: the function that the firing approximates; not rectified = a tracking neuron.
    signed, margin: spikes can take back what was sent, once the error is below −margin·θ.
    gamma: most spikes in one timestep, while the error is no more than OVERFLOW·γ·θ.
    initial: V(−1) in units of θ, a number or (C,); under delta coding the output sum starts at −V(−1). rounding:
    ``fixed`` floors V⁺/θ, ``track`` starts at 0 and rounds to nearest in every step. stages: factor on θ at each
    timestep, the last one held.
    reset: ``soft`` subtracts the spike, ``zero`` sets the potential to 0. bias: (C,) added to the current each step, or
    (K, C) where it differs over the first K timesteps, the last one held.
    confidence, drop: eq. 18, the probability that an early spike is kept, and what a dropped one does to its charge.
    adaptive: the MSAT threshold; None for a constant one. imbalanced: leaky ReLU with slope a as in channel-norm, an
    integrate-and-fire neuron that fires −1 at −θ/a. window: a step stands for that many timesteps, and s is the time
    from an opening to a closing spike (temporal switch coding); a value beyond the window is sent at once, by as many
    pairs of spikes as needed.
    coding: ``rate``, or ``delta`` (``delta.py``): the sum of the output is the value, and corrections of it are sent.
    bits: an event carries ±2^k·θ, k < bits ≤ 16; None: bursts of single spikes, at most γ. terms: such events in a
    timestep, over time; zone: errors below zone·θ, zone ≥ ½, are not sent, over time (under delta coding).
    steps: so many of the smallest level are the scale of the activations, and the levels of the n-th timestep are no
    coarser than 1/n of it, as the mean of n spikes is: stages have min(1, steps/n) besides (under delta coding).
    dense: the 8-bit control, whose values go to every connection as numbers. late: timesteps before its output counts
    in the network's outputs.
    Raises InputError for numbers out of these ranges, and for tensors that are not (), (C,) or finite.
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
    steps: int | None = None
    dense: bool = False
    late: int = 0
    axis: int | None = 1

    def __post_init__(self) -> None:
        check_values("a neuron's theta", self.theta, low=0)
        if isinstance(self.initial, Tensor):
            check_values("a neuron's initial", self.initial)
        else:
            check_number("a neuron's initial", self.initial)
        if self.bias is not None:
            check_values("a neuron's bias", self.bias, over_time=True)
        check_sent("a neuron's", self)
        check_number("a neuron's confidence", self.confidence, 0, 1)
        check_number("a neuron's late", self.late, 0, whole=True)
        for key in ("window", "axis", "steps"):
            if getattr(self, key) is not None:
                check_number(f"a neuron's {key}", getattr(self, key), 1, whole=True)
        if self.imbalanced and not 0 < self.activation.slope < math.inf:
            name = self.activation.name
            raise InputError(f"a neuron's imbalanced is True: give False, for {name} has no slope below 0")

    @property
    def tracking(self) -> bool:
        return not self.activation.rectified and not self.imbalanced

    @property
    def forgets(self) -> bool:
        """Whether the potential loses charge to the reset or weighs it by sign: it is not what is still to be sent."""
        return (self.reset == "zero" and not self.tracking) or self.imbalanced

    @property
    def bounded(self) -> bool:
        """Whether spikes must stay below an upper bound of the activation."""
        return self.activation.rectified and self.activation.upper < math.inf

    @property
    def overflow(self) -> float:
        """The number of spikes of height θ from which on all are sent at once; of a window what it can hold.

        Under delta coding of height θ(t): with levels that become finer the error does. The 8-bit control clips.
        """
        if self.dense:
            return math.inf
        return float(self.gamma if self.window else OVERFLOW * self.gamma)

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
            "o": self.signed or self.tracking or self.bounded or self.forgets or delta,
            "x": adaptive is not None and adaptive.drive == "current" if delta else self.tracking or self.forgets,
            "mean": adaptive is not None,
            "before": adaptive is not None and adaptive.drive == "depolarisation",
        }
        return tuple(name for name, needed in kept.items() if needed)

    @overload
    def stage(self, t: int) -> float: ...
    @overload
    def stage(self, t: int | Tensor) -> float | Tensor: ...
    def stage(self, t: int | Tensor) -> float | Tensor:
        """The factor on the threshold at timestep t."""
        factor = at(self.stages, t)
        if self.steps is None or self.coding == "rate":
            return factor
        finer = self.steps / (t + 1)
        return factor * (finer.clamp(max=1.0) if isinstance(finer, Tensor) else min(1.0, finer))

    @property
    def steady_bias(self) -> Tensor | None:
        """The bias where it is the same in every timestep; one over time comes with the currents (``kernels.Scan``)."""
        return None if self.bias is None or self.bias.dim() > 1 else self.bias

    def bias_at(self, t: int | Tensor) -> Tensor:
        """The bias (C,) at timestep t."""
        bias = present(self.bias)
        if bias.dim() < 2:
            return bias
        return _held(bias, t) if isinstance(t, Tensor) else bias[min(t, len(bias) - 1)]


@overload
def at(values: Sequence[Number], t: int) -> Number: ...
@overload
def at(values: Sequence[Number], t: int | Tensor) -> Number | Tensor: ...
def at(values: Sequence[Number], t: int | Tensor) -> Number | Tensor:
    """Of values over the timesteps the one at t, the last one held."""
    last = len(values) - 1
    if not last:
        return values[0]
    return _held(torch.tensor(values, device=t.device), t) if isinstance(t, Tensor) else values[min(t, last)]


def _held(values: Tensor, t: Tensor) -> Tensor:
    """``at`` of a tensor's rows; ``values[t]`` would read t on the host, which a graph of the step cannot."""
    return values.index_select(0, t.clamp(max=len(values) - 1)[None])[0]


def per_channel(value: Tensor | float, like: Tensor, axis: int | None) -> Tensor:
    """A per-channel value (C,) or scalar, shaped to broadcast over (B, …) activations with channels along ``axis``."""
    if not isinstance(value, Tensor):
        return like.new_full((), value)  # filled in there: a GPU is not waited for
    value = value.to(like.device, like.dtype)
    return value if value.dim() == 0 or axis is None else value.reshape(-1, *([1] * (like.dim() - 1 - axis)))


def check_fit(name: str, neuron: Neuron, shape: tuple[int, ...]) -> None:
    """Raise InputError, naming the call site, for a neuron whose values are not of the channels of its activations.

    shape: of one image's activation.
    """
    if neuron.axis is not None and neuron.axis > len(shape):
        raise InputError(f"call site {name} has {len(shape)} dimensions: its neuron's axis is {neuron.axis}")
    count = channels(shape, neuron.axis)
    for key in ("theta", "initial", "bias"):
        value = getattr(neuron, key)
        if isinstance(value, Tensor) and value.dim() and value.shape[-1] != count:
            raise InputError(
                f"call site {name} has {count} channels, its neuron's {key} {value.shape[-1]}: give one for each"
            )


_NOT_KEPT: Any = None  # an absent state, typed as a present one


@dataclass
class State:
    """The state of a population for a batch: every tensor is (B, C, …) like its input current; None, and never read,
    is what the neuron does not keep (``Neuron.keeps``).

    v: potential after the spike. o: output sum (kept where something needs it). x: input sum (where the potential does
    not tell the error). mean: running mean of v. before: potential before the last spike (for the depolarisation).
    """

    v: Tensor = _NOT_KEPT
    o: Tensor = _NOT_KEPT
    x: Tensor = _NOT_KEPT
    mean: Tensor = _NOT_KEPT
    before: Tensor = _NOT_KEPT


@dataclass
class Chances:
    """Where spike confidence draws from: masks depend on seed, image, call site and timestep alone."""

    seed: int = 0
    images: list[int] = field(default_factory=list)
    site: int = 0


def initial_potential(neuron: Neuron, like: Tensor) -> Tensor | float:
    """V(−1), shaped like one image's activation; 0 for a neuron that rounds in every step."""
    if neuron.offset:
        return 0.0
    return per_channel(neuron.initial, like, neuron.axis) * per_channel(neuron.theta, like, neuron.axis)


def threshold(neuron: Neuron, like: Tensor) -> Tensor:
    """θ shaped like one image's activation, dead channels at ``DEAD``."""
    theta = per_channel(neuron.theta, like, neuron.axis)
    return torch.where(theta > 0, theta, torch.full_like(theta, DEAD))


def new_state(neuron: Neuron, like: Tensor, with_output: bool) -> State:
    """The state before the first timestep of a batch whose currents look like ``like`` (B, C, …)."""

    def zeros() -> Tensor:
        return torch.zeros_like(like)

    v = zeros()
    v += initial_potential(neuron, like)
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
    m, theta = present(neuron.adaptive), threshold(neuron, x)
    if isinstance(t, int) and t == 0:
        return theta
    scale = theta if m.normalised else 1.0
    total = torch.zeros_like(x)
    if m.dtt:
        largest = per_channel(neuron.theta, x, neuron.axis)
        default = -torch.ones_like(largest) if m.normalised else -largest
        rest = default if m.rest is None else m.rest
        total += m.tau_mp * dynamic_tracking_threshold(m, (state.v - state.mean) / scale, rest)
    if m.det:
        drive = before - state.before if m.drive == "depolarisation" else x
        total += (m.tau_rd if m.twice else 1.0) * dynamic_evoked_threshold(m, drive / scale)
    # e^88 bounds the sigmoid away from 0 in single precision: V⁺/θ stays a number; a dead channel keeps its threshold
    varying = (theta / (1 + torch.exp((-total).clamp(max=88.0)))).clamp(min=SMALLEST)
    varying = torch.where(per_channel(neuron.theta, x, neuron.axis) > 0, varying, theta)
    return varying if isinstance(t, int) else torch.where(t == 0, theta, varying)


def _charge(neuron: Neuron, state: State, x: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The input sum, where it is kept, with the current x in it, the potential before the spike, and θ(t)."""
    total = state.x
    if neuron.bias is not None:
        x = x + per_channel(neuron.bias_at(t), x, neuron.axis)
    if total is not None:
        total = total + x
    before = (t + 1) * neuron.activation.fn(total / (t + 1)) - state.o if neuron.tracking else state.v + x
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
    state.x, before, theta = _charge(neuron, state, x, t)
    s, y, charge = _fire(neuron, state, x, before, theta, t)
    fired = s != 0
    if neuron.confidence < 1 and t < EARLY:
        by = present(chances)
        kept = bernoulli(neuron.confidence, by.seed, by.images, by.site, int(t), x)
        s, y = s * kept, y * kept
        if neuron.drop == "keep":
            charge, fired = charge * kept, fired & (kept > 0)
    to_zero = neuron.reset == "zero" and not neuron.tracking  # a tracking neuron's potential is its error
    state.v = torch.where(fired, 0.0, before) if to_zero else before - charge
    if state.o is not None:
        state.o = state.o + y
    if state.mean is not None:
        state.mean = state.mean + (state.v - state.mean) / (t + 1)
    if state.before is not None:
        state.before = before
    return s, y


def _fire(
    neuron: Neuron, state: State, x: Tensor, before: Tensor, theta: Tensor, t: int | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The spikes s, the output s·θ and the charge that they take, of potentials ``before`` and thresholds θ(t)."""
    start = initial_potential(neuron, x)
    goal = torch.minimum(before, (t + 1) * neuron.activation.upper - state.o + start) if neuron.bounded else before
    most = neuron.overflow / neuron.stage(t)
    late = None
    if neuron.adaptive or neuron.forgets:
        lacking = _lacking(neuron, state, goal, start, t)
        full = threshold(neuron, x) * neuron.stage(t)
        late = lacking.abs() >= most * full
        theta = torch.where(late, full, theta)  # θ(t) may be next to nothing, and the spikes beyond counting
        goal = torch.where(late, lacking, goal)
    s = torch.floor(goal / theta + neuron.offset)
    if neuron.imbalanced:
        s = torch.where((goal < 0) & ~present(late), -torch.floor(-goal * neuron.activation.slope / theta), s)
    if not neuron.tracking and not neuron.imbalanced:
        s = torch.maximum(s, _fewest(neuron, state, goal if neuron.offset else goal - start, theta))
    s = torch.where(s.abs() >= most if late is None else late, s, s.clamp(-neuron.gamma, neuron.gamma))
    if neuron.bits:
        s = leading(s, neuron.bits, at(neuron.terms, t))
    y = s * theta
    if neuron.signed and not neuron.tracking and not neuron.imbalanced:
        y = torch.maximum(y, -state.o)
    return s, y, _spent(neuron, before, goal, y, present(late)) if neuron.imbalanced else y


def spikes(neuron: Neuron, s: Tensor) -> Tensor:
    """How many spikes ``step``'s s takes: |s|, of binary levels the digits that are sent."""
    return digits(s.abs(), neuron.bits) if neuron.bits else s.abs()


def _lacking(neuron: Neuron, state: State, goal: Tensor, start: Tensor | float, t: int | Tensor) -> Tensor:
    """What the output sum lacks to the activation of all that came in; below 0 what it can take back.

    goal: the potential, which is the same where it holds all charge.
    """
    if neuron.forgets:
        goal = (t + 1) * neuron.activation.fn(state.x / (t + 1)) - state.o + start
    if neuron.tracking or neuron.imbalanced:
        return goal
    return torch.maximum(goal, start - state.o) if neuron.signed else goal.clamp(min=0.0)


def _spent(neuron: Neuron, before: Tensor, goal: Tensor, y: Tensor, late: Tensor) -> Tensor:
    """The charge of an imbalanced neuron's spikes: −θ takes θ/a. After an overflow what is lacking alone is left."""
    slope, left = neuron.activation.slope, goal - y
    return torch.where(late, before - torch.where(left < 0, left / slope, left), torch.where(y < 0, y / slope, y))


def _fewest(neuron: Neuron, state: State, above: Tensor, theta: Tensor) -> Tensor:
    """s_min: 0, or what a signed neuron may take back. above: the potential above its start."""
    if not neuron.signed:
        return torch.zeros_like(above)
    given = torch.floor(state.o / theta + WHOLE)
    return torch.where(above < -neuron.margin * theta, -given, torch.zeros_like(given))
