"""Channels in which the calibration images gave no activation, or hardly any: they get a threshold from their layer's.

Silence in calibration does not say that a channel is dead: that its weights alone can say.
"""

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from msat_det.graph.facts import facts
from msat_det.graph.graph import Graph, module_of
from msat_det.methods.observe import Observation
from msat_det.spiking.neurons import OVERFLOW

# Of the layer's largest threshold θ: even where it overflows, an unseen channel's error stays below γ·θ/n.
SHARE = 1 / OVERFLOW
# A channel that calibration has hardly seen has this share at least: a later activation, which may be as large as the
# layer's, would be sent as thousands of spikes at once.
LEAST = 2.0**-12
_NAMED = 3  # call sites in the note


def dead_channels(graph: Graph, node: Node) -> Tensor:
    """Which channels of a call site are 0 whatever the image, (C,) bool: their row of weights is 0, and f(bias)."""
    source = node.all_input_nodes[0]
    axis, rank = facts(node).channel_axis, len(facts(node).image_shape) + 1
    none = torch.zeros(facts(node).channels, dtype=torch.bool)
    layer = module_of(graph, source)
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return none
    bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
    shape = [-1 if d == axis else 1 for d in range(rank)]
    activation = facts(node).pointwise.fn(bias.reshape(shape))
    if activation.numel() != none.numel():  # bounds that differ by position
        return none
    return ((layer.weight.flatten(1) == 0).all(1) & (activation.flatten() == 0)).cpu()


def unseen_channels(observation: Observation) -> dict[str, int]:
    """How many channels of each call site no calibration image has activated, dead ones left out: {name: number}."""
    found = {}
    for node in observation.graph.sites:
        silent = observation.sites[node.name].maximum == 0
        if silent.any():
            found[node.name] = int((silent & ~dead_channels(observation.graph, node)).sum())
    return {name: number for name, number in found.items() if number}


def with_unseen(theta: Tensor, observation: Observation, node: Node, share: float = SHARE) -> Tensor:
    """Thresholds () or (C,) of which those that are 0 get ``share`` of the layer's largest, and all others ``LEAST`` of
    it at least; 0 is left to dead channels.

    share: 1 where no overflow is sent beyond θ, and its levels are fine enough for what is small.
    Where the whole layer was silent its largest input current stands for the largest activation.
    """
    if (theta > 0).all():
        return theta.clamp(min=LEAST * theta.max())
    dead = dead_channels(observation.graph, node)
    layer = theta.max() if theta.any() else torch.tensor(observation.drives[node.name] or 1.0)
    least = torch.where(theta > 0, theta.clamp(min=LEAST * layer), share * layer)
    return torch.where(dead if theta.dim() else dead.all(), theta, least)


def unseen_note(observation: Observation) -> str:
    """One line on the channels that calibration has not seen, or nothing."""
    found = unseen_channels(observation)
    if not found:
        return ""
    largest = sorted(found, key=lambda name: -found[name])
    names = ", ".join(f"{name}: {found[name]}" for name in largest[:_NAMED]) + (", …" if len(found) > _NAMED else "")
    count, sites = sum(found.values()), len(found)
    return (
        f"calibration saw no activation in {count} channel{'s' * (count > 1)} of {sites} call site{'s' * (sites > 1)} "
        f"({names}): their thresholds are set by their layer's; give more, or more varied, calibration images"
    )
