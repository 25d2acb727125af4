"""SpikingJelly's multi-step integrate-and-fire neuron on the same network (optional extra ``bench``).

The traced, batch-norm-folded network runs as its users write it in multi-step mode: the image repeated T times, every
layer once over time and batch together, in each activation's place a neuron over (T, B, …), the mean over T at the end.
Its spikes are left at 1: weights that are scaled by the thresholds beforehand take no time. What is fastest on a CPU is
found by trying: its two integrate-and-fire nodes, channels last or not.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node

from benchmarks import memory
from benchmarks.networks import Bench, load
from benchmarks.timing import ratio, seconds_of
from msat_det.base.errors import InputError
from msat_det.graph.graph import Graph, last_uses
from msat_det.methods.observe import Observation
from msat_det.spiking.kernels import keep_freed_memory

NAME = "spikingjelly"
NODES = ("IFNode", "SimpleIFNode")
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# Network, batch, T. The memory of its multi-step mode grows with T: at T = 64 these take up to 8 GB.
CASES = [
    ("ssd-mobilenet", 1, 8),
    ("ssd-mobilenet", 4, 8),
    ("ssd-mobilenet", 4, 64),
    ("resnet20", 16, 8),
    ("resnet20", 16, 64),
    ("vgg16-cifar", 8, 8),
    ("vgg16-cifar", 8, 64),
    ("ssd300-vgg16", 1, 8),
    ("ssd300-vgg16", 1, 64),
]


def missing() -> str | None:
    """What keeps SpikingJelly from being imported, itself or something that it needs; None where nothing does."""
    try:
        import spikingjelly.activation_based.neuron  # noqa: F401
    except ImportError as error:
        return f"{error}: pip install 'msat-det[bench]' (Python 3.11 or later)"
    return None


class MultiStep:
    """The observed network with one of SpikingJelly's nodes at each call site, thresholds at the layer's percentile."""

    def __init__(self, observation: Observation, node: str, layout: str, T: int):
        from spikingjelly.activation_based import neuron

        graph, self.layout, self.T = observation.graph, LAYOUTS[layout], T
        module = copy.deepcopy(graph.module).to(memory_format=self.layout)
        self.graph = Graph(module, graph.inputs, graph.structure)
        self.neurons = {
            name: getattr(neuron, node)(max(float(site.scale(99.9, per="layer")), 1e-6), v_reset=None, step_mode="m")
            for name, site in observation.sites.items()
        }

    def __call__(self, x: Tensor) -> Any:
        """(B, 3, h, w) → the network's outputs, means over T timesteps from rest."""
        for neuron in self.neurons.values():
            neuron.eval().reset()
        sequence = x.repeat(self.T, 1, 1, 1).contiguous(memory_format=self.layout)
        inputs, last = self.graph.bind(sequence), last_uses(self.graph.nodes)
        env: dict[Node, Any] = {}
        with torch.inference_mode():
            for node in self.graph.nodes:
                if node.op == "placeholder":
                    value = inputs[str(node.target)]
                elif node.name in self.neurons:
                    currents = env[node.all_input_nodes[0]].unflatten(0, (self.T, len(x)))
                    value = self.neurons[node.name](currents).flatten(0, 1)
                else:
                    value = self.graph.evaluate(node, env)
                env[node] = value
                for done in last[node]:
                    env.pop(done, None)
            return pytree.tree_map(lambda y: y.unflatten(0, (self.T, len(x))).mean(0), value)


def select(implementation: str) -> None:
    """What SpikingJelly calculates with. It chooses when it is first called, by an environment variable that is read at
    import: so its own selection is set."""
    from spikingjelly._ops.if_ import _selection

    _selection._requested = implementation
    for cache in (_selection._selections, _selection._compiled_selections):
        cache.clear()


def simulation(bench: Bench, setting: str, batch: int, T: int) -> Callable[[], Any]:
    """T timesteps of one batch. setting: spikingjelly/NODE/LAYOUT."""
    _, node, layout = setting.split("/")
    net, x = MultiStep(bench.observation, node, layout, T), bench.images[:batch]
    return lambda: net(x)


def fastest(bench: Bench, batch: int, T: int) -> str:
    """The setting whose simulation is shortest, each tried three times after one call."""

    def length(setting: str) -> float:
        run = simulation(bench, setting, batch, min(T, 8))
        run()
        return min(seconds_of(run) for _ in range(3))

    return min((f"{NAME}/{node}/{layout}" for node in NODES for layout in LAYOUTS), key=length)


def rows(networks: list[str], threads: int, budget: float) -> Iterator[dict]:
    """One dict for each case and each of our neurons ``if`` and ``msat``.

    theirs_over_float, ours_over_float: a timestep over a float forward. speed_ratio: their time over ours, in turns.
    memory_ratio: their peak over ours, whole processes; without_rest: what both hold before they start taken off.
    """
    if lacking := missing():
        raise InputError(f"the comparison with SpikingJelly cannot run: {lacking}")
    keep_freed_memory()  # our simulations would set it for the whole process: it makes theirs faster too
    for network, batch, T in [case for case in CASES if case[0] in networks]:
        bench = load(network)
        setting = fastest(bench, batch, T)
        theirs, float_forward = simulation(bench, setting, batch, T), bench.float_forward(batch)
        theirs(), float_forward()
        over_float = ratio(theirs, float_forward, budget)
        their_peak = memory.peak(network, setting, batch, T, threads)
        for neuron in ("if", "msat"):
            ours = bench.simulation(neuron, batch, T)
            ours()
            ours_over_float, turns = ratio(ours, float_forward, budget), ratio(theirs, ours, budget)
            our_peak = memory.peak(network, neuron, batch, T, threads)
            own = [p["peak_mb"] - p["before_mb"] for p in (their_peak, our_peak)]
            yield {
                "network": network,
                "neuron": neuron,
                "batch": batch,
                "T": T,
                "setting": setting,
                "theirs_over_float": over_float.value / T,
                "ours_over_float": ours_over_float.value / T,
                "speed_ratio": turns.value,
                "their_peak_mb": their_peak["peak_mb"],
                "our_peak_mb": our_peak["peak_mb"],
                "memory_ratio": their_peak["peak_mb"] / our_peak["peak_mb"],
                "without_rest": own[0] / own[1],
                "weights": bench.weights,
            }
