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

from msat_det.graph.channels import Axis, rows_by_channel
from msat_det.graph.facts import amend, facts, filled, full_shape, is_mask
from msat_det.graph.graph import Graph
from msat_det.graph.ops import DEFORMABLE, JOINING, MOVING, Kind, argument

_FIRST = {
    *("batchnorm", "batchnorm1d", "batchnorm2d", "frozenbatchnorm2d", "groupnorm", "instancenorm2d"),
    *("pixelshuffle", "pixelunshuffle", "channelshuffle", "pooledregions", "pooledboxes", DEFORMABLE),
}
_REDUCED = {"mean": 1, "sum": 1, "amax": 1, "amin": 1, "max": 1, "norm": 2, "vectornorm": 2}  # where dim stands
_PRODUCTS = {"matmul", "bmm", "mm"}
_JOINED = JOINING | {"stack"}  # a constant that they put beside an image is no channel, whatever its numbers are


def label_channels(graph: Graph, device: torch.device) -> None:
    """Find every node's ``axis``, the dimension of its channels, see ``Axis``; of a tuple one for each part.

    device: where images lie.
    """
    labels = _Labels(graph, device)
    left = {node: len(node.users) for node in graph.nodes}
    for node in graph.nodes:
        if facts(node).kind is not Kind.SHAPE and facts(node).shape is not None:
            amend(node, axis=labels.axis(node))
        for used in node.all_input_nodes:
            left[used] -= 1
            if not left[used]:
                labels.moved.pop(used, None)


class _Labels:
    """sizes: values that no image enters. moved: of nodes whose elements were carried there, the numbers of their
    channels, see ``numbered``."""

    def __init__(self, graph: Graph, device: torch.device):
        self.graph, self.device = graph, device
        self.sizes = graph.shapes(device)
        self.moved: dict[Node, tuple[Any, int]] = {}

    def axis(self, node: Node) -> Axis | tuple[Axis, ...]:
        op, last = facts(node).op, len(facts(node).image_shape)
        inputs = [n for n in node.all_input_nodes if facts(n).kind is not Kind.SHAPE]
        if node.op == "placeholder" or op in _FIRST or op.startswith("conv"):
            return 1 if last else None
        if op == "linear":  # to one number there are no channels
            return last if len(facts(inputs[0]).image_shape) == last else None
        if op == "einsum":
            return None
        if op in _PRODUCTS:
            return _of_product(node, inputs)
        axis, alike = facts(inputs[0]).axis, {(facts(n).axis, len(facts(n).image_shape)) for n in inputs}
        common = axis if len(alike) == 1 and isinstance(axis, int) else None
        if op in MOVING and (op not in JOINING or common is None):
            return self.of_moved(node, inputs)
        rank = len(facts(inputs[0]).image_shape)
        if common is None or rank < last:
            return None
        return common if rank == last else _of_reduced(node, common, rank)

    def of_moved(self, node: Node, inputs: list[Node]) -> Axis | tuple[Axis, ...]:
        """By the node's output on inputs that hold the numbers of their channels; of places the first one is taken."""
        found, count = {}, 0
        places = [] if is_mask(facts(node)) else [source for source in inputs if is_mask(facts(source))]
        if places == inputs:  # of a constant's rows
            return None
        for source in inputs:
            if source in places:
                found[source] = torch.zeros(full_shape(facts(source)), dtype=facts(source).dtype, device=self.device)
            else:
                found[source], count = self.numbered(source, count)

        op, args = facts(node).op, node.args

        def value(n: Node) -> Any:
            known = found[n] if n in found else self.sizes[n]
            joined = n not in found and op in _JOINED and isinstance(known, Tensor)
            return torch.zeros_like(known) if joined and (op != "assigned" or known.is_floating_point()) else known

        if op == "assigned" and not isinstance(args[2], Node):
            args = (*args[:2], 0)
        moved = self.graph.call(node, fx.map_arg(args, value), fx.map_arg(node.kwargs, value))
        self.moved[node] = moved, count
        return _axis_of(moved, count) if isinstance(moved, Tensor) else tuple(_axis_of(part, count) for part in moved)

    def numbered(self, node: Node, count: int) -> tuple[Any, int]:
        """One image of a node that holds its channels' numbers, count + 1 onwards (0 is padding), and the last one."""
        if node in self.moved:
            numbers, more = self.moved[node]
            return pytree.tree_map(lambda x: torch.where(x > 0, x + count, x), numbers), count + more
        known = facts(node)
        if known.parts:  # of a node that calculates
            return tuple(part.to(self.device) for part in filled(known, count + 1.0)), count + 1
        axis, shape, size = known.channel_axis, known.image_shape, known.channels
        numbers = torch.arange(count + 1, count + size + 1, dtype=torch.float32, device=self.device)
        shaped = numbers.reshape([-1 if d == axis else 1 for d in range(len(shape) + 1)])
        return shaped.expand(full_shape(known)), count + size


def _of_product(node: Node, inputs: list[Node]) -> Axis:
    """Rows stay rows, columns columns; what is multiplied by a parameter on the right is a linear layer's output."""
    last = len(facts(node).image_shape)
    left, right = (facts(value) if isinstance(value, Node) and value in inputs else None for value in node.args[:2])
    if any(len(facts(n).image_shape) != last for n in inputs):
        return None
    if right is None:
        return last
    if right.axis != last - 1:  # columns, or a batch of matrices
        return right.channel_axis
    kept = last - 1 if left is None else left.channel_axis  # a parameter's rows are new channels
    return None if kept == last else kept


def _of_reduced(node: Node, axis: int, rank: int) -> Axis:
    dims = argument(node, _REDUCED.get(facts(node).op, len(node.args)), "dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, list | tuple) or not all(isinstance(d, int) for d in dims):
        return None
    gone = {d % (rank + 1) for d in dims}
    return None if axis in gone else axis - sum(d < axis for d in gone)


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
