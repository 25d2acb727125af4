"""Fits delta coding on calibration images, layer after layer: what each channel's corrections may cost, and buy.

At t = 1 a neuron is a quantiser: its output is ``levels.quantise`` of the activation. For every call site the ways to
quantise (θ per channel; terms and dead zone for the site) are tried on the sums that the layers before really send, and
the one is taken that has the least

    sensitivity · Σ (output − activation)²  +  price · Σ spikes · what they cost

where the activation is the float network's, and the sensitivity says how much an error of that channel moves the
network's outputs. A bias makes up for what a channel's input inherits first. A budget is met by searching for the
price. In a later timestep θ stays, and the stage on it, terms (perhaps none) and dead zone are chosen in the same way
on what is still to be corrected.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.base.checks import present
from msat_det.graph.channels import Axis
from msat_det.graph.facts import facts, is_site
from msat_det.graph.graph import last_uses
from msat_det.graph.ops import Activation
from msat_det.methods.budget import Priced, Unit, fit_within
from msat_det.methods.observe import Observation
from msat_det.methods.sensitivity import sensitivity
from msat_det.spiking.delta import resting_output, target
from msat_det.spiking.kernels.delta import Corrections
from msat_det.spiking.levels import by_terms, quantise
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Neuron, per_channel

FACTORS = tuple(2 ** (i / 2) for i in range(-2, 9))  # on the channel's scale, which the top level stands at
BURSTS = tuple(2 ** (i / 2) for i in range(-9, 2))  # on the channel's scale, which θ stands at
STAGES = (1.0, 0.5, 0.25)  # of later timesteps
TERMS = 6
ZONES = (0.5, 0.7, 1.0)
FEW = 0.1  # share of zeros in a rectified channel that is open nearly everywhere
STEP = 1e-3  # of the root mean square of an input: what a slope is taken over
SAMPLE = 1 << 17  # elements of a call site that candidates are tried on
PASSES, CLOSE, DEARER = 7, 0.01, 1.3


@dataclass(frozen=True)
class Wanted:
    """What is fitted. prices, budgets: for each timestep that is fitted, what may be spent in the ``unit`` up to the
    one that ``times`` has for it; a budget of None: the price decides. images: the first calibration images. correct:
    whether inherited errors are made up for by a bias."""

    unit: Unit
    times: Sequence[int]
    prices: Sequence[float]
    budgets: Sequence[float | None]
    images: int
    correct: bool


def fit_delta(observation: Observation, wanted: Wanted, make: Callable[[Node], Neuron]) -> dict[str, Neuron]:
    """The neurons for the first timesteps, each at its price or at the price that meets its budget.

    make: a call site → the neuron whose θ (C,), terms, zone, stages and bias are fitted.
    """
    network = _Network(observation, wanted)
    neurons = {node.name: make(node) for node in observation.graph.sites}
    for t in range(len(wanted.prices)):
        neurons = network.within(t, neurons, wanted.prices[t], wanted.budgets[t]).neurons
    return neurons


class _Network:
    """What every pass through the network needs: the calibration images, the float activations, the sensitivities."""

    def __init__(self, observation: Observation, wanted: Wanted):
        self.observation, self.graph, self.wanted = observation, observation.graph, wanted
        self.batch = observation.first(wanted.images)
        self.weights = sensitivity(self.graph, observation.first(min(4, wanted.images)))
        self.costs = {node.name: wanted.unit.weight(node) for node in self.graph.sites}
        with torch.inference_mode():
            self.activations = {
                node.name: sampled(value, facts(node).channel_axis)
                for node, value in self.graph.walk(self.batch)
                if is_site(node)
            }
            self.rests = {
                node.name: resting(facts(node).pointwise, self.activations[node.name]) for node in self.graph.sites
            }

    def within(self, t: int, neurons: dict[str, Neuron], price: float, budget: float | None) -> Priced:
        """Timestep t fitted at ``price``, or at the price that meets ``budget``, on top of the timesteps before."""
        fit = partial(self._fit, t, neurons, self._sums(neurons, t))
        found = fit_within(budget, fit, price, CLOSE, PASSES, lambda before, last: before.spent == last.spent)
        for _ in range(PASSES):  # of few call sites what is spent falls in steps, and one may lie on the budget
            if budget is None or found.spent <= budget:
                break
            found = fit(DEARER * found.price)
        return found

    def _sums(self, neurons: dict[str, Neuron], t: int) -> dict[str, Tensor]:
        """The output sum of every call site after t timesteps, (B, C, …); nothing before the first."""
        sums: dict[str, Tensor] = {}

        def tap(site: str, y: Tensor) -> None:
            sums[site] = (sums[site] if site in sums else resting_output(neurons[site], y[0])) + y[0]

        if t:
            SpikingNetwork(self.graph, neurons, self.observation.fanout).run(self.batch, t, tap=tap)
        return sums

    def _fit(self, t: int, neurons: dict[str, Neuron], sent: dict[str, Tensor], price: float) -> Priced:
        """One pass at a fixed price: a float forward in which every activation is replaced by its output sum."""
        result, inputs = Priced({}, price), self.graph.bind(self.batch)
        values, last = {}, last_uses(self.graph.nodes)
        with torch.inference_mode():
            for node in self.graph.nodes[:-1]:
                if node.op == "placeholder":
                    values[node] = inputs[str(node.target)]
                elif is_site(node):
                    X = values[node.all_input_nodes[0]]
                    found = self._fit_site(t, node, X, neurons[node.name], sent.get(node.name), price)
                    result.neurons[node.name], values[node] = found
                else:
                    values[node] = self.graph.evaluate(node, values)
                for done in last[node]:
                    values.pop(done, None)
        result.spent = self.wanted.unit.spent(result.neurons, self.batch, self.wanted.times[t])
        return result

    def _fit_site(
        self, t: int, node: Node, X: Tensor, neuron: Neuron, sent: Tensor | None, price: float
    ) -> tuple[Neuron, Tensor]:
        """One call site fitted on its input sums, and its output sum after timestep t."""
        axis, weight, activation = facts(node).channel_axis, self.weights[node.name], self.activations[node.name]
        if self.wanted.correct:
            neuron = _with_bias(neuron, inherited(neuron, X, activation, axis).reshape(weight.shape), t)
        cost = price * self.costs[node.name].to(X.device)
        rest = self.rests[node.name].reshape(weight.shape)
        if sent is None:
            sent = per_channel(rest, X, axis).expand_as(X)
        own = sampled(target(neuron, X, t) - sent, axis)
        goal = activation - sampled(sent, axis)
        neuron = (later if t else cheapest)(neuron, own.flatten(1), goal.flatten(1), weight, cost)
        if not t:
            neuron = replace(neuron, initial=-rest / neuron.theta.clamp(min=1e-12))
        corrections = Corrections(neuron, X, torch.zeros_like(X[0]), sent if t else None)
        corrections.step(X, t, wanted=False)
        return neuron, corrections.output


def _with_bias(neuron: Neuron, bias: Tensor, t: int) -> Neuron:
    """The neuron with a bias from timestep t on; of one without channels the first one stays."""
    if t and bias.dim():
        before = present(neuron.bias)
        before = before if before.dim() > 1 else before[None]
        return replace(neuron, bias=torch.cat((before, bias[None])))
    return neuron if t else replace(neuron, bias=bias)


def inherited(neuron: Neuron, X: Tensor, activation: Tensor, axis: Axis) -> Tensor:
    """(C,) the bias on an input X (B, …), which has errors of the layers before in it, that brings f(X) nearest to the
    float network's activation, sampled (C, B, N): least squares, to first order.

    It is not the mean error of X, most of which may lie where f is flat, as SiLU is far below 0. What the B images do
    not agree about is noise: the bias becomes smaller by its variance over its square, and 0 where that passes 1.
    """
    f, images = neuron.activation.fn, len(X)
    size = STEP * sampled(X, axis).square().mean((1, 2)).sqrt().clamp(min=1e-12)
    step = per_channel(size if axis else size[0], X, axis)
    slope = sampled((f(X + step) - f(X - step)) / (2 * step), axis)
    whole = slope.square().sum((1, 2)).clamp(min=1e-12)
    by_image = (slope * (activation - sampled(f(X), axis))).sum(2) * images / whole[:, None]
    bias = by_image.mean(1)
    noise = by_image.var(1, correction=1) / images if images > 1 else torch.zeros_like(bias)
    return bias * (1 - noise / bias.square().clamp(min=1e-30)).clamp(min=0)


def resting(function: Activation, activation: Tensor) -> Tensor:
    """(C,) what is not sent, as it holds for most: the median of a channel's activation (C, B, N). Of a rectified one
    it is 0 unless hardly any activation is: they would have to be sent."""
    rows = activation.flatten(1)
    middle = rows.median(1).values
    if function.rectified:
        return torch.where((rows == 0).float().mean(1) < FEW, middle, 0.0)
    return middle


def sampled(value: Tensor, axis: Axis) -> Tensor:
    """(C, B, N) some of the elements of each channel and image of (B, …), the same for every value of a shape."""
    rows = value[None] if axis is None else value.movedim(axis, 0)
    rows = rows.reshape(*rows.shape[:2], -1)
    return rows[:, :, :: max(1, rows.numel() // SAMPLE)]


def cheapest(plain: Neuron, own: Tensor, activation: Tensor, weight: Tensor, price: Tensor) -> Neuron:
    """The θ of each channel and the terms and zone of the site with the least cost in the first timestep.

    own: (C, N) what the neuron is to send; activation: (C, N) what it should be. weight: of a squared error, (C,), or
    () where no channels are known; price: (C,) or () of a spike. A channel that nothing comes into keeps its θ: none is
    better than another; so do terms and zone of such a site.
    """
    idle = ~(own.any(1) | activation.any(1))
    if idle.all():
        return replace(plain, theta=plain.theta.expand(weight.shape))
    theta = plain.theta.expand(len(own))
    candidates = [theta * factor for factor in (FACTORS if plain.bits else BURSTS)]
    best: tuple[float, Neuron] = (math.inf, plain)
    for zone in ZONES:
        costs = torch.stack([_costs(plain, zone, each, own, activation, weight, price) for each in candidates])
        least, pick = costs.min(0)  # (TERMS, C)
        totals = least.sum(1)
        terms = int(totals.argmin())
        if totals[terms] < best[0]:
            found = torch.stack(candidates).gather(0, pick[terms][None]).squeeze(0)
            found = torch.where(idle, theta, found).reshape(weight.shape)
            best = totals[terms].item(), replace(plain, theta=found, terms=(terms + 1,), zone=(zone,))
    return best[1]


def later(neuron: Neuron, own: Tensor, missing: Tensor, weight: Tensor, price: Tensor) -> Neuron:
    """The neuron with the stage, terms and zone of one more timestep that cost least, which may be to send nothing.

    own: (C, N) what the neuron finds to be corrected; missing: (C, N) what should be. weight, price: as above.
    """
    theta = neuron.theta.expand(len(own))
    silent = (weight * missing.square().mean(1)).sum().item()
    best, chosen = silent, (neuron.stages[-1], 0, neuron.zone[-1])
    for stage in STAGES:
        for zone in ZONES:
            totals = _costs(neuron, zone, theta * stage, own, missing, weight, price).sum(1)
            terms = int(totals.argmin())
            if totals[terms] < best:
                best, chosen = totals[terms].item(), (stage, terms + 1, zone)
    stage, terms, zone = chosen
    return replace(neuron, stages=(*neuron.stages, stage), terms=(*neuron.terms, terms), zone=(*neuron.zone, zone))


def _costs(
    neuron: Neuron, zone: float, theta: Tensor, own: Tensor, wanted: Tensor, weight: Tensor, price: Tensor
) -> Tensor:
    """(TERMS, C) of each number of terms, (1, C) of bursts."""
    column = theta.clamp(min=1e-30)[:, None]
    units = own / column
    ways = by_terms(units, neuron.bits, TERMS, zone) if neuron.bits else [quantise(units, None, 1, zone, neuron.gamma)]
    found = []
    for sent, spikes in ways:
        error = (sent * column - wanted).square().mean(1)
        found.append(torch.where(theta > 0, weight * error + price * spikes.mean(1), 0.0))
    return torch.stack(found)
