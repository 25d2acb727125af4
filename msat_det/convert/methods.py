"""The conversion methods: each a dataclass of its options and one function from observations to neurons (DESIGN §5).

To add one: subclass ``Options``, write the function, put ``@method(name, YourOptions)`` on it. It then appears in
``msat-det list methods`` and in the contract test.
"""

import difflib
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import Tensor
from torch.fx.node import Node

from msat_det.convert.observe import Observation
from msat_det.errors import InputError
from msat_det.neurons import Msat, Neuron

Neurons = dict[str, Neuron]


@dataclass(frozen=True)
class Options:
    """What any method can take.

    scale, percentile, values: the statistic of |activation| on calibration images that a threshold starts from; values
    ``all`` counts zeros and is floored at 5 % of the maximum. factor: on that threshold. signed, margin, gamma,
    rounding, stages: see ``neurons.Neuron``; rounding None is ``track`` where the threshold varies, else ``fixed``.
    initial: potential at the start, 0 or θ/2. confidence: eq. 18 for the call sites that feed a head, a number, none or
    an estimate from calibration images. drop: what a dropped spike does to its charge.
    """

    scale: Literal["layer", "channel"] = "layer"
    percentile: float = 100.0
    values: Literal["all", "nonzero"] = "all"
    factor: float = 1.0
    signed: bool = False
    margin: float = 0.5
    gamma: int = 1
    initial: Literal["zero", "half"] = "zero"
    rounding: Literal["fixed", "track"] | None = None
    stages: tuple[float, ...] = (1.0,)
    confidence: Literal["none", "estimate"] | float = "none"
    drop: Literal["keep", "lossy"] = "keep"

    def __post_init__(self) -> None:
        _require(0 < self.percentile <= 100, "percentile", self.percentile, "a number above 0, at most 100")
        _require(self.factor > 0, "factor", self.factor, "a number above 0")
        _require(self.gamma >= 1, "gamma", self.gamma, "a whole number of at least 1")
        _require(self.margin >= 0, "margin", self.margin, "a number of at least 0")
        _require(bool(self.stages) and min(self.stages) > 0, "stages", self.stages, "factors above 0")
        if not isinstance(self.confidence, str):
            _require(0 <= self.confidence <= 1, "confidence", self.confidence, "none, estimate or a number from 0 to 1")

    @property
    def varying(self) -> bool:
        """Whether the threshold changes with time."""
        return len(set(self.stages)) > 1


@dataclass(frozen=True)
class Method:
    """A registered method. needs_t: it is made anew for each recorded t."""

    name: str
    options: type[Options]
    make: Callable[[Any, Observation, int], Neurons]
    needs_t: bool


METHODS: dict[str, Method] = {}


def method(name: str, options: type[Options], needs_t: bool = False) -> Callable:
    """Register a function (options, observation, T) → {call site: Neuron} under a name."""

    def register(make: Callable[[Any, Observation, int], Neurons]) -> Callable:
        METHODS[name] = Method(name, options, make, needs_t)
        return make

    return register


def find_method(name: str) -> Method:
    """The method of that name. Raises InputError with the nearest name."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise InputError(f"no method {name!r}{hint} The methods are {', '.join(METHODS)} (msat-det list methods)")
    return METHODS[name]


def parse_options(name: str, values: dict[str, Any]) -> Options:
    """A method's options from plain values (of a YAML file, say).

    Raises InputError for an option that the method does not have, with the nearest name, and for a value that does
    not fit it.
    """
    options = find_method(name).options
    hints = typing.get_type_hints(options)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(hints)}"
            raise InputError(f"method {name} has no option {key!r}: {hint}")
    return options(**{key: _fitting(name, key, value, hints[key]) for key, value in values.items()})


def _fitting(name: str, key: str, value: Any, hint: Any) -> Any:
    """The value as the type hint wants it, numbers widened and lists turned to tuples."""
    choices = []
    for kind in typing.get_args(hint) if typing.get_origin(hint) not in (Literal, tuple) else (hint,):
        if typing.get_origin(kind) is Literal:
            choices += typing.get_args(kind)
    kinds = set(typing.get_args(hint)) | {hint}
    if value in choices and not isinstance(value, bool):
        return value
    if bool in kinds and value in (True, False, "on", "off"):
        return value in (True, "on")
    if isinstance(value, bool):
        pass
    elif isinstance(value, int | float) and float in kinds:
        return float(value)
    elif isinstance(value, int) and int in kinds:
        return value
    elif value is None and type(None) in kinds:
        return None
    elif typing.get_origin(hint) is tuple and isinstance(value, list | tuple | int | float):
        members = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in members):
            return tuple(float(v) for v in members)
    wanted = f"one of {', '.join(map(str, choices))}" if choices else _name(hint)
    raise InputError(f"option {key} of method {name} is {value!r}: give {wanted}")


def _name(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(hint, "a list of numbers")


def _require(holds: bool, key: str, value: Any, wanted: str) -> None:
    if not holds:
        raise InputError(f"option {key} is {value}: give {wanted}")


def threshold(options: Options, observation: Observation, node: Node) -> Tensor:
    """θ of one call site: factor × the statistic that the options name."""
    site = observation.sites[node.name]
    return options.factor * site.scale(options.percentile, options.values, options.scale)


def neuron(options: Options, node: Node, theta: Tensor, **changes: Any) -> Neuron:
    """The neuron of one call site as the common options say, with a method's own ``changes``."""
    common = {
        "signed": options.signed,
        "margin": options.margin,
        "gamma": options.gamma,
        "initial": 0.5 if options.initial == "half" else 0.0,
        "rounding": options.rounding or ("track" if options.varying else "fixed"),
        "stages": options.stages,
        "drop": options.drop,
        "confidence": options.confidence if isinstance(options.confidence, float) else 1.0,
    }
    return Neuron(theta, node.meta["activation"], **(common | changes))


def neurons(options: Options, observation: Observation, **changes: Any) -> Neurons:
    """One neuron for each call site by the common options alone."""
    sites = observation.graph.sites
    return {n.name: neuron(options, n, threshold(options, observation, n), **changes) for n in sites}


@method("constant", Options)
def constant(options: Options, observation: Observation, T: int) -> Neurons:
    """θ = factor × scale: the control that every adaptive result is shown against."""
    return neurons(options, observation)


@dataclass(frozen=True)
class PNorm(Options):
    """percentile: 100 is max-norm."""

    percentile: float = 99.9
    values: Literal["all", "nonzero"] = "nonzero"


@method("p-norm", PNorm)
def p_norm(options: PNorm, observation: Observation, T: int) -> Neurons:
    """θ = 99.9th percentile of the non-zero activations of a layer, soft reset.

    Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-driven networks for image
    classification", 2017, section 2.2.2 (robust normalisation); thresholds in place of scaled weights.
    """
    return neurons(options, observation)


@dataclass(frozen=True)
class MsatOptions(Options):
    """variant: ``reference`` (the published code), ``paper`` (eqs. 15-17 as printed) or ``normalised`` (Δ, V_T and D in
    units of the channel's scale); what it sets can be overridden by units, drive and drop. parameters: Table 2's
    column. dtt, det: switch eqs. 16 and 17 on or off. rest: V_T, by default −θ_max.
    """

    variant: Literal["reference", "paper", "normalised"] = "reference"
    parameters: Literal["vgg16", "resnet20"] = "vgg16"
    units: Literal["absolute", "normalised"] | None = None
    drive: Literal["current", "depolarisation"] | None = None
    drop: Literal["keep", "lossy"] | None = None
    dtt: bool = True
    det: bool = True
    alpha: float | None = None
    k_a: float = 1.0
    k_i: float = 1.0
    C: float = 5.0
    tau_mp: float | None = None
    tau_rd: float | None = None
    rest: float | None = None

    @property
    def varying(self) -> bool:
        # the paper's own variants start at rest and floor, as they are published
        return self.variant == "normalised" or super().varying


# Table 2 (α, τ_mp, τ_rd; k_a = k_i = 1 and C = 5 in both columns).
TABLE_2 = {"vgg16": (0.03, 1.0, 1.0), "resnet20": (0.3, 0.5, 0.5)}


@method("msat", MsatOptions)
def msat(options: MsatOptions, observation: Observation, T: int) -> Neurons:
    """The multi-stage adaptive threshold, MSAT paper eqs. 15-18 and Algorithm 1, on the layer's maximum activation."""
    alpha, tau_mp, tau_rd = TABLE_2[options.parameters]
    paper = options.variant == "paper"
    adaptive = Msat(
        alpha=alpha if options.alpha is None else options.alpha,
        k_a=options.k_a,
        k_i=options.k_i,
        C=options.C,
        tau_mp=tau_mp if options.tau_mp is None else options.tau_mp,
        tau_rd=tau_rd if options.tau_rd is None else options.tau_rd,
        rest=options.rest,
        normalised=(options.units or ("normalised" if options.variant == "normalised" else "absolute")) == "normalised",
        drive=options.drive or ("depolarisation" if paper else "current"),
        dtt=options.dtt,
        det=options.det,
        twice=paper,
    )
    drop = options.drop or ("lossy" if options.variant == "reference" else "keep")
    return neurons(options, observation, adaptive=adaptive, drop=drop)


def head_sites(observation: Observation) -> Sequence[Node]:
    """The last spiking layer: every call site whose spikes reach an output without passing another neuron."""
    found: list[Node] = []
    stack, seen = [observation.graph.nodes[-1]], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if "activation" in node.meta:
            found.append(node)
        else:
            stack.extend(node.all_input_nodes)
    return [node for node in observation.graph.sites if node in found]


def option_names(name: str) -> list[str]:
    """The names of a method's options."""
    return [field.name for field in fields(find_method(name).options)]
