"""The fit of delta coding: a quantiser for each channel that costs least, and a budget that is met."""

import pytest
import torch
from support.networks import build, images, observed
from torch.utils import _pytree as pytree

from msat_det.base.errors import InputError
from msat_det.graph.ops import Activation
from msat_det.methods import parse_options
from msat_det.methods.convert import spiking_network
from msat_det.methods.delta_search import TERMS, ZONES, cheapest
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
    with pytest.raises(InputError, match="levels"):
        parse_options("delta-fit", {"levels": "unary"})
    assert parse_options("delta-fit", {"budget": {1: 0.8, 2: 1.1}}).budget == {1: 0.8, 2: 1.1}
