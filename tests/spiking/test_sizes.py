"""Images of another size than the calibration's: the same neurons, counts for the new size, or a refusal."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.modules import Fused, inputs
from support.networks import build, images, observed, randomise
from support.simulations import assert_same
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import msat_det
from msat_det.base.errors import InputError
from msat_det.graph.facts import amend
from msat_det.graph.fanout import fan_out
from msat_det.graph.trace import trace
from msat_det.methods.convert import spiking_network
from msat_det.spiking.network import SpikingNetwork

OPTIONS = {"scale": "channel", "initial": "half", "signed": True, "gamma": 3}
T, RECORD = 12, (5, 12)


@pytest.mark.parametrize("name", ["plain", "residual", "yolo", "bottleneck"])
def test_another_size_is_what_a_network_made_for_it_gives(name: str) -> None:
    snn = spiking_network("constant", OPTIONS, observed(name), T)
    other = images(3, seed=7, size=20)
    graph = trace(build(name), other)
    made = SpikingNetwork(graph, snn.neurons, fan_out(graph))
    expected, got = made.run(other, T, RECORD), snn.run(other, T, RECORD)
    assert_same(got, expected)
    for t in RECORD:
        assert snn.counts[t].macs == made.counts[t].macs > observed(name).fanout.total
        assert snn.counts[t].neurons == made.counts[t].neurons
        for key in ("spikes", "sops", "energy"):
            assert torch.equal(getattr(snn.counts[t], key), getattr(made.counts[t], key))
    before = spiking_network("constant", OPTIONS, observed(name), T)
    assert_same(snn.run(images(), T), before.run(images(), T))  # and the first size goes on as before
    assert torch.equal(snn.counts[T].sops, before.counts[T].sops)


def test_what_is_changed_afterwards_holds_for_every_size() -> None:
    snn = spiking_network("constant", OPTIONS, observed("plain"), T)
    other = images(2, size=20)
    first = snn.run(other, T)[T]
    for name, neuron in snn.neurons.items():
        snn.neurons[name] = copy.copy(neuron)
        snn.neurons[name].__dict__["theta"] = neuron.theta / 2
    assert not torch.equal(snn.run(other, T)[T], first)


def test_calibration_with_several_sizes_serves_every_method() -> None:
    net, batches = build("residual"), [images(2, size=12), images(2, seed=3, size=16), images(2, seed=4)]
    for method, options in (("constant", OPTIONS), ("calibration", {"images": 6}), ("msat-fit", {"images": 4})):
        snn = msat_det.convert(net, batches, method, T=8, **options)
        for size in (12, 16):
            x = images(2, seed=5, size=size)
            assert ((snn.run(x, 64)[64] - net(x)).norm() / net(x).norm()).item() < 0.5, method


class Tokens(nn.Module):
    """A head as detectors have it: positions first, so that another size is another first dimension."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(F.relu(self.conv(x)))
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 3).sigmoid()


def test_positions_may_become_more() -> None:
    net = randomise(Tokens())
    snn = msat_det.convert(net, images(4), "constant", **OPTIONS)
    x = images(2, seed=9, size=17)
    got, expected = snn.run(x, 128)[128], net(x)
    assert got.shape == (2, 2 * 15 * 15, 3)
    assert (got - expected).norm() < 0.05 * expected.norm()


class Mixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x.transpose(1, 2))


def test_neurons_by_position_are_refused_at_another_size() -> None:
    snn = msat_det.convert(Mixed(), images(2, channels=4)[:, :, :, 0], "constant", scale="channel")
    amend(snn.graph.sites[0], axis=1)  # as if positions had thresholds of their own
    with pytest.raises(InputError, match=r"'relu'.*a channel for each position: give images of the calibration's size"):
        snn.run(torch.zeros(2, 4, 20), 4)


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(400, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).flatten(1))


def test_images_that_do_not_fit_are_refused_in_one_line() -> None:
    flat = msat_det.convert(randomise(Flat()), images())
    plain = spiking_network("constant", {}, observed("plain"), 8)
    cases = [
        (flat, images(size=16), r"images are \(3, 12, 12\).*test_sizes.py:\d+: return self.head.*400"),
        (plain, images(channels=1), r"images are \(3, 12, 12\).*1 channels"),
        (plain, images()[0], r"tensor \(3, 12, 12\) of float32.*image\[None\]"),
        (plain, images()[:0], r"\(0, 3, 12, 12\).*holds no image"),
        (plain, images().byte(), r"uint8.*give float batches"),
        (plain, images().to(torch.complex64), "complex64.*real numbers"),
        (plain, images().numpy(), "ndarray: give a tensor"),
        (plain, None, "NoneType: give a tensor"),
        (plain, (images(), torch.zeros(2)), "takes 1 inputs.*no labels"),
    ]
    for snn, batch, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            snn.run(batch, 4)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="1 ids for 2 images: give one for each"):
        plain.run(images(), 4, images=["a"])


def test_inputs_hold_as_many_images_each() -> None:
    snn = msat_det.convert(randomise(Fused()), [inputs(1)], "constant")
    batch = inputs(1)
    with pytest.raises(InputError, match=r"hold \[3, 2\] images"):
        snn.run({"image": batch["image"], "depth": batch["depth"][:2]}, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_precision_are_the_same_images(dtype: torch.dtype) -> None:
    snn = spiking_network("constant", OPTIONS, observed("plain"), T)
    batch = images().to(dtype)
    got = snn.run(batch, T)[T]
    assert got.dtype is torch.float32
    assert_same(got, snn.run(batch.float(), T)[T])


@pytest.mark.parametrize("coding", ["rate", "delta"])
def test_a_simulation_returns_its_counts_and_leaves_nothing(coding: str) -> None:
    snn = spiking_network("constant", {"scale": "channel", "coding": coding}, observed("yolo"), T)
    expected = snn.run(images(), T, RECORD)
    counts = snn.counts
    result = snn.simulate(images(3, seed=5), T)
    assert snn.counts is counts
    assert result.counts[T].spikes.shape == (3,)
    again = snn.simulate(images(), T, RECORD)
    assert [each.spikes.tolist() for each in again.counts.values()] == [c.spikes.tolist() for c in counts.values()]
    for t in expected:
        pairs = zip(pytree.tree_leaves(again.outputs[t]), pytree.tree_leaves(expected[t]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_outputs_are_the_callers_to_write_into() -> None:
    snn = spiking_network("constant", OPTIONS, observed("yolo"), T)
    outputs = snn.run(images(), T, RECORD)
    expected = pytree.tree_map(torch.clone, outputs[T])
    for tensor in pytree.tree_leaves(outputs[5]):
        tensor.sigmoid_()
    assert_same(outputs[T], expected)
