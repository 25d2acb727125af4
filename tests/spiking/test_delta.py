"""Delta coding: sums that are exact for every node, corrections that end, work that follows change (docs/delta.md)."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.corrections import ACTIVATIONS, NEURONS, SHAPES, THETA, check_corrections
from support.networks import NETWORKS, build, images, observed, randomise
from support.simulations import FUNCTIONS, Follow, LinearNetwork, Spikes, assert_same
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from msat_det.base.errors import InputError
from msat_det.graph.facts import facts
from msat_det.graph.fanout import fan_out
from msat_det.graph.graph import Graph
from msat_det.graph.ops import Activation
from msat_det.graph.trace import trace
from msat_det.methods import METHODS, parse_options
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import observe
from msat_det.spiking import kernels
from msat_det.spiking.delta import delta_step, new_delta_state
from msat_det.spiking.kernels.delta import Corrections
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Msat, Neuron

FINE = {"bits": 12, "terms": 12, "percentile": 100.0}


def delta(name: str, **options: Any) -> SpikingNetwork:
    return spiking_network("delta", options, observed(name), 8)


def neuron(name: str = "relu", fn: Callable = torch.relu, **options: Any) -> Neuron:
    return Neuron(torch.tensor(0.25), Activation(name, fn, rectified=name == "relu"), coding="delta", **options)


def test_golden_trace() -> None:
    """θ = .25, two terms of four bits, X = 1.3 at first and then .2: by hand."""
    made, X = neuron(bits=4, terms=(2, 1)), torch.full((1, 1), 1.3)
    state = new_delta_state(made, X)
    got = []
    for t, x in enumerate((X, X, torch.full((1, 1), 0.2), torch.full((1, 1), 0.2))):
        s, spikes, y = delta_step(made, state, x, t)
        got.append((s.item(), spikes.item(), round(y.item(), 6), round(state.o.item(), 6)))
    # 5.2: 4 and 1; .2 below the zone; −4.2: −4; −.2
    assert got == [(5, 2, 1.25, 1.25), (0, 0, 0, 1.25), (-4, 1, -1, 0.25), (0, 0, 0, 0.25)]


def test_a_linear_network_is_exact_from_the_first_timestep_on() -> None:
    net = randomise(LinearNetwork())
    snn = spiking_network("delta", {}, observe(net, [images()]), 8)
    outputs = snn.run(images(seed=3), 3, record=(1, 2, 3))
    for got in outputs.values():
        assert_same(got, net(images(seed=3)), 1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "eager"])
def test_the_sums_become_the_float_network(name: str, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With levels fine enough, and no error of the layers before: within zone · θ of f(X) after enough timesteps."""
    if not kernel:
        monkeypatch.setattr("msat_det.spiking.kernels.cpu_delta.library", lambda: None)
    snn, sent = delta(name, **FINE), Spikes()
    got = snn.run(images(), 6, tap=sent)[6]
    assert_same(got, build(name)(images()), 0.01)
    X: dict[str, Tensor] = {}
    snn.run(images(), 6, watch=lambda site, scan, sums: X.update({site: sums[0].clone()}))
    for site, y in sent.items():
        made = snn.neurons[site]
        theta = made.theta.reshape(-1, *([1] * (y.dim() - 3)))
        error = (y.sum(0) - made.activation.fn(X[site])).abs()
        assert (error <= 0.5 * theta + 1e-4 * y.sum(0).abs().max()).all()


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_what_leaves_a_node_sums_to_its_function_of_the_sums_that_enter(function: Callable) -> None:
    graph = trace(randomise(Follow(function)), images())
    first, second = graph.sites
    fine = Neuron(torch.tensor(1e-5), facts(second).activation, gamma=10**8, coding="delta")
    coarse = Neuron(torch.tensor(0.7), facts(first).activation, coding="delta", gamma=2)
    snn = SpikingNetwork(graph, {first.name: coarse, second.name: fine}, fan_out(graph))
    spikes = Spikes()
    snn.run(images(), 4, tap=spikes)
    into, out = (spikes[site.name].cumsum(0) for site in (first, second))
    expected = torch.stack([function(x) for x in into])
    assert (out - expected).abs().max() <= 2e-5 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "silu", "hardswish", "sigmoid", "tanh", "gelu"])
def test_any_activation(name: str) -> None:
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            act = getattr(F, name)
            return self.c(act(self.b(act(self.a(x)))))

    net = randomise(Other())
    snn = spiking_network("delta", FINE, observe(net, [images()]), 8)
    assert_same(snn.run(images(), 4)[4], net(images()), 0.01)


@pytest.mark.parametrize("name", NETWORKS)
def test_events_and_the_dense_way_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions that are updated by events send what those on the sums do, but for ties."""
    found = []
    for crossover in (lambda conv: 1.0, lambda conv: -1.0):
        monkeypatch.setattr("msat_det.spiking.kernels.events.crossover", crossover)
        snn, sent = delta(name, bits=6, terms=1), Spikes()
        outputs = snn.run(images(), 5, record=(1, 3, 5), tap=sent)
        found.append((outputs, sent, snn.counts[5]))
    (a, sent_a, counts_a), (b, sent_b, counts_b) = found
    for site, y in sent_a.items():
        assert ((y - sent_b[site]).abs() > 1e-4).float().mean() < 0.01
    for t in a:
        assert_same(a[t], b[t], 0.05)
    assert counts_a.spikes.tolist() == pytest.approx(counts_b.spikes.tolist(), rel=0.01)


def test_nothing_is_computed_where_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    snn, called = delta("yolo"), []
    plain = Graph.evaluate
    monkeypatch.setattr(Graph, "evaluate", lambda self, node, values: called.append(node) or plain(self, node, values))
    snn.run(images(), 1)
    once = len(called)
    called.clear()
    outputs = snn.run(images(), 40, record=(20, 40))
    assert len(called) < 12 * once  # it has settled long before 40
    assert all(torch.equal(a, b) for a, b in zip(*map(pytree.tree_leaves, outputs.values()), strict=True))
    events = [snn.counts[t].events.sum().item() for t in (20, 40)]
    assert events[0] == events[1] > 0


def test_the_image_enters_once() -> None:
    """The first layer is paid once, whatever T is, and no bias is added again."""
    snn = delta("plain")
    snn.run(images(), 8, record=(1, 8))
    first, last = (snn.counts[t].costs["(constant input)"] for t in (1, 8))
    assert first.macs == last.macs > 0
    site, X = snn.graph.sites[0], []
    snn.run(images(), 2, watch=lambda name, scan, sums: X.append((name, sums.clone())))
    seen = [x for name, x in X if name == site.name]
    assert all(torch.equal(x, seen[0]) for x in seen)


@pytest.mark.parametrize("options", NEURONS.values(), ids=NEURONS)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_the_readable_step(options: dict, name: str, shape: tuple) -> None:
    if kernels.cpu_delta.library() is None:
        pytest.skip("no compiler")
    check_corrections(Neuron(THETA, ACTIVATIONS[name], coding="delta", **options), shape)


def test_neurons_that_slept_are_passed_over_while_nothing_comes() -> None:
    if kernels.cpu_delta.library() is None:
        pytest.skip("no compiler")
    group = 128
    x = torch.cat((torch.zeros(group), torch.linspace(0, 9, group), torch.full((3,), 5.0))).reshape(1, 1, -1)
    neuron = Neuron(torch.tensor([0.1]), ACTIVATIONS["relu"], coding="delta", bits=5, terms=(1,))
    told, untold = (Corrections(neuron, x, torch.ones(x.shape[1:])) for _ in range(2))
    for t in range(2):
        assert torch.equal(told.step(x, t, wanted=True, moved=t == 0), untold.step(x, t, wanted=True))
    assert torch.equal(told.output, untold.output)
    assert torch.equal(told.counts, untold.counts)
    assert told.sent
    sent = told.step(x + 1, 2, wanted=True, moved=False)  # no one would call it so: only those awake take notice
    assert not sent[..., :group].any()
    assert sent[..., group:].all()


def test_counts_are_exact_where_they_pass_what_a_float_holds() -> None:
    x = torch.full((1, 1, 1000), 3.0)
    neuron = Neuron(torch.ones(1), ACTIVATIONS["relu"], coding="delta", bits=4, terms=(3,))
    for reach in (2**21 + 1, 2**24 - 1):
        corrections = Corrections(neuron, x, torch.full(x.shape[1:], reach))
        corrections.step(x, 0, wanted=False)
        assert corrections.counts.tolist() == [[2000, 2000 * reach, 1000, 1000 * reach]]  # 3 = 4 − 1


def test_a_bias_that_changes_wakes_neurons_that_had_nothing_to_send() -> None:
    """After two timesteps all is sent; the bias of the eighth is sent then, whether or not somebody looks on."""
    snn = delta("plain", terms=(8,), bits=8)
    quiet = {
        name: replace(made, steps=None, bias=torch.zeros(8, made.theta.numel()).index_fill(0, torch.tensor(7), 0.5))
        for name, made in snn.neurons.items()
    }
    snn = SpikingNetwork(snn.graph, quiet, snn.fanout)
    plain, watched = (snn.run(images(), 9, (7, 8, 9), tap=tap) for tap in (None, Spikes()))
    assert not torch.allclose(watched[8], watched[7], atol=1e-2)
    for t, expected in watched.items():
        assert torch.equal(plain[t], expected)


def test_a_potential_that_is_no_number_is_told() -> None:
    net = build("plain")
    snn = spiking_network("delta", {}, observe(net, [images()]), 2)
    with pytest.raises(InputError, match=r"node 'features_0_2' .*potential is NaN by timestep 1"):
        snn.run(images() * math.nan, 2)


def test_adaptive_thresholds_follow_the_error() -> None:
    """MSAT under delta coding, by hand: Δ is the error that is left above its running mean."""
    made = replace(neuron(gamma=9), adaptive=Msat(normalised=True, det=False), theta=torch.tensor(1.0))
    X = torch.full((1, 1), 2.3)
    state = new_delta_state(made, X)
    delta_step(made, state, X, 0)
    assert state.v.item() == pytest.approx(0.3)
    assert state.mean.item() == pytest.approx(0.3)
    _, _, y = delta_step(made, state, X, 1)
    theta = 1 / (1 + math.exp(-(-1 + math.log(2))))  # Δ = 0
    assert y.item() == pytest.approx(theta * math.floor(0.3 / theta + 0.5))


def test_codings_do_not_mix() -> None:
    snn = delta("plain")
    name = snn.graph.sites[0].name
    mixed = snn.neurons | {name: replace(snn.neurons[name], coding="rate")}
    with pytest.raises(InputError, match="one coding"):
        SpikingNetwork(snn.graph, mixed, snn.fanout).run(images(), 1)


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        ("constant", {"coding": "delta", "confidence": 0.5}, "confidence"),
        ("constant", {"coding": "delta", "initial": "half"}, "initial"),
        ("constant", {"coding": "delta", "rounding": "fixed"}, "rounding"),
        ("constant", {"zone": 1.0}, "zone"),
        ("constant", {"terms": 2}, "terms"),
        ("constant", {"levels": "binary", "bits": 0}, "bits"),
        ("constant", {"levels": "binary", "bits": 17}, "bits"),
        ("constant", {"levels": "binary", "terms": [1.5]}, "terms"),
        ("delta", {"zone": 0.4}, "zone"),
        ("delta", {"zone": [0.5, -1]}, "zone"),
        ("tsc", {"coding": "delta"}, "tsc has no coding delta"),
        ("int8", {"coding": "rate"}, "int8 has no coding rate"),
    ],
)
def test_options_that_say_nothing_or_do_not_fit_are_refused(method: str, options: dict, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        parse_options(method, options)
    assert "\n" not in str(caught.value)


def at_a_tie(got: Spikes, expected: dict[str, Tensor]) -> bool:
    """Whether spikes differ: if so, first at a neuron or two, within rounding of their boundary."""
    for t in range(24):
        for site, y in expected.items():
            if differ := int(((got[site][t] - y[t]).abs() > 1e-4 * y.abs().max()).sum()):
                assert differ <= 2, (site, t, differ)
                return True
    return False


@pytest.mark.parametrize("method", [name for name, made in METHODS.items() if "delta" in made.codings])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("levels", ["unary", "binary"])
def test_every_method_that_says_so_takes_delta_coding(method: str, network: str, levels: str) -> None:
    """Its images don't see each other, its sums settle, its spikes are what it was seen to send."""
    if (method, levels) == ("int8", "binary"):  # its levels are numbers of eight bits
        with pytest.raises(InputError, match="option levels of method int8 is 'binary': give unary"):
            parse_options(method, {"levels": levels})
        return
    initial = {} if METHODS[method].options().initial == "zero" else {"initial": "zero"}
    options = {"coding": "delta", "levels": levels, "scale": "channel"} | initial
    snn, sent = spiking_network(method, options, observed(network), 8), Spikes()
    outputs = snn.run(images(3), 24, record=(12, 24), tap=sent)
    by_itself = Spikes()
    alone = snn.run(images(3)[[2]], 24, tap=by_itself)[24]
    tied = at_a_tie(by_itself, {site: y[:, [2]] for site, y in sent.items()})
    assert_same(alone, pytree.tree_map(lambda x: x[[2]], outputs[24]), 0.1 if tied else 1e-4)
    seen = {site: (y != 0).double().flatten(2).sum((0, 2)) for site, y in sent.items()}
    snn.run(images(3), 24)
    for site, events in seen.items():
        counted = snn.counts[24].sites[site][:, 2]
        assert (counted >= events).all()  # two terms may cancel
        assert torch.allclose(counted, events, rtol=0.01, atol=2)
    theta = [neuron.theta for neuron in snn.neurons.values()]
    assert all(x.isfinite().all() and (x >= 0).all() for x in theta)


def test_counts_of_terms() -> None:
    """Every term is an event and an accumulation a connection, a shift besides in 45nm-shift."""
    snn, sent = delta("plain", bits=6, terms=2), Spikes()
    snn.run(images(), 3, tap=sent)
    counts = snn.counts[3]
    sops = 0
    for site in snn.graph.sites:
        s = sent[site.name] / snn.neurons[site.name].theta.reshape(-1, 1, 1).clamp(min=1e-30)
        assert (s - s.round()).abs().max() < 1e-3
        reach = snn.fanout.spikes[site].double()
        each = quantised_terms(s.round())
        assert torch.equal(counts.sites[site.name][:, 0], each.flatten(2).sum((0, 2)))
        sops += (each * reach).flatten(2).sum((0, 2))
    assert torch.equal(counts.events, counts.spikes)
    assert counts.sops.tolist() == pytest.approx(sops.tolist())
    once = snn.fanout.once
    assert counts.energy.tolist() == pytest.approx((0.9 * sops + 4.6 * once).tolist())
    assert counts.energy_int8.tolist() == pytest.approx((0.1 * sops + 0.3 * once).tolist())
    assert counts.int8_energy == pytest.approx(0.3 * counts.macs)
    snn.energy = "45nm-shift"
    snn.run(images(), 3)
    assert snn.counts[3].energy.tolist() == pytest.approx((1.03 * sops + 4.6 * once).tolist())


def quantised_terms(s: Tensor) -> Tensor:
    """How many powers of two, at most two, a whole number was sent as: 2^a ± 2^b by its digits (none is 0)."""
    whole = s.abs().long()
    one = (whole & (whole - 1)) == 0
    return torch.where(whole == 0, 0, torch.where(one, 1, 2)).double()


def test_the_eight_bit_control() -> None:
    net = build("bottleneck")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    snn = spiking_network("int8", {}, observe(net, [images()]), 1)
    outputs = snn.run(images(), 2, record=(1, 2))
    assert_same(outputs[1], net(images()), 0.05)
    assert_same(outputs[2], outputs[1])
    for t in (1, 2):
        counts = snn.counts[t]
        assert (counts.spikes_per_neuron, counts.events_per_neuron) == (0, 0)
        assert counts.energy_ratio_int8 == pytest.approx(1.0)
        assert counts.sops_per_mac == pytest.approx(1.0)
        assert counts.energy_ratio == pytest.approx(0.3 / 4.6)
    for module in snn.graph.module.modules():
        if isinstance(module, nn.Conv2d):
            scale = module.weight.abs().amax((1, 2, 3), keepdim=True) / 127
            assert torch.allclose((module.weight / scale).round() * scale, module.weight, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_dcgs_sends_one_level_a_timestep_that_shrinks_with_t() -> None:
    snn, sent = spiking_network("dcgs", {}, observed("plain"), 4), Spikes()
    snn.run(images(), 4, tap=sent)
    for site, y in sent.items():
        n = snn.neurons[site]
        for t in range(4):
            level = (y[t].abs() / n.theta.reshape(-1, 1, 1).clamp(min=1e-30) * (t + 1)).log2()
            fired = level[y[t] != 0]
            assert torch.allclose(fired, fired.round(), atol=1e-3)
            assert fired.min() > -0.5
            assert fired.max() < 7.5
    assert snn.counts[4].spikes.sum() == sum((y != 0).sum() for y in sent.values())


def test_h_mt_is_a_burst_counted_by_its_digits() -> None:
    snn, sent = spiking_network("h-mt", {"bits": 4, "terms": 4}, observed("plain"), 3), Spikes()
    snn.run(images(), 3, tap=sent)
    first = snn.graph.sites[0].name
    n = snn.neurons[first]
    assert (n.coding, n.gamma, n.initial) == ("rate", 15, 0.5)
    s = (sent[first] / n.theta.reshape(-1, 1, 1).clamp(min=1e-30)).round().long()
    assert s.min() == 0
    assert s.max() == 15
    counted = snn.counts[3].sites[first][:, 0]
    assert counted.sum() == sum(value.bit_count() for value in s.flatten().tolist())
    few = spiking_network("h-mt", {"bits": 4, "terms": 1}, observed("plain"), 3)
    sent = Spikes()
    few.run(images(), 3, tap=sent)
    s = (sent[first] / n.theta.reshape(-1, 1, 1).clamp(min=1e-30)).round()
    assert set(s.flatten().tolist()) == {0, 1, 2, 4, 8}


@pytest.mark.parametrize("chunk", [1, 5, None])
def test_ltb_reads_its_outputs_late(chunk: int | None) -> None:
    net = build("plain")
    snn = spiking_network("ltb", {}, observed("plain"), 12, chunk=chunk)
    late = next(iter(snn.neurons.values())).late
    assert 0 < late <= 8
    sent = Spikes()
    outputs = snn.run(images(), 12, record=(1, late, late + 1, 12), tap=sent)
    each = [net.head(y.mean((2, 3))) for y in sent["features_2_2"]]
    for t, got in outputs.items():  # up to the late start there is nothing but what came before it
        assert_same(got, torch.stack(each[late if t > late else 0 : t]).mean(0), 1e-5)
    early = spiking_network("ltb", {"late": False}, observed("plain"), 12)
    assert not any(n.late for n in early.neurons.values())


DIGITS = {"levels": "binary", "bits": 6, "terms": 6}
DIGITS_OF: dict[str, dict[str, Any]] = {
    "h-mt": DIGITS | {"stages": [2, 1]},
    "msat": DIGITS | {"variant": "normalised"},  # θ(t) differs by neuron, and digits are those of spikes of that height
    "signed": DIGITS | {"stages": [2, 1, 0.5]},
}


@pytest.mark.parametrize("method", DIGITS_OF)
def test_digits_are_counted_by_the_kernel_as_by_the_readable_step(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for _ in range(2):
        snn = spiking_network(method, DIGITS_OF[method], observed("yolo"), 5)
        snn.run(images(), 5)
        found.append(snn.counts[5].sites)
        monkeypatch.setattr("msat_det.spiking.kernels.cpu.library", lambda: None)
    for site, counts in found[0].items():
        assert counts[:, 0].min() > 0
        assert torch.allclose(counts, found[1][site], rtol=1e-3)
