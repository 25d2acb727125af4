"""The Triton kernel against ``neurons.step``: on a GPU where there is one, else by Triton's interpreter on the CPU."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.neurons import LEAKY, RELU, SILU, VARIANTS, noise
from support.scans import (
    ACTIVATIONS,
    FORMATS,
    OPTIONS,
    SHAPE,
    STEPS,
    THETAS,
    counts,
    currents_for,
    fanout,
    reference,
    scanned,
    ties,
)
from torch import Tensor

from msat_det.graph.ops import Activation
from msat_det.spiking import kernels
from msat_det.spiking.kernels import Scan
from msat_det.spiking.neurons import Chances, Msat, Neuron, spikes

pytest.importorskip("triton")
from msat_det.spiking.kernels import triton_scan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CHANCES = Chances(seed=7, images=[11, 12], site=3)
CURVED = {
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "mish": F.mish,
}
FOLLOWED = {name: Activation(name, fn, curved=True) for name, fn in CURVED.items()} | {"leakyrelu": LEAKY}
ADAPTIVE = [name for name, adaptive in VARIANTS.items() if adaptive]


@pytest.fixture(autouse=True)
def in_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "backend", lambda neuron, x: "triton")


def laid_out(currents: Tensor, format: str) -> Tensor:
    flat = currents.flatten(0, 1).contiguous(memory_format=FORMATS[format])
    return flat.unflatten(0, currents.shape[:2]).to(DEVICE)


def check(neuron: Neuron, currents: Tensor, exact: bool, least: float = 0.95, close: float = 2e-6) -> None:
    """Outputs, potentials and counts of the kernel are those of the step: to the bit, or to 1e-6 but for ties."""
    s, y, v = reference(neuron, currents, CHANCES)
    kept = torch.ones(SHAPE, dtype=torch.bool) if exact else ~ties(neuron, currents)
    assert kept.float().mean() > least
    bound = 0.0 if exact else close
    x = laid_out(currents, "channels_last")
    scan = Scan(neuron, x[0], fanout(), False, CHANCES)
    got = scanned(scan, x, 5, in_place=True).cpu()
    assert ((got - y).abs() / y.abs().clamp(min=1.0))[:, kept].max() <= bound
    assert torch.equal(got[:, kept].sign(), y[:, kept].sign())
    size = v.abs().clamp(min=1.0) * STEPS  # the potential adds up what T outputs round
    assert ((scan.state.v.cpu() - v).abs() / size)[kept].max() <= bound
    if kept.all():
        assert torch.equal(scan.counts.cpu(), counts(spikes(neuron, s)))


@pytest.mark.parametrize(
    ("name", "options"),
    [(a, o) for i, a in enumerate(ACTIVATIONS) for j, o in enumerate(OPTIONS)],
)
def test_constant_thresholds_give_the_bits_of_the_step(name: str, options: str) -> None:
    check(Neuron(THETAS, ACTIVATIONS[name], **OPTIONS[options]), currents_for(), exact=True)


@pytest.mark.parametrize("variant", ADAPTIVE)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("relu", "plain"),
        ("relu", "signed, margin, bursts"),
        ("relu6", "rounding, stages"),
        ("identity", "plain"),
    ],
)
def test_adaptive_thresholds_are_those_of_the_step(name: str, variant: str, options: str) -> None:
    check(Neuron(THETAS, ACTIVATIONS[name], adaptive=VARIANTS[variant], **OPTIONS[options]), currents_for(), False)


@pytest.mark.parametrize("adaptive", [None, Msat(normalised=True)], ids=["constant", "normalised"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("relu", "plain"), ("relu", "signed, margin, bursts"), ("relu", "rounding, stages"), ("identity", "plain")],
)
def test_errors_of_sixteen_full_steps_are_sent_at_once(name: str, options: str, adaptive: Msat | None) -> None:
    """Currents that come as pulses beyond OVERFLOW·γ·θ: the kernel sends them whole, as the step does."""
    pulses = currents_for().clone()
    pulses[3] *= 60
    pulses[9] *= 400
    neuron = Neuron(THETAS, ACTIVATIONS[name], adaptive=adaptive, **OPTIONS[options])
    s, *_ = reference(neuron, pulses)
    assert (s.abs() > neuron.gamma).any()
    check(neuron, pulses, exact=adaptive is None, least=0.75, close=1e-5)  # large bursts are near a tie more often


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("adaptive", [None, Msat(normalised=True)], ids=["constant", "normalised"])
def test_tracking_neurons(name: str, adaptive: Msat | None) -> None:
    neuron = Neuron(THETAS, FOLLOWED[name], gamma=3, adaptive=adaptive)
    check(neuron, currents_for(), exact=name == "leakyrelu" and adaptive is None)


@pytest.mark.parametrize("drop", ["keep", "lossy"])
@pytest.mark.parametrize("options", [{}, {"signed": True, "gamma": 2}], ids=str)
def test_confidence_draws_the_masks_of_the_cpu(options: dict, drop: str) -> None:
    neuron = Neuron(THETAS, RELU, confidence=0.4, drop=drop, **options)
    check(neuron, currents_for(), exact=True)
    kept = reference(neuron, currents_for(), CHANCES)[0][:16].count_nonzero()
    assert kept < reference(replace(neuron, confidence=1.0), currents_for())[0][:16].count_nonzero()


@pytest.mark.parametrize("reset", ["soft", "zero"])
@pytest.mark.parametrize("adaptive", [None, Msat(normalised=True)], ids=["constant", "normalised"])
@pytest.mark.parametrize("slope", [0.1, 0.5])
def test_imbalanced_leaky_neurons(slope: float, adaptive: Msat | None, reset: str) -> None:
    leaky = replace(LEAKY, fn=lambda x: F.leaky_relu(x, slope), slope=slope)
    neuron = Neuron(THETAS, leaky, imbalanced=True, gamma=2, reset=reset, adaptive=adaptive)
    check(neuron, currents_for(), exact=adaptive is None, close=1e-5)
    pulses = currents_for().clone()
    pulses[4], pulses[7] = 60 * pulses[4], -90 * pulses[7]
    check(neuron, pulses, exact=adaptive is None, least=0.6, close=1e-4)


@pytest.mark.parametrize("adaptive", [None, Msat()], ids=["constant", "adaptive"])
@pytest.mark.parametrize("terms", [(4,), (2,), (3, 1)], ids=str)
@pytest.mark.parametrize("options", ["plain", "signed", "rounding, stages", "reset to zero, signed"])
def test_powers_of_two_are_the_steps(options: str, terms: tuple[int, ...], adaptive: Msat | None) -> None:
    made = Neuron(THETAS, RELU, bits=4, terms=terms, adaptive=adaptive, **{**OPTIONS[options], "gamma": 15})
    check(made, currents_for(), exact=adaptive is None, close=1e-5)
    pulses = currents_for().clone()
    pulses[3] *= 60 if adaptive else 2000  # digits beyond the highest level
    check(made, pulses, exact=adaptive is None, least=0.6, close=1e-4)


def test_one_threshold_for_a_layer_and_a_current_that_is_constant() -> None:
    neuron = Neuron(torch.tensor(0.7), RELU, signed=True, gamma=2, initial=0.5)
    x = currents_for()[:1]
    y = reference(neuron, x.expand(STEPS, *SHAPE))[1]
    currents = x.clone().to(DEVICE)
    scan = Scan(neuron, currents[0], fanout(), True)
    got = torch.cat([scan.run(currents, t, min(5, STEPS - t), in_place=True) for t in range(0, STEPS, 5)])
    assert torch.equal(got.cpu(), y)
    assert torch.equal(currents.cpu(), x)


def test_a_bias_that_differs_over_time() -> None:
    over_time = torch.tensor([[0.4, -0.2, 0.0, 0.1], [0.1, 0.3, -0.5, 0.0], [0.0, 0.1, 0.2, -0.3]])
    neuron = Neuron(THETAS, RELU, bias=over_time.to(DEVICE), gamma=2)
    y = reference(replace(neuron, bias=over_time), currents_for())[1]
    scan = Scan(neuron, currents_for()[0].to(DEVICE), fanout(), True)
    assert torch.equal(scanned(scan, currents_for().to(DEVICE), 2).cpu(), y)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_channels_along_any_axis(axis: int, format: str) -> None:
    theta = torch.linspace(0.4, 2.0, SHAPE[axis])
    neuron = Neuron(theta, RELU, initial=theta / 4, bias=theta / 10, axis=axis)
    y = reference(neuron, currents_for())[1]
    x = laid_out(currents_for(), format)
    scan = Scan(neuron, x[0], fanout(), True)
    assert torch.equal(scanned(scan, x, 5).cpu(), y)


def test_other_shapes_and_strides() -> None:
    """(B, C) and (B, C, L) populations, one pixel, several blocks of neurons, a slice that is not contiguous."""
    neuron = Neuron(THETAS, RELU, signed=True, gamma=2)
    for shape in ((2, 4), (2, 4, 7), (2, 4, 1, 1), (1, 4, 3, 1), (2, 4, 13, 11)):
        x = noise(6, *shape)
        y = reference(neuron, x)[1]
        scan = Scan(neuron, x[0].to(DEVICE), torch.ones(shape[1:]), True)
        assert torch.equal(scanned(scan, x.to(DEVICE), 4).cpu(), y)
        assert torch.equal(scan.counts[:, 2].cpu(), (y != 0).flatten(2).double().sum((0, 2)))
    wide = noise(6, 2, 4, 5, 18)[..., ::2]
    scan = Scan(neuron, wide[0].to(DEVICE), fanout(), True)
    assert torch.equal(scanned(scan, wide.to(DEVICE), 1, in_place=False).cpu(), reference(neuron, wide)[1])


@pytest.mark.parametrize("activation", [*ACTIVATIONS.values(), SILU], ids=lambda a: a.name)
@pytest.mark.parametrize("adaptive", [None, Msat()], ids=["constant", "adaptive"])
@pytest.mark.parametrize("options", ["plain", "signed, margin, bursts"])
def test_a_nan_gets_through_to_the_counts(activation: Activation, adaptive: Msat | None, options: str) -> None:
    x = currents_for()[:3].clone()
    x[1, 1, 3, 2, 2] = float("nan")
    neuron = Neuron(THETAS, activation, adaptive=adaptive, **OPTIONS[options])
    scan = Scan(neuron, x[0].to(DEVICE), fanout(), False)
    scan.run(x.to(DEVICE), 0, 3)
    assert scan.counts.isnan().any(1).tolist() == [False, True]


@pytest.mark.parametrize("adaptive", [Msat(), Msat(normalised=True)], ids=["volts", "units"])
def test_thresholds_that_all_but_vanish_divide_nothing_by_zero(adaptive: Msat) -> None:
    sizes = torch.tensor([1e-9, 1.0, 1e3]).reshape(3, 1, 1)
    x = (100 * torch.randn(8, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 50) * sizes
    neuron = Neuron(torch.tensor([1e-10, 0.1, 500.0]), RELU, adaptive=adaptive, signed=True, gamma=3)
    scan = Scan(neuron, x[0].to(DEVICE), torch.zeros(3, 4, 4), True)
    assert scan.run(x.to(DEVICE), 0, 8).isfinite().all()


@pytest.mark.parametrize("format", FORMATS)
def test_layouts_chunks_and_in_place_do_not_matter(format: str) -> None:
    neuron = Neuron(THETAS, ACTIVATIONS["relu6"], signed=True, gamma=3, bias=OPTIONS["bias"]["bias"])
    s, y, v = reference(neuron, currents_for())
    for chunk, in_place in ((4, False), (STEPS, True)):
        x = laid_out(currents_for(), format)
        scan = Scan(neuron, x[0], fanout(), True)
        assert torch.equal(scanned(scan, x, chunk, in_place).cpu(), y)
        assert torch.equal(scan.state.v.cpu(), v)
        assert torch.equal(scan.counts.cpu(), counts(s))


@pytest.mark.parametrize("variant", ["constant", "reference"])
def test_runs_and_chunks_give_the_same_bits(variant: str) -> None:
    neuron = Neuron(torch.tensor(1.0), RELU, adaptive=VARIANTS[variant], signed=True, rounding="track")
    x = noise(6, 2, 8, 10, 11).to(DEVICE)
    reach = torch.rand(8, 10, 11, generator=torch.Generator().manual_seed(0))
    results = []
    for chunk in (6, 6, 4):
        scan = Scan(neuron, x[0], reach, True)
        results.append((scanned(scan, x, chunk), scan.state.v, scan.state.o, scan.counts.clone()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0][:3], other[:3], strict=True))
    assert torch.equal(results[0][3], results[1][3])


def test_an_activation_that_the_kernel_has_not_is_worked_out_before_it() -> None:
    softplus = Activation("softplus", F.softplus, curved=True)
    for options in ({"gamma": 3, "bias": OPTIONS["bias"]["bias"]}, {"stages": (2.0, 1.0)}):
        neuron = Neuron(THETAS, softplus, **options)
        assert triton_scan.holds(neuron)
        check(neuron, currents_for(), exact=False)  # the last bits of softplus follow the layout
    made = Neuron(THETAS, softplus, gamma=3, adaptive=VARIANTS["paper"])
    assert triton_scan.holds(made)
    check(made, currents_for(), exact=False)
    x = currents_for()[:1]
    scan = Scan(neuron, x[0].to(DEVICE), fanout(), True)
    got = torch.cat([scan.run(x.to(DEVICE), t, 3) for t in (0, 3)]).cpu()
    assert (got - reference(neuron, x.expand(6, *SHAPE))[1]).abs().max() <= 1e-5


def test_what_is_left_to_the_step() -> None:
    assert not triton_scan.holds(Neuron(THETAS, Activation("softplus", F.softplus, curved=True), adaptive=Msat()))
