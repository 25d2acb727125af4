"""Which nodes of a graph a simulation runs when."""

from collections.abc import Mapping
from dataclasses import dataclass

from msat_det.base.errors import InputError
from msat_det.graph import ops
from msat_det.graph.facts import facts, is_site
from msat_det.graph.fanout import FanOut, is_pool, static_nodes
from msat_det.graph.graph import Graph, before_output, closure, last_uses, origins
from msat_det.graph.ops import Kind
from msat_det.spiking.neurons import Neuron


class Schedule:
    """Which nodes run where: ``static`` once per batch, ``body`` in every chunk, ``readout`` on running means of the
    outputs of ``readout_sites``. ``moving``: all that changes in time. ``last``: see ``graph.last_uses``."""

    def __init__(self, graph: Graph) -> None:
        nodes = graph.nodes
        self.moving = set(nodes) - static_nodes(graph)
        pays = {n for n in nodes if facts(n).op in ops.MULTIPLYING}
        # a max pooling that no neuron follows is simulated only where a paying layer follows: its spikes count
        timed = [n for n in nodes if is_site(n) or (is_pool(n) and closure([n], lambda n: n.users) & pays)]
        needed = origins(timed)
        sizes = {n for n in nodes if facts(n).kind is Kind.SHAPE and n.op != "get_attr"}  # they differ by chunk
        self.body = [n for n in nodes if n in needed and (n in self.moving or n in sizes)]
        self.static = [n for n in nodes if n not in self.moving and n.op != "output"]
        self.last = last_uses(self.body)
        behind = before_output(graph) & self.moving
        self.readout_sites = [n for n in graph.sites if n in behind]
        self.readout = [n for n in nodes if n in behind and n not in self.readout_sites and n.op != "output"]


@dataclass(frozen=True)
class Setup:
    """What a simulation runs, as plain values. neurons: {call site name: Neuron}. seed: of spike confidence's masks.
    chunk: timesteps that a layer runs at once; None: chosen by the size of the activations. energy: what operations
    cost, see ``energy.prices``."""

    graph: Graph
    schedule: Schedule
    neurons: Mapping[str, Neuron]
    fanout: FanOut
    seed: int = 0
    chunk: int | None = None
    energy: str = "45nm"

    @property
    def coding(self) -> str:
        """``rate`` or ``delta``. Raises InputError where the neurons do not agree."""
        found = sorted({neuron.coding for neuron in self.neurons.values()}) or ["rate"]
        if len(found) > 1:
            raise InputError("some neurons are for rate coding and some for delta coding: give all of them one coding")
        return found[0]

    @property
    def window(self) -> int:
        """The timesteps that one simulated step stands for: 1 but under temporal coding."""
        return next((neuron.window for neuron in self.neurons.values() if neuron.window), 1)

    @property
    def late(self) -> int:
        """The timestep from which on outputs are taken."""
        return 0 if self.coding == "delta" else max((neuron.late for neuron in self.neurons.values()), default=0)
