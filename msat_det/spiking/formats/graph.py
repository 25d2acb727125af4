"""A traced graph as plain data and back: nodes, layers by their class's arguments, tensors (``spiking.formats.known``).

Reading calls nothing but what ``known`` lists, on PyTorch's meta device, where no value is computed or allocated: it
finds every node's shape anew, and with it whatever does not fit.
"""

import keyword
import math
import warnings
from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from msat_det.base.errors import InputError
from msat_det.base.files import one_line, show
from msat_det.graph import ops
from msat_det.graph.classify import classify
from msat_det.graph.edits import keep_analog
from msat_det.graph.facts import Facts, Output, amend, facts, output_of, parts_of
from msat_det.graph.graph import Graph, is_entered, module_of
from msat_det.graph.inputs import MISFIT
from msat_det.graph.ops import Activation, Kind
from msat_det.models.checkpoint import DTYPES
from msat_det.spiking.formats import known
from msat_det.spiking.formats.archive import finite
from msat_det.spiking.formats.values import LARGEST, decode, encode
from msat_det.spiking.kernels.layout import memory_format

# What layers, functions and methods raise on arguments that do not fit, and fx, which writes the graph down as Python
# before values are checked.
_MISFIT = (*MISFIT, NameError, SyntaxError, MemoryError, RecursionError)
_MOST_NODES = 10_000
_MOST_PARTS = 100_000  # elements of all sequences that nodes give
_MOST_ELEMENTS = 1 << 29  # of one node's output, for the images of _BATCH
_BATCH = 3  # images at reading: a number that no network has built in


def write_graph(graph: Graph) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A graph as JSON values and named tensors. Raises InputError for a node or layer that can't be saved."""
    names, layers, tensors = _parts(graph)
    leaves = pytree.tree_unflatten(range(graph.structure.num_leaves), graph.structure)
    inputs = {name: facts(node) for name, node in graph.placeholders.items()}
    document = {
        "inputs": [[name, list(inputs[name].image_shape), encode(inputs[name].dtype, name)] for name in graph.inputs],
        "outputs": encode(leaves, "output"),
        "layers": layers,
        "nodes": [_entry(node, names) for node in graph.nodes],
        "analog": [n.name for n in graph.nodes if facts(n).kind is Kind.DIFFERENTIAL and facts(n).op in ops.POINTWISE],
        "channels_last": [name for name, x in tensors.items() if memory_format(x) is torch.channels_last],
    }
    again = read_graph(document, tensors)
    for node, copy in zip(graph.nodes, again.nodes, strict=True):
        if _kept(node) != _kept(copy):
            raise InputError(f"node '{node.name}' would not be the same after loading: it can't be saved")
    return document, tensors


def _parts(graph: Graph) -> tuple[dict[str, str], dict[str, dict], dict[str, Tensor]]:
    """Of the layers and constants that are used: their paths in the module with their names in the file, the layers'
    arguments, and all tensors."""
    names: dict[str, str] = {}
    layers: dict[str, dict] = {}
    tensors: dict[str, Tensor] = {}
    for node in graph.nodes:
        path = str(node.target)
        if node.op == "call_module" and path not in names:
            layer, names[path] = graph.layer(node), f"layer{len(names)}"
            arguments = {key: encode(value, node.name) for key, value in known.layer_arguments(layer).items()}
            layers[names[path]] = {"class": type(layer).__name__, "arguments": arguments}
            tensors |= {f"{names[path]}.{key}": value for key, value in layer.state_dict().items()}
        elif node.op == "get_attr" and path not in names:
            names[path] = f"constant{len(names)}"
            tensors[names[path]] = graph.attribute(node)
    return names, layers, tensors


def _entry(node: fx.Node, names: dict[str, str]) -> dict[str, Any]:
    """A node as JSON values. names: of ``_parts``."""
    target, told = str(node.target), facts(node)
    if node.op == "call_function":
        target = known.function_name(node)
    elif node.op in ("call_module", "get_attr"):  # an input or a method may be called as a layer is
        target = names[target]
    return {
        **{"name": node.name, "op": node.op, "target": target},
        "args": [encode(value, node.name) for value in node.args],
        "kwargs": {key: encode(value, node.name) for key, value in node.kwargs.items()},
        **({"joined": list(told.joined)} if told.joined else {}),
        **{"axis": encode(told.axis, node.name), "source": told.source[:500]},
    }


def read_graph(document: Any, tensors: dict[str, Tensor]) -> Graph:
    """The graph that ``write_graph`` wrote. Raises InputError for anything that is not a sound one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # layers of size 0 warn
            return _Reading(document, tensors).graph()
    except _MISFIT as error:
        raise InputError(f"the saved network does not fit together ({one_line(error)[:200]}): save it again") from error


class _Reading:
    def __init__(self, document: dict[str, Any], tensors: dict[str, Tensor]):
        self.document, self.tensors = document, tensors
        self.nodes: dict[str, fx.Node] = {}
        self.parts = 0

    def graph(self) -> Graph:
        entries = self.document["nodes"]
        if not isinstance(entries, list) or not 0 < len(entries) <= _MOST_NODES:
            raise InputError(f"a saved network has 1 to {_MOST_NODES} nodes")
        layers = {name: self._layer(entry) for name, entry in self.document["layers"].items()}
        constants = {name: tensor for name, tensor in self.tensors.items() if name.isidentifier()}
        graph = fx.Graph()
        for entry in entries:
            self._node(graph, entry, layers, constants)
        attributes = layers | {name: tensor.to("meta") for name, tensor in constants.items()}
        used = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
        module = fx.GraphModule({name: attributes[name] for name in used}, graph).eval()
        inputs = {name: (shape, DTYPES[dtype["dtype"]]) for name, shape, dtype in self.document["inputs"]}
        found = Graph(module, list(inputs), self._structure())
        outputs, several = (self._infer(found, inputs, images) for images in (1, _BATCH))
        self._fill(module, {name: layers[name] for name in used & layers.keys()}, constants)
        self._judge(found, outputs)
        for node in found.nodes:
            _check_images(node, several)
        return found

    def _layer(self, entry: dict) -> nn.Module:
        if entry["class"] not in known.LAYERS:
            raise InputError(f"layer {show(entry['class'])} is none that msat-det knows")
        arguments = {key: decode(value, self.nodes) for key, value in entry["arguments"].items()}
        with torch.device("meta"):
            return known.LAYERS[entry["class"]](**arguments).eval().requires_grad_(False)

    def _node(self, graph: fx.Graph, entry: dict, layers: dict, constants: dict) -> None:
        name, op, target = entry["name"], entry["op"], entry["target"]
        allowed = {
            "placeholder": [target] if _is_name(target) else [],
            "get_attr": constants,
            "call_function": known.FUNCTIONS,
            "call_method": known.METHODS,
            "call_module": layers,
            "output": ["output"],
        }
        if not _is_name(name) or target not in allowed[op]:
            raise InputError(f"node {show(name)} calls {show(target)}, which msat-det does not know")
        args = tuple(decode(value, self.nodes) for value in entry["args"])
        kwargs = {key: decode(value, self.nodes) for key, value in entry["kwargs"].items()}
        if not all(map(_is_name, kwargs)) or (op == "placeholder" and (args or kwargs)):
            raise InputError(f"node {show(name)} has arguments that it can't have")
        if (op == "call_method" or target == "getattr") and not (args and isinstance(args[0], fx.Node)):
            raise InputError(f"node {show(name)} calls a method or reads an attribute of no other node")
        if target == "getattr" and args[1:] not in {(attribute,) for attribute in ops.SHAPE_ATTRIBUTES}:
            raise InputError(
                f"node {show(name)} reads an attribute other than {', '.join(sorted(ops.SHAPE_ATTRIBUTES))}"
            )
        target = known.FUNCTIONS[target] if op == "call_function" else target
        node = graph.create_node(op, target, args, kwargs, name)
        if node.name != name:
            raise InputError(f"node {show(name)} stands twice, or bears a name that is taken")
        self.nodes[name] = node

    def _structure(self) -> pytree.TreeSpec:
        leaves, structure = pytree.tree_flatten(decode(self.document["outputs"], {}))
        if leaves != list(range(len(leaves))):
            raise InputError("the outputs are not numbered in their order")
        return structure

    def _infer(self, graph: Graph, inputs: dict[str, tuple], images: int) -> dict[fx.Node, Output]:
        """Run the graph on the meta device: what each node gives for so many images."""
        env: dict[fx.Node, Any] = {}
        given = [str(n.target) for n in graph.nodes if n.op == "placeholder"]
        ends = [n.op for n in graph.nodes].index("output") == len(graph.nodes) - 1
        if not given or sorted(given) != sorted(inputs) or not ends:
            raise InputError("the inputs and outputs are not those of its nodes")
        outputs: dict[fx.Node, Output] = {}
        with torch.device("meta"), torch.inference_mode():
            for node in graph.nodes:
                if node.op == "placeholder":
                    shape, dtype = inputs[str(node.target)]
                    value = torch.empty(images, *shape, dtype=dtype)
                elif node.op.startswith("call"):
                    args, kwargs = fx.map_arg(node.args, env.__getitem__), fx.map_arg(node.kwargs, env.__getitem__)
                    layer = module_of(graph, node)
                    op = ops.canonical(node, layer)
                    known.check_call(node, op, args, kwargs)
                    if op in ops.CONVOLUTIONS:
                        known.check_convolution(node, op, layer, args, kwargs)
                    value = graph.call(node, args, kwargs)
                else:
                    value = graph.evaluate(node, env)
                env[node] = value
                self._bound(node, value)
                outputs[node] = output_of(value) if is_entered(node, outputs) else Output()
        return outputs

    def _bound(self, node: fx.Node, value: Any) -> None:
        for part in pytree.tree_leaves(value):
            if isinstance(part, Tensor) and part.numel() > _MOST_ELEMENTS:
                raise InputError(f"node '{node.name}' gives a tensor of shape {tuple(part.shape)}, which is too large")
            if isinstance(part, int) and abs(part) > LARGEST:
                raise InputError(f"node '{node.name}' gives a number that is too large")
        self.parts += len(value) if isinstance(value, tuple | list) else 0
        if self.parts > _MOST_PARTS:
            raise InputError(f"node '{node.name}' gives too many parts")

    def _fill(self, module: fx.GraphModule, layers: dict[str, nn.Module], constants: dict[str, Tensor]) -> None:
        """Put the file's tensors in place of the meta device's."""
        last = set(self.document["channels_last"])

        def ready(name: str) -> Tensor:
            tensor = self.tensors[name]
            tensor = finite(name, tensor) if tensor.is_floating_point() or tensor.is_complex() else tensor
            return tensor.contiguous(memory_format=torch.channels_last) if name in last else tensor

        for name, layer in layers.items():
            own = layer.state_dict()
            for key, wanted in own.items():
                tensor = self.tensors.get(f"{name}.{key}")
                if tensor is None or _kind(tensor) != _kind(wanted):
                    got = "none" if tensor is None else f"one of shape {tuple(tensor.shape)}"
                    raise InputError(
                        f"{name}.{key}: the layer needs a tensor of shape {tuple(wanted.shape)}, the file has {got}"
                    )
            layer.load_state_dict({key: ready(f"{name}.{key}") for key in own}, assign=True)
            layer.requires_grad_(False)
        for name in constants.keys() & {n.target for n in module.graph.nodes}:
            setattr(module, name, ready(name))

    def _judge(self, graph: Graph, outputs: dict[fx.Node, Output]) -> None:
        """The verdicts, as ``trace`` and ``methods.variants`` gave them."""
        classify(graph, outputs)
        for node, entry in zip(graph.nodes, self.document["nodes"], strict=True):
            amend(node, source=one_line(entry["source"])[:500], axis=_axis(node, entry))
            amend(node, joined=tuple(one_line(name)[:300] for name in entry.get("joined", [])))
            if node.target is ops.identity:
                amend(node, kind=Kind.SPIKING, activation=Activation("identity", ops.identity))
            if facts(node).kind is Kind.DIFFERENTIAL and facts(node).parts is not None:
                raise InputError(f"node '{node.name}' gives several tensors")
        for name in self.document["analog"]:
            keep_analog(graph, name)
        for node in graph.nodes:
            if facts(node).kind not in (Kind.SHAPE, Kind.OUTPUT) and facts(node).shape is None:
                raise InputError(f"node '{node.name}' gives no tensor")
        if not graph.sites or not all(facts(node).shape for node in graph.sites):
            raise InputError("the network has no call site, or one without channels")


def _axis(node: fx.Node, entry: dict) -> Any:
    """The dimension of a node's channels: of files from before they were written None, but where neurons tell it."""
    axis, shapes = decode(entry.get("axis"), {}), facts(node).parts or (facts(node).shape or (),)
    for one, shape in zip(axis if isinstance(axis, tuple) else [axis] * len(shapes), shapes, strict=True):
        if not (one is None or (type(one) is int and 1 <= one <= len(shape))):
            raise InputError(f"node '{node.name}' has its channels along {show(one)}, no dimension of its output")
    return axis


def _kept(node: fx.Node) -> Facts:
    """What a file must give back; a function of your own has no equal."""
    return replace(facts(node), source="", activation=None)


def _check_images(node: fx.Node, several: dict[fx.Node, Output]) -> None:
    """Refuse what does not give as many times one image's output for ``several`` images, or gives it elsewhere than in
    the first rows, where others need it there."""
    known = facts(node)
    needed = node.all_input_nodes if known.kind is Kind.OUTPUT else [node]
    needed = [n for n in needed if facts(n).kind is not Kind.SHAPE]
    linear = known.kind is Kind.LINEAR and known.op not in ops.MULTIPLYING
    for n in needed:
        one, more = parts_of(facts(n)), parts_of(several[n])
        whole = [_BATCH * rows * math.prod(shape) for rows, shape in one] == [
            rows * math.prod(shape) for rows, shape in more
        ]
        first = more == [(_BATCH * rows, shape) for rows, shape in one]
        if not (first or (linear and whole)):
            raise InputError(f"node '{n.name}' mixes the images of a batch")


def _kind(tensor: Tensor) -> tuple[torch.Size, bool]:
    return tensor.shape, tensor.is_floating_point()


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and len(name) < 300 and name.isidentifier() and not keyword.iskeyword(name)
