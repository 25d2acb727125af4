"""Methods whose neurons are searched for on calibration images; the search is ``methods.search``."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.base.checks import check_number
from msat_det.graph.channels import rows_by_channel
from msat_det.graph.facts import facts
from msat_det.graph.graph import elements
from msat_det.methods.delta_search import Wanted, fit_delta
from msat_det.methods.layerwise import LayerByLayer
from msat_det.methods.observe import Observation
from msat_det.methods.options import require
from msat_det.methods.registry import RATE, Neurons, method, neuron, threshold
from msat_det.methods.search import FADING, Goal, anytime_candidates, fit, stage_candidates
from msat_det.spiking.formats.plan import load_plan
from msat_det.spiking.neurons import Neuron


@dataclass(frozen=True)
class Fitted(LayerByLayer):
    """stages: 1 leaves them to the search. budget: spikes per neuron (or SOPs per float multiply-add) up to T that the
    fit may spend on the calibration images; None: as the price says. price: what a spike per neuron is worth in
    relative squared error of the outputs; a budget's search starts there. Both: one number, or one for each T and those
    above it, {4: 3.1, 8: 4.8}.
    correct: take each channel's mean error off by a bias. plan: a file that an earlier fit has left in its run
    directory (plans/LABEL-tT.safetensors), whose neurons are taken as they are.
    """

    images: int = 16
    scale: Literal["layer", "channel"] = "channel"
    percentile: float = 99.9
    signed: bool = True
    gamma: int = 15
    rounding: Literal["fixed", "track"] | None = "track"
    price: float | dict[int, float] = 0.003
    budget: float | dict[int, float] | None = None
    budget_of: Literal["spikes", "sops"] = "spikes"
    correct: Literal["bias", "none"] = "bias"
    plan: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, given in (("price", self.price), ("budget", self.budget)):
            for number in given.values() if isinstance(given, dict) else [] if given is None else [given]:
                check_number(f"option {key}", number, 0, above=True)


def at(given: float | dict[int, float] | None, T: int) -> float | None:
    """What is given for T: its own number, or that of the largest T below it."""
    if not isinstance(given, dict):
        return given
    return given[max((t for t in given if t <= T), default=min(given))]


PRICED = "what a spike may cost sets the error, not T"


@method("constant-fit", Fitted, needs_t=True, stays_off=PRICED, codings=RATE)
def constant_fit(options: Fitted, observation: Observation, T: int) -> Neurons:
    """Constant thresholds by the same search as ``msat-fit``, at the same budget: what adaptivity adds is the rest."""
    return _fit(options, observation, [T], [(1.0,)], [])


@dataclass(frozen=True)
class MsatFit(Fitted):
    """dtt, det: also try eqs. 16 and 17, per call site."""

    dtt: bool = False
    det: bool = False

    @property
    def adaptive(self) -> list[str]:
        return [name for name in ("dtt", "det") if getattr(self, name)]


@method("msat-fit", MsatFit, needs_t=True, stays_off=PRICED, codings=RATE)
def msat_fit(options: MsatFit, observation: Observation, T: int) -> Neurons:
    """The multi-stage threshold fitted for one T: scale per channel, stages and, if asked, eqs. 16 and 17 per call
    site, by eq. 14 under a budget of spikes. Ours; see ``methods.search``."""
    return _fit(options, observation, [T], stage_candidates(T), options.adaptive)


@method("msat-fit-anytime", MsatFit, codings=RATE)
def msat_fit_anytime(options: MsatFit, observation: Observation, T: int) -> Neurons:
    """One plan for every t: the error is averaged over t = 2, 3, 4, 6, 8, 12, 16, … up to T."""
    times = [t for t in _doubling(T) if t <= T] or [T]
    return _fit(options, observation, times, anytime_candidates(T), options.adaptive)


def _doubling(T: int) -> list[int]:
    powers = [2**i for i in range(1, T.bit_length() + 1)]
    return sorted({T, *powers, *(3 * p // 2 for p in powers)})


def _fit(
    options: Fitted, observation: Observation, times: list[int], stages: list[tuple[float, ...]], adaptive: list[str]
) -> Neurons:
    if options.plan:
        return load_plan(options.plan).neurons(observation.graph)
    neurons = sum(map(elements, observation.graph.sites))

    def weight(node: Node) -> Tensor:
        if options.budget_of == "spikes":
            return torch.tensor(1.0 / neurons)
        reach = observation.fanout.reach(node, observation.graph.device or torch.device("cpu"))
        each = rows_by_channel(reach.float().unsqueeze(0), facts(node).axis).mean(1)
        return (each if facts(node).axis else each[0]) / observation.fanout.total

    def make(node: Node, unit: Tensor) -> Neuron:
        return neuron(options, node, threshold(options, observation, node).expand_as(unit))

    stages = [options.stages] if options.varying else stages  # what is asked for is not searched for
    goal = Goal(
        times, stages, adaptive, at(options.price, times[-1]), weight, options.correct == "bias", options.images
    )
    return fit(observation, goal, make, at(options.budget, times[-1])).neurons


@dataclass(frozen=True)
class DeltaFit(LayerByLayer):
    """budget: operations over the float network's multiply-adds that the calibration images may take at t = 1 (an
    energy ratio of .18 is about .8 of them), one number or one for each T and those above it; None: as the price says.
    price: what all multiply-adds of the float network are worth in relative squared error of the outputs; beyond
    32 timesteps an error weighs by them, so that it falls with T. correct: take the mean error off that each channel's
    input inherits. plan: as of ``msat-fit``.
    """

    scale: Literal["layer", "channel"] = "channel"
    percentile: float = 99.9
    coding: Literal["rate", "delta"] = "delta"
    levels: Literal["unary", "binary"] = "binary"
    bits: int = 8
    price: float | dict[int, float] = 0.02
    budget: float | dict[int, float] | None = None
    correct: Literal["bias", "none"] = "bias"
    plan: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.levels == "binary", "levels", self.levels, "binary: what is fitted are terms")
        for key, given in (("price", self.price), ("budget", self.budget)):
            numbers = given.values() if isinstance(given, dict) else [given]
            require(all(number is None or number > 0 for number in numbers), key, given, "numbers above 0")


@method("delta-fit", DeltaFit, needs_t=True, stays_off=PRICED, codings=("delta",))
def delta_fit(options: DeltaFit, observation: Observation, T: int) -> Neurons:
    """Delta coding by powers of two with θ per channel, terms and dead zones per call site, fitted under a budget.
    Ours; see ``methods.delta_search``. What is fitted is the first timestep, and later ones correct it."""
    if options.plan:
        return load_plan(options.plan).neurons(observation.graph)
    price = at(options.price, T) / max(1.0, T / FADING)
    wanted = Wanted(price, at(options.budget, T), options.images, options.correct == "bias")

    def make(node: Node) -> Neuron:
        return neuron(options, node, threshold(options, observation, node))

    return fit_delta(observation, wanted, make)
