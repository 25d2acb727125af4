"""The one walk of a schedule. What a value is, and where a neuron keeps its state, is its back end's: ``Values``.

``engine`` walks chunks of timesteps, ``delta_engine`` what has changed in one, ``formats.onnx_step`` one timestep to be
written down as a program.
"""

from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.graph.facts import facts, stands_alone
from msat_det.graph.fanout import HOMOGENEOUS
from msat_det.graph.graph import Graph
from msat_det.graph.inputs import Batch
from msat_det.graph.ops import Kind
from msat_det.spiking.schedule import Schedule


class Values(ABC):
    """The values of a schedule's nodes as one back end has them: what a node of each kind gives, by those before it.

    values: of the nodes that have been walked and are still needed.
    """

    values: dict[Node, Any]

    @abstractmethod
    def spike(self, node: Node) -> Any:
        """What a call site gives: s·θ, under delta coding the sum of that."""

    @abstractmethod
    def linear(self, node: Node) -> Any:
        """What a linear node gives."""

    def differ(self, node: Node) -> Any:
        """What a differential node gives, see ``differential``; a linear one's way where values are sums."""
        return self.linear(node)

    def size(self, node: Node) -> Any:
        """What a node gives that no image enters."""
        return self.linear(node)

    def drop(self, node: Node) -> None:
        """Forget a value that no node needs any more."""
        self.values.pop(node, None)


def advance(schedule: Schedule, values: Values) -> None:
    """Run the body of a schedule, node by node."""
    by_kind = {Kind.SPIKING: values.spike, Kind.DIFFERENTIAL: values.differ, Kind.SHAPE: values.size}
    for node in schedule.body:
        values.values[node] = by_kind.get(facts(node).kind, values.linear)(node)
        for done in schedule.last[node]:
            values.drop(done)


def readout(graph: Graph, schedule: Schedule, static: Mapping[Node, Any], sites: Mapping[Node, Tensor]) -> Any:
    """The network's outputs. sites: of each of ``schedule.readout_sites`` what stands for its activation, and values
    of other nodes that are not to be evaluated."""
    values = {**static, **sites}
    for node in schedule.readout:
        if node not in values:
            values[node] = graph.evaluate(node, values)
    return graph.evaluate(graph.nodes[-1], values)


def weighed(graph: Graph, node: Node, values: Any, sums: dict[Node, Tensor], n: Tensor) -> Any:
    """n·g(X̄) of a differential node g, whose differences in time are what it gives; of what stands alone g(X̄).

    sums: running sums X of its ``mean_inputs``, X̄ = X / n. values: of its other inputs, by ``[node]``. n: timesteps, ()
    or one for as many rows each. Where g commutes with a positive factor, n cancels.
    """
    homogeneous = facts(node).op in HOMOGENEOUS
    means = sums if homogeneous else {source: total / _column(n, total) for source, total in sums.items()}
    g = graph.evaluate(node, ChainMap(means, values))
    return g if homogeneous or stands_alone(facts(node)) else g * _column(n, g)


def picks_anew(t: Any) -> Any:
    """Whether the best of many are picked anew in timestep t, from 0, an int or a tensor: in 0, 1, 2, 4, 8, 16, …"""
    return (t & (t - 1)) == 0


def _column(n: Tensor, like: Tensor) -> Tensor:
    n = n.repeat_interleave(like.shape[0] // len(n)) if n.dim() else n
    return n.reshape(-1, *([1] * (like.dim() - 1)))


def simulated(graph: Graph, batch: Batch) -> dict[str, Tensor]:
    """A batch's tensors by the names of the inputs, as simulations keep them: a pixel's channels side by side."""
    return {
        name: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
        for name, value in graph.bind(batch).items()
    }
