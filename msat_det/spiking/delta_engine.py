"""Delta coding simulated: one float forward pass a timestep with every activation replaced by its output sum.

What no change reaches is not computed again, and a convolution that few events reach is updated by them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from msat_det.graph import ops
from msat_det.graph.facts import facts, is_site
from msat_det.graph.fanout import is_event_source
from msat_det.graph.graph import Batch
from msat_det.graph.ops import Kind
from msat_det.spiking.engine import fetched, refuse_nan
from msat_det.spiking.kernels import count_events, events, keep_freed_memory
from msat_det.spiking.kernels.delta import Corrections
from msat_det.spiking.plan import Setup


class DeltaRun:
    """One batch from rest to T, as ``engine.Run`` is under rate coding; a chunk is one timestep.

    values: of every node on the sums so far; constants: of those that no spike enters. sent: the running timestep's
    events of call sites, where a convolution asks for them. scans, pools: as there.
    """

    def __init__(
        self,
        setup: Setup,
        batch: Batch,
        T: int,
        tap: Callable[[str, Tensor], None] | None = None,
        watch: Callable[[str, Any, Tensor], None] | None = None,
    ):
        self.graph, self.plan, self.neurons, self.fanout = setup.graph, setup.plan, setup.neurons, setup.fanout
        self.tap, self.watch = tap, watch
        keep_freed_memory()
        self.chunk, self.T = 1, T
        self.device = next(iter(self.graph.bind(batch).values())).device
        self.values: dict[Node, Any] = self.graph.settled(self.plan.static, batch)
        self.constants = dict(self.values)
        self.scans: dict[Node, Corrections] = {}
        self.pools: dict[Node, Tensor] = {}
        self.sent: dict[Node, Tensor] = {}
        self.updated = {node: self._updated(node) for node in self.plan.body}
        self.asked = {node.args[0] for node, conv in self.updated.items() if conv}

    def _updated(self, node: Node) -> nn.Conv2d | None:
        """The convolution that a node is, where its value can be updated by the events of a call site."""
        if node.op != "call_module" or facts(node).op != "conv2d" or facts(node.args[0]).kind is not Kind.SPIKING:
            return None
        conv = self.graph.module.get_submodule(node.target)
        return conv if isinstance(conv, nn.Conv2d) and events.crossover(conv) > 0 and conv.groups == 1 else None

    def advance(self, t0: int, steps: int) -> None:
        """Run timesteps t0 … t0 + steps − 1, one after the other."""
        for t in range(t0, t0 + steps):
            self._advance(t)

    def _advance(self, t: int) -> None:
        changed: set[Node] = set()
        keeps = t + 1 < self.T  # whether another timestep follows, for which values must stay
        for node in self.plan.body:
            moved = t == 0 or not changed.isdisjoint(node.all_input_nodes)
            if is_site(node):
                observed = self.tap is not None or self.watch is not None
                if moved or observed or not self.scans[node].rests(t):
                    self._spike(node, t, keeps)
                    if self.scans[node].sent or t == 0:
                        changed.add(node)
            elif moved:
                self._evaluate(node, t)
                changed.add(node)
            for done in self.plan.last[node]:
                self.sent.pop(done, None)
                if not keeps and done not in self.plan.readout_sites:
                    self.values.pop(done, None)
        self.sent.clear()

    def _spike(self, node: Node, t: int, keeps: bool) -> None:
        source = node.all_input_nodes[0]
        sums = self.values[source]
        if node not in self.scans:
            self.scans[node] = Corrections(self.neurons[node.name], sums, self.fanout.reach(node, self.device))
        scan = self.scans[node]
        if self.watch is not None:
            self.watch(node.name, scan, sums.unsqueeze(0))
        asked = self.tap is not None or (t > 0 and node in self.asked)
        own = not keeps and source in self.plan.moving and len(source.users) == 1 and facts(source).op in ops.FRESH
        y = scan.step(sums, t, asked, own)
        refuse_nan(node, scan.counts, t + 1)
        self.values[node] = scan.output
        if y is not None:
            self.sent[node] = y
        if self.tap is not None:
            self.tap(node.name, (y if y is not None else torch.zeros_like(sums)).unsqueeze(0))

    def _evaluate(self, node: Node, t: int) -> None:
        """A node that is no neuron, on the sums."""
        conv, source = self.updated[node], node.args[0] if node.args else None
        if conv is not None and t > 0 and self.scans[source].sent <= events.crossover(conv) * self.sent[source].numel():
            update = events.update(conv, self.sent[source])
            if update is not None:
                self.values[node] += update
                return
        before = self.values.get(node)
        value = self.values[node] = self.graph.evaluate(node, self.values)
        if facts(node).kind is Kind.DIFFERENTIAL and is_event_source(node) and node in self.fanout.spikes:
            change = value if before is None else value - before
            self.pools[node] = self.pools.get(node, 0) + count_events(change, self.fanout.reach(node, self.device))

    def spikes(self, t: int) -> tuple[dict[str, Tensor], dict[Node, Tensor]]:
        """See ``engine.fetched``."""
        return fetched(self.scans, {node: counted.cpu() for node, counted in self.pools.items()}, t)

    def readout(self, t: int) -> Any:
        """The network's outputs on the sums after t timesteps."""
        env = self.constants | {node: self.scans[node].output for node in self.plan.readout_sites}
        for node in self.plan.readout:
            env[node] = self.graph.evaluate(node, env)
        return self.graph.restructure(fx.map_arg(self.graph.nodes[-1].args[0], env.__getitem__))
