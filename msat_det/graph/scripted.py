"""A scripted or traced module (``torch.jit``) as one that is recorded like any other: its program runs in Python.

What TorchScript compiles is a program of ATen's operators, branches and loops. It is gone through node by node, with
PyTorch's own function for every operator, so that sizes and plain numbers decide as they do in a network of Python. The
line of the network that a node comes from stands in the call stack while it runs, so that records and errors name it.
"""

import re
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from msat_det.base.errors import InputError
from msat_det.graph.aten import UnknownOperator, evaluate
from msat_det.graph.graph import TORCH

Program = Any  # torch._C.Graph or torch._C.Block
_PLACE = re.compile(r'File "(?!code/)(.+?)", line (\d+)|^(\S.*?)\((\d+)\): \w+$', re.MULTILINE)
_LIBRARY = re.compile(rf"{re.escape(TORCH)}|.*/site-packages/torch/")


class Scripted(nn.Module):
    """What ``script``, in float32 and evaluation mode, does, on its parameters and buffers under their names.

    compiled: let TorchScript run it.
    """

    def __init__(self, script: torch.jit.ScriptModule):
        super().__init__()
        for name, weight in script.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(weight, requires_grad=False))
        for name, buffer in script.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in script._modules.items():
            assert isinstance(child, torch.jit.ScriptModule)  # a program has no others
            self.add_module(name, in_python(child))
        self.eval()
        self.compiled = False
        self.script = _Shared(script)
        self.values: dict[str, Any] = {}  # attributes that the program has set

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raises InputError, naming node and line, for an operator that PyTorch does not offer in Python."""
        if self.compiled:
            return self.script.module(*args, **kwargs)
        return self.call("forward", *_bound(self.script.module._c._get_method("forward"), (self, *args), kwargs)[1:])

    def call(self, method: str, *args: Any) -> Any:
        graph = self.script.module._c._get_method(method).graph
        return _run(graph, {}, (self, *args))[0]

    def attribute(self, name: str) -> Any:
        for own in (self.values, self._parameters, self._buffers, self._modules):
            if name in own:
                return own[name]
        return self.training if name == "training" else self.script.module._c.getattr(name)


def in_python(script: torch.jit.ScriptModule) -> nn.Module:
    """The module that runs in Python what a scripted one does, on the same parameters."""
    if not script._c.qualified_name.endswith(".MultiheadAttention") or not script._c.hasattr("num_heads"):
        return Scripted(script)
    bias, first = script._c.getattr("in_proj_bias") is not None, script._c.getattr("batch_first")
    with torch.device("meta"):
        attention = nn.MultiheadAttention(script.embed_dim, script.num_heads, bias=bias, batch_first=first)
    attention.load_state_dict(script.state_dict(), assign=True)
    return attention.eval()


def run_function(function: torch.jit.ScriptFunction, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What a function of TorchScript gives, run operation by operation."""
    return _run(function.graph, {}, _bound(function, args, kwargs))[0]


def _bound(function: Any, args: tuple, kwargs: dict[str, Any]) -> tuple:
    """All arguments of a method or function, in their order."""
    left = function.schema.arguments[len(args) :]
    return *args, *(kwargs.get(each.name, each.default_value) for each in left)


class _Shared:
    """A module that copies of what holds it share: PyTorch's programs can't be copied apart from their weights."""

    def __init__(self, module: torch.jit.ScriptModule):
        self.module = module

    def __deepcopy__(self, memo: dict) -> "_Shared":
        return self


def _run(program: Program, values: dict[str, Any], given: tuple) -> list[Any]:
    """What a graph, or a block of one, gives. values: by name, those before it; its own are added."""
    values |= zip((value.debugName() for value in program.inputs()), given, strict=True)
    for node in program.nodes():
        found = _located(node)(_node, node, values)
        values |= zip((value.debugName() for value in node.outputs()), found, strict=True)
    return [values[value.debugName()] for value in program.outputs()]


def _node(node: Any, values: dict[str, Any]) -> Any:
    """The values that a node gives."""
    given = [values[value.debugName()] for value in node.inputs()]
    kind = node.kind()
    if kind in _CONTROL:
        return _CONTROL[kind](node, given, values)
    try:
        found = evaluate(node, given)
    except UnknownOperator as error:
        raise _unknown(node) from error
    return found if node.outputsSize() > 1 or kind.endswith("Unpack") else [found][: node.outputsSize()]


def _located(node: Any) -> Callable[..., Any]:
    """A function that calls another one, from the line of the network that a node comes from."""
    path, line = _place(node)
    code = _call.__code__
    return FunctionType(code.replace(co_filename=path, co_firstlineno=line - 1), {}) if path else _call


def _call(function: Callable, *args: Any) -> Any:
    return function(*args)


def _place(node: Any) -> tuple[str, int]:
    """File and line of the network's own code, or else of PyTorch's; an empty name where they are not known."""
    found = _PLACE.findall(node.sourceRange())
    places = [(path or traced, int(line or number)) for path, line, traced, number in found]
    return next((place for place in places if not _LIBRARY.match(place[0])), (*places, ("", 0))[0])


def _unknown(node: Any) -> InputError:
    path, line = _place(node)
    place = f"{path}:{line}" if path else "no source line"
    return InputError(
        f"the scripted network's operator '{node.kind()}' ({place}) is not known: give the module that was scripted"
    )


def _constant(node: Any, given: list[Any], values: dict[str, Any]) -> list[Any]:
    if node.output().type().kind() == "FunctionType":
        return [node]
    value = node.output().toIValue()
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return [value.float() if floating and value.dim() else value]


def _branch(node: Any, given: list[Any], values: dict[str, Any]) -> list[Any]:
    taken, other = node.blocks()
    return _run(taken if given[0] else other, values, ())


def _loop(node: Any, given: list[Any], values: dict[str, Any]) -> list[Any]:
    (body,) = node.blocks()
    most, goes_on, *carried = given
    step = 0
    while goes_on and step < most:
        goes_on, *carried = _run(body, values, (step, *carried))
        step += 1
    return carried


def _set_attribute(node: Any, given: list[Any], values: dict[str, Any]) -> list[Any]:
    given[0].values[node.s("name")] = given[1]
    return []


def _call_method(node: Any, given: list[Any], values: dict[str, Any]) -> list[Any]:
    module, *arguments = given
    return [module.call(node.s("name"), *arguments) if isinstance(module, Scripted) else module(*arguments)]


def _call_function(node: Any, given: list[Any], values: dict[str, Any]) -> list[Any]:
    """The program of a function is known to its type alone, from which PyTorch puts it in the place of its call."""
    graph: Any = torch._C.Graph()  # whose stubs ask for arguments that have defaults
    function = graph.create("prim::Constant")
    function.copyAttributes(given[0])
    function.output().setType(given[0].output().type())
    graph.insertNode(function)
    inputs = []
    for value in list(node.inputs())[1:]:
        inputs.append(graph.addInput())
        inputs[-1].setType(value.type())
    call = graph.create("prim::CallFunction", [function.output(), *inputs])
    call.output().setType(node.output().type())
    graph.insertNode(call)
    graph.registerOutput(call.output())
    torch._C._jit_pass_inline(graph)
    return _run(graph, {}, tuple(given[1:]))


_CONTROL: dict[str, Callable[[Any, list[Any], dict[str, Any]], list[Any]]] = {
    "prim::Constant": _constant,
    "prim::If": _branch,
    "prim::Loop": _loop,
    "prim::GetAttr": lambda node, given, values: [given[0].attribute(node.s("name"))],
    "prim::SetAttr": _set_attribute,
    "prim::CallMethod": _call_method,
    "prim::CallFunction": _call_function,
}
