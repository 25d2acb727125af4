"""The fused kernel against ``neurons.step``, its exp and softplus, and what runs where there is no compiler."""

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.neurons import IDENTITY, LEAKY, RELU, RELU6, SILU, VARIANTS, noise
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
from msat_det.methods.observe import Site
from msat_det.spiking.kernels import Scan, cpu
from msat_det.spiking.kernels.cpu import library
from msat_det.spiking.neurons import Chances, Msat, Neuron, new_state, spikes, step

ALL = {**ACTIVATIONS, "leakyrelu": LEAKY, "silu": SILU}
HELD = (
    "constant",
    "paper",
    "dtt only",
    "det only",
)  # no current enters their thresholds: f is taken before

needs_kernel = pytest.mark.skipif(library() is None, reason="no C++ compiler here, or MSAT_DET_KERNEL=off")


@needs_kernel
@pytest.mark.parametrize(
    ("name", "variant"),
    [*((a, v) for a in ("leakyrelu", *ACTIVATIONS) for v in VARIANTS), *(("silu", v) for v in HELD)],
)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_scan_is_the_step(name: str, variant: str, options: dict) -> None:
    """Same spikes, outputs, state and counts as ``step``; neurons near a tie are left out (see ``ties``)."""
    neuron = Neuron(THETAS, ALL[name], adaptive=VARIANTS[variant], **options)
    currents = currents_for()
    s, y, v = reference(neuron, currents)
    kept = ~ties(neuron, currents)
    assert kept.float().mean() > 0.95
    for chunk, format in ((1, "contiguous"), (5, "channels_last"), (STEPS, "channels_last")):
        x = currents.flatten(0, 1).contiguous(memory_format=FORMATS[format]).unflatten(0, (STEPS, SHAPE[0]))
        scan = Scan(neuron, x[0], fanout(), with_output=chunk == 5)
        assert scan.backend == "cpu", "this neuron was meant to run in the kernel"
        got = scanned(scan, x, chunk)
        assert (got - y)[:, kept].abs().max() < 1e-4
        assert torch.equal(got[:, kept].sign(), y[:, kept].sign())
        assert (scan.state.v - v)[kept].abs().max() < 1e-3
        if kept.all():
            assert torch.equal(scan.counts, counts(s))


@needs_kernel
@pytest.mark.parametrize("stages", [(1.0,), (2.0, 0.5)])
def test_bursts_by_digits_overflow_as_the_step_does(stages: tuple) -> None:
    """Far beyond γ = 15 the top level is sent, and counted, as often as it takes."""
    neuron = Neuron(THETAS, RELU, bits=4, terms=(4,), gamma=15, stages=stages, rounding="track")
    currents = currents_for().clone()
    currents[4::7] *= 900.0
    s, y, _ = reference(neuron, currents)
    assert s.max() > 16 * 15
    scan = Scan(neuron, currents[0], fanout(), with_output=True)
    assert scan.backend == "cpu"
    kept = ~ties(neuron, currents)
    assert kept.float().mean() > 0.75  # of large numbers more are near a tie
    got = scanned(scan, currents, 5)
    assert ((got - y)[:, kept].abs() <= 1e-4 + 1e-5 * y[:, kept]).all()
    assert scan.counts[:, 0].tolist() == pytest.approx(spikes(neuron, s).sum((0, 2, 3, 4)).tolist(), rel=1e-3)
    plain = Neuron(THETAS, RELU, gamma=15, stages=stages, rounding="track")
    assert torch.equal(reference(plain, currents)[1], y)  # all four digits are sent


@needs_kernel
@pytest.mark.parametrize("slope", [0.1, 0.01])
def test_imbalanced_leaky_neurons(slope: float) -> None:
    leaky = replace(LEAKY, fn=lambda x: F.leaky_relu(x, slope), slope=slope)
    neuron = Neuron(THETAS, leaky, imbalanced=True, gamma=2)
    currents = 0.4 / slope * currents_for(mean=-0.2)
    s, y, _ = reference(neuron, currents)
    kept = ~ties(neuron, currents)
    scan = Scan(neuron, currents[0], fanout(), with_output=True)
    assert scan.backend == "cpu"
    assert (scanned(scan, currents, 4) - y)[:, kept].abs().max() < 1e-4
    assert (s[:, kept] < 0).any()


@needs_kernel
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("variant", ["constant", "reference", "normalised"])
def test_chunks_formats_and_in_place_give_the_same_bits(variant: str, format: str) -> None:
    neuron = Neuron(THETAS, RELU, adaptive=VARIANTS[variant], signed=True, rounding="track")
    x = currents_for().flatten(0, 1).contiguous(memory_format=FORMATS[format]).unflatten(0, (STEPS, SHAPE[0]))
    whole = Scan(neuron, x[0], fanout(), False)
    expected = scanned(whole, x, STEPS)
    for chunk in (1, 2, 3, 5, 16):
        for in_place in (False, True):
            scan = Scan(neuron, x[0], fanout(), False)
            assert torch.equal(scanned(scan, x, chunk, in_place), expected)
            assert torch.equal(scan.counts, whole.counts)
            assert torch.equal(scan.state.v, whole.state.v)
    assert torch.equal(x.contiguous(), currents_for())
    if format == "channels_last":
        plain = scanned(Scan(neuron, currents_for()[0], fanout(), False), currents_for(), 5)
        assert torch.equal(plain, expected)


@pytest.mark.parametrize("kernel", [pytest.param(True, marks=needs_kernel), False], ids=["kernel", "plain"])
@pytest.mark.parametrize("activation", [RELU, SILU], ids=["relu", "silu"])
def test_constant_current(activation: Activation, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One timestep stands for all; it is never overwritten."""
    if not kernel:
        monkeypatch.setattr(cpu, "library", lambda: None)
    neuron = Neuron(THETAS, activation, initial=0.5)
    x = currents_for()[:1].clone()
    repeated = scanned(Scan(neuron, x[0], fanout(), True), x.expand(STEPS, *SHAPE).contiguous(), 5)
    scan = Scan(neuron, x[0], fanout(), True)
    parts = [scan.run(x, t0, min(5, STEPS - t0), in_place=True) for t0 in range(0, STEPS - 1, 5)]
    assert torch.equal(torch.cat(parts), repeated[: sum(map(len, parts))])
    assert torch.equal(x, currents_for()[:1])


@needs_kernel
def test_other_shapes_and_strides() -> None:
    """(B, C) and (B, C, L) populations, one pixel, a slice that is not contiguous."""
    neuron = Neuron(THETAS, RELU, signed=True, gamma=2)
    for shape in ((2, 4), (2, 4, 7), (2, 4, 1, 1), (1, 4, 3, 1)):
        x = noise(6, *shape)
        expected = reference(neuron, x)[1]
        assert torch.equal(scanned(Scan(neuron, x[0], torch.ones(shape[1:]), True), x, 4), expected)
    wide = noise(6, 2, 4, 5, 18)[..., ::2]
    expected = reference(neuron, wide)[1]
    scan = Scan(neuron, wide[0], fanout(), True)
    assert torch.equal(torch.cat([scan.run(wide[t : t + 1], t, 1, in_place=True) for t in range(6)]), expected)


@needs_kernel
@pytest.mark.parametrize("variant", ["constant", "reference"])
def test_threads_do_not_matter(variant: str) -> None:
    neuron = Neuron(torch.tensor(1.0), RELU, adaptive=VARIANTS[variant], signed=True)
    x = noise(6, 2, 8, 40, 41)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        scan = Scan(neuron, x[0], torch.rand(8, 40, 41, generator=torch.Generator().manual_seed(0)), True)
        results.append((scan.run(x, 0, 6), scan.counts, scan.state.v, scan.state.o))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_kernel
def test_a_nan_gets_through_to_the_counts() -> None:
    for activation in (RELU, RELU6, IDENTITY):
        for adaptive in VARIANTS.values():
            for options in OPTIONS.values():
                x = currents_for()[:3].clone()
                x[1, 1, 3, 2, 2] = float("nan")
                scan = Scan(Neuron(THETAS, activation, adaptive=adaptive, **options), x[0], fanout(), False)
                scan.run(x, 0, 3)
                assert scan.counts.isnan().any(1).tolist() == [False, True]


def apply(name: str, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    function = getattr(library(), name)
    function(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(x.numel()))
    return y


@needs_kernel
def test_exp_and_softplus_are_right_to_a_millionth() -> None:
    generator = torch.Generator().manual_seed(0)
    small = 10 ** (40 * torch.rand(200_000, generator=generator, dtype=torch.float64) - 38)
    x = torch.cat((torch.linspace(-87, 88, 400_001), small.float(), -small.float(), torch.zeros(1)))
    x = x[(x >= -87) & (x <= 88)]
    exact = x.double().exp()
    assert ((apply("apply_exp", x).double() - exact) / exact).abs().max() <= 1e-6
    soft = F.softplus(x.double(), threshold=1000)
    assert ((apply("apply_softplus", x).double() - soft) / soft).abs().max() <= 1e-6
    beyond = torch.tensor([-1e30, -200.0, -88.0, 89.0, 1e30])
    assert apply("apply_exp", beyond).isfinite().all()
    assert (apply("apply_exp", beyond)[:3] <= 2e-38).all()
    assert (apply("apply_exp", beyond)[3:] >= 1.6e38).all()
    assert apply("apply_softplus", beyond)[3:].tolist() == beyond[3:].tolist()


def test_what_the_kernel_does_not_hold_runs_in_plain_pytorch() -> None:
    x = currents_for()
    for neuron in (Neuron(THETAS, SILU, adaptive=Msat()), Neuron(THETAS, RELU, confidence=0.5)):
        scan = Scan(neuron, x[0], fanout(), True, Chances(0, [1, 2], 0))
        assert scan.backend == "eager"
        assert scan.run(x, 0, STEPS).shape == x.shape


@pytest.fixture
def fresh_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """``library()`` decides anew, with an empty cache folder; afterwards everything is as it was."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MSAT_DET_KERNEL", "")
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.mark.parametrize("cause", ["switched off", "no compiler", "a compiler that fails"])
def test_without_a_kernel_the_results_are_the_same(
    cause: str, fresh_library: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, tmp_path: Path
) -> None:
    neuron = Neuron(THETAS, RELU, signed=True, gamma=3, initial=0.5)
    x = currents_for()
    if cause == "switched off":
        monkeypatch.setenv("MSAT_DET_KERNEL", "off")
    elif cause == "no compiler":
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("CXX", "false")
    assert library() is None
    scan = Scan(neuron, x[0], fanout(), True)
    assert torch.equal(scanned(scan, x, 5), reference(neuron, x)[1])
    assert torch.equal(scan.counts, counts(reference(neuron, x)[0]))
    site = Site.empty(4)
    site.add(x[0])
    assert torch.equal(site.maximum, x[0].abs().amax((0, 2, 3)))
    said = capfd.readouterr().err
    assert ("plain PyTorch" in said) == (cause != "switched off")
    assert not list(tmp_path.rglob("*.so"))


@needs_kernel
@pytest.mark.parametrize("format", FORMATS)
def test_histograms_of_kernel_and_plain_pytorch_agree(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = noise(3, 9, 5, 7, mean=0.0) * 10 ** noise(3, 9, 5, 7, seed=1, mean=-2.0).mul(3)
    values[values.abs() < 1e-5] = 0.0
    values = values.contiguous(memory_format=FORMATS[format])
    by_kernel, plain = Site.empty(9), Site.empty(9)
    by_kernel.add(values)
    monkeypatch.setattr(cpu, "library", lambda: None)
    plain.add(values)
    assert torch.equal(by_kernel.histogram, plain.histogram)
    assert torch.equal(by_kernel.maximum, plain.maximum)


@needs_kernel
@pytest.mark.parametrize("adaptive", [Msat(), Msat(normalised=True)], ids=["volts", "units"])
@pytest.mark.parametrize("signed", [False, True])
def test_thresholds_that_all_but_vanish_divide_nothing_by_zero(adaptive: Msat, signed: bool) -> None:
    sizes = torch.tensor([1e-9, 1.0, 1e3]).reshape(3, 1, 1)
    x = (100 * torch.randn(8, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 50) * sizes
    neuron = Neuron(torch.tensor([1e-10, 0.1, 500.0]), RELU, adaptive=adaptive, signed=signed, gamma=3)
    scan, state = Scan(neuron, x[0], torch.zeros(3, 4, 4), True), new_state(neuron, x[0], True)
    y = scan.run(x, 0, 8)
    assert y.isfinite().all()
    for t in range(8):
        assert step(neuron, state, x[t], t)[1].isfinite().all()


# ---- events


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_kernel), False])
def test_events_are_counted_with_their_fanout(compiled: bool, layout: str, monkeypatch) -> None:
    if not compiled:
        monkeypatch.setattr(cpu, "library", lambda: None)
    y = (noise(3, *SHAPE[1:]) * (noise(3, *SHAPE[1:]) > 0)).contiguous(memory_format=FORMATS[layout])
    y[1, 2, 3, 4] = -0.0
    reach = torch.arange(180.0).reshape(SHAPE[1:])
    fired = (y != 0).double()
    expected = torch.stack((fired.sum((1, 2, 3)), (fired * reach).sum((1, 2, 3))), 1)
    assert 0 < expected[0, 0] < 180
    assert torch.equal(cpu.count_events(y, reach), expected)
    assert torch.equal(cpu.count_events(y, torch.ones(4, 1, 1))[:, 1], expected[:, 0])


@needs_kernel
@pytest.mark.parametrize("kind", ["relu", "relu6", "identity", "leakyrelu", "silu", "imbalanced"])
@pytest.mark.parametrize("variant", ["constant", "reference", "normalised", "paper"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_overflows_are_those_of_the_step(kind: str, variant: str, options: dict) -> None:
    """Currents of tens of thresholds, of both signs."""
    if kind == "imbalanced" and (options.get("reset") or options.get("signed")):
        pytest.skip("no such neuron")
    if kind == "silu" and variant not in HELD:
        pytest.skip("runs in plain PyTorch")
    activation = LEAKY if kind == "imbalanced" else ALL[kind]
    neuron = Neuron(THETAS, activation, adaptive=VARIANTS[variant], imbalanced=kind == "imbalanced", **options)
    currents = 8 * currents_for(mean=0.9) * torch.rand(STEPS, *SHAPE, generator=torch.Generator().manual_seed(3))
    currents[STEPS // 2 :] -= 7.0
    s, y, v = reference(neuron, currents)
    if not (kind == "relu6" or neuron.gamma > 3):
        assert (s.abs() > neuron.gamma).any()
    kept = ~ties(neuron, currents)
    assert kept.float().mean() > 0.9
    scan = Scan(neuron, currents[0], fanout(), with_output=False)
    assert scan.backend == "cpu"
    got = scanned(scan, currents, 4)
    assert ((got - y).abs() <= 1e-4 * y.abs() + 1e-3)[:, kept].all()
    assert ((scan.state.v - v).abs() <= 1e-3)[kept].all()
    if kept.all():
        assert torch.equal(scan.counts, counts(s))


@pytest.mark.parametrize("kernel", [pytest.param(True, marks=needs_kernel), False], ids=["kernel", "plain"])
def test_a_value_beyond_its_window_is_so_many_pairs(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporal switch coding with windows of 4: 3 fits into one, 4 fills it, 9 takes three."""
    if not kernel:
        monkeypatch.setattr(cpu, "library", lambda: None)
    neuron = Neuron(torch.tensor(0.7), RELU, gamma=4, window=4)
    x = 0.7 * torch.tensor([[0.2, 3.0, 4.0, 9.0, 8.0]]).add(0.1)
    scan = Scan(neuron, x, torch.tensor([1.0, 10, 100, 1000, 10000]), True)
    y = scan.run(x[None], 0, 1)
    assert torch.allclose(y[0, 0] / 0.7, torch.tensor([0.0, 3, 4, 9, 8]))
    assert scan.counts[0].tolist() == [24, 89430, 0 + 1 + 1 + 3 + 2, 10 + 100 + 3000 + 20000]
