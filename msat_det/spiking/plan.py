"""Which nodes of a graph a simulation runs when."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch.fx.node import Node

from msat_det.base.errors import InputError
from msat_det.graph import ops
from msat_det.graph.facts import facts, is_site
from msat_det.graph.fanout import FanOut, is_pool, static_nodes
from msat_det.graph.graph import Graph, before_output, closure, last_uses
from msat_det.graph.ops import Kind
from msat_det.spiking.neurons import Neuron


@dataclass
class Plan:
    """Which nodes run where: ``static`` once per batch, ``body`` in every chunk, ``readout`` on running means of the
    outputs of ``readout_sites``. ``moving``: all that changes in time."""

    graph: Graph
    static: list[Node] = field(default_factory=list)
    body: list[Node] = field(default_factory=list)
    last: dict[Node, list[Node]] = field(default_factory=dict)
    moving: set[Node] = field(default_factory=set)
    readout_sites: list[Node] = field(default_factory=list)
    readout: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        nodes = self.graph.nodes
        self.moving = set(nodes) - static_nodes(self.graph)
        pays = {n for n in nodes if facts(n).op in ops.MULTIPLYING}
        # a max pooling that no neuron follows is simulated only where a paying layer follows: its spikes count
        timed = [n for n in nodes if is_site(n) or (is_pool(n) and closure([n], _users) & pays)]
        needed = closure(timed, lambda n: n.all_input_nodes)
        sizes = {n for n in nodes if facts(n).kind is Kind.SHAPE and n.op != "get_attr"}  # they differ by chunk
        self.body = [n for n in nodes if n in needed and (n in self.moving or n in sizes)]
        self.static = [n for n in nodes if n not in self.moving and n.op != "output"]
        self.last = last_uses(self.body)
        behind = before_output(self.graph) & self.moving
        self.readout_sites = [n for n in self.graph.sites if n in behind]
        self.readout = [n for n in nodes if n in behind and n not in self.readout_sites and n.op != "output"]


@dataclass(frozen=True)
class Setup:
    """What a simulation runs, as plain values. neurons: {call site name: Neuron}. seed: of spike confidence's masks.
    chunk: timesteps that a layer runs at once; None: chosen by the size of the activations. energy: what operations
    cost, see ``energy.prices``."""

    graph: Graph
    plan: Plan
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


def _users(node: Node) -> Iterable[Node]:
    return node.users
