"""What others have published since 2022 whose thresholds come from each channel's distribution: dcgs, h-mt, ltb."""

from dataclasses import dataclass, replace
from typing import Literal

from msat_det.base.checks import check_number
from msat_det.methods.observe import Observation
from msat_det.methods.options import STATISTIC, Options
from msat_det.methods.registry import RATE, Neurons, method, neuron
from msat_det.methods.thresholds import balanced, least_error, mean
from msat_det.methods.unseen import with_unseen


@dataclass(frozen=True)
class ByDistribution(Options):
    """scale, percentile, values: refused, for θ comes from each channel's distribution (``methods.thresholds``)."""

    scale: Literal["layer", "channel"] = "channel"
    how = "each channel's θ is the one with the least error"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse(self.how, *STATISTIC)


@dataclass(frozen=True)
class Dcgs(ByDistribution):
    """bits: N of λ_1 … λ_N, each half of the one before; levels ``unary`` is N = 1, without the
    paper's start at θ/2 in place of the zone."""

    coding: Literal["rate", "delta"] = "delta"
    levels: Literal["unary", "binary"] = "binary"
    bits: int = 8
    terms: tuple[int, ...] = (1,)
    zone: tuple[float, ...] = (0.75,)

    @property
    def steps(self) -> int | None:
        return None if self.varying else 1  # weights 1/n from the first timestep on


@method("dcgs", Dcgs, codings=("delta",), source="Huang et al. 2025")
def dcgs(options: Dcgs, observation: Observation, T: int) -> Neurons:
    """Differential coding with weights 1/n: one signed level a timestep, the nearest power of two below a channel's θ.

    Huang et al., "Differential coding for training-free ANN-to-SNN conversion", 2025: m ← m + I + r_in − r_out, of
    λ_k = θ/2^(k−1), k = 1 … N, the largest with m ≥ .75·λ_k. A weight of 1/n on the n-th output is a stage of 1/n on θ.
    θ has the least error of T·2^N levels, here by the observed distribution, and for the last T at every t. What is
    taken back may exceed what was sent by a third, where the paper's neuron stops: the next timestep corrects it. An
    error of ``OVERFLOW`` times all levels, which only a value far beyond calibration makes, is sent at once.
    """
    found, levels = {}, 2**options.bits if options.levels == "binary" else 2 * options.gamma
    for node in observation.graph.sites:
        theta = options.factor * least_error(observation.sites[node.name], T * levels)
        found[node.name] = neuron(options, node, with_unseen(theta, observation, node, share=1.0))
    return found


@dataclass(frozen=True)
class Hmt(ByDistribution):
    """bits: N of the 2^N − 1 thresholds."""

    levels: Literal["binary"] = "binary"
    initial: Literal["zero", "half"] = "half"
    bits: int = 8
    terms: tuple[int, ...] = (8,)


@method("h-mt", Hmt, needs_t=True, codings=RATE, source="AAAI 2026")
def h_mt(options: Hmt, observation: Observation, T: int) -> Neurons:
    """Half-start multi-threshold neurons: s = clamp(⌊v/θ⌋, 0, 2^N − 1), v(−1) = θ/2, sent as the binary digits of s.

    AAAI 2026. θ by the same optimum as ``dcgs``. With terms below bits only the leading digits are sent, and the rest
    stays in the potential.
    """
    found = {}
    for node in observation.graph.sites:
        theta = options.factor * least_error(observation.sites[node.name], T * (2**options.bits - 1))
        top = with_unseen(theta, observation, node) * 2 ** (options.bits - 1) / (2**options.bits - 1)
        found[node.name] = neuron(options, node, top)
    return found


@dataclass(frozen=True)
class Ltb(ByDistribution):
    """updates: of the threshold; the paper takes 1,000 for classifiers and 5,000 for detectors. late: its readout."""

    how = "θ is balanced channel by channel"
    initial: Literal["zero", "half"] = "half"
    updates: int = 1000
    late: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("option updates", self.updates, 1, whole=True)


@method("ltb", Ltb, needs_t=True, codings=RATE, source="CVPR 2025")
def ltb(options: Ltb, observation: Observation, T: int) -> Neurons:
    """Local threshold balancing: IF with v(−1) = θ/2, θ from 0 by θ ← θ + 2·E[(z − θ)·[z > θ]], and a late readout.

    "Inference-scale complexity in ANN-SNN conversion for high-performance and low-power applications", 2025. Outputs
    are averaged from t₀ on, the time that spikes take to the last layer: the sum over layers of θ − v(−1) over the
    mean activation of its most active channel, at most T − 4. All layers are balanced on the float network's
    activations, where deeper ones of the paper see what those before have clipped.
    """
    found, latency = {}, 0.0
    for node in observation.graph.sites:
        site = observation.sites[node.name]
        theta = options.factor * balanced(site, options.updates)
        activity = mean(site)
        made = found[node.name] = neuron(options, node, with_unseen(theta, observation, node))
        if activity.any():  # of a layer that calibration has left silent no time is known
            first, start = activity.argmax(), made.offset or options.start
            latency += (1 - start) * (theta.flatten()[first] / activity.flatten()[first]).item()
    late = max(0, min(int(latency), T - 4)) if options.late else 0
    return {name: replace(made, late=late) for name, made in found.items()}
