"""Delta coding simulated: one float forward pass a timestep with every activation replaced by its output sum.

What no change reaches is not computed again, and a convolution that few events reach is updated by them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from msat_det.graph import ops
from msat_det.graph.facts import facts, is_site
from msat_det.graph.fanout import is_pool
from msat_det.graph.graph import Batch
from msat_det.graph.precision import LOW
from msat_det.spiking.engine import Counting, refuse_nan
from msat_det.spiking.kernels import convolution, events, keep_freed_memory
from msat_det.spiking.kernels.cpu import count_events
from msat_det.spiking.kernels.delta import Corrections
from msat_det.spiking.schedule import Setup
from msat_det.spiking.walk import Values, advance, readout, simulated


class DeltaRun(Counting, Values):
    """One batch from rest to T, as ``engine.Run`` is under rate coding; a chunk is one timestep, ``t``.

    values: of every node on the sums so far; constants: of those that no spike enters. changed: nodes whose value is
    another than a timestep ago. sent: the running timestep's events of call sites, where a convolution asks for them.
    scans, pools: as there.
    """

    def __init__(
        self,
        setup: Setup,
        batch: Batch,
        T: int,
        tap: Callable[[str, Tensor], None] | None = None,
        watch: Callable[[str, Any, Tensor], None] | None = None,
    ):
        self.pools: dict[Node, Tensor]
        self.graph, self.schedule, self.neurons, self.fanout = setup.graph, setup.schedule, setup.neurons, setup.fanout
        self.tap, self.watch = tap, watch
        keep_freed_memory()
        self.chunk, self.T = 1, T
        self.scans: dict[Node, Corrections] = {}
        self.sent: dict[Node, Tensor] = {}
        self.changed: set[Node] = set()
        self.restart(batch)
        self.updated = {node: self._updated(node) for node in self.schedule.body}
        self.asked = {node.all_input_nodes[0] for node, conv in self.updated.items() if conv}

    def restart(self, batch: Batch) -> None:
        """Another batch of the same shape, from rest, with the same kernels."""
        inputs = simulated(self.graph, batch)
        self.device = next(iter(inputs.values())).device
        self.t, self.pools = 0, {}
        self.values = self.graph.settled(self.schedule.static, inputs)
        self.constants = dict(self.values)
        for scan in self.scans.values():
            scan.restart()

    def rest(self) -> None:
        """Let go of what belongs to one batch alone, when it has been read."""
        self.values, self.constants, self.pools = {}, {}, {}

    def _updated(self, node: Node) -> nn.Conv2d | None:
        """The convolution that a node is, where its value can be updated by the events of a call site."""
        if self.device.type != "cpu" or self.graph.precision in LOW:
            return None
        if node.op != "call_module" or facts(node).op != "conv2d" or not is_site(node.all_input_nodes[0]):
            return None
        conv = self.graph.layer(node)
        return conv if isinstance(conv, nn.Conv2d) and events.crossover(conv) > 0 and conv.groups == 1 else None

    def advance(self, t0: int, steps: int) -> None:
        """Run timesteps t0 … t0 + steps − 1, one after the other."""
        for self.t in range(t0, t0 + steps):
            self.changed.clear()
            self._learn()
            advance(self.schedule, self)
            self.sent.clear()

    def _learn(self) -> None:
        """What has come to rest on a GPU, before timestep t: it is waited for once a timestep."""
        if self.device.type != "cpu" and self.scans:
            latest = torch.cat([scan.latest for scan in self.scans.values()]).tolist()
            for scan, last in zip(self.scans.values(), latest, strict=True):
                scan.learn(last, self.t)

    @property
    def keeps(self) -> bool:
        """Whether another timestep follows, for which values must stay."""
        return self.t + 1 < self.T

    def drop(self, node: Node) -> None:
        self.sent.pop(node, None)
        if not self.keeps and node not in self.schedule.readout_sites:
            super().drop(node)

    def _moved(self, node: Node) -> bool:
        return self.t == 0 or not self.changed.isdisjoint(node.all_input_nodes)

    def spike(self, node: Node) -> Tensor:
        observed = self.tap is not None or self.watch is not None
        if self._moved(node) or observed or not self.scans[node].rests(self.t):
            self._step(node)
            if self.scans[node].sent or self.t == 0:
                self.changed.add(node)
        return self.scans[node].output

    def _step(self, node: Node) -> None:
        source, t = node.all_input_nodes[0], self.t
        sums = self.values[source]
        if node not in self.scans:
            self.scans[node] = Corrections(self.neurons[node.name], sums, self.fanout.reach(node, self.device))
        scan = self.scans[node]
        if self.watch is not None:
            self.watch(node.name, scan, sums.unsqueeze(0))
        asked = self.tap is not None or (t > 0 and node in self.asked)
        fresh = len(source.users) == 1 and facts(source).op in ops.FRESH
        own = not self.keeps and source in self.schedule.moving and fresh
        y = scan.step(sums, t, asked, own, self._moved(node))
        if self.device.type == "cpu":  # elsewhere ``spikes`` looks
            refuse_nan(node, scan.counts, t + 1)
        if y is not None:
            self.sent[node] = y
        if self.tap is not None:
            self.tap(node.name, (y if y is not None else torch.zeros_like(sums)).unsqueeze(0))

    def linear(self, node: Node) -> Any:
        """A node that is no neuron, on the sums."""
        if not self._moved(node):
            return self.values[node]
        self.changed.add(node)
        conv = self.updated[node]
        if conv is not None and self.t > 0:
            source = node.all_input_nodes[0]
            few = self.scans[source].sent <= events.crossover(conv) * self.sent[source].numel()
            if few and events.update(conv, self.sent[source], self.values[node]):
                return self.values[node]
        value = self._evaluated(node)
        if is_pool(node) and node in self.fanout.spikes:
            before = self.values.get(node)
            change = value if before is None else value - before
            self.pools[node] = self.pools.get(node, 0) + count_events(change, self.fanout.reach(node, self.device))
        return value

    def _evaluated(self, node: Node) -> Any:
        if self.device.type != "cpu" and node.op == "call_module" and facts(node).op == "conv2d":
            source = self.values[node.all_input_nodes[0]]
            value = convolution(self.graph.layer(node), source, self.graph.precision)
            if value is not None:
                return value
        return self.graph.evaluate(node, self.values)

    def counted_pools(self) -> list[Node]:
        return list(self.pools)

    def pool_counts(self, pool: Node) -> Tensor:
        return self.pools[pool]

    def readout(self, t: int) -> Any:
        """The network's outputs on the sums after t timesteps."""
        outputs = {node: self.scans[node].output for node in self.schedule.readout_sites}
        return readout(self.graph, self.schedule, self.constants, outputs)
