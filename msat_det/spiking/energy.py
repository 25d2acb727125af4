"""Spikes, operations and energy of a run, call site by call site, beside the float network's."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import torch
import yaml
from torch import Tensor
from torch.fx.node import Node

from msat_det.base.checks import check_number
from msat_det.base.errors import InputError
from msat_det.base.files import yaml_of
from msat_det.base.reader import Reader
from msat_det.base.tables import Tabular
from msat_det.graph.fanout import FanOut
from msat_det.graph.graph import Graph, elements
from msat_det.spiking.neurons import Neuron

TABLES = Path(__file__).with_name("energy_tables.yaml")
# One MSAT threshold update counts as nine multiply-adds: five for eqs. 15-16 and the running mean, and one for each of
# its four function evaluations (softplus takes two), a bound in MSAT's favour.
UPDATE_MACS = 9
INT8 = "45nm-int8"  # the prices of the 8-bit network, and of a spiking one with 8-bit weights beside it
READ_AND_WRITE = 8  # bytes: a 32-bit number fetched and put back
CONSTANT, EVALUATED = "(constant input)", "(evaluated)"  # rows of ``Counts.costs`` that belong to no node


@dataclass(frozen=True)
class Prices:
    """Energy in pJ of a multiply-add (mac), an accumulation (ac) and, of a power of two, what it costs at each
    connection beside that (shift), and where the figures stand."""

    mac: float
    ac: float
    source: str
    shift: float = 0.0


@cache
def prices(table: str = "45nm") -> Prices:
    """A table of ``energy_tables.yaml`` by its name, or a YAML or JSON file that holds mac, ac and source.

    Raises InputError for an unknown name, an unreadable file, and for what is no positive number.
    """
    known = _tables()
    if table in known:
        return Prices(**known[table])
    try:
        found = yaml_of(table)
    except OSError as error:
        names = ", ".join(known)
        raise InputError(f"energy is {table}, no table ({names}) and no file ({error.strerror}): give one") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"{table} is no YAML: write it as {TABLES} is") from None
    made = _TableReader(table, by_hand=True).read(Prices, found)
    for name in ("mac", "ac", "shift"):
        check_number(f"{table}: {name}", getattr(made, name), 0, above=name != "shift")
    return made


class _TableReader(Reader):
    """where: the file."""

    def missing(self, name: str) -> InputError:
        return InputError(f"{self.where} has no {name}: give mac and ac in pJ, and source, as {TABLES} does")


def is_known(table: str) -> bool:
    """Whether it is one of ``energy_tables.yaml`` and no file."""
    return table in _tables()


@cache
def _tables() -> dict[str, dict]:
    return yaml.safe_load(TABLES.read_text("utf-8"))


@dataclass(frozen=True, eq=False)
class Cost:
    """What one node has cost up to a recorded t, float64, (B,) for the B images of a batch or () for each of them.

    spikes: Σ|s|, a burst of k counting k, of binary levels the terms. events: outputs that are not 0, of binary levels
    each term. sops: the multiply-adds that its spikes reach. accumulations: those of them that only add. shifts: those
    that add a power of two. graded: those that multiply, since the spike's height differs by neuron and time. updates:
    of an adaptive threshold. analog: multiply-adds at full price. traffic: bytes of neuron state read and written.
    For the float network: float_macs, the multiply-adds that the node's output takes part in, those reached
    by several branches or pooled elements counted for each (for what is analog: those of the node itself);
    float_traffic, bytes of its activations written once and read once.
    """

    spikes: Tensor
    events: Tensor
    sops: Tensor
    accumulations: Tensor
    shifts: Tensor
    graded: Tensor
    updates: Tensor
    analog: Tensor
    traffic: Tensor
    float_macs: Tensor
    float_traffic: Tensor

    @property
    def macs(self) -> Tensor:
        """Everything that costs a multiply-add."""
        return self.graded + self.analog + UPDATE_MACS * self.updates


def _cost(**parts: Tensor | float) -> Cost:
    """What is not among the parts is 0."""
    return Cost(*(torch.as_tensor(parts.get(item.name, 0.0), dtype=torch.float64) for item in fields(Cost)))


@dataclass(frozen=True, repr=False, eq=False)
class Counts(Tabular):
    """Sums over the first t timesteps, for each of the B images of a batch, float64.

    spikes: (B,) Σ|s| over all neurons, a burst of k counting k. sops: (B,) synaptic operations: the multiply-adds that
    spikes reach. energy: (B,) pJ. sites: {call site: (B, 4) Σ|s|, Σ|s|·fan-out, Σ[s≠0], Σ[s≠0]·fan-out}. neurons: their
    number. macs: multiply-adds of one float forward of one image; float_energy: its pJ. costs: what they consist of, by
    the name of the call site, the max pooling or the analog node, and CONSTANT and EVALUATED for what has no node.
    events: (B,), of binary levels each term. energy_int8: (B,) pJ with 8-bit weights, by the table ``INT8``;
    int8_energy: by that table the pJ of one forward of the network with 8-bit weights and activations.
    """

    spikes: Tensor
    sops: Tensor
    energy: Tensor
    sites: dict[str, Tensor]
    neurons: int
    macs: int
    float_energy: float
    costs: dict[str, Cost]
    events: Tensor
    energy_int8: Tensor
    int8_energy: float

    _headings = ("image", "spikes/neuron", "SOPs/MAC", "energy ratio", "events/neuron", "energy/int8")

    @property
    def figures(self) -> Tensor:
        """(B, 5) float64 of each image: spikes per neuron, operations per multiply-add, energy over the float
        network's, events per neuron, energy with 8-bit weights over the 8-bit network's."""
        neurons, macs = max(self.neurons, 1), max(self.macs, 1)
        ratios = (self.spikes / neurons, self.sops / macs, self.energy / max(self.float_energy, 1e-12))
        more = (self.events / neurons, self.energy_int8 / max(self.int8_energy, 1e-12))
        return torch.stack(torch.broadcast_tensors(*ratios, *more), 1)

    @property
    def line(self) -> str:
        """The means over the images in a line."""
        energy = f"energy {self.energy_ratio:.2f} of the float network's"
        return f"{self.spikes_per_neuron:.2f} spikes per neuron, {energy}"

    def __repr__(self) -> str:
        return f"Counts({len(self.spikes)} image{'s' * (len(self.spikes) > 1)}: {self.line})"

    def _rows(self) -> list[list[str]]:
        """A line an image."""
        return [[str(i), *(f"{x:.2f}" for x in line)] for i, line in enumerate(self.figures.tolist())]

    @property
    def events_per_neuron(self) -> float:
        return self.events.mean().item() / max(self.neurons, 1)

    @property
    def energy_ratio_int8(self) -> float:
        return self.energy_int8.mean().item() / max(self.int8_energy, 1e-12)

    @property
    def spikes_per_neuron(self) -> float:
        return self.spikes.mean().item() / max(self.neurons, 1)

    @property
    def sops_per_mac(self) -> float:
        return self.sops.mean().item() / max(self.macs, 1)

    @property
    def energy_ratio(self) -> float:
        return self.energy.mean().item() / max(self.float_energy, 1e-12)


def count(
    graph: Graph,
    neurons: Mapping[str, Neuron],
    fanout: FanOut,
    sites: dict[str, Tensor],
    pools: dict[Node, Tensor],
    t: int,
    table: str = "45nm",
) -> Counts:
    """Price the spikes that a run has counted up to timestep t.

    sites: counts of each call site as ``kernels.Scan`` keeps them. pools: of each max pooling, (B, 2) differences that
    are not zero, plain and times their fan-out. table: see ``prices``.
    A graded spike (its height differs by neuron and time) costs one multiply-add per connection, whatever its height; a
    spike of constant height costs |s| accumulations; a difference of max pooling costs one multiply-add. What is analog
    is paid at full price in every timestep, what is constant in time once; an element that a differential node or a
    neuron's curved activation evaluates counts as one multiply-add. Under temporal switch coding a value costs
    its opening and its closing spike (a pair for each window that it would fill), and every neuron adds its current to
    its potential in each timestep. The 8-bit control (``Neuron.dense``) pays every multiply-add once, by the table
    ``INT8``.
    """
    dense = any(neuron.dense for neuron in neurons.values())
    price, price8 = prices(table), prices(INT8)
    costs = _dense_costs(graph, fanout, sites) if dense else _costs(graph, neurons, fanout, sites, pools, t)
    none = torch.zeros((), dtype=torch.float64)
    whole = Cost(*(sum((getattr(cost, item.name) for cost in costs.values()), none) for item in fields(Cost)))
    return Counts(
        spikes=whole.spikes,
        sops=whole.sops,
        energy=_energy(price8 if dense else price, whole),
        sites=sites,
        neurons=sum(map(elements, graph.sites)),
        macs=fanout.total,
        float_energy=price.mac * fanout.total,
        costs=costs,
        events=whole.events,
        energy_int8=_energy(price8, whole),
        int8_energy=price8.mac * fanout.total,
    )


def _costs(
    graph: Graph,
    neurons: Mapping[str, Neuron],
    fanout: FanOut,
    sites: dict[str, Tensor],
    pools: dict[Node, Tensor],
    t: int,
) -> dict[str, Cost]:
    costs = {
        node.name: _site_cost(node, neurons[node.name], fanout.reach_of_all(node), sites[node.name], t)
        for node in graph.sites
    }
    for node, pool in pools.items():  # a difference counts as an operation, but no neuron has spiked
        costs[node.name] = _cost(sops=pool[:, 1], graded=pool[:, 1], float_macs=fanout.reach_of_all(node))
    for node, macs in fanout.analog.items():
        costs[node.name] = _cost(analog=t * macs, float_macs=macs)
    costs[CONSTANT] = _cost(analog=fanout.once, float_macs=fanout.once)
    costs[EVALUATED] = _cost(analog=t * fanout.evaluations)
    return costs


def _dense_costs(graph: Graph, fanout: FanOut, sites: dict[str, Tensor]) -> dict[str, Cost]:
    """Of the 8-bit control: every layer's multiply-adds, once."""
    costs = {}
    for node in graph.sites:
        each = torch.zeros(len(sites[node.name]), dtype=torch.float64)
        costs[node.name] = _cost(spikes=each, events=each, sops=each, float_traffic=READ_AND_WRITE * elements(node))
    layers = fanout.macs.items()
    return costs | {node.name: _cost(sops=each + macs, analog=macs, float_macs=macs) for node, macs in layers}


def _energy(price: Prices, cost: Cost) -> Tensor:
    energy = price.mac * cost.macs + price.ac * cost.accumulations + price.shift * cost.shifts
    return energy.expand_as(cost.spikes) if energy.dim() == 0 else energy  # alike for every image


def _site_cost(node: Node, neuron: Neuron, reach: float, counts: Tensor, t: int) -> Cost:
    size = elements(node)
    bursts, burst_ops, events, event_ops = counts.unbind(1)
    if neuron.window:
        bursts, burst_ops = 2 * events, 2 * event_ops
    return _cost(
        spikes=bursts,
        events=bursts if neuron.bits or neuron.window else events,
        sops=burst_ops,
        accumulations=(0 if neuron.graded else burst_ops) + (size * t if neuron.window else 0),
        shifts=burst_ops if neuron.bits and not neuron.graded else 0,
        graded=event_ops if neuron.graded else 0,
        updates=size * (t - 1) if neuron.adaptive else 0,  # none at first, where θ is θ_max
        analog=size * t * neuron.activation.curved,
        traffic=READ_AND_WRITE * len(neuron.keeps) * size * t // (neuron.window or 1),
        float_macs=reach,
        float_traffic=READ_AND_WRITE * size,
    )
