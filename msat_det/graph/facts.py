"""What is known of a node of a traced graph: said once by ``trace``, a reader or an edit of the graph, read by all."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node

from msat_det.base.checks import present
from msat_det.graph.channels import Axis, channels
from msat_det.graph.ops import PROPOSALS, Activation, Kind

_KEY = "facts"  # of Node.meta, which goes along when a graph is copied
Shape = tuple[int, ...]


class Output(NamedTuple):
    """What a node gives for one image. shape: without the batch dimension, of a tuple the last element's; None for a
    value that no image enters. parts: the shapes of a tuple's elements. dtype: None where there is no shape. rows: what
    of the batch dimension is one image's, 1 but where other dimensions are folded into it; of a tuple one for each."""

    shape: Shape | None = None
    parts: tuple[Shape, ...] | None = None
    dtype: torch.dtype | None = None
    rows: int | tuple[int, ...] = 1


@dataclass(frozen=True)
class Facts:
    """op: canonical name (``ops``). kind: the verdict. source: file:line: code. shape, parts, dtype, rows: see
    ``Output``. axis: the dimension of its channels, of a tuple one for each element. activation: a spiking node's.
    joined: names of the operations that were one activation, which this node has taken the place of."""

    op: str
    kind: Kind
    source: str
    shape: Shape | None = None
    parts: tuple[Shape, ...] | None = None
    dtype: torch.dtype | None = None
    rows: int | tuple[int, ...] = 1
    axis: Axis | tuple[Axis, ...] = None
    activation: Activation | None = None
    joined: tuple[str, ...] = ()

    @property
    def image_shape(self) -> Shape:
        """``shape``. Raises TypeError where no image enters."""
        return present(self.shape)

    @property
    def channel_axis(self) -> Axis:
        """``axis``. Raises TypeError for a tuple."""
        if isinstance(self.axis, tuple):
            raise TypeError(f"'{self.op}' gives a tuple")
        return self.axis

    @property
    def channels(self) -> int:
        """The number of channels of one image. Raises TypeError for a tuple, and where no image enters."""
        return channels(self.image_shape, self.channel_axis)

    @property
    def pointwise(self) -> Activation:
        """``activation``. Raises TypeError where it is no call site."""
        return present(self.activation)


def facts(node: Node) -> Facts:
    """What is known of a node of a graph that has been judged."""
    return node.meta[_KEY]


def is_judged(node: Node) -> bool:
    """Whether it has its facts: while a graph is made its nodes have none yet."""
    return _KEY in node.meta


def state(node: Node, known: Facts) -> None:
    """Give a new node its facts."""
    node.meta[_KEY] = known


def amend(node: Node, **changes: Any) -> None:
    """Change what is known of a node: for what makes or edits a graph, never for what looks at one."""
    node.meta[_KEY] = replace(facts(node), **changes)


def is_site(node: Node) -> bool:
    """Whether it is a call site of a pointwise activation, which a population of neurons replaces."""
    return facts(node).kind is Kind.SPIKING


def is_mask(known: Output | Facts) -> bool:
    """Whether a node gives no real numbers: in a simulation that is a value by itself, never a part of a sum."""
    return known.dtype is not None and not known.dtype.is_floating_point


def stands_alone(known: Facts) -> bool:
    """Whether what a node gives is taken as it is, and no running mean of it: masks, and the regions of two stages."""
    return is_mask(known) or known.op == PROPOSALS


def output_of(value: Any) -> Output:
    """What a node's value for one image, which enters it, tells of its output."""
    tensors = [part for part in pytree.tree_leaves(value) if isinstance(part, Tensor)]
    if not tensors:
        return Output()
    rows = tuple(part.shape[0] if part.dim() else 1 for part in tensors)
    if isinstance(value, Tensor):
        return Output(tuple(value.shape[1:]), None, value.dtype, rows[0])
    return Output(
        tuple(tensors[-1].shape[1:]), tuple(tuple(part.shape[1:]) for part in tensors), tensors[-1].dtype, rows
    )


def full_shape(known: Output | Facts) -> Shape:
    """The shape of what a node gives for one image, the batch dimension included. Raises TypeError for a tuple."""
    ((rows, shape),) = parts_of(known)
    return rows, *shape


def parts_of(known: Output | Facts) -> list[tuple[int, Shape]]:
    """``rows`` and shape of each tensor that a node gives. Raises TypeError where no image enters."""
    rows = known.rows if isinstance(known.rows, tuple) else (known.rows,)
    return list(zip(rows, known.parts or (present(known.shape),), strict=True))


def filled(known: Output | Facts, value: float, **like: Any) -> Tensor | tuple[Tensor, ...]:
    """What a node gives for one image, with ``value`` everywhere: one number in memory, not to be written into. like:
    its dtype and device."""
    made = tuple(torch.full((), value, **like).expand(rows, *shape) for rows, shape in parts_of(known))
    return made[0] if known.parts is None else made
