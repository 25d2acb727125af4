"""The coverage table: what every node of the traced network became (DESIGN §4)."""

import torch
from torch.fx.node import Node

from msat_det.convert.observe import Observation
from msat_det.simulate import SpikingNetwork


def coverage(observation: Observation, networks: dict[str, SpikingNetwork]) -> list[dict]:
    """One dict per node, in execution order.

    node, op, source line, kind, shape of one image's output, macs (multiply-adds of one float forward) and analog_macs
    (those paid at full price in every timestep); for a call site also its neurons, dead channels (maximum 0 on the
    calibration images) and, by label, the range of its thresholds.
    """
    fanout = observation.fanout
    table = []
    for node in observation.graph.nodes:
        entry = {
            "node": node.name,
            "op": node.meta["op"],
            "source": node.meta["source"],
            "kind": node.meta["kind"].value,
            "shape": list(node.meta["shape"]) if node.meta.get("shape") is not None else None,
            "macs": fanout.macs.get(node, 0),
            "analog_macs": fanout.analog.get(node, 0),
        }
        if "activation" in node.meta:
            entry |= _site(node, observation, networks)
        table.append(entry)
    return table


def _site(node: Node, observation: Observation, networks: dict[str, SpikingNetwork]) -> dict:
    theta = {label: network.neurons[node.name].theta for label, network in networks.items()}
    alive = {label: values[values > 0] for label, values in theta.items()}
    return {
        "activation": node.meta["activation"].name,
        "neurons": torch.Size(node.meta["shape"]).numel(),
        "dead_channels": int((observation.sites[node.name].maximum == 0).sum()),
        "theta": {
            label: [values.min().item(), values.max().item()] if values.numel() else [0.0, 0.0]
            for label, values in alive.items()
        },
    }
