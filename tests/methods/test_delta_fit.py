"""The fit of delta coding: a quantiser for each channel that costs least, and a budget that is met."""

import pytest
import torch
from support.networks import build, images, observed
from torch import nn
from torch.utils import _pytree as pytree

from msat_det.base.errors import InputError
from msat_det.graph.ops import Activation
from msat_det.methods import parse_options
from msat_det.methods.convert import spiking_network
from msat_det.methods.delta_search import TERMS, ZONES, cheapest, inherited, later
from msat_det.methods.observe import observe
from msat_det.spiking.levels import quantise
from msat_det.spiking.neurons import Neuron

RELU = Activation("relu", torch.relu, rectified=True)


def channel(price: float, weight: float = 1.0) -> Neuron:
    """The fit of one channel of rectified normal activations."""
    x = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0)).relu()
    plain = Neuron(torch.tensor([3.0 / 128]), RELU, coding="delta", bits=8)
    return cheapest(plain, x, x, torch.tensor([weight]), torch.tensor(price))


def test_a_higher_price_buys_fewer_terms_and_coarser_levels() -> None:
    free, cheap, dear = channel(0.0), channel(1e-4), channel(1e-2)
    assert free.terms[0] >= TERMS - 1
    assert free.theta < cheap.theta < dear.theta
    assert dear.terms[0] <= cheap.terms[0] <= free.terms[0]
    assert {n.zone[0] for n in (free, cheap, dear)} <= set(ZONES)
    assert channel(1e-2, weight=100.0).theta == channel(1e-4).theta  # what counts is the ratio


def test_the_choice_costs_no_more_than_any_other_of_the_grid() -> None:
    x = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0)).relu()

    def cost(theta: float, terms: int, zone: float) -> float:
        s, spikes = quantise(x / theta, 8, terms, zone)
        return ((s * theta - x).square().mean() + 1e-3 * spikes.mean()).item()

    found = channel(1e-3)
    least = cost(found.theta.item(), found.terms[0], found.zone[0])
    tried = [cost(3.0 / 128 * f, m, z) for f in (0.5, 1, 2, 4, 8, 16) for m in (1, 2, 3, 6) for z in ZONES]
    assert least <= min(tried) + 1e-9


@pytest.mark.parametrize("network", ["plain", "residual", "bottleneck"])
@pytest.mark.parametrize("budget", [0.45, 0.8])
def test_a_budget_is_met_on_the_calibration_images(network: str, budget: float) -> None:
    observation = observed(network)
    snn = spiking_network("delta-fit", {"budget": budget, "images": 8}, observation, 1)
    snn.run(observation.first(8), 1)
    assert 0.9 * budget <= snn.counts[1].sops_per_mac <= budget * 1.001


def test_what_later_timesteps_correct_counts_in_the_budget() -> None:
    """Of 0.45 spikes per neuron a fit that looks at the first timestep alone has spent 0.46 by the fourth."""
    observation, options = observed("yolo"), {"budget": 0.45, "budget_of": "spikes", "images": 8}
    snn = spiking_network("delta-fit", options, observation, 4)
    snn.run(observation.first(8), 4)
    assert 0.42 <= snn.counts[4].spikes_per_neuron <= 0.4505


@pytest.mark.parametrize("levels", ["binary", "unary"])
@pytest.mark.parametrize("budget_of", ["spikes", "energy"])
def test_a_budget_in_another_unit_is_met(budget_of: str, levels: str) -> None:
    """Of energy, of which the first layer is a part; bursts cost their length."""
    observation = observed("bottleneck")
    name = {"spikes": "spikes_per_neuron", "energy": "energy_ratio"}[budget_of]
    options = {"budget_of": budget_of, "levels": levels, "images": 8}
    free = spiking_network("delta-fit", {"price": 1e-3, **options}, observation, 1)
    free.run(observation.first(8), 1)
    budget = 0.85 * getattr(free.counts[1], name)
    snn = spiking_network("delta-fit", {"budget": budget, **options}, observation, 1)
    snn.run(observation.first(8), 1)
    assert 0.95 * budget <= getattr(snn.counts[1], name) <= budget
    assert all((neuron.bits is None) == (levels == "unary") for neuron in snn.neurons.values())


def test_an_anytime_plan_keeps_the_budget_of_each_timestep_and_gets_better() -> None:
    observation, budgets = observed("residual"), {1: 0.4, 2: 0.6, 3: 0.8}
    snn = spiking_network("delta-fit-anytime", {"budget": budgets, "images": 8}, observation, 16)
    x = observation.first(8)
    outputs, wanted = snn.run(x, 16, (1, 2, 3, 8, 16)), snn.graph(x)
    spent = {t: snn.counts[t].sops_per_mac for t in outputs}
    for t, budget in budgets.items():
        assert 0.9 * budget <= spent[t] <= budget
    errors = [((out - wanted).norm() / wanted.norm()).item() for out in outputs.values()]
    assert errors[0] > 1.5 * errors[2]
    assert errors[:3] == sorted(errors[:3], reverse=True)
    assert errors[4] <= 1.02 * errors[3] <= 1.05 * errors[2]
    events = [snn.counts[t].events_per_neuron for t in (8, 16)]
    assert events[1] == pytest.approx(events[0], rel=1e-3)  # by then nothing is sent any more


@pytest.mark.parametrize(("T", "left"), [(1, 4e-3), (16, 1.2e-3)])
@pytest.mark.parametrize("network", ["plain", "residual"])
def test_an_anytime_plan_leaves_no_bias_in_the_end(network: str, T: int, left: float) -> None:
    """Neither the levels nor the biases that were fitted for few timesteps hold: the error falls with 1/T."""
    snn = spiking_network("delta-fit-anytime", {"images": 8}, observed(network), T)
    outputs, wanted = snn.run(images(), 1024, (64, 256, 1024)), build(network)(images())
    errors = [((out - wanted).norm() / wanted.norm()).item() for out in outputs.values()]
    assert errors[1] < 0.35 * errors[0]
    assert errors[2] < 0.5 * errors[1]
    assert errors[2] < left


def test_neurons_rest_at_their_median_unless_they_are_often_zero() -> None:
    """Most outputs of SiLU lie near their median, not near 0: the sum of the output starts there. So it does in the one
    channel of ReLU that is always open."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    net[2].bias.data[3] = 10.0
    observation = observe(net, [images(8)])
    snn = spiking_network("delta-fit", {"images": 8, "price": 0.1, "correct": "none"}, observation, 1)
    silu, relu = (snn.neurons[node.name] for node in snn.graph.sites)
    middle = net[:2](images(8)).transpose(0, 1).flatten(1).median(1).values
    assert torch.allclose(-silu.initial * silu.theta, middle, atol=1e-6)
    assert (relu.initial != 0).nonzero().flatten().tolist() == [3]
    sums: dict[str, torch.Tensor] = {}
    snn.run(images(), 1, tap=lambda site, y: sums.update({site: y[0].clone()}))
    sent = sums[snn.graph.sites[0].name]
    assert 0.05 < (sent == 0).float().mean() < 0.95
    sent = sent + middle[:, None, None]
    goal = net[:2](images())
    assert (sent - goal).abs().mean() < 0.5 * (middle[:, None, None] - goal).abs().mean()


def test_a_bias_makes_up_for_errors_where_they_count() -> None:
    """The input is .1 too small where ReLU is open and 5 where it is shut, whose mean says 2.55; then every image has
    an error of its own and no bias is right; channels apart."""
    x = torch.randn(4, 3, 5_000, generator=torch.Generator().manual_seed(0))
    wrong = x - torch.where(x > 0, 0.1, 5.0)
    wrong[:, 1] = x[:, 1] + torch.tensor([0.3, -0.3, 0.2, -0.2])[:, None]
    wrong[:, 2] = -1.0
    bias = inherited(Neuron(torch.ones(3), RELU), wrong, x.relu().transpose(0, 1), 1)
    assert bias.tolist() == pytest.approx([0.1, 0.0, 0.0], abs=0.002)
    one = inherited(Neuron(torch.ones(3), RELU), wrong[:1, :1], x[:1, :1].relu(), 1)
    assert one.tolist() == pytest.approx([0.1], abs=0.002)
    slopes = torch.tensor([0.5, 0.1, 1.0])  # PReLU's, which it holds for its second dimension
    leaky = Activation("prelu", lambda x: torch.nn.functional.prelu(x, slopes))
    found = inherited(Neuron(torch.ones(3), leaky), x - 0.2, leaky.fn(x).transpose(0, 1), 1)
    assert found.tolist() == pytest.approx([0.2] * 3, abs=0.02)


def test_a_later_timestep_sends_what_is_worth_its_price() -> None:
    """An error of .3 in levels of 1: for nothing a finer stage sends it, at a price above its square nobody does."""
    plain = Neuron(torch.tensor([1.0]), RELU, coding="delta", bits=8)
    error = torch.full((1, 8), 0.3)
    one = torch.ones(1)
    free = later(plain, error, error, one, torch.tensor(0.0))
    assert (free.stages, free.terms[0]) == ((1.0, 0.25), 1)
    assert free.terms[1] >= 1
    dear = later(plain, error, error, one, torch.tensor(0.1))
    assert dear.terms == (1, 0)


def test_it_beats_what_is_not_fitted_at_the_same_operations() -> None:
    net, observation = build("residual"), observed("residual")
    plain = spiking_network("delta", {"bits": 6, "terms": 2}, observation, 1)
    errors = {}
    outputs = plain.run(images(), 1)[1]
    spent = plain.counts[1].sops_per_mac
    fitted = spiking_network("delta-fit", {"budget": spent}, observation, 1)
    for name, got in (("plain", outputs), ("fitted", fitted.run(images(), 1)[1])):
        pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(net(images())), strict=True)
        errors[name] = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
    assert fitted.counts[1].sops_per_mac < 1.1 * spent
    assert errors["fitted"] < 0.8 * errors["plain"]


def test_options() -> None:
    with pytest.raises(InputError, match="budget"):
        parse_options("delta-fit", {"budget": 0})
    for name, value in (("stages", [2, 1]), ("terms", 2), ("zone", 1.0)):
        with pytest.raises(InputError, match=f"option {name} .*it is what is fitted"):
            parse_options("delta-fit", {name: value})
    with pytest.raises(InputError, match="budget_of"):
        parse_options("delta-fit", {"budget_of": "joules"})
    assert parse_options("delta-fit", {"budget": {1: 0.8, 2: 1.1}}).budget == {1: 0.8, 2: 1.1}
