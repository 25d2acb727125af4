"""The ledger: parts that add up on every call site under every method, and each part against its definition."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.networks import NETWORKS, block, images, observed, randomise
from support.options import OPTIONS
from support.simulations import LiveBytes, plain_convolutions
from torch import Tensor, nn

from msat_det.graph.ops import Activation
from msat_det.measure.effects import output_error
from msat_det.measure.ledger import BINS, PARTS, Ledger, ledger, split
from msat_det.methods import METHODS
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import observe
from msat_det.spiking.delta import resting_output
from msat_det.spiking.energy import UPDATE_MACS, prices
from msat_det.spiking.kernels import Scan
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Msat, Neuron, adaptive_threshold, new_state, step

T = 8
RELU = Activation("relu", torch.relu, rectified=True)
BURSTS = {"scale": "channel", "percentile": 99.0, "signed": True, "gamma": 3, "initial": "half"}
CASES = [(m, n, {}) for m in METHODS for n in NETWORKS]
CASES += [(m, "yolo", options) for m in ("constant", "msat", "channel-norm") for options in OPTIONS]
CASES += [("msat", "yolo", {"coding": "delta"}), ("delta", "yolo", {"terms": [2, 1], "zone": [1, 0.5], "bits": 5})]
CASES += [("constant", "bottleneck", BURSTS | {"spiking_linear": True}), ("msat", "residual", {"variant": "paper"})]


@pytest.fixture(scope="module", params=CASES, ids=[f"{m} {n} {'+'.join(o)}" for m, n, o in CASES])
def snn(request: pytest.FixtureRequest) -> SpikingNetwork:
    """What a case converts to."""
    method, network, options = request.param
    return spiking_network(method, options, observed(network), T, seed=1)


def means(snn: SpikingNetwork, batch: Tensor, steps: int) -> dict[str, dict[str, Tensor]]:
    """By taps of our own: {call site: float activation, mean current, mean output}, (B, C, …) each; under delta coding
    sums in place of means."""
    alone, delta = SpikingNetwork(snn.graph, snn.neurons, snn.fanout, snn.seed, chunk=1), snn.coding == "delta"
    found = {node.name: {"a": value} for node, value in snn.graph.walk(batch) if node.name in snn.neurons}
    if delta:
        for name, own in found.items():
            own["y"] = resting_output(snn.neurons[name], own["a"])

    def watch(name: str, scan: Scan, x: Tensor) -> None:
        found[name]["x"] = x[0].clone() if delta else found[name].get("x", 0) + x[0] / steps

    def tap(name: str, y: Tensor) -> None:
        found[name]["y"] = found[name].get("y", 0) + y[0] / (1 if delta else steps)

    alone.run(batch, steps * next((n.window for n in snn.neurons.values() if n.window), 1), tap=tap, watch=watch)
    return found


def test_the_parts_add_up_on_every_call_site(snn: SpikingNetwork) -> None:
    found = ledger(snn, [images(3)], T).entries
    window = next(iter(snn.neurons.values())).window or 1
    assert [entry.site for entry in found] == [node.name for node in snn.graph.sites]
    for entry, (name, mean) in zip(found, means(snn, images(3), T // window).items(), strict=True):
        assert entry.site == name
        assert sum(getattr(entry, part) for part in PARTS) == pytest.approx(entry.total, rel=1e-6)
        size = mean["a"].norm()
        driven = snn.neurons[name].activation.fn(mean["x"])
        assert entry.total == pytest.approx(((mean["y"] - mean["a"]).norm() / size).item(), rel=1e-3)
        assert entry.own_norm == pytest.approx(((mean["y"] - driven).norm() / size).item(), rel=1e-3, abs=1e-6)
        assert entry.inherited_norm == pytest.approx(((driven - mean["a"]).norm() / size).item(), rel=1e-3, abs=1e-5)
        assert min(entry.sin_ratio, entry.dead, entry.saturated, entry.over, entry.effect) >= 0
        assert max(entry.sin_ratio, entry.dead, entry.saturated, entry.over) <= 1
    assert found[0].inherited_norm < 1e-5  # nothing comes before it


def test_costs_of_all_nodes_are_the_whole_runs(snn: SpikingNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    book = ledger(snn, [images(2), images(2, seed=7)], T, effects=False)
    totals = dict.fromkeys(("spikes", "sops", "pools"), 0.0)
    for batch, first in ((images(2), 0), (images(2, seed=7), 2)):
        monkeypatch.setattr(snn, "chunk", 1)
        snn.run(batch, T, images=[first, first + 1])
        counts, price = snn.counts[T], prices("45nm-int8" if snn.method == "int8" else "45nm")
        totals["spikes"] += counts.spikes.sum().item() / 4
        rest = {name: cost for name, cost in counts.costs.items() if name not in snn.neurons}
        totals["pools"] += sum(cost.sops.sum().item() for cost in rest.values()) / 4
        totals["sops"] += counts.sops.sum().item() / 4
        priced = sum(price.mac * cost.macs + price.ac * cost.accumulations for cost in counts.costs.values())
        assert priced.expand_as(counts.energy).tolist() == pytest.approx(counts.energy.tolist(), rel=1e-9)
        # after an add or a pooling several neurons' spikes reach the same multiply-add
        assert sum(cost.float_macs.item() for cost in counts.costs.values()) >= counts.macs
    assert sum(e.spikes for e in book.entries) == pytest.approx(totals["spikes"], rel=1e-9)
    assert sum(e.sops for e in book.entries) + totals["pools"] == pytest.approx(totals["sops"], rel=1e-9)
    for entry in book.entries:
        neuron = snn.neurons[entry.site]
        assert entry.spikes_per_neuron == pytest.approx(entry.spikes / entry.neurons)
        assert entry.updates == ((T - 1) * entry.neurons if neuron.adaptive else 0)
        assert entry.graded == (pytest.approx(entry.sops) if neuron.graded and neuron.gamma == 1 else entry.graded)
        assert entry.float_traffic == 8 * entry.neurons


def test_state_traffic_is_what_a_neuron_must_keep() -> None:
    one = torch.ones(1)

    def words(**options: Any) -> int:
        return len(Neuron(one, RELU, **options).keeps)

    assert words() == 1
    assert words(signed=True) == 2
    assert words(adaptive=Msat(), signed=True) == 3
    assert words(adaptive=Msat(drive="depolarisation")) == 3
    assert len(Neuron(one, Activation("silu", nn.SiLU())).keeps) == 2
    snn = spiking_network("constant", {"signed": True}, observed("plain"), T)
    first = ledger(snn, [images()], T).entries[0]
    assert first.traffic == 2 * 8 * T * first.neurons  # potential and output sum, 4 bytes, there and back


def test_each_part_by_its_definition() -> None:
    """Five neurons, one for each thing that can go wrong, and one without fault."""
    neuron = Neuron(torch.tensor(1.0), RELU)
    a = torch.tensor([[3.0, 0.0, 0.0, 0.7, 0.5]])  # float activation
    x = torch.tensor([[2.5, 0.3, -0.2, 0.7, 0.5]])  # what came in
    y = torch.tensor([[1.0, 0.5, 0.25, 0.5, 0.5]])  # what went out; 1 can be reached
    parts = split(neuron, a, x, y, torch.ones(1, 5))
    expected = {
        "inherited": [-0.5, 0.3, 0.0, 0.0, 0.0],
        "clipping": [-1.5, 0.0, 0.0, 0.0, 0.0],
        "sin": [0.0, 0.2, 0.25, 0.0, 0.0],
        "quantisation": [0.0, 0.0, 0.0, -0.2, 0.0],
    }
    for name, values in expected.items():
        assert parts[name][0].tolist() == pytest.approx(values), name
    assert sum(parts.values()).allclose(y - a)


@pytest.mark.parametrize("gamma", [1, 2])
def test_clipping_begins_where_firing_at_full_rate_ends(gamma: int) -> None:
    """One layer, thresholds at half of the largest activation: what lies above is lost, γ = 2 reaches it again."""
    net = randomise(nn.Sequential(block(3, 4), nn.Conv2d(4, 2, 1)))
    observation = observe(net, [images(4)])
    snn = spiking_network("constant", {"factor": 0.5, "gamma": gamma, "initial": "half"}, observation, 14)
    entry = ledger(snn, [images(4)], 14).entries[0]  # before anything overflows
    a = net[0](images(4))
    lost = (a - a.amax() / 2).clamp(min=0)
    assert entry.clipping_norm == pytest.approx(
        (lost.norm() / a.norm()).item() if gamma == 1 else 0.0, rel=1e-3, abs=1e-6
    )
    over = (lost > 0).float().mean().item()
    assert entry.saturated == pytest.approx(over if gamma == 1 else 0.0, rel=0.15, abs=1e-3)
    assert entry.sin_ratio == entry.over == 0.0  # a constant current makes no neuron fire too much
    assert entry.dead == pytest.approx(
        ((a > 0) & (a * 14 < a.amax() / 4)).sum().item() / (a > 0).sum().item(), abs=0.01
    )


def test_quantisation_is_the_residual_potential() -> None:
    """Eq. 5: without clipping and SIN, ȳ = x̄ − (V(T) − V(−1))/T on neurons that are driven."""
    snn = spiking_network("constant", {"signed": True, "gamma": 3}, observed("plain"), 16)
    site = snn.graph.sites[1].name
    scans: dict[str, Scan] = {}
    snn.run(images(), 16, watch=lambda name, scan, x: scans.setdefault(name, scan))
    mean = means(snn, images(), 16)[site]
    parts = split(snn.neurons[site], mean["a"], mean["x"], mean["y"], torch.full_like(mean["a"], 1e9))
    driven = mean["x"] > 0
    own = parts["quantisation"] + parts["sin"]
    assert torch.allclose(own[driven], -scans[site].state.v[driven] / 16, atol=1e-4)


def test_the_inherited_part_is_what_the_layer_makes_of_the_error_before() -> None:
    """Eq. 7: f(W·ȳ) − f(W·a), with the layer's own batch norm."""
    net_block = observed("plain").graph
    snn = spiking_network("constant", BURSTS, observed("plain"), T)
    mean = means(snn, images(), T)
    first, second = (node.name for node in snn.graph.sites[:2])
    source = snn.graph.sites[1].all_input_nodes[0]
    layer = net_block.module.get_submodule(source.target)
    handed_on = torch.relu(layer(mean[first]["y"])) - torch.relu(layer(mean[first]["a"]))
    entry = next(e for e in ledger(snn, [images()], T).entries if e.site == second)
    assert entry.inherited_norm == pytest.approx((handed_on.norm() / mean[second]["a"].norm()).item(), rel=1e-3)


def test_the_effect_of_the_last_call_site_is_what_the_head_makes_of_its_error() -> None:
    snn = spiking_network("constant", BURSTS, observed("plain"), T)
    last = snn.graph.sites[-1].name
    mean = means(snn, images(), T)[last]
    head = snn.graph.module.get_submodule("head")
    driven = torch.relu(mean["x"])
    error = (mean["y"] - driven).mean((2, 3)) @ head.weight.T
    expected = (error.norm() / (mean["a"].mean((2, 3)) @ head.weight.T).norm()).item()
    book = ledger(snn, [images()], T, record=[4, T])
    assert book.at(T)[-1].effect == pytest.approx(expected, rel=1e-3)
    assert all(entry.effect != entry.effect for entry in book.at(4))  # NaN: of the last t alone
    outputs = snn.run(images(), T)[T]
    float_outputs = snn.graph(images())
    assert book.outputs[T] == pytest.approx(
        ((outputs - float_outputs).norm() / (float_outputs - head.bias).norm()).item(), rel=1e-3
    )


def test_a_record_may_end_before_T() -> None:
    """Then its last timestep is the last of all."""
    snn = spiking_network("constant", BURSTS, observed("plain"), T)
    assert ledger(snn, [images()], T, record=[2, 4]).at(4) == ledger(snn, [images()], 4, record=[2, 4]).at(4)


def test_the_error_of_silence_is_one() -> None:
    for network in NETWORKS:
        snn = spiking_network("constant", {"factor": 1e6}, observed(network), 2)
        assert ledger(snn, [images()], 2).outputs[2] == pytest.approx(1.0, abs=1e-5)
        assert output_error(snn, [images(3)], 2) == pytest.approx(1.0, abs=1e-5)


def test_sin_stays_where_spikes_cannot_be_taken_back() -> None:
    """Deeper layers fire at first where they should not: an unsigned neuron keeps that, a signed one takes it back."""

    def conversion(signed: bool) -> Ledger:
        options = {"signed": signed, "initial": "half", "scale": "channel"}
        return ledger(spiking_network("constant", options, observed("yolo"), 64), [images(4)], 64, record=[2, 64])

    unsigned, signed = conversion(False), conversion(True)
    assert unsigned.at(64)[0].sin_ratio == 0.0  # a constant current never brings it about
    for early, late, mended in list(zip(unsigned.at(2), unsigned.at(64), signed.at(64), strict=True))[1:]:
        assert 0.01 < early.sin_ratio < late.sin_ratio
        assert mended.sin_ratio < late.sin_ratio / 4
        assert mended.sin_norm < late.sin_norm / 4
        assert mended.over < late.over


def test_the_reach_of_a_varying_threshold_is_the_sum_of_its_thresholds() -> None:
    """MSAT, redone step by step: clipping as γ·Σθ/t has it, and θ(t) of the chosen neurons (Fig. 5)."""
    options = {"variant": "normalised", "scale": "channel", "rounding": "track", "factor": 0.6, "stages": [1, 0.5]}
    snn = spiking_network("msat", options, observed("plain"), T)
    site = snn.graph.sites[0]
    neuron, x = snn.neurons[site.name], dict(snn.graph.walk(images()))[site.all_input_nodes[0]]
    state, thresholds, sent = new_state(neuron, x, True), [], 0
    for t in range(T):
        before = state.v + x
        thresholds.append(adaptive_threshold(neuron, state, x, before, t) * neuron.stage(t))
        sent = sent + step(neuron, state, x, t)[1]
    reach, a = sum(t.expand(x.shape) for t in thresholds) / T, torch.relu(x)
    book = ledger(snn, [images()], T, chosen={site.name: [0, 5, 17]})
    entry = book.entries[0]
    assert entry.clipping_norm == pytest.approx(((a - reach).clamp(min=0).norm() / a.norm()).item(), rel=1e-3)
    assert entry.clipping_norm > 0.05
    expected = torch.stack([t.expand(x.shape)[0].flatten()[[0, 5, 17]] for t in thresholds], 1)
    assert torch.allclose(book.traces[site.name], expected, rtol=1e-4)
    assert entry.total == pytest.approx(((sent / T - a).norm() / a.norm()).item(), rel=1e-3)


@pytest.mark.parametrize("method", ["constant", "msat"])
def test_a_dead_channel_is_all_clipping(method: str) -> None:
    snn = spiking_network(method, {"scale": "channel"}, observed("plain"), T)
    site = snn.graph.sites[0].name
    theta = snn.neurons[site].theta.clone()
    theta[2] = 0.0
    dead = SpikingNetwork(snn.graph, dict(snn.neurons) | {site: replace(snn.neurons[site], theta=theta)}, snn.fanout)
    whole, cut = ledger(snn, [images()], T).entries[0], ledger(dead, [images()], T).entries[0]
    a = {node.name: value for node, value in snn.graph.walk(images())}[site]
    lost, before = (a[:, 2].norm() / a.norm()).item(), whole.clipping_norm
    assert lost**2 > 0.01
    assert cut.clipping_norm**2 == pytest.approx(lost**2, rel=1e-2) if before == 0 else cut.clipping_norm >= lost
    assert cut.dead > whole.dead


def test_traces_are_of_the_first_image() -> None:
    snn = spiking_network("msat", {"variant": "normalised"}, observed("plain"), T)
    alone, more = (ledger(snn, batches, T).traces for batches in ([images()], [images(), images(seed=9)]))
    assert len(alone) == 3
    for name, rows in alone.items():
        assert torch.equal(rows, more[name])


def test_memory_grows_neither_with_t_nor_with_images() -> None:
    snn = spiking_network("msat", {"variant": "normalised", "signed": True}, observed("yolo"), T)
    peaks = []
    for steps, count in ((8, 2), (32, 2), (8, 6)):
        with LiveBytes() as meter:
            ledger(snn, (images() for _ in range(count)), steps, chosen={}, effects=False)
        peaks.append(meter.peak)
    assert max(peaks) < 1.001 * peaks[0]


def test_batches_do_not_matter_and_chunks_of_the_network_neither() -> None:
    snn = spiking_network("msat", {"variant": "normalised", "signed": True}, observed("yolo"), T, chunk=4)
    with plain_convolutions():
        whole = ledger(snn, [images(4)], T, effects=False)
        parts = ledger(snn, [images(4)[:3], images(4)[3:]], T, effects=False)
    for one, other in zip(whole.entries, parts.entries, strict=True):
        for name in ("total", *PARTS, "sin_ratio", "dead", "saturated", "spikes_per_neuron", "sops", "traffic"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=0.02, abs=1e-3), (one.site, name)
    for name, counts in whole.residuals.items():
        assert counts.shape == (BINS,)
        assert counts.sum().item() == pytest.approx(1)
        assert torch.allclose(counts, parts.residuals[name], atol=0.01)
    assert list(whole.traces) == list(parts.traces)


def test_tracking_neurons_of_curved_activations_have_no_sin() -> None:
    net = randomise(nn.Sequential(block(3, 6, act=nn.SiLU), block(6, 6, act=nn.LeakyReLU), nn.Conv2d(6, 2, 1)))
    observation = observe(net, [images(4)])
    for method in ("constant", "channel-norm"):
        for entry in ledger(spiking_network(method, {}, observation, T), [images()], T).entries:
            assert sum(getattr(entry, part) for part in PARTS) == pytest.approx(entry.total, rel=1e-6)
            assert (entry.sin, entry.inactive) == (0, 0)


def test_a_call_site_that_is_silent_in_float_has_no_relative_error() -> None:
    net = randomise(nn.Sequential(block(3, 4), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    net[1].weight.zero_()
    net[1].bias.fill_(-1.0)
    entry = ledger(spiking_network("constant", {}, observe(net, [images()]), T), [images()], T).entries[1]
    assert entry.total != entry.total
    assert (entry.inactive, entry.sin_ratio, entry.dead) == (1.0, 0.0, 0.0)


def test_the_ledger_leaves_the_network_alone() -> None:
    snn = spiking_network("constant", BURSTS, observed("residual"), T)
    before = copy.copy(snn.neurons)
    outputs = snn.run(images(), T)[T]
    ledger(snn, [images()], T)
    assert snn.neurons == before
    assert torch.equal(snn.run(images(), T)[T], outputs)
    assert UPDATE_MACS == 9
