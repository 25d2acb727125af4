"""The run of a schedule under rate coding, a chunk of timesteps at a time.

A layer runs a whole chunk of timesteps before the next one does: activations are (K·B, C, …), K timesteps of B images,
time first. Only neuron states and running sums cross chunks, so memory does not grow with T. What no spike enters is
computed once per batch; what no neuron follows is linear in the spikes and evaluated on their running means.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.base.checks import present
from msat_det.base.errors import InputError
from msat_det.graph import ops
from msat_det.graph.divisors import division_before
from msat_det.graph.facts import facts, is_site, stands_alone
from msat_det.graph.fanout import is_pool
from msat_det.graph.graph import Graph, elements, mean_inputs, module_of, where
from msat_det.graph.inputs import Batch
from msat_det.graph.ops import Kind
from msat_det.graph.precision import LOW
from msat_det.spiking.kernels import Scan, convolution, events, keep_freed_memory, on_gpu, pool_in_triton
from msat_det.spiking.kernels.cpu import count_events
from msat_det.spiking.kernels.window import window_of
from msat_det.spiking.masks import image_key
from msat_det.spiking.neurons import Chances, Neuron
from msat_det.spiking.schedule import Setup
from msat_det.spiking.walk import Values, advance, picks_anew, readout, simulated, weighed

# A timestep at batch 16 in ms an image with 1 / 2 / 4 / 8 timesteps a chunk: SSD-MobileNet, MSAT 21.0 / 18.3 / 16.2 /
# 15.2; YOLO Nano, signed bursts 14.7 / 11.5 / 9.8 / 9.2.
CHUNK_BYTES = 256 << 20  # aim of one layer's activations over a chunk
LONGEST_CHUNK = 8
# A GPU reads and writes the states every chunk, so longer ones are better, until cuDNN's float32 turns slow.
# A timestep of SSD300 at batch 16 on an H100 takes .55 float forwards with 16 images at once, .50 with 64 (1.5 GB in
# the largest layer) and .47 with 256; one of SSD-MobileNet took 27 with 1,024 (4.4 GB).
LONGEST_CHUNK_GPU, CHUNK_BYTES_GPU, IMAGES_AT_ONCE_GPU = 16, 1600 << 20, 64


def images_at_once(graph: Graph) -> int:
    """How many images, those of several timesteps together, a GPU's convolutions are fast with."""
    largest = max((elements(node) for node in graph.sites), default=1)
    return max(min(CHUNK_BYTES_GPU // (4 * largest), IMAGES_AT_ONCE_GPU), 1)


Columns = tuple[list[Node], list[Node]]  # call sites, four columns of counts each, and max poolings, two


class Counting:
    """What runs of either coding have in common: their counts. scans: the populations of its call sites."""

    scans: Mapping[Node, Any]

    def counted_pools(self) -> list[Node]:
        """The max poolings whose events count."""
        raise NotImplementedError

    def pool_counts(self, pool: Node) -> Tensor:
        """(B, 2) of one of them."""
        raise NotImplementedError

    def forget(self, t: int) -> None:
        """Leave what has been sent by t out of the outputs, where they are means."""
        raise NotImplementedError

    def readout(self, t: int) -> Any:
        """The network's outputs by t."""
        raise NotImplementedError

    def counted(self) -> Tensor:
        """What every call site and every max pooling has counted so far, side by side (B, …), to be fetched at once."""
        counts = [*(scan.counts for scan in self.scans.values()), *map(self.pool_counts, self.counted_pools())]
        return torch.cat(counts, 1) if counts else torch.zeros(1, 0)

    def reading(self, t: int) -> tuple[Any, Tensor]:
        """The network's outputs by t, and what is counted by then."""
        return self.readout(t), self.counted()

    def columns(self) -> Columns:
        """What ``counted`` has side by side."""
        return list(self.scans), self.counted_pools()

    def spikes(self, t: int) -> tuple[dict[str, Tensor], dict[Node, Tensor]]:
        """``apart`` of what is counted by t."""
        return apart(self.columns(), self.counted(), t)


def apart(columns: Columns, counted: Tensor, t: int) -> tuple[dict[str, Tensor], dict[Node, Tensor]]:
    """What every call site, by name, and every max pooling has counted in t timesteps, on the CPU.

    Raises InputError, naming the call site, where a potential is NaN.
    """
    sites, pools = columns
    found = iter(counted.cpu().split([4] * len(sites) + [2] * len(pools), 1))
    counts = {node: next(found) for node in sites}
    for node, each in counts.items():
        refuse_nan(node, each, t)
    return {node.name: each for node, each in counts.items()}, {node: next(found) for node in pools}


class Run(Counting):
    """One batch from rest to T: the states of its neurons and the running sums of its differential nodes.

    decide: makes the neuron of a call site that has none, when its currents are first seen. neurons: all of them then.
    """

    def __init__(
        self,
        setup: Setup,
        batch: Batch,
        images: list | None = None,
        tap: Callable | None = None,
        watch: Callable | None = None,
        decide: Callable[[Node, Tensor], Neuron] | None = None,
    ):
        self.graph, self.schedule, self.fanout, self.seed = setup.graph, setup.schedule, setup.fanout, setup.seed
        self.neurons, self.tap, self.watch, self.decide = dict(setup.neurons), tap, watch, decide
        keep_freed_memory()
        inputs = simulated(self.graph, batch)
        first = next(iter(inputs.values()))
        self.size, self.device = first.shape[0], first.device
        self.chances = [image_key(i) for i in (range(self.size) if images is None else images)]
        if len(self.chances) != self.size:
            raise InputError(f"{len(self.chances)} ids for {self.size} images: give one for each")
        self.scans: dict[Node, Scan] = {}
        self.sums: dict[Node, Differential] = {}
        self.late = 0
        self.early: dict[Node, Tensor] = {}
        self.static = self.graph.settled(self.schedule.static, inputs)
        self.chunk = setup.chunk or self._choose_chunk()
        for node in self.schedule.body:  # states made between activations would leave holes in memory
            if is_site(node) and node.name in self.neurons:
                shape = (self.size, *facts(node).image_shape)
                layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
                self.scans[node] = self._population(node, torch.empty(shape, device=self.device, memory_format=layout))

    def restart(self, batch: Batch) -> None:
        """Another batch of the same shape, from rest, in the same memory."""
        self.static = self.graph.settled(self.schedule.static, simulated(self.graph, batch))
        self.sums, self.late, self.early = {}, 0, {}
        for scan in self.scans.values():
            scan.restart()

    def rest(self) -> None:
        """Let go of what belongs to one batch alone, when it has been read."""
        self.static, self.sums, self.early = {}, {}, {}

    def _population(self, node: Node, currents: Tensor) -> Scan:
        reach = self.fanout.reach(node, self.device)
        chances = Chances(self.seed, self.chances, self.graph.sites.index(node))
        return Scan(self.neurons[node.name], currents, reach, node in self.schedule.readout_sites, chances)

    def _choose_chunk(self) -> int:
        if self.device.type == "cuda":
            return min(max(images_at_once(self.graph) // max(self.size, 1), 1), LONGEST_CHUNK_GPU)
        sites = [elements(n) for n in self.graph.sites]
        typical = 4 * self.size * sum(s * s for s in sites) / max(sum(sites), 1)
        return int(min(max(CHUNK_BYTES / max(typical, 1), 1), LONGEST_CHUNK))

    def advance(self, t0: int, steps: int) -> None:
        """Run timesteps t0 … t0 + steps − 1 of the whole body, layer by layer."""
        advance(self.schedule, Chunk(self, t0, steps))

    def scan(self, node: Node, values: "Chunk") -> Tensor:
        """The population of a call site over a chunk."""
        t0, steps, source = values.t0, values.steps, node.all_input_nodes[0]
        constant = source not in self.schedule.moving
        x = self.static[source].unsqueeze(0) if constant else values[source].unflatten(0, (steps, self.size))
        if node.name not in self.neurons:
            self.neurons[node.name] = present(self.decide)(node, x)
        if node not in self.scans or (t0 == 0 and not self.scans[node].takes(x[0])):
            self.scans[node] = self._population(node, x[0])
        scan = self.scans[node]
        if self.watch is not None:
            self.watch(node.name, scan, x)
        own = not constant and len(source.users) == 1 and facts(source).op in ops.FRESH
        y = scan.run(x, t0, steps, in_place=own)
        if self.device.type == "cpu":  # elsewhere it would wait for the device: ``spikes`` looks then
            refuse_nan(node, scan.counts, t0 + steps)
        if self.tap is not None:
            self.tap(node.name, y)
        return y.flatten(0, 1)

    def differential(self, node: Node, values: "Chunk") -> Tensor:
        """A differential node over a chunk."""
        if node not in self.sums:
            reach = self.fanout.reach(node, self.device) if is_pool(node) and node in self.fanout.spikes else None
            kind = Picks if facts(node).op in ops.PICKS else Differential
            self.sums[node] = kind(node, self.graph, self.schedule.moving, reach)
        return self.sums[node].run(values)

    def counted_pools(self) -> list[Node]:
        return [node for node, sums in self.sums.items() if sums.reach is not None]

    def pool_counts(self, pool: Node) -> Tensor:
        return self.sums[pool].counts

    def forget(self, t: int) -> None:
        self.late, self.early = t, {node: self.scans[node].output.clone() for node in self.schedule.readout_sites}

    def readout(self, t: int) -> Any:
        """The network's outputs on the running means over the first t timesteps, or since ``forget``."""
        sums = {node: self.scans[node].output for node in self.schedule.readout_sites}
        if self.early:
            means = {node: (o - self.early[node]) / (t - self.late) for node, o in sums.items()}
        else:
            means = {node: o / t for node, o in sums.items()}
        held = {node: each.held for node, each in self.sums.items() if isinstance(each, Picks)}
        return readout(self.graph, self.schedule, self.static, means | held)


def refuse_nan(node: Node, counts: Tensor, t: int) -> None:
    """Raise InputError, naming the call site, where its counts are NaN."""
    if counts.isnan().any():
        division = division_before(node)
        mend = "look at its input and the options"
        if division is not None:
            does = "takes a logarithm, of" if facts(division).op == "log" else "divides, by"
            mend = f"{where(division)} {does} 0 as long as no spikes have come; add 1e-6, say, to that"
        raise InputError(f"{where(node)}: the potential is NaN by timestep {t}: {mend}")


class Chunk(Values):
    """The values of a run over timesteps t0 … t0 + steps − 1: what moves has K·B rows; what is constant in time is
    repeated to fit, on demand."""

    def __init__(self, run: Run, t0: int, steps: int):
        self.run, self.t0, self.steps = run, t0, steps
        self.static = run.static
        self.values: dict[Node, Any] = {}

    def spike(self, node: Node) -> Tensor:
        return self.run.scan(node, self)

    def differ(self, node: Node) -> Tensor:
        return self.run.differential(node, self)

    def size(self, node: Node) -> Any:
        return self.run.graph.evaluate(node, ShapeValues(self))

    def linear(self, node: Node) -> Any:
        """A linear node on a chunk of spikes: a convolution by its events where they are few, or as on a GPU it is
        fastest."""
        precision = self.run.graph.precision
        if node.op == "call_module" and facts(node).op == "conv2d" and precision not in LOW:
            conv, x = self.run.graph.layer(node), self[node.all_input_nodes[0]]
            value = events.convolution(conv, x)
            if value is None:
                value = convolution(conv, x, precision)
            if value is not None:
                return value
        return self.run.graph.evaluate(node, self)

    def __getitem__(self, node: Node) -> Any:
        if node in self.values:
            return self.values[node]
        value = self.static[node]
        if facts(node).kind is Kind.SHAPE or not isinstance(value, Tensor):
            return value
        self.values[node] = value.repeat(self.steps, *([1] * (value.dim() - 1)))
        return self.values[node]


class ShapeValues(dict):
    """The same for nodes that read sizes only: a constant value is shown with K·B rows without being copied."""

    def __init__(self, chunk: Chunk):
        super().__init__()
        self.chunk = chunk

    def __missing__(self, node: Node) -> Any:
        value = self.chunk.values.get(node, self.chunk.static.get(node))
        if node in self.chunk.values or facts(node).kind is Kind.SHAPE or not isinstance(value, Tensor):
            return value
        return value[:1].expand(self.chunk.steps * value.shape[0], *value.shape[1:])


class Differential:
    """A node g that acts on running means: d(t) = n·g(X̄(t)) − (n−1)·g(X̄(t−1)), n = t + 1, X̄ the running
    means of its inputs; the second term is 0 at the first timestep. The running mean of d is g of the running mean. Of
    what stands alone there is no difference: it is g(X̄(t)) itself, and taken as it is by the nodes behind it.

    reach: (C, …) fan-out of its differences, which are counted then: (B, 2) of each image, Σ[d≠0] and times fan-out.
    """

    def __init__(self, node: Node, graph: Graph, moving: set[Node], reach: Tensor | None = None):
        self.node, self.graph, self.reach = node, graph, reach
        self.window = window_of(node, module_of(graph, node))
        self.fused: Any = None
        self.counted = torch.zeros(())
        self.inputs = mean_inputs(node, moving)
        self.sums: dict[Node, Tensor] = {}
        self.last: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        return self.counted if self.fused is None else self.fused.counts

    def run(self, values: Chunk) -> Tensor:
        """d over a chunk, (steps·B, C, …)."""
        steps, images = values.steps, values.run.size
        if self.window is not None and pool_in_triton(values[self.inputs[0]]):
            x = values[self.inputs[0]]
            if values.t0 == 0:
                self.fused = present(on_gpu()).pool.FusedPool(self.window, x[:images], self.reach)
            return self.fused.run(x, values.t0, steps)
        d = self._differences(values, steps)
        if self.reach is not None:
            self.counted = self.counted + count_events(d, self.reach).unflatten(0, (steps, images)).sum(0)
        return d

    def _differences(self, values: Chunk, steps: int) -> Tensor:
        n = torch.arange(values.t0 + 1, values.t0 + steps + 1, dtype=torch.float32, device=values.run.device)
        running: dict[Node, Tensor] = {}
        for source in self.inputs:
            x = values[source].unflatten(0, (steps, -1))
            sums, before = torch.empty_like(x), self.sums.get(source)
            for k in range(steps):
                torch.add(x[k], 0.0 if before is None else before, out=sums[k])
                before = sums[k]
            self.sums[source] = _alone(sums)
            running[source] = sums.flatten(0, 1)
        total = weighed(self.graph, self.node, values, running, n)
        if stands_alone(facts(self.node)):
            return total
        rows = total.unflatten(0, (steps, -1))
        difference = torch.empty_like(rows)
        torch.sub(rows[0], 0.0 if self.last is None else self.last, out=difference[0])
        torch.sub(rows[1:], rows[:-1], out=difference[1:])
        self.last = _alone(rows)
        return difference.flatten(0, 1)


class Picks(Differential):
    """The best of many by their scores, a two-stage detector's regions (steps·B, K, 4) or the places of queries: those
    of the running means at timestep 1, 2, 3, 5, 9, 17, …, each held up to the next of these (``picks_anew``).

    What a neuron behind them has sent by t is the sum over t timesteps. When it is shown another region or query, it
    has all of that to make good, and is given as much time again for it.
    """

    held: Tensor

    def run(self, values: Chunk) -> Tensor:
        rows = super().run(values).unflatten(0, (values.steps, -1))
        for k, before in enumerate(range(values.t0, values.t0 + values.steps)):
            if not picks_anew(before):
                rows[k] = self.held
            self.held = rows[k]
        self.held = _alone(rows)
        return rows.flatten(0, 1)


def _alone(rows: Tensor) -> Tensor:
    """The last of these rows, in memory of its own."""
    return rows[-1].clone() if len(rows) > 1 else rows[0]
