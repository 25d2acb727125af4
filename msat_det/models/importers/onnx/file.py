"""An ONNX file as plain values: its nodes, its tensors, the sizes of its inputs. Nothing in it is trusted."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.base.files import bytes_of, inside, is_file, show
from msat_det.data.catalogue import get_with

OPSETS = range(9, 24)
MAX_NODES = 20_000
MAX_ELEMENTS = 1 << 28  # of one tensor
_NEEDED = "ONNX files need the package onnx: pip install 'msat-det[onnx]'"


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """One node. inputs: names, "" for one that is left out. attributes: numbers, texts, tensors and lists of them."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]

    def __str__(self) -> str:
        called = f" {show(self.name)}" if self.name else ""
        return f"node{called} ({self.op}, which gives {show((self.outputs or [''])[0])})"


@dataclass(frozen=True)
class OnnxFile:
    """A file's graph. inputs: {name: size of each dimension, None where it is free}, None for what is no float.
    tensors: weights and constants. notes: what its exporter says of it."""

    path: Path
    opset: int
    inputs: dict[str, list[int | None] | None]
    outputs: list[str]
    nodes: list[OnnxNode]
    tensors: dict[str, Tensor]
    notes: dict[str, str] = field(default_factory=dict)


def read_onnx(path: str | Path) -> OnnxFile:
    """Read an ONNX file, and what it keeps in other files of its folder.

    Raises InputError for a missing package, and for anything but a sound model of a version that is known.
    """
    path = Path(path)
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError:
        raise InputError(f"{path}: {_NEEDED}") from None
    try:
        model = onnx.ModelProto.FromString(bytes_of(path))
    except OSError as error:
        mend = (not is_file(Path(path)) and get_with(Path(path))) or "give a .onnx file"
        raise InputError(f"{path}: not readable as ONNX ({error.strerror or error}); {mend}") from None
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path}: not readable as ONNX ({str(error)[:200]}); give a whole .onnx file") from None
    notes = {_text(entry.key): _text(entry.value) for entry in model.metadata_props}
    return replace(_Reading(path, model.graph, _opset(path, model)).file(), notes=notes)


def _opset(path: Path, model: Any) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions or not model.graph.node:
        raise InputError(f"{path}: holds no ONNX network; give a whole .onnx file")
    if versions[0] not in OPSETS:
        raise InputError(
            f"{path}: its operators are those of opset {versions[0]}; export it with one from {OPSETS[0]} to "
            f"{OPSETS[-1]}"
        )
    return versions[0]


class _Reading:
    def __init__(self, path: Path, graph: Any, opset: int):
        self.path, self.graph, self.opset = path, graph, opset
        self.others: dict[str, bytes] = {}  # files beside this one that hold its tensors

    def file(self) -> OnnxFile:
        if len(self.graph.node) > MAX_NODES:
            raise InputError(f"{self.path}: has {len(self.graph.node)} nodes; at most {MAX_NODES} are read")
        if self.graph.sparse_initializer:
            raise InputError(f"{self.path}: holds sparse weights; export it with dense ones")
        tensors = {_text(entry.name): self.tensor(entry, _text(entry.name)) for entry in self.graph.initializer}
        given = {_text(entry.name): entry for entry in self.graph.input}  # weights may be among them
        inputs = {name: self.sizes(entry) for name, entry in given.items() if name not in tensors}
        nodes = [self.node(entry) for entry in self.graph.node]
        outputs = [_text(entry.name) for entry in self.graph.output]
        if not inputs or not outputs:
            raise InputError(f"{self.path}: has no input or no output; give a whole .onnx file")
        return OnnxFile(self.path, self.opset, inputs, outputs, in_order(nodes), tensors)

    def sizes(self, entry: Any) -> list[int | None] | None:
        kind = entry.type.tensor_type
        if kind.elem_type not in (1, 10, 11, 16):  # float, float16, double, bfloat16
            return None
        return [size.dim_value if size.dim_value > 0 else None for size in kind.shape.dim]

    def node(self, entry: Any) -> OnnxNode:
        op, name, domain = map(_text, (entry.op_type, entry.name, entry.domain))
        op = op if domain in ("", "ai.onnx") else f"{domain}::{op}"
        node = OnnxNode(op, name, list(map(_text, entry.input)), list(map(_text, entry.output)), {})
        for attribute in entry.attribute:
            node.attributes[_text(attribute.name)] = self.attribute(attribute, node)
        return node

    def attribute(self, attribute: Any, node: OnnxNode) -> Any:
        fields = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}
        if attribute.type not in fields:
            return attribute  # a graph within the graph, of an operator that nobody knows here
        value = getattr(attribute, fields[attribute.type])
        if attribute.type == 4:
            return self.tensor(value, f"value of {node}")
        if attribute.type == 3:
            return _text(value)
        return value if isinstance(value, int | float) else [v if isinstance(v, int | float) else "" for v in value]

    def tensor(self, entry: Any, name: str) -> Tensor:
        """A tensor of the file: floats as float32, whole numbers as int64."""
        from onnx import numpy_helper

        if not all(0 <= size <= MAX_ELEMENTS for size in entry.dims) or math.prod(entry.dims) > MAX_ELEMENTS:
            raise InputError(f"{self.path}: tensor {show(name)} of {show(list(entry.dims))} is far too large")
        try:
            if entry.data_location == entry.EXTERNAL:
                self.fetch(entry)
            values = numpy_helper.to_array(entry)
            return as_tensor(values)
        except (ValueError, TypeError, LookupError, OSError) as error:
            raise InputError(f"{self.path}: tensor {show(name)} is not readable ({str(error)[:200]})") from None

    def fetch(self, entry: Any) -> None:
        """Put what lies in another file of the folder into the tensor itself."""
        keys = {_text(item.key): _text(item.value) for item in entry.external_data}
        location, offset = keys.get("location", ""), int(keys.get("offset", "0"))
        if location not in self.others:
            self.others[location] = bytes_of(inside(self.path.parent, location))
        end = offset + int(keys["length"]) if "length" in keys else len(self.others[location])
        if not 0 <= offset <= end <= len(self.others[location]):
            raise ValueError(f"{location} has no bytes {offset} to {end}")
        entry.raw_data = self.others[location][offset:end]
        entry.data_location = entry.DEFAULT
        del entry.external_data[:]


def _text(value: str | bytes) -> str:
    """A name; protobuf gives bytes where it is no UTF-8."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def as_tensor(values: np.ndarray) -> Tensor:
    """An array as float32, int64 or bool. Raises ValueError for one of any other kind."""
    if values.dtype.kind == "b":
        return torch.from_numpy(values.copy())
    if values.dtype.kind in "iu":
        return torch.from_numpy(values.astype(np.int64))
    if values.dtype.kind == "f" or values.dtype.name == "bfloat16":
        return torch.from_numpy(values.astype(np.float32))
    raise ValueError(f"its type is {values.dtype}: only floats and whole numbers can be read")


def in_order(nodes: list[OnnxNode]) -> list[OnnxNode]:
    """Every node behind those that it reads, which float16 converters put last; in a damaged file as many as can be."""
    makers = {name: i for i, node in enumerate(nodes) for name in node.outputs if name}
    left = [{makers[name] for name in node.inputs if name in makers} for node in nodes]
    readers: dict[int, list[int]] = {}
    for i, found in enumerate(left):
        for maker in found:
            readers.setdefault(maker, []).append(i)
    ready, order = [i for i, found in enumerate(left) if not found], []
    while ready:  # the first in the file that can be
        order.append(first := heappop(ready))
        for i in readers.get(first, ()):
            left[i].discard(first)
            if not left[i]:
                heappush(ready, i)
    return [nodes[i] for i in order] + [nodes[i] for i, found in enumerate(left) if found]


def channels_first(file: OnnxFile) -> OnnxFile:
    """The file with images (n, 3, h, w) where its own are (n, h, w, 3), as those made from TensorFlow have them; grey
    ones alike."""
    inputs, own = dict(file.inputs), {}
    for name, sizes in file.inputs.items():
        if sizes is not None and len(sizes) == 4 and sizes[3] in (1, 3) and sizes[1] not in (sizes[3], 3):
            inputs[name], own[name] = [sizes[i] for i in (0, 3, 1, 2)], f"{name}, channels last"
    nodes = [OnnxNode("Transpose", "", [name], [last], {"perm": [0, 2, 3, 1]}) for name, last in own.items()]
    nodes += [replace(node, inputs=[own.get(name, name) for name in node.inputs]) for node in file.nodes]
    return replace(file, inputs=inputs, nodes=nodes)


def needed(file: OnnxFile, outputs: Iterable[str]) -> list[OnnxNode]:
    """The nodes that lead to these tensors, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(file.nodes):
        if wanted.intersection(node.outputs):
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]
