"""Methods that convert one layer after the other, on what the spiking layers before it send."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.base.checks import check_number
from msat_det.graph.channels import mean_by_channel, rows_by_channel
from msat_det.graph.facts import facts
from msat_det.methods.observe import Observation
from msat_det.methods.options import STATISTIC, Options
from msat_det.methods.registry import RATE, Neurons, method, neuron, neurons, threshold
from msat_det.methods.sequential import alone, layer_by_layer, run_alone, toward_activations
from msat_det.spiking.neurons import Neuron


@dataclass(frozen=True)
class LayerByLayer(Options):
    """images: calibration images that the spiking network itself is run on (the first ones)."""

    images: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("option images", self.images, 1, whole=True)


@dataclass(frozen=True)
class SpikeNorm(LayerByLayer):
    """window: timesteps over which the largest weighted input sum is taken. scale, percentile, values: for activations
    other than ReLU and ReLU6."""

    window: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("option window", self.window, 1, whole=True)


@method("spike-norm", SpikeNorm, codings=RATE, source="Sengupta et al. 2019")
def spike_norm(options: SpikeNorm, observation: Observation, T: int) -> Neurons:
    """θ = the largest weighted input sum of a timestep from the spiking layers before; reset to zero.

    Sengupta et al., "Going deeper in spiking neural networks: VGG and residual architectures", 2019, Algorithm 1. Their
    images come in as Poisson spikes, here as a constant current, and biases, which their networks do not have, enter in
    every timestep and count in the sum.
    """
    return _by_input_sums(options, observation, reset="zero")


@dataclass(frozen=True)
class Rmp(SpikeNorm):
    """factor: on spike-norm's thresholds; the paper tunes it for each network, .8 is in its range."""

    factor: float = 0.8


@method("rmp", Rmp, codings=RATE, source="Han et al. 2020")
def rmp(options: Rmp, observation: Observation, T: int) -> Neurons:
    """Soft reset (residual membrane potential), spike-norm's thresholds times a factor.

    Han et al., "RMP-SNN: residual membrane potential neuron for enabling deeper high-accuracy and low-latency spiking
    neural network", 2020, sections 3.2 and 3.3.
    """
    return _by_input_sums(options, observation, reset="soft")


def _by_input_sums(options: SpikeNorm, observation: Observation, reset: str) -> Neurons:
    if all(facts(node).pointwise.rectified for node in observation.graph.sites):
        options.refuse("θ of a ReLU is the largest input sum, and the network has no other activation", *STATISTIC)

    def decide(node: Node, currents: Tensor) -> Neuron:
        theta = options.factor * currents.amax().clamp(min=0.0)
        if not facts(node).pointwise.rectified or theta == 0:  # nothing came in
            theta = threshold(options, observation, node)
        return neuron(options, node, theta, reset=reset)

    return layer_by_layer(observation, options.images, options.window, decide)


@dataclass(frozen=True)
class Calibration(LayerByLayer):
    """correct: ``bias`` (the paper's light pipeline), ``potential`` (of the advanced one, without its calibration of
    weights, which is training; a bias where a neuron rounds by itself, as SiLU's does), ``bias-t`` (as ``ftbc``) or
    none. grid: thresholds tried, in equal steps up to the statistic."""

    initial: Literal["zero", "half"] = "half"
    correct: Literal["bias", "potential", "bias-t", "none"] = "bias"  # type: ignore[assignment]  # values of its own
    grid: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("option grid", self.grid, 1, whole=True)


@method("calibration", Calibration, needs_t=True, codings=RATE, source="Li et al. 2021")
def calibration(options: Calibration, observation: Observation, T: int) -> Neurons:
    """θ with the least squared error of the clipped, floored rate at T, then a correction layer by layer.

    Li et al., "A free lunch from ANN: towards efficient, accurate spiking neural networks calibration", 2021, eqs. 12
    (MMSE threshold), 16 (bias: the mean error of each channel) and 18 (initial potential: T times that error; per
    channel here, the paper's is per neuron). The rate is that of the neuron as it starts and rounds, from θ/2 by
    default, where the published code adds θ/(2T) in every timestep, which is the same at T, and searches θ as if it
    did not. It averages the θ of batches; here there is one, of all ``images``.
    """

    def decide(node: Node, currents: Tensor, goal: Tensor) -> Neuron:
        made = neuron(options, node, mmse(options, observation, node, goal, T))
        if options.correct in ("none", "bias-t"):  # the latter comes last, see ``convert.spiking_network``
            return made
        mean = run_alone(made, currents, T) / T
        error = mean_by_channel(goal - mean, facts(node).channel_axis)
        if options.correct == "bias" or made.offset:  # a neuron that rounds by itself starts at 0
            return replace(made, bias=error)
        return replace(made, initial=made.initial + T * error / made.theta.clamp(min=1e-12))

    return toward_activations(observation, options.images, T, decide)


@dataclass(frozen=True)
class Ftbc(LayerByLayer):
    """passes: corrections of each timestep's bias."""

    scale: Literal["layer", "channel"] = "channel"
    percentile: float = 99.9
    initial: Literal["zero", "half"] = "half"
    passes: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("option passes", self.passes, 1, whole=True)
        self.refuse("it is what ftbc does", "correct")


@method("ftbc", Ftbc, needs_t=True, codings=RATE, source="ECCV 2024")
def ftbc(options: Ftbc, observation: Observation, T: int) -> Neurons:
    """A bias for each channel and timestep, layer by layer, that makes the mean output right in every timestep.

    "FTBC: forward temporal bias correction for optimizing ANN-SNN conversion", ECCV 2024: ten times b(t) += ½ · (mean
    activation − mean output at t), on the same calibration images, where the paper takes others each time. Thresholds
    as the options say; other methods take it as ``correct: bias-t``.
    """
    return with_bias_over_time(neurons(options, observation), observation, T, options.images, options.passes)


def with_bias_over_time(
    made: Neurons, observation: Observation, T: int, images: int = LayerByLayer.images, passes: int = 10
) -> Neurons:
    """The neurons with a bias of each channel that differs over T timesteps, layer after layer, see ``ftbc``."""

    def decide(node: Node, currents: Tensor, goal: Tensor) -> Neuron:
        return replace(made[node.name], bias=bias_over_time(made[node.name], currents, goal, T, passes))

    return toward_activations(observation, images, T, decide)


def bias_over_time(made: Neuron, currents: Tensor, goal: Tensor, T: int, passes: int) -> Tensor:
    """(T, C) what to add to the currents (T, B, …), so that the mean output of each channel is that of ``goal``."""
    wanted = mean_by_channel(goal, made.axis).reshape(-1)
    bias = goal.new_zeros(T, len(wanted)) + (0.0 if made.bias is None else made.bias)
    for _ in range(passes):
        outputs = alone(replace(made, bias=bias), currents, with_output=False).run(currents, 0, T)
        sent = torch.stack([mean_by_channel(y, made.axis) for y in outputs])
        bias = bias + (wanted - sent.reshape(T, -1)) / 2
    return torch.where(made.theta > 0, bias, torch.zeros_like(bias))


def mmse(options: Calibration, observation: Observation, node: Node, goal: Tensor, T: int) -> Tensor:
    """The threshold, of ``grid`` equal steps up to the statistic that the options name, with the least error."""
    top = threshold(options, observation, node)
    rows = rows_by_channel(goal.abs(), facts(node).channel_axis)
    rows = rows if top.dim() else rows.reshape(1, -1)
    best, least = rows.new_zeros(len(rows)), rows.new_full((len(rows),), float("inf"))
    made = neuron(options, node, torch.ones_like(top))  # in units of θ
    rate = torch.empty_like(rows)
    for i in range(1, options.grid + 1):
        theta = (top.reshape(-1) * i / options.grid).clamp(min=1e-12)
        step = theta[:, None] * made.theta.max() / T
        torch.div(rows, step, out=rate).add_(made.offset or options.start).floor_().clamp_(0, T * made.gamma).mul_(step)
        error = rate.sub_(rows).square_().mean(1)  # all in one place: as many copies would take five times as long
        best, least = torch.where(error < least, theta, best), torch.minimum(error, least)
    best = torch.where(rows.any(1), best, top.reshape(-1))  # of what no image activates every threshold is right
    return best if top.dim() else best[0]
