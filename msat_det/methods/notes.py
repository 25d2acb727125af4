"""What a user is told of a network and its calibration before it is converted, a line each."""

import sys

from msat_det.base.errors import CalibrationWarning
from msat_det.graph.facts import facts
from msat_det.graph.fanout import static_nodes
from msat_det.graph.graph import Graph, where
from msat_det.graph.ops import Kind
from msat_det.methods.observe import Observation
from msat_det.methods.unseen import unseen_note


def notes(observation: Observation) -> list[Warning]:
    """Channels that calibration has not seen, and activations that are asked to be equal."""
    unseen, equal = unseen_note(observation), equality_note(observation.graph)
    return [CalibrationWarning(unseen)] * bool(unseen) + [UserWarning(equal)] * bool(equal)


def equality_note(graph: Graph) -> str:
    """One line on a node that compares two activations for equality, as CenterNet's peaks do, or nothing."""
    static = static_nodes(graph)
    compared = [n for n in graph.nodes if facts(n).op in ("eq", "ne") and facts(n).kind is not Kind.SHAPE]
    asking = [n for n in compared if len(set(n.all_input_nodes) - static) > 1]
    if not asking:
        return ""
    return (
        f"{where(asking[0])} asks whether activations are equal: those of spikes come in steps, so that more of them "
        "are than in the float network, at every t under delta coding: leave it to decode"
    )


def tell(observation: Observation) -> None:
    """The same on stderr, for a command."""
    for note in notes(observation):
        print(f"warning: {note}", file=sys.stderr)
