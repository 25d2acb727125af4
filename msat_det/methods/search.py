"""Fits the neurons of a network, layer after layer, on what the spiking layers before send (MSAT paper, eq. 14).

Every candidate neuron of a call site is simulated on the currents that it would get. Its cost, per channel, is

    sensitivity · Σ (rate − activation)²  +  price · Σ |spikes|

The first sum is eq. 14 measured instead of modelled: quantisation, clipping and spikes of inactive neurons (SIN) are
all in it. Its weight says how much an error of that channel moves the network's outputs, the price is one for the
whole network, so spikes go where they buy the most. A budget is met by searching for the price.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.base.checks import present
from msat_det.graph.channels import mean_by_channel
from msat_det.graph.facts import facts
from msat_det.graph.graph import elements
from msat_det.methods.budget import Priced, Unit, fit_within
from msat_det.methods.observe import Observation
from msat_det.methods.sensitivity import sensitivity
from msat_det.methods.sequential import alone, toward_activations
from msat_det.spiking.kernels import Scan
from msat_det.spiking.neurons import Msat, Neuron, threshold

SILENT = 1000.0  # a stage's factor under which nothing fires
# The last stage's threshold over the channel's statistic, an octave in two steps. One spike a timestep needs the
# largest; what is below the smallest is finer than sixteen levels.
FACTORS = tuple(0.044 * 2 ** (i / 2) for i in range(11))
NEARBY = (2**-0.5, 1.0, 2**0.5)
FINE = (2**-0.25, 2**0.25)
FADING = 32
PASSES = 5  # through the network in search of the price that meets a budget
CLOSE = 0.02  # a budget counts as met when this share of it or less is left


@dataclass(frozen=True)
class Goal:
    """What is fitted. times: the timesteps whose running means shall be right, the last one is how long the simulation
    runs. stages: candidate factors on θ over the timesteps, the last of each 1. adaptive: which of ``dtt`` and ``det``
    are tried. price: of one ``unit``. images: the first calibration images. correct: whether each channel's mean error
    is taken off by a bias."""

    unit: Unit
    times: Sequence[int]
    stages: Sequence[tuple[float, ...]]
    adaptive: Sequence[str]
    price: float
    images: int
    correct: bool


@dataclass
class Trial:
    """A candidate neuron of one call site, and what it costs on the calibration images.

    error, spikes: (C,), mean squared error of the running mean and spikes, per neuron. cost: (C,).
    """

    neuron: Neuron
    error: Tensor
    spikes: Tensor
    cost: Tensor

    @property
    def total(self) -> float:
        return self.cost.sum().item()


def stage_candidates(T: int) -> list[tuple[float, ...]]:
    """Stages for a chosen T: nothing first, then the value in up to four digits of a base, coarse to fine; and one
    threshold for all timesteps."""
    digits = [(1,)] + [(2, base) for base in (3, 4, 5, 6, 8)] + [(3, base) for base in (2, 3, 4, 5)] + [(4, 2), (4, 3)]
    found: list[tuple[float, ...]] = [(1.0,)]
    for number, *base in digits:
        code = tuple(float(base[0]) ** i if base else 1.0 for i in reversed(range(number)))
        if number <= T and T > 1:
            found.append((SILENT,) * (T - number) + code)
    return found


def anytime_candidates(T: int) -> list[tuple[float, ...]]:
    """Stages whose running mean is of use at every t: one threshold, and thresholds that fall for a while."""
    falls = [(2.0,), (4.0, 2.0), (3.0, 2.0, 1.5), (8.0, 4.0, 2.0), (4.0, 3.0, 2.0, 1.5), (8.0, 5.0, 3.5, 2.5, 2.0, 1.5)]
    return [(1.0,)] + [(*fall, 1.0) for fall in falls if len(fall) < T]


def fit(observation: Observation, goal: Goal, make: Callable[[Node, Tensor], Neuron], budget: float | None) -> Priced:
    """The network's neurons by ``goal``, its price such that ``budget`` is met (as far as any price meets it).

    make: a call site and a threshold (C,) → the neuron whose threshold, stages, adaptivity and bias are fitted.
    """
    weights = sensitivity(observation.graph, observation.first(min(4, goal.images)))

    def fit_at(price: float) -> Priced:
        return fit_once(observation, replace(goal, price=price), make, weights)

    return fit_within(budget, fit_at, goal.price, CLOSE, PASSES, _stuck)


def _stuck(before: Priced, last: Priced) -> bool:
    (x0, y0), (x1, y1) = before.logs, last.logs
    return x0 == x1 or (abs(x1 - x0) > 1 and abs(y1 - y0) < CLOSE)


def fit_once(
    observation: Observation, goal: Goal, make: Callable[[Node, Tensor], Neuron], weights: dict[str, Tensor]
) -> Priced:
    """One pass through the network at a fixed price."""
    result = Priced({}, goal.price)

    def decide(node: Node, currents: Tensor, wanted: Tensor) -> Neuron:
        bench = Bench(node, currents, wanted, goal, weights[node.name])
        trial = search(bench, make)
        result.spent += (trial.spikes * bench.weight).sum().item() * bench.positions
        return trial.neuron

    result.neurons = toward_activations(observation, goal.images, max(goal.times), decide)
    if goal.unit.of == "energy":  # of which spikes are a part alone
        result.spent = goal.unit.spent(result.neurons, observation.first(goal.images), max(goal.times))
    return result


@dataclass
class Bench:
    """One call site with the currents (T, B, C, …) that it gets and the activations (B, C, …) that it shall send."""

    node: Node
    currents: Tensor
    wanted: Tensor
    goal: Goal
    sensitivity: Tensor

    def __post_init__(self) -> None:
        self.T = max(self.goal.times)
        self.axis = facts(self.node).channel_axis
        self.positions = elements(self.node) // facts(self.node).channels
        self.weight = self.goal.unit.weight(self.node)
        self.shortened: dict[int, Tensor] = {0: self.currents}

    def simulate(self, neuron: Neuron) -> tuple[Scan, list[Tensor]]:
        """The neuron after T timesteps, and its output at each of them."""
        silent = 0 if neuron.adaptive else sum(stage == SILENT for stage in neuron.stages)
        scan = alone(neuron, self.currents)
        outputs = scan.run(self.without(silent), silent, self.T - silent)
        return scan, [torch.zeros_like(outputs[0])] * silent + list(outputs)

    def without(self, silent: int) -> Tensor:
        """The currents with those of the first timesteps, in which nothing fires, added to the next one's."""
        if silent not in self.shortened:
            currents = self.currents.expand(self.T, *self.currents.shape[1:])
            first = currents[: silent + 1].sum(0, keepdim=True)
            self.shortened[silent] = torch.cat((first, currents[silent + 1 :]))
        return self.shortened[silent]

    def try_(self, neuron: Neuron) -> Trial:
        """Simulate a candidate."""
        scan, outputs = self.simulate(neuron)
        error = self.wanted.new_zeros(())
        for t in self.goal.times:
            difference = self.rate(scan, outputs, t) - self.wanted
            squared = self.mean(difference.square())
            if self.goal.correct:
                squared = squared - self.mean(difference).square()
            error = error + squared / len(self.goal.times)
        spikes = self._spikes(neuron, outputs, scan)
        cost = (self.sensitivity * error + self.goal.price * spikes * self.weight) * self.positions
        return Trial(neuron, error, spikes, cost)

    def mean(self, x: Tensor) -> Tensor:
        """By channel, (C,)."""
        return mean_by_channel(x, self.axis)

    def rate(self, scan: Scan, outputs: list[Tensor], t: int) -> Tensor:
        """The running mean of the output over the first t timesteps."""
        return (scan.output if t == self.T else sum(outputs[1:t], outputs[0])) / t

    def _spikes(self, neuron: Neuron, outputs: list[Tensor], scan: Scan) -> Tensor:
        """Σ|s| of each channel, per neuron; of binary levels the digits, of heights that differ what they cost."""
        if neuron.bits:
            return self._terms(neuron, neuron.bits, outputs)
        none = self.wanted.new_zeros(())
        if neuron.adaptive is None:
            sizes = sum((self.mean(o.abs()) / neuron.stage(t) for t, o in enumerate(outputs)), none)
            return torch.where(neuron.theta > 0, sizes / neuron.theta.clamp(min=1e-30), 0.0)
        events = sum((self.mean((o != 0).float()) for o in outputs), none)
        if self.goal.unit.graded:
            return self.goal.unit.graded * events
        # heights differ by neuron: the count of all spikes, shared out by where there are any
        each = scan.counts[:, 0].mean().item() / self.positions
        return each * events / events.sum().clamp(min=1e-30)

    def _terms(self, neuron: Neuron, bits: int, outputs: list[Tensor]) -> Tensor:
        """The binary digits of each channel's bursts, per neuron; timesteps of one stage at once."""
        by_stage: dict[float, list[Tensor]] = {}
        for t, output in enumerate(outputs):
            by_stage.setdefault(neuron.stage(t), []).append(output)
        total = self.wanted.new_zeros(())
        for stage, sent in by_stage.items():
            if stage != SILENT:
                whole = (torch.cat(sent).abs() / (threshold(neuron, sent[0]) * stage)).round().int()
                total = total + len(sent) * self.mean(_digits(whole, bits).float())
        return total

    def corrected(self, neuron: Neuron) -> Neuron:
        """The neuron with each channel's mean error, over the wanted timesteps, as a bias.

        Beyond FADING timesteps an error weighs by them, so that those of the first few fade from the bias.
        """
        scan, outputs = self.simulate(neuron)
        means = [self.mean(self.wanted - self.rate(scan, outputs, t)) for t in self.goal.times]
        weights = [max(1.0, t / FADING) for t in self.goal.times]
        bias = sum((weight * mean for weight, mean in zip(weights, means, strict=True)), self.wanted.new_zeros(()))
        return replace(neuron, bias=bias / sum(weights))


def _digits(whole: Tensor, bits: int) -> Tensor:
    """``levels.digits`` of int32, in a few operations."""
    top = bits - 1
    return sum(((whole >> k) & 1 for k in range(top)), whole >> top)


def search(bench: Bench, make: Callable[[Node, Tensor], Neuron]) -> Trial:
    """Coordinate search: each channel's threshold, then the stages of the call site, then DTT and DET."""
    unit = torch.ones_like(bench.sensitivity)
    first = bench.goal.stages[min(4, len(bench.goal.stages) - 1)]
    plain = make(bench.node, unit)
    top = plain.theta.expand_as(unit)
    best = by_channel(bench, [replace(plain, theta=top * f, stages=first) for f in FACTORS])
    for stages in bench.goal.stages:
        if stages != first:
            candidates = [replace(best.neuron, theta=best.neuron.theta * f, stages=stages) for f in NEARBY]
            best = better(best, by_channel(bench, candidates))
    fine = [replace(best.neuron, theta=best.neuron.theta * f) for f in FINE]
    best = by_channel(bench, [best, *fine])
    if bench.goal.adaptive:
        best = better(best, adapted(bench, best))
    idle = best.cost == 0  # nothing comes in on these images: no threshold is better than another
    best = replace(best, neuron=replace(best.neuron, theta=torch.where(idle, top, best.neuron.theta)))
    if bench.goal.correct:
        best = replace(best, neuron=bench.corrected(best.neuron))
    return best


def by_channel(bench: Bench, candidates: Sequence[Neuron | Trial]) -> Trial:
    """For each channel the threshold of the candidate that costs it least; all else is alike in them."""
    trials = [c if isinstance(c, Trial) else bench.try_(c) for c in candidates]
    pick = torch.stack([trial.cost for trial in trials]).argmin(0, keepdim=True)

    def picked(values: list[Tensor]) -> Tensor:
        return torch.stack(values).gather(0, pick).squeeze(0)

    theta = picked([trial.neuron.theta for trial in trials])
    return Trial(
        replace(trials[0].neuron, theta=theta),
        *(picked([getattr(trial, name) for trial in trials]) for name in ("error", "spikes", "cost")),
    )


def better(old: Trial, new: Trial) -> Trial:
    return new if new.total < old.total else old


# What is tried of eqs. 16 and 17, one parameter after the other, in units of the channel's scale.
TRACKING = {"rest": (-2.0, 0.0), "alpha": (0.3, 1.0), "k_a": (0.3, 3.0), "tau_mp": (0.5, 2.0)}
EVOKED = {"tau_rd": (0.5, 2.0), "C": (1.0, 20.0)}


def adapted(bench: Bench, plain: Trial) -> Trial:
    """The best neuron with DTT or DET on top of the fitted thresholds and stages: θ(t) starts from the same height."""
    tried = set(bench.goal.adaptive)
    start = Msat(normalised=True, dtt="dtt" in tried, det="det" in tried)
    best = bench.try_(_adaptive(plain.neuron, start))
    grid = (TRACKING if start.dtt else {}) | (EVOKED if start.det else {})
    for name, value in ((name, value) for name, values in grid.items() for value in values):
        changed: dict[str, Any] = {name: value}
        best = better(best, bench.try_(_adaptive(plain.neuron, replace(present(best.neuron.adaptive), **changed))))
    nearby = [replace(best.neuron, theta=best.neuron.theta * f) for f in NEARBY if f != 1.0]
    return by_channel(bench, [best, *nearby])


def _adaptive(neuron: Neuron, m: Msat) -> Neuron:
    """The neuron with an MSAT threshold that is as high as the constant one at rest (Δ = D = 0)."""
    rest = -1.0 if m.rest is None else m.rest
    total = m.dtt * m.tau_mp * (rest + m.k_a * math.log(2)) + m.det * m.tau_rd
    return replace(neuron, theta=neuron.theta * (1 + math.exp(-total)), adaptive=m)
