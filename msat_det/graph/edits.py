"""Edits of the graph itself: call sites kept analog, and neurons on linear outputs."""

from dataclasses import replace

from torch.fx.node import Node

from msat_det.base.errors import InputError
from msat_det.base.names import hint
from msat_det.graph import ops
from msat_det.graph.divisors import in_divisors, multiplies
from msat_det.graph.facts import amend, facts, is_mask, state
from msat_det.graph.fanout import is_event_source, is_pool, static_nodes
from msat_det.graph.folds import unfold
from msat_det.graph.graph import Graph, origins
from msat_det.graph.ops import Activation, Kind


def keep_analog(graph: Graph, name: str) -> None:
    """Make a call site a differential node: its activation acts on running means. Raises InputError."""
    sites = {node.name: node for node in graph.sites}
    if name not in sites:
        mend = hint(name, sites, "snn.coverage and coverage.json list them")
        raise InputError(f"option analog names {name!r}, which is no call site of the network: {mend}")
    amend(sites[name], kind=Kind.DIFFERENTIAL, activation=None)


def linear_carriers(graph: Graph) -> list[Node]:
    """Nodes whose outputs, no spikes, enter a multiplying one through linear nodes alone: it pays them at full price.

    They are multiplying ones themselves, the operands of attention's products among them, and differential ones: norms,
    gates, products. Not so a product that a quotient's divisor comes from, as in linear attention: its numerator does,
    too, and rounded apart from each other they would divide by next to nothing. Of a sum it is the sum, not what it
    adds: one event train enters the layers behind a row of residual blocks, in place of one of each block before.
    Max poolings, too: their differences are differences of sums of spikes, which multiply.
    """
    static, divisors = static_nodes(graph), in_divisors(graph)

    def carries(node: Node) -> bool:
        return _is_analog(node) or _is_sum(node, static) or is_pool(node)

    entering = (n for node in graph.nodes if multiplies(node) for n in node.all_input_nodes)
    found = origins(entering, lambda node: facts(node).kind is Kind.LINEAR and not carries(node)) - static - divisors
    return [n for n in graph.nodes if n in found and carries(n)]


def _is_analog(node: Node) -> bool:
    """Whether it gives real numbers of its own, and no spikes."""
    differential = facts(node).kind is Kind.DIFFERENTIAL and not is_event_source(node) and not is_mask(facts(node))
    return differential or multiplies(node)


def _is_sum(node: Node, static: set[Node]) -> bool:
    """Whether it adds two maps of one shape."""
    maps = [n for n in node.all_input_nodes if n not in static]
    return facts(node).op == "add" and len(maps) > 1 and len({facts(n).shape for n in maps}) == 1


def add_identity(graph: Graph, node: Node) -> Node:
    """Put an identity call site, whose neuron tracks f(x) = x, behind a node."""
    with graph.module.graph.inserting_after(node):
        site = graph.module.graph.create_node("call_function", ops.identity, (node,), name=f"{node.name}_identity")
    activation = Activation("identity", ops.identity)
    state(site, replace(facts(node), op="identity", kind=Kind.SPIKING, activation=activation))
    node.replace_all_uses_with(site, lambda user: user is not site)
    unfold(graph, site)
    return site
