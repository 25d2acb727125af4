"""A traced graph made functional: nothing writes in place, no-ops gone, batch norm folded."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx.node import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops.misc import FrozenBatchNorm2d

from msat_det.base.errors import InputError
from msat_det.graph import ops
from msat_det.graph.batch_size import drop_dead
from msat_det.graph.facts import Output, full_shape
from msat_det.graph.graph import Graph, called, module_of, where
from msat_det.graph.prepare import copied

# Nodes whose output may share memory with their input: writing into one in place changes the other.
_VIEWS = {
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand"),
    *("broadcastto", "tensorsplit", "getitem", "chunk", "split", "unbind", "select", "narrow", "movedim", "detach"),
    *("contiguous", "identity"),
    *("viewas", "reshapeas", "expandas", "unfold", "diagonal", "ravel", "getattr"),
    *("to", "float", "type", "typeas", "pos", "einsum"),  # of what already is as it should be
}


_CONVOLUTION = ("input", "weight", "bias", *ops.GEOMETRY)
_ARGUMENTS = {
    **{f"conv{n}d": _CONVOLUTION for n in (1, 2, 3)},
    "linear": ("input", "weight", "bias"),
    "batchnorm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}


Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
Folds = dict[str, tuple[Layer, _BatchNorm]]


def functionalise(graph: Graph) -> None:
    """Give in-place calls their functional form: later uses of what they overwrote become uses of their result.

    What is written into a part of a tensor, by ``x[index] = …`` or on ``x[index]`` itself, is put into a copy of it.
    """
    memory = _Memory(graph)
    inplace = {
        node for node in graph.nodes if node.op.startswith("call") and ops.is_inplace(node, module_of(graph, node))
    }
    for node in graph.nodes:
        module = module_of(graph, node)
        name = ops.canonical(node, module)
        if node.op.startswith("call") and name in _VIEWS and node.all_input_nodes:
            memory.see(node)
        if node in inplace and name not in ops.NEUTRAL and isinstance(node.args[0], Node):
            memory.write(node, module)


class _Memory:
    """Which nodes share memory. bases: of views. parts: of what is ``base[index]``, these two."""

    def __init__(self, graph: Graph):
        self.calls = graph.module.graph
        self.order: dict[Node, float] = {node: i for i, node in enumerate(graph.nodes)}
        self.bases: dict[Node, Node] = {}
        self.parts: dict[Node, tuple[Node, Any]] = {}

    def see(self, view: Node) -> None:
        source = view.all_input_nodes[0]
        if view.target is operator.getitem:
            if _copies(view.args[1]):
                return
            if source not in self.bases:
                self.parts[view] = source, view.args[1]
        self.bases[view] = self.bases.get(source, source)

    def write(self, node: Node, module: nn.Module | None) -> None:
        """Make a node that writes into its first argument a functional one. Raises InputError."""
        target = node.args[0]
        assert isinstance(target, Node)
        if target.op == "get_attr":
            raise InputError(
                f"{where(node)} writes into the network's own state '{target.target}' in place: write it as a new "
                "tensor (cat, where, add)"
            )
        base = self.bases.get(target, target)
        written = {target, base} if target in self.parts else {target}
        family = {base, *(view for view, of in self.bases.items() if of is base)}
        if any(user is not node and self.order[user] > self.order[node] for a in family - written for user in a.users):
            raise InputError(f"{where(node)} writes into a view in place: use the out-of-place form there")
        later = {user for a in written for user in a.users if self.order[user] > self.order[node]}
        target.replace_all_uses_with(node, later.__contains__)
        _make_functional(node, module)
        if target in self.parts:
            self.put_back(node, *self.parts[target], later)

    def put_back(self, node: Node, base: Node, index: Any, later: set[Node]) -> None:
        """Let later uses of ``base`` see what has been written into a part of it."""
        with self.calls.inserting_after(node):
            whole = self.calls.call_function(ops.assigned, (base, index, node))
        whole.stack_trace, self.order[whole] = node.stack_trace, self.order[node] + 0.5
        base.replace_all_uses_with(whole, later.__contains__)
        self.bases[node], self.parts[node] = whole, (whole, index)


def _copies(index: Any) -> bool:
    """Whether what stands at an index is no view: lists and tensors pick."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list) or (isinstance(part, Node) and part.op == "get_attr") for part in parts)


def _make_functional(node: Node, module: nn.Module | None) -> None:
    if module is not None:
        vars(module)["inplace"] = False
        return
    if node.target is operator.setitem:
        node.target = ops.assigned
    elif "inplace" in node.kwargs:
        node.update_kwarg("inplace", False)
    elif isinstance(node.target, str):  # a method
        node.target = node.target.rstrip("_")
    elif node.target.__module__ == "_operator":
        node.target = getattr(operator, node.target.__name__.removeprefix("i"))  # also right for sizes, plain numbers
    elif node.target.__name__.endswith("_"):
        functional = node.target.__name__.rstrip("_")
        node.target = getattr(torch, functional, None) or getattr(nn.functional, functional)
    else:
        node.args = (*node.args[:-1], False)


def free_views(graph: Graph) -> None:
    """Let ``view`` copy where it must: a simulation keeps images in another memory format than the network's author.

    x.mT and x.T, attributes, become the methods that do the same.
    """
    for node in graph.nodes:
        if node.op == "call_function" and node.target is getattr and node.args[1] in ("mT", "mH"):
            node.op, node.target, node.args = "call_method", "transpose", (node.args[0], -2, -1)
        if node.op == "call_function" and node.target is getattr and node.args[1] == "T":
            node.op, node.target, node.args = "call_method", "t", (node.args[0],)
        if node.op == "call_method" and node.target == "view" and not isinstance(_shape(node), torch.dtype):
            node.target, node.args, node.kwargs = "reshape", (node.args[0], *(node.args[1:] or [_shape(node)])), {}


def _shape(view: Node) -> Any:
    """What a view is to be: the first of its sizes, all of them, or a type."""
    return view.args[1] if len(view.args) > 1 else next(iter(view.kwargs.values()))


def values_and_places(graph: Graph) -> None:
    """Put a node of its own for each of the two tensors that max, min over a dimension and topk give and that is used:
    the values, and their places, which are whole numbers. What topk gives is what lies at its places."""
    for node in graph.nodes:
        name = called(graph, node)
        args, kwargs = node.args, node.kwargs
        if name == "topk":
            made: tuple[Callable, Callable] = ops.topk_values, ops.topk_places
        elif name in ("max", "min"):
            given = dict(zip(("input", "dim", "keepdim"), args, strict=False)) | kwargs
            if not isinstance(given.get("dim"), int):
                continue
            made = (torch.amax, torch.argmax) if name == "max" else (torch.amin, torch.argmin)
            args, kwargs = (given["input"], given["dim"], given.get("keepdim", False)), {}
        else:
            continue
        parts: dict[Node, Any] = {user: user.args[1] for user in node.users if user.target is operator.getitem}
        if not parts or len(parts) != len(node.users):
            continue
        calls: dict[Any, Node] = {}
        for index in sorted(set(parts.values())):
            with graph.module.graph.inserting_after(node):
                calls[index] = graph.module.graph.call_function(made[index], args, kwargs) if calls else node
            calls[index].stack_trace = node.stack_trace
        node.op, node.target, node.args, node.kwargs = "call_function", made[min(calls)], args, kwargs
        if name == "topk" and len(calls) > 1:
            given = dict(zip(("input", "k", "dim"), args, strict=False)) | kwargs
            values, places = calls[0], calls[1]
            values.target, values.args, values.kwargs = torch.gather, (given["input"], given.get("dim", -1), places), {}
            places.append(values)
        for part, index in parts.items():
            part.replace_all_uses_with(calls[index])
            graph.module.graph.erase_node(part)


_UNSET: dict[str, Any] = {"empty": torch.zeros, "emptylike": torch.zeros_like, "newempty": "new_zeros"}


def drop_neutral(graph: Graph) -> None:
    """Take out what does nothing in evaluation; memory that nobody has written is 0, so that every run has the same."""
    for node in graph.nodes:
        name = called(graph, node)
        if name in _UNSET:
            node.target = _UNSET[name]
        if name in ops.NEUTRAL or (name == "getattr" and node.args[1] == "data"):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.module.graph.erase_node(node)


def as_layers(graph: Graph, outputs: Mapping[Node, Output]) -> None:
    """Put layers where convolutions, linear maps and batch norms are called as functions with parameters alone."""
    made: dict[str, str] = {}
    for node in graph.nodes:
        names = _ARGUMENTS.get(ops.canonical(node, None)) if node.op == "call_function" else None
        given = dict(zip(names or (), node.args, strict=False)) | node.kwargs
        parameters = {key: value for key, value in given.items() if isinstance(value, Node) and key != "input"}
        if not names or "weight" not in parameters or any(n.op != "get_attr" for n in parameters.values()):
            continue
        if outputs[node] == Output():  # no image enters, as into what is made of a detector's queries
            continue
        key = str([(name, getattr(value, "target", value)) for name, value in given.items() if name != "input"])
        if key not in made:
            tensors = {key: graph.attribute(n) for key, n in parameters.items()}
            layer = _layer(ops.canonical(node, None), given | tensors, len(full_shape(outputs[node])) - 1)
            if layer is None:
                continue
            origin = str(parameters["weight"].target).removesuffix(".weight")
            made[key] = f"{origin.replace('.', '_')}_layer{len(made)}"
            graph.module.add_submodule(made[key], layer)
        node.op, node.target, node.args, node.kwargs = "call_module", made[key], (given["input"],), {}
    drop_dead(graph.module.graph)


def _layer(name: str, given: dict[str, Any], rank: int) -> nn.Module | None:
    """The layer of a function's arguments; rank: of one image's output."""
    weight, bias = given["weight"], given.get("bias")
    with torch.device("meta"):
        if name == "linear":
            if weight.dim() == 1:  # to one number, which a layer has a dimension for
                return None
            layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        elif name == "batchnorm":
            if given.get("training") or "running_mean" not in given or bias is None or rank > 4:
                return None
            norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
            layer = norm(len(weight), eps=given.get("eps", 1e-5))
            layer.running_mean, layer.running_var = given["running_mean"], given["running_var"]
            layer.num_batches_tracked = torch.zeros((), dtype=torch.long, device=weight.device)
        else:
            conv, groups = getattr(nn, f"Conv{name[-2:]}"), given.get("groups", 1)
            how = {key: given[key] for key in ("stride", "padding", "dilation") if key in given}
            sizes = weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:])
            layer = conv(*sizes, groups=groups, bias=bias is not None, **how)
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer.eval()


def fold_batch_norm(graph: Graph, outputs: Mapping[Node, Output]) -> Folds:
    """Fold BatchNorm and FrozenBatchNorm into the convolution or linear layer right before them, call by call.

    outputs: what the nodes give. Returns what has been folded, by the new layer's name.
    """
    names: dict[tuple[str, str], str] = {}
    folds: Folds = {}
    for node in graph.nodes:
        norm = module_of(graph, node)
        if not isinstance(norm, _BatchNorm | FrozenBatchNorm2d):
            continue
        source = node.all_input_nodes[0]
        layer = module_of(graph, source)
        if norm.running_mean is None or not isinstance(layer, Layer) or len(source.users) > 1:
            continue  # an affine map per channel: it runs as it is
        if isinstance(layer, nn.Linear) and len(full_shape(outputs[source])) > 2:
            continue  # whose channels are positions to the layer
        pair = str(source.target), str(node.target)
        if pair not in names:
            names[pair] = f"{source.target}_folded{len(names)}"
            folds[names[pair]] = layer, _as_batch_norm(norm)
            graph.module.add_submodule(names[pair], fused(*folds[names[pair]]))
        source.target = names[pair]
        node.replace_all_uses_with(source)
        graph.module.graph.erase_node(node)
    return folds


def fused(layer: Layer, norm: _BatchNorm, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A layer that does what it and the batch norm behind it do, calculated in ``dtype``."""
    given = layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
    values: Any = [None if value is None else value.to(dtype) for value in given]
    weight, bias, mean, variance, scale, shift = values
    both = copied(layer, layer.parameters())
    both.weight, both.bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)  # linear, too
    return both


def _as_batch_norm(norm: _BatchNorm | FrozenBatchNorm2d) -> _BatchNorm:
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm
    plain = nn.BatchNorm2d(norm.weight.numel(), eps=norm.eps).eval()
    plain.load_state_dict(
        {k: getattr(norm, k) for k in ("weight", "bias", "running_mean", "running_var")}, strict=False
    )
    return plain.to(norm.weight.device)
