"""A network run once on images, and what it calls with them written down as a graph.

The network runs as it is, on tensors: its own code decides where it goes, so decorated forwards, variable arguments,
hooks, wrappers and control flow on sizes need nothing of their own. What PyTorch calls with a tensor that an image
enters, or with a size of one, becomes a node; what it calls with parameters alone becomes a constant. A size is a plain
number to the network and stays a node in the graph, so that other numbers and sizes of images go through it: where the
network has decided by one, a guard asks that it would again.

``torch.export`` was tried on fourteen networks, twelve of docs/zoo.md and two of ONNX files: with a free number of
images it refuses three of Ultralytics' detectors, which are recorded here, and takes .9 to 2.8 s for one where this
takes .2 to 1.3. Its graphs have up to five times the nodes, of ATen's operators in place of the layers of a user's.
"""

import copy
import linecache
import math
import operator
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, MutableMapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.node import Node, map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary
from torchvision.ops.misc import FrozenBatchNorm2d

from msat_det.base.errors import InputError
from msat_det.graph import ops
from msat_det.graph.attention import multi_head, scaled_dot_product
from msat_det.graph.graph import TORCH, origins
from msat_det.graph.prepare import HOOKS
from msat_det.graph.regions import WAYS, pooled_boxes
from msat_det.graph.scripted import run_function

# What turns a tensor into something that Python can decide by.
_VALUES = {"__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "item", "tolist", "numpy"}
_VALUES |= {"__array__", "is_nonzero", "equal", "allclose", "nonzero", "argwhere", "unique", "masked_select"}
_MADE = {"new_zeros": torch.zeros, "new_ones": torch.ones, "new_full": torch.full}
_BLANK = {*_MADE, "zeros", "ones", "full", "empty"}  # of an image they take sizes alone
_BLANK |= {"zeros_like", "ones_like", "full_like"}
_OF_SIZES = ops.KNOWN | ops.SIZED | {"empty"}
_FILLING = {"__setitem__", "fill_", "zero_", "copy_"}
_REFLECTED = {"__rsub__": operator.sub, "__rdiv__": operator.truediv, "__rtruediv__": operator.truediv}
_REFLECTED |= {"__rpow__": operator.pow, "__rfloordiv__": operator.floordiv, "__rmatmul__": operator.matmul}
_REFLECTED |= {"__rmod__": operator.mod}
_BINARY = "add sub mul matmul pow gt ge lt le eq ne floordiv mod and or xor".split()
_OPERATORS: dict[tuple[str, int], Callable] = {
    **{(spelling, 2): getattr(operator, f"__{name}__") for name in _BINARY for spelling in (name, f"__{name}__")},
    ("div", 2): operator.truediv,
    ("remainder", 2): operator.mod,
    ("__getitem__", 2): operator.getitem,
    ("__setitem__", 3): operator.setitem,
    ("neg", 1): operator.neg,
    ("__invert__", 1): operator.invert,
}


HERE = str(Path(__file__).parent) + os.sep  # frames of ours are no part of the network
CALLING = nn.Module._call_impl.__code__.co_filename  # frames that call a layer, as its hooks have it


class DecidesByValues(Exception):
    """The network turns a tensor that an image enters into a number."""


def record(net: nn.Module, values: tuple | dict[str, Tensor], names: list[str]) -> tuple[fx.GraphModule, Any]:
    """The graph of what ``net`` does with ``values``, and what came out; constants that it makes are put into ``net``.

    values: its inputs, which it may write into. names: of the placeholders, one an input.
    Raises DecidesByValues, InputError for outputs that are no tensors, and whatever the network raises.
    """
    recorder = _Recorder(net)
    for name, value in zip(names, pytree.tree_leaves(values), strict=True):
        recorder.nodes[value] = recorder.graph.placeholder(name)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), recorder.calls(), recorder:
        outputs = net(**values) if isinstance(values, dict) else net(*values)
    leaves = pytree.tree_leaves(outputs)
    _refuse_objects(leaves, net)
    recorder.graph.output([recorder.argument(leaf) for leaf in leaves])
    recorder.done = True
    module = fx.GraphModule(net, recorder.graph)
    for path in {str(node.target) for node in recorder.graph.nodes if node.op == "call_module"}:
        _without_hooks(module, path)
    return module, outputs


def _without_hooks(net: nn.Module, path: str) -> None:
    """Put a layer without its hooks, whose calls are nodes of their own, in its place; the weights that hooks, or
    people, have made plain tensors of are its parameters."""
    layer = net.get_submodule(path)
    made = {name: nn.Parameter(value, False) for name, value in vars(layer).items() if isinstance(value, Tensor)}
    if not made and not any(vars(layer)[name] for name in HOOKS):
        return
    bare = copy.copy(layer)
    vars(bare).update({name: OrderedDict() for name in HOOKS}, _parameters=OrderedDict(layer._parameters | made))
    for name in made:
        del vars(bare)[name]
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, bare)


def _refuse_objects(outputs: list[Any], net: nn.Module) -> None:
    """Raise InputError for tensors in an object that nobody can look into: they would be constants."""
    for output in outputs:
        if not isinstance(output, Tensor | int | float | complex | str | bytes | torch.dtype | torch.device | None):
            raise InputError(
                f"{type(net).__name__} gives a {type(output).__name__}: give its tensors in a tuple, list or dict, or "
                "make the class known, as torch.export.register_dataclass does"
            )


class _Recorder(TorchFunctionMode):
    """nodes: of tensors that the network still holds. pauses: within a module that is a single node. done: sizes that
    the network has kept for its next run are plain numbers from then on."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.graph = net, fx.Graph()
        self.paths = {id(module): path for path, module in net.named_modules(remove_duplicate=False)}
        known = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
        self.nodes: MutableMapping[Tensor, Node] = WeakIdKeyDictionary()
        self.constants = {_state(tensor): (tensor, path) for path, tensor in reversed(known)}
        self.done = self.pauses = False
        self.blank: set[Node] = set()  # they hold nothing of an image but sizes
        self.found: dict[Node, int] = {}  # sizes that stand as nodes
        self.memo: dict[Any, Node] = {}

    def node_of(self, value: Any) -> Node | None:
        return self.nodes.get(value) if isinstance(value, Tensor) else None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self.pauses:
            return func(*args, **kwargs)
        entering = [node for value in _leaves((args, kwargs)) if (node := self.node_of(value)) is not None]
        sizes = [value for value in _leaves((args, kwargs)) if isinstance(value, Size)]
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        if not entering and not sizes:
            return func(*args, **kwargs)
        if entering and name in _VALUES:
            if not self.blank.issuperset(entering):
                raise DecidesByValues(f"'{name}' of a tensor that an image enters")
            self.fix_sizes(entering)
            return func(*self.settle(args), **self.settle(kwargs))
        if not entering and ops.canonical_name(name) not in _OF_SIZES:
            return func(*self.settle(args), **self.settle(kwargs))
        if name in _FILLING and self.node_of(args[0]) in self.blank and self.blank.issuperset(entering):
            self.forget(args[0])
            return func(*self.settle(args), **self.settle(kwargs))
        if name in ("type_as", "to") and len(args) > 1 and isinstance(args[1], Tensor):  # no image enters by a dtype
            with self:
                return args[0].to(device=args[1].device, dtype=args[1].dtype)
        if func is F.scaled_dot_product_attention:
            with self:
                return scaled_dot_product(*args, **kwargs)
        if func in WAYS.values():
            return self.pooled(name, *args)
        if name == "__getitem__" and self.picks_of_one_row(*args):
            with (
                self
            ):  # what is picked for each image lies in the first dimension, until it is moved behind another one
                return args[0][0][args[1][1:]][None]
        if name in ("shape", "size", "numel", "__len__"):
            return self.size(args[0], name, args[1] if len(args) > 1 else kwargs.get("dim"))
        if name == "_shape_as_tensor":
            return torch.tensor(self.settle(self.size(args[0])))
        result = func(*args, **kwargs)
        if name == "__setitem__":
            self.write(*_target(func, name, args, kwargs), args[0])
        if any(isinstance(value, Tensor) for value in _leaves(result)):
            self.write(*_target(func, name, args, kwargs), result)
            if name in _BLANK or self.blank.issuperset(entering):
                self.blank |= {node for value in _leaves(result) if (node := self.node_of(value)) is not None}
        return result

    def pooled(self, way: str, feature: Tensor, regions: Tensor, *settings: Any) -> Tensor | tuple[Tensor, Tensor]:
        """One of ``regions.WAYS``, by places in place of the numbers of the images, and of fixed regions those of one.

        Raises ValueError where not all images have as many regions, or they do not stand in the images' order.
        """
        each = len(regions) // len(feature)
        own = regions.new_tensor(range(len(feature))).repeat_interleave(each)
        if not each or not torch.equal(regions[:, 0], own):
            raise ValueError("every image has to have as many regions, those of the first image first")
        fixed = regions[:each, 1:]
        with self:
            boxes = regions[:, 1:]
            if self.node_of(regions) is None and torch.equal(boxes, fixed.repeat(len(feature), 1)):
                boxes = fixed
            found = pooled_boxes(feature, boxes, each, way, settings)
        return found if way == "roi_align" else (found, found)

    def picks_of_one_row(self, x: Tensor, index: Any) -> bool:
        """Whether it is ``x[:, places]``, with places that an image enters, of an ``x`` that all images share."""
        if not isinstance(index, tuple) or index[0] != slice(None) or x.shape[0] != 1:
            return False
        return any(isinstance(part, Tensor) and self.node_of(part) is not None for part in index[1:])

    def write(self, op: str, target: Any, args: tuple, kwargs: dict, result: Any) -> None:
        """Note a call and the tensors that it has given."""
        node = self.create(op, target, *_in_order(self.argument(args), self.argument(kwargs)))
        if isinstance(result, Tensor):
            self.nodes[result] = node
        else:
            self.write_parts(result, node)

    def write_parts(self, result: Any, node: Node) -> None:
        for index, part in result.items() if isinstance(result, dict) else enumerate(result):
            if isinstance(part, Tensor):
                self.nodes[part] = self.create("call_function", operator.getitem, (node, index), {})
            elif isinstance(part, list | tuple | dict):
                self.write_parts(part, self.create("call_function", operator.getitem, (node, index), {}))

    def create(self, op: str, target: Any, args: tuple, kwargs: dict) -> Node:
        node = self.graph.create_node(op, target, args, kwargs)
        node.stack_trace = _place()
        return node

    def argument(self, value: Any) -> Any:
        """A value as an argument of a node."""
        return map_aggregate(value, self.leaf)

    def leaf(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.node_of(value) or self.constant(value)
        if isinstance(value, Size):
            return value.node()
        if isinstance(value, torch.device):  # the graph goes where its images go
            return self.once(getattr, next(iter(self.graph.nodes)), "device")
        return value

    def once(self, target: Callable | str, *args: Any) -> Node:
        """The node of a call that gives the same wherever it stands; a text is a method's name."""
        key = target, args
        if key not in self.memo:
            self.memo[key] = self.create(
                "call_method" if isinstance(target, str) else "call_function", target, args, {}
            )
        return self.memo[key]

    def constant(self, tensor: Tensor) -> Node:
        state = _state(tensor)
        if state not in self.constants:
            name = f"_constant{len(self.constants)}"
            self.net.register_buffer(name, tensor.detach().clone())
            self.constants[state] = tensor, name
        path = self.constants[state][1]
        if path not in self.memo:
            self.memo[path] = self.create("get_attr", path, (), {})
        return self.memo[path]

    def size(self, tensor: Tensor, name: str = "shape", dim: int | None = None) -> Any:
        """What a network asks for of a tensor's shape, as ``Size``."""
        node, shape = self.node_of(tensor), tuple(tensor.shape)

        def size(value: int, *call: Any) -> Size:
            def make() -> Node:
                made = self.once(*call)
                self.found[made] = value
                return made

            return Size(value, self, make)

        def of(dim: int) -> Size:
            return size(shape[dim], "size", node, dim)

        if name == "numel":
            return size(math.prod(shape), "numel", node)
        if name == "__len__":
            return of(0)
        return torch.Size(map(of, range(len(shape)))) if dim is None else of(dim)

    def guard(self, target: Callable, args: tuple, found: Any) -> None:
        """Note that the network goes on from what it has found by calling ``target`` with sizes."""
        if not self.done:
            self.once(ops.guard, self.once(target, *map(self.argument, args)), found)

    def settle(self, value: Any) -> Any:
        """Arguments with plain numbers in place of sizes, which are guarded."""
        if isinstance(value, Size):
            return value.plain()
        if isinstance(value, slice):
            return slice(*map(self.settle, (value.start, value.stop, value.step)))
        if isinstance(value, dict):
            return {key: self.settle(part) for key, part in value.items()}
        return type(value)(map(self.settle, value)) if type(value) in (list, tuple, torch.Size) else value

    def forget(self, tensor: Tensor) -> None:
        """Take a blank tensor that the network goes on to write into, and its views, for constants of their size."""
        memory = tensor.untyped_storage().data_ptr()
        for known, node in list(self.nodes.items()):
            if node in self.blank and known.untyped_storage().data_ptr() == memory:
                self.fix_sizes([node])
                del self.nodes[known]

    def fix_sizes(self, nodes: Iterable[Node]) -> None:
        """Guard the sizes that blank tensors are made of."""
        for node in origins(nodes, lambda node: node not in self.found):
            if node in self.found and not self.done:
                self.once(ops.guard, node, self.found[node])

    def calls(self) -> ExitStack:
        """While it is open, modules that the converter knows are single nodes."""

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not is_leaf(module) or id(module) not in self.paths:
                return module._call_impl(*args, **kwargs)
            with patch.object(module, "forward", partial(single, module, module.forward)):  # its hooks stay around it
                return module._call_impl(*args, **kwargs)

        def single(module: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
            if not any(self.node_of(value) for value in _leaves((args, kwargs))):
                return forward(*args, **kwargs)
            before, self.pauses = self.pauses, True  # this recorder alone: the caller may have modes of his own
            try:
                result = forward(*args, **kwargs)
            finally:
                self.pauses = before
            self.write("call_module", self.paths[id(module)], args, kwargs, result)
            return result

        def inline(function: Any, *args: Any, **kwargs: Any) -> Any:
            original = getattr(function, "_torchdynamo_inline", None)  # as it was before scripting
            return run_function(function, args, kwargs) if original is None else original(*args, **kwargs)

        stack = ExitStack()
        stack.enter_context(patch.object(nn.Module, "__call__", call))
        stack.enter_context(patch.object(nn.MultiheadAttention, "forward", multi_head))
        stack.enter_context(patch.object(torch.jit.ScriptFunction, "__call__", inline))
        return stack


class Size(int):
    """A size of a tensor that an image enters: a plain number, and the node that gives it for other images."""

    recorder: _Recorder
    node: Callable[[], Node]

    def __new__(cls, value: int, recorder: _Recorder, node: Callable[[], Node]) -> "Size":
        size = super().__new__(cls, value)
        size.recorder, size.node = recorder, node
        return size

    def plain(self) -> int:
        """The number alone, for good: other images must have the same."""
        value = int.__int__(self)
        if not self.recorder.done:
            self.recorder.once(ops.guard, self.node(), value)
        return value

    def __bool__(self) -> bool:
        return self != 0

    def __hash__(self) -> int:
        return hash(self.plain())

    def __reduce__(self) -> tuple:
        return int, (self.plain(),)


def _arithmetic(target: Callable) -> tuple[Callable, Callable]:
    def forward(self: Size, other: Any, reflected: bool = False) -> Any:
        pair = (other, self) if reflected else (self, other)
        if not isinstance(other, int):
            return target(*(size.plain() if isinstance(size, Size) else size for size in pair))
        number = target(*map(int.__int__, pair))
        return Size(number, self.recorder, lambda: self.recorder.once(target, *map(self.recorder.argument, pair)))

    return forward, lambda self, other: forward(self, other, True)


def _comparison(target: Callable) -> Callable:
    def compare(self: Size, other: Any) -> Any:
        if not isinstance(other, int | float):
            return target(int.__int__(self), other)
        found = target(int.__int__(self), int.__int__(other) if isinstance(other, int) else other)
        self.recorder.guard(target, (self, other), found)
        return found

    return compare


def _plainly(name: str) -> Callable:
    own = getattr(int, name)
    return lambda self, *others: own(self.plain(), *others)


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    _forward, _reflected = _arithmetic(getattr(operator, _name))
    setattr(Size, f"__{_name}__", _forward)
    setattr(Size, f"__r{_name}__", _reflected)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Size, f"__{_name}__", _comparison(getattr(operator, _name)))
for _name in ("int", "float", "index", "truediv", "rtruediv", "pow", "rpow", "divmod", "rdivmod", "neg", "abs"):
    setattr(Size, f"__{_name}__", _plainly(f"__{_name}__"))
for _name in ("round", "ceil", "floor", "trunc", "and", "rand", "or", "ror", "xor", "rxor", "lshift", "rshift"):
    setattr(Size, f"__{_name}__", _plainly(f"__{_name}__"))


def _state(tensor: Tensor) -> tuple[int, int]:
    """What tells a tensor from others, and from itself after something has been written into it."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def _leaves(value: Any) -> list[Any]:
    """What is in lists, tuples, dicts and slices."""
    found: list[Any] = []
    map_aggregate(value, found.append)
    return found


def is_leaf(module: nn.Module) -> bool:
    """Whether a module becomes a single node: one that does what its class says."""
    own = type(module).__module__.startswith("torch.nn.") and ops.canonical_name(type(module).__name__) in ops.KNOWN
    return (own or isinstance(module, FrozenBatchNorm2d)) and "forward" not in vars(module)


def _target(func: Callable, name: str, args: tuple, kwargs: dict) -> tuple[str, Any, tuple, dict]:
    """A call as a node makes it: op, target and arguments."""
    if func.__name__ == "__get__":
        return "call_function", getattr, (args[0], name), {}
    if not getattr(func, "__qualname__", "").startswith(("Tensor.", "TensorBase.")):
        return "call_function", func, args, kwargs
    if name in _MADE:  # of the image it takes type and place alone
        kwargs = {"dtype": args[0].dtype, "device": args[0].device} | kwargs
        return "call_function", _MADE[name], args[1:], kwargs
    if name in _REFLECTED:
        return "call_function", _REFLECTED[name], args[::-1], {}
    if (name, len(args)) in _OPERATORS and not kwargs:
        return "call_function", _OPERATORS[name, len(args)], args, {}
    return "call_method", name, args, kwargs


def _in_order(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """What is called ``input`` and ``other`` before the other arguments, where PyTorch has them in this order."""
    for position, name in enumerate(("input", "other") if "condition" not in kwargs else ()):
        if len(args) == position and name in kwargs:
            args, kwargs = (*args, kwargs[name]), {key: value for key, value in kwargs.items() if key != name}
    return args, kwargs


def _place() -> str:
    """The line of the network that calls, as fx writes it; of a network of PyTorch's own containers the container's."""
    frame: FrameType | None = sys._getframe(1)
    inner = None
    while frame is not None and frame.f_code is not record.__code__:
        path = frame.f_code.co_filename
        if path.startswith("<eval_with_key>"):  # code that fx has made, numbered as it is: what calls that says more
            inner = None
        elif not path.startswith((HERE, TORCH)):
            return _line(frame)
        if path.startswith(f"{TORCH}nn") and path != CALLING:
            inner = inner or frame
        frame = frame.f_back
    return "" if inner is None else _line(inner)


def _line(frame: FrameType) -> str:
    path, number = frame.f_code.co_filename, frame.f_lineno
    return f'File "{path}", line {number}, in {frame.f_code.co_name}\n    {linecache.getline(path, number).strip()}'
