"""The options that every conversion method can take, and how plain values become them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from msat_det.base.checks import check_number, check_percentile
from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.base.names import hint
from msat_det.base.reader import Reader, listing, plain
from msat_det.spiking.levels import check_sent

Coding = Literal["rate", "delta"]
STATISTIC = ("scale", "percentile", "values")  # the options that say where a threshold starts from
OF_RATE = ("signed", "margin", "confidence", "initial", "rounding")  # those that delta coding leaves without effect


@dataclass(frozen=True)
class Options:
    """What every method accepts.

    An option that another one leaves without effect is refused; one that the network gives nothing to do is not.

    scale, percentile, values: the statistic of |activation| on calibration images that a threshold starts from; values
    ``all`` counts zeros and is floored at 5 % of the maximum. factor: on that threshold. signed, margin, gamma,
    rounding, stages: see ``neurons.Neuron``; rounding None is ``track`` where the threshold varies, else ``fixed``;
    stages None a threshold that does not vary, but under delta coding for levels that are never coarser than 1/n of the
    statistic in the n-th timestep, as the mean of n spikes is.
    initial: potential at the start, 0 or θ/2; 0 under rounding ``track``, which for a θ that does not vary gives what
    θ/2 gives. confidence: eq. 18 for the call sites that feed a head, a number, none or an estimate from calibration
    images. drop: what a dropped spike does to its charge. signed, margin, initial, rounding and drop are for ReLU and
    ReLU6: neurons of other activations track, are signed and keep it in any case. analog: names of call sites that
    stay analog. spiking_linear: neurons also on what layers, norms, gates, sums of two maps and max poolings send to a
    layer with no activation between, and on the operands of attention's products.
    coding: ``rate``, the value is the running mean of what is sent, or ``delta``, it is the sum: only corrections are
    sent (docs/delta.md). levels: ``unary``, bursts of up to gamma spikes, or ``binary``, terms ±2^k·θ, k < bits ≤ 16,
    the statistic being the top level. terms: most of them in a timestep, one number or one for each t. zone: under
    delta coding an error below zone, ½ or more, × the smallest level is not sent; one or one for each t. weights:
    ``int8`` rounds those of every layer to eight bits, a scale for each output channel. correct: ``bias-t`` ends with a
    bias for each channel and timestep as in ``ftbc``, on the calibration images; under rate coding.
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
    stages: tuple[float, ...] | None = None
    confidence: Literal["none", "estimate"] | float = "none"
    drop: Literal["keep", "lossy"] = "keep"
    analog: tuple[str, ...] = ()
    spiking_linear: bool = False
    weights: Literal["float", "int8"] = "float"
    coding: Coding = "rate"
    levels: Literal["unary", "binary"] = "unary"
    bits: int = 7
    terms: tuple[int, ...] = (3,)
    zone: tuple[float, ...] = (0.5,)
    correct: Literal["none", "bias-t"] = "none"

    def __post_init__(self) -> None:
        check_percentile("option percentile", self.percentile)
        check_number("option factor", self.factor, 0, above=True)
        check_sent("option", self)
        if self.confidence not in ("none", "estimate"):
            check_number("option confidence", self.confidence, 0, 1, words="none, estimate or ")
        self._check_coding()

    def _check_coding(self) -> None:
        """Options that go together, and none that would say nothing."""
        if self.coding == "delta":
            require(self.correct != "bias-t", "correct", self.correct, "another one: it is for coding rate")
            self.refuse("it is for coding rate", *OF_RATE)
        else:
            self.refuse("it is for coding delta", "zone")
        if self.levels == "binary":
            self.refuse("it is for levels unary", "gamma")
        else:
            self.refuse("it is for levels binary", "bits", "terms")
        if not self.signed:
            self.refuse("it is for signed true", "margin")
        nearest = self.rounds == "track" or self.initial == "half"
        require(self.margin >= 0.5 or not nearest, "margin", self.margin, "at least 0.5: it rounds to nearest")
        if self.confidence == "none":
            self.refuse("it is for spikes that confidence drops, which is none", "drop")
        if self.percentile == 100:
            self.refuse("it is for a percentile below 100, which is the maximum", "values")

    def refuse(self, why: str, *names: str) -> None:
        """Raise InputError for those of these options that are given."""
        for name in names:
            require(not self.given(name), name, getattr(self, name), f"it no value: {why}")

    def given(self, name: str) -> bool:
        """Whether an option has another value than the method's own."""
        return getattr(self, name) != type(self).__dataclass_fields__[name].default

    @property
    def rounds(self) -> Literal["fixed", "track"]:
        """The rounding, where it is left open by whether the threshold varies."""
        return self.rounding or ("track" if self.varying else "fixed")

    @property
    def start(self) -> float:
        """V(−1) in units of θ."""
        return 0.5 if self.initial == "half" else 0.0

    @property
    def varying(self) -> bool:
        """Whether the threshold changes with time."""
        return len(set(self.stages or ())) > 1

    @property
    def steps(self) -> int | None:
        """See ``neurons.Neuron``. A sum of levels that stay what they are keeps the error of half a level."""
        if self.stages is not None or self.coding == "rate":
            return None
        return 2 ** (self.bits - 1) if self.levels == "binary" else 1


class _OptionReader(Reader):
    """where: the method's name."""

    def wrong(self, name: str, value: Any, wanted: str) -> InputError:
        return InputError(f"option {name} of method {self.where} is {show(value)}: give {wanted}")

    def unknown(self, name: str, names: Iterable[str]) -> InputError:
        mend = hint(name, names, f"it takes {listing(names)}")
        return InputError(f"method {self.where} has no option {show(name)}: {mend}")


def parse(name: str, options: type[Options], values: dict[str, Any]) -> Options:
    """The options of method ``name`` from plain values (of a YAML file, say).

    Raises InputError for an option that the method does not have, with the nearest name, and for a value that does
    not fit it.
    """
    return _OptionReader(name, by_hand=True).read(options, plain(values))


def require(holds: bool, key: str, value: Any, wanted: str) -> None:
    if not holds:
        raise InputError(f"option {key} is {show(value)}: give {wanted}")
