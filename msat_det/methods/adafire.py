"""AdaFire: how long a burst each layer may send, chosen under a budget of spikes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node

from msat_det.base.checks import check_numbers
from msat_det.graph.channels import mean_by_channel
from msat_det.graph.graph import Batch
from msat_det.methods.budget import ByT, at, check_by_t
from msat_det.methods.layerwise import Calibration, mmse
from msat_det.methods.observe import Observation
from msat_det.methods.registry import RATE, Neurons, method, neuron
from msat_det.methods.sequential import activations, run_alone, toward_activations
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Neuron

FRONT = 2000  # points of the front that are kept

Point = tuple[float, float, tuple[int, ...]]  # spikes per neuron, error, the γ of each call site so far


@dataclass(frozen=True)
class AdaFire(Calibration):
    """bursts: γ that are tried besides 1. budget: spikes per neuron up to T on the calibration images, one number or
    one for each T and those above it; None: as many as reduce the error. images: of the search, the first ones.
    """

    scale: Literal["layer", "channel"] = "channel"
    correct: Literal["bias", "bias-t", "none"] = "bias"
    images: int = 4
    bursts: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    budget: ByT | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers("option bursts", self.bursts, 2, whole=True)
        check_by_t("budget", self.budget)
        self.refuse("bursts says what is tried", "gamma", "levels")


@method("adafire", AdaFire, needs_t=True, codings=RATE, source="AAAI 2025")
def adafire(options: AdaFire, observation: Observation, T: int) -> Neurons:
    """Bursts of a γ for each call site: each γ is tried with all other sites at 1, and a Pareto dynamic programme takes
    the set of changes that reduces the error of the outputs most within the budget of spikes.

    "Adaptive calibration: a unified conversion framework of spiking neural networks", AAAI 2025. θ per channel has the
    least squared error of the clipped, floored rate, and a bias removes the mean error, as in ``calibration``. What is
    reduced is the squared error of the outputs, also for classifiers. The paper's compression of spikes by higher
    thresholds and its early exit are no part of it.
    """
    plain = {}
    for node, goal in activations(observation, options.images):
        plain[node.name] = neuron(options, node, mmse(options, observation, node, goal, T), gamma=1)
    bursts = choose(_tries(options, observation, plain, T), at(options.budget, T))

    def decide(node: Node, currents: Tensor, goal: Tensor) -> Neuron:
        made = replace(plain[node.name], gamma=bursts[node.name])
        error = mean_by_channel(goal - run_alone(made, currents, T) / T, made.axis)
        return replace(made, bias=error) if options.correct == "bias" else made

    return toward_activations(observation, options.images, T, decide)


@dataclass(frozen=True)
class Try:
    """One γ of one call site: spikes per neuron of the whole network, and its outputs' relative squared error."""

    gamma: int
    spikes: float
    error: float


def _tries(options: AdaFire, observation: Observation, plain: Neurons, T: int) -> dict[str, list[Try]]:
    """Every γ of every call site, the others at 1; a site's first try is γ = 1."""
    batch = observation.first(options.images)
    goals = pytree.tree_leaves(observation.graph(batch))

    def measure(gamma: int, name: str) -> Try:
        neurons = plain | {name: replace(plain[name], gamma=gamma)}
        return Try(gamma, *_measured(SpikingNetwork(observation.graph, neurons, observation.fanout), batch, goals, T))

    first = measure(1, next(iter(plain)))
    return {name: [first, *(measure(gamma, name) for gamma in options.bursts)] for name in plain}


def _measured(snn: SpikingNetwork, batch: Batch, goals: list[Tensor], T: int) -> tuple[float, float]:
    found = snn.simulate(batch, T)
    pairs = zip(pytree.tree_leaves(found.outputs[T]), goals, strict=True)
    error = sum(((a - b).square().mean() / b.square().mean().clamp(min=1e-30)).item() for a, b in pairs)
    return found.counts[T].spikes_per_neuron, error


def choose(tries: Mapping[str, Sequence[Try]], budget: float | None) -> dict[str, int]:
    """The γ of each call site whose changes add up to the least error within the budget (spikes per neuron).

    A dynamic programme over the sites that keeps, of all choices so far, those that no other beats in both sums.
    """
    first = next(iter(tries.values()))[0]
    front: list[Point] = [(first.spikes, first.error, ())]
    for each in tries.values():
        grown: list[Point] = [
            (s + t.spikes - first.spikes, e + t.error - first.error, (*g, t.gamma)) for s, e, g in front for t in each
        ]
        front = _front(grown)
    within = [point for point in front if budget is None or point[0] <= budget] or front[:1]
    return dict(zip(tries, min(within, key=lambda point: point[1])[2], strict=True))


def _front(points: list[Point]) -> list[Point]:
    """Those that no other beats, by spikes; of too many an even choice with both ends."""
    found: list[Point] = []
    for point in sorted(points):
        if not found or point[1] < found[-1][1]:
            found.append(point)
    if len(found) <= FRONT:
        return found
    step = (len(found) - 1) / (FRONT - 1)
    return [found[round(i * step)] for i in range(FRONT)]
