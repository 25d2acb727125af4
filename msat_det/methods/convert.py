"""A method's name and options → a spiking network."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from msat_det.base.checks import check_number
from msat_det.graph.graph import Graph, before_output
from msat_det.methods import find_method, parse_options
from msat_det.methods.layerwise import LayerByLayer, with_bias_over_time
from msat_det.methods.observe import Observation
from msat_det.methods.variants import variant
from msat_det.spiking.network import SpikingNetwork
from msat_det.spiking.neurons import EARLY


@torch.inference_mode(False)
def spiking_network(
    name: str, options: dict[str, Any], observation: Observation, T: int, seed: int = 0, chunk: int | None = None
) -> SpikingNetwork:
    """Convert an observed network by the method ``name`` with plain option values (see ``options.Options``).

    T: the timestep that the result is for; methods that do not need it give the same neurons for every T.
    Raises InputError for an unknown method or option, and for a value that does not fit.
    """
    check_number("T", T, 1, whole=True)
    parsed = parse_options(name, options)
    observation = variant(observation, parsed.analog, parsed.spiking_linear, parsed.weights == "int8")
    neurons = find_method(name).make(parsed, observation, T)
    if parsed.correct == "bias-t":
        neurons = with_bias_over_time(neurons, observation, T, getattr(parsed, "images", LayerByLayer.images))
    given: dict[str, Any] = {"detector": observation.detector, "maxima": observation.maxima, "T": T, "method": name}
    snn = SpikingNetwork(observation.graph, neurons, observation.fanout, seed, chunk, **given)
    if parsed.confidence != "none":
        _set_confidence(snn, parsed.confidence, observation)
    return snn if snn.device.type == "cpu" else snn.to(snn.device)


def _set_confidence(snn: SpikingNetwork, confidence: float | str, observation: Observation) -> None:
    """Give the last spiking layer its spike confidence (eq. 18)."""
    sites = head_sites(observation.graph)
    share: dict[str, Any] = dict.fromkeys(sites, confidence)
    if confidence == "estimate":
        share = estimate_confidence(snn, sites, observation)
    for name, probability in share.items():
        snn.neurons[name] = replace(snn.neurons[name], confidence=probability)


def head_sites(graph: Graph) -> list[str]:
    """The last spiking layer: every call site whose spikes reach an output without passing another neuron."""
    last = before_output(graph)
    return [node.name for node in graph.sites if node in last]


def estimate_confidence(snn: SpikingNetwork, sites: list[str], observation: Observation) -> dict[str, float]:
    """The share of a call site's early spikes (t < 16) that belong to neurons whose float activation is positive.

    Measured on the calibration images, where the paper measures it on the test set (section 4.3).
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
