"""Weights of eight bits: what a network loses when its layers hold whole numbers from −127 to 127."""

import copy

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from msat_det.graph import ops
from msat_det.graph.facts import facts
from msat_det.graph.graph import Graph

LARGEST = 127


def with_int8_weights(graph: Graph) -> Graph:
    """A copy of the graph whose multiplying nodes have weights of eight bits, a scale for each output channel."""
    module = copy.deepcopy(graph.module)
    found = Graph(fx.GraphModule(module, copy.deepcopy(graph.module.graph)), graph.inputs, graph.structure)
    for node in found.nodes:
        if facts(node).op in ops.MULTIPLYING:
            for owner, name in _weights(found, node):
                value = getattr(owner, name)
                axis = 1 if "transpose" in facts(node).op else 0
                rounded = rounded_weights(value.detach(), axis)
                setattr(owner, name, torch.nn.Parameter(rounded, False) if name in owner._parameters else rounded)
    return found


def rounded_weights(weight: Tensor, axis: int = 0) -> Tensor:
    """The weights (…) rounded to 255 equal steps, symmetric, from −max|w| to max|w| of each channel along ``axis``."""
    scale = weight.abs().amax([d for d in range(weight.dim()) if d != axis], keepdim=True) / LARGEST
    return torch.where(scale > 0, (weight / scale.clamp(min=1e-30)).round() * scale, weight)


def _weights(graph: Graph, node: Node) -> list[tuple[torch.nn.Module, str]]:
    """Where the weights of a node are held: (module, attribute)."""
    if node.op == "call_module":
        return [(graph.layer(node), "weight")]
    attributes = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr" and graph.attribute(n).dim() > 1]
    paths = [target.rpartition(".") for target in attributes]
    return [(graph.module.get_submodule(folder), name) for folder, _, name in paths]
