"""TorchScript's operators on values: ATen's by the function of Python or PyTorch that has the name, and those of lists.

Sizes of images that are being recorded stay sizes: what calculates with them is Python's operator.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_NAMES = "uint8 int8 int16 int32 int64 float16 float32 float64 complex32 complex64 complex128 bool"
_DTYPES = {number: getattr(torch, name) for number, name in enumerate(_NAMES.split())} | {15: torch.bfloat16}
_END = 2**63 - 1  # of a slice in a trace
_IGNORED = {"layout", "pin_memory", "memory_format"}


class UnknownOperator(Exception):
    """There is no function for it."""


def evaluate(node: Any, given: list[Any]) -> Any:
    """What a node (torch._C.Node) but control flow gives. Raises UnknownOperator, and what the function raises."""
    room, _, name = node.kind().partition("::")
    if room == "prim" and name in _PRIM:
        return _PRIM[name](*given)
    if room != "aten":
        raise UnknownOperator
    return _CALLS[name](*given) if name in _CALLS else _by_name(node, name, given)


def _by_name(node: Any, name: str, given: list[Any]) -> Any:
    positional, named = _arguments(node, given)
    if name in _NUMBERS and not any(isinstance(value, Tensor) for value in positional):
        return _NUMBERS[name](*positional)
    if name in _ARITHMETIC and len(positional) <= 2 and not named:
        return _ARITHMETIC[name](*map(_number, positional, node.inputs()))
    key, plain = name.removeprefix("linalg_"), name.rstrip("_")
    for room, own in ((torch, torch._C._VariableFunctions), (F, F), (Tensor, Tensor), (torch.linalg, torch.linalg)):
        if hasattr(own, key):
            return getattr(room, key)(*positional, **named)
    if name == f"{plain}_" and hasattr(F, plain):
        return getattr(F, plain)(*positional, inplace=True, **named)
    raise UnknownOperator


def _arguments(node: Any, given: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments for Python, without those that are as by default."""
    positional, named = [], {}
    for argument, value in zip(torch._C.parse_schema(node.schema()).arguments, given, strict=True):
        by_default = argument.has_default_value() and not isinstance(value, Tensor) and value == argument.default_value
        if argument.name == "dtype" and isinstance(value, int):
            value = _DTYPES[value]
        if not argument.kwarg_only and argument.name not in _IGNORED:
            positional.append((value, by_default))
        elif not by_default and argument.name not in _IGNORED:
            named[argument.name] = value
    while positional and positional[-1][1]:
        positional.pop()
    return [value for value, _ in positional], named


def _number(value: Any, source: Any) -> Any:
    """A plain number for the tensor that a trace makes of one. source: what gives the value."""
    is_number = isinstance(value, Tensor) and source.node().kind() == "prim::Constant" and value.dim() == 0
    return value.item() if is_number else value


def _slice(x: Any, dim: int, *ends: Any) -> Any:
    """Of a tensor along a dimension, or of a list, where the first number is no dimension."""
    if not isinstance(x, Tensor):
        return x[slice(dim, *ends)]
    ends = tuple(None if type(end) is int and end == _END else end for end in ends)  # sizes would note a comparison
    return x[(slice(None),) * (dim % x.dim()) + (slice(*ends),)]


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, *more: Any
) -> Tensor:
    transposed, added, groups, *_ = more
    if transposed:
        layer = getattr(F, f"conv_transpose{len(stride)}d")
        return layer(x, weight, bias, stride, padding, added, groups, dilation)
    return getattr(F, f"conv{len(stride)}d")(x, weight, bias, stride, padding, dilation, groups)


def _resize(mode: str, antialias: bool = False) -> Callable[..., Tensor]:
    def resize(x: Tensor, size: Any, *rest: Any) -> Tensor:
        corners = rest[0] if isinstance(rest[0], bool) else None
        return F.interpolate(x, size, rest[-1] if size is None else None, mode, corners, antialias=antialias)

    return resize


def _adaptive_max_pool(n: int) -> Callable[..., tuple[Tensor, None]]:
    pool = getattr(F, f"adaptive_max_pool{n}d")
    return lambda x, size: (pool(x, size), None)  # without the places of the maxima


def _grid_sample(x: Tensor, grid: Tensor, mode: int, padding: int, corners: bool) -> Tensor:
    modes, paddings = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")
    return F.grid_sample(x, grid, modes[mode], paddings[padding], corners)


def _raise(message: Any, *_: Any) -> None:
    raise ValueError(message)


_PRIM: dict[str, Callable] = {
    **dict.fromkeys(
        ("unchecked_cast", "unchecked_unwrap_optional", "NumToTensor", "ListUnpack", "TupleUnpack"), lambda x: x
    ),
    "ListConstruct": lambda *parts: list(parts),
    "TupleConstruct": lambda *parts: parts,
    "DictConstruct": lambda *parts: dict(zip(parts[::2], parts[1::2], strict=True)),
    "TupleIndex": operator.getitem,
    "Uninitialized": lambda: None,
    "RaiseException": _raise,
    "min": min,
    "max": max,
    "device": lambda x: x.device,
    "dtype": lambda x: next(number for number, dtype in _DTYPES.items() if dtype == x.dtype),
    "is_cuda": lambda x: x.is_cuda,
    "is_nested": lambda x: x.is_nested,
    "type": lambda device: device.type,
    "requires_grad": lambda x: True,  # attention then goes step by step, as in training, and not by a fused operator
    "tolist": Tensor.tolist,
    "data": lambda x: x.data,
}
# By Python's operators, which take tensors, sizes and numbers.
_ARITHMETIC: dict[str, Callable] = {
    **{name: getattr(operator, name) for name in "add sub mul pow eq ne lt le gt ge neg".split()},
    **{"div": operator.truediv, "true_divide": operator.truediv, "floor_divide": operator.floordiv},
    **{"remainder": operator.mod},
}
# Of plain values alone.
_NUMBERS: dict[str, Callable] = {
    **{"add_": operator.iadd, "floordiv": operator.floordiv, "rsub": lambda a, b: b - a, "round": round, "abs": abs},
    **{"sqrt": math.sqrt, "log": math.log, "exp": math.exp, "floor": math.floor, "ceil": math.ceil},
    "to": lambda x, dtype, *_: float(x) if isinstance(dtype, torch.dtype) and dtype.is_floating_point else x,
    **{"__and__": operator.and_, "__or__": operator.or_, "sum": sum, "any": any, "all": all},
}
_CALLS: dict[str, Callable] = {
    **dict.fromkeys(("Int", "IntImplicit"), lambda x: x if isinstance(x, int) else int(x)),
    **dict.fromkeys(("Float", "FloatImplicit"), float),
    **dict.fromkeys(("item", "ScalarImplicit"), lambda x: x.item() if isinstance(x, Tensor) else x),
    **{"Bool": bool, "__not__": operator.not_, "__is__": operator.is_, "__isnot__": operator.is_not, "len": len},
    **{"__getitem__": operator.getitem, "__contains__": operator.contains, "append": list.append},
    **{"list": list, "copy": list, "_set_item": operator.setitem},
    **{"is_autocast_enabled": lambda *_: False, "is_grad_enabled": lambda: True},
    **{"format": str.format, "warn": lambda *_: None, "_unwrap_optional": lambda x: x, "slice": _slice},
    "size": lambda x, *dim: x.size(*dim) if dim else list(x.shape),
    "index": lambda x, at: x[tuple(slice(None) if each is None else each for each in at)],
    "split_with_sizes": lambda x, sizes, dim: x.split(sizes, dim),
    "batch_norm": lambda x, w, b, mean, var, training, momentum, eps, _: F.batch_norm(
        x, mean, var, w, b, training, momentum, eps
    ),
    "instance_norm": lambda x, w, b, mean, var, own, momentum, eps, _: F.instance_norm(
        x, mean, var, w, b, own, momentum, eps
    ),
    "_convolution": _convolution,
    "_convolution_mode": lambda x, weight, *rest: getattr(F, f"conv{weight.dim() - 2}d")(x, weight, *rest),
    "constant_pad_nd": lambda x, sides, value: F.pad(x, sides, "constant", value),
    **{f"adaptive_max_pool{n}d": _adaptive_max_pool(n) for n in (1, 2, 3)},
    **{f"reflection_pad{n}d": lambda x, sides: F.pad(x, sides, "reflect") for n in "123"},
    **{f"replication_pad{n}d": lambda x, sides: F.pad(x, sides, "replicate") for n in "123"},
    **{f"upsample_{mode}": _resize(mode[:-2]) for mode in ("nearest1d", "nearest2d", "nearest3d", "linear1d")},
    **{f"upsample_{mode}": _resize(mode[:-2]) for mode in ("bilinear2d", "bicubic2d", "trilinear3d")},
    **{f"_upsample_nearest_exact{n}d": _resize("nearest-exact") for n in "123"},
    **{f"_upsample_{mode}2d_aa": _resize(mode, antialias=True) for mode in ("bilinear", "bicubic")},
    **{"im2col": F.unfold, "col2im": F.fold, "grid_sampler": _grid_sample},
    **{name: operator.attrgetter(name) for name in ("mT", "mH")},
    **{"numpy_T": operator.attrgetter("T"), "matrix_H": operator.attrgetter("H")},
}
