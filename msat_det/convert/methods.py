"""The conversion methods: each a dataclass of its options and one function from observations to neurons (DESIGN §5).

To add one: subclass ``Options``, write the function, put ``@method(name, YourOptions)`` on it. It then appears in
``msat-det list methods`` and in the contract test.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.convert.observe import Observation
from msat_det.convert.options import Options, parse, require
from msat_det.errors import InputError
from msat_det.neurons import Msat, Neuron

Neurons = dict[str, Neuron]


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
        hint = f", did you mean {near[0]}?" if near else ":"
        raise InputError(f"no method {name!r}{hint} the methods are {', '.join(METHODS)}")
    return METHODS[name]


def parse_options(name: str, values: dict[str, Any]) -> Options:
    """A method's options from plain values; see ``options.parse``."""
    return parse(name, find_method(name).options, values)


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
class ChannelNorm(Options):
    """imbalanced: leaky ReLU by the signed neuron with imbalanced threshold; off: by a tracking neuron."""

    scale: Literal["layer", "channel"] = "channel"
    imbalanced: bool = True


@method("channel-norm", ChannelNorm)
def channel_norm(options: ChannelNorm, observation: Observation, T: int) -> Neurons:
    """θ = maximum activation of each channel; leaky ReLU with slope a fires −1 at −θ/a.

    Kim et al., "Spiking-YOLO: spiking neural network for energy-efficient object detection", 2020, eqs. 5-8.
    """
    found = neurons(options, observation)
    if not options.imbalanced:
        return found
    leaky = {name for name, n in found.items() if n.activation.name == "leakyrelu"}
    return {name: replace(n, imbalanced=True) if name in leaky else n for name, n in found.items()}


@dataclass(frozen=True)
class Burst(Options):
    """gamma: most spikes in one timestep."""

    percentile: float = 99.9
    gamma: int = 5


@method("burst", Burst)
def burst(options: Burst, observation: Observation, T: int) -> Neurons:
    """Up to γ = 5 spikes a step, soft reset, θ at a percentile; max pooling is exact under every method here.

    Li & Zeng, "Efficient and accurate conversion of spiking neural network with burst spikes", 2022, eqs. 8-10.
    The paper leaves the percentile open: 99.9 over all values here.
    """
    return neurons(options, observation)


@dataclass(frozen=True)
class Opt(Options):
    """percentile: where the activation is clipped."""

    percentile: float = 99.9


@method("opt", Opt, needs_t=True)
def opt(options: Opt, observation: Observation, T: int) -> Neurons:
    """Activation clipped at the threshold θ, bias shifted by θ/(2T).

    Deng & Gu, "Optimal conversion of conventional artificial neural networks to spiking neural networks", 2021, eqs. 11
    and 13. The paper retrains with the clipped activation; nothing is trained here, θ is a percentile.
    """
    found = neurons(options, observation)
    return {name: replace(n, bias=n.theta / (2 * T)) for name, n in found.items()}


@method("tsc", Options, needs_t=True)
def tsc(options: Options, observation: Observation, T: int) -> Neurons:
    """Temporal switch coding: a value in a window of T timesteps is the distance from an opening to a closing spike.

    Han & Roy, "Deep spiking neural network: energy efficiency through time based coding", 2020. A layer opens its
    window when the layer before it has closed its own, so the latency is T × depth; a synapse adds its weight to a
    current at the opening spike and takes it off at the closing one, and the current enters the potential in every
    timestep. What a neuron receives in a window depends only on those distances: Σ w·θ·d + T·b. So one simulated step
    stands for the window: d = clamp(floor(V/θ), 0, T) timesteps open (−T..T in a bipolar, tracking neuron), each worth
    θ/T of the window's mean.
    """
    found = neurons(options, observation)
    return {name: replace(n, theta=n.theta / T, gamma=T, window=T) for name, n in found.items()}


@dataclass(frozen=True)
class LayerByLayer(Options):
    """images: calibration images that the spiking network itself is run on (the first ones)."""

    images: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.images >= 1, "images", self.images, "a whole number above 0")


@dataclass(frozen=True)
class SpikeNorm(LayerByLayer):
    """window: timesteps over which the largest weighted input sum is taken."""

    window: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.window >= 1, "window", self.window, "a whole number above 0")


@method("spike-norm", SpikeNorm)
def spike_norm(options: SpikeNorm, observation: Observation, T: int) -> Neurons:
    """θ = the largest weighted input sum of a timestep that the spiking layers before produce; reset to zero.

    Sengupta et al., "Going deeper in spiking neural networks: VGG and residual architectures", 2019, Algorithm 1.
    """
    return _by_input_sums(options, observation, reset="zero")


@dataclass(frozen=True)
class Rmp(SpikeNorm):
    """factor: on spike-norm's thresholds; the paper tunes it for each network, .8 stands for its range."""

    factor: float = 0.8


@method("rmp", Rmp)
def rmp(options: Rmp, observation: Observation, T: int) -> Neurons:
    """Soft reset (residual membrane potential), spike-norm's thresholds times a factor.

    Han et al., "RMP-SNN: residual membrane potential neuron for enabling deeper high-accuracy and low-latency spiking
    neural network", 2020, sections 3.2 and 3.3.
    """
    return _by_input_sums(options, observation, reset="soft")


def _by_input_sums(options: SpikeNorm, observation: Observation, reset: str) -> Neurons:
    from msat_det.simulate import layer_by_layer

    def decide(node: Node, currents: Tensor) -> Neuron:
        theta = options.factor * currents.amax().clamp(min=0.0).cpu()
        if not node.meta["activation"].rectified:
            theta = threshold(options, observation, node)
        return neuron(options, node, theta, reset=reset)

    return layer_by_layer(observation, options.images, options.window, decide)


@dataclass(frozen=True)
class Calibration(LayerByLayer):
    """correct: ``bias`` (the paper's light pipeline), ``potential`` (advanced) or none. grid: thresholds tried."""

    initial: Literal["zero", "half"] = "half"
    correct: Literal["bias", "potential", "none"] = "bias"
    grid: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.grid >= 1, "grid", self.grid, "a whole number above 0")


@method("calibration", Calibration, needs_t=True)
def calibration(options: Calibration, observation: Observation, T: int) -> Neurons:
    """θ with the least squared error of the clipped, floored rate at T, then a correction layer after layer.

    Li et al., "A free lunch from ANN: towards efficient, accurate spiking neural networks calibration", 2021, eqs. 12
    (MMSE threshold), 16 (bias: the mean error of each channel) and 18 (initial potential: T times that error; per
    channel here, the paper's is per neuron).
    """
    from msat_det.simulate import layer_by_layer, run_alone

    goals = {n.name: v for n, v in observation.graph.walk(observation.first(options.images)) if "activation" in n.meta}

    def decide(node: Node, currents: Tensor) -> Neuron:
        goal = goals.pop(node.name)[: currents.shape[1]]  # a layer too large for memory is run on fewer images
        made = neuron(options, node, _mmse(options, observation, node, goal, T))
        if options.correct == "none":
            return made
        mean = run_alone(made, currents, T) / T
        dims = [0, *range(2, goal.dim())]
        error = (goal - mean).mean(dims)
        if options.correct == "bias":
            return replace(made, bias=error)
        return replace(made, initial=made.initial + T * error / made.theta.clamp(min=1e-12))

    return layer_by_layer(observation, options.images, T, decide)


def _mmse(options: Calibration, observation: Observation, node: Node, goal: Tensor, T: int) -> Tensor:
    """The threshold, of ``grid`` equal steps up to the statistic that the options name, with the least error."""
    top = threshold(options, observation, node)
    rows = goal.abs().transpose(0, 1).flatten(1)
    rows = rows if top.dim() else rows.reshape(1, -1)
    best, least = torch.zeros(len(rows)), torch.full((len(rows),), float("inf"))
    half = 0.5 if options.initial == "half" else 0.0
    for i in range(1, options.grid + 1):
        theta = (top.reshape(-1) * i / options.grid).clamp(min=1e-12)
        step = theta[:, None] / T
        rate = (rows / step + half).floor().clamp(0, T * options.gamma) * step
        error = (rate - rows).square().mean(1)
        best, least = torch.where(error < least, theta, best), torch.minimum(error, least)
    best = torch.where(top.reshape(-1) > 0, best, torch.zeros_like(best))
    return best if top.dim() else best[0]


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

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.C > 0, "C", self.C, "a number above 0")
        require(self.k_i > 0, "k_i", self.k_i, "a number above 0")

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
