"""The coverage table: what every node of the traced network became (DESIGN §4)."""

from torch.fx.node import Node

from msat_det.graph.fanout import FanOut
from msat_det.graph.graph import Graph, elements
from msat_det.spiking.neurons import Neuron


def node_table(graph: Graph, fanout: FanOut, neurons: dict[str, Neuron]) -> list[dict]:
    """One dict per node, in execution order.

    node, op, source line, kind, shape of one image's output, macs (multiply-adds of one float forward) and analog_macs
    (those paid at full price in every timestep); for a call site also its activation, its numbers of neurons, of
    channels (1 where they are not known) and of dead_channels, those that no calibration image has activated, and,
    where it has a neuron, the range of its thresholds above 0.
    """
    table = []
    for node in graph.nodes:
        entry = {
            "node": node.name,
            "op": node.meta["op"],
            "source": node.meta["source"],
            "kind": node.meta["kind"].value,
            "shape": list(node.meta["shape"]) if node.meta.get("shape") is not None else None,
            "inputs": [entering.name for entering in node.all_input_nodes],
            "macs": fanout.macs.get(node, 0),
            "analog_macs": fanout.analog.get(node, 0),
        }
        if "activation" in node.meta:
            entry |= _site(node, neurons.get(node.name))
        table.append(entry)
    return table


def _site(node: Node, neuron: Neuron | None) -> dict:
    entry = {
        "activation": node.meta["activation"].name,
        "neurons": elements(node),
        "channels": len(node.meta["maximum"]),
        "dead_channels": int((node.meta["maximum"] == 0).sum()),
    }
    if neuron is None:
        return entry
    alive = neuron.theta[neuron.theta > 0]
    return entry | {"theta": [alive.min().item(), alive.max().item()] if alive.numel() else [0.0, 0.0]}
