"""A spiking network in one file, run elsewhere with the same results to the bit: graph, weights, neurons, decoder.

The file is safetensors with a JSON document in its header (``archive``). Loading runs no code from it, and no network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.graph import ops
from msat_det.graph.facts import amend, facts
from msat_det.graph.fanout import FanOut, as_spikes_lie, is_event_source
from msat_det.graph.graph import Graph
from msat_det.models.detector import Detector
from msat_det.spiking.energy import is_known
from msat_det.spiking.formats.archive import finite, read_archive, write_archive
from msat_det.spiking.formats.detector import read_detector, write_detector
from msat_det.spiking.formats.graph import read_graph, write_graph
from msat_det.spiking.formats.plan import read_neurons, write_neurons
from msat_det.spiking.schedule import Schedule, Setup

KIND = "network"
_FORM = 1  # raised when older files can no longer be read
_KEYS = {"form", "graph", "sites", "fanout", "detector", "seed", "chunk", "energy"}
_LATER: dict[str, Any] = {"T": 32, "method": ""}  # keys that older files lack, and what they stand for then


@dataclass(frozen=True)
class Saved:
    """What a file holds. maxima, T, method: see ``SpikingNetwork``; no maxima where it was made without them."""

    setup: Setup
    detector: Detector | None
    maxima: Mapping[str, Tensor]
    T: int
    method: str


def write_network(path: str | Path, net: Saved) -> None:
    """Write a network. A detector of ours goes with it; a user's own class doesn't, and is handed in at loading.

    Raises InputError for what can't be saved: an operation or layer that ``formats.known`` does not list, layers with
    hooks, outputs in classes of your own, an energy table that is a file.
    """
    setup = net.setup
    if not is_known(setup.energy):
        raise InputError(
            f"energy is {setup.energy}, a file: set snn.energy to a table by name, and the file after loading"
        )
    graph, tensors = write_graph(setup.graph)
    sites, thresholds = write_neurons(setup.neurons, setup.graph)
    fanout, reach = _write_fanout(setup.fanout)
    stored, priors = write_detector(net.detector)
    seen = {f"maximum/{name}": maximum for name, maximum in net.maxima.items()}
    document = {
        **{"form": _FORM, "graph": graph, "sites": sites, "fanout": fanout, "detector": stored},
        **{"seed": setup.seed, "chunk": setup.chunk, "energy": setup.energy, "T": net.T, "method": net.method},
    }
    write_archive(path, KIND, document, tensors | thresholds | reach | priors | seen)


def read_network(path: str | Path, detector: Detector | None = None) -> Saved:
    """What ``write_network`` wrote.

    detector: in place of the saved one. Raises InputError for anything but a whole, sound file.
    """
    document, tensors = read_archive(path, KIND)
    try:
        return _read(document, tensors, detector)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read(document: dict[str, Any], tensors: dict[str, Tensor], detector: Detector | None) -> Saved:
    document = _LATER | document
    if document.get("form") != _FORM or set(document) != _KEYS | set(_LATER):
        raise InputError(f"a saved network has form {_FORM} and {', '.join(sorted(_KEYS))}: save it with this version")
    if not _is_whole(document["seed"], -(2**40)) or not (document["chunk"] is None or _is_whole(document["chunk"], 1)):
        raise InputError("seed or chunk is no sensible whole number: save it again")
    if not isinstance(document["energy"], str) or not is_known(document["energy"]):
        raise InputError(f"energy is {show(document['energy'])}, no table that msat-det knows: save it again")
    T, method = document["T"], document["method"]
    if not _is_whole(T, 1) or not (isinstance(method, str) and method.isprintable() and len(method) <= 100):
        raise InputError("T or method is none that a network has: save it again")
    graph = read_graph(document["graph"], tensors)
    neurons = read_neurons(document["sites"], tensors, graph)
    fanout = _read_fanout(document["fanout"], tensors, graph)
    if not any("axis" in entry for entry in document["graph"]["nodes"]):  # files from before hold the neurons' alone
        for node in graph.sites:
            amend(node, axis=neurons[node.name].axis)
    if detector is None and document["detector"] is not None:
        sizes = graph.sizes
        shapes = [sizes[name] for name in graph.inputs]
        detector = read_detector(document["detector"], tensors, graph.module, shapes)
    setup = Setup(graph, Schedule(graph), neurons, fanout, document["seed"], document["chunk"], document["energy"])
    return Saved(setup, detector, _read_maxima(tensors, graph), T, method)


def _read_maxima(tensors: dict[str, Tensor], graph: Graph) -> dict[str, Tensor]:
    if not any(name.startswith("maximum/") for name in tensors):
        return {}
    maxima = {}
    for node in graph.sites:
        maximum = tensors.get(f"maximum/{node.name}")
        if maximum is None or maximum.shape != (facts(node).channels,):
            raise InputError(f"maximum of call site {node.name} is missing or not of its channels: save it again")
        maxima[node.name] = finite(node.name, maximum)
    return maxima


def _is_whole(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 2**40


def _write_fanout(fanout: FanOut) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Counts as JSON; each map of reach as a tensor, which is one row where it is the same along a dimension."""
    named = {key: {n.name: value for n, value in getattr(fanout, key).items()} for key in ("macs", "analog")}
    tensors = {f"reach/{node.name}": _narrowed(reach) for node, reach in fanout.spikes.items()}
    return named | {"once": fanout.once, "evaluations": fanout.evaluations}, tensors


def _narrowed(x: Tensor) -> Tensor:
    for dim in range(x.dim()):
        first = x.narrow(dim, 0, 1) if x.shape[dim] > 1 else x
        x = first if bool((x == first).all()) else x
    return x


def _read_fanout(values: Any, tensors: dict[str, Tensor], graph: Graph) -> FanOut:
    if not isinstance(values, dict) or set(values) != {"macs", "analog", "once", "evaluations"}:
        raise InputError("fanout has macs, analog, once and evaluations: save it again")
    macs, analog = (_counts(values[key], key, graph) for key in ("macs", "analog"))
    once, evaluations = (_count(values[key], key) for key in ("once", "evaluations"))
    spikes = {}
    for node in graph.nodes:
        reach = tensors.get(f"reach/{node.name}")
        if reach is None:
            continue
        shape = facts(node).shape or ()
        fits = is_event_source(node) and reach.dim() == len(shape)
        if not fits or any(have not in (1, want) for have, want in zip(reach.shape, shape, strict=True)):
            raise InputError(f"fanout of node '{node.name}' does not fit its shape: save it again")
        if reach.dtype != torch.float32 or not finite(node.name, reach).ge(0).all():
            raise InputError(f"fanout of node '{node.name}' holds no counts: save it again")
        spikes[node] = as_spikes_lie(reach.expand(shape))
    return FanOut(macs, spikes, analog, float(once), int(evaluations))


def _counts(values: Any, key: str, graph: Graph) -> dict[Node, Any]:
    nodes = {node.name: node for node in graph.nodes if facts(node).op in ops.MULTIPLYING}
    if not isinstance(values, dict) or not set(values) <= set(nodes):
        raise InputError(f"fanout.{key} counts for a node that does not multiply: save it again")
    return {nodes[name]: _count(value, f"{key} of node '{name}'") for name, value in values.items()}


def _count(value: Any, name: str) -> int | float:
    if type(value) not in (int, float) or not 0 <= value < 2**62:
        raise InputError(f"fanout: {name} is {show(value)}: save it again")
    return value
