"""Methods: options and their errors, thresholds by their definitions, each paper's rule by hand."""

import functools
import re
from dataclasses import asdict, fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.networks import build, images, observed, randomise
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import msat_det
from msat_det.base.errors import InputError
from msat_det.graph.facts import is_site
from msat_det.methods import DEFAULT, METHODS, parse_options
from msat_det.methods.convert import head_sites, spiking_network
from msat_det.methods.observe import Observation, observe
from msat_det.methods.options import Options
from msat_det.methods.thresholds import least_error
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Msat, Neuron

PUBLISHED = "p-norm channel-norm spike-norm rmp tsc opt calibration burst msat constant".split()


def neurons(method: str, network: str = "plain", T: int = 16, **options: Any) -> list[Neuron]:
    return list(spiking_network(method, options, observed(network), T).neurons.values())


@functools.cache
def float_activations(network: str) -> list[Tensor]:
    """The activations of every call site on the calibration images, (B, C, …)."""
    observation = observed(network)
    parts = [[value for node, value in observation.graph.walk(batch) if is_site(node)] for batch in observation.batches]
    return [torch.cat(values) for values in zip(*parts, strict=True)]


def test_every_row_of_table_1_is_there() -> None:
    assert set(PUBLISHED) <= set(METHODS)
    for name, method in METHODS.items():
        assert method.name == name
        assert method.make.__doc__


def test_presets_are_what_the_configurations_spelled_out() -> None:
    """A label of a configuration is a contract: what has it as its name is the same recipe (configs/real)."""
    half = {"scale": "channel", "percentile": 99.9, "initial": "half", "signed": True}
    tracked = {"scale": "channel", "percentile": 99.9, "signed": True, "rounding": "track"}
    spelled = {
        "delta-2": ("delta", {"bits": 6, "terms": 2}),
        "delta-3": ("delta", {"bits": 7, "terms": 3}),
        "signed": ("constant", half),
        "signed-b3": ("constant", half | {"gamma": 3}),
        "signed-b7": ("constant", half | {"gamma": 7, "factor": 0.5}),
        "staged-4": ("constant", tracked | {"gamma": 15, "stages": [2, 1, 0.5, 0.25]}),
        "msat-signed-b3": ("msat", tracked | {"variant": "normalised", "gamma": 3}),
    }
    assert set(spelled) == {name for name, method in METHODS.items() if method.base}
    for name, (base, options) in spelled.items():
        assert asdict(parse_options(name, {})) == asdict(parse_options(base, options))
        assert METHODS[name].make is METHODS[base].make
    assert asdict(parse_options("signed-b7", {"gamma": 3})) == asdict(parse_options("signed-b3", {"factor": 0.5}))
    with pytest.raises(InputError, match="method signed-b3 has no option 'gama': did you mean gamma"):
        parse_options("signed-b3", {"gama": 2})


def test_every_method_says_what_it_does_and_who_published_it() -> None:
    for name in METHODS:
        text = msat_det.describe(name)
        assert re.fullmatch(rf"{re.escape(name)}: .{{20,}} \[.+\].*", text)
    assert msat_det.describe("msat-fit") == (
        "msat-fit: The multi-stage threshold fitted for one T: scale per channel, stages and, if asked, eqs. 16 and 17 "
        "per call site, by eq. 14 under a budget of spikes [ours]"
    )
    with pytest.raises(InputError, match="did you mean burst"):
        msat_det.describe("bursts")


def test_help_of_convert_shows_every_common_option_with_its_default() -> None:
    text = " ".join(msat_det.convert.__doc__.split())
    for item in fields(Options):
        value = item.default
        if isinstance(value, tuple):
            value = value[0] if len(value) == 1 and item.name in ("terms", "zone") else list(value)
        shown = f'"{value}"' if isinstance(value, str) else value
        assert f"{item.name}={shown}" in text, item.name


def test_the_default_needs_no_fit_and_finds_what_the_float_network_finds() -> None:
    snn = msat_det.convert(build("yolo"), images())
    assert METHODS[DEFAULT].needs_t is False
    outputs = snn.run(images(), 1)[1]
    for got, expected in zip(pytree.tree_leaves(outputs), pytree.tree_leaves(build("yolo")(images())), strict=True):
        assert (got - expected).norm() < 0.1 * expected.norm()


BAD = {
    "unknown option": ({"gama": 3}, "'gama'", "gamma"),
    "nothing near": ({"zzz": 3}, "'zzz'", "percentile"),
    "word for a number": ({"factor": "big"}, "factor", "'big'", "a number"),
    "number for a switch": ({"signed": 2}, "signed", "true or false"),
    "switch for a number": ({"factor": True}, "factor", "a number"),
    "fraction for a whole number": ({"gamma": 2.5}, "gamma", "a whole number"),
    "nothing for a number": ({"factor": None}, "factor", "a number"),
    "list for a number": ({"gamma": [1, 2]}, "gamma", "a whole number"),
    "unknown choice": ({"scale": "network"}, "scale", "'network'", "layer, channel"),
    "choice of another option": ({"initial": "keep"}, "initial", "zero, half"),
    "word in a list": ({"stages": [1, "half"]}, "stages", "a list of numbers"),
    "percentile 0": ({"percentile": 0}, "percentile", "above 0"),
    "percentile as a fraction": ({"percentile": 0.999}, "percentile", "looks like a fraction", "give 99.9"),
    "percentile above 100": ({"percentile": 100.1}, "percentile", "at most 100"),
    "factor 0": ({"factor": 0}, "factor", "above 0"),
    "factor below 0": ({"factor": -1.0}, "factor", "above 0"),
    "endless factor": ({"factor": float("inf")}, "factor", "a number"),
    "no number": ({"percentile": float("nan")}, "percentile", "a number"),
    "gamma 0": ({"gamma": 0}, "gamma", "at least 1"),
    "margin below 0": ({"margin": -0.1}, "margin", "at least 0"),
    "no stages": ({"stages": []}, "stages", "above 0"),
    "stage 0": ({"stages": [1, 0]}, "stages", "above 0"),
    "stage not a number": ({"stages": [1, float("nan")]}, "stages", "numbers"),
    "confidence above 1": ({"confidence": 1.5}, "confidence", "0 to 1"),
    "confidence by a word": ({"confidence": "some"}, "confidence", "none, estimate"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
@pytest.mark.parametrize("method", ["constant", "msat", "p-norm"])
def test_bad_options_are_told_in_one_line(method: str, case: tuple) -> None:
    values, *parts = case
    with pytest.raises(InputError) as caught:
        parse_options(method, values)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"variant": "normalized"}, ["variant", "normalised"]),
        ({"parameters": "vgg19"}, ["parameters", "vgg16, resnet20"]),
        ({"units": "volts"}, ["units", "absolute, normalised"]),
        ({"dtt": "yes"}, ["dtt", "true or false"]),
        ({"C": 0}, ["C", "above 0"]),
        ({"k_i": 0.0}, ["k_i", "above 0"]),
        ({"tau_md": 1}, ["'tau_md'", "tau_"]),
    ],
    ids=str,
)
def test_bad_options_of_msat(values: dict, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_options("msat", values)
    assert all(part in str(caught.value) for part in parts)


def test_an_unknown_method_is_told_with_the_nearest_one() -> None:
    for name, near in (("pnorm", "p-norm"), ("MSAT", "msat"), ("spike_norm", "spike-norm"), ("xyz", "constant")):
        with pytest.raises(InputError, match=re.escape(near)) as caught:
            METHODS.find(name)
        assert repr(name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_values_as_a_yaml_file_gives_them() -> None:
    options = parse_options("msat", {"stages": [2, 1], "factor": 2, "dtt": "off", "det": "on", "confidence": 1})
    assert (options.stages, options.factor, options.dtt, options.det) == ((2.0, 1.0), 2.0, False, True)
    assert parse_options("constant", {"stages": 0.5}).stages == (0.5,)
    assert options.confidence == 1.0


THRESHOLDS = [
    ("constant", {}, 1.0, lambda x: x.max()),
    ("constant", {"factor": 0.5, "scale": "channel"}, 1.0, lambda x: 0.5 * x.amax((0, 2, 3))),
    ("p-norm", {}, 1 + 1 / 64, lambda x: torch.quantile(x[x > 0], 0.999)),
    ("p-norm", {"percentile": 90.0}, 1 + 1 / 64, lambda x: torch.quantile(x[x > 0], 0.9)),
    ("p-norm", {"percentile": 100.0}, 1.0, lambda x: x.max()),
    ("constant", {"percentile": 90.0}, 1 + 1 / 64, lambda x: torch.quantile(x.flatten(), 0.9)),
    (
        "constant",
        {"percentile": 80.0, "scale": "channel"},
        1 + 1 / 64,
        lambda x: torch.maximum(torch.quantile(x.transpose(0, 1).flatten(1), 0.8, 1), 0.05 * x.amax((0, 2, 3))),
    ),
    ("channel-norm", {}, 1.0, lambda x: x.amax((0, 2, 3))),
    ("burst", {}, 1 + 1 / 64, lambda x: torch.quantile(x.flatten(), 0.999)),
    ("msat", {}, 1.0, lambda x: x.max()),
    ("opt", {"percentile": 100.0}, 1.0, lambda x: x.max()),
]


@pytest.mark.parametrize(("method", "options", "bound", "definition"), THRESHOLDS, ids=lambda v: str(v)[:40])
def test_thresholds_by_their_definition(method: str, options: dict, bound: float, definition: Any) -> None:
    for neuron, activations in zip(neurons(method, "plain", **options), float_activations("plain"), strict=True):
        expected = definition(activations)
        assert neuron.theta.shape == expected.shape
        ratio = neuron.theta / expected
        slack = 1.05 if bound > 1 else 1 + 1e-6  # quantiles of few values differ by the definition of a rank
        assert (ratio <= bound * slack).all()
        assert (ratio >= 1 / (bound * slack)).all()


def test_the_plain_options_of_each_method() -> None:
    for neuron in neurons("p-norm") + neurons("constant") + neurons("channel-norm"):
        assert (neuron.gamma, neuron.signed, neuron.reset, neuron.rounding) == (1, False, "soft", "fixed")
        assert (neuron.initial, neuron.adaptive, neuron.bias, neuron.confidence) == (0.0, None, None, 1.0)
    assert all(neuron.gamma == 5 for neuron in neurons("burst"))
    assert all(neuron.reset == "zero" for neuron in neurons("spike-norm"))
    assert all(neuron.reset == "soft" for neuron in neurons("rmp"))
    assert all(neuron.initial == 0.5 for neuron in neurons("constant", initial="half"))
    assert all(neuron.rounding == "track" for neuron in neurons("constant", stages=[2, 1]))
    assert all(neuron.rounding == "fixed" for neuron in neurons("constant", stages=[2, 1], rounding="fixed"))
    assert all(neuron.rounding == "fixed" for neuron in neurons("constant", stages=[2, 2]))


MSAT = [
    ({}, Msat(), "lossy", "fixed"),
    ({"variant": "reference", "parameters": "resnet20"}, Msat(alpha=0.3, tau_mp=0.5, tau_rd=0.5), "lossy", "fixed"),
    ({"variant": "paper"}, Msat(drive="depolarisation", twice=True), "keep", "fixed"),
    (
        {"variant": "paper", "parameters": "resnet20"},
        Msat(alpha=0.3, tau_mp=0.5, tau_rd=0.5, drive="depolarisation", twice=True),
        "keep",
        "fixed",
    ),
    ({"variant": "normalised"}, Msat(normalised=True), "keep", "track"),
    (
        {"variant": "normalised", "drive": "depolarisation"},
        Msat(normalised=True, drive="depolarisation"),
        "keep",
        "track",
    ),
    ({"variant": "normalised", "units": "absolute"}, Msat(), "keep", "track"),
    ({"units": "normalised", "drop": "keep", "confidence": 0.5}, Msat(normalised=True), "keep", "fixed"),
    (
        {"variant": "normalised", "rounding": "fixed", "drop": "lossy", "confidence": 0.5},
        Msat(normalised=True),
        "lossy",
        "fixed",
    ),
    ({"dtt": "off"}, Msat(dtt=False), "lossy", "fixed"),
    ({"det": False, "alpha": 0.1, "rest": -0.5}, Msat(det=False, alpha=0.1, rest=-0.5), "lossy", "fixed"),
]


@pytest.mark.parametrize(("options", "adaptive", "drop", "rounding"), MSAT, ids=[str(case[0]) for case in MSAT])
def test_msat_variants(options: dict, adaptive: Msat, drop: str, rounding: str) -> None:
    for neuron in neurons("msat", **options):
        assert neuron.adaptive == adaptive
        assert (neuron.drop, neuron.rounding, neuron.initial) == (drop, rounding, 0.0)


def test_opt_shifts_the_bias_by_half_a_step() -> None:
    """Deng & Gu: clip-floor with bias θ/(2T) is rounding to the nearest of T levels: no mean error at T."""
    for T in (4, 16):
        for neuron in neurons("opt", T=T):
            assert torch.allclose(neuron.bias, neuron.theta / (2 * T))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.3), nn.Sigmoid()], ids=["relu", "leaky", "sigmoid"])
@pytest.mark.parametrize("options", [{}, {"rounding": "track"}, {"initial": "half"}], ids=["fixed", "track", "half"])
def test_opt_rounds_once(activation: nn.Module, options: dict) -> None:
    """By the shift, or by the neuron itself where it rounds."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), activation).eval()
    observation = observe(randomise(net), [images()])
    snn = spiking_network("opt", {"percentile": 100.0} | options, observation, 8)
    theta = snn.neurons["_1"].theta
    got, y = snn.run(images(), 8)[8], net(images())
    assert torch.allclose(got, torch.floor(8 * y / theta + 0.5) / 8 * theta, atol=1e-5)


def input_sums(network: str, method: str, options: dict, window: int) -> list[float]:
    """The largest current of a timestep that each layer of ``plain`` receives from the layers before it."""
    net, found = build(network), []
    observation = observed(network)
    batch = torch.cat(list(observation.batches))[:16]
    snn = spiking_network(method, options, observation, window)
    for i, layer in enumerate(net.features):
        if i == 0:
            currents = layer[1](layer[0](batch)).unsqueeze(0)
        else:
            sent: list[Tensor] = []
            snn.run(
                batch, window, tap=lambda s, y, i=i, sent=sent: s == f"features_{i - 1}_2" and sent.append(y.clone())
            )
            currents = torch.stack([layer[1](layer[0](y)) for y in torch.cat(sent)])
        found.append(currents.max().item())
    return found


@pytest.mark.parametrize(("method", "factor"), [("spike-norm", 1.0), ("rmp", 0.8), ("rmp", 0.5)])
def test_spike_norm_takes_the_largest_input_sum_of_the_spiking_network(method: str, factor: float) -> None:
    options = {"window": 6} | ({"factor": factor} if method == "rmp" else {})
    expected = input_sums("plain", method, options, 6)
    got = [neuron.theta.item() for neuron in neurons(method, **options)]
    assert got == pytest.approx([factor * value for value in expected], rel=1e-5)


def test_channel_norm_fires_below_zero_for_leaky_relu() -> None:
    net = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1), nn.Conv2d(4, 2, 1)))
    observation = observe(net, [images(4)])
    (imbalanced,) = spiking_network("channel-norm", {}, observation, 8).neurons.values()
    (tracking,) = spiking_network("channel-norm", {"imbalanced": False}, observation, 8).neurons.values()
    assert (imbalanced.imbalanced, tracking.imbalanced) == (True, False)
    assert torch.allclose(imbalanced.theta, F.leaky_relu(net[0](images(4)), 0.1).abs().amax((0, 2, 3)))
    for neuron in (imbalanced, tracking):
        snn = SpikingNetwork(observation.graph, {"_1": neuron}, observation.fanout)
        assert (snn.run(images(4), 300)[300] - net(images(4))).abs().max() < 0.05


def test_temporal_coding_is_the_value_in_steps_of_a_window() -> None:
    """One layer: after each window the mean is the floor of T levels, and a value costs two spikes, whatever it is."""
    net = randomise(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    observation = observe(net, [images()])
    snn = spiking_network("tsc", {}, observation, 8)
    x, theta = net[0](images()), observation.sites["_1"].maximum.max()
    levels = torch.floor(8 * x / theta * (1 + 1e-6)).clamp(0, 8)
    assert torch.allclose(snn.run(images(), 8)[8], levels * theta / 8, atol=1e-5)
    assert snn.counts[8].spikes.tolist() == (2 * (levels > 0).flatten(1).sum(1)).tolist()
    with pytest.raises(InputError, match="window"):
        snn.run(images(), 12)


def reached(theta: float, activations: Tensor, T: int) -> float:
    """The squared error of rates at T: floor of T levels after a start at half a threshold, clipped."""
    return ((torch.floor(activations * T / theta + 0.5).clamp(0, T) * theta / T - activations) ** 2).mean().item()


def test_calibration_thresholds_have_the_least_squared_error() -> None:
    for neuron, activations in zip(neurons("calibration", T=8, grid=50), float_activations("plain"), strict=True):
        top = activations.max().item()
        best = min(reached(top * i / 50, activations, 8) for i in range(1, 51))
        assert neuron.initial == 0.5
        assert reached(neuron.theta.item(), activations, 8) == pytest.approx(best, rel=1e-4)


def test_calibration_thresholds_are_those_of_what_the_neuron_sends() -> None:
    """Rounding in every step is a start at half a threshold; digits reach as far as their burst."""
    half = [neuron.theta for neuron in neurons("calibration", T=8)]
    track = [neuron.theta for neuron in neurons("calibration", T=8, rounding="track", initial="zero", correct="none")]
    assert torch.equal(track[0], half[0])  # deeper ones see what the first sends, to the last bit
    (binary, *_), activations = (
        neurons("calibration", T=2, levels="binary", bits=3, terms=3),
        float_activations("plain"),
    )
    (burst, *_) = neurons("calibration", T=2, gamma=7, percentile=100.0)
    top, values = activations[0].max().item(), activations[0]

    def error(theta: float) -> float:
        return ((torch.floor(2 * values / theta + 0.5).clamp(0, 14) * theta / 2 - values) ** 2).mean().item()

    least = min(error(top * i / 100 / 4) for i in range(1, 101))  # the statistic is the top level
    assert error(binary.theta.item()) == pytest.approx(least, rel=1e-4)
    assert error(burst.theta.item()) == pytest.approx(min(error(top * i / 100) for i in range(1, 101)), rel=1e-4)


def test_the_late_readout_of_ltb_waits_for_what_lacks_to_the_first_spike() -> None:
    """Σ (θ − v(−1)) / E[ReLU] of each layer's most active channel; from 0 it is twice as long as from θ/2."""
    late, expected = {}, 0.0
    for start in ("half", "zero"):
        (late[start],) = {neuron.late for neuron in neurons("ltb", T=200, initial=start)}
    for neuron, activations in zip(neurons("ltb", T=200), float_activations("plain"), strict=True):
        means = activations.mean((0, 2, 3))
        expected += (neuron.theta[means.argmax()] / means.max()).item()
    assert late == {"half": int(expected / 2), "zero": int(expected)}


def test_dcgs_of_one_level_is_its_n_of_one() -> None:
    """T·2 levels of one height."""
    (site, *_), (neuron, *_) = observed("plain").sites.values(), neurons("dcgs", T=4, levels="unary")
    assert torch.equal(neuron.theta, least_error(site, 8))
    assert (neuron.bits, neuron.gamma) == (None, 1)


def site_errors(network: str, method: str, options: dict, T: int) -> list[Tensor]:
    """Float mean − spiking mean of every channel of every site, on the calibration images: (C,) each."""
    observation, sums = observed(network), {}
    batch = torch.cat(list(observation.batches))
    snn = spiking_network(method, options, observation, T)

    def tap(site: str, y: Tensor) -> None:
        sums[site] = sums.get(site, 0) + y.sum(0)

    snn.run(batch, T, tap=tap)
    floats = [value for node, value in observation.graph.walk(batch) if is_site(node)]
    return [(a - s / T).mean((0, 2, 3)) for a, s in zip(floats, sums.values(), strict=True)]


@pytest.mark.parametrize("correct", ["bias", "potential"])
@pytest.mark.parametrize("rounding", ["fixed", "track"])  # what rounds by itself starts at 0
def test_calibration_corrects_each_channels_mean(correct: str, rounding: str) -> None:
    before = site_errors("plain", "calibration", {"correct": "none", "rounding": rounding}, 8)
    after = site_errors("plain", "calibration", {"correct": correct, "rounding": rounding}, 8)
    for plain, corrected in zip(before, after, strict=True):
        assert corrected.abs().mean() < 0.75 * plain.abs().mean()


def test_head_sites_are_the_last_before_each_output() -> None:
    assert head_sites(observed("plain").graph) == ["features_2_2"]
    assert head_sites(observed("residual").graph) == ["act_1"]
    assert head_sites(observed("yolo").graph) == ["lateral_2", "neck_2"]

    class Skips(nn.Module):
        """An output that is a sum: both of its sites feed the head; the first of them feeds a neuron too."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            return y + self.b(y.relu()).relu()

    assert head_sites(observe(randomise(Skips()), [images()]).graph) == ["relu", "relu_2"]


def two_neurons() -> Observation:
    """Two layers of one weight per channel. Float: channel 0 is 1.5 − 1 = .5, channel 1 is 1 − 1.25 < 0 (a SIN)."""

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 2, 1)
            self.second = nn.Conv2d(2, 2, 1)
            self.first.weight.data = torch.tensor([1.5, 1.0]).reshape(2, 1, 1, 1)
            self.first.bias.data.zero_()
            self.second.weight.data = torch.eye(2).reshape(2, 2, 1, 1)
            self.second.bias.data = torch.tensor([-1.0, -1.25])

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.second(F.relu(self.first(x))))

    return observe(Tiny().eval(), [torch.ones(1, 1, 1, 1)])


def test_confidence_estimate_by_hand() -> None:
    """The share of early spikes (t < 16) that belong to neurons whose float activation is positive."""
    observation = two_neurons()
    floats = [v.flatten().tolist() for node, v in observation.graph.walk(torch.ones(1, 1, 1, 1)) if is_site(node)]
    assert floats == [[1.5, 1.0], [0.5, 0.0]]
    # layer thresholds: 1.5 and .5. The first layer fires 1.5 in channel 0 at every t, in channel 1 at t = 1, 2, 4, 5 …
    # (potentials 1, 2→.5, 1.5→0, 1, …): each such 1.5 lifts channel 1 of the second layer
    v, first, second, o = 0.0, [], [], 0.0
    for _ in range(16):
        v += 1.0
        y = 1.5 if v >= 1.5 else 0.0
        v -= y
        first.append(y)
        o += y - 1.25
        fired = o >= 0.5
        o -= 0.5 * fired
        second.append(fired)
    assert first[:4] == [0.0, 1.5, 1.5, 0.0]
    wrong = sum(second)
    (_, head) = spiking_network("constant", {"confidence": "estimate"}, observation, 16).neurons.values()
    assert head.confidence == pytest.approx(16 / (16 + wrong))
    # with half a threshold at the start channel 1 sends early what its float never would
    (_, head) = spiking_network(
        "constant", {"confidence": "estimate", "initial": "half"}, observation, 16
    ).neurons.values()
    assert head.confidence <= 16 / (16 + wrong)


def test_confidence_without_spikes_is_one() -> None:
    observation = two_neurons()
    (_, head) = spiking_network(
        "constant", {"confidence": "estimate", "factor": 1000.0}, observation, 16
    ).neurons.values()
    assert head.confidence == 1.0


def test_confidence_by_number_holds_for_the_head_alone() -> None:
    confidences = [neuron.confidence for neuron in neurons("msat", "yolo", confidence=0.392)]
    names = list(observed("yolo").sites)
    assert confidences == [0.392 if name in ("lateral_2", "neck_2") else 1.0 for name in names]


def test_a_bias_for_each_timestep_makes_the_mean_output_right_in_each() -> None:
    """FTBC, on the first call site, whose current is constant: without it the mean output differs by timestep."""
    means = {}
    for name, options in (("ftbc", {"passes": 60}), ("constant", {"scale": "channel", "initial": "half"})):
        observation = observed("plain")
        snn = spiking_network(name, options, observation, 6)
        site, sent = snn.graph.sites[0], []
        snn.run(observation.first(8), 6, tap=lambda at, y, site=site, sent=sent: at == site.name and sent.append(y))
        means[name] = torch.cat(sent).mean((1, 3, 4))
    values = dict(observation.graph.walk(observation.first(8)))
    expected = values[next(node for node in values if node.name == site.name)].mean((0, 2, 3))
    assert (means["ftbc"] - expected).abs().max() < 0.02 * expected.max()
    assert (means["constant"] - expected).abs().max() > 0.05 * expected.max()


@pytest.mark.parametrize("method", ["constant", "msat", "calibration", "adafire", "constant-fit", "h-mt"])
def test_a_bias_for_each_timestep_goes_with_any_method(method: str) -> None:
    """Mean outputs of every layer, over the timesteps that are corrected, come nearer the float network's."""
    observation, options = observed("plain"), {"factor": 0.7}
    options |= {} if method == "h-mt" else {"scale": "channel"}
    options |= {"bursts": [2]} if method == "adafire" else {} if method == "h-mt" else {"gamma": 3}
    wanted = {n.name: v.mean((0, 2, 3)) for n, v in observation.graph.walk(observation.first(8)) if v.dim() == 4}
    distance = {}
    for correct in ("none", "bias-t"):
        snn = spiking_network(method, {"correct": correct, **options}, observation, 4)
        sums: dict[str, torch.Tensor] = {}
        snn.run(observation.first(8), 4, tap=lambda at, y, sums=sums: sums.update({at: sums.get(at, 0) + y.sum(0)}))
        means = {name: (total / 4).mean((0, 2, 3)) for name, total in sums.items()}
        distance[correct] = sum(((means[n] - wanted[n]).norm() / wanted[n].norm()).item() for n in means)
        assert all((n.bias is not None and n.bias.dim() == 2) == (correct == "bias-t") for n in snn.neurons.values())
    assert distance["bias-t"] < 0.8 * distance["none"]


def test_a_bias_for_each_timestep_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(InputError, match=r"option correct .*coding rate"):
        spiking_network("constant", {"coding": "delta", "correct": "bias-t"}, observed("plain"), 4)
    with pytest.raises(InputError, match="tsc takes a window"):
        spiking_network("tsc", {"correct": "bias-t"}, observed("plain"), 4)


def test_a_bias_over_time_is_the_same_in_the_kernel_and_in_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    snn = spiking_network("ftbc", {}, observed("plain"), 6)
    assert all(neuron.bias.shape == (6, len(neuron.theta)) for neuron in snn.neurons.values())
    expected = [SpikingNetwork(snn.graph, snn.neurons, snn.fanout, chunk=c).run(images(), 8)[8] for c in (1, 4, 8)]
    monkeypatch.setattr("msat_det.spiking.kernels.cpu.library", lambda: None)
    for outputs in expected:
        assert torch.allclose(snn.run(images(), 8)[8], outputs, atol=1e-4)
