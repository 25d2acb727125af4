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

    def stand(self, differing: set[Node]) -> list[str]:
        """Let them ask again, but for those that depend on the number of images: there the outputs have to tell.

        differing: nodes that give another size for another number of images. Returns where the network asks for it,
        what it decides by it first.
        """
        freed = [node for node in self.found if origins([node.args[0]]) & differing]
        freed.sort(key=lambda node: node.args[0] in differing)
        places = list(map(where, freed))
        for node, found in self.found.items():
            if node in freed:
                self.graph.erase_node(node)
            else:
                node.args = (node.args[0], found)
        drop_dead(self.graph)
        return places
