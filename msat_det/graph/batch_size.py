"""The number of images made free in a recorded graph, by a second record of the network on more images.

What a network makes of that number outside of PyTorch (``len(x)``, ``int(…)``, NumPy) is a plain number in a record.
Where two records differ by one, it stands for a multiple of the number of images.
"""

import operator
from typing import Any

from torch import fx
from torch.fx.node import Node

from msat_det.graph import ops
from msat_det.graph.graph import origins, where

Sizes = dict[str, tuple[int, int]]  # by their nodes' names: for some images and for twice as many
_MOST = 17  # images that a comparison is tried with: they have to fit into memory
_COMPARISONS = {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge}


def free_batch_size(graph: fx.Graph, other: fx.Graph, images: int, more: int) -> None:
    """Put the number of images, times what is needed, for every plain number that differs from ``other``'s.

    graph, other: records of one network on ``images`` and on ``more`` images. Nothing is done where they call different
    things, as where one finds what the other has kept: what they give is compared in any case.
    """
    for each in (graph, other):
        drop_dead(each)
    if [(n.op, str(n.target)) for n in graph.nodes] != [(n.op, str(n.target)) for n in other.nodes]:
        return
    recorded = list(graph.nodes)
    placeholders = [node for node in recorded if node.op == "placeholder"]
    with graph.inserting_after(placeholders[-1]):
        number = graph.call_method("size", (placeholders[0], 0))

    def free(node: Node, a: Any, b: Any) -> Any:
        """An argument ``a`` of a node that is ``b`` in the other record."""
        if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
            return type(a)(free(node, *pair) for pair in zip(a, b, strict=True))
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: free(node, a[key], b[key]) for key in a}
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(*free(node, (a.start, a.stop, a.step), (b.start, b.stop, b.step)))
        if type(a) is type(b) is int and a != b and a % images == 0 and a // images * more == b:
            with graph.inserting_before(node):
                return number if a == images else graph.call_function(operator.mul, (number, a // images))
        return a

    for node, twin in zip(recorded, other.nodes, strict=True):
        if node.target is not ops.guard:
            node.args, node.kwargs = free(node, node.args, twin.args), free(node, node.kwargs, twin.kwargs)
    drop_dead(graph)


def drop_dead(graph: fx.Graph) -> None:
    """Remove what neither the output nor a guard needs."""
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or node.target is ops.guard)


class Guards:
    """The guards of a graph, which ask for nothing from here until ``stand``."""

    def __init__(self, graph: fx.Graph):
        self.graph = graph
        self.found = {node: node.args[1] for node in graph.nodes if node.target is ops.guard}
        for node in self.found:
            node.args = (node.args[0], node.args[0])

    def stand(self, sizes: Sizes, images: int) -> dict[int, str]:
        """Let them ask again, but for those that depend on the number of images: there the outputs have to tell.

        sizes: found with ``images`` images. Returns the numbers of images for which the network may take another way,
        and where it asks: one, and of each comparison the least above two for which it comes out otherwise.
        """
        freed = [node for node in self.found if _depends(node, sizes)]
        decides = [node for node in freed if node.args[0].target in _COMPARISONS]
        ways = {1: where((decides or freed)[0]) if freed else ""} if images > 1 else {}
        for node in decides:
            for count in (n for n in range(3, _MOST + 1) if n != 2 * images):
                if _with_images(node.args[0], sizes, count / images) != self.found[node]:
                    ways.setdefault(count, where(node))
                    break
        for node, found in self.found.items():
            if node in freed:
                self.graph.erase_node(node)
            else:
                node.args = (node.args[0], found)
        drop_dead(self.graph)
        return ways


def _depends(guard: Node, sizes: Sizes) -> bool:
    pairs = (sizes.get(node.name, (0, 0)) for node in origins(guard.all_input_nodes))
    return any(once != both for once, both in pairs)


def _with_images(value: Any, sizes: Sizes, factor: float) -> Any:
    """What a number that is made of sizes is for ``factor`` times as many images; None for a division by 0."""
    if not isinstance(value, Node):
        return value
    if callable(value.target):
        try:
            return value.target(*(_with_images(part, sizes, factor) for part in value.args))
        except (ZeroDivisionError, TypeError):  # of a None
            return None
    once, both = sizes[value.name]
    return once + round((both - once) * (factor - 1))
