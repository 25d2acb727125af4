"""Errors of a network's outputs, whole and by the call site that causes them: the terms of the paper's eq. 7.

They are relative to what spikes bring about, the float outputs' distance from those of a network in which no neuron
fires: 1 is as bad as silence, whatever constants the outputs hold.
"""

from collections import ChainMap
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node

from msat_det.base.device import wide
from msat_det.graph.facts import facts
from msat_det.graph.graph import Batch, Graph, before_output
from msat_det.graph.inputs import first_images, images_in
from msat_det.spiking.network import SpikingNetwork

IMAGES = 2  # of each batch: every float activation of theirs is in memory at once


def effects_of_own_errors(graph: Graph, batch: Batch, own: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each call site with ``squares`` of the outputs when its own error is put on its float activation: its term of
    eq. 7, but that the layers behind are as they are.
    """
    few = first_images(batch, IMAGES)
    values, last, silent = dict(graph.walk(few)), graph.nodes[-1], silent_outputs(graph, few)
    for node in graph.sites:
        changed: dict[Node, Any] = {node: values[node] + own[node.name][:IMAGES]}
        seen = ChainMap(changed, values)
        for behind in graph.nodes[graph.nodes.index(node) + 1 :]:
            if any(source in changed for source in behind.all_input_nodes):
                changed[behind] = graph.evaluate(behind, seen)
        yield node.name, squares(seen[last], values[last], silent)


def silent_outputs(graph: Graph, batch: Batch) -> Any:
    """The outputs when no neuron fires: what biases alone make."""
    inputs = graph.bind(batch)
    first = next(iter(inputs.values()))
    size, device = len(first), first.device
    values: dict[Node, Any] = {
        node: torch.zeros(size, *(facts(node).shape or ()), device=device) for node in graph.sites
    }
    values |= {node: inputs[name] for name, node in graph.placeholders.items()}
    needed = before_output(graph)
    for node in graph.nodes:
        if node in needed and node not in values:
            values[node] = graph.evaluate(node, values)
    return values[graph.nodes[-1]]


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (wide(a.flatten()) * wide(b.flatten())).sum().cpu()


def relative(error: float, size: float) -> float:
    """‖error‖ / ‖size‖ from their squares, NaN where nothing was to be sent."""
    return (error / size) ** 0.5 if size > 0 else float("nan")


def squares(got: Any, expected: Any, silent: Any) -> Tensor:
    """(2,) ‖got − expected‖² and ‖expected − silent‖² over all output tensors."""
    leaves = zip(*map(pytree.tree_leaves, (got, expected, silent)), strict=True)
    pairs = (torch.stack((dot(a - b, a - b), dot(b - c, b - c))) for a, b, c in leaves if isinstance(a, Tensor))
    return sum(pairs, torch.zeros(2, dtype=torch.float64))


def residuals(snn: SpikingNetwork, batch: Batch, T: int) -> dict[str, Tensor]:
    """What is left of each call site's error after T timesteps: the mean output (under delta coding its sum) minus the
    float activation on ``batch``, as a share of the call site's largest float activation there, (B, C, …)."""
    sent: dict[str, Tensor] = {}

    def tap(site: str, output: Tensor) -> None:
        sent[site] = sent.get(site, 0) + output.sum(0)

    snn.run(batch, T, tap=tap)
    count = 1 if snn.coding == "delta" else T
    with torch.inference_mode():
        floats = {node.name: value for node, value in snn.graph.walk(batch) if node.name in sent}
        return {
            site: (total / count - floats[site]) / floats[site].abs().amax().clamp(min=1e-12)
            for site, total in sent.items()
        }


def output_error(snn: SpikingNetwork, batches: Iterable[Batch], t: int) -> float:
    """‖outputs after t timesteps − float outputs‖ / ‖float outputs − silent outputs‖ over all images."""
    total, images = torch.zeros(2, dtype=torch.float64), 0
    for batch in batches:
        size = images_in(batch)
        found = snn.run(batch, t, images=list(range(images, images + size)))[t]
        total += squares(found, snn.graph(batch), silent_outputs(snn.graph, batch))
        images += size
    return relative(*total.tolist())
