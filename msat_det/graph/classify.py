"""The verdict on every node of a traced graph, but for shapes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.node import Node

from msat_det.base.errors import InputError
from msat_det.graph import ops
from msat_det.graph.facts import Facts, Output, is_mask, state
from msat_det.graph.graph import Graph, module_of, source_of, where
from msat_det.graph.ops import Kind

_KINDS = {"placeholder": Kind.INPUT, "get_attr": Kind.SHAPE, "output": Kind.OUTPUT}


def classify(graph: Graph, outputs: Mapping[Node, Output]) -> None:
    """Give every node its facts, but for the axis of its channels.

    outputs: what each node gives. Raises InputError, naming the node, for an unknown operation.
    """
    data: set[Node] = set()  # nodes whose value depends on an input tensor
    masks: set[Node] = set()  # those of them that come to true or false, or to whole numbers: no sum of them is one
    for node in graph.nodes:
        if node.op in _KINDS:
            state(node, Facts(node.op, _KINDS[node.op], source_of(node), *outputs[node]))
            if node.op == "placeholder":
                data.add(node)
            continue
        module = module_of(graph, node)
        name = ops.canonical(node, module)
        entering = [n for n in node.all_input_nodes if n in data]
        kind, activation = _verdict(node, name, module, entering), None
        if kind is not Kind.SHAPE:
            data.add(node)
            if is_mask(outputs[node]):
                masks.add(node)
            if not masks.isdisjoint([node, *entering]) or _condition(node, name) in data:
                kind = Kind.DIFFERENTIAL
        if kind is Kind.SPIKING:
            activation = ops.activation_of(name, node, module, _on_first_input(graph, node))
        state(node, Facts(name, kind, source_of(node), *outputs[node], activation=activation))


def _verdict(node: Node, name: str, module: nn.Module | None, entering: list[Node]) -> Kind:
    known = module is None or type(module).__module__.startswith(("torch.nn", "torchvision.ops"))
    if not entering or (known and name in ops.SHAPE) or (name == "getattr" and node.args[1] in ops.SHAPE_ATTRIBUTES):
        return Kind.SHAPE
    if known and name in ops.POINTWISE:
        if any(n.op != "get_attr" for n in node.all_input_nodes if n is not entering[0]):
            raise InputError(f"{where(node)}: the other arguments of '{name}' must be numbers or parameters")
        return Kind.SPIKING
    if known and (name in ops.LINEAR or (name in ops.LINEAR_IN_ONE and _enters_once(node, name, entering))):
        return Kind.LINEAR
    if known and name in ops.DIFFERENTIAL:
        return Kind.DIFFERENTIAL
    raise InputError(
        f"{where(node)}: operation '{name}' is not known to the converter: replace it, move it out of the dense part, "
        "or add it to msat_det/graph/ops.py"
    )


def _condition(node: Node, name: str) -> Any:
    """What a ``where`` or ``masked_fill`` chooses by."""
    if name not in ops.CHOICES:
        return None
    position = 0 if name == "where" and node.op == "call_function" else 1
    return ops.argument(node, position, "condition", "mask")


def _enters_once(node: Node, name: str, entering: list[Node]) -> bool:
    times = pytree.tree_leaves((node.args, node.kwargs)).count(entering[0])
    return len(entering) == times == 1 and (name != "truediv" or node.args[0] is entering[0])


def _on_first_input(graph: Graph, node: Node) -> Callable[[Tensor], Tensor]:
    """A call site's function of its input alone, with the parameters that it reads from the graph."""

    def fixed(value: Any) -> Any:
        return fx.map_arg(value, graph.attribute)

    if node.op == "call_module":
        return graph.layer(node)
    kwargs = {k: v for k, v in node.kwargs.items() if k != "input"}
    return lambda x: graph.call(node, (x, *fixed(node.args[1:])), fixed(kwargs))  # the graph may change its device
