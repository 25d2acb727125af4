"""What a network divides by, however it is written: rounded to next to nothing, it would blow the quotient up. So it
would a logarithm."""

import torch
from torch.fx.node import Node

from msat_det.graph import ops
from msat_det.graph.facts import amend, facts
from msat_det.graph.graph import Graph, origins
from msat_det.graph.ops import Kind

_DIVISOR = {  # of an operation: where its divisor stands among the arguments, and its name
    **{"truediv": (1, "other"), "addcdiv": (2, "tensor2")},
    **dict.fromkeys(("reciprocal", "rsqrt", "pow", "log"), (0, "input")),
}
# 1 / sqrt(x * x) divides by x too, and so does 1 / x.clamp(min=eps)
_PASSED = ops.CLAMPS | {"mul", "square", "sqrt", "rsqrt", "reciprocal", "pow", "abs"}

_POSITIVE = ops.CLAMPS | {"hardtanh", "sigmoid", "softplus"}  # or may be


def in_divisors(graph: Graph) -> set[Node]:
    """Products of branches that reach a divisor through linear nodes, other products, powers and clamps alone."""

    def passes(node: Node) -> bool:
        return facts(node).kind is Kind.LINEAR or multiplies(node) or facts(node).op in _PASSED

    found = origins((n for node in graph.nodes for n in _divisors(graph, node)), passes)
    return {n for n in found if facts(n).kind is Kind.DIFFERENTIAL and multiplies(n)}


def spare_divisors(graph: Graph) -> None:
    """Make call sites that are above 0 and nothing but divisors, or terms of one, differential nodes.

    Their author may rely on it, with a sigmoid or a clamp by a small number, say, and a neuron rounds it to 0. What
    stands in the numerator as well is rounded alike in both.
    """

    def passes(node: Node) -> bool:  # the numerator of what is divided by divides
        return (facts(node).kind is Kind.LINEAR and not multiplies(node)) or facts(node).op == "truediv"

    divisors = (divisor for node in graph.nodes for divisor in _divisors(graph, node))
    found = origins(divisors, passes)
    for site in filter(_is_positive, found.intersection(graph.sites)):
        if all(user in found or site in _divisors(graph, user) for user in site.users):
            amend(site, kind=Kind.DIFFERENTIAL, activation=None)


def _is_positive(site: Node) -> bool:
    """Whether a call site's function stays above 0 where it may be next to it."""
    lowest = torch.tensor(-50.0)
    return facts(site).op in _POSITIVE and bool((facts(site).pointwise.fn(lowest) > 0).all())


def division_before(site: Node) -> Node | None:
    """A node that divides by what images make, or takes the logarithm, between other call sites and this one."""
    found = origins([site], lambda node: node is site or facts(node).kind is not Kind.SPIKING)
    divides = _DIVISOR.keys() - {"pow"}  # which mostly multiplies
    return next((n for n in found if facts(n).kind is Kind.DIFFERENTIAL and facts(n).op in divides), None)


def multiplies(node: Node) -> bool:
    """Whether it is a layer or a product of two branches."""
    return facts(node).kind in (Kind.LINEAR, Kind.DIFFERENTIAL) and facts(node).op in ops.MULTIPLYING


def _divisors(graph: Graph, node: Node) -> list[Node]:
    """The node that a node divides by, if images enter it."""
    op = facts(node).op
    divides = facts(node).kind is Kind.DIFFERENTIAL and op in _DIVISOR
    if not divides or (op == "pow" and not _is_inverse(graph, node)):
        return []
    divisor = ops.argument(node, *_DIVISOR[op])
    return [divisor] if isinstance(divisor, Node) else []


def _is_inverse(graph: Graph, node: Node) -> bool:
    """Whether a power has a negative exponent anywhere; one that an image enters may have."""
    exponent = ops.argument(node, 1, "exponent")
    if isinstance(exponent, Node):
        return exponent.op != "get_attr" or bool((graph.attribute(exponent) < 0).any())
    return isinstance(exponent, int | float) and exponent < 0
