"""Trace the dense part of a network into a graph whose every node has a verdict (DESIGN §4).

``trace`` gives a functional ``torch.fx`` graph with batch norm folded. Every node carries in ``node.meta``: ``kind``
(``ops.Kind``), ``op`` (canonical name), ``source`` (file:line), ``shape`` (of one image's output, without the batch
dimension; None for a value that no image enters; ``parts`` the shapes of a tuple's elements), ``dtype``; and spiking
nodes ``activation`` (``ops.Activation``).
"""

import copy
import inspect
import itertools
import operator
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.node import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torchvision.ops.misc import FrozenBatchNorm2d

from msat_det.base.errors import InputError
from msat_det.graph import ops
from msat_det.graph.inputs import AS_IT_TAKES, MISFIT, Batch, as_input, kind, name_of, reason
from msat_det.graph.ops import Kind
from msat_det.graph.prepare import prepared

_TOLERANCE = 1e-4
_TORCH = str(Path(torch.__file__).parent) + os.sep  # its frames stand between a network's line and its operation
# Nodes whose output may share memory with their input: writing into one in place changes the other.
_VIEWS = {
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand"),
    *("getitem", "chunk", "split", "unbind", "select", "narrow", "movedim", "detach", "contiguous", "identity"),
    *("viewas", "reshapeas", "expandas", "unfold", "diagonal", "ravel", "getattr"),
    *("to", "float", "type", "typeas", "pos", "einsum"),  # of what already is as it should be
}


@dataclass
class Graph:
    """A traced network.

    module: runs it in float. inputs: names of its placeholders in the order of a batch. structure: how the leaves of
    its output stand in the network's own tuples, lists and dicts.
    """

    module: fx.GraphModule
    inputs: list[str]
    structure: pytree.TreeSpec

    @property
    def nodes(self) -> list[Node]:
        return list(self.module.graph.nodes)

    @property
    def sites(self) -> list[Node]:
        """The call sites of pointwise activations, in execution order: each becomes a population of neurons."""
        return [node for node in self.nodes if node.meta["kind"] is Kind.SPIKING]

    def copy(self) -> "Graph":
        """A graph of its own on the same weights; its nodes keep names and verdicts."""
        return Graph(fx.GraphModule(self.module, copy.deepcopy(self.module.graph)), self.inputs, self.structure)

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one image at each input, as the graph was measured with."""
        return {node.target: node.meta["shape"] for node in self.nodes if node.op == "placeholder"}

    def at_size(self, batch: Batch) -> "Graph":
        """A copy that is measured with images of another size. Raises InputError where they don't go through it."""
        graph = self.copy()
        try:
            measure(graph, batch)
        except InputError as error:
            sizes = ", ".join(map(str, self.sizes.values()))
            raise InputError(
                f"the calibration's images are {sizes}, and of another size they do not go through: {error}"
            ) from error
        for node, known in zip(graph.sites, self.sites, strict=True):
            if _channels(node) != _channels(known):
                raise InputError(
                    f"{where(node)} has a channel for each position: give images of the calibration's size"
                )
        return graph

    @property
    def device(self) -> torch.device | None:
        """Where its weights lie; None for a network without any."""
        return device_of(self.module)

    def bind(self, batch: Batch) -> dict[str, Tensor]:
        """A batch (tensor, tuple or dict of tensors) as {placeholder name: tensor}: floats in float32, on ``device``.

        Raises InputError when the number, the names, the ranks or the types of the inputs do not fit, and for what is
        no batch.
        """
        values = [batch] if isinstance(batch, Tensor) else batch
        if not isinstance(values, dict | list | tuple):
            raise InputError(f"the batch is {kind(batch)}: give a tensor (B, …), or a tuple or dict for several inputs")
        if isinstance(values, dict):
            if set(values) != set(self.inputs):
                raise InputError(f"the network's inputs are {self.inputs}, the batch gives {sorted(map(str, values))}")
        elif len(values) != len(self.inputs):
            raise InputError(
                f"the network takes {len(self.inputs)} inputs {self.inputs}, the batch has {len(values)}: give one "
                "tensor (B, …) an input, and no labels"
            )
        else:
            values = dict(zip(self.inputs, values, strict=True))
        ready = {name: as_input(f"input '{name}'", value, self.device) for name, value in values.items()}
        for node in self.nodes:
            if node.op == "placeholder" and "dtype" in node.meta:
                _check_kind(node, ready[node.target])
        if len({len(value) for value in ready.values()}) > 1:
            raise InputError(f"the inputs hold {[len(v) for v in ready.values()]} images: give as many for each")
        return ready

    def call(self, node: Node, args: tuple, kwargs: dict) -> Any:
        """Evaluate one node on values."""
        if node.op == "call_module":
            return self.module.get_submodule(node.target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)

    def evaluate(self, node: Node, values: Mapping[Node, Any]) -> Any:
        """The float value of a node that is no input, from those of the nodes before it."""
        if node.op == "get_attr":
            return self.attribute(node)
        if node.op == "output":
            return self.restructure(fx.map_arg(node.args[0], values.__getitem__))
        return self.call(node, fx.map_arg(node.args, values.__getitem__), fx.map_arg(node.kwargs, values.__getitem__))

    def attribute(self, node: Node) -> Any:
        """The value of a get_attr node."""
        value = self.module
        for part in node.target.split("."):
            value = getattr(value, part)
        return value

    def restructure(self, outputs: Any) -> Any:
        """Output values in fx's containers → the network's own structure."""
        return pytree.tree_unflatten(pytree.tree_leaves(outputs), self.structure)

    def __reduce_ex__(self, protocol: int) -> NoReturn:
        raise InputError(
            "a traced network is neither pickled nor copied as it is: keep a converted one by snn.save(path)"
        )

    def settled(self, nodes: Iterable[Node], batch: Batch) -> dict[Node, Any]:
        """The values of ``nodes``, which need no others, with images as simulations keep them (channels last)."""
        inputs, values = self.bind(batch), {}
        for node in nodes:
            if node.op == "placeholder":
                value = inputs[node.target]
                if value.dim() == 4:
                    value = value.contiguous(memory_format=torch.channels_last)
            else:
                value = self.evaluate(node, values)
            values[node] = value
        return values

    def walk(self, batch: Batch) -> Iterator[tuple[Node, Any]]:
        """Run the float graph node by node: yields (node, value); values are freed after their last use."""
        inputs, env, last = self.bind(batch), {}, last_uses(self.nodes)
        for node in self.nodes:
            try:
                value = inputs[node.target] if node.op == "placeholder" else self.evaluate(node, env)
            except MISFIT as error:
                raise InputError(f"{where(node)} fails on this batch ({reason(error)}): {AS_IT_TAKES}") from error
            yield node, value
            env[node] = value
            for done in last[node]:
                env.pop(done, None)

    def __call__(self, batch: Batch) -> Any:
        """The float outputs for a batch."""
        with torch.inference_mode():
            *_, (_, outputs) = self.walk(batch)
        return outputs


def _channels(site: Node) -> int:
    axis = site.meta.get("axis", 1)
    return 1 if axis is None else site.meta["shape"][axis - 1]


def _check_kind(placeholder: Node, value: Tensor) -> None:
    shape, dtype = placeholder.meta["shape"], placeholder.meta["dtype"]
    if value.dim() - 1 != len(shape) or value.dtype != dtype:
        raise InputError(
            f"input '{placeholder.target}' is {kind(value)}, where the first images were {shape} of {name_of(dtype)}: "
            f"{AS_IT_TAKES}"
        )


def device_of(net: nn.Module) -> torch.device | None:
    weight = next(itertools.chain(net.parameters(), net.buffers()), None)
    return None if weight is None else weight.device


def closure(start: Iterable[Node], onward: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """All nodes that ``onward``, called again and again, leads to from ``start``, those included."""
    found, stack = set(), list(start)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(onward(node))
    return found


def before_output(graph: Graph) -> set[Node]:
    """The output, the last call sites before it, and all that lies between them: no other neuron's spikes do."""
    return closure([graph.nodes[-1]], lambda n: () if n.meta["kind"] is Kind.SPIKING else n.all_input_nodes)


def elements(node: Node) -> int:
    """The number of elements of a node's output for one image: of a call site, its neurons."""
    return torch.Size(node.meta["shape"]).numel()


def last_uses(nodes: list[Node]) -> dict[Node, list[Node]]:
    """For each node, the earlier nodes that nothing after it needs."""
    seen: set[Node] = set()
    last: dict[Node, list[Node]] = {}
    for node in reversed(nodes):
        last[node] = [used for used in node.all_input_nodes if used not in seen]
        seen.update(node.all_input_nodes)
    return last


@torch.inference_mode(False)
def trace(net: nn.Module, batch: Batch) -> Graph:
    """Trace ``net`` (left as it is; a copy is traced, see ``prepare.prepared``) and give every node its verdict.

    batch: one calibration batch, a tensor (B, …) or a tuple or dict of them; two images or more make the check that
        images of a batch do not mix a sharper one.
    Raises InputError, naming node, source line and mend, for control flow that depends on data, in-place writes into
    views or shared state, unknown operations, networks that mix the images of a batch or do not run on this one, and
    when the traced graph's outputs differ from the network's by more than 1e-4 of their largest magnitude.
    """
    net = prepared(net)
    inputs, values, constants = _bind_signature(net, (batch,) if isinstance(batch, Tensor) else batch)
    expected = _float_outputs(net, values)
    module = _symbolic_trace(net, constants)
    graph = Graph(module, inputs, pytree.tree_structure(expected))
    _drop_defaults(graph)
    _functionalise(graph)
    _free_views(graph)
    _drop_neutral(graph)
    _fold_batch_norm(graph)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    measure(graph, values)
    classify(graph)
    with torch.inference_mode():
        _check_batch(graph, values)
        _check_outputs(graph, values, expected)
    return graph


def _bind_signature(net: nn.Module, batch: Any) -> tuple[list[str], tuple | dict, dict[str, Any]]:
    """The names of the inputs that a batch gives, these as the network takes them, and the other defaults."""
    signature = inspect.signature(net.forward)
    parameters = signature.parameters
    try:
        bound = signature.bind(**batch) if isinstance(batch, dict) else signature.bind(*batch)
    except TypeError as error:
        raise InputError(f"the batch does not fit {type(net).__name__}.forward: {error}") from error
    given = [name for name in parameters if name in bound.arguments]
    variadic = [n for n, p in parameters.items() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if set(variadic) & set(given):
        raise InputError(f"{type(net).__name__}.forward takes *{variadic[0]}: give its inputs names of their own")
    defaults = {n: p.default for n, p in parameters.items() if n not in given and n not in variadic}
    device = device_of(net)
    ready = {name: as_input(f"input '{name}'", bound.arguments[name], device) for name in given}
    return given, ready if isinstance(batch, dict) else tuple(ready.values()), defaults


def _float_outputs(net: nn.Module, values: tuple | dict) -> Any:
    own = pytree.tree_map(torch.clone, values)  # the network may write into its input
    try:
        with torch.inference_mode():
            return net(**own) if isinstance(own, dict) else net(*own)
    except MISFIT as error:
        given = ", ".join(f"{tuple(x.shape[1:])} {name_of(x.dtype)}" for x in pytree.tree_leaves(values))
        raise InputError(
            f"{type(net).__name__} does not run on images of {given} ({reason(error)}): {AS_IT_TAKES}"
        ) from error


class _Tracer(fx.Tracer):
    """buffers: whether they are followed, too, as methods of theirs that take sizes of images need it."""

    record_stack_traces = True

    def __init__(self, buffers: bool):
        super().__init__()
        self.proxy_buffer_attributes = buffers

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, FrozenBatchNorm2d) or super().is_leaf_module(module, name)


def _symbolic_trace(net: nn.Module, constants: dict[str, Any]) -> fx.GraphModule:
    first: Exception | None = None
    for buffers in (False, True):
        try:
            return fx.GraphModule(net, _Tracer(buffers).trace(net, concrete_args=constants or None))
        except (*MISFIT, NameError) as error:
            first = first or error
    frames = [f for f in traceback.extract_tb(first.__traceback__) if not f.filename.startswith(_TORCH)]
    place = f"{frames[-1].filename}:{frames[-1].lineno}: `{frames[-1].line}`"
    mend = "what depends on the data's values or shape belongs outside the dense part, in preprocess or decode"
    if "instead found type 'Proxy'" in str(first):
        mend = "a scripted function (torch.jit.script) can't be traced: call the plain one"
    raise InputError(f"the dense part does not trace at {place} ({reason(first)}): {mend}") from first


def where(node: Node) -> str:
    """``node 'name' (file:line: code)`` for messages."""
    return f"node '{node.name}' ({node.meta.get('source') or _source(node)})"


def _source(node: Node) -> str:
    lines = (node.stack_trace or "").splitlines()
    frames = [(i, line.strip()) for i, line in enumerate(lines) if line.strip().startswith("File ")]
    # the user's line; of a network made of torch's own containers the container's, not the tracer's
    for folder in (f"{_TORCH}fx{os.sep}", _TORCH):
        frames = [(i, line) for i, line in frames if not line.split('"')[1].startswith(folder)] or frames
    if not frames:
        return "no source line"
    i, frame = frames[-1]
    path, line = frame.split('"')[1], frame.split("line ")[1].split(",")[0]
    code = lines[i + 1].strip() if i + 1 < len(lines) else ""
    return f"{path}:{line}: {code}"


def _module(graph: Graph, node: Node) -> nn.Module | None:
    return graph.module.get_submodule(node.target) if node.op == "call_module" else None


def _functionalise(graph: Graph) -> None:
    """Give in-place calls their functional form: later uses of what they overwrote become uses of their result."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    inplace = {
        node for node in graph.nodes if node.op.startswith("call") and ops.is_inplace(node, _module(graph, node))
    }
    bases: dict[Node, Node] = {}
    for node in graph.nodes:
        module = _module(graph, node)
        name = ops.canonical(node, module)
        if node.op.startswith("call") and name in _VIEWS and node.all_input_nodes:
            bases[node] = bases.get(node.all_input_nodes[0], node.all_input_nodes[0])
        if node not in inplace or name in ops.NEUTRAL:
            continue
        target = node.args[0]
        if not isinstance(target, Node):
            continue
        if name == "setitem" or target.op == "get_attr":
            what = "a part of a tensor" if name == "setitem" else f"the network's own state '{target.target}'"
            raise InputError(f"{where(node)} writes into {what} in place: write it as a new tensor (cat, where, add)")
        base = bases.get(target, target)
        family = [base, *(view for view, of in bases.items() if of is base)]
        if any(user is not node and order[user] > order[node] for a in family if a is not target for user in a.users):
            raise InputError(f"{where(node)} writes into a view in place: use the out-of-place form there")
        target.replace_all_uses_with(node, lambda user, after=node: order[user] > order[after])
        _make_functional(graph, node, module)


def _make_functional(graph: Graph, node: Node, module: nn.Module | None) -> None:
    if module is not None:
        module.inplace = False
        return
    if "inplace" in node.kwargs:
        node.update_kwarg("inplace", False)
    elif node.op == "call_method":
        node.target = node.target.rstrip("_")
    elif node.target.__module__ == "_operator":
        node.target = getattr(operator, node.target.__name__.removeprefix("i"))  # also right for sizes, plain numbers
    elif node.target.__name__.endswith("_"):
        functional = node.target.__name__.rstrip("_")
        node.target = getattr(torch, functional, None) or getattr(nn.functional, functional)
    else:
        node.args = (*node.args[:-1], False)


def _free_views(graph: Graph) -> None:
    """Let ``view`` copy where it must: a simulation keeps images in another memory format than the network's author."""
    for node in graph.nodes:
        if node.op == "call_method" and node.target == "view" and not isinstance(node.args[1], torch.dtype):
            node.target = "reshape"


def _drop_defaults(graph: Graph) -> None:
    """Remove the placeholders (and fx's checks) of parameters that keep their defaults: those are part of the trace."""

    def erase(node: Node) -> None:
        for user in list(node.users):
            erase(user)
        graph.module.graph.erase_node(node)

    for node in graph.nodes:
        if node.op == "placeholder" and node.target not in graph.inputs:
            erase(node)


def _drop_neutral(graph: Graph) -> None:
    for node in graph.nodes:
        name = ops.canonical(node, _module(graph, node)) if node.op.startswith("call") else ""
        neutral = name in ops.NEUTRAL or (name == "getattr" and node.args[1] == "data")
        if neutral:
            node.replace_all_uses_with(node.all_input_nodes[0])
        if neutral or name == "assert":
            graph.module.graph.erase_node(node)


def _fold_batch_norm(graph: Graph) -> None:
    """Fold BatchNorm and FrozenBatchNorm into the convolution or linear layer right before them, call by call."""
    folded: dict[tuple[str, str], str] = {}
    for node in graph.nodes:
        norm = _module(graph, node)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm | FrozenBatchNorm2d):
            continue
        source = node.args[0]
        layer = _module(graph, source)
        if (
            norm.running_mean is None
            or not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
            or len(source.users) > 1
        ):
            continue  # an affine map per channel: it runs as it is
        pair = (source.target, node.target)
        if pair not in folded:
            fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
            folded[pair] = f"{source.target}_folded{len(folded)}"
            graph.module.add_submodule(folded[pair], fuse(layer, _as_batch_norm(norm)))
        source.target = folded[pair]
        node.replace_all_uses_with(source)
        graph.module.graph.erase_node(node)


def _as_batch_norm(norm: nn.Module) -> nn.Module:
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm
    plain = nn.BatchNorm2d(norm.weight.numel(), eps=norm.eps).eval()
    plain.load_state_dict(
        {k: getattr(norm, k) for k in ("weight", "bias", "running_mean", "running_var")}, strict=False
    )
    return plain


def classify(graph: Graph) -> None:
    """Give every node its verdict, but for shapes. Raises InputError, naming the node, for an unknown operation."""
    data: set[Node] = set()  # nodes whose value depends on an input tensor
    masks: set[Node] = set()  # those of them that come to true or false, or to whole numbers: no sum of them is one
    for node in graph.nodes:
        node.meta["source"] = _source(node)
        if node.op in ("placeholder", "get_attr", "output"):
            node.meta["op"] = node.op
            if node.op == "placeholder":
                data.add(node)
            kinds = {"placeholder": Kind.INPUT, "get_attr": Kind.SHAPE, "output": Kind.OUTPUT}
            node.meta["kind"] = kinds[node.op]
            continue
        module = _module(graph, node)
        name = node.meta["op"] = ops.canonical(node, module)
        entering = [n for n in node.all_input_nodes if n in data]
        node.meta["kind"] = kind = _verdict(graph, node, name, module, entering)
        if kind is not Kind.SHAPE:
            data.add(node)
            if is_mask(node):
                masks.add(node)
            if not masks.isdisjoint([node, *entering]) or _condition(node, name) in data:
                node.meta["kind"] = kind = Kind.DIFFERENTIAL
        if kind is Kind.SPIKING:
            node.meta["activation"] = ops.activation_of(name, node, module, _on_first_input(graph, node))


def _verdict(graph: Graph, node: Node, name: str, module: nn.Module | None, entering: list[Node]) -> Kind:
    known = module is None or type(module).__module__.startswith(("torch.nn", "torchvision.ops"))
    if not entering or (known and name in ops.SHAPE) or (name == "getattr" and node.args[1] in ops.SHAPE_ATTRIBUTES):
        return Kind.SHAPE
    if known and name in ops.POINTWISE:
        if any(n.op != "get_attr" for n in node.all_input_nodes if n is not entering[0]):
            raise InputError(f"{where(node)}: the other arguments of '{name}' must be numbers or parameters")
        return Kind.SPIKING
    if known and (name in ops.LINEAR or (name in ops.LINEAR_IN_ONE and _enters_once(node, name, entering))):
        return Kind.LINEAR
    if known and name in ops.DIFFERENTIAL:
        return Kind.DIFFERENTIAL
    raise InputError(
        f"{where(node)}: operation '{name}' is not known to the converter: replace it, move it out of the dense part, "
        "or add it to msat_det/graph/ops.py"
    )


def is_mask(node: Node) -> bool:
    """Whether it gives no real numbers: in a simulation that is a value by itself, never a part of a sum."""
    return not node.meta.get("dtype", torch.float32).is_floating_point


def mean_inputs(node: Node, moving: set[Node]) -> list[Node]:
    """The inputs on whose running means a differential node acts: those that change in time, masks apart."""
    return [n for n in node.all_input_nodes if n in moving and n.meta["kind"] is not Kind.SHAPE and not is_mask(n)]


def _condition(node: Node, name: str) -> Any:
    """What a ``where`` or ``masked_fill`` chooses by."""
    if name not in ops.CHOICES:
        return None
    position = 0 if name == "where" and node.op == "call_function" else 1
    return node.args[position] if len(node.args) > position else node.kwargs.get("condition", node.kwargs.get("mask"))


def _enters_once(node: Node, name: str, entering: list[Node]) -> bool:
    times = pytree.tree_leaves((node.args, node.kwargs)).count(entering[0])
    return len(entering) == times == 1 and (name != "truediv" or node.args[0] is entering[0])


def _on_first_input(graph: Graph, node: Node) -> Callable[[Tensor], Tensor]:
    """A call site's function of its input alone; parameters that it reads from the graph are looked up once."""

    def fixed(value: Any) -> Any:
        return fx.map_arg(value, graph.attribute)

    if node.op == "call_module":
        return graph.module.get_submodule(node.target)
    rest, kwargs = fixed(node.args[1:]), fixed({k: v for k, v in node.kwargs.items() if k != "input"})
    return lambda x: graph.call(node, (x, *rest), kwargs)


def measure(graph: Graph, batch: Batch) -> None:
    """Note what every node gives for one image of this batch: shape, parts and dtype. Raises InputError."""
    moving: set[Node] = set()
    with torch.inference_mode():
        for node, value in graph.walk(batch):
            node.meta["shape"] = node.meta["parts"] = None
            if node.op == "placeholder" or (node.op != "output" and not moving.isdisjoint(node.all_input_nodes)):
                moving |= note(node, value)


def note(node: Node, value: Any) -> set[Node]:
    """Note the shapes and the dtype that a node gives; an empty set if it gives nothing that an image enters."""
    tensors = [part for part in pytree.tree_leaves(value) if isinstance(part, Tensor)]
    for part in tensors:
        node.meta["shape"], node.meta["dtype"] = tuple(part.shape[1:]), part.dtype
    if tensors and not isinstance(value, Tensor):
        node.meta["parts"] = tuple(tuple(part.shape[1:]) for part in tensors)
    return {node} if tensors else set()


def _check_batch(graph: Graph, batch: Any) -> None:
    """Make sure that each image of a batch goes its own way through every node, and none comes to NaN."""
    # other images behind these ones: neither a statistic over the batch nor another order of it leaves these alone
    more = pytree.tree_map(lambda x: torch.cat((x, (x / 2).to(x.dtype))), batch)
    size = pytree.tree_leaves(batch)[0].shape[0]
    for (node, once), (_, both) in zip(graph.walk(batch), graph.walk(more), strict=True):
        if node.meta["kind"] in (Kind.SHAPE, Kind.OUTPUT):
            continue
        for a, b in zip(pytree.tree_leaves(once), pytree.tree_leaves(both), strict=True):
            if not isinstance(a, Tensor):
                continue
            if a.is_floating_point() and _is_broken(node, a):
                raise InputError(
                    f"{where(node)} gives NaN or infinite values: check the weights and the calibration images"
                )
            alike = a.dim() > 0 and a.shape[0] == size and b.shape[0] == 2 * size
            if not alike or _difference(a, b[:size]) > _TOLERANCE:
                raise InputError(f"{where(node)} mixes the images of a batch: keep dimension 0 for images alone")
        if not isinstance(once, Tensor) and node.meta["kind"] is Kind.DIFFERENTIAL:
            raise InputError(f"{where(node)} gives several tensors: take a form that gives one (amax, say, for max)")


def _is_broken(node: Node, value: Tensor) -> bool:
    """NaN anywhere, or infinity where only weights can have made it; a mask may well hold -inf."""
    return bool(value.isnan().any() or (node.meta["op"] in ops.MULTIPLYING and value.isinf().any()))


def _check_outputs(graph: Graph, batch: Any, expected: Any) -> None:
    wanted, got = pytree.tree_leaves(expected), pytree.tree_leaves(graph(batch))
    for a, b in zip(wanted, got, strict=True):
        if isinstance(a, Tensor) and not _difference(a, b) <= _TOLERANCE:
            raise InputError(
                f"the traced graph's outputs differ from the network's by {_difference(a, b):.1e} of their magnitude "
                "(1e-4 allowed): is there randomness, state or autocast in the dense part?"
            )


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference in units of the largest finite magnitude; equal infinities count as equal."""
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0
    a, b = a.double(), b.double()  # of masks there is no difference
    scale = a[a.isfinite()].abs().max().clamp(min=1e-12) if a.isfinite().any() else torch.tensor(1.0)
    return (
        (a - b).abs().nan_to_num(posinf=float("inf"), nan=0.0 if _same_infinities(a, b) else float("inf")).max() / scale
    ).item()


def _same_infinities(a: Tensor, b: Tensor) -> bool:
    return bool((a.isinf() == b.isinf()).all() and not a.isnan().any() and not b.isnan().any())
