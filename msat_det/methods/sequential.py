"""Converting one call site after the other, each on what the spiking layers before it send."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.graph.facts import is_site
from msat_det.graph.graph import elements
from msat_det.methods.observe import Observation
from msat_det.spiking.engine import Run
from msat_det.spiking.kernels import Scan
from msat_det.spiking.neurons import Neuron
from msat_det.spiking.schedule import Schedule, Setup

MEMORY_BYTES = 1 << 29


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
    graph = observation.graph
    with torch.inference_mode():
        run = Run(Setup(graph, Schedule(graph), {}, observation.fanout), batch, decide=decide)
        run.advance(0, T)
    return run.neurons


def toward_activations(
    observation: Observation, images: int, T: int, decide: Callable[[Node, Tensor, Tensor], Neuron]
) -> dict[str, Neuron]:
    """``layer_by_layer``, whose ``decide`` also gets what the float network gives there on these images, (B, …)."""
    floats = activations(observation, images)  # which runs as far as the spiking one does: no more is in memory

    def decide_with_goal(node: Node, currents: Tensor) -> Neuron:
        goal = next(goal for site, goal in floats if site is node)
        return decide(node, currents, goal[: currents.shape[1]])  # of a network too large for memory fewer are run

    return layer_by_layer(observation, images, T, decide_with_goal)


def activations(observation: Observation, images: int) -> Iterator[tuple[Node, Tensor]]:
    """What the float network's call sites give on the first calibration images, one after the other in their order."""
    return ((node, value) for node, value in observation.graph.walk(observation.first(images)) if is_site(node))


def alone(neuron: Neuron, currents: Tensor, with_output: bool = True) -> Scan:
    """One population on its own, at rest; ``currents`` as ``decide`` gets them."""
    return Scan(neuron, currents[0], currents.new_zeros(currents.shape[2:]), with_output)


def run_alone(neuron: Neuron, currents: Tensor, T: int) -> Tensor:
    """The output sum (B, C, …) of such a population over T timesteps."""
    scan = alone(neuron, currents)
    scan.run(currents, 0, T)
    return scan.output
