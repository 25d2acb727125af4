"""An option that is given changes what it says, or is refused in one line: nothing is ignored in silence."""

import contextlib
import functools
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.networks import images, randomise
from support.options import RATE_ALONE, REFUSED
from torch import Tensor, nn

from msat_det.base.errors import InputError
from msat_det.methods import METHODS, parse_options
from msat_det.methods.adafire import AdaFire
from msat_det.methods.convert import spiking_network
from msat_det.methods.fitted import DeltaFit, Fitted
from msat_det.methods.observe import Observation, observe


class Everything(nn.Module):
    """What an option may be about: channels of unlike statistics, ReLU, ReLU6 that is reached, leaky ReLU, SiLU,
    hard-swish, max pooling, and a linear output that feeds another layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.down, self.up = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)
        self.curved, self.swish, self.last = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = self.down(F.relu6(3 * self.second(x)))
        x = F.silu(self.curved(F.leaky_relu(self.up(x), 0.2)))
        return self.head(F.relu(self.last(F.hardswish(self.swish(x)))))


class Rectified(Everything):
    """The same with ReLU alone."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        return self.head(F.relu(self.last(F.relu(self.second(x)))))


@functools.cache
def seen(network: type[nn.Module] = Everything) -> Observation:
    net = randomise(network(), seed=2)
    net.first.weight.data *= torch.tensor([0.3, 0.6, 1.0, 1.5, 2.0, 3.0]).reshape(-1, 1, 1, 1)
    return observe(net, [images(3, seed=100, size=8), images(3, seed=101, size=8)])


def timesteps(method: str) -> int:
    """Few for what is searched for."""
    return 4 if issubclass(METHODS[method].options, Fitted | DeltaFit | AdaFire) else 12


@functools.cache
def result(method: str, options: frozenset, network: type[nn.Module] = Everything) -> Tensor:
    """All that a conversion gives over time: outputs and counts of images that pass the calibration's range."""
    T = timesteps(method)
    snn = spiking_network(method, dict(options), seen(network), T, seed=3)
    times = [T] if any(neuron.window for neuron in snn.neurons.values()) else [1, 2, T]
    x = torch.cat((images(2, size=8), 3 * images(1, seed=7, size=8)))
    found = snn.simulate(x, T, times)
    return torch.cat([v.double().flatten() for t in times for v in (found.outputs[t], found.counts[t].figures)])


def has_effect(method: str, base: dict[str, Any], given: dict[str, Any], network: type[nn.Module] = Everything) -> bool:
    before, after = (result(method, frozenset(options.items()), network) for options in (base, base | given))
    return not torch.equal(before, after)


# Values of each option: the first that is not the method's default is taken.
VALUES: dict[str, list] = {
    "scale": ["channel", "layer"],
    "percentile": [80.0],
    "values": ["nonzero", "all"],
    "factor": [0.6],
    "signed": [True, False],
    "margin": [0.75],
    "gamma": [2],
    "initial": ["half", "zero"],
    "rounding": ["track", "fixed"],
    "stages": [(2.0, 1.0, 0.5)],
    "confidence": [0.5],
    "drop": ["lossy"],
    "analog": [("relu",)],
    "spiking_linear": [True, False],
    "weights": ["int8", "float"],
    "coding": ["rate", "delta"],
    "levels": ["binary", "unary"],
    "bits": [3],
    "terms": [(1,), (2,)],
    "zone": [(0.9,)],
    "correct": ["none", "bias-t"],
    "images": [2],
    "window": [2],
    "grid": [7],
    "passes": [2],
    "imbalanced": [False],
    "updates": [5],
    "late": [False],
    "bursts": [(3,)],
    "budget": [0.4],
    "budget_of": ["energy"],
    "price": [0.5],
    "variant": ["normalised"],
    "parameters": ["resnet20"],
    "units": ["normalised"],
    "drive": ["depolarisation"],
    "dtt": [False, True],
    "det": [False, True],
    "alpha": [2.0],
    "k_a": [2.0],
    "k_i": [0.3],
    "C": [1.0],
    "tau_mp": [2.0],
    "tau_rd": [3.0],
    "rest": [0.5],
}
# What an option needs beside it, and a method that an option's effect is to be seen on.
RATE = {"coding": "rate"}
BESIDE: dict[str, dict[str, Any]] = {
    "values": {"percentile": 80.0},
    "signed": RATE,
    "margin": RATE | {"signed": True},
    "initial": RATE | {"rounding": "fixed"},
    "rounding": RATE | {"initial": "zero"},
    "confidence": RATE,
    "drop": RATE | {"confidence": 0.5},
    "correct": RATE,
    "gamma": {"levels": "unary"},
    "bits": {"levels": "binary"},
    "terms": RATE | {"levels": "binary"},
    "zone": {"coding": "delta"},
    "spike-norm": {"factor": 0.2},
    "rmp": {"factor": 0.2},
    "calibration": {"grid": 10},
    "ftbc": {"passes": 3},
    "adafire": {"grid": 10, "bursts": (2,), "images": 3},
    "h-mt margin": {"bits": 3},
    "msat drop": {"variant": "paper"},
    "msat margin": {"variant": "normalised"},
}
CASES = [
    (name, item.name)
    for name, made in METHODS.items()
    if not made.base  # a preset has its method's options
    for item in fields(made.options)
    if item.name != "plan"  # a file, see test_plan
]


def refused(method: str, option: str) -> bool:
    alone = METHODS[method].codings == ("rate",) and option in ("coding", "zone")
    return alone or option in REFUSED.get(method, ())


def beside(method: str, option: str) -> dict[str, Any]:
    made = METHODS[method]
    found = BESIDE.get(method, {}) | BESIDE.get(option, {}) | BESIDE.get(f"{method} {option}", {})
    if made.codings == ("delta",):
        found = {key: value for key, value in found.items() if key not in RATE_ALONE}
    return {key: value for key, value in found.items() if key != option and not refused(method, key)}


@pytest.mark.parametrize(("method", "option"), CASES, ids=[f"{m} {o}" for m, o in CASES])
def test_every_option_of_every_method_has_an_effect_or_is_refused(method: str, option: str) -> None:
    plain = getattr(METHODS[method].options(), option)
    given = {option: next(value for value in VALUES[option] if value != plain)}
    base = beside(method, option)
    if refused(method, option):
        with pytest.raises(InputError, match=f"option {option} |has no coding ") as caught:
            spiking_network(method, base | given, seen(), 4)
        assert "\n" not in str(caught.value)
    else:
        assert has_effect(method, base, given)


REFUSALS = [
    ("constant", {"levels": "binary", "gamma": 3}, "option gamma is 3: give it no value: it is for levels unary"),
    ("delta-3", {"gamma": 3}, "option gamma is 3: .*levels unary"),
    ("msat-fit", {"gamma": 3}, "option gamma is 3: .*levels unary"),
    ("constant", {"margin": 0.75}, "option margin is 0.75: .*signed true"),
    ("signed", {"margin": 0.25}, "option margin is 0.25: give at least 0.5: it rounds to nearest"),
    ("constant", {"drop": "lossy"}, "option drop is 'lossy': .*confidence"),
    ("constant", {"values": "nonzero"}, "option values is 'nonzero': .*percentile below 100"),
    ("p-norm", {"values": "all", "percentile": 100}, "option values is 'all': .*percentile below 100"),
    ("delta-3", {"signed": True}, "option signed is True: .*coding rate"),
    ("delta-3", {"rounding": "track"}, "option rounding is 'track': .*coding rate"),
    ("channel-norm", {"imbalanced": False, "coding": "delta"}, "option imbalanced is False: .*coding rate"),
    ("msat", {"dtt": False, "alpha": 0.3}, "option alpha is 0.3: .*dtt true"),
    ("msat", {"det": False, "drive": "depolarisation"}, "option drive is 'depolarisation': .*det true"),
    ("msat", {"dtt": False, "det": False, "units": "normalised"}, "option units is 'normalised': .*dtt or det"),
    ("constant-fit", {"stages": [0.7]}, "option stages .*factors that differ, or 1"),
    ("msat-fit", {"coding": "delta", "zone": 1.0}, "option zone .*what is fitted"),
    ("msat-fit", {"coding": "delta", "terms": 2}, "option terms .*coding rate"),
    ("h-mt", {"levels": "unary"}, "option levels of method h-mt is 'unary': give binary"),
    ("h-mt", {"scale": "layer"}, "option scale is 'layer': .*least error"),
    ("ltb", {"percentile": 99.9}, "option percentile is 99.9: .*balanced"),
    ("tsc", {"stages": [2, 1]}, "option stages .*window"),
    ("adafire", {"gamma": 3}, "option gamma is 3: .*bursts"),
    ("adafire", {"levels": "binary"}, "option levels is 'binary': .*bursts"),
    ("int8", {"zone": 1.0}, "option zone .*eight bits"),
]


@pytest.mark.parametrize(("method", "options", "said"), REFUSALS, ids=str)
def test_what_leaves_an_option_without_effect_is_named(method: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse_options(method, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["spike-norm", "rmp"])
@pytest.mark.parametrize("given", [{"scale": "channel"}, {"percentile": 99.0}])
def test_the_statistic_of_spike_norm_is_for_other_activations_than_relu(method: str, given: dict) -> None:
    (option,) = given
    with pytest.raises(InputError, match=f"option {option} .*θ of a ReLU is the largest input sum"):
        spiking_network(method, given, seen(Rectified), 4)
    assert has_effect(method, {"factor": 0.2}, given)


# Options that stand beside all others of a method; constant has those of every method.
CONTEXTS: list[tuple[str, dict[str, Any]]] = [
    ("constant", {"coding": "delta"}),
    ("constant", {"levels": "binary"}),
    ("constant", {"coding": "delta", "levels": "binary"}),
    ("constant", {"signed": True}),
    ("constant", {"initial": "half"}),
    ("constant", {"rounding": "track"}),
    ("constant", {"stages": (2.0, 1.0)}),
    ("constant", {"scale": "channel"}),
    ("constant", {"percentile": 100.0}),
    ("constant", {"confidence": 0.4}),
    ("constant", {"gamma": 5}),
    ("constant", {"weights": "int8"}),
    ("constant", {"correct": "bias-t"}),
    ("channel-norm", {"coding": "delta"}),
    ("channel-norm", {"imbalanced": False}),
    ("calibration", {"correct": "none"}),
    ("calibration", {"correct": "potential"}),
    ("calibration", {"rounding": "track"}),
    ("msat", {"coding": "delta"}),
    ("msat", {"dtt": False}),
    ("msat", {"det": False}),
    ("msat", {"dtt": False, "det": False}),
    ("msat", {"variant": "normalised"}),
    ("msat", {"variant": "paper"}),
]
# What says no more than is so already: rounding track where the threshold varies, or beside θ/2 at the start, which for
# a threshold that does not gives the same; a start, which presets have, under it; what a variant of MSAT stands for.
# Table 2's columns are of DTT and DET.
SAID = {
    "stages": {"rounding", "initial"},
    "initial": {"rounding"},
    "rounding": {"initial"},
    "variant": {"rounding", "initial", "units", "drive"},
    "dtt": {"parameters"},
}


@pytest.mark.parametrize(("method", "context"), CONTEXTS, ids=str)
def test_no_option_is_left_without_effect_by_another(method: str, context: dict[str, Any]) -> None:
    dead: set[str] = set()
    for option in {item.name for item in fields(METHODS[method].options)} - {*context}:
        plain = getattr(METHODS[method].options(), option)
        given = {option: next(value for value in VALUES[option] if value != plain)}
        with contextlib.suppress(InputError):
            if not has_effect(method, beside(method, option) | context, given):
                dead.add(option)
    assert dead <= set().union(*(SAID.get(key, set()) for key in context))
