"""What a saved graph may call: functions, methods and layers by name. No other name in a file is ever looked up."""

import inspect
import operator
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.graph import ops, regions

_OPERATIONS = ops.KNOWN - ops.NEUTRAL
_LOGIC = ("and_", "or_")  # Python's keywords, of the module operator


def _known(names: Iterable[str], operations: set[str]) -> list[str]:
    """The public names of operations, but for those that write into their input (``iadd``, ``relu_``)."""
    public = {name for name in names if not name.startswith("_") and (not name.endswith("_") or name in _LOGIC)}
    public -= {"iadd", "isub", "imul", "itruediv", "ipow"}
    return sorted(n for n in public if ops.canonical_name(n) in operations)


def _functions(module: ModuleType, prefix: str) -> dict[str, Callable]:
    found = {f"{prefix}.{name}": getattr(module, name) for name in _known(dir(module), _OPERATIONS | ops.SIZED)}
    return {name: value for name, value in found.items() if callable(value) and not isinstance(value, type)}


FUNCTIONS: dict[str, Callable] = {
    "identity": ops.identity,
    "hard_mish": ops.hard_mish,
    "getattr": getattr,
    "guard": ops.guard,
    "assigned": ops.assigned,
    "topk_values": ops.topk_values,
    "topk_places": ops.topk_places,
    "region_proposals": regions.region_proposals,
    "pooled_regions": regions.pooled_regions,
    "pooled_boxes": regions.pooled_boxes,
    "torchvision.deform_conv2d": torch.ops.torchvision.deform_conv2d,
    **_functions(operator, "operator"),
    **_functions(torch, "torch"),
    **_functions(F, "functional"),
    **_functions(torch.linalg, "linalg"),
}
METHODS = frozenset(_known(dir(Tensor), _OPERATIONS | ops.SHAPE | ops.SIZED))
LAYERS: dict[str, type[nn.Module]] = {
    **{name: getattr(nn, name) for name in _known(dir(nn), _OPERATIONS) if isinstance(getattr(nn, name), type)},
    "FrozenBatchNorm2d": FrozenBatchNorm2d,
}

_NAME_OF = {function: name for name, function in reversed(FUNCTIONS.items())}
_ON_NUMBERS = {FUNCTIONS[name] for name in FUNCTIONS if name.startswith("operator.")} - {operator.getitem, operator.add}
_INPUTS = (fx.Node, type(None))  # what a device may come from
_CASTS, _SPLITS = ("to", "type"), ("chunk", "split", "tensorsplit", "unbind")
_MOST_SAMPLES = 64  # points in which a region's cell is looked at, in each direction
_MOST_PARTS = 4096  # of a value that is split


def function_name(node: fx.Node) -> str:
    """The name by which a file calls a node's function. Raises InputError where it is none of ``FUNCTIONS``."""
    name = None if isinstance(node.target, str) else _NAME_OF.get(node.target)
    if name is None:
        called = getattr(node.target, "__name__", node.target)
        raise InputError(f"node '{node.name}' calls '{called}', which can't be saved: write it in another form")
    return name


def layer_arguments(layer: nn.Module) -> dict[str, Any]:
    """The arguments of its class that build a layer again, its tensors apart. Raises InputError where they cannot."""
    name = type(layer).__name__
    if LAYERS.get(name) is not type(layer) or layer._forward_hooks or layer._forward_pre_hooks:
        raise InputError(f"a layer {name} is none that can be saved, or has hooks: put a plain torch.nn layer there")
    if isinstance(layer, FrozenBatchNorm2d):
        return {"num_features": layer.weight.numel(), "eps": layer.eps}
    found = {}
    for key in inspect.signature(type(layer)).parameters:
        if key == "bias":
            found[key] = layer.bias is not None
        elif key != "inplace" and hasattr(layer, key):
            found[key] = getattr(layer, key)
    return found


def check_convolution(node: fx.Node, op: str, layer: nn.Module | None, args: tuple, kwargs: dict) -> None:
    """Refuse strides and the like that no convolution takes: the meta device does not look. Raises InputError.

    layer: None for a call of a function with args and kwargs. Lengths, and least values, are PyTorch's.
    """
    transposed, dims = "transpose" in op, int(op[-2])
    order = ops.GEOMETRY_TRANSPOSED if transposed else ops.GEOMETRY
    given = kwargs | dict(zip(order, args[3:], strict=False))
    found: dict[str, list[int]] = {}
    for name, low in (("stride", 1), ("dilation", 1), ("padding", 0), ("output_padding", 0)):
        value = given.get(name) if layer is None else getattr(layer, name, None)
        if value is None or (isinstance(value, str) and not transposed):  # same, valid: the call itself looks
            value = low
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        if len(numbers) not in (1, dims) or not all(type(number) is int and number >= low for number in numbers):
            raise InputError(f"node '{node.name}' has {name} {show(value)}: a {op} takes {dims} of at least {low}")
        found[name] = numbers * (dims // len(numbers))
    added = zip(found["output_padding"], found["stride"], found["dilation"], strict=True)
    if transposed and any(one >= max(stride, dilation) for one, stride, dilation in added):
        raise InputError(
            f"node '{node.name}' has output_padding {show(found['output_padding'])}: it must be below stride"
        )


def check_call(node: fx.Node, op: str, args: tuple, kwargs: dict) -> None:
    """Refuse, before it is made, a call whose time or memory the sizes of its tensors don't bound. Raises InputError.

    op: its canonical name. args, kwargs: the values that the node's arguments stand for.
    """
    values = [*args, *kwargs.values()]
    device, wrong = node.kwargs.get("device"), None
    if node.target in _ON_NUMBERS:
        powers = node.target is operator.pow and not any(isinstance(value, Tensor) for value in values)
        if powers or not all(isinstance(value, Tensor | int | float) for value in values):
            wrong = "calculates with something other than tensors and numbers"
    elif node.target is operator.add and any(isinstance(value, str) for value in values):
        wrong = "adds texts"
    elif (op in _CASTS and any(isinstance(v, str) for v in values)) or not isinstance(device, _INPUTS):
        wrong = "names a device: leave it to the network's input"
    elif op in _SPLITS and isinstance(args[0], Tensor) and max(args[0].shape) > _MOST_PARTS:
        wrong = f"splits a tensor of shape {tuple(args[0].shape)}, which is too long"
    elif node.target is regions.pooled_regions:
        scales, sampling = (ops.argument(node, *place) for place in ((2, "scales"), (4, "sampling")))
        fits = type(sampling) is int and 1 <= sampling <= _MOST_SAMPLES
        if not fits or not all(type(scale) is float and 0 < scale <= 1 for scale in scales):
            wrong = f"pools regions at {show(sampling)} points a cell: 1 to {_MOST_SAMPLES} can be saved"
    if wrong:
        raise InputError(f"node '{node.name}' {wrong}")
