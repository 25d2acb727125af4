"""What the error of one call site alone does to a network's outputs: the terms of the paper's eq. 7."""

from collections import ChainMap
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node

from msat_det.convert.graph import Batch, Graph
from msat_det.simulate import SpikingNetwork

IMAGES = 2  # of each batch: every float activation of theirs is in memory at once


def effects_of_own_errors(graph: Graph, batch: Batch, own: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each call site with ``squares`` of the outputs when its own error is put on its float activation: its term of
    eq. 7, but that the layers behind are as they are.
    """
    few = pytree.tree_map(lambda value: value[:IMAGES], batch)
    values, last = dict(graph.walk(few)), graph.nodes[-1]
    for node in graph.sites:
        changed: dict[Node, Any] = {node: values[node] + own[node.name][:IMAGES]}
        seen = ChainMap(changed, values)
        for behind in graph.nodes[graph.nodes.index(node) + 1 :]:
            if any(source in changed for source in behind.all_input_nodes):
                changed[behind] = graph.evaluate(behind, seen)
        yield node.name, squares(seen[last], values[last])


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.flatten().double() * b.flatten().double()).sum().cpu()


def relative(error: float, size: float) -> float:
    """‖error‖ / ‖size‖ from their squares, NaN where nothing was to be sent."""
    return (error / size) ** 0.5 if size > 0 else float("nan")


def squares(got: Any, expected: Any) -> Tensor:
    """(2,) ‖got − expected‖² and ‖expected‖² over all output tensors."""
    pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True)
    return sum(torch.stack((dot(a - b, a - b), dot(b, b))) for a, b in pairs if isinstance(a, Tensor))


def output_error(snn: SpikingNetwork, batches: Iterable[Batch], t: int) -> float:
    """‖outputs after t timesteps − float outputs‖ / ‖float outputs‖ over all images."""
    total, images = torch.zeros(2, dtype=torch.float64), 0
    for batch in batches:
        size = pytree.tree_leaves(batch)[0].shape[0]
        found = snn.run(batch, t, images=list(range(images, images + size)))[t]
        total += squares(found, snn.graph(batch))
        images += size
    return relative(*total.tolist())
