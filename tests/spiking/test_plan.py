"""Plans: neurons to data and back, strict at reading."""

import copy
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from support.networks import images, observed

from msat_det.base.errors import InputError
from msat_det.graph.facts import facts
from msat_det.methods import METHODS
from msat_det.methods.convert import spiking_network
from msat_det.spiking.formats.archive import read_archive, write_archive
from msat_det.spiking.formats.plan import load_plan, read_neurons, save_plan, write_neurons
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Msat, Neuron

GRAPH = observed("residual").graph
SITES = [node.name for node in GRAPH.sites]
FIRST = SITES[0]
CHANNELS = facts(GRAPH.sites[0]).shape[0]


def plan_of(**changes: object) -> tuple[dict, dict]:
    snn = spiking_network("constant", {"scale": "channel"}, observed("residual"), 4)
    neurons = snn.neurons | {FIRST: replace(snn.neurons[FIRST], **changes)}
    return write_neurons(neurons, GRAPH)


def assert_equal(got: Neuron, expected: Neuron) -> None:
    for item in fields(Neuron):
        a, b = getattr(got, item.name), getattr(expected, item.name)
        if isinstance(b, torch.Tensor):
            assert torch.equal(a, b)
            assert a.dtype == b.dtype
        else:
            assert a == (tuple(b) if item.name in ("stages", "terms", "zone") else b)


@pytest.mark.parametrize("method", METHODS)
def test_neurons_come_back_from_a_file_as_they_were(method: str, tmp_path: Path) -> None:
    snn = spiking_network(method, {}, observed("residual"), 8)
    save_plan(tmp_path / "a.plan", snn.neurons, snn.graph, method=method, T=8)
    plan = load_plan(tmp_path / "a.plan")
    assert plan.notes == {"method": method, "T": 8}
    found = plan.neurons(snn.graph)  # the control has one of its own, with weights of eight bits
    assert list(found) == SITES
    for name, neuron in found.items():
        assert_equal(neuron, snn.neurons[name])
        assert neuron.activation is facts(next(n for n in snn.graph.sites if n.name == name)).activation
    expected = snn.run(images(), 8)[8]
    assert torch.equal(SpikingNetwork(snn.graph, found, snn.fanout).run(images(), 8)[8], expected)


def test_every_field_is_kept() -> None:
    other = dict(
        theta=torch.rand(CHANNELS), signed=True, margin=0.75, gamma=3, initial=torch.rand(CHANNELS), rounding="track",
        stages=(2.0, 0.1), reset="zero", bias=torch.rand(CHANNELS), confidence=0.3, drop="lossy", window=2,
        coding="delta", bits=6, terms=(2, 1), zone=(1.0, 0.5), steps=4, dense=True, late=3,
        axis=1,
        adaptive=Msat(0.1, 2.0, 3.0, 4.0, 0.5, 0.6, -1.5, True, "depolarisation", False, False, True),
    )  # fmt: skip
    assert set(other) == {item.name for item in fields(Neuron)} - {"activation", "imbalanced"}
    sites, tensors = plan_of(**other)
    got = read_neurons(json.loads(json.dumps(sites)), tensors, GRAPH)[FIRST]
    assert_equal(got, Neuron(activation=facts(GRAPH.sites[0]).activation, **other))


def test_a_bias_over_time_is_kept_and_no_other_shape() -> None:
    sites, tensors = plan_of(bias=torch.rand(5, CHANNELS))
    got = read_neurons(json.loads(json.dumps(sites)), tensors, GRAPH)[FIRST]
    assert torch.equal(got.bias, tensors[f"neurons/{FIRST}.bias"])
    for shape in ((5, CHANNELS + 1), (1, 5, CHANNELS), (0, CHANNELS)):
        with pytest.raises(InputError, match="bias"):
            plan_of(bias=torch.rand(shape))
    with pytest.raises(InputError, match="theta"):
        plan_of(theta=torch.rand(5, CHANNELS))


def test_a_plan_is_for_its_network_alone(tmp_path: Path) -> None:
    snn = spiking_network("constant", {}, observed("residual"), 4)
    save_plan(tmp_path / "a.plan", snn.neurons, snn.graph)
    with pytest.raises(InputError, match=r"a\.plan: call site '.*' is not the network's"):
        load_plan(tmp_path / "a.plan").neurons(observed("yolo").graph)
    sites, tensors = plan_of()
    sites.pop(SITES[-1])
    with pytest.raises(InputError, match=f"no neuron for call site {SITES[-1]}"):
        read_neurons(sites, tensors, GRAPH)
    sites, tensors = plan_of()
    sites[FIRST]["channels"] += 1
    with pytest.raises(InputError, match=f"has {CHANNELS} channels, the plan {CHANNELS + 1}"):
        read_neurons(sites, tensors, GRAPH)
    sites, tensors = plan_of()
    sites[FIRST]["neuron"]["activation"]["name"] = "silu"
    with pytest.raises(InputError, match="the network's own, relu6"):
        read_neurons(sites, tensors, GRAPH)


WRONG = {
    "gamma": [0, 1.5, True, "3", 2**31, None, [1]],
    "margin": [-0.1, "inf", "nan", None, 10**400, 1e39],
    "confidence": [-0.1, 1.1],
    "window": [0, 2.5],
    "stages": [[], [0.0], [1, -1], [True], 1.0, [[1.0]]],
    "rounding": ["up", 1, None],
    "signed": [1, "true", None],
    "imbalanced": [True],
    "initial": ["half", {"shape": [3]}, {"tensor": 1}],
    "bias": [0.0, {"shape": []}],
    "theta": [1.0, None, {"shape": [CHANNELS + 1]}],
    "adaptive": [{"C": 0}, {"k_i": 0}, {"alpha": "x"}, {"rest": True}, {"beta": 1}, {"drive": "x"}, 1, []],
    "colour": [1],
    "a\nb": [1],
    "fn": ["os.system"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_a_wrong_field_is_told_in_one_line(field: str, value: object) -> None:
    sites, tensors = plan_of()
    sites[FIRST]["neuron"][field] = value
    with pytest.raises(InputError, match=f"call site {FIRST}: ") as caught:
        read_neurons(sites, tensors, GRAPH)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "theta",
    [
        torch.full((CHANNELS,), math.nan),
        torch.full((CHANNELS,), math.inf),
        torch.full((CHANNELS,), -1.0),
        torch.ones(CHANNELS, dtype=torch.int32),
        torch.ones(CHANNELS, dtype=torch.complex64),
        torch.ones(CHANNELS, 1),
        torch.ones(0),
    ],
    ids=["nan", "inf", "negative", "int", "complex", "2d", "empty"],
)
def test_a_wrong_threshold_is_refused(theta: torch.Tensor) -> None:
    sites, tensors = plan_of()
    tensors[f"neurons/{FIRST}.theta"] = theta
    with pytest.raises(InputError):
        read_neurons(sites, tensors, GRAPH)
    with pytest.raises(InputError):
        plan_of(theta=theta)


def test_a_missing_field_takes_its_default_but_the_threshold_has_none() -> None:
    sites, tensors = plan_of(gamma=3)
    del sites[FIRST]["neuron"]["gamma"]
    assert read_neurons(sites, tensors, GRAPH)[FIRST].gamma == 1
    del sites[FIRST]["neuron"]["theta"]
    with pytest.raises(InputError, match="theta is missing"):
        read_neurons(sites, tensors, GRAPH)


def test_files_that_are_no_plan(tmp_path: Path) -> None:
    snn = spiking_network("constant", {}, observed("residual"), 4)
    path = tmp_path / "a.plan"
    save_plan(path, snn.neurons, snn.graph)
    whole = path.read_bytes()
    broken = {
        "empty": b"",
        "short": whole[:7],
        "no header": whole[:100],
        "cut": whole[:-1],
        "long": whole + b"\0",
        "huge header": (2**62).to_bytes(8, "little") + whole[8:],
        "pickle": b"\x80\x04" + whole,
    }
    for name, content in broken.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.plan"):
            pytest.fail(f"{name}: {load_plan(path)}")
    for document in ({}, {"sites": 1, "notes": {}}, {"sites": {}, "notes": []}, {"sites": {}, "notes": {}, "x": 1}):
        write_archive(path, "plan", document, {})
        with pytest.raises(InputError, match="sites and notes"):
            load_plan(path)
    write_archive(path, "network", {}, {})
    for other in (path, tmp_path, tmp_path / "none"):
        with pytest.raises(InputError):
            load_plan(other)


def test_an_archive_of_deep_or_strange_json_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for text in (
        "[" * 100_000,
        '{"kind":"plan","sites":NaN}',
        "9" * 5000,
        "{",
        "\ud800".encode("utf-8", "replace").decode(),
    ):
        save_file({}, tmp_path / "a", {"msat_det": text})
        with pytest.raises(InputError):
            read_archive(tmp_path / "a", "plan")


def test_writing_leaves_the_neurons_alone(tmp_path: Path) -> None:
    snn = spiking_network("msat", {}, observed("residual"), 4)
    before = copy.deepcopy({name: neuron.theta for name, neuron in snn.neurons.items()})
    save_plan(tmp_path / "a.plan", snn.neurons, snn.graph)
    assert all(torch.equal(snn.neurons[name].theta, theta) for name, theta in before.items())
    with pytest.raises(InputError, match="no folder"):
        save_plan(tmp_path / "none/a.plan", snn.neurons, snn.graph)
