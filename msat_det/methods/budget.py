"""What a fit may spend, and the price at which it does: spikes per neuron, operations over the float network's
multiply-adds, or energy over its energy by the table ``45nm``."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, overload

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.base.checks import check_number
from msat_det.graph.channels import rows_by_channel
from msat_det.graph.facts import facts
from msat_det.graph.graph import Batch, elements
from msat_det.methods.observe import Observation
from msat_det.spiking.energy import prices
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Neuron

BudgetOf = Literal["spikes", "sops", "energy"]
ByT = float | dict[int, float]  # one number, or one for each T and those above it
_FIGURES = {"spikes": "spikes_per_neuron", "sops": "sops_per_mac", "energy": "energy_ratio"}


@dataclass(frozen=True)
class Unit:
    """A budget's unit on an observed network."""

    of: BudgetOf
    observation: Observation

    def weight(self, node: Node) -> Tensor:
        """What a spike of a call site costs, (C,), or () where no channels are known. In energy of one that adds."""
        graph, fanout = self.observation.graph, self.observation.fanout
        if self.of == "spikes":
            return torch.tensor(1.0 / sum(map(elements, graph.sites)))
        reach = fanout.reach(node, graph.device or torch.device("cpu"))
        each = rows_by_channel(reach.float().unsqueeze(0), facts(node).channel_axis).mean(1)
        each = (each if facts(node).axis else each[0]) / fanout.total
        return each * prices().ac / prices().mac if self.of == "energy" else each

    @property
    def graded(self) -> float | None:
        """What an event of an adaptive neuron costs in spikes, whatever its height; None: its height in spikes."""
        return prices().mac / prices().ac if self.of == "energy" else None

    def spent(self, neurons: Mapping[str, Neuron], batch: Batch, T: int) -> float:
        """What these neurons spend on a batch up to T, all that it costs in it: of energy first layers, poolings and
        what is analog, too."""
        snn = SpikingNetwork(self.observation.graph, dict(neurons), self.observation.fanout)
        return getattr(snn.simulate(batch, T).counts[T], _FIGURES[self.of])


@dataclass
class Priced:
    """Neurons fitted at a price. spent: what counts for the budget, in its unit."""

    neurons: dict[str, Neuron]
    price: float
    spent: float = 0.0

    @property
    def logs(self) -> tuple[float, float]:
        """The logarithms of the price and of what was spent."""
        return math.log(self.price), math.log(max(self.spent, 1e-9))


P = TypeVar("P", bound=Priced)


def fit_within(
    budget: float | None,
    fit: Callable[[float], P],
    price: float,
    close: float,
    passes: int,
    stuck: Callable[[P, P], bool],
) -> P:
    """The fit at ``price``, or with a budget at the price that meets it as far as any does.

    close: the budget counts as met when this share of it or less is left. passes: fits at most. stuck: whether, after
    these two, another price will hardly change what is spent.
    """
    found = [fit(price)]
    while budget is not None:
        below = [f for f in found if f.spent <= budget]
        done = any(f.spent >= (1 - close) * budget for f in below)
        if done or len(found) == passes or (len(found) > 1 and stuck(*found[-2:])):
            return max(below, key=lambda f: f.spent) if below else min(found, key=lambda f: f.spent)
        found.append(fit(_next_price(found, budget * (1 - close / 2))))
    return found[0]


def _next_price(found: Sequence[Priced], wanted: float) -> float:
    """Log spent falls about linearly with log price: the line through the two nearest, at first a guess at it."""
    points = sorted(f.logs for f in found)
    slope = -0.15
    if len(points) > 1:
        nearest = sorted(points, key=lambda p: abs(p[1] - math.log(wanted)))[:2]
        (x0, y0), (x1, y1) = nearest
        slope = min((y1 - y0) / (x1 - x0), -0.05)
    x, y = min(points, key=lambda p: abs(p[1] - math.log(wanted)))
    return math.exp(x + min(max((math.log(wanted) - y) / slope, -4.0), 4.0))


def check_by_t(name: str, given: ByT | None) -> None:
    """Raise InputError unless what is given for a T, if anything, is above 0."""
    for number in given.values() if isinstance(given, dict) else [] if given is None else [given]:
        check_number(f"option {name}", number, 0, above=True)


@overload
def at(given: ByT, T: int) -> float: ...
@overload
def at(given: None, T: int) -> None: ...
def at(given: ByT | None, T: int) -> float | None:
    """What is given for T: its own number, or that of the largest T below it."""
    if not isinstance(given, dict):
        return given
    return given[max((t for t in given if t <= T), default=min(given))]
