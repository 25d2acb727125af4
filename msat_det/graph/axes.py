"""Which dimension of every node's output is its channels': the one by which statistics and thresholds are taken.

Convolutions and batch norms put channels first, linear layers last. A permutation, a reshape, a slice or a
concatenation carries them elsewhere: it is evaluated on numbered channels, and the dimension whose index the channel
alone decides is theirs. Where there is none (channels flattened together with positions) the layer counts as one
channel, for a position must never have a threshold of its own: what calibration happened not to see there would be
unknown.
"""

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.node import Node

from msat_det.graph.channels import Axis, channels, rows_by_channel
from msat_det.graph.graph import Batch, Graph
from msat_det.graph.ops import Kind

_FIRST = {
    *("batchnorm", "batchnorm1d", "batchnorm2d", "frozenbatchnorm2d", "groupnorm", "instancenorm2d"),
    *("pixelshuffle", "pixelunshuffle", "channelshuffle"),
}
# What carries elements from place to place, and calculates nothing.
_JOINING = {"cat", "concat", "concatenate"}
_MOVING = _JOINING | {
    *("flatten", "unflatten", "view", "reshape", "permute", "transpose", "t", "movedim", "squeeze", "unsqueeze"),
    *("expand", "repeat", "tile", "getitem", "chunk", "split", "unbind", "select", "narrow", "indexselect", "flip"),
    *("roll", "stack"),
}
_REDUCED = {"mean": 1, "sum": 1, "amax": 1, "amin": 1, "max": 1, "norm": 2, "vectornorm": 2}  # where dim stands
_PRODUCTS = {"matmul", "bmm", "mm"}


def label_channels(graph: Graph, batch: Batch) -> None:
    """Note in every node's ``meta["axis"]`` the dimension of its channels, see ``Axis``; of a tuple one for each part.

    batch: one image, for the values of sizes.
    """
    sizes = {node: value for node, value in graph.walk(batch) if node.meta["kind"] is Kind.SHAPE}
    device = pytree.tree_leaves(batch)[0].device
    for node in graph.nodes:
        if node.meta["shape"] is not None:
            node.meta["axis"] = _axis(graph, node, sizes, device)


def _axis(graph: Graph, node: Node, sizes: dict[Node, Any], device: torch.device) -> Axis | tuple[Axis, ...]:
    op, last = node.meta["op"], len(node.meta["shape"])
    inputs = [n for n in node.all_input_nodes if n.meta["kind"] is not Kind.SHAPE]
    if node.op == "placeholder" or op in _FIRST or op.startswith("conv"):
        return 1 if last else None
    if op == "linear":
        return last
    if op == "einsum":
        return None
    if op in _PRODUCTS:
        return _of_product(node, inputs)
    axis, alike = inputs[0].meta["axis"], {(n.meta["axis"], len(n.meta["shape"])) for n in inputs}
    known = len(alike) == 1 and isinstance(axis, int)
    if op in _MOVING and not (op in _JOINING and known):
        return _of_moved(graph, node, inputs, sizes, device)
    rank = len(inputs[0].meta["shape"])
    if not known or rank < last:
        return None
    return axis if rank == last else _of_reduced(node, axis, rank)


def _of_product(node: Node, inputs: list[Node]) -> Axis:
    """Rows stay rows, columns columns; what is multiplied by a parameter on the right is a linear layer's output."""
    last = len(node.meta["shape"])
    left, right = (value if value in inputs else None for value in node.args[:2])
    if any(len(n.meta["shape"]) != last for n in inputs):
        return None
    if right is None:
        return last
    if right.meta["axis"] != last - 1:  # columns, or a batch of matrices
        return right.meta["axis"]
    kept = last - 1 if left is None else left.meta["axis"]  # a parameter's rows are new channels
    return None if kept == last else kept


def _of_reduced(node: Node, axis: int, rank: int) -> Axis:
    position = _REDUCED.get(node.meta["op"], 0)
    dims = node.args[position] if 0 < position < len(node.args) else node.kwargs.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, list | tuple) or not all(isinstance(d, int) for d in dims):
        return None
    gone = {d % (rank + 1) for d in dims}
    return None if axis in gone else axis - sum(d < axis for d in gone)


def _of_moved(
    graph: Graph, node: Node, inputs: list[Node], sizes: dict[Node, Any], device: torch.device
) -> Axis | tuple[Axis, ...]:
    """By the node's output on inputs that hold the numbers of their channels, from 1 on."""
    numbered, count = {}, 0
    for source in inputs:
        numbered[source], count = _numbered(source, count, device)

    def value(n: Node) -> Any:
        return numbered[n] if n in numbered else sizes[n]

    moved = graph.call(node, fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value))
    return _axis_of(moved, count) if isinstance(moved, Tensor) else tuple(_axis_of(part, count) for part in moved)


def _numbered(node: Node, count: int, device: torch.device) -> tuple[Tensor | tuple[Tensor, ...], int]:
    """One image of a node that holds its channels' numbers, count + 1 onwards, and the last of them."""
    parts, found = node.meta["parts"], []
    axes = node.meta["axis"] if parts else (node.meta["axis"],)
    for shape, axis in zip(parts or (node.meta["shape"],), axes, strict=True):
        size = channels(shape, axis)
        numbers = torch.arange(count + 1, count + size + 1, dtype=torch.float32, device=device)
        found.append(numbers.reshape([-1 if d == axis else 1 for d in range(len(shape) + 1)]).expand(1, *shape))
        count += size
    return (tuple(found) if parts else found[0]), count


def _axis_of(numbers: Tensor, count: int) -> Axis:
    """The dimension whose index the channel decides; of several, as where a reshape splits channels, the longest."""
    best, length = None, 1
    for axis in range(1, numbers.dim()):
        if numbers.shape[axis] > length and _is_decided(rows_by_channel(numbers, axis), count):
            best, length = axis, numbers.shape[axis]
    return best


def _is_decided(rows: Tensor, count: int) -> bool:
    """Whether each of the numbers 1 … count stands in one row at most; 0 is padding."""
    numbers = rows.flatten().long()
    index = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
    first = torch.full((count + 1,), len(rows), device=rows.device).scatter_reduce(0, numbers, index, "amin")
    last = torch.full((count + 1,), -1, device=rows.device).scatter_reduce(0, numbers, index, "amax")
    return bool((last <= first)[1:].all())
