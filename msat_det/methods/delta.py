"""Delta coding by levels below each channel's scale, and the control that sends each value once, of eight bits."""

from dataclasses import dataclass, replace
from typing import Literal

from msat_det.graph.facts import facts
from msat_det.methods.observe import Observation
from msat_det.methods.options import Options
from msat_det.methods.registry import Neurons, method, neuron, neurons, threshold


@dataclass(frozen=True)
class Delta(Options):
    """bits, terms: ``delta-2`` has 6 and 2."""

    scale: Literal["layer", "channel"] = "channel"
    percentile: float = 99.9
    coding: Literal["rate", "delta"] = "delta"
    levels: Literal["unary", "binary"] = "binary"


@method("delta", Delta)
def delta(options: Delta, observation: Observation, T: int) -> Neurons:
    """Delta coding by powers of two below each channel's scale, nothing fitted. Ours."""
    return neurons(options, observation)


ONCE = (0.5, 1e30)  # zones over time: what the first timestep clips stays clipped


@dataclass(frozen=True)
class Int8(Options):
    """spiking_linear: on, linear outputs that feed another layer are of eight bits as well."""

    scale: Literal["layer", "channel"] = "channel"
    coding: Literal["rate", "delta"] = "delta"
    spiking_linear: bool = True
    weights: Literal["float", "int8"] = "int8"
    stages: tuple[float, ...] | None = (1.0,)
    levels: Literal["unary"] = "unary"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse("a value is one number of eight bits", "gamma", "zone")


@method(
    "int8",
    Int8,
    codings=("delta",),
    clips="it is a float network whose activations have eight bits",
    source="the usual control",
)
def int8(options: Int8, observation: Observation, T: int) -> Neurons:
    """The control: the float network after post-training quantisation, weights and activations of eight bits.

    No spikes: a value goes once to every connection, as a number; the same at every t. Activations that are never
    negative have 255 steps above 0, others 127 on either side.
    """
    found = {}
    for node in observation.graph.sites:
        steps = 255 if facts(node).pointwise.rectified else 127
        theta = threshold(options, observation, node, share=1.0) / steps
        found[node.name] = replace(neuron(options, node, theta), gamma=steps, dense=True, zone=ONCE)
    return found
