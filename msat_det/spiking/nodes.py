"""The coverage table: what every node of the traced network became."""

from collections.abc import Mapping

from torch import Tensor
from torch.fx.node import Node

from msat_det.graph.facts import facts, is_site
from msat_det.graph.fanout import FanOut
from msat_det.graph.graph import Graph, elements
from msat_det.spiking.neurons import Neuron


def node_table(graph: Graph, fanout: FanOut, neurons: Mapping[str, Neuron], maxima: Mapping[str, Tensor]) -> list[dict]:
    """One dict per node, in execution order.

    maxima: see ``SpikingNetwork``. A row: node, op, source line, kind, shape of one image's output, inputs, macs
    (multiply-adds of one float forward) and analog_macs (those paid at full price in every timestep); for a call site
    also its activation, its numbers of neurons and of channels (1 where they are not known), if several operations were
    one activation their names, joined, if the maxima are known the number of dead_channels, those that no calibration
    image has activated, and, where it has a neuron, the range of its thresholds above 0.
    """
    table = []
    for node in graph.nodes:
        known = facts(node)
        entry = {
            "node": node.name,
            "op": known.op,
            "source": known.source,
            "kind": known.kind.value,
            "shape": None if known.shape is None else list(known.shape),
            "inputs": [entering.name for entering in node.all_input_nodes],
            "macs": fanout.macs.get(node, 0),
            "analog_macs": fanout.analog.get(node, 0),
        }
        if is_site(node):
            entry |= _site(node, neurons.get(node.name), maxima.get(node.name))
        table.append(entry)
    return table


def _site(node: Node, neuron: Neuron | None, maximum: Tensor | None) -> dict:
    entry = {"activation": facts(node).pointwise.name, "neurons": elements(node), "channels": facts(node).channels}
    if facts(node).joined:
        entry["joined"] = list(facts(node).joined)
    if maximum is not None:
        entry["dead_channels"] = int((maximum == 0).sum())
    if neuron is None:
        return entry
    alive = neuron.theta[neuron.theta > 0]
    return entry | {"theta": [alive.min().item(), alive.max().item()] if alive.numel() else [0.0, 0.0]}
