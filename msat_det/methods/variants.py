"""The options that change the graph itself: call sites kept analog, and neurons on linear outputs (DESIGN §4)."""

import difflib
from collections.abc import Iterable

from torch.fx.node import Node

from msat_det.base.errors import InputError
from msat_det.graph import ops
from msat_det.graph.fanout import fan_out, static_nodes
from msat_det.graph.graph import Graph, closure
from msat_det.graph.ops import Activation, Kind
from msat_det.methods.observe import Observation, observe_sites


def variant(observation: Observation, analog: tuple[str, ...], spiking_linear: bool) -> Observation:
    """The observation of the same network with call sites ``analog`` kept analog and, where asked for, linear outputs
    made to spike. Methods with the same setting share one, and all of them the statistics of the added neurons, which
    are observed in one more pass over the calibration images.

    Raises InputError for a name that is no call site, and if none would be left.
    """
    if not analog and not spiking_linear:
        return observation
    key = (frozenset(analog), spiking_linear)
    if key not in observation.variants:
        graph = observation.graph.copy()
        for name in analog:
            keep_analog(graph, name)
        added = [add_identity(graph, node) for node in linear_carriers(graph)] if spiking_linear else []
        if not graph.sites:
            raise InputError("option analog names every call site: leave one out, or nothing spikes")
        sites = dict(observation.sites)
        for other in observation.variants.values():
            sites |= other.sites
        unseen = [node for node in added if node.name not in sites]
        if unseen:
            sites |= observe_sites(graph, unseen, observation.batches)
        fanout = fan_out(graph, observation.first(1))
        observation.variants[key] = Observation(graph, fanout, sites, observation.batches, observation.detector)
    return observation.variants[key]


def keep_analog(graph: Graph, name: str) -> None:
    """Make a call site a differential node: its activation acts on running means. Raises InputError."""
    sites = {node.name: node for node in graph.sites}
    if name not in sites:
        near = difflib.get_close_matches(name, sites, 1)
        hint = f"did you mean {near[0]}?" if near else "snn.coverage and coverage.json list them"
        raise InputError(f"option analog names {name!r}, which is no call site of the network: {hint}")
    del sites[name].meta["activation"]
    sites[name].meta["kind"] = Kind.DIFFERENTIAL


def linear_carriers(graph: Graph) -> list[Node]:
    """Multiplying nodes whose outputs reach another one through linear nodes alone: it pays them at full price."""
    static = static_nodes(graph)
    return [n for n in graph.nodes if n not in static and _multiplies(n) and _feeds_another(n)]


def _multiplies(node: Node) -> bool:
    return node.meta["kind"] is Kind.LINEAR and node.meta["op"] in ops.MULTIPLYING


def _feeds_another(node: Node) -> bool:
    def through(user: Node) -> Iterable[Node]:
        return user.users if user.meta["kind"] is Kind.LINEAR and not _multiplies(user) else ()

    return any(map(_multiplies, closure(node.users, through)))


def add_identity(graph: Graph, node: Node) -> Node:
    """Put an identity call site, whose neuron tracks f(x) = x, behind a node."""
    with graph.module.graph.inserting_after(node):
        site = graph.module.graph.create_node("call_function", ops.identity, (node,), name=f"{node.name}_identity")
    activation = Activation("identity", ops.identity)
    site.meta = node.meta | {"op": "identity", "kind": Kind.SPIKING, "activation": activation}
    node.replace_all_uses_with(site, lambda user: user is not site)
    return site
