"""The neurons: a golden trace, a scalar implementation of our own, and what must always hold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.devices import StandIn
from support.neurons import IDENTITY, LEAKY, RELU, RELU6, SILU, VARIANTS, noise
from torch import Tensor

from msat_det.graph.ops import Activation
from msat_det.spiking.masks import bernoulli
from msat_det.spiking.neurons import (
    OVERFLOW,
    Chances,
    Msat,
    Neuron,
    State,
    adaptive_threshold,
    dynamic_evoked_threshold,
    dynamic_tracking_threshold,
    new_state,
    step,
)

few = settings(max_examples=60, deadline=None, derandomize=True)


def neuron(theta: float | Sequence[float] | Tensor = 1.0, activation: Activation = RELU, **options: Any) -> Neuron:
    return Neuron(torch.as_tensor(theta), activation, **options)


def run(neuron: Neuron, currents: Tensor, chances: Chances | None = None) -> tuple[Tensor, Tensor, State]:
    """Spikes and outputs, both (T, B, C, …) like the currents, and the state at the end."""
    state = new_state(neuron, currents[0], with_output=True)
    results = [step(neuron, state, x, t, chances) for t, x in enumerate(currents)]
    return *(torch.stack(part) for part in zip(*results, strict=True)), state


GOLDEN = """
0: 2.000000 .500000 0 .500000 .500000 | 1: .801656 1.000000 1 .198344 .349172 | 2: .764923 .698344 0 .698344 .465562 |
3: .864890 1.198344 1 .333454 .432535 | 4: .777152 .833454 1 .056302 .357289 | 5: .731610 .556302 0 .556302 .390457 |
6: .845896 1.056302 1 .210406 .364736 | 7: .764110 .710406 0 .710406 .407945 | 8: .885347 1.210406 1 .325059 .398735 |
9: .783298 .825059 1 .041761 .363038"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_trace(dtype: torch.dtype) -> None:
    msat = neuron(2.0, adaptive=Msat())
    x = torch.full((1, 1), 0.5, dtype=dtype)
    state = new_state(msat, x, with_output=True)
    for row in GOLDEN.replace("\n", "").split("|"):
        t, values = row.split(":")
        before = state.v + x
        theta = adaptive_threshold(msat, state, x, before, int(t)).item()
        s, y = step(msat, state, x, int(t))
        assert y.item() == pytest.approx(s.item() * theta, abs=1e-6)
        got = [theta, before.item(), s.item(), state.v.item(), state.mean.item()]
        assert got == pytest.approx([float(value) for value in values.split()], abs=1e-6)


def test_thresholds_are_eqs_16_and_17() -> None:
    m = Msat(alpha=0.3, k_a=0.7, k_i=0.4, C=2.0, tau_rd=1.3)
    delta = torch.tensor([-300.0, -2, -0.1, 0, 0.5, 3, 300], dtype=torch.float64)
    dtt = [0.3 * d - 1.5 + 0.7 * (math.log1p(math.exp(d / 0.4)) if d < 200 else d / 0.4) for d in delta.tolist()]
    assert dynamic_tracking_threshold(m, delta, -1.5).tolist() == pytest.approx(dtt, rel=1e-9)
    det = [1.3 * math.exp(-d / 2.0) for d in delta.tolist()]
    assert dynamic_evoked_threshold(m, delta).tolist() == pytest.approx(det, rel=1e-9)


@dataclass
class Moment:
    """One timestep of the scalar neuron. slack: distance of its decision to a tie, in units of θ(t)."""

    s: int
    y: float
    v: float
    slack: float


def scalar(n: Neuron, theta_max: float, initial: float, currents: Sequence[float]) -> list[Moment]:
    """The equations for one neuron, word by word, in Python's floats."""
    track = n.rounding == "track"
    start = 0.0 if track else initial * theta_max
    v, o, potentials, moments, last_before = start, 0.0, [], [], None
    for t, x in enumerate(currents):
        before, theta = v + x, theta_max
        if n.adaptive and t >= 1:
            m = n.adaptive
            unit = theta_max if m.normalised else 1.0
            delta = (v - sum(potentials) / len(potentials)) / unit
            rest = m.rest if m.rest is not None else -1.0 if m.normalised else -theta_max
            drive = (before - last_before if m.drive == "depolarisation" else x) / unit
            dtt = m.tau_mp * (m.alpha * delta + rest + m.k_a * math.log(1 + math.exp(delta / m.k_i)))
            det = m.tau_rd * math.exp(-drive / m.C) * (m.tau_rd if m.twice else 1.0)
            theta = theta_max / (1 + math.exp(-((dtt if m.dtt else 0.0) + (det if m.det else 0.0))))
        stage = n.stages[min(t, len(n.stages) - 1)]
        theta *= stage
        goal = min(before, (t + 1) * n.activation.upper - o + start)  # sums above the upper bound wait
        full, most = theta_max * stage, 16 * n.gamma / stage  # so many spikes of full height are sent at once
        lacking, slack = max(goal, start - o) if n.signed else goal, 1.0
        late = bool(n.adaptive) and abs(lacking) >= most * full
        if n.adaptive:
            slack = abs(abs(lacking) / full - most)
            theta, goal = (full, lacking) if late else (theta, goal)
        level = goal / theta + (0.5 if track else 0.0)
        s, slack = math.floor(level), min(slack, abs(level - round(level)))
        least = 0
        if n.signed:
            slack = min(slack, abs((goal - start) / theta + n.margin))
            if goal - start < -n.margin * theta:
                least = -math.floor(o / theta + 1e-6)
                slack = min(slack, abs(o / theta - round(o / theta)) if n.adaptive and o else 1.0)
        s = max(least, s)
        if not late and (n.adaptive or abs(s) < most):
            s = max(-n.gamma, min(s, n.gamma))
        v, o = before - s * theta, o + s * theta
        potentials.append(v)
        last_before = before
        moments.append(Moment(s, s * theta, v, slack))
    return moments


SCALAR = {
    "plain": {},
    "half": {"initial": 0.5},
    "signed": {"signed": True, "initial": 0.5},
    "signed from rest": {"signed": True},
    "signed, wide margin": {"signed": True, "initial": 0.5, "margin": 0.8},
    "bursts": {"gamma": 3},
    "bursts, signed, rounding": {"gamma": 3, "signed": True, "rounding": "track"},
    "rounding": {"rounding": "track"},
    "stages": {"stages": (2.0, 1.0, 0.5, 0.25), "rounding": "track", "signed": True, "gamma": 15},
    "stages, fixed": {"stages": (1.5, 1.0, 0.7), "initial": 0.5},
}


@pytest.mark.parametrize("options", SCALAR.values(), ids=SCALAR)
@pytest.mark.parametrize("adaptive", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("activation", [RELU, RELU6], ids=["relu", "relu6"])
def test_step_is_the_scalar_neuron(options: dict, adaptive: Msat | None, activation: Activation) -> None:
    """Currents differ by neuron and time; a neuron is compared up to its first decision within 1e-4 θ of a tie."""
    thetas = [0.4, 1.1, 2.3, 4.7]
    n = neuron(thetas, activation, adaptive=adaptive, **options)
    offset = torch.linspace(-0.4, 1.6, 6)[:, None] * (3 if activation is RELU6 else 1)
    currents = noise(24, 6, 4, mean=0.0) * torch.tensor(thetas) + offset * torch.tensor(thetas)
    s, y, _ = run(n, currents)
    compared = 0
    for b in range(6):
        for c, theta in enumerate(thetas):
            moments = scalar(n, theta, n.initial, currents[:, b, c].tolist())
            safe = next((t for t, moment in enumerate(moments) if moment.slack < 1e-4), len(moments))
            assert s[:safe, b, c].tolist() == [moment.s for moment in moments[:safe]]
            assert y[:safe, b, c].tolist() == pytest.approx([moment.y for moment in moments[:safe]], abs=1e-4 * theta)
            compared += safe
    assert compared > 0.9 * s.numel()


@st.composite
def any_neuron(draw: st.DrawFn) -> Neuron:
    """Any option of a soft-reset neuron, three channels, the last one dead."""
    theta = torch.tensor([draw(st.floats(0.2, 4)), draw(st.floats(0.2, 4)), 0.0])
    layer = draw(st.booleans())
    return Neuron(
        theta[0] if layer else theta,
        draw(st.sampled_from([RELU, RELU6, replace(RELU6, upper=0.7), IDENTITY, LEAKY, SILU])),
        signed=draw(st.booleans()),
        margin=draw(st.sampled_from([0.5, 0.75, 1.5])),
        gamma=draw(st.integers(1, 8)),
        initial=draw(st.sampled_from([0.0, 0.5, torch.tensor([0.2, 0.9, -0.4])])),
        rounding=draw(st.sampled_from(["fixed", "track"])),
        stages=draw(st.sampled_from([(1.0,), (2.0, 1.0, 0.5), (0.5, 3.0)])),
        bias=draw(st.sampled_from([None, torch.tensor([0.1, -0.2, 0.3])])),
        confidence=draw(st.sampled_from([1.0, 0.4])),
        adaptive=draw(st.sampled_from(list(VARIANTS.values()))),
    )


def start_of(n: Neuron, currents: Tensor) -> Tensor:
    return new_state(n, currents[0], with_output=True).v


def what_lacks(n: Neuron, currents: Tensor, outputs: Tensor) -> Tensor:
    """Before each spike, by how much the output sum is behind the activation of all input, (T, B, C, …); with what the
    neuron starts with. Below 0 only as far as it may take back."""
    steps = torch.arange(1, len(currents) + 1, dtype=currents.dtype).reshape(-1, *([1] * (currents.dim() - 1)))
    sent = torch.cat((torch.zeros_like(outputs[:1]), outputs[:-1]))
    if n.tracking:
        return steps * n.activation.fn(currents.cumsum(0) / steps) - sent
    lacking = (currents.cumsum(0) / steps).clamp(max=n.activation.upper) * steps - sent + start_of(n, currents)
    return torch.maximum(lacking, start_of(n, currents) - sent if n.signed else torch.zeros_like(sent))


@few
@given(any_neuron(), st.integers(0, 1 << 20), st.floats(-0.5, 1.5), st.sampled_from([0.3, 1.0, 5.0]))
def test_what_holds_for_every_neuron(n: Neuron, seed: int, mean: float, spread: float) -> None:
    currents = spread * noise(20, 2, 3, 5, seed=seed, mean=mean, dtype=torch.float64)
    s, y, state = run(n, currents, Chances(seed, [3, 4], 1))
    outputs = y.cumsum(0)
    steps = torch.arange(1, 21, dtype=torch.float64).reshape(-1, 1, 1, 1)
    bias = 0.0 if n.bias is None else n.bias.reshape(-1, 1).double()
    inputs = (currents + bias).sum(0)

    # charge is conserved: what is neither sent nor still there never was
    charge = 20 * n.activation.fn(inputs / 20) if n.tracking else start_of(n, currents) + inputs
    assert torch.allclose(charge, outputs[-1] + state.v, atol=1e-6)
    assert torch.allclose(outputs[-1], state.o, atol=1e-6)

    assert s.isfinite().all()
    assert y.isfinite().all()
    assert torch.equal(s, s.round())
    theta = n.theta.double().reshape(-1, 1) if n.theta.dim() else n.theta.double()
    stages = torch.tensor([n.stage(t) for t in range(20)], dtype=torch.float64).reshape(-1, 1, 1, 1)
    heights, full = stages * theta, OVERFLOW * n.gamma * theta
    lacking = what_lacks(n, currents + bias, outputs)
    usual = lacking.abs() < full - heights  # all but an overflow
    assert (s.abs() <= n.gamma)[usual].all()
    assert (y.abs() <= n.gamma * heights + 1e-9)[usual].all()
    alive = (n.theta > 0).nonzero().flatten() if n.theta.dim() else slice(None)
    if n.confidence == 1:  # what is left is less than an overflow, or than a spike
        assert ((lacking - y).abs() <= torch.maximum(full, heights) + 1e-6)[:, :, alive].all()
    if n.activation.rectified:
        assert outputs.min() >= -1e-9  # a neuron takes back only what it has given
    if not n.signed and not n.tracking:
        assert s.min() >= 0
    if n.adaptive is None:
        assert torch.allclose(y, s * heights, atol=1e-9)
    if n.theta.dim():
        assert not s[:, :, 2].any()  # dead
    if n.activation.upper < math.inf:
        # the mean stays below the upper bound, up to the rounding that the neuron starts with or does in every step
        slack = heights / 2 if n.offset else start_of(n, currents).clamp(min=0)
        assert (outputs <= steps * n.activation.upper + slack + 1e-6).all()


@pytest.mark.parametrize("gamma", [1, 5])
@pytest.mark.parametrize("adaptive", VARIANTS.values(), ids=VARIANTS)
def test_relu6_never_means_more_than_6(gamma: int, adaptive: Msat | None) -> None:
    """Starting from rest with flooring there is no rounding either."""
    currents = noise(40, 3, 4, mean=7.0) * 3
    for theta in (0.7, 4.0, 9.0):
        _, y, _ = run(neuron(theta, RELU6, gamma=gamma, adaptive=adaptive), currents)
        means = y.cumsum(0) / torch.arange(1, 41).reshape(-1, 1, 1)
        assert means.max() <= 6 * (1 + 1e-6)
    constant = torch.full((40, 1, 1), 8.0)
    _, y, _ = run(neuron(1.0, RELU6, gamma=10, initial=0.5), constant)
    assert y.sum() == 6 * 40


def test_an_input_above_6_that_falls_is_followed_down() -> None:
    """ReLU6 of the running mean, as for the tracking neuron: what lay above 6 weighs in as soon as the mean falls."""
    currents = torch.cat((torch.full((10, 1, 1), 9.0), torch.full((30, 1, 1), 1.0))).double()
    _, y, _ = run(neuron(0.5, RELU6, gamma=100, initial=0.5, signed=True), currents)
    n = torch.arange(1, 41).reshape(-1, 1, 1)
    expected = n * F.relu6(currents.cumsum(0) / n)
    assert (y.cumsum(0) - expected).abs().max() <= 0.25


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
@pytest.mark.parametrize("adaptive", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("options", SCALAR.values(), ids=SCALAR)
def test_dead_channels_never_fire(options: dict, adaptive: Msat | None, scale: float) -> None:
    currents = scale * noise(16, 2, 2, 8, mean=0.0)
    for theta, dead in ((torch.zeros(()), slice(None)), (torch.tensor([0.0, scale]), 0)):
        for activation in (RELU, RELU6, IDENTITY):
            s, y, state = run(neuron(theta, activation, adaptive=adaptive, **options), currents)
            assert not s[:, :, dead].any()
            assert not y[:, :, dead].any()
            assert y.isfinite().all()
            assert state.v.isfinite().all()


@pytest.mark.parametrize("adaptive", [v for v in VARIANTS.values() if v], ids=[k for k in VARIANTS if k != "constant"])
@pytest.mark.parametrize("theta", [1e-3, 300.0])
def test_thresholds_far_from_the_papers_give_no_nan(adaptive: Msat, theta: float) -> None:
    """Raw volts enter exp, softplus and sigmoid: layers with large activations must not divide by a zero threshold."""
    currents = torch.cat((noise(10, 1, 1, 64) * theta, torch.zeros(10, 1, 1, 64), noise(10, 1, 1, 64, mean=-9) * theta))
    for options in SCALAR.values():
        s, y, state = run(neuron(theta, adaptive=adaptive, **options), currents)
        assert s.isfinite().all()
        assert y.isfinite().all()
        assert state.v.isfinite().all()


@pytest.mark.parametrize("activation", [RELU, RELU6], ids=["relu", "relu6"])
@pytest.mark.parametrize("gamma", [1, 3])
def test_a_tracking_neuron_is_the_signed_neuron_that_starts_at_half(activation: Activation, gamma: int) -> None:
    currents = 2 * noise(60, 4, 3, 50, dtype=torch.float64)
    thetas = torch.tensor([0.5, 1.0, 4.0])
    signed, *_ = run(Neuron(thetas, activation, signed=True, initial=0.5, gamma=gamma), currents)
    tracking, *_ = run(Neuron(thetas, replace(activation, rectified=False), gamma=gamma), currents)
    assert torch.equal(signed, tracking)
    assert (signed < 0).any()


@pytest.mark.parametrize("activation", [IDENTITY, LEAKY, SILU, Activation("tanh", torch.tanh)], ids=lambda a: a.name)
def test_a_tracking_neuron_stays_within_half_a_threshold(activation: Activation) -> None:
    currents = 2 * noise(60, 4, 3, 50, mean=-0.2, dtype=torch.float64)
    _, y, _ = run(Neuron(torch.tensor(0.3), activation, gamma=1000), currents)
    n = torch.arange(1, 61).reshape(-1, 1, 1, 1)
    assert (y.cumsum(0) - n * activation.fn(currents.cumsum(0) / n)).abs().max() <= 0.15 + 1e-9


def test_fixed_and_track_agree_on_a_constant_threshold() -> None:
    for options in ({}, {"signed": True}, {"gamma": 4}, {"signed": True, "gamma": 3, "margin": 0.9}):
        currents = 2 * noise(60, 4, 1, 50, dtype=torch.float64)
        fixed, *_ = run(neuron(1.3, initial=0.5, rounding="fixed", **options), currents)
        track, *_ = run(neuron(1.3, initial=0.5, rounding="track", **options), currents)
        assert torch.equal(fixed, track)


def test_rounding_without_bias_where_the_threshold_varies() -> None:
    """A fixed start of θ/2 rounds a finer threshold up by more than half of it: only ``track`` stays within θ(t)/2."""
    currents = torch.linspace(0.01, 0.99, 2001).expand(8, 1, 1, -1)
    stages = (1.0, 1.0, 0.5, 0.1)
    errors = {}
    for rounding in ("fixed", "track"):
        n = neuron(1.0, initial=0.5, rounding=rounding, signed=True, gamma=20, stages=stages)
        _, y, _ = run(n, currents)
        errors[rounding] = (y.sum(0) - currents.sum(0)).mean().item()
    assert abs(errors["track"]) < 0.01
    assert errors["fixed"] > 0.3


def spikes_of(n: Neuron, currents: Sequence[float]) -> list[int]:
    return run(n, torch.tensor(currents).reshape(-1, 1, 1))[0].flatten().tolist()


def test_margin_is_how_far_below_its_start_a_neuron_takes_back() -> None:
    currents = [1.0, -0.6, -0.2, -0.3, -9.0]  # V⁺ − V(−1): 1, −.6, −.8, −1.1, … where nothing is taken back
    signed = {"signed": True, "initial": 0.5}
    assert spikes_of(neuron(1.0, margin=0.5, **signed), currents) == [1, -1, 0, 0, 0]
    assert spikes_of(neuron(1.0, margin=0.7, **signed), currents) == [1, 0, -1, 0, 0]
    assert spikes_of(neuron(1.0, margin=1.0, **signed), currents) == [1, 0, 0, -1, 0]
    assert spikes_of(neuron(1.0, margin=1.0, signed=True, rounding="track"), currents) == [1, 0, 0, -1, 0]


def test_a_signed_neuron_takes_back_only_what_it_has_given() -> None:
    currents = [2.0, 2.0, -9.0, -9.0, 20.0, -1.0]
    assert spikes_of(neuron(1.0, signed=True, gamma=3), currents) == [2, 2, -3, -1, 3, 2]
    coarse = neuron(1.0, signed=True, gamma=3, stages=(0.5, 1.0))  # .5 was given: no whole threshold to take back
    assert spikes_of(coarse, [0.5, -9.0]) == [1, 0]
    fine = neuron(1.0, signed=True, gamma=3, stages=(1.0, 0.25))
    assert spikes_of(fine, [1.0, -9.0, -9.0]) == [1, -3, -1]


def test_stages_multiply_the_threshold_and_the_last_one_is_held() -> None:
    _, y, _ = run(neuron(2.0, stages=(2.0, 1.0, 0.25)), torch.full((6, 1, 1), 5.0))
    assert y.flatten().tolist() == [4.0, 2.0, 0.5, 0.5, 0.5, 0.5]
    adaptive = neuron(2.0, stages=(2.0, 0.5), adaptive=Msat())
    _, y, _ = run(adaptive, torch.full((2, 1, 1), 9.0))
    plain = run(neuron(2.0, adaptive=Msat()), torch.full((2, 1, 1), 9.0))[1]
    assert y[0].item() == 2 * plain[0].item()  # θ_max at t = 0 whatever the variant


def test_reset_to_zero_loses_what_lies_above_the_threshold() -> None:
    zero = neuron(1.0, reset="zero")
    s, y, state = run(zero, torch.full((4, 1, 1), 1.75))
    assert s.flatten().tolist() == [1, 1, 1, 1]
    assert y.sum() == 4
    assert state.v.item() == 0
    assert spikes_of(zero, [0.6, 0.6, 0.6, 0.6]) == [0, 1, 0, 1]
    assert spikes_of(neuron(1.0), [0.6, 0.6, 0.6, 0.6, 0.6]) == [0, 1, 0, 1, 1]
    taking_back = neuron(1.0, reset="zero", signed=True, gamma=2)
    assert spikes_of(taking_back, [2.0, -1.2, 0.0, 0.0]) == [2, -2, 0, 0]
    again = neuron(1.0, reset="zero", signed=True, gamma=1)
    assert spikes_of(again, [1.0, 1.0, -1.2, 0.0, 0.0]) == [1, 1, -1, 0, 0]  # a spike back resets too


def test_bias_enters_at_every_step_per_channel() -> None:
    n = neuron(1.0, bias=torch.tensor([0.25, -1.0]))
    s, *_ = run(n, torch.zeros(8, 1, 2, 3))
    assert s.sum(0).tolist() == [[[2.0] * 3, [0.0] * 3]]


def test_initial_potential_per_channel() -> None:
    s, *_ = run(neuron([2.0, 2.0, 2.0], initial=torch.tensor([0.0, 0.5, 0.75])), torch.full((1, 1, 3), 0.6))
    assert s.tolist() == [[[0, 0, 1]]]


def test_imbalanced_threshold_gives_leaky_relu() -> None:
    """Channel-norm's neuron fires −1 at −θ/slope (Kim et al. 2020), so that its mean is slope · x."""
    n = replace(neuron(0.5, LEAKY), imbalanced=True)
    assert spikes_of(n, [-2.0, -2.9, -0.2, 0.0, -5.0]) == [0, 0, -1, 0, -1]
    assert spikes_of(n, [0.5, 0.4, 0.2]) == [1, 0, 1]
    constant = torch.linspace(-4.9, 0.49, 40).repeat(200, 1, 1)
    _, y, _ = run(n, constant)
    assert (y.mean(0) - F.leaky_relu(constant[0], 0.1)).abs().max() <= 0.5 / 200 + 1e-5


def test_normalised_is_scale_equivariant_and_absolute_is_not() -> None:
    currents = noise(40, 2, 3, 20)
    thetas = torch.tensor([0.5, 1.0, 3.0])
    for adaptive in (Msat(normalised=True), Msat(normalised=True, drive="depolarisation", alpha=0.3, rest=-0.7)):
        for options in ({}, {"signed": True, "gamma": 3, "rounding": "track"}):
            small, y, _ = run(Neuron(thetas, RELU, adaptive=adaptive, **options), currents)
            large, y_large, _ = run(Neuron(1024 * thetas, RELU, adaptive=adaptive, **options), 1024 * currents)
            assert torch.equal(small, large)
            assert torch.equal(1024 * y, y_large)
            double = currents.double()  # 1000 is no power of two: rounding differs, double precision has no ties here
            small, y, _ = run(Neuron(thetas.double(), RELU, adaptive=adaptive, **options), double)
            large, y_large, _ = run(Neuron(1000 * thetas.double(), RELU, adaptive=adaptive, **options), 1000 * double)
            assert torch.equal(small, large)
            assert torch.allclose(1000 * y, y_large)
    small, *_ = run(Neuron(thetas, RELU, adaptive=Msat()), currents)
    large, *_ = run(Neuron(1024 * thetas, RELU, adaptive=Msat()), 1024 * currents)
    assert not torch.equal(small, large)


def test_units_of_each_channels_own_scale() -> None:
    """One population with two channel scales is two populations."""
    adaptive = Msat(normalised=True)
    currents = noise(20, 2, 2, 30) * torch.tensor([1.0, 8.0]).reshape(2, 1)
    together, *_ = run(Neuron(torch.tensor([1.0, 8.0]), RELU, adaptive=adaptive), currents)
    for c, theta in enumerate((1.0, 8.0)):
        alone, *_ = run(Neuron(torch.tensor(theta), RELU, adaptive=adaptive), currents[:, :, c : c + 1])
        assert torch.equal(together[:, :, c : c + 1], alone)


def test_confidence_keeps_or_loses_the_charge_of_early_spikes() -> None:
    currents = torch.full((18, 1, 1), 1.0)
    chances = Chances(0, [0], 0)
    keep, _, state = run(neuron(1.0, confidence=0.0, drop="keep", gamma=20), currents, chances)
    assert keep.flatten().tolist() == [0] * 16 + [17, 1]
    assert state.v.item() == 0
    lossy, _, state = run(neuron(1.0, confidence=0.0, drop="lossy", gamma=20), currents, chances)
    assert lossy.flatten().tolist() == [0] * 16 + [1, 1]
    assert state.v.item() == 0
    for drop, after in (("keep", 1.75), ("lossy", 0.0)):  # reset to zero: a lost spike resets, a kept one does not
        _, _, state = run(neuron(1.0, confidence=0.0, drop=drop, reset="zero"), torch.full((1, 1, 1), 1.75), chances)
        assert state.v.item() == after


def test_confidence_drops_spikes_at_its_rate() -> None:
    currents = torch.full((20, 2, 1, 4000), 1.0)
    s, *_ = run(neuron(1.0, confidence=0.392, drop="lossy"), currents, Chances(1, [5, 6], 2))
    assert s[16:].mean() == 1
    rates = s[:16].mean((1, 2, 3))
    assert (rates - 0.392).abs().max() < 5 * (0.392 * 0.608 / 8000) ** 0.5
    assert s[:16].mean().item() == pytest.approx(0.392, abs=5 * (0.392 * 0.608 / 128000) ** 0.5)
    pairs = torch.corrcoef(s[:16, 0, 0])
    assert (pairs - torch.eye(16)).abs().max() < 5 / 4000**0.5  # timesteps are independent
    neighbours = torch.corrcoef(torch.stack((s[:16, 0, 0, 1:].flatten(), s[:16, 0, 0, :-1].flatten())))[0, 1]
    assert abs(neighbours) < 5 / 64000**0.5


def test_masks_depend_on_seed_image_site_and_time_alone() -> None:
    like = torch.zeros(3, 4, 5, 6)
    masks = bernoulli(0.5, 1, [11, 12, 13], 2, 3, like)
    assert torch.equal(masks[1:2], bernoulli(0.5, 1, [12], 2, 3, like[:1]))
    assert torch.equal(masks.flip(0), bernoulli(0.5, 1, [13, 12, 11], 2, 3, like))
    last = bernoulli(0.5, 1, [11, 12, 13], 2, 3, like.contiguous(memory_format=torch.channels_last))
    assert torch.equal(masks, last)
    others = [(2, [11], 2, 3), (1, [12], 2, 3), (1, [11], 3, 3), (1, [11], 2, 4)]
    for seed, images, site, t in others:
        same = (bernoulli(0.5, seed, images, site, t, like[:1]) == masks[:1]).float().mean()
        assert 0.25 < same < 0.75
    assert bernoulli(1.0, 0, [0, 1, 2], 0, 0, like).all()
    assert not bernoulli(0.0, 0, [0, 1, 2], 0, 0, like).any()


def test_confidence_does_not_depend_on_the_batch() -> None:
    currents = noise(20, 3, 2, 30, mean=0.6)
    n = neuron(1.0, confidence=0.4)
    together, *_ = run(n, currents, Chances(7, [21, 22, 23], 1))
    for b, image in enumerate((21, 22, 23)):
        alone, *_ = run(n, currents[:, b : b + 1], Chances(7, [image], 1))
        assert torch.equal(together[:, b : b + 1], alone)


# ---- overflow


def test_a_neuron_that_cannot_keep_up_empties_itself() -> None:
    assert spikes_of(neuron(1.0), [2.0] * 17) == [1] * 14 + [16, 1, 1]
    assert spikes_of(neuron(1.0, gamma=2), [4.0] * 17) == [2] * 14 + [32, 2, 2]
    assert spikes_of(neuron(1.0, rounding="track"), [2.0] * 17) == [1] * 14 + [16, 1, 1]
    assert spikes_of(neuron(1.0, IDENTITY), [-2.0] * 17) == [-1] * 14 + [-16, -1, -1]
    assert spikes_of(neuron(1.0, stages=(1.0, 0.5)), [8.0, 6.9, 0.0, 0.0]) == [1, 1, 1, 1]  # 14.9, 13.9 … θ
    assert spikes_of(neuron(1.0, stages=(1.0, 0.5)), [8.0, 9.25, 0.0]) == [1, 32, 0]  # of half the height
    assert spikes_of(neuron(1.0, RELU6, gamma=1), [50.0, 50.0, 0.0]) == [1, 1, 16]  # of 3 · 6
    assert spikes_of(neuron(0.1, RELU6, gamma=1), [50.0, 50.0, 0.0]) == [60, 60, 60]


def test_a_signed_neuron_takes_back_at_once_what_it_has_given_too_much() -> None:
    signed = neuron(1.0, signed=True, gamma=1)
    assert spikes_of(signed, [40.0, -10.5, -9.0]) == [40, -1, -19]
    assert spikes_of(signed, [40.0, -900.0]) == [40, -40]
    assert spikes_of(signed, [3.0, 3.0, 3.0, -90.0, 0.0]) == [1, 1, 1, -1, -1]  # no more than three: one after another
    assert spikes_of(neuron(1.0, signed=True, gamma=1, rounding="track"), [40.0, -900.0]) == [40, -40]


def test_an_overflow_of_an_adaptive_threshold_is_of_full_height() -> None:
    """θ(t) may be next to nothing: the paper's form on θ_max = 300."""
    _, y, _ = run(neuron(300.0, adaptive=Msat()), torch.full((40, 1, 1), 1000.0))
    late = y.flatten() > 301
    assert late.any()
    assert ((y.flatten()[late] / 300) % 1).abs().max() == 0
    assert 1000 * 40 - y.sum() < OVERFLOW * 300


FAMILIES = {
    "plain": {},
    "half": {"initial": 0.5},
    "signed": {"signed": True, "initial": 0.5},
    "bursts": {"gamma": 3, "signed": True, "rounding": "track"},
    "reset to zero": {"reset": "zero"},
    "reset to zero, signed": {"reset": "zero", "signed": True, "gamma": 2, "initial": 0.5},
    "stages": {"stages": (4.0, 2.0, 0.5), "rounding": "track", "gamma": 2},
    "window": {"gamma": 8, "window": 8},
    "lossy": {"confidence": 0.5, "drop": "lossy"},
}


@pytest.mark.parametrize("adaptive", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("activation", [RELU, RELU6, LEAKY, SILU], ids=lambda a: a.name)
def test_the_error_falls_as_one_over_n_for_any_input(
    options: dict, adaptive: Msat | None, activation: Activation
) -> None:
    """Activations from a hundredth to a hundred thresholds, at once or in gusts, after a start of another sign."""
    theta, T = 0.3, 600
    levels = torch.tensor([-30.0, -3.0, -0.3, 0.003, 0.03, 0.1, 0.3, 0.5, 1.0, 3.0, 30.0])
    currents = levels.expand(T, 1, 1, -1).clone()
    gusts = torch.where((torch.arange(T) % 7 == 3).reshape(-1, 1, 1, 1), 7 * currents, 0.0)
    currents = torch.cat((currents, gusts, currents), 2)
    currents[:20, :, 2] *= -1
    n = neuron(theta, activation, adaptive=adaptive, **options)
    chances = Chances(0, [0], 0)
    _, y, _ = run(n, currents.double(), chances)
    wanted = T * activation.fn(currents.double().sum(0) / T)
    bound = OVERFLOW * n.gamma * theta + theta * max(n.stages)
    lost = currents[:16].clamp(min=0).sum(0) if n.confidence < 1 else 0.0
    behind = wanted - y.sum(0)
    assert (behind <= bound + lost + 1e-6).all()
    ahead = -behind[:, :2]  # what an unsigned neuron has sent in a gust or a start it can't take back
    gust = 7 * levels.clamp(min=0) * 2
    assert (ahead <= bound + gust + 1e-6).all()


@pytest.mark.parametrize("gamma", [1, 3])
def test_an_imbalanced_neuron_follows_leaky_relu_of_the_mean_whatever_comes(gamma: int) -> None:
    """Gusts of both signs: without its sums of input and output it would add up what each sign should have weighed."""
    n = replace(neuron(0.5, LEAKY, gamma=gamma), imbalanced=True)
    generator = torch.Generator().manual_seed(0)
    currents = (
        torch.randn(400, 2, 3, 20, generator=generator) * 20 * (torch.rand(400, 2, 3, 20, generator=generator) < 0.1)
    )
    currents += torch.linspace(-4, 4, 20)
    _, y, _ = run(n, currents.double())
    wanted = 400 * F.leaky_relu(currents.double().mean(0), 0.1)
    assert (y.sum(0) - wanted).abs().max() <= OVERFLOW * gamma * 0.5 + 0.5


def test_a_timestep_on_a_device_is_not_read_on_the_host() -> None:
    bias = torch.arange(6.0).reshape(3, 2)
    neuron = Neuron(theta=torch.ones(()), activation=RELU, bias=bias, stages=(4.0, 2.0, 1.0))
    for t in range(5):
        last = min(t, 2)
        assert neuron.stage(torch.tensor(t)) == neuron.stage(t) == (4.0, 2.0, 1.0)[last]
        assert torch.equal(neuron.bias_at(torch.tensor(t)), neuron.bias_at(t))
        assert torch.equal(neuron.bias_at(t), bias[last])
    with StandIn() as there:
        t = torch.tensor(1, device=there.device)
        moved = replace(neuron, bias=bias.to(there.device))
        there.waits.clear()
        moved.bias_at(t), moved.stage(t)
        assert there.waits == []
