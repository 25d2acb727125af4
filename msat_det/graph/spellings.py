"""Activations recognised however they are written: ``x * sigmoid(x)`` becomes one SiLU, one call site.

What is calculated element by element from one tensor is a function of one number. It is evaluated on a grid and named
by what it equals there, so that neither the order of its operations nor their spelling matters.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.node import Node

from msat_det.graph import ops
from msat_det.graph.batch_size import drop_dead
from msat_det.graph.facts import Output, full_shape
from msat_det.graph.graph import Graph, called

_MOST = 24  # nodes of one activation
_TOLERANCE = 2e-6
_NEAR = 12.0  # beyond it a spelling may overflow, x·tanh(log(1 + eˣ)) say; what is finite there has to agree, too
_FAR = torch.tensor([14.0, 20.0, 32.0, 50.0, 80.0, 128.0, 1e3, 1e4])
_FINE = torch.tensor([-3.0001, -2.9999, -1e-3, 1e-3, 2.9999, 5.9999, 6.0001])
_GRID = torch.cat((torch.linspace(-_NEAR, _NEAR, 193), _FINE, _FAR, -_FAR))
_ELEMENTWISE = (ops.POINTWISE - {"prelu", "rrelu"}) | ops.COMPARISONS | ops.CHOICES
_ELEMENTWISE |= {"add", "sub", "rsub", "neg", "pos", "mul", "truediv", "pow", "square", "sqrt", "rsqrt", "reciprocal"}
_ELEMENTWISE |= {"abs", "exp", "expm1", "log", "log1p", "erf", "maximum", "minimum", "max", "min", "identity", "clone"}
_ELEMENTWISE |= {"contiguous", "float", "to", "type", "typeas", "zeroslike", "oneslike"}
# What needs nobody to recognise it: it is a call site, or linear.
_PLAIN = ops.POINTWISE | {"neg", "pos", "identity", "clone", "contiguous", "float", "to", "type", "typeas"}
_NAMED: list[tuple[Callable[..., Tensor], dict[str, Any]]] = [
    *((f, {}) for f in (F.relu, F.relu6, F.silu, F.hardswish, F.mish, F.gelu, torch.sigmoid, torch.tanh)),
    *((f, {}) for f in (F.hardsigmoid, F.softplus, F.elu, F.softsign, ops.hard_mish)),
    (F.gelu, {"approximate": "tanh"}),
]


def join_activations(graph: Graph, outputs: dict[Node, Output]) -> dict[Node, list[str]]:
    """Put one node for all that an activation is written with. Returns, of each, the names of those it stands for.

    outputs: what each node gives; the new nodes' are added.
    """
    joined: dict[Node, list[str]] = {}
    replaced: set[Node] = set()
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in reversed(graph.nodes):
        if node in replaced or not _is_elementwise(graph, node) or called(graph, node) in _PLAIN:
            continue
        for source, region in _regions(graph, node, outputs, order):
            named = _named(graph, source, region, outputs)
            if named is None:
                continue
            one = _put(graph, node, source, *named)
            one.stack_trace, outputs[one] = node.stack_trace, outputs[node]
            outputs |= {n: Output() for n in one.all_input_nodes if n not in outputs}
            node.replace_all_uses_with(one)
            joined[one] = [each.name for each in region]
            replaced.update(region)
            break
    drop_dead(graph.module.graph)
    return joined


def _put(graph: Graph, node: Node, source: Node, function: Callable[..., Tensor], kwargs: dict[str, Any]) -> Node:
    """The call of a function on ``source`` before a node; tensors among its arguments become buffers."""
    with graph.module.graph.inserting_before(node):
        for key, value in kwargs.items():
            if isinstance(value, Tensor):
                name = f"_{key}{len(list(graph.module.buffers()))}"
                graph.module.register_buffer(name, value.to(graph.device))
                kwargs = kwargs | {key: graph.module.graph.get_attr(name)}
        return graph.module.graph.call_function(function, (source,), kwargs)


def _is_elementwise(graph: Graph, node: Node) -> bool:
    name = called(graph, node)
    if name in ("max", "min"):  # of two tensors, and not over a dimension
        return len(node.args) == 2 and isinstance(node.args[1], Node)
    return name in _ELEMENTWISE


def _regions(
    graph: Graph, node: Node, outputs: dict[Node, Output], order: dict[Node, int]
) -> Iterator[tuple[Node, list[Node]]]:
    """The tensors, nearest first, that a node's value is a function of alone, and the nodes that calculate it."""
    region, entering, merged = [node], _data(node, outputs), False
    while entering and len(region) <= _MOST:
        merged = merged or len(entering) > 1
        if len(entering) == 1 and merged:
            yield next(iter(entering)), sorted(region, key=order.__getitem__)
        last = max(entering, key=lambda n: order.get(n, -1))
        if last not in order or not _is_elementwise(graph, last) or _shape(outputs[last]) != _shape(outputs[node]):
            return
        entering = (entering - {last}) | _data(last, outputs)
        region.append(last)


def _data(node: Node, outputs: dict[Node, Output]) -> set[Node]:
    return {n for n in node.all_input_nodes if outputs[n].shape is not None}


def _shape(output: Output) -> tuple:
    return output.rows, output.shape


def _named(
    graph: Graph, source: Node, region: list[Node], outputs: dict[Node, Output]
) -> tuple[Callable[..., Tensor], dict[str, Any]] | None:
    """The function that a region is of its source; None where it has no name."""
    if _shape(outputs[source]) != _shape(outputs[region[-1]]):
        return None
    x = _GRID.reshape(-1, *(1 for _ in full_shape(outputs[source])[1:]))
    y = _on_grid(graph, source, region, x)
    if y is None or not y.is_floating_point() or y.dim() != x.dim():
        return None
    held = (x.abs() <= _NEAR).flatten() | y.isfinite().flatten(1).all(1)
    x, y = x[held], y[held]
    if y.numel() != x.numel():
        return _prelu(x, y)
    for function, kwargs in _NAMED:
        if _alike(function(x, **kwargs), y):
            return function, kwargs
    slope = -y[x == -1].item()
    if 0 < slope < 1 and _alike(F.leaky_relu(x, slope), y):
        return F.leaky_relu, {"negative_slope": _rounded(slope)}
    return None


def _on_grid(graph: Graph, source: Node, region: list[Node], x: Tensor) -> Tensor | None:
    """The region's value on ``x``; None where it is calculated with more than numbers and parameters."""
    values: dict[Node, Any] = {source: x}
    for node in region:
        constants = [n for n in node.all_input_nodes if n not in values]
        if any(n.op != "get_attr" for n in constants):
            return None
        values |= {n: graph.attribute(n).cpu() for n in constants}
        values[node] = graph.call(node, *fx.map_arg((node.args, node.kwargs), values.__getitem__))
    return values[region[-1]]


def _alike(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=_TOLERANCE, atol=5 * _TOLERANCE)


def _rounded(slope: float) -> float:
    """The number that its author wrote, 0.1, for what float32 makes of it."""
    return float(f"{slope:.6g}") if math.isclose(slope, float(f"{slope:.6g}"), rel_tol=1e-6) else slope


def _prelu(x: Tensor, y: Tensor) -> tuple[Callable[..., Tensor], dict[str, Any]] | None:
    slopes = -y[(x == -1).flatten()].squeeze(0)
    if slopes.numel() != y.shape[1] or not _alike(torch.where(x > 0, x, slopes * x), y):
        return None
    return F.prelu, {"weight": slopes.flatten()}
