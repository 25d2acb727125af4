"""From a ledger to causes and mends: where a network's error comes from, and which option makes it smaller.

A mend is no rule of thumb that may or may not hold: each option that could help is tried on the same images, and the
one that is named is the one that brings the network's outputs closest to the float network's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msat_det.base.errors import InputError
from msat_det.graph.graph import Batch, Graph, origins
from msat_det.measure.effects import output_error
from msat_det.measure.ledger import Entry, Ledger
from msat_det.methods import parse_options
from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import Observation
from msat_det.methods.options import Options

WORST = 3
MINOR = 0.1  # of a call site's squared error: an own part below that is not worth mending
ENOUGH = 0.97  # of the error before: what leaves more has not helped
CLIPPED, OVER, COARSE, INHERITED = "clipped", "over-fires", "too coarse", "inherited"


@dataclass(frozen=True)
class Finding:
    """What is wrong with one call site at one t, and what to do about it.

    effect: see ``ledger.Entry``. change: the mend as options (or t) of the method, empty where there is none. before,
    after: error of the network's outputs (``effects.output_error``) without and with it; NaN where nothing helped.
    """

    site: str
    cause: str
    mend: str
    t: int
    effect: float
    change: dict[str, Any] = field(default_factory=dict)
    before: float = math.nan
    after: float = math.nan


class Patient:
    """A conversion to examine, by its method and options, at t timesteps; ``book`` is its ledger there.

    batches: the images on which the ledger was made; mends are tried on them, too.
    """

    def __init__(
        self,
        method: str,
        options: dict[str, Any],
        observation: Observation,
        batches: Sequence[Batch],
        book: Ledger,
        graph: Graph,
        t: int,
        seed: int = 0,
    ):
        self.method, self.given, self.options = method, options, parse_options(method, options)
        self.observation, self.batches, self.seed = observation, batches, seed
        self.book, self.graph, self.t = book, graph, t
        self._tried: dict[str, float] = {}

    def diagnose(self) -> list[Finding]:
        """The call sites whose own errors do most harm to the network's outputs, the worst one first."""
        harmful = sorted((e for e in self.book.at(self.t) if e.effect > 0), key=lambda entry: -entry.effect)
        return [self._finding(entry, harmful) for entry in harmful[:WORST]]

    def _finding(self, entry: Entry, harmful: list[Entry]) -> Finding:
        cause, before = cause_of(entry), self.book.outputs[self.t]
        about = _describe(entry, cause)
        sources = self._before(entry.site)
        first = next((e.site for e in harmful if e.site in sources), None)
        if cause == INHERITED and first:
            return Finding(entry.site, about, f"look at {first} first", self.t, entry.effect)
        tries = sorted(mends_for(cause, self.options, self.t), key=self._error_with)
        tries = [change for change in tries if self._error_with(change) < math.inf]
        helping = [change for change in tries if self._error_with(change) < ENOUGH * before]
        if not helping:
            tried = "; ".join(map(self._words, tries))
            mend = f"no single option (tried: {tried or 'none'})" + (f"; look at {first} first" if first else "")
            return Finding(entry.site, about, mend, self.t, entry.effect)
        first, *others = [f"{self._words(c)}: error {before:.3g} → {self._error_with(c):.3g}" for c in helping[:2]]
        mend = f"Try {first}" + "".join(f"; or {other}" for other in others)
        return Finding(entry.site, about, mend, self.t, entry.effect, helping[0], before, self._error_with(helping[0]))

    def _before(self, site: str) -> set[str]:
        """Everything that a call site's input comes from."""
        nodes = {node.name: node for node in self.graph.nodes}
        return {node.name for node in origins(nodes[site].all_input_nodes)}

    def _error_with(self, change: dict[str, Any]) -> float:
        """Error of the outputs under changed options; infinite where they cannot be had."""
        key = repr(sorted(change.items()))
        if key not in self._tried:
            t = change.get("t", self.t)
            options = self.given | {name: value for name, value in change.items() if name != "t"}
            try:
                snn = spiking_network(self.method, options, self.observation, t, self.seed)
                found = output_error(snn, self.batches, t)
            except InputError:
                found = math.inf
            self._tried[key] = math.inf if math.isnan(found) else found
        return self._tried[key]

    def _words(self, change: dict[str, Any]) -> str:
        """``percentile 99.99``, ``factor 0.5 with gamma 7``, ``signed: true``."""
        return " with ".join(f"{name}{':' * isinstance(value, bool)} {_plain(value)}" for name, value in change.items())


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def cause_of(entry: Entry) -> str:
    """The largest part of a call site's own error, or that it has hardly any of its own."""
    if entry.own_norm**2 < MINOR * entry.total**2:
        return INHERITED
    rest = entry.quantisation_norm**2 + entry.sin_norm**2
    parts = {CLIPPED: entry.clipping_norm**2, OVER: entry.over * rest, COARSE: (1 - entry.over) * rest}
    return max(parts, key=parts.__getitem__)


def _describe(entry: Entry, cause: str) -> str:
    details = {
        CLIPPED: f"{entry.clipping_norm:.0%} of the activation is out of reach",
        OVER: f"{entry.sin_ratio:.0%} of the neurons that should be silent are not",
        COARSE: f"its own error is {entry.own_norm:.0%} of the activation",
        INHERITED: f"{entry.own_norm:.2g} of its error {entry.total:.2g} is its own",
    }
    return f"{cause}: {details[cause]}"


def mends_for(cause: str, options: Options, t: int) -> list[dict[str, Any]]:
    """Changes of options, or of t, that may help against a cause."""
    more, finer = _more_and_finer(options)
    higher = [{"percentile": p} for p in (99.9, 99.99, 100.0) if p > options.percentile]
    channels = [{"scale": "channel"}] if options.scale == "layer" else []
    if options.coding == "delta":  # what lies out of reach or is wrong now is mended in later timesteps
        zone = [{"zone": 0.5}] if max(options.zone) > 0.5 else []
        return [*(higher if cause == CLIPPED else channels), *zone, more, finer, {"t": 2 * t}]
    signed: list[dict[str, Any]] = [] if options.signed else [{"signed": True}]
    if cause == CLIPPED:
        return [*higher, {"factor": max(1.0, 1.5 * options.factor)}, more]
    if cause == OVER:
        return signed or [{"factor": 1.5 * options.factor}, more, {"t": 2 * t}]
    normal = [{"variant": "normalised"}] if getattr(options, "variant", "normalised") != "normalised" else []
    half = [{"initial": "half"}] if options.initial == "zero" and options.rounds == "fixed" else []
    track = [{"rounding": "track"}] if options.varying and options.rounding == "fixed" else []
    return [*signed, *normal, *channels, *half, *track, more, finer, {"t": 2 * t}]


def _more_and_finer(options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """More of what one timestep can send, and that in finer steps."""
    if options.levels == "binary":
        bits = options.bits or Options.bits  # msat-fit may leave them open
        return {"terms": max(options.terms) + 1}, {"bits": bits + 1}
    longer = 2 * options.gamma + 1  # 1 → 3 → 7 → 15
    burst = longer if options.coding == "delta" else 2 * longer + 1
    return {"gamma": longer}, {"factor": options.factor / 2, "gamma": burst}
