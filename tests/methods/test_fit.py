"""The fit: its weights, its costs, its budget, and what it is compared with."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.networks import build, images, observed
from torch import Tensor, nn
from torch.nn import functional as F

from msat_det.base.errors import InputError
from msat_det.graph.facts import facts
from msat_det.graph.graph import elements
from msat_det.methods import fitted
from msat_det.methods.budget import Priced, Unit
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import Observation, observe
from msat_det.methods.search import Bench, Goal, Trial, anytime_candidates, fit, fit_once, search, stage_candidates
from msat_det.methods.sensitivity import sensitivity
from msat_det.methods.sequential import run_alone
from msat_det.spiking.formats.plan import load_plan, save_plan
from msat_det.spiking.kernels import Scan
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Neuron


class Two(nn.Module):
    """Two layers whose derivatives are known: y = B·relu(A·x), one number each of four channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


def test_sensitivity_is_the_squared_derivative_of_the_standardised_outputs() -> None:
    torch.manual_seed(0)
    net, x = Two(), torch.randn(5, 3)
    graph = observe(net, [x]).graph
    spread = net(x).detach().std(1, correction=0)
    expected = (net.b.weight[None] / spread[:, None, None]).square().mean((0, 1))
    got = sensitivity(graph, x, draws=4000)
    torch.testing.assert_close(got["relu"], expected, rtol=0.08, atol=0)


def test_sensitivity_foretells_what_small_errors_do_to_the_outputs() -> None:
    observation = observed("yolo")
    x = images(4, seed=7)
    weights = sensitivity(observation.graph, x, draws=64)
    goal = [out.clone() for out in observation.graph(x).values()]
    name = observation.graph.sites[0].name
    noise, got = 0.01, 0.0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        for node, value in observation.graph.walk(x):
            if node.name == name:
                value.add_(noise * torch.randn(value.shape, generator=generator))
        pairs = zip(value.values(), goal, strict=True)
        got += sum(((a - b).square().mean((1, 2, 3)) / b.var((1, 2, 3), correction=0)).mean() for a, b in pairs) / 40
    shape = facts(observation.graph.sites[0]).shape
    foretold = noise**2 * weights[name].sum() * shape[1] * shape[2]
    assert got.item() == pytest.approx(foretold.item(), rel=0.25)


def goal_of(observation: Observation, T: int, price: float) -> Goal:
    return Goal(Unit("spikes", observation), [T], stage_candidates(T), [], price, images=4, correct=False)


def bench_of(observation: Observation, T: int, index: int = 1, **changes: object) -> Bench:
    """One call site with the currents that exact neurons before it would send, the same at every timestep."""
    node = observation.graph.sites[index]
    values = dict(observation.graph.walk(images(4, seed=3)))
    currents = values[node.all_input_nodes[0]].expand(T, *values[node].shape).clone()
    goal = replace(goal_of(observation, T, price=1e-3 * sum(map(elements, observation.graph.sites))), **changes)
    return Bench(node, currents, values[node], goal, torch.ones(facts(node).shape[0]))


def neuron_of(bench: Bench, theta: float, **changes: object) -> Neuron:
    channels = facts(bench.node).shape[0]
    common = dict(signed=True, gamma=15, rounding="track")
    return Neuron(torch.full((channels,), theta), facts(bench.node).activation, **(common | changes))


@pytest.mark.parametrize("stages", [(1.0,), (4.0, 2.0, 1.0), (1000.0,) * 4 + (5.0, 1.0)])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("site", ["plain", "residual"])
def test_a_trial_measures_the_error_and_the_spikes_of_a_neuron(site: str, constant: bool, stages: tuple) -> None:
    """The same as in a whole simulation, although the timesteps in which nothing fires are skipped."""
    bench = bench_of(observed(site), 6)
    bench.currents += 0.3 * torch.randn(bench.currents.shape, generator=torch.Generator().manual_seed(1))
    if constant:
        bench = replace(bench, currents=bench.currents[:1])
    neuron = neuron_of(bench, 0.4, stages=stages)
    trial = bench.try_(neuron)
    rate = run_alone(neuron, bench.currents, 6) / 6
    torch.testing.assert_close(trial.error, (rate - bench.wanted).square().mean((0, 2, 3)))
    scan = Scan(neuron, bench.currents[0], torch.zeros(facts(bench.node).shape), with_output=True)
    scan.run(bench.currents, 0, 6)
    total = trial.spikes.sum().item() * bench.positions
    assert total == pytest.approx(scan.counts[:, 0].mean().item(), rel=1e-4)


def test_the_search_keeps_what_costs_least_in_every_channel() -> None:
    bench = bench_of(observed("plain"), 4)
    best = search(bench, lambda node, unit: neuron_of(bench, 1.0))
    for factor in (0.5, 0.8, 1.25, 2.0):
        other = bench.try_(replace(best.neuron, theta=best.neuron.theta * factor))
        assert other.cost.sum() > best.cost.sum()
    assert len(best.neuron.theta.unique()) > 1


def test_two_digits_beat_one_threshold() -> None:
    bench = bench_of(observed("plain"), 4)
    make = lambda node, unit: neuron_of(bench, 1.0)  # noqa: E731
    staged = search(bench, make)
    constant = search(bench_of(observed("plain"), 4, stages=[(1.0,)]), make)
    assert staged.total < constant.total
    assert len(set(staged.neuron.stages)) > 1


@pytest.mark.parametrize("T", [1, 2, 3, 4, 8, 16])
def test_stage_candidates_end_at_the_threshold_itself(T: int) -> None:
    for candidates in (stage_candidates(T), anytime_candidates(T)):
        assert candidates[0] == (1.0,)
        assert len(set(candidates)) == len(candidates)
        assert all(len(stages) <= T and stages[-1] == 1.0 for stages in candidates)
        assert all(a >= b for stages in candidates for a, b in itertools.pairwise(stages))


def relative(snn: SpikingNetwork, T: int) -> float:
    goal = snn.graph(images(8, seed=50))
    return ((snn.run(images(8, seed=50), T)[T] - goal).norm() / goal.norm()).item()


def test_the_fit_beats_stages_by_hand_at_fewer_spikes() -> None:
    by_hand = {"scale": "channel", "percentile": 99.9, "signed": True, "gamma": 15, "rounding": "track"}
    hand = spiking_network("constant", {**by_hand, "stages": [2, 1, 0.5, 0.25]}, observed("plain"), 4)
    error = relative(hand, 4)
    spikes = hand.counts[4].spikes_per_neuron
    fit = spiking_network("msat-fit", {"budget": 0.95 * spikes}, observed("plain"), 4)
    assert relative(fit, 4) < error
    assert fit.counts[4].spikes_per_neuron < spikes


RATE = {"coding": "rate", "levels": "unary"}


@pytest.mark.parametrize("budget_of", ["spikes", "sops", "energy"])
@pytest.mark.parametrize("method", ["msat-fit", "constant-fit"])
@pytest.mark.parametrize("levels", ["unary", "binary"])
def test_a_budget_is_kept_and_used(method: str, budget_of: str, levels: str) -> None:
    observation, common = observed("plain"), {"coding": "rate", "levels": levels}
    free = spiking_network(method, {"price": 1e-3, **common}, observation, 4)
    free.run(observation.first(8), 4)
    name = {"spikes": "spikes_per_neuron", "sops": "sops_per_mac", "energy": "energy_ratio"}[budget_of]
    budget = 0.8 * getattr(free.counts[4], name)
    options = {"budget": budget, "budget_of": budget_of, "correct": "none", **common}
    snn = spiking_network(method, options, observation, 4)
    snn.run(observation.first(8), 4)
    spent = getattr(snn.counts[4], name)
    assert spent <= 1.1 * budget  # fan-out is a channel's mean in the fit
    if budget_of != "sops":
        assert 0.9 * budget < spent <= 1.001 * budget


@pytest.mark.parametrize("method", ["constant-fit", "msat-fit", "delta-fit"])
def test_fits_converge_with_their_budget(method: str) -> None:
    """Twice the timesteps and twice the budget leave less than half the error, and the budget is kept."""
    errors = []
    for T, budget in ((2, 0.6), (4, 1.2)):
        options = {"budget": budget, "budget_of": "spikes", "images": 8}
        options |= {"coding": "rate"} if method == "msat-fit" else {}
        snn = spiking_network(method, options, observed("plain"), T)
        errors.append(relative(snn, T))
        assert snn.counts[T].spikes_per_neuron < 1.05 * budget
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.05


def test_binary_levels_are_counted_by_their_digits() -> None:
    """7 = 1 + 2 + 4 takes three, 8 one, 15 four; bursts take 30."""
    bench = bench_of(observed("plain"), 1)
    digits = neuron_of(bench, 1.0, bits=4, terms=(4,))
    outputs = [torch.tensor([7.0, 8.0, 15.0]).expand(1, len(digits.theta), 1, 3)]
    scan, _ = bench.simulate(digits)
    assert bench._spikes(digits, outputs, scan)[0].item() == pytest.approx(8 / 3)
    assert bench._spikes(replace(digits, bits=None), outputs, scan)[0].item() == pytest.approx(10.0)


def test_what_is_left_open_is_searched_over() -> None:
    """Both codings at one budget: the one with the lesser error; fixed, each is the fit that it names."""
    observation, common = observed("residual"), {"budget": 1.2, "budget_of": "sops", "images": 8}
    errors = {}
    for coding in ("rate", "delta"):
        made = spiking_network("msat-fit", {"coding": coding, **common}, observation, 4)
        assert made.coding == coding
        assert all(neuron.bits for neuron in made.neurons.values())
        errors[coding] = relative(made, 4)
    chosen = spiking_network("msat-fit", common, observation, 4)
    assert chosen.coding == min(errors, key=errors.get)
    assert relative(chosen, 4) == min(errors.values())
    delta = spiking_network("delta-fit", common, observation, 4)
    assert relative(delta, 4) == errors["delta"]


def test_eqs_16_and_17_are_for_rate_coding() -> None:
    with pytest.raises(InputError, match=r"option dtt .*coding rate"):
        spiking_network("msat-fit", {"coding": "delta", "dtt": True}, observed("plain"), 4)


def test_a_budget_may_differ_by_t() -> None:
    options = fitted.MsatFit(budget={3: 2.5, 4: 3.0, 8: 5.0})
    assert [fitted.at(options.budget, T) for T in (2, 3, 4, 6, 8, 64)] == [2.5, 2.5, 3.0, 3.0, 5.0, 5.0]


@pytest.mark.parametrize("adaptive", [["dtt"], ["det"], ["dtt", "det"]])
def test_eqs_16_and_17_are_taken_where_they_help(adaptive: list[str]) -> None:
    """Within four timesteps they lower the cost that is searched for; at the first one θ is θ_max whatever they say."""

    def searched(T: int, adaptive: list[str]) -> Trial:
        bench = bench_of(observed("plain"), T, stages=[(1.0,)], adaptive=adaptive)
        return search(bench, lambda node, unit: neuron_of(bench, 1.0))

    without, found = searched(4, []), searched(4, adaptive)
    assert without.neuron.adaptive is None
    assert found.total < 0.999 * without.total
    assert (found.neuron.adaptive.dtt, found.neuron.adaptive.det) == ("dtt" in adaptive, "det" in adaptive)
    without, found = searched(1, []), searched(1, adaptive)
    assert found.neuron.adaptive is None
    assert found.total == without.total


@pytest.mark.parametrize("parts", [{"dtt": True}, {"det": True}, {"dtt": True, "det": True}])
def test_a_network_is_fitted_with_eqs_16_and_17(parts: dict) -> None:
    snn = spiking_network("msat-fit", parts, observed("residual"), 3)
    taken = [neuron.adaptive for neuron in snn.neurons.values() if neuron.adaptive]
    assert taken
    assert all((one.dtt, one.det) == (parts.get("dtt", False), parts.get("det", False)) for one in taken)


def test_an_anytime_plan_gets_better_with_t() -> None:
    snn = spiking_network("msat-fit-anytime", {}, observed("plain"), 16)
    x = images(8, seed=50)
    goal = snn.graph(x)
    errors = [((out - goal).norm() / goal.norm()).item() for out in snn.run(x, 16, (2, 4, 8, 16)).values()]
    assert errors == sorted(errors, reverse=True)


def test_fits_are_repeatable() -> None:
    first, second = (fit_of("msat-fit") for _ in range(2))
    assert all(torch.equal(first[name].theta, second[name].theta) for name in first)
    assert all(torch.equal(first[name].bias, second[name].bias) for name in first)


def fit_of(method: str) -> dict[str, Neuron]:
    return spiking_network(method, {}, observed("residual"), 4).neurons


def test_a_plan_stands_for_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snn = spiking_network("msat-fit", {}, observed("residual"), 4)
    save_plan(tmp_path / "kept.safetensors", snn.neurons, snn.graph)
    monkeypatch.setattr(fitted, "fit", None)
    again = spiking_network("msat-fit", {"plan": str(tmp_path / "kept.safetensors")}, observed("residual"), 4)
    assert torch.equal(again.run(images(), 4)[4], snn.run(images(), 4)[4])
    with pytest.raises(InputError, match="give the path of a saved plan"):
        spiking_network("msat-fit", {"plan": str(tmp_path / "none")}, observed("residual"), 4)
    assert load_plan(tmp_path / "kept.safetensors").sites


def test_one_pass_spends_what_the_network_then_spends() -> None:
    observation = observed("bottleneck")
    weights = sensitivity(observation.graph, observation.first(2))
    goal = replace(goal_of(observation, 4, 1e-3), images=8)
    result = fit_once(observation, goal, lambda node, unit: maker(observation, node), weights)
    snn = SpikingNetwork(observation.graph, result.neurons, observation.fanout)
    snn.run(observation.first(8), 4)
    assert result.spent == pytest.approx(snn.counts[4].spikes_per_neuron, rel=1e-3)


def maker(observation: Observation, node: object) -> Neuron:
    theta = observation.sites[node.name].scale(99.9)
    return Neuron(theta, facts(node).activation, signed=True, gamma=15, rounding="track")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 0}, "budget"),
        ({"budget": {4: -1}}, "budget"),
        ({"budget": {"four": 3}}, "one for each T"),
        ({"price": 0}, "price"),
        ({"plan": 3}, "plan"),
        ({"budget_of": "joules"}, "spikes, sops"),
    ],
)
def test_bad_options_are_named(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        spiking_network("msat-fit", options, observed("plain"), 4)


def test_dead_channels_stay_dead() -> None:
    net = build("plain")
    net.features[1][1].weight.data[2] = 0.0
    net.features[1][1].bias.data[2] = -1.0
    observation = observe(net, [images(4, seed=100)])
    snn = spiking_network("msat-fit", {}, observation, 4)
    neuron = snn.neurons[observation.graph.sites[1].name]
    assert neuron.theta[2] == 0
    assert snn.run(images(), 4)[4].isfinite().all()


def test_a_budget_that_no_price_meets_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is spent stops moving: the pass that spends most, or least, of what can be spent is taken."""
    goal = goal_of(observed("plain"), 4, 1e-3)
    spent = {"high": lambda price: 2.0 + 1e-3 * price, "low": lambda price: 0.5}
    for budget, kind in ((1.0, "high"), (3.0, "low")):
        tried: list[float] = []

        def once(observation: Observation, goal: Goal, *rest: object, kind: str = kind, tried: list = tried) -> Priced:
            tried.append(goal.price)
            return Priced({}, goal.price, spent[kind](goal.price))

        monkeypatch.setattr(sys.modules[fit.__module__], "fit_once", once)
        found = fit(observed("plain"), goal, lambda node, unit: None, budget)
        assert len(tried) == 2
        assert found.price in tried


@pytest.mark.parametrize(("given", "rate", "delta"), [({}, 4, 8), ({"bits": 4}, 4, 4), ({"bits": 6}, 6, 6)])
def test_bits_hold_under_either_coding(given: dict, rate: int, delta: int) -> None:
    """Asked for, and if not each coding's own."""
    for coding, bits in (("rate", rate), ("delta", delta)):
        options = {"coding": coding, "images": 2, **given}
        made = spiking_network("msat-fit", options, observed("plain"), 2).neurons.values()
        assert {neuron.bits for neuron in made} == {bits}
