"""The spiking network: runs a converted graph over timesteps, reads it at recorded t, counts spikes (DESIGN §7).

A layer runs a whole chunk of timesteps before the next one does: activations are (K·B, C, …), K timesteps of B images,
time first. Only neuron states and running sums cross chunks, so memory does not grow with T. What no spike enters is
computed once per batch; what no neuron follows is linear in the spikes and evaluated on their running means.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.node import Node

from msat_det.base.errors import InputError
from msat_det.graph import ops
from msat_det.graph.fanout import HOMOGENEOUS, FanOut, fan_out, is_event_source, static_nodes
from msat_det.graph.graph import Graph, before_output, closure, elements, is_mask, last_uses, mean_inputs, where
from msat_det.graph.inputs import Batch, recorded
from msat_det.graph.ops import Kind
from msat_det.methods.observe import Observation
from msat_det.models.detector import Detections, Detector
from msat_det.models.given import pictures
from msat_det.spiking.delta_run import DeltaRun
from msat_det.spiking.energy import Counts, count
from msat_det.spiking.kernels import Scan, count_events, events, keep_freed_memory
from msat_det.spiking.masks import image_key
from msat_det.spiking.neurons import Chances, Neuron
from msat_det.spiking.nodes import node_table

MEMORY_BYTES = 1 << 29
# A timestep at batch 16 in ms an image with 1 / 2 / 4 / 8 timesteps a chunk: SSD-MobileNet, MSAT 21.0 / 18.3 / 16.2 /
# 15.2; YOLO Nano, signed bursts 14.7 / 11.5 / 9.8 / 9.2.
CHUNK_BYTES = 256 << 20  # aim of one layer's activations over a chunk
LONGEST_CHUNK = 8


class SpikingNetwork:
    """A graph with one ``Neuron`` per call site.

    graph: as ``graph.graph.trace`` gives it. neurons: {call site name: Neuron}, one for each of ``graph.sites``.
    fanout: as ``graph.fanout.fan_out`` gives it. seed: of the spike confidence's masks. chunk: timesteps that a layer
    runs at once; None chooses it by the size of the activations. decide: makes the neuron of a call site that has none
    when its currents are first seen (``layer_by_layer``). detector: what the network is a part of, if anything.
    energy: what its operations cost, see ``spiking.energy.prices``.
    """

    def __init__(
        self,
        graph: Graph,
        neurons: dict[str, Neuron],
        fanout: FanOut,
        seed: int = 0,
        chunk: int | None = None,
        decide: Callable[[Node, Tensor], Neuron] | None = None,
        detector: Detector | None = None,
        energy: str = "45nm",
    ):
        missing = [node.name for node in graph.sites if node.name not in neurons]
        if missing and not decide:
            raise InputError(f"no neuron for call site {missing[0]}: a method must give one for each of graph.sites")
        self.graph, self.neurons, self.fanout, self.seed, self.chunk = graph, neurons, fanout, seed, chunk
        self.decide, self.detector, self.energy = decide, detector, energy
        self.counts: dict[int, Counts] = {}
        self.plan = _Plan(graph)
        self._resized: tuple[Graph, FanOut] | None = None  # for the images of another size that came last

    def run(
        self,
        batch: Batch,
        T: int,
        record: Iterable[int] | None = None,
        images: list | None = None,
        tap: Callable[[str, Tensor], None] | None = None,
        watch: Callable[[str, Scan, Tensor], None] | None = None,
        stop: Callable[[dict[int, Any]], bool] | None = None,
    ) -> dict[int, Any]:
        """Simulate T timesteps of one batch from rest.

        batch: tensor (B, …), or a tuple or dict of them, held constant in time. record: timesteps (1..T) whose outputs
        are wanted, [T] by default. images: ids of the B images, by which spike confidence draws masks (0..B−1 if None).
        tap: called with (call site, output s·θ of a chunk (K, B, C, …)) as the network runs; must not keep the tensor.
        watch: called before that with (call site, its population, the chunk's input currents (K, B, C, …), or
        (1, B, C, …) where they are constant in time); must not keep the tensor.
        stop: called at each recorded t with what would be returned; true ends the simulation there.
        Returns {t: the outputs in the network's own structure, on the running means over the first t timesteps (under
        delta coding on the sums)}, and leaves
        the spikes and operations up to each recorded t in ``counts``.
        Raises InputError, naming the call site, when a neuron's potential is NaN.
        """
        record = recorded(T, record)
        window = next((n.window for n in self.neurons.values() if n.window), 1)
        if record[0] % window:
            raise InputError(f"recorded timestep {record[0]} is no whole number of windows of {window} timesteps")
        with torch.inference_mode():
            snn, outputs, t, late = self._for_size_of(batch), {}, 0, 0
            if self.coding == "delta":
                run = DeltaRun(snn, batch, T, tap, watch)
            else:
                run = _Run(snn, batch, images, tap, watch)
                late = max((n.late for n in self.neurons.values()), default=0)
            self.counts = {}
            for until in record:
                while t < until // window:
                    left = (late if t < late < until else until // window) - t
                    steps = -(-left // -(-left // run.chunk))  # chunks alike, for short ones cost more a timestep
                    run.advance(t, steps)
                    t += steps
                    if t == late:
                        run.forget(t)
                outputs[until] = run.readout(t)
                sites = {node.name: scan.counts.clone() for node, scan in run.scans.items()}
                self.counts[until] = count(snn.graph, snn.neurons, snn.fanout, sites, run.pools, until, self.energy)
                if stop and stop(outputs):
                    break
        return pytree.tree_map_only(Tensor, torch.clone, outputs)  # tensors that the caller may write into

    def _for_size_of(self, batch: Batch) -> "SpikingNetwork":
        """This network; for images of another size than the calibration's one with the same neurons, counted anew.

        Raises InputError where they do not fit the network.
        """
        inputs = self.graph.bind(batch)
        sizes = {name: tuple(value.shape[1:]) for name, value in inputs.items()}
        if sizes == self.graph.sizes:
            return self
        if self._resized is None or self._resized[0].sizes != sizes:
            one = {name: value[:1] for name, value in inputs.items()}
            graph = self.graph.at_size(one)
            self._resized = graph, fan_out(graph, one)
        graph, fanout = self._resized
        return self._on(graph, self.neurons, fanout)

    def detect(
        self,
        images: Sequence[Tensor],
        T: int,
        record: Iterable[int] | None = None,
        stop: Callable[[dict[int, Any]], bool] | None = None,
    ) -> dict[int, list[Detections]]:
        """Simulate T timesteps and read the boxes.

        images: uint8 RGB (3, H, W), of any sizes. record, stop: see ``run``. Returns {t: one ``Detections`` an image}.
        Raises InputError when the network was not converted as a part of a ``Detector``.
        """
        if self.detector is None:
            raise InputError(
                "this network has no detector to read boxes: convert a Detector, not its net; hand a detector of your "
                "own in again with msat_det.load(path, detector=…)"
            )
        pixels, metas = zip(*map(self.detector.preprocess, pictures(images)), strict=True)
        outputs = self.run(torch.stack(pixels), T, record, stop=stop)
        return {t: self.detector.decode(output, list(metas)) for t, output in outputs.items()}

    def __copy__(self) -> "SpikingNetwork":
        return self._on(self.graph, dict(self.neurons), self.fanout)

    def __deepcopy__(self, memo: dict) -> "SpikingNetwork":
        graph = self.graph.copy()
        return self._on(graph, copy.deepcopy(self.neurons, memo), self.fanout.on(graph))

    def _on(self, graph: Graph, neurons: dict[str, Neuron], fanout: FanOut) -> "SpikingNetwork":
        """A network like this one. Pickling is refused by ``Graph``: ``save`` writes what ``msat_det.load`` reads."""
        return SpikingNetwork(
            graph, neurons, fanout, self.seed, self.chunk, self.decide, detector=self.detector, energy=self.energy
        )

    def save(self, path: str | Path) -> None:
        """Write the network into one file, which ``msat_det.load`` reads; see ``formats.native``. Raises InputError."""
        from msat_det.spiking.formats.native import save

        save(self, path)

    @property
    def coding(self) -> str:
        """``rate`` or ``delta``. Raises InputError where the neurons do not agree."""
        found = sorted({neuron.coding for neuron in self.neurons.values()}) or ["rate"]
        if len(found) > 1:
            raise InputError("some neurons are for rate coding and some for delta coding: give all of them one coding")
        return found[0]

    @property
    def coverage(self) -> list[dict]:
        """What every node became, one dict a node; see ``spiking.nodes.node_table``."""
        return node_table(self.graph, self.fanout, self.neurons)


@dataclass
class _Plan:
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
        pays = {n for n in nodes if n.meta.get("op") in ops.MULTIPLYING}
        # a max pooling that no neuron follows is simulated only where a paying layer follows: its spikes count
        timed = [n for n in nodes if n.meta["kind"] is Kind.SPIKING or (_is_pool(n) and closure([n], _users) & pays)]
        needed = closure(timed, lambda n: n.all_input_nodes)
        sizes = {n for n in nodes if n.meta["kind"] is Kind.SHAPE and n.op != "get_attr"}  # they differ by chunk
        self.body = [n for n in nodes if n in needed and (n in self.moving or n in sizes)]
        self.static = [n for n in nodes if n not in self.moving and n.op != "output"]
        self.last = last_uses(self.body)
        behind = before_output(self.graph) & self.moving
        self.readout_sites = [n for n in self.graph.sites if n in behind]
        self.readout = [n for n in nodes if n in behind and n not in self.readout_sites and n.op != "output"]


def _users(node: Node) -> Iterable[Node]:
    return node.users


def _is_pool(node: Node) -> bool:
    return is_event_source(node) and node.meta["kind"] is Kind.DIFFERENTIAL


def layer_by_layer(
    observation: Observation, images: int, T: int, decide: Callable[[Node, Tensor], Neuron]
) -> dict[str, Neuron]:
    """Convert one call site after the other, each on what the spiking layers before it send.

    decide: gets a call site and its input currents (T, B, C, …) on the first ``images`` calibration images, or one
    timestep (1, B, C, …) where they are constant in time, and returns its Neuron. A layer's activations over all T
    timesteps are in memory at once, and copies of them; where they would pass half a gigabyte, which makes about five
    with the copies, fewer images are taken.
    """
    largest = 4 * T * max(map(elements, observation.graph.sites))
    batch = observation.first(min(images, max(1, MEMORY_BYTES // largest)))
    snn = SpikingNetwork(observation.graph, {}, observation.fanout, decide=decide)
    with torch.inference_mode():
        _Run(snn, batch).advance(0, T)
    return snn.neurons


def run_alone(neuron: Neuron, currents: Tensor, T: int) -> Tensor:
    """The output sum (B, C, …) over T timesteps of one population on its own; ``currents`` as ``decide`` gets them."""
    scan = Scan(neuron, currents[0], torch.zeros(currents.shape[2:]), with_output=True)
    scan.run(currents, 0, T)
    return scan.state.o


class _Run:
    """One batch from rest to T: the states of its neurons and the running sums of its differential nodes."""

    def __init__(
        self,
        snn: SpikingNetwork,
        batch: Batch,
        images: list | None = None,
        tap: Callable | None = None,
        watch: Callable | None = None,
    ):
        self.snn, self.graph, self.plan, self.tap, self.watch = snn, snn.graph, snn.plan, tap, watch
        keep_freed_memory()
        inputs = self.graph.bind(batch)
        self.size = next(iter(inputs.values())).shape[0]
        self.chances = [image_key(i) for i in (range(self.size) if images is None else images)]
        if len(self.chances) != self.size:
            raise InputError(f"{len(self.chances)} ids for {self.size} images: give one for each")
        self.scans: dict[Node, Scan] = {}
        self.sums: dict[Node, _Differential] = {}
        self.pools: dict[Node, Tensor] = {}
        self.late, self.early = 0, {}
        self.static = self.graph.settled(self.plan.static, batch)
        self.chunk = snn.chunk or self._choose_chunk()
        device = next(iter(inputs.values())).device
        for node in self.plan.body:  # states made between activations would leave holes in memory
            if node.meta["kind"] is Kind.SPIKING and node.name in snn.neurons:
                shape = (self.size, *node.meta["shape"])
                layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
                self.scans[node] = self._population(node, torch.empty(shape, device=device, memory_format=layout))

    def _population(self, node: Node, currents: Tensor) -> Scan:
        reach = self.snn.fanout.spikes.get(node, torch.zeros(node.meta["shape"]))
        chances = Chances(self.snn.seed, self.chances, self.graph.sites.index(node))
        return Scan(self.snn.neurons[node.name], currents, reach, node in self.plan.readout_sites, chances)

    def _choose_chunk(self) -> int:
        sites = [elements(n) for n in self.graph.sites]
        typical = 4 * self.size * sum(s * s for s in sites) / max(sum(sites), 1)
        return int(min(max(CHUNK_BYTES / max(typical, 1), 1), LONGEST_CHUNK))

    def _call(self, node: Node, env: dict[Node, Any]) -> Any:
        args = fx.map_arg(node.args, env.__getitem__)
        return self.graph.call(node, args, fx.map_arg(node.kwargs, env.__getitem__))

    def _linear(self, node: Node, env: "_ChunkValues") -> Any:
        """A linear node on a chunk of spikes: a convolution by its events where they are few."""
        if node.op == "call_module" and node.args and node.meta["op"] == "conv2d":
            value = events.convolution(self.graph.module.get_submodule(node.target), env[node.args[0]])
            if value is not None:
                return value
        return self._call(node, env)

    def advance(self, t0: int, steps: int) -> None:
        """Run timesteps t0 … t0 + steps − 1 of the whole body, layer by layer."""
        env = _ChunkValues(self.static, steps)
        for node in self.plan.body:
            kind = node.meta["kind"]
            if kind is Kind.SPIKING:
                value = self._scan(node, env, t0, steps)
            elif kind is Kind.DIFFERENTIAL:
                value = self._differential(node, env, t0, steps)
            elif kind is Kind.SHAPE:
                value = self._call(node, env.shapes())
            else:
                value = self._linear(node, env)
            env.moving[node] = value
            for done in self.plan.last[node]:
                env.moving.pop(done, None)

    def _scan(self, node: Node, env: "_ChunkValues", t0: int, steps: int) -> Tensor:
        source = node.all_input_nodes[0]
        constant = source not in self.plan.moving
        x = self.static[source].unsqueeze(0) if constant else env[source].unflatten(0, (steps, self.size))
        if node.name not in self.snn.neurons:
            self.snn.neurons[node.name] = self.snn.decide(node, x)
        if node not in self.scans or (t0 == 0 and not self.scans[node].takes(x[0])):
            self.scans[node] = self._population(node, x[0])
        scan = self.scans[node]
        if self.watch is not None:
            self.watch(node.name, scan, x)
        own = not constant and len(source.users) == 1 and source.meta["op"] in ops.FRESH
        y = scan.run(x, t0, steps, in_place=own)
        if scan.counts.isnan().any():
            raise InputError(
                f"{where(node)}: the potential is NaN by timestep {t0 + steps}: look at its input and the options"
            )
        if self.tap is not None:
            self.tap(node.name, y)
        return y.flatten(0, 1)

    def _differential(self, node: Node, env: "_ChunkValues", t0: int, steps: int) -> Tensor:
        if node not in self.sums:
            self.sums[node] = _Differential(node, self.graph, self.plan.moving)
        y = self.sums[node].run(env, t0, steps, self.size)
        if _is_pool(node) and node in self.snn.fanout.spikes:
            counts = count_events(y, self.snn.fanout.spikes[node])
            self.pools[node] = self.pools.get(node, 0) + counts.unflatten(0, (steps, self.size)).sum(0)
        return y

    def forget(self, t: int) -> None:
        """Leave what has been sent by t out of the outputs."""
        self.late, self.early = t, {node: self.scans[node].state.o.clone() for node in self.plan.readout_sites}

    def readout(self, t: int) -> Any:
        """The network's outputs on the running means over the first t timesteps, or since ``forget``."""
        env, since = dict(self.static), t - self.late
        for node in self.plan.readout_sites:
            o = self.scans[node].state.o
            env[node] = (o - self.early[node]) / since if self.early else o / t
        for node in self.plan.readout:
            env[node] = self._call(node, env)
        return self.graph.restructure(fx.map_arg(self.graph.nodes[-1].args[0], env.__getitem__))


class _ChunkValues:
    """Values of nodes in a chunk: what moves has K·B rows; what is constant in time is repeated to fit, on demand."""

    def __init__(self, static: dict[Node, Any], steps: int):
        self.static, self.steps, self.moving = static, steps, {}

    def __getitem__(self, node: Node) -> Any:
        if node in self.moving:
            return self.moving[node]
        value = self.static[node]
        if node.meta["kind"] is Kind.SHAPE or not isinstance(value, Tensor):
            return value
        self.moving[node] = value.repeat(self.steps, *([1] * (value.dim() - 1)))
        return self.moving[node]

    def shapes(self) -> "_ShapeValues":
        return _ShapeValues(self)


class _ShapeValues(dict):
    """The same for nodes that read sizes only: a constant value is shown with K·B rows without being copied."""

    def __init__(self, chunk: _ChunkValues):
        super().__init__()
        self.chunk = chunk

    def __missing__(self, node: Node) -> Any:
        value = self.chunk.moving.get(node, self.chunk.static.get(node))
        if node in self.chunk.moving or node.meta["kind"] is Kind.SHAPE or not isinstance(value, Tensor):
            return value
        return value[:1].expand(self.chunk.steps * value.shape[0], *value.shape[1:])


class _Differential:
    """A node g that acts on running means (DESIGN §4): d(t) = n·g(X̄(t)) − (n−1)·g(X̄(t−1)), n = t + 1, X̄ the running
    means of its inputs; the second term is 0 at the first timestep. The running mean of d is g of the running mean. Of
    a mask there is no difference: it is g(X̄(t)) itself, and taken as it is by the nodes behind it."""

    def __init__(self, node: Node, graph: Graph, moving: set[Node]):
        self.node, self.graph = node, graph
        self.homogeneous = node.meta["op"] in HOMOGENEOUS
        self.inputs = mean_inputs(node, moving)
        self.sums: dict[Node, Tensor] = {}
        self.last: Tensor | None = None

    def run(self, env: _ChunkValues, t0: int, steps: int, images: int) -> Tensor:
        n = torch.arange(t0 + 1, t0 + steps + 1, dtype=torch.float32).repeat_interleave(images)
        values: dict[Node, Tensor] = {}
        for source in self.inputs:
            x = env[source].unflatten(0, (steps, images))
            sums, before = torch.empty_like(x), self.sums.get(source)
            for k in range(steps):
                torch.add(x[k], 0.0 if before is None else before, out=sums[k])
                before = sums[k]
            self.sums[source] = _alone(sums)
            values[source] = sums.flatten(0, 1)
            if not self.homogeneous:
                values[source] = values[source] / _column(n, values[source])

        def value(node: Node) -> Any:
            return values[node] if node in values else env[node]

        g = self.graph.call(self.node, fx.map_arg(self.node.args, value), fx.map_arg(self.node.kwargs, value))
        if is_mask(self.node):
            return g
        total = g if self.homogeneous else g * _column(n, g)
        rows = total.unflatten(0, (steps, images))
        difference = torch.empty_like(rows)
        torch.sub(rows[0], 0.0 if self.last is None else self.last, out=difference[0])
        torch.sub(rows[1:], rows[:-1], out=difference[1:])
        self.last = _alone(rows)
        return difference.flatten(0, 1)


def _alone(rows: Tensor) -> Tensor:
    """The last of these rows, in memory of its own."""
    return rows[-1].clone() if len(rows) > 1 else rows[0]


def _column(n: Tensor, like: Tensor) -> Tensor:
    return n.to(like.device).reshape(-1, *([1] * (like.dim() - 1)))
