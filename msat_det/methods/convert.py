"""A method's name and options → a spiking network."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from msat_det.base.checks import check_number
from msat_det.graph.graph import Graph, before_output
from msat_det.methods import METHODS, parse_options
from msat_det.methods.layerwise import LayerByLayer, with_bias_over_time
from msat_det.methods.observe import Observation
from msat_det.methods.variants import variant
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import EARLY


@torch.inference_mode(False)
def spiking_network(
    name: str,
    options: dict[str, Any],
    observation: Observation,
    T: int,
    seed: int = 0,
    chunk: int | None = None,
    energy: str = "45nm",
    precision: str = "float32",
) -> SpikingNetwork:
    """Convert an observed network by the method ``name`` with plain option values (see ``options.Options``).

    T: the timestep that the result is for; methods that do not need it give the same neurons for every T. seed, chunk,
    energy, precision: see ``SpikingNetwork``.
    Raises InputError for an unknown method or option, and for a value that does not fit.
    """
    check_number("T", T, 1, whole=True)
    parsed = parse_options(name, options)
    observation = variant(observation, parsed.analog, parsed.spiking_linear, parsed.weights == "int8")
    graph, neurons = observation.graph, METHODS.find(name).make(parsed, observation, T)
    if parsed.correct == "bias-t":
        neurons = with_bias_over_time(neurons, observation, T, getattr(parsed, "images", LayerByLayer.images))
    own = seed, chunk, observation.detector, energy, observation.maxima, precision, T, name
    if parsed.confidence != "none":
        sites = head_sites(graph)
        share: dict[str, Any] = dict.fromkeys(sites, parsed.confidence)
        if parsed.confidence == "estimate":
            share = estimate_confidence(SpikingNetwork(graph, neurons, observation.fanout, *own), sites, observation)
        neurons = neurons | {site: replace(neurons[site], confidence=kept) for site, kept in share.items()}
    snn = SpikingNetwork(graph, neurons, observation.fanout, *own)
    return snn if snn.device.type == "cpu" else snn.to(snn.device)


def head_sites(graph: Graph) -> list[str]:
    """The last spiking layer: every call site whose spikes reach an output without passing another neuron."""
    last = before_output(graph)
    return [node.name for node in graph.sites if node in last]


def estimate_confidence(snn: SpikingNetwork, sites: list[str], observation: Observation) -> dict[str, float]:
    """The share of a call site's early spikes (t < 16) that belong to neurons whose float activation is positive.

    Measured on the calibration images; the paper (section 4.3) does not say where, its published code does on the test
    set.
    """
    right, total = dict.fromkeys(sites, 0.0), dict.fromkeys(sites, 0.0)
    for batch in observation.batches:
        active = {n.name: v > 0 for n, v in observation.graph.walk(batch) if n.name in right}

        def tap(site: str, y: torch.Tensor, active: dict = active) -> None:
            if site in active:
                fired = y != 0
                total[site] += fired.sum().item()
                right[site] += (fired & active[site]).sum().item()

        snn.run(batch, EARLY, tap=tap)
    return {site: right[site] / total[site] if total[site] else 1.0 for site in sites}


@dataclass
class Conversion:
    """One network to simulate: a label's, or for a method that needs T its version for one timestep."""

    label: str
    snn: SpikingNetwork
    record: list[int]
