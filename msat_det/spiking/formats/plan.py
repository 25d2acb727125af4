"""A plan: the neurons of a network's call sites as plain data, which can be kept, looked at and used again.

A file holds, by call site, its channels and the fields of its ``Neuron`` as JSON, tensors beside it as safetensors. It
holds no function: a neuron's activation is the call site's own, and the file's must be the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.base.reader import LONGEST, Reader
from msat_det.graph.channels import channels
from msat_det.graph.facts import facts
from msat_det.graph.graph import Graph
from msat_det.graph.ops import Activation
from msat_det.spiking.formats.archive import finite, read_archive, write_archive
from msat_det.spiking.neurons import Neuron

KIND = "plan"
_PREFIX = "neurons/"  # of the tensors' names, before the call site's


@dataclass(frozen=True)
class Plan:
    """What a plan file holds. notes: what its maker wrote beside the neurons (method, options, …), any JSON."""

    path: Path
    sites: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: dict[str, Any]

    def neurons(self, graph: Graph) -> dict[str, Neuron]:
        """The neurons for ``graph``. Raises InputError where its call sites are not those that the plan is for."""
        try:
            return read_neurons(self.sites, self.tensors, graph)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error


def save_plan(path: str | Path, neurons: dict[str, Neuron], graph: Graph, **notes: Any) -> None:
    """Write the neurons of a network's call sites into one small file. notes: JSON to keep with them."""
    sites, tensors = write_neurons(neurons, graph)
    write_archive(path, KIND, {"sites": sites, "notes": notes}, tensors)


def load_plan(path: str | Path) -> Plan:
    """Read a plan. Raises InputError for a file that is none; the neurons are checked when a network is there."""
    document, tensors = read_archive(path, KIND)
    sites, notes = document.get("sites"), document.get("notes")
    if not isinstance(sites, dict) or not isinstance(notes, dict) or len(document) > 2:
        raise InputError(f"{path}: a plan holds sites and notes: save it again")
    return Plan(Path(path), sites, tensors, notes)


def write_neurons(neurons: Mapping[str, Neuron], graph: Graph) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The neurons of ``graph``'s call sites as JSON values and named tensors, which ``read_neurons`` reads.

    Raises InputError for a neuron that could not be read again.
    """
    sites: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for node in graph.sites:
        if node.name in neurons:
            fields_ = _plain(neurons[node.name], f"{_PREFIX}{node.name}", tensors)
            size = channels(facts(node).image_shape, neurons[node.name].axis)
            sites[node.name] = {"channels": size, "neuron": fields_}
    read_neurons(sites, tensors, graph)
    return sites, tensors


def read_neurons(sites: Any, tensors: dict[str, Tensor], graph: Graph) -> dict[str, Neuron]:
    """The neurons that ``write_neurons`` wrote, one for each call site of ``graph``.

    Raises InputError, naming call site and field, for call sites, channels or activations that are not the graph's, an
    unknown or missing field, and a value of the wrong type, shape or range.
    """
    if not isinstance(sites, dict):
        raise InputError(f"the call sites are {show(sites)}: give a mapping of their names")
    known = {node.name: node for node in graph.sites}
    for name in sites:
        if name not in known:
            raise InputError(f"call site {show(name)} is not the network's: use the plan of this network")
    neurons = {}
    for name, node in known.items():
        entry = sites.get(name)
        if not isinstance(entry, dict) or set(entry) != {"channels", "neuron"}:
            raise InputError(f"no neuron for call site {name}: use the plan of this network")
        size = _channels(name, facts(node).image_shape, entry["neuron"])
        if type(entry["channels"]) is not int or entry["channels"] != size:
            wrong = show(entry["channels"])
            raise InputError(f"call site {name} has {size} channels, the plan {wrong}: use the plan of this network")
        try:
            neurons[name] = _Reader(name, tensors, size, facts(node).pointwise).read(Neuron, entry["neuron"])
        except InputError as error:
            raise InputError(f"call site {name}: {error}") from error
    return neurons


def _channels(site: str, shape: tuple[int, ...], neuron: Any) -> int:
    """How many channels a neuron counts; a file from before axes were known has them in dimension 1."""
    axis = neuron.get("axis", 1) if isinstance(neuron, dict) else 1
    if axis is not None and not (type(axis) is int and 1 <= axis <= len(shape)):
        raise InputError(f"call site {site}: axis is {show(axis)}: use the plan of this network")
    return channels(shape, axis)


def _plain(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; a tensor as its shape, itself going into ``tensors``; ∞ as the word."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"shape": list(value.shape)}
    if is_dataclass(value):
        kept = (f.name for f in fields(value) if f.name != "fn")
        return {key: _plain(getattr(value, key), f"{name}.{key}", tensors) for key in kept}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item, name, tensors) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class _Reader(Reader):
    """Reads one call site's neuron."""

    def __init__(self, site: str, tensors: dict[str, Tensor], channels: int, activation: Activation):
        super().__init__("its neuron")
        self.site, self.tensors, self.channels, self.activation = site, tensors, channels, activation

    def match(self, kind: Any, value: Any, name: str) -> tuple[bool, Any]:
        if kind is Tensor:
            matches = isinstance(value, dict) and set(value) == {"shape"}
            return matches, self._tensor(value["shape"], name) if matches else None
        if kind is Activation:
            if value != _plain(self.activation, "", {}):
                raise self.wrong(
                    name, value, f"the network's own, {self.activation.name}: use the plan of this network"
                )
            return True, self.activation
        return super().match(kind, value, name)

    def _tensor(self, shape: Any, name: str) -> Tensor:
        """The tensor that stands for a field: () or one number a channel; of a bias also such a row for each t."""
        key = f"{_PREFIX}{self.site}.{name}"
        tensor = self.tensors.get(key)
        if tensor is None or list(tensor.shape) != shape or not self._fits(name, *tensor.shape):
            found = None if tensor is None else tuple(tensor.shape)
            raise self.wrong(name, found, f"a tensor of shape () or ({self.channels},)")
        return finite(key, tensor)

    def _fits(self, name: str, *shape: int) -> bool:
        over_time = name == "bias" and len(shape) == 2 and 0 < shape[0] <= LONGEST
        return shape in ((), (self.channels,)) or (over_time and shape[1] == self.channels)
