"""Methods that set thresholds from the observed activations alone."""

from dataclasses import dataclass, replace
from typing import Literal

from msat_det.base.checks import check_number
from msat_det.methods.observe import Observation
from msat_det.methods.options import Options
from msat_det.methods.registry import RATE, Neurons, method, neurons
from msat_det.spiking.neurons import Msat


@method("constant", Options, source="the usual control")
def constant(options: Options, observation: Observation, T: int) -> Neurons:
    """θ = factor × scale: the control that every adaptive result is compared with."""
    return neurons(options, observation)


@dataclass(frozen=True)
class PNorm(Options):
    """percentile: 100 is max-norm."""

    percentile: float = 99.9
    values: Literal["all", "nonzero"] = "nonzero"


@method("p-norm", PNorm, source="Rueckauer et al. 2017")
def p_norm(options: PNorm, observation: Observation, T: int) -> Neurons:
    """θ = 99.9th percentile of the non-zero activations of a layer, soft reset.

    Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-driven networks for image
    classification", 2017, section 2.2.2 (robust normalisation); thresholds in place of scaled weights.
    """
    return neurons(options, observation)


@dataclass(frozen=True)
class ChannelNorm(Options):
    """imbalanced: leaky ReLU by the signed neuron with imbalanced threshold; off, and under delta coding: by one that
    tracks."""

    scale: Literal["layer", "channel"] = "channel"
    imbalanced: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coding == "delta":
            self.refuse("it is for coding rate", "imbalanced")


@method("channel-norm", ChannelNorm, source="Kim et al. 2020 (Spiking-YOLO)")
def channel_norm(options: ChannelNorm, observation: Observation, T: int) -> Neurons:
    """θ = maximum activation of each channel; leaky ReLU with slope a fires −1 at −θ/a.

    Kim et al., "Spiking-YOLO: spiking neural network for energy-efficient object detection", 2020, eqs. 5-8.
    """
    found = neurons(options, observation)
    if not options.imbalanced:
        return found
    leaky = {name for name, n in found.items() if n.activation.name == "leakyrelu" and n.activation.slope > 0}
    return {name: replace(n, imbalanced=True) if name in leaky else n for name, n in found.items()}


@dataclass(frozen=True)
class Burst(Options):
    """gamma: most spikes in one timestep."""

    percentile: float = 99.9
    gamma: int = 5


@method("burst", Burst, source="Li & Zeng 2022")
def burst(options: Burst, observation: Observation, T: int) -> Neurons:
    """Up to γ = 5 spikes a step, soft reset, θ at a percentile; max pooling is exact under every method here.

    Li & Zeng, "Efficient and accurate conversion of spiking neural network with burst spikes", 2022, eqs. 8-10.
    The paper leaves the percentile open: 99.9 over all values here; its code takes 99, of values cut at γ.
    """
    return neurons(options, observation)


@dataclass(frozen=True)
class Opt(Options):
    """percentile: where the activation is clipped."""

    percentile: float = 99.9


@method("opt", Opt, needs_t=True, codings=RATE, source="Deng & Gu 2021")
def opt(options: Opt, observation: Observation, T: int) -> Neurons:
    """Activation clipped at the threshold θ, bias shifted by θ/(2T).

    Deng & Gu, "Optimal conversion of conventional artificial neural networks to spiking neural networks", 2021, eqs. 11
    and 13. The paper retrains with the clipped activation; nothing is trained here, θ is a percentile. The shift makes
    a floor round to nearest at T: a neuron that rounds by itself, or from its start, has none, for twice would be half
    a threshold too much.
    """
    found = neurons(options, observation)
    return {name: n if n.offset or n.initial else replace(n, bias=n.theta / (2 * T)) for name, n in found.items()}


@dataclass(frozen=True)
class Tsc(Options):
    def __post_init__(self) -> None:
        super().__post_init__()
        why = "a value of tsc takes a window of timesteps"
        self.refuse(why, "signed", "gamma", "levels", "stages", "drop", "correct")


@method("tsc", Tsc, needs_t=True, codings=RATE, source="Han & Roy 2020")
def tsc(options: Tsc, observation: Observation, T: int) -> Neurons:
    """Temporal switch coding: a value in a window of T timesteps is the distance from an opening to a closing spike.

    Han & Roy, "Deep spiking neural network: energy efficiency through time based coding", 2020. A layer opens its
    window when the layer before it has closed its own, so the latency is T × depth; a synapse adds its weight to a
    current at the opening spike and removes it at the closing one, and the current enters the potential in every
    timestep. What a neuron receives in a window depends only on those distances: Σ w·θ·d + T·b. So one simulated step
    stands for the window: d = clamp(floor(V/θ), 0, T) timesteps open (−T..T in a bipolar, tracking neuron), each worth
    θ/T of the window's mean. A value beyond the window, above what calibration has seen, is not clipped but sent by
    several pairs of spikes at once, each of them counted.
    """
    found = neurons(options, observation)
    return {name: replace(n, theta=n.theta / T, gamma=T, window=T) for name, n in found.items()}


@dataclass(frozen=True)
class MsatOptions(Options):
    """variant: ``reference`` (the published code), ``paper`` (eqs. 15-17 as printed; the two differ in DET and in drop)
    or ``normalised`` (Δ, V_T and D in units of θ_max, and rounding ``track``); what it sets can be overridden by units,
    drive, drop and rounding. parameters: Table 2's column. alpha, k_a, k_i, C, tau_mp, tau_rd: in place of what it has.
    dtt, det: switch eqs. 16 and 17 on or off. rest: V_T, by default −θ_max.
    """

    variant: Literal["reference", "paper", "normalised"] = "reference"
    parameters: Literal["vgg16", "resnet20"] = "vgg16"
    units: Literal["absolute", "normalised"] | None = None
    drive: Literal["current", "depolarisation"] | None = None
    drop: Literal["keep", "lossy"] | None = None  # type: ignore[assignment]  # values of its own
    dtt: bool = True
    det: bool = True
    alpha: float | None = None
    k_a: float = 1.0
    k_i: float = 1.0
    C: float = 5.0
    tau_mp: float | None = None
    tau_rd: float | None = None
    rest: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("C", "k_i"):
            check_number(f"option {key}", getattr(self, key), 0, above=True)
        for key in ("k_a", *(key for key in ("alpha", "tau_mp", "tau_rd", "rest") if getattr(self, key) is not None)):
            check_number(f"option {key}", getattr(self, key))
        if not self.dtt:
            self.refuse("it is for dtt true", "alpha", "k_a", "k_i", "tau_mp", "rest")
        if not self.det:
            self.refuse("it is for det true", "C", "tau_rd", "drive")
        if not self.dtt and not self.det:
            self.refuse("it is for dtt or det true", "units")

    @property
    def varying(self) -> bool:
        # the paper's own variants start at rest and floor, as they are published
        return self.variant == "normalised" or super().varying


# Table 2 (α, τ_mp, τ_rd; k_a = k_i = 1 and C = 5 in both columns).
TABLE_2 = {"vgg16": (0.03, 1.0, 1.0), "resnet20": (0.3, 0.5, 0.5)}


@method("msat", MsatOptions, source="the MSAT paper")
def msat(options: MsatOptions, observation: Observation, T: int) -> Neurons:
    """The multi-stage adaptive threshold, MSAT paper eqs. 15-18 and Algorithm 1, on the layer's maximum activation."""
    alpha, tau_mp, tau_rd = TABLE_2[options.parameters]
    paper, normalised = options.variant == "paper", options.variant == "normalised"
    adaptive = Msat(
        alpha=alpha if options.alpha is None else options.alpha,
        k_a=options.k_a,
        k_i=options.k_i,
        C=options.C,
        tau_mp=tau_mp if options.tau_mp is None else options.tau_mp,
        tau_rd=tau_rd if options.tau_rd is None else options.tau_rd,
        rest=options.rest,
        normalised=(options.units or ("normalised" if normalised else "absolute")) == "normalised",
        drive=options.drive or ("depolarisation" if paper else "current"),
        dtt=options.dtt,
        det=options.det,
        twice=paper,
    )
    drop = options.drop or ("lossy" if options.variant == "reference" else "keep")
    return neurons(options, observation, adaptive=adaptive, drop=drop)
