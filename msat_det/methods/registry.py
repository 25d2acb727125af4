"""The registry of conversion methods, and the neurons that the options common to all of them describe."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, make_dataclass, replace
from typing import Any, get_type_hints

from torch import Tensor
from torch.fx.node import Node

from msat_det.base.errors import InputError
from msat_det.base.names import Names
from msat_det.graph.facts import facts
from msat_det.methods.observe import Observation
from msat_det.methods.options import Options, parse
from msat_det.methods.unseen import SHARE, with_unseen
from msat_det.spiking.neurons import Neuron

Neurons = dict[str, Neuron]
RATE = ("rate",)


@dataclass(frozen=True)
class Method:
    """A registered method. needs_t: it is made anew for each recorded t. clips: why what lies beyond its range stays
    clipped, where it does. codings: those that it makes neurons for. source: who published it. preset: values of its
    options that replace their defaults (``preset``), of the method named ``base``. about: what it does."""

    name: str
    options: type[Options]
    make: Callable[[Any, Observation, int], Neurons]
    needs_t: bool
    clips: str = ""
    codings: tuple[str, ...] = ("rate", "delta")
    source: str = "ours"
    preset: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
    about: str = ""

    def __str__(self) -> str:
        values = ", ".join(f"{key}: {list(v) if isinstance(v, tuple) else v}" for key, v in self.preset.items())
        about = f"{self.about} (clips: {self.clips})" if self.clips else self.about
        return f"{about} [{self.source}]" + (f" = {self.base} with {values}" if self.base else "")


METHODS: Names[Method] = Names("method")


def method(
    name: str,
    options: type[Options],
    needs_t: bool = False,
    clips: str = "",
    codings: tuple[str, ...] = ("rate", "delta"),
    source: str = "ours",
) -> Callable:
    """Register a function (options, observation, T) → {call site: Neuron} under a name. What it does is said by the
    first sentence of its docstring."""

    def register(make: Callable[[Any, Observation, int], Neurons]) -> Callable:
        text = " ".join((inspect.getdoc(make) or "").replace("`", "").split())
        about = re.split(r"\. (?=[A-Zθ\"])", text)[0].rstrip(".")
        METHODS[name] = Method(name, options, make, needs_t, clips, codings, source, about=about)
        return make

    return register


def preset(name: str, base: str, about: str, codings: tuple[str, ...] = RATE, **values: Any) -> None:
    """Register a recipe: the method ``base`` with other defaults, ``values`` of its options, under its own name."""
    own = METHODS[base].options
    hints = get_type_hints(own)
    defaults = [(key, hints[key], field(default=value)) for key, value in values.items()]
    options = make_dataclass(re.sub(r"\W", "_", name), defaults, bases=(own,), frozen=True)
    own_words = replace(METHODS[base], name=name, base=base, about=about, source="ours")
    METHODS[name] = replace(own_words, options=options, codings=codings, preset=values)


def parse_options(name: str, values: dict[str, Any]) -> Options:
    """A method's options from plain values; see ``options.parse``."""
    found = METHODS.find(name)
    options = parse(name, found.options, values)
    if options.coding is not None and options.coding not in found.codings:
        able = [other.name for other in METHODS.values() if options.coding in other.codings]
        raise InputError(f"method {name} has no coding {options.coding}: these have it: {', '.join(able)}")
    return options


def threshold(options: Options, observation: Observation, node: Node, share: float = SHARE) -> Tensor:
    """θ of one call site, on the network's device: factor × the statistic that the options name; of channels without
    one see ``with_unseen``."""
    site = observation.sites[node.name]
    found = options.factor * site.scale(options.percentile, options.values, options.scale)
    return with_unseen(found, observation, node, share).to(observation.graph.device or "cpu")


def neuron(options: Options, node: Node, theta: Tensor, **changes: Any) -> Neuron:
    """The neuron of one call site as the common options say, with a method's own ``changes``.

    theta: of binary levels the top one.
    """
    binary = options.levels == "binary"
    if binary:
        theta = theta / 2 ** (options.bits - 1)
    common: dict[str, Any] = {
        "coding": options.coding,
        "bits": options.bits if binary else None,
        "terms": options.terms if binary else (1,),
        "zone": options.zone,
        "signed": options.signed,
        "margin": options.margin,
        "gamma": 2**options.bits - 1 if binary else options.gamma,
        "initial": options.start,
        "rounding": options.rounds,
        "stages": options.stages or (1.0,),
        "steps": options.steps,
        "drop": options.drop,
        "axis": facts(node).axis,
    }
    return Neuron(theta, facts(node).pointwise, **(common | changes))


def neurons(options: Options, observation: Observation, **changes: Any) -> Neurons:
    """One neuron for each call site by the common options alone."""
    sites = observation.graph.sites
    return {n.name: neuron(options, n, threshold(options, observation, n), **changes) for n in sites}
