"""A method's name and options → a spiking network."""

from typing import Any

import torch

from msat_det.convert.methods import Neurons, find_method, head_sites, parse_options
from msat_det.convert.observe import Observation
from msat_det.errors import InputError
from msat_det.neurons import EARLY
from msat_det.simulate import SpikingNetwork


def spiking_network(
    name: str, options: dict[str, Any], observation: Observation, T: int, seed: int = 0, chunk: int | None = None
) -> SpikingNetwork:
    """Convert an observed network by the method ``name`` with plain option values (see ``methods.Options``).

    T: the timestep that the result is for; methods that do not need it give the same neurons for every T.
    Raises InputError for an unknown method or option, and for a value that does not fit.
    """
    parsed = parse_options(name, options)
    neurons = find_method(name).make(parsed, observation, T)
    snn = SpikingNetwork(observation.graph, neurons, observation.fanout, seed, chunk)
    if parsed.confidence != "none":
        _set_confidence(snn, parsed.confidence, observation)
    return snn


def _set_confidence(snn: SpikingNetwork, confidence: float | str, observation: Observation) -> None:
    """Give the last spiking layer its spike confidence (eq. 18)."""
    from dataclasses import replace

    sites = [node.name for node in head_sites(observation)]
    share = (
        estimate_confidence(snn, sites, observation) if confidence == "estimate" else dict.fromkeys(sites, confidence)
    )
    for name in sites:
        snn.neurons[name] = replace(snn.neurons[name], confidence=share[name])


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


def checked_neurons(neurons: Neurons, observation: Observation) -> Neurons:
    """The same neurons; raises InputError where a threshold is not finite, naming its call site."""
    for name, neuron in neurons.items():
        if not neuron.theta.isfinite().all():
            raise InputError(f"call site {name}: the threshold is not finite: look at the method's options")
    return neurons
