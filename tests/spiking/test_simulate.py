"""The spiking network: running means, chunks and batches, exact pooling, counts by brute force."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.networks import NETWORKS, BruteForce, build, images, observed, randomise
from support.simulations import (
    FUNCTIONS,
    Follow,
    LinearNetwork,
    LiveBytes,
    Spikes,
    assert_alike,
    assert_same,
    plain_convolutions,
)
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from msat_det.base.errors import InputError
from msat_det.graph.facts import amend, facts
from msat_det.graph.fanout import fan_out
from msat_det.graph.ops import Activation
from msat_det.graph.trace import trace
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import observe
from msat_det.spiking.energy import UPDATE_MACS
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Neuron

SIGNED = {"scale": "channel", "signed": True, "initial": "half", "gamma": 3}
MSAT = {"variant": "normalised", "scale": "channel", "signed": True, "gamma": 3}


def convert(net: nn.Module, batch: Any, **options: Any) -> SpikingNetwork:
    return spiking_network("constant", SIGNED | options, observe(net, [batch]), 16)


def test_a_network_without_activations_is_exact_at_every_t() -> None:
    net = randomise(LinearNetwork())
    snn = convert(net, images())
    outputs = snn.run(images(seed=3), 5, record=range(1, 6))
    for t in range(1, 6):
        assert_same(outputs[t], net(images(seed=3)), 1e-5)
    assert (snn.counts[5].spikes_per_neuron, snn.counts[5].sops_per_mac) == (0, 0)


def test_outputs_are_running_means_of_what_the_heads_make_of_spikes() -> None:
    net, spikes = build("plain"), Spikes()
    outputs = spiking_network("constant", SIGNED, observed("plain"), 9).run(images(), 9, record=(1, 4, 9), tap=spikes)
    for t, got in outputs.items():
        each = [net.head(y.mean((2, 3))) for y in spikes["features_2_2"][:t]]
        assert_same(got, torch.stack(each).mean(0), 1e-5)


def test_the_last_layer_is_fed_by_the_one_before() -> None:
    """One layer redone by hand: currents from the tapped spikes, potentials by the definition."""
    net, spikes = build("plain"), Spikes()
    snn = spiking_network("constant", {"scale": "channel", "initial": "half"}, observed("plain"), 12)
    snn.run(images(), 12, tap=spikes)
    theta = snn.neurons["features_2_2"].theta.reshape(-1, 1, 1)
    v = torch.zeros_like(spikes["features_2_2"][0]) + theta / 2
    unlike = 0
    for before, after in zip(spikes["features_1_2"], spikes["features_2_2"], strict=True):
        v += net.features[2][1](net.features[2][0](before))
        unlike += ((v >= theta) != (after > 0)).sum().item()
        v -= after
    assert unlike <= 2  # ties


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["constant", "msat"])
def test_every_recorded_t_is_a_run_of_its_own(name: str, method: str) -> None:
    snn = spiking_network(method, SIGNED if method == "constant" else MSAT, observed(name), 16)
    with plain_convolutions():
        whole = snn.run(images(), 12, record=(7, 1, 3, 12, 3))
        counts = snn.counts
        assert list(whole) == [1, 3, 7, 12]
        for t in whole:
            alone = snn.run(images(), t)[t]
            assert pytree.tree_structure(whole[t]) == pytree.tree_structure(alone)
            for a, b in zip(pytree.tree_leaves(whole[t]), pytree.tree_leaves(alone), strict=True):
                assert (a - b).abs().mean() <= 1e-3 * b.abs().max()  # room for one tie
            assert counts[t].spikes.tolist() == pytest.approx(snn.counts[t].spikes.tolist(), rel=1e-3)
            assert counts[t].energy.tolist() == pytest.approx(snn.counts[t].energy.tolist(), rel=1e-3)


class Scores(nn.Module):
    """Outputs that are what neurons send, as it is and by another view, and one that is the image."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = F.relu(self.conv(x))
        return features, self.head(features).sigmoid().flatten(2).transpose(1, 2), x


@pytest.mark.parametrize("method", ["delta", "signed", "msat"])
def test_outputs_that_neurons_send_are_those_of_their_t(method: str) -> None:
    """The state that they are read from goes on."""
    net, x = randomise(Scores()), images()
    snn = spiking_network(method, {}, observe(net, [images(4, seed=100)]), 16)
    with plain_convolutions():
        whole = snn.run(x, 8, record=(1, 2, 8))
        for t, got in whole.items():
            assert_same(got, snn.run(x, t)[t], 1e-6)
    assert not any(torch.equal(a, b) for a, b in zip(whole[1][:2], whole[8][:2], strict=True))
    kept = x.clone()
    whole[8][2].zero_()
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("options", [SIGNED, SIGNED | {"confidence": 0.6}], ids=["plain", "confidence"])
def test_chunks_batches_and_order_do_not_matter(name: str, options: dict) -> None:
    batch, ids = images(3), ["a", 17, "c"]
    with plain_convolutions():
        expected = Spikes()
        snn = spiking_network("constant", options, observed(name), 16, seed=3, chunk=16)
        outputs = snn.run(batch, 16, images=ids, tap=expected)[16]
        counts = snn.counts[16]
        for chunk in (1, 2, 3, 5, None):
            spikes = Spikes()
            other = spiking_network("constant", options, observed(name), 16, seed=3, chunk=chunk)
            got = other.run(batch, 16, images=ids, tap=spikes)[16]
            if assert_alike(spikes, expected):
                assert_same(got, outputs, 1e-4)
                assert torch.equal(other.counts[16].sops, counts.sops)
        for order in ([0], [2], [2, 0, 1]):
            spikes = Spikes()
            got = snn.run(batch[order], 16, images=[ids[i] for i in order], tap=spikes)[16]
            if assert_alike(spikes, expected, order):
                assert_same(got, pytree.tree_map(lambda x, order=order: x[order], outputs), 1e-4)
                assert torch.equal(snn.counts[16].spikes, counts.spikes[order])


@pytest.mark.parametrize("name", NETWORKS)
def test_no_state_is_left_between_runs(name: str) -> None:
    snn = spiking_network("msat", MSAT | {"confidence": 0.5}, observed(name), 16)
    first = snn.run(images(), 9)[9]
    counts = snn.counts[9]
    snn.run(images(3, seed=8), 5)
    assert_same(snn.run(images(), 9)[9], first)
    assert torch.equal(snn.counts[9].spikes, counts.spikes)


def test_images_and_the_network_are_left_as_they_are() -> None:
    batch = images()
    snn = spiking_network("constant", SIGNED, observed("residual"), 8)
    weights = {k: v.clone() for k, v in snn.graph.module.state_dict().items()}
    snn.run(batch, 8)
    assert torch.equal(batch, images())
    assert_same(dict(snn.graph.module.state_dict()), weights)


def test_memory_does_not_grow_with_t() -> None:
    for name in ("yolo", "bottleneck"):
        snn = spiking_network("msat", MSAT, observed(name), 16, chunk=4)
        peaks = {}
        for t in (4, 8, 64):
            with LiveBytes() as meter:
                snn.run(images(), t)
            peaks[t] = meter.peak
        assert peaks[4] > 4 * 2 * 6 * 12 * 12 * 4  # it does measure: one layer's chunk is less than all there is
        assert peaks[64] == peaks[8]


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("chunk", [1, 3])
def test_what_leaves_a_node_means_its_function_of_what_means_enter(function: Callable, chunk: int) -> None:
    """Σ over time of a node's output / n is g(Σ of its input / n) at every n, to 1e-5."""
    graph = trace(randomise(Follow(function)), images())
    first, second = graph.sites
    fine = Neuron(torch.tensor(1e-5), facts(second).activation, gamma=10**8)
    coarse = Neuron(torch.tensor(0.7), facts(first).activation, initial=0.5, signed=True)
    snn = SpikingNetwork(graph, {first.name: coarse, second.name: fine}, fan_out(graph), chunk=chunk)
    spikes = Spikes()
    snn.run(images(), 7, tap=spikes)
    n = torch.arange(1.0, 8).reshape(-1, 1, 1, 1, 1)
    means = spikes[first.name].cumsum(0) / n
    got = spikes[second.name].cumsum(0) / n
    expected = torch.stack([function(x) for x in means])
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item()) + 1e-5


def test_constants_in_time_join_spikes() -> None:
    class Skip(nn.Module):
        """The image itself, and a layer of it that no neuron follows, meet the spikes."""

        def __init__(self):
            super().__init__()
            self.stem, self.side, self.deep = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Conv2d(6, 4, 3)
            self.scale = nn.Parameter(torch.tensor([0.5, 2.0, 1.0]).reshape(3, 1, 1))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = F.relu(self.stem(x)) * self.scale
            z = torch.cat((y + x, self.side(x)), 1)
            return F.relu(self.deep(z)), x.mean((2, 3)) + y.mean((2, 3))

    net = randomise(Skip())
    got = convert(net, images()).run(images(), 400)[400]
    assert_same(got, net(images()), 0.02)


def test_two_inputs() -> None:
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1)

        def forward(self, image: Tensor, depth: Tensor) -> Tensor:
            return self.c(F.relu(self.a(image)) + F.relu(self.b(depth)))

    batch = {"depth": images(channels=1), "image": images()}
    net = randomise(Two())
    by_name = convert(net, batch)
    by_position = convert(net, (batch["image"], batch["depth"]))
    assert_same(by_name.run(batch, 8)[8], by_position.run((batch["image"], batch["depth"]), 8)[8])
    assert_same(by_name.run(batch, 200)[200], net(**batch), 0.03)
    with pytest.raises(InputError, match="image"):
        by_name.run(batch["image"], 2)


@pytest.mark.parametrize("name", ["silu", "hardswish", "sigmoid", "leaky_relu", "tanh", "prelu"])
def test_other_activations_are_tracked(name: str) -> None:
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)
            self.slope = nn.Parameter(torch.linspace(0.1, 0.4, 4))

        def forward(self, x: Tensor) -> Tensor:
            act = getattr(F, name)
            more = (self.slope,) if name == "prelu" else ()
            return self.c(act(self.b(act(self.a(x), *more)), *more))

    net = randomise(Other())
    got = convert(net, images(), gamma=4).run(images(seed=4), 200)[200]
    assert_same(got, net(images(seed=4)), 0.02)


@pytest.mark.parametrize("method", ["constant", "msat"])
@pytest.mark.parametrize("name", NETWORKS)
def test_nan_in_an_image_names_the_call_site(name: str, method: str) -> None:
    snn = spiking_network(method, {}, observed(name), 8)
    batch = images()
    batch[1, 2, 3, 4] = float("nan")
    first = snn.graph.sites[0].name
    with pytest.raises(InputError, match=f"'{first}'.*NaN") as caught:
        snn.run(batch, 8)
    assert "\n" not in str(caught.value)


def test_a_threshold_that_makes_nan_names_its_call_site() -> None:
    snn = spiking_network("constant", {}, observed("plain"), 8)
    sound = snn.neurons["features_1_2"]
    for bad in (float("nan"), float("inf")):
        spoilt = replace(sound)
        object.__setattr__(spoilt, "theta", torch.tensor(bad))  # which ``Neuron`` itself refuses
        snn.neurons["features_1_2"] = spoilt
        with pytest.raises(InputError, match="'features_1_2'"):
            snn.run(images(), 8)


def test_neurons_do_not_overwrite_what_a_product_of_one_lets_through() -> None:
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(F.relu(self.first(x)))
            same = torch.einsum("bchw->bchw", x)  # no tensor of its own
            return self.last(F.relu(same) + F.relu(-x))

    net = randomise(Twice())
    got = convert(net, images(), gamma=4).run(images(), 200)[200]
    assert_same(got, net(images()), 0.02)


def test_bad_requests() -> None:
    snn = spiking_network("constant", {}, observed("plain"), 8)
    for record in ([0, 4], [9], [], [-1]):
        with pytest.raises(InputError, match="recorded timesteps"):
            snn.run(images(), 8, record=record)
    with pytest.raises(InputError, match="T is 0: give a whole number"):
        snn.run(images(), 0)
    neurons = dict(snn.neurons)
    del neurons["features_1_2"]
    with pytest.raises(InputError, match="features_1_2"):
        SpikingNetwork(snn.graph, neurons, snn.fanout)


def pool_differences(name: str, spikes: Spikes, brute: BruteForce) -> Tensor:
    """(B,) multiply-adds of max pooling's differences that are not zero, in the YOLO-like network of ``networks``."""
    if name != "yolo":
        return torch.zeros(2, dtype=torch.float64)
    pools = {
        "fine_1": ("fine_0_2", lambda x: F.max_pool2d(x, 2)),
        "coarse_0": ("fine_2_2", lambda x: F.max_pool2d(x, 2)),
        "max_pool2d": ("coarse_1_2", lambda x: F.max_pool2d(x, 3, 1, 1)),
    }
    total = torch.zeros(2, dtype=torch.float64)
    for pool, (site, function) in pools.items():
        running = torch.zeros_like(spikes[site][0])
        before = torch.zeros_like(function(running))
        for y in spikes[site]:
            running = running + y
            after = function(running)
            total += ((after != before) * brute.reach[pool]).flatten(1).sum(1)
            before = after
    return total


@pytest.mark.parametrize("stages", [(1.0,), (2.0, 1.0, 0.5)])
@pytest.mark.parametrize("name", NETWORKS)
def test_counts_and_energy_are_those_of_brute_force(name: str, stages: tuple) -> None:
    brute, spikes, T = BruteForce(build(name), images()), Spikes(), 10
    snn = spiking_network("constant", SIGNED | {"stages": stages, "gamma": 15}, observed(name), T)
    snn.run(images(), T, tap=spikes)
    counts = snn.counts[T]
    heights = torch.tensor([stages[min(t, len(stages) - 1)] for t in range(T)]).reshape(-1, 1, 1, 1, 1)
    total, sops, neurons = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), 0
    for site, y in spikes.items():
        theta = snn.neurons[site].theta.reshape(-1, 1, 1)
        size = torch.where(theta > 0, y / (heights * theta), y).abs().double()
        assert (size - size.round()).max() < 1e-3
        size = size.round().sum(0)
        total += size.flatten(1).sum(1)
        sops += (size * brute.reach[site]).flatten(1).sum(1)
        neurons += y[0, 0].numel()
    differences = pool_differences(name, spikes, brute)
    assert torch.equal(counts.spikes, total)
    assert torch.equal(counts.sops, sops + differences)
    assert counts.neurons == neurons
    assert counts.macs == sum(brute.macs.values())
    assert counts.spikes_per_neuron == pytest.approx(total.mean().item() / neurons)
    assert counts.sops_per_mac == pytest.approx((sops + differences).mean().item() / counts.macs)
    # 45 nm, pJ: 0.9 an accumulation, 4.6 a multiply-add; a stage's factor folds
    energy = 0.9 * sops + 4.6 * (differences + brute.once + T * sum(brute.analog.values()))
    assert counts.energy.tolist() == pytest.approx(energy.tolist())
    assert counts.energy_ratio == pytest.approx(energy.mean().item() / (4.6 * counts.macs))


def test_graded_spikes_are_multiply_adds_and_threshold_updates_cost() -> None:
    brute, spikes, T = BruteForce(build("plain"), images()), Spikes(), 10
    snn = spiking_network("msat", {"gamma": 3, "signed": True, "variant": "normalised"}, observed("plain"), T)
    snn.run(images(), T, tap=spikes)
    events = sum((((y != 0) * brute.reach[site]).flatten(2).sum((0, 2))) for site, y in spikes.items())
    updates = snn.counts[T].energy / 4.6 - events - brute.once
    per_update = updates / (snn.counts[T].neurons * (T - 1))
    assert per_update.tolist() == pytest.approx([UPDATE_MACS] * 2)  # none at t = 0, where θ is θ_max
    assert UPDATE_MACS >= 5  # eqs. 15–17 need at least this many


def test_curved_activations_cost_an_evaluation_in_every_step() -> None:
    def energy(activation: type[nn.Module]) -> Tensor:
        net = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), activation(), nn.Conv2d(4, 2, 1)))
        snn = convert(net, images())
        site = snn.graph.sites[0]
        curved = replace(facts(site).activation, curved=False)
        costs = []
        for act in (facts(site).activation, curved):
            snn.neurons[site.name] = replace(snn.neurons[site.name], activation=act)
            amend(site, activation=act)
            snn.run(images(), 6)
            costs.append(snn.counts[6].energy)
        return (costs[0] - costs[1]) / 4.6

    assert energy(nn.SiLU).tolist() == pytest.approx([6 * 400] * 2)
    assert energy(nn.LeakyReLU).tolist() == [0, 0]


def test_tracking_neuron_of_any_function() -> None:
    """The converter's Activation is all that a neuron needs: f is its own documentation."""
    cubic = Activation("cubic", lambda x: x**3 / 4)
    graph = trace(randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), images())
    site = graph.sites[0]
    neuron = Neuron(torch.tensor(0.05), cubic, gamma=10_000)
    snn = SpikingNetwork(graph, {site.name: neuron}, fan_out(graph))
    got = snn.run(images(), 3)[3]
    assert (
        got - cubic.fn(graph.module.get_submodule(graph.nodes[1].target)(images()))
    ).abs().max() <= 0.05 / 2 / 3 + 1e-4
