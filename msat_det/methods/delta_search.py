"""Fits delta coding on calibration images, layer after layer: what each channel's corrections may cost, and buy.

At t = 1 a neuron is a quantiser: its output is ``levels.quantise`` of the activation. For every call site the ways to
quantise (θ per channel; terms and dead zone for the site) are tried on the sums that the layers before really send, and
the one is taken that has the least

    sensitivity · Σ (output − activation)²  +  price · Σ spikes · what they reach

where the activation is the float network's, and the sensitivity says how much an error of that channel moves the
network's outputs. The mean error that a channel's input inherits is taken off by a bias first. A budget is met by
searching for the price.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.graph.channels import Axis, mean_by_channel, rows_by_channel
from msat_det.graph.facts import facts, is_site
from msat_det.graph.graph import last_uses
from msat_det.methods.observe import Observation
from msat_det.methods.search import next_price
from msat_det.methods.sensitivity import sensitivity
from msat_det.spiking.delta import target
from msat_det.spiking.kernels.delta import Corrections
from msat_det.spiking.levels import by_terms
from msat_det.spiking.neurons import Neuron

FACTORS = tuple(2 ** (i / 2) for i in range(-2, 9))  # on the channel's scale, which the top level stands at
TERMS = 6
ZONES = (0.5, 0.7, 1.0)
SAMPLE = 1 << 18  # elements of a call site that candidates are tried on
PASSES, CLOSE = 7, 0.01


@dataclass(frozen=True)
class Wanted:
    """What is fitted. budget: spikes' share of the float network's multiply-adds (SOPs per MAC), or None: as the price
    says. images: the first calibration images. correct: whether inherited mean errors are taken off."""

    price: float
    budget: float | None
    images: int
    correct: bool


@dataclass
class Fitted:
    """The neurons at a price. spent: operations over the float network's multiply-adds."""

    neurons: dict[str, Neuron]
    price: float
    spent: float = 0.0

    @property
    def logs(self) -> tuple[float, float]:
        return math.log(self.price), math.log(max(self.spent, 1e-9))


def fit_delta(observation: Observation, wanted: Wanted, make: Callable[[Node], Neuron]) -> dict[str, Neuron]:
    """The neurons for t = 1 at ``wanted.price``, or at the price that meets ``wanted.budget``.

    make: a call site → the neuron whose θ (C,), terms, zone and bias are fitted.
    """
    network = _Network(observation, wanted, make)
    found = [network.fit(wanted.price)]
    while not _done(found, wanted.budget):
        found.append(network.fit(next_price(found, wanted.budget * (1 - CLOSE / 2))))
    within = [f for f in found if wanted.budget is None or f.spent <= wanted.budget]
    best = max(within, key=lambda f: f.spent) if within else min(found, key=lambda f: f.spent)
    return best.neurons


def _done(found: list[Fitted], budget: float | None) -> bool:
    """Whether the budget is met, or no price will meet it."""
    close = budget is not None and any((1 - CLOSE) * budget <= f.spent <= budget for f in found)
    stuck = len(found) > 1 and found[-1].spent == found[-2].spent
    return budget is None or close or stuck or len(found) == PASSES


class _Network:
    """What every pass through the network needs: the calibration images, the float activations, the sensitivities."""

    def __init__(self, observation: Observation, wanted: Wanted, make: Callable[[Node], Neuron]):
        self.graph, self.fanout, self.wanted, self.make = observation.graph, observation.fanout, wanted, make
        self.batch = observation.first(wanted.images)
        self.weights = sensitivity(self.graph, observation.first(min(4, wanted.images)))
        self.activations: dict[str, Tensor] = {}  # of call sites, sampled
        self.means: dict[str, Tensor] = {}  # (C,) or () of their inputs
        with torch.inference_mode():
            for node, value in self.graph.walk(self.batch):
                for user in node.users:
                    if is_site(user) and user.all_input_nodes[0] is node:
                        self.means[user.name] = mean_by_channel(value, facts(user).axis)
                if is_site(node):
                    self.activations[node.name] = sampled(value, facts(node).axis)

    def fit(self, price: float) -> Fitted:
        """One pass at a fixed price: a float forward in which every activation is quantised."""
        result, inputs = Fitted({}, price), self.graph.bind(self.batch)
        values, last = {}, last_uses(self.graph.nodes)
        with torch.inference_mode():
            for node in self.graph.nodes[:-1]:
                if node.op == "placeholder":
                    values[node] = inputs[node.target]
                elif is_site(node):
                    values[node] = self._fit_site(node, values[node.all_input_nodes[0]], result)
                else:
                    values[node] = self.graph.evaluate(node, values)
                for done in last[node]:
                    values.pop(done, None)
        return result

    def _fit_site(self, node: Node, X: Tensor, result: Fitted) -> Tensor:
        """Fit one call site on its input sums, and return what it sends in the first timestep."""
        axis = facts(node).axis
        bias = self.means[node.name] - mean_by_channel(X, axis) if self.wanted.correct else None
        plain = replace(self.make(node), bias=bias)
        reach = self.fanout.spikes.get(node, torch.zeros(facts(node).shape)).float()
        price = result.price * rows_by_channel(reach.unsqueeze(0), axis).mean(1) / self.fanout.total
        own, activation = sampled(target(plain, X), axis), self.activations[node.name]
        neuron = result.neurons[node.name] = cheapest(plain, own, activation, self.weights[node.name], price)
        scan = Corrections(neuron, X, reach)
        scan.step(X, 0, wanted=False)
        result.spent += scan.counts[:, 1].mean().item() / self.fanout.total
        return scan.output


def sampled(value: Tensor, axis: Axis) -> Tensor:
    """(C, N) some of the elements (B, …) of each channel, the same for every value of a shape."""
    rows = rows_by_channel(value, axis)
    return rows[:, :: max(1, rows.numel() // SAMPLE)]


def cheapest(plain: Neuron, own: Tensor, activation: Tensor, weight: Tensor, price: Tensor) -> Neuron:
    """The θ of each channel and the terms and zone of the site with the least cost.

    own: (C, N) what the neuron is to send; activation: (C, N) what it should be. weight: of a squared error, (C,), or
    () where no channels are known; price: (C,) of a spike. A channel that nothing comes into keeps its θ: none is
    better than another; so do terms and zone of such a site.
    """
    idle = ~(own.any(1) | activation.any(1))
    if idle.all():
        return replace(plain, theta=plain.theta.expand(weight.shape))
    theta = plain.theta.expand(len(own))
    candidates = [theta * factor for factor in FACTORS]
    best: tuple[float, Neuron] = (math.inf, plain)
    for zone in ZONES:
        costs = torch.stack([_costs(plain.bits, zone, t, own, activation, weight, price) for t in candidates])
        least, pick = costs.min(0)  # (TERMS, C)
        totals = least.sum(1)
        terms = int(totals.argmin())
        if totals[terms] < best[0]:
            found = torch.stack(candidates).gather(0, pick[terms][None]).squeeze(0)
            found = torch.where(idle, theta, found).reshape(weight.shape)
            best = totals[terms].item(), replace(plain, theta=found, terms=(terms + 1,), zone=(zone,))
    return best[1]


def _costs(
    bits: int, zone: float, theta: Tensor, own: Tensor, activation: Tensor, weight: Tensor, price: Tensor
) -> Tensor:
    """(TERMS, C) of each number of terms."""
    column = theta.clamp(min=1e-30)[:, None]
    found = []
    for sent, spikes in by_terms(own / column, bits, TERMS, zone):
        error = (sent * column - activation).square().mean(1)
        found.append(torch.where(theta > 0, weight * error + price * spikes.mean(1), 0.0))
    return torch.stack(found)
