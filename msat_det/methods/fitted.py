"""Methods whose neurons are searched for on calibration images; the searches are ``search`` and ``delta_search``."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node

from msat_det.methods.budget import BudgetOf, ByT, Unit, at, check_by_t
from msat_det.methods.delta_search import Wanted, fit_delta
from msat_det.methods.layerwise import LayerByLayer
from msat_det.methods.observe import Observation
from msat_det.methods.options import OF_RATE, Coding, require
from msat_det.methods.registry import RATE, Neurons, method, neuron, threshold
from msat_det.methods.search import FADING, Goal, anytime_candidates, fit, stage_candidates
from msat_det.spiking.formats.plan import load_plan
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import Neuron


@dataclass(frozen=True)
class Fitted(LayerByLayer):
    """stages: 1 leaves them to the search. budget: spikes per neuron up to T that the fit may spend on the calibration
    images, or, as budget_of says, operations over the float network's multiply-adds, or energy over its energy by the
    table 45nm; None: the price decides. price: what one unit of that is worth in relative squared error of the outputs;
    a budget's search starts there. Both: one number, or one for each T and those above it, {4: 3.1, 8: 4.8}.
    correct: remove each channel's mean error by a bias, or by one for each timestep. plan: a file that an earlier fit
    has left in its run directory (plans/LABEL-tT.safetensors), whose neurons are used as they are, whatever the options
    that say how to fit.
    """

    scale: Literal["layer", "channel"] = "channel"
    percentile: float = 99.9
    signed: bool = True
    gamma: int = 15
    bits: int = 4
    terms: tuple[int, ...] = (4,)
    rounding: Literal["fixed", "track"] | None = "track"
    price: ByT = 0.003
    budget: ByT | None = None
    budget_of: BudgetOf = "spikes"
    correct: Literal["bias", "bias-t", "none"] = "bias"  # type: ignore[assignment]  # values of its own
    plan: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        alike = self.stages is None or self.varying or set(self.stages) == {1.0}
        require(alike, "stages", self.stages, "factors that differ, or 1: the height of θ is what is fitted")
        check_by_t("price", self.price)
        check_by_t("budget", self.budget)


@method("constant-fit", Fitted, needs_t=True, codings=RATE)
def constant_fit(options: Fitted, observation: Observation, T: int) -> Neurons:
    """Constant thresholds by the same search as ``msat-fit``, at the same budget: the difference is what adaptivity
    adds."""
    return _fit_rate(options, observation, [T], [(1.0,)])


RATE_ALONE = ("dtt", "det", "stages", "terms", *OF_RATE)


@dataclass(frozen=True)
class MsatFit(Fitted):
    """dtt, det: also try eqs. 16 and 17, per call site. coding: if not set both are searched, unless an option is given
    that only rate coding has. bits: if not set 4 under rate coding, 8 under delta coding."""

    coding: Coding | None = None  # type: ignore[assignment]  # values of its own
    levels: Literal["unary", "binary"] = "binary"
    bits: int | None = None  # type: ignore[assignment]  # values of its own
    dtt: bool = False
    det: bool = False

    def __post_init__(self) -> None:
        self.refuse("under coding delta it is what is fitted", "zone")
        super().__post_init__()
        if self.coding == "delta":
            self.refuse("it is for coding rate", *RATE_ALONE)

    @property
    def codings(self) -> list[Coding]:
        """Those that are searched over."""
        if self.coding:
            return [self.coding]
        return ["rate"] if self.correct == "bias-t" or any(map(self.given, RATE_ALONE)) else ["rate", "delta"]

    @property
    def as_rate(self) -> "MsatFit":
        """The options of the fit under rate coding."""
        return replace(self, coding="rate", bits=self.bits or Fitted.bits if self.levels == "binary" else None)

    @property
    def as_delta(self) -> "DeltaFit":
        """The options of the fit under delta coding: what both fits can be told."""
        own = {item.name for item in fields(DeltaFit)} - {*RATE_ALONE, "coding", "zone", "correct"}
        shared = {name: getattr(self, name) for name in own if getattr(self, name) is not None}
        return DeltaFit(**shared, correct="none" if self.correct == "none" else "bias")


@method("msat-fit", MsatFit, needs_t=True)
def msat_fit(options: MsatFit, observation: Observation, T: int) -> Neurons:
    """The multi-stage threshold fitted for one T: scale per channel, stages and, if asked, eqs. 16 and 17 per call
    site, by eq. 14 under a budget of spikes. Ours; see ``methods.search``.

    If the coding is not set, ``delta-fit`` is made for T too, and the one is taken whose outputs are closer to the
    float network's on the calibration images. Levels are binary: they send what bursts send with no more spikes.
    """
    return _nearest(options, observation, [T], stage_candidates(T))


@method("msat-fit-anytime", MsatFit)
def msat_fit_anytime(options: MsatFit, observation: Observation, T: int) -> Neurons:
    """One plan for every t: the error is averaged over t = 2, 3, 4, 6, 8, 12, 16, … up to T."""
    times = [t for t in _doubling(T) if t <= T] or [T]
    return _nearest(options, observation, times, anytime_candidates(T), anytime=True)


def _doubling(T: int) -> list[int]:
    powers = [2**i for i in range(1, T.bit_length() + 1)]
    return sorted({T, *powers, *(3 * p // 2 for p in powers)})


def _nearest(
    options: MsatFit,
    observation: Observation,
    times: Sequence[int],
    stages: list[tuple[float, ...]],
    anytime: bool = False,
) -> Neurons:
    """The fit by each coding that the options leave open; of several the one with the least error within the budget,
    or without a budget the least error and price."""
    if options.plan:
        return load_plan(options.plan).neurons(observation.graph)
    found = []
    for coding in options.codings:
        if coding == "rate":
            found.append(_fit_rate(options.as_rate, observation, times, stages))
        else:
            found.append(_fit_corrections(options.as_delta, observation, times, anytime))
    return found[0] if len(found) == 1 else min(found, key=lambda each: _cost(options, observation, times, each))


def _cost(options: MsatFit, observation: Observation, times: Sequence[int], neurons: Neurons) -> tuple[float, float]:
    """What is spent beyond the budget, and the error of the outputs, its price with it where there is no budget."""
    T = times[-1]
    budget, batch = at(options.budget, T), observation.first(options.images)
    spent = Unit(options.budget_of, observation).spent(neurons, batch, T)
    snn, error = SpikingNetwork(observation.graph, neurons, observation.fanout), 0.0
    wanted = pytree.tree_leaves(snn.graph(batch))
    for outputs in snn.run(batch, T, times).values():
        for got, goal in zip(pytree.tree_leaves(outputs), wanted, strict=True):
            error += ((got - goal).square().mean() / goal.var().clamp(min=1e-30)).item() / len(times) / len(wanted)
    if budget is None:
        return 0.0, error + at(options.price, T) * spent
    return max(0.0, spent - 1.02 * budget), error


def _fit_rate(
    options: Fitted, observation: Observation, times: Sequence[int], stages: list[tuple[float, ...]]
) -> Neurons:
    if options.plan:
        return load_plan(options.plan).neurons(observation.graph)
    top = 2 ** (options.bits - 1) if options.levels == "binary" else 1  # what is fitted is the smallest level

    def make(node: Node, unit: Tensor) -> Neuron:
        return neuron(options, node, top * threshold(options, observation, node).expand_as(unit))

    stages = [options.stages] if options.stages and options.varying else stages  # what is asked for is not searched for
    adaptive = [name for name in ("dtt", "det") if getattr(options, name, False)]
    unit, price = Unit(options.budget_of, observation), at(options.price, times[-1])
    goal = Goal(unit, times, stages, adaptive, price, options.images, options.correct != "none")
    return fit(observation, goal, make, at(options.budget, times[-1])).neurons


@dataclass(frozen=True)
class DeltaFit(LayerByLayer):
    """budget: operations over the float network's multiply-adds that the calibration images may take (an energy ratio
    of .18 is about .8 of them), or as budget_of says; one number or one for each T and those above it; None: the price
    decides. price: what one unit of that is worth in relative squared error of the outputs; beyond 32 timesteps an
    error weighs by them, so that it falls with T. correct: `bias` makes up for the error that each channel's input
    inherits. plan: as of ``msat-fit``. stages, terms and zone are what is fitted.
    """

    scale: Literal["layer", "channel"] = "channel"
    percentile: float = 99.9
    gamma: int = 15
    coding: Coding = "delta"
    levels: Literal["unary", "binary"] = "binary"
    bits: int = 8
    price: ByT = 0.02
    budget: ByT | None = None
    budget_of: BudgetOf = "sops"
    correct: Literal["bias", "none"] = "bias"  # type: ignore[assignment]  # values of its own
    plan: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse("it is what is fitted", "stages", "terms", "zone")
        check_by_t("price", self.price)
        check_by_t("budget", self.budget)


@method("delta-fit", DeltaFit, needs_t=True, codings=("delta",))
def delta_fit(options: DeltaFit, observation: Observation, T: int) -> Neurons:
    """Delta coding with θ per channel, terms and dead zones per call site, fitted under a budget. Ours; see
    ``methods.delta_search``. The first timestep is fitted, and later ones correct it, within the budget: a value that
    is sent later costs as much, and what was sent before has to be corrected."""
    return _fit_corrections(options, observation, [T])


@method("delta-fit-anytime", DeltaFit, codings=("delta",))
def delta_fit_anytime(options: DeltaFit, observation: Observation, T: int) -> Neurons:
    """One plan for every t: a budget for each timestep, {1: 0.6, 2: 0.9, 4: 1.1}, up to which it may have spent, and
    stages, terms and dead zones of their own; without a budget four timesteps, each at half the price of the one
    before. After them the last one's apply, up to the 64th; from then on the rest is sent by a term a timestep of finer
    and finer levels, without a dead zone and without the bias, because the last one may be to send nothing, and its
    bias makes up for errors that fade. Ours."""
    return _fit_corrections(options, observation, range(1, T + 1), anytime=True)


HALVINGS = 4
HELD = 64  # timesteps


def _never_done(made: Neuron) -> Neuron:
    """The neuron that after ``HELD`` timesteps corrects whatever error is left, by levels that become finer from there
    on, and without its bias: what that made up for is no more there."""
    held = HELD - len(made.terms)
    terms = (*made.terms, *[made.terms[-1]] * held, max(1, made.terms[-1]))
    zone = (*made.zone, *[made.zone[-1]] * held, 0.5)
    return replace(made, terms=terms, zone=zone, bias=_until_held(made.bias), steps=min(made.steps or HELD, HELD))


def _until_held(bias: Tensor | None) -> Tensor | None:
    """A bias (C,), () or (K, C) as (HELD + 1, C): 0 in the end."""
    if bias is None:
        return None
    over_time = bias if bias.dim() > 1 else bias.reshape(1, -1)
    held = over_time[-1:].expand(HELD - len(over_time), -1)
    return torch.cat((over_time, held, torch.zeros_like(held[:1])))


def _fit_corrections(
    options: DeltaFit, observation: Observation, times: Sequence[int], anytime: bool = False
) -> Neurons:
    """times: one T, or the timesteps of an anytime plan."""
    if options.plan:
        return load_plan(options.plan).neurons(observation.graph)
    fitted = times[: max(options.budget) if isinstance(options.budget, dict) else HALVINGS]
    prices = [at(options.price, t) / max(1.0, t / FADING) for t in fitted]
    if not isinstance(options.price, dict):
        prices = [price / 2**i for i, price in enumerate(prices)]
    budgets = [at(options.budget, t) for t in fitted]
    unit = Unit(options.budget_of, observation)
    wanted = Wanted(unit, fitted, prices, budgets, options.images, options.correct == "bias")

    def make(node: Node) -> Neuron:
        return neuron(options, node, threshold(options, observation, node), terms=(1,))

    found = fit_delta(observation, wanted, make)
    return {name: _never_done(made) for name, made in found.items()} if anytime else found
