"""Neurons where other dimensions are folded into that of the images, as windows and areas of attention are."""

from dataclasses import replace

from torch.fx.node import Node

from msat_det.base.errors import InputError
from msat_det.graph.facts import Facts, amend, facts, full_shape, state
from msat_det.graph.graph import Graph, where
from msat_det.graph.ops import Kind


def unfold(graph: Graph, site: Node) -> None:
    """Let a call site have images alone in dimension 0: unfolded before, and folded again behind it."""
    known, source = facts(site), site.all_input_nodes[0]
    axis = known.channel_axis
    if known.rows == 1:
        return
    if known.op == "prelu":
        raise InputError(f"{where(site)} takes windows for channels: put it where dimension 0 is that of images alone")
    opened = replace(known, shape=full_shape(known), rows=1, axis=None if axis is None else axis + 1)
    nodes = graph.module.graph
    placeholder = next(iter(nodes.nodes))
    with nodes.inserting_before(site):
        number = nodes.call_method("size", (placeholder, 0))
        before = nodes.call_method("unflatten", (source, 0, (number, -1)))
    site.replace_input_with(source, before)
    with nodes.inserting_after(site):
        after = nodes.call_method("flatten", (site, 0, 1))
    site.replace_all_uses_with(after, lambda user: user is not after)
    state(number, Facts("size", Kind.SHAPE, known.source))
    state(before, replace(opened, op="unflatten", kind=Kind.LINEAR, activation=None))
    state(after, replace(known, op="flatten", kind=Kind.LINEAR, activation=None))
    amend(site, **{key: getattr(opened, key) for key in ("shape", "rows", "axis")})
