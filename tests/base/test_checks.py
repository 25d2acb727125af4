"""Numbers are checked where they enter: options, neurons, timesteps."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import images, observed

from msat_det import convert
from msat_det.base.checks import check_number, check_numbers, check_percentile, check_values
from msat_det.base.errors import InputError
from msat_det.graph.ops import Activation
from msat_det.methods.adafire import AdaFire
from msat_det.methods.by_distribution import Ltb
from msat_det.methods.convert import spiking_network
from msat_det.methods.direct import MsatOptions
from msat_det.methods.fitted import Fitted
from msat_det.methods.layerwise import Ftbc, SpikeNorm
from msat_det.methods.observe import Site
from msat_det.methods.options import Options
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Msat, Neuron

RELU = Activation("relu", torch.relu, rectified=True)
NO_NUMBER = [math.nan, math.inf, -math.inf, True, "3", None, [1], torch.tensor(1.0), 1j]


@pytest.mark.parametrize("value", NO_NUMBER, ids=str)
def test_what_is_no_number(value: object) -> None:
    with pytest.raises(InputError, match=r"^x is .*: give a number$"):
        check_number("x", value)


@pytest.mark.parametrize(
    ("value", "limits", "wanted"),
    [
        (0, {"low": 0, "above": True}, "a number above 0"),
        (-1, {"low": 0}, "a number of at least 0"),
        (101, {"low": 0, "high": 100, "above": True}, "a number above 0, at most 100"),
        (1.5, {"low": 0, "high": 1}, "a number from 0 to 1"),
        (2.0, {"low": 1, "whole": True}, "a whole number of at least 1"),
        (0, {"low": 1, "whole": True}, "a whole number of at least 1"),
        (7, {"low": 0, "high": 1, "words": "none or "}, "none or a number from 0 to 1"),
    ],
)
def test_what_a_number_must_be_is_said(value: float, limits: dict, wanted: str) -> None:
    with pytest.raises(InputError) as caught:
        check_number("x", value, **limits)
    assert str(caught.value) == f"x is {value}: give {wanted}"


def test_numbers_of_numpy_are_numbers() -> None:
    for value in (np.float64(0.5), np.float32(0.5), np.int64(1), 1, 0.5):
        check_number("x", value, 0, 1)
    check_number("x", np.int32(3), 1, whole=True)


@pytest.mark.parametrize(
    ("value", "meant"), [(0.999, "99.9"), (0.9999, "99.99"), (0.5, "50"), (1, "100"), (1.0, "100")]
)
def test_a_percentile_that_looks_like_a_fraction_is_told(value: float, meant: str) -> None:
    for enter in (
        check,
        lambda p: Options(percentile=p),
        lambda p: Site.empty(3).scale(p),
        lambda p: made(percentile=p),
    ):
        with pytest.raises(InputError, match=f"percentile is {value:g}, which looks like a fraction: give {meant}$"):
            enter(value)


def check(value: Any) -> None:
    check_percentile("percentile", value)


def made(**options: Any) -> SpikingNetwork:
    return convert(observed("plain"), method="p-norm", T=4, **options)


@pytest.mark.parametrize("value", [0, -3, 100.5, math.nan, math.inf, True, "99.9", None])
def test_what_is_no_percentile(value: object) -> None:
    with pytest.raises(InputError, match=r"percentile is .*: give a number above 0, at most 100"):
        check(value)


@pytest.mark.parametrize("value", [[], (), "21", 2.0, None, [1, 0], [1, -1], [1, math.nan], [math.inf], [True], ["1"]])
def test_what_is_no_list_of_factors(value: object) -> None:
    with pytest.raises(InputError, match=r"stages is .*above 0"):
        check_numbers("stages", value, 0, above=True)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1.0, math.nan]),
        torch.tensor(math.inf),
        torch.tensor([1.0, -1e-9]),
        torch.ones(2, 2),
        torch.ones(0),
        torch.ones(2, dtype=torch.int64),
        torch.ones(2, dtype=torch.complex64),
        1.0,
        [1.0],
        None,
    ],
    ids=str,
)
def test_what_is_no_threshold(value: object) -> None:
    with pytest.raises(
        InputError, match=r"^theta .*one finite number for the layer or one for each channel, at least 0"
    ):
        check_values("theta", value, low=0)
    with pytest.raises(InputError, match="neuron's theta"):
        Neuron(value, RELU)


WRONG = {
    "margin": [math.nan, -0.1, "1", True],
    "gamma": [0, 2.5, 2.0, math.nan, True, "3"],
    "initial": [math.nan, "half", None, torch.ones(2, 2), torch.tensor(math.nan)],
    "bias": [torch.ones(1, 2, 2), torch.tensor([1.0, math.inf])],
    "confidence": [-0.1, 1.1, math.nan, True],
    "stages": [[], (1.0, 0.0), (math.nan,), (-1.0,), "1", 1.0],
    "window": [0, 2.5, math.nan, True],
    "axis": [0, -1, 1.0, "1", True],
    "bits": [0, 17, 2.5, True],
    "terms": [(), (-1,), (1.5,), 2],
    "zone": [(), (0.4,), (math.nan,), 0.5],
    "late": [-1, 1.5, None],
    "imbalanced": [True],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in WRONG.items() for v in values], ids=str)
def test_a_neuron_takes_no_wrong_number(key: str, value: object) -> None:
    good = Neuron(torch.ones(2), RELU)
    with pytest.raises(InputError, match=f"neuron's {key}"):
        replace(good, **{key: value})


@pytest.mark.parametrize("values", [{"C": 0.0}, {"C": -5.0}, {"k_i": 0}, {"k_i": math.nan}], ids=str)
def test_what_msat_divides_by_is_above_0(values: dict) -> None:
    (key,) = values
    with pytest.raises(InputError, match=f"MSAT's {key} is .*: give a number above 0"):
        Msat(**values)


def test_a_neuron_of_other_channels_is_refused_by_its_call_site() -> None:
    snn = spiking_network("constant", {"scale": "channel"}, observed("plain"), 4)
    name, neuron = next(iter(snn.neurons.items()))
    for key in ("theta", "initial", "bias"):
        other = replace(neuron, **{key: torch.ones(5)})
        with pytest.raises(InputError, match=rf"{name} has 6 channels, its neuron's {key} 5: give one"):
            SpikingNetwork(snn.graph, snn.neurons | {name: other}, snn.fanout)
    with pytest.raises(InputError, match=f"{name} has 3 dimensions: its neuron's axis is 4"):
        SpikingNetwork(snn.graph, snn.neurons | {name: replace(neuron, axis=4)}, snn.fanout)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (Options, {"percentile": True}),
        (Options, {"percentile": "99"}),
        (Options, {"factor": math.nan}),
        (Options, {"factor": math.inf}),
        (Options, {"gamma": 2.5}),
        (Options, {"margin": math.nan}),
        (Options, {"stages": ()}),
        (Options, {"stages": (math.nan,)}),
        (Options, {"confidence": math.nan}),
        (Options, {"confidence": True}),
        (Options, {"confidence": "some"}),
        (MsatOptions, {"alpha": math.nan}),
        (MsatOptions, {"C": 0}),
        (MsatOptions, {"tau_mp": "1"}),
        (MsatOptions, {"rest": math.inf}),
        (Options, {"bits": 2.5}),
        (Options, {"terms": (1.5,)}),
        (Options, {"zone": (math.nan,)}),
        (SpikeNorm, {"images": 0}),
        (SpikeNorm, {"window": 2.0}),
        (Ftbc, {"passes": 2.5}),
        (Ltb, {"updates": True}),
        (AdaFire, {"bursts": (2.5,)}),
        (Fitted, {"price": math.nan}),
        (Fitted, {"budget": {4: True}}),
    ],
    ids=str,
)
def test_options_made_in_python_are_checked_as_those_of_a_file(options: type[Options], values: dict) -> None:
    (key,) = values
    with pytest.raises(InputError, match=f"option {key} is|one of option {key} is"):
        options(**values)


@pytest.mark.parametrize("T", [0, -1, 2.5, math.nan, True, "8", None])
def test_timesteps_are_whole_numbers(T: object) -> None:
    with pytest.raises(InputError, match=r"T is .*: give a whole number of at least 1"):
        convert(observed("plain"), method="constant", T=T)
    snn = spiking_network("constant", {}, observed("plain"), 4)
    with pytest.raises(InputError, match=r"T is .*: give a whole number of at least 1"):
        snn.run(images(), T)


def test_recorded_timesteps_are_whole_numbers() -> None:
    snn = spiking_network("constant", {}, observed("plain"), 4)
    for record in ([1.5], [math.nan], ["2"], [0], [5]):
        with pytest.raises(InputError, match="recorded timesteps"):
            snn.run(images(), 4, record)
    assert set(snn.run(images(), 4, np.array([2, 4]))) == {2, 4}
