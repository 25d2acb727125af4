"""The table of ONNX operators: each a small function on torch's own operations (onnx.ai/onnx/operators).

A function gets the node (``Call``) and its inputs, constants or values that images enter, and gives its output, or a
list of them. What a constant must be (weights, shapes, axes) is asked for by ``Call.ints`` and ``Call.constant``.
"""

import math
import operator as python
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msat_det.base.errors import InputError
from msat_det.models.importers.onnx.building import Building, Moving, Value
from msat_det.models.importers.onnx.file import OnnxNode

MOST_PARTS = 4096
LONGEST_RANGE = 1 << 20
_MIXED = "it mixes the images of a batch"
_FREE = "export the network for a batch that stays free"
MOST_PRODUCTS = 1 << 28  # multiply-adds of a product of constants


@dataclass(frozen=True)
class Call:
    """A node as its function sees it. version: of the operators' set."""

    node: OnnxNode
    version: int
    building: Building

    def get(self, name: str, default: Any = None) -> Any:
        return self.node.attributes.get(name, default)

    def numbers(self, name: str, count: int, default: int) -> list[int]:
        """As many whole numbers as there are dimensions, out of an attribute."""
        found = list(self.get(name, [default] * count))
        if len(found) != count or not all(isinstance(number, int) and 0 <= number < 1 << 30 for number in found):
            raise InputError(f"its {name} are not {count} sensible whole numbers: give an undamaged file")
        return found

    def run(self, function: Callable | str, *args: Any, **kwargs: Any) -> Any:
        return self.building.call(function, *args, **kwargs)

    def constant(self, value: Value | None, what: str) -> Tensor:
        if not isinstance(value, Tensor):
            raise InputError(f"its {what} must be a constant, not depend on the image")
        return value

    def ints(self, value: Value | None, what: str) -> list[int]:
        numbers = self.constant(value, what).flatten().tolist()
        if len(numbers) > MOST_PARTS or not all(isinstance(number, int) for number in numbers):
            raise InputError(f"its {what} must be whole numbers, at most {MOST_PARTS} of them")
        return numbers

    def ints_of(self, name: str, value: Value | None, since: int) -> list[int] | None:
        """What was an attribute before version ``since``, and is an input from then on."""
        if self.version < since:
            return self.get(name)
        return None if value is None else self.ints(value, name)

    def refuse(self, what: str, mend: str = "export the network without it") -> InputError:
        return InputError(f"{what}: {mend}")


Operator = Callable[..., Any]
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def _plain(function: Callable | str) -> Operator:
    """An operator that is one of torch's functions of its inputs."""
    return lambda n, *inputs: n.run(function, *inputs)


OPERATORS |= {
    **{"Add": _plain(python.add), "Sub": _plain(python.sub), "Mul": _plain(python.mul), "Neg": _plain(torch.neg)},
    **{"Abs": _plain(torch.abs), "Exp": _plain(torch.exp), "Log": _plain(torch.log), "Sqrt": _plain(torch.sqrt)},
    **{"Reciprocal": _plain(torch.reciprocal), "Erf": _plain(torch.erf), "Pow": _plain(python.pow)},
    **{"Floor": _plain(torch.floor), "Ceil": _plain(torch.ceil), "Round": _plain(torch.round)},
    **{"Sign": _plain(torch.sign), "Sin": _plain(torch.sin), "Cos": _plain(torch.cos), "Tanh": _plain(torch.tanh)},
    **{"Relu": _plain(F.relu), "Sigmoid": _plain(torch.sigmoid), "HardSwish": _plain(F.hardswish)},
    **{"Softplus": _plain(F.softplus), "Softsign": _plain(F.softsign), "Mish": _plain(F.mish)},
    **{"Equal": _plain(python.eq), "Greater": _plain(python.gt), "GreaterOrEqual": _plain(python.ge)},
    **{"Less": _plain(python.lt), "LessOrEqual": _plain(python.le), "And": _plain(torch.logical_and)},
    **{"Or": _plain(torch.logical_or), "Not": _plain(torch.logical_not), "Where": _plain(torch.where)},
}


# ---- arithmetic and activations ----


@operator("Div")
def div(n: Call, x: Value, y: Value) -> Value:
    whole = isinstance(x, Tensor) and isinstance(y, Tensor) and not x.is_floating_point()
    return n.run(torch.div, x, y, rounding_mode="trunc") if whole else n.run(python.truediv, x, y)


@operator("Max", "Min", "Sum", "Mean")
def several(n: Call, *inputs: Value) -> Value:
    """One of as many inputs as there are, two by two."""
    function = {"Max": torch.maximum, "Min": torch.minimum}.get(n.node.op, python.add)
    first, *others = sorted(inputs, key=lambda x: isinstance(x, Tensor))  # constants last
    for other in others:
        if function is not python.add and isinstance(other, Tensor) and other.numel() == 1:
            first = n.run(torch.clamp, first, **{"min" if n.node.op == "Max" else "max": other.item()})
        else:
            first = n.run(function, first, other)
    return n.run(python.truediv, first, float(len(inputs))) if n.node.op == "Mean" else first


@operator("Clip")
def clip(n: Call, x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    if n.version < 11:
        bounds = [n.get("min"), n.get("max")]
    else:
        bounds = [None if b is None else n.constant(b, "bounds").item() for b in (low, high)]
    least, most = (None if b is None or abs(b) > 3e38 else b for b in bounds)
    return x if least is None and most is None else n.run(torch.clamp, x, least, most)


@operator("LeakyRelu")
def leaky_relu(n: Call, x: Value) -> Value:
    return n.run(F.leaky_relu, x, n.get("alpha", 0.01))


@operator("PRelu")
def prelu(n: Call, x: Value, slope: Value) -> Value:
    slope = n.constant(slope, "slope")
    if slope.numel() not in (1, x.shape[1]) or slope.dim() > len(x.shape):
        raise n.refuse(f"its slope of {tuple(slope.shape)} is not one for each channel")
    if slope.numel() > 1 and tuple(slope.shape)[:1] != (x.shape[1],) and tuple(slope.shape)[1:2] != (x.shape[1],):
        raise n.refuse(f"its slope of {tuple(slope.shape)} does not lie along the channels")
    return n.building.layer(nn.PReLU, x, {"weight": slope.flatten()}, num_parameters=slope.numel())


@operator("Elu", "Celu", "ThresholdedRelu")
def elu(n: Call, x: Value) -> Value:
    alpha = n.get("alpha", 1.0)
    if n.node.op == "ThresholdedRelu":
        return n.run(F.threshold, x, alpha, 0.0)
    return n.run(F.celu if n.node.op == "Celu" else F.elu, x, alpha)


@operator("Selu")
def selu(n: Call, x: Value) -> Value:
    if abs(n.get("alpha", 1.67326) - 1.67326) > 1e-4 or abs(n.get("gamma", 1.0507) - 1.0507) > 1e-4:
        raise n.refuse("its constants are not SELU's own")
    return n.run(F.selu, x)


@operator("Gelu")
def gelu(n: Call, x: Value) -> Value:
    return n.run(F.gelu, x, approximate=n.get("approximate", "none"))


@operator("HardSigmoid")
def hard_sigmoid(n: Call, x: Value) -> Value:
    """max(0, min(1, αx + β)); torch's own has α = 1/6."""
    alpha, beta = n.get("alpha", 0.2), n.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return n.run(F.hardsigmoid, x)
    return n.run(torch.clamp, n.run(python.add, n.run(python.mul, x, alpha), beta), 0.0, 1.0)


@operator("Softmax", "LogSoftmax")
def softmax(n: Call, x: Value) -> Value:
    """Before opset 13 over all dimensions from ``axis`` on, which were one then."""
    function = F.softmax if n.node.op == "Softmax" else F.log_softmax
    rank, axis = len(x.shape), n.get("axis", -1 if n.version >= 13 else 1)
    axis %= rank
    if isinstance(x, Moving) and (x.images == axis or (n.version < 13 and x.images > axis)):
        raise n.refuse(_MIXED)
    if n.version >= 13 or math.prod(x.shape[axis + 1 :]) == 1:
        return n.run(function, x, axis)
    flat = reshaped(n, x, [*x.shape[:axis], math.prod(x.shape[axis:])])
    return reshaped(n, n.run(function, flat, -1), x.shape)


# ---- products ----


@operator("Conv")
def conv(n: Call, x: Value, weight: Value, bias: Value | None = None) -> Value:
    kind, weight, steps = _layer_of(n, weight, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    begin, end = _pads(n, x.shape[2:], weight.shape[2:], **steps)
    if begin != end:
        x, begin = _padded(n, x, begin, end, 0.0), [0] * len(begin)
    channels = weight.shape[1] * n.get("group", 1), weight.shape[0]
    return _convolution(n, kind, x, weight, bias, channels, padding=begin, **steps)


@operator("ConvTranspose")
def conv_transpose(n: Call, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """Padding that differs between the two ends is cut off afterwards."""
    kind, weight, steps = _layer_of(n, weight, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    dims = weight.dim() - 2
    extra, pads = n.numbers("output_padding", dims, 0), n.numbers("pads", 2 * dims, 0)
    if len(x.shape) != dims + 2 or x.shape[1] != weight.shape[0]:
        raise n.refuse(f"its weights {tuple(weight.shape)} do not fit {x.shape}", "give an undamaged file")
    if n.get("output_shape") or n.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise n.refuse("it asks for an output's size", "export it with pads")
    begin, end = pads[:dims], pads[dims:]
    same = begin == end
    channels = weight.shape[0], weight.shape[1] * n.get("group", 1)
    padding = begin if same else [0] * dims
    y = _convolution(n, kind, x, weight, bias, channels, padding=padding, output_padding=extra, **steps)
    if same:
        return y
    ranges = [(b, size - e) for b, e, size in zip(begin, end, y.shape[2:], strict=True)]
    return _cut(n, y, {d + 2: slice(*r) for d, r in enumerate(ranges)})


def _layer_of(n: Call, weight: Value, *kinds: type[nn.Module]) -> tuple[type[nn.Module], Tensor, dict[str, list[int]]]:
    """The layer of as many dimensions as the weights have, these, and its stride and dilation."""
    weight = n.constant(weight, "weights")
    dims = weight.dim() - 2
    kind = _by_dimension(n, dims, *kinds)
    return kind, weight, {"stride": n.numbers("strides", dims, 1), "dilation": n.numbers("dilations", dims, 1)}


def _convolution(
    n: Call, kind: type[nn.Module], x: Value, weight: Tensor, bias: Value | None, channels: tuple, **sizes: list[int]
) -> Moving:
    """channels: that come in, and go out. sizes: of each dimension."""
    own = {name: tuple(values) for name, values in (sizes | {"kernel_size": list(weight.shape[2:])}).items()}
    own |= dict(zip(("in_channels", "out_channels"), channels, strict=True))
    tensors = {"weight": weight, "bias": bias}
    return n.building.layer(kind, x, tensors, **own, groups=n.get("group", 1), bias=bias is not None)


@operator("Gemm")
def gemm(n: Call, a: Value, b: Value, c: Value | None = None) -> Value:
    """α·A·B + β·C; a linear layer where B and C are weights."""
    alpha, beta = n.get("alpha", 1.0), n.get("beta", 1.0)
    a = n.run(torch.transpose, a, 0, 1) if n.get("transA", 0) else a
    if isinstance(a, Moving) and isinstance(b, Tensor) and (c is None or (isinstance(c, Tensor) and c.dim() <= 1)):
        weight = (b if n.get("transB", 0) else b.t()) * alpha
        bias = None if c is None else (c * beta).expand(len(weight))
        return _linear(n, a, weight, bias)
    b = n.run(torch.transpose, b, 0, 1) if n.get("transB", 0) else b
    y = n.run(python.mul, matmul(n, a, b), alpha)
    return y if c is None else n.run(python.add, y, n.run(python.mul, c, beta))


@operator("MatMul")
def matmul(n: Call, a: Value, b: Value) -> Value:
    if isinstance(a, Moving) and isinstance(b, Tensor) and b.dim() == 2:
        return _linear(n, a, b.t(), None)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        _bound(n, math.prod(a.shape) * b.shape[-1])
    _require_floats(n, a, b)
    return n.run(torch.matmul, a, b)


@operator("Einsum")
def einsum(n: Call, *inputs: Value) -> Value:
    _require_floats(n, *inputs)
    if not any(isinstance(x, Moving) for x in inputs):
        _bound(n, math.prod(math.prod(x.shape) for x in inputs))
    return n.run(torch.einsum, n.get("equation", ""), *inputs)


def _require_floats(n: Call, *inputs: Value) -> None:
    if any(isinstance(x, Moving) for x in inputs) and not all(_kind(x) is float for x in inputs):
        raise n.refuse("it multiplies whole numbers with floats", "give an undamaged file")


def _bound(n: Call, products: int) -> None:
    if products > MOST_PRODUCTS:
        raise n.refuse("its product of constants is far too large", "export it with its result")


def _linear(n: Call, x: Moving, weight: Tensor, bias: Tensor | None) -> Value:
    tensors = {"weight": weight.contiguous(), "bias": bias}
    sizes = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    return n.building.layer(nn.Linear, x, tensors, **sizes, bias=bias is not None)


def _by_dimension(n: Call, dims: int, *kinds: type[nn.Module]) -> type[nn.Module]:
    if not 1 <= dims <= len(kinds):
        raise n.refuse(f"it works on {dims} dimensions")
    return kinds[dims - 1]


# ---- norms ----


@operator("BatchNormalization")
def batch_norm(n: Call, x: Moving, scale: Value, bias: Value, mean: Value, var: Value) -> Value:
    if n.get("training_mode", 0):
        raise n.refuse("it is in training mode", "export the network after eval()")
    kinds = nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
    kind = _by_dimension(n, len(x.shape) - 1, *kinds)
    tensors = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}
    return n.building.layer(kind, x, tensors, num_features=x.shape[1], eps=n.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_norm(n: Call, x: Moving, scale: Value, bias: Value) -> Value:
    kind = _by_dimension(n, len(x.shape) - 2, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    sizes = {"num_features": x.shape[1], "eps": n.get("epsilon", 1e-5), "affine": True}
    return n.building.layer(kind, x, {"weight": scale, "bias": bias}, **sizes)


@operator("GroupNormalization")
def group_norm(n: Call, x: Moving, scale: Value, bias: Value) -> Value:
    """Up to opset 20 with a scale and bias for each group, then for each channel."""
    groups = n.get("num_groups", 1)
    each = x.shape[1] // groups if n.version < 21 else 1
    tensors = {name: n.constant(v, name).repeat_interleave(each) for name, v in (("weight", scale), ("bias", bias))}
    sizes = {"num_groups": groups, "num_channels": x.shape[1], "eps": n.get("epsilon", 1e-5)}
    return n.building.layer(nn.GroupNorm, x, tensors, **sizes)


@operator("LayerNormalization")
def layer_norm(n: Call, x: Moving, scale: Value, bias: Value | None = None) -> Value:
    shape = x.shape[n.get("axis", -1) :]
    tensors = {"weight": n.constant(scale, "scale").expand(shape), "bias": bias}
    sizes = {"normalized_shape": shape, "eps": n.get("epsilon", 1e-5), "bias": bias is not None}
    return n.building.layer(nn.LayerNorm, x, tensors, **sizes)


@operator("LpNormalization")
def lp_norm(n: Call, x: Value) -> Value:
    p, axis = float(n.get("p", 2)), n.get("axis", -1)
    return n.run(python.truediv, x, n.run(torch.linalg.vector_norm, x, p, axis, True))


# ---- pooling ----


@operator("MaxPool")
def max_pool(n: Call, x: Value) -> Value:
    """What is padded never wins; so padding at the end is only a matter of how many windows there are."""
    kernel, stride, dilation, begin, end, wanted = _windows(n, x)
    kind = _by_dimension(n, len(kernel), nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
    sides, skipped = list(begin), [0] * len(kernel)
    for d, (b, e) in enumerate(zip(begin, end, strict=True)):
        if e > b and (e - b) % stride[d] == 0:  # whole windows more at the beginning, cut off again
            sides[d], skipped[d] = e, (e - b) // stride[d]
    for ceil in (False, True):
        own = {"kernel_size": tuple(kernel), "stride": tuple(stride), "padding": tuple(sides)}
        y = n.building.layer(kind, x, {}, **own, dilation=tuple(dilation), ceil_mode=ceil)
        if all(have >= skip + want for have, skip, want in zip(y.shape[2:], skipped, wanted, strict=True)):
            cuts = {d + 2: slice(skip, skip + want) for d, (skip, want) in enumerate(zip(skipped, wanted, strict=True))}
            return _cut(n, y, cuts)
    raise n.refuse(f"its padding of {begin} and {end} is not known to torch")


@operator("AveragePool")
def average_pool(n: Call, x: Value) -> Value:
    kernel, stride, dilation, begin, end, wanted = _windows(n, x)
    inside = bool(n.get("count_include_pad", 0))
    if set(dilation) != {1} or (begin != end and not inside):
        raise n.refuse("its average leaves out padding that differs between the ends, or it is dilated")
    if begin != end:
        x, begin = _padded(n, x, begin, end, 0.0), [0] * len(kernel)
    kind = _by_dimension(n, len(kernel), nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
    own = {"kernel_size": tuple(kernel), "stride": tuple(stride), "padding": tuple(begin)}
    ceil = bool(n.get("ceil_mode", 0))
    y = n.building.layer(kind, x, {}, **own, ceil_mode=ceil, count_include_pad=inside)
    if y.shape[2:] != wanted:
        raise n.refuse("its windows at the end are not torch's")
    return y


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(n: Call, x: Value) -> Value:
    function = torch.mean if n.node.op == "GlobalAveragePool" else torch.amax
    return n.run(function, x, list(range(2, len(x.shape))), True)


def _windows(n: Call, x: Value) -> tuple:
    kernel = n.get("kernel_shape")
    dims = len(kernel)
    stride, dilation = n.numbers("strides", dims, 1), n.numbers("dilations", dims, 1)
    begin, end = _pads(n, x.shape[2:], kernel, stride, dilation)
    spans = [
        s + b + e - d * (k - 1) - 1 for s, b, e, d, k in zip(x.shape[2:], begin, end, dilation, kernel, strict=True)
    ]
    if n.get("ceil_mode", 0):
        # no window that begins in the padding at the end
        counts = [-(-span // s) + 1 for span, s in zip(spans, stride, strict=True)]
        pairs = zip(counts, stride, x.shape[2:], begin, strict=True)
        counts = [count - ((count - 1) * s >= size + b) for count, s, size, b in pairs]
    else:
        counts = [span // s + 1 for span, s in zip(spans, stride, strict=True)]
    return kernel, stride, dilation, begin, end, tuple(counts)


def _pads(n: Call, sizes: Sequence[int], kernel: Sequence[int], stride: list[int], dilation: list[int]) -> tuple:
    """Padding at the beginning and at the end of each dimension; SAME gives ⌈size / stride⌉ positions."""
    dims, way = len(kernel), n.get("auto_pad", "NOTSET")
    if way in ("SAME_UPPER", "SAME_LOWER"):
        pairs = zip(sizes, kernel, stride, dilation, strict=True)
        total = [max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size) for size, k, s, d in pairs]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        return (less, more) if way == "SAME_UPPER" else (more, less)
    pads = [0] * 2 * dims if way == "VALID" else n.numbers("pads", 2 * dims, 0)
    return pads[:dims], pads[dims:]


def _padded(n: Call, x: Value, begin: Sequence[int], end: Sequence[int], value: float, mode: str = "constant") -> Value:
    """begin, end: of the last dimensions."""
    amounts = [amount for pair in reversed(list(zip(begin, end, strict=True))) for amount in pair]
    return n.run(F.pad, x, amounts, mode, value) if mode == "constant" else n.run(F.pad, x, amounts, mode)


# ---- shapes ----


def reshaped(n: Call, x: Value, sizes: Sequence[int]) -> Value:
    """x in another shape, as the file has it for one image; the images stay free.

    They stand for the outermost factor of one dimension of x: the elements before it tell which dimension that is now.
    """
    sizes = list(sizes)
    if isinstance(x, Moving):
        before = math.prod(x.shape[: x.images])
        found = [d for d in range(len(sizes)) if math.prod(sizes[:d]) == before]
        if not found or math.prod(sizes) != math.prod(x.shape):
            raise n.refuse(f"it makes {tuple(sizes)} of {x.shape}, in which the images mix")
        # of several, where some are of size 1: one for the images alone, as near as can be to where they were
        sizes[min(found, key=lambda d: (sizes[d] != 1, abs(d - x.images)))] = -1
    return n.run(torch.reshape, x, sizes)


@operator("Reshape")
def reshape(n: Call, x: Value, shape: Value) -> Value:
    sizes = n.ints(shape, "shape")
    if not n.get("allowzero", 0):
        sizes = [x.shape[d] if size == 0 else size for d, size in enumerate(sizes)]
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = math.prod(x.shape) // max(rest, 1)
    return reshaped(n, x, sizes)


@operator("Flatten")
def flatten(n: Call, x: Value) -> Value:
    axis = n.get("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    return reshaped(n, x, [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


@operator("Transpose")
def transpose(n: Call, x: Value) -> Value:
    return n.run(torch.permute, x, tuple(n.get("perm", list(range(len(x.shape)))[::-1])))


@operator("Squeeze")
def squeeze(n: Call, x: Value, axes: Value | None = None) -> Value:
    given = n.ints_of("axes", axes, 13)
    rank = len(x.shape)
    gone = {a % rank for a in given} if given is not None else {d for d, size in enumerate(x.shape) if size == 1}
    if isinstance(x, Moving) and x.images in gone:
        raise n.refuse("it takes away the dimension of the images", _FREE)
    return reshaped(n, x, [s for d, s in enumerate(x.shape) if d not in gone])


@operator("Unsqueeze")
def unsqueeze(n: Call, x: Value, axes: Value | None = None) -> Value:
    given = n.ints_of("axes", axes, 13) or []
    rank = len(x.shape) + len(given)
    for axis in sorted(a % rank for a in given):
        x = n.run(torch.unsqueeze, x, axis)
    return x


@operator("Expand")
def expand(n: Call, x: Value, shape: Value) -> Value:
    wanted = n.ints(shape, "shape")
    sizes = torch.broadcast_shapes(x.shape, wanted)
    if isinstance(x, Tensor):
        return n.run("expand", x, sizes)
    own = (None,) * (len(sizes) - len(x.shape)) + x.shape
    return n.run("expand", x, *(-1 if a == b else b for a, b in zip(own, sizes, strict=True)))


@operator("Tile")
def tile(n: Call, x: Value, repeats: Value) -> Value:
    times = n.ints(repeats, "repeats")
    if isinstance(x, Moving) and len(times) == len(x.shape) and times[x.images] != 1:
        raise n.refuse(_MIXED)
    return n.run("repeat", x, *times)


@operator("Concat")
def concat(n: Call, *inputs: Value) -> Value:
    moving = next((x for x in inputs if isinstance(x, Moving)), None)
    if moving is None:
        return n.run(torch.cat, list(inputs), n.get("axis", 0))
    axis = n.get("axis", 0) % len(moving.shape)
    if axis == moving.images:
        raise n.refuse(_MIXED)
    return n.run(torch.cat, [_for_all(n, x, moving) for x in inputs], axis)


def _for_all(n: Call, x: Value, beside: Moving) -> Value:
    """A constant for one image, a class token say, once for every image."""
    if isinstance(x, Moving):
        return x
    first = {d: slice(0, 1) for d in range(len(beside.shape)) if d != beside.images}
    return n.run(python.add, n.run(python.mul, _cut(n, beside, first), 0.0), x)


@operator("Split")
def split(n: Call, x: Value, sizes: Value | None = None) -> list[Value]:
    axis, parts = n.get("axis", 0) % len(x.shape), len(n.node.outputs)
    lengths = n.ints_of("split", sizes, 13)
    if lengths is None:
        each = -(-x.shape[axis] // max(n.get("num_outputs", parts), 1))
        lengths = [max(0, min(each, x.shape[axis] - i * each)) for i in range(parts)]
    if sum(lengths) != x.shape[axis] or len(lengths) != parts or min(lengths) < 0:
        raise n.refuse(f"its parts {lengths} are not those of {x.shape[axis]}")
    begins = [sum(lengths[:i]) for i in range(parts)]
    return [_cut(n, x, {axis: slice(b, b + size)}) for b, size in zip(begins, lengths, strict=True)]


@operator("Slice")
def slices(n: Call, x: Value, *inputs: Value) -> Value:
    if n.version < 10:
        starts, ends, axes, steps = n.get("starts"), n.get("ends"), n.get("axes"), None
    else:
        names = ("starts", "ends", "axes", "steps")
        given = [*inputs, None, None, None][:4]
        starts, ends, axes, steps = (
            None if v is None else n.ints(v, name) for v, name in zip(given, names, strict=True)
        )
    axes = list(range(len(starts))) if axes is None else axes
    cuts = {}
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        axis %= len(x.shape)
        if step < 0:  # torch has no such steps
            places = range(x.shape[axis])[_within(start, x.shape[axis]) : _within(end, x.shape[axis]) : step]
            x = _picked(n, x, axis, torch.tensor(list(places), dtype=torch.int64))
        else:
            cuts[axis] = slice(_within(start, x.shape[axis]), _within(end, x.shape[axis]), None if step == 1 else step)
    return _cut(n, x, cuts)


def _within(place: int, size: int) -> int | None:
    """A beginning or end that is beyond the size as Python's slices have it."""
    return None if place > size or (place < -size and place < -(2**31)) else place


def _cut(n: Call, x: Value, cuts: dict[int, slice]) -> Value:
    kept = {d: c for d, c in cuts.items() if c.indices(x.shape[d]) != (0, x.shape[d], 1)}
    if isinstance(x, Moving) and x.images in kept:
        raise n.refuse("it picks some images of a batch", _FREE)
    return n.run(python.getitem, x, tuple(kept.get(d, slice(None)) for d in range(max(kept) + 1))) if kept else x


def _picked(n: Call, x: Value, axis: int, index: Tensor) -> Value:
    """The elements of these places, (K,), along a dimension."""
    first, count = int(index[0]) if len(index) else 0, len(index)
    if torch.equal(index, torch.arange(first, first + count)):
        return _cut(n, x, {axis: slice(first, first + count)})
    if isinstance(x, Moving) and axis == x.images:
        raise n.refuse("it picks some images of a batch", _FREE)
    if torch.equal(index, torch.arange(x.shape[axis]).flip(0)):
        return n.run(torch.flip, x, [axis])
    return n.run(torch.index_select, x, axis, index)


@operator("Gather")
def gather(n: Call, x: Value, indices: Value) -> Value:
    axis, indices = n.get("axis", 0) % len(x.shape), n.constant(indices, "indices")
    size = x.shape[axis]
    if indices.numel() and not (-size <= indices.min() and indices.max() < size):
        raise n.refuse("its indices lead out of what it gathers from")
    indices = torch.where(indices < 0, indices + size, indices)
    if indices.dim() == 0:
        if isinstance(x, Moving) and axis == x.images:
            raise n.refuse("it picks one image of a batch", _FREE)
        return n.run(torch.select, x, axis, int(indices))
    y = _picked(n, x, axis, indices.flatten())
    return y if indices.dim() == 1 else reshaped(n, y, [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@operator("Pad")
def pad(n: Call, x: Value, pads: Value | None = None, value: Value | None = None, axes: Value | None = None) -> Value:
    amounts = n.ints_of("pads", pads, 11) or []
    fill = n.get("value", 0.0) if n.version < 11 else 0.0 if value is None else n.constant(value, "value").item()
    rank = len(x.shape)
    where = [a % rank for a in n.ints(axes, "axes")] if axes is not None else list(range(rank))
    begin, end = [0] * rank, [0] * rank
    for i, axis in enumerate(where):
        begin[axis], end[axis] = amounts[i], amounts[i + len(where)]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        n.get("mode", "constant")
    ]
    first = next((d for d in range(rank) if begin[d] or end[d]), rank)
    if first == rank:
        return x
    first = first if mode == "constant" else max(2, min(first, rank - 1))
    return _padded(n, x, begin[first:], end[first:], fill, mode)


@operator("DepthToSpace")
def depth_to_space(n: Call, x: Value) -> Value:
    s = n.get("blocksize")
    if n.get("mode", "DCR") == "DCR":
        b, c, h, w = x.shape
        x = reshaped(n, n.run(torch.transpose, reshaped(n, x, [b, s * s, c // (s * s), h, w]), 1, 2), [b, c, h, w])
    return n.run(F.pixel_shuffle, x, s)


@operator("SpaceToDepth")
def space_to_depth(n: Call, x: Value) -> Value:
    (b, c, *_), s = x.shape, n.get("blocksize")
    y = n.run(F.pixel_unshuffle, x, s)
    h, w = y.shape[2:]
    return reshaped(n, n.run(torch.transpose, reshaped(n, y, [b, c, s * s, h, w]), 1, 2), [b, c * s * s, h, w])


@operator("Identity", "Dropout")
def identity(n: Call, x: Value, *_: Value) -> Value:
    return x


@operator("Cast", "CastLike")
def cast(n: Call, x: Value, like: Value | None = None) -> Value:
    kind = {1: float, 10: float, 11: float, 16: float, 9: bool, **dict.fromkeys((2, 3, 4, 5, 6, 7, 12, 13), int)}
    wanted = kind.get(n.get("to", 1)) if like is None else _kind(like)
    if wanted is None:
        raise n.refuse(f"it casts to type {n.get('to')}, which is neither float nor whole")
    if isinstance(x, Tensor):
        return n.run("to", x, {float: torch.float32, bool: torch.bool, int: torch.int64}[wanted])
    if wanted is _kind(x):
        return x
    if wanted is float:
        return n.run("to", x, torch.float32)
    raise n.refuse("it rounds what the image gives to whole numbers")


def _kind(x: Value) -> type:
    dtype = x.dtype if isinstance(x, Tensor) else x.probes[0].dtype
    return float if dtype.is_floating_point else bool if dtype is torch.bool else int


# ---- values that no image enters ----


@operator("Constant")
def constant(n: Call) -> Value:
    for name, value in n.node.attributes.items():
        if isinstance(value, Tensor):
            return value
        if name in ("value_float", "value_int", "value_floats", "value_ints"):
            return torch.tensor(value)
    raise n.refuse("it holds no numbers")


@operator("Shape")
def shape_of(n: Call, x: Value) -> Value:
    return torch.tensor(list(x.shape)[n.get("start", 0) : n.get("end", None)], dtype=torch.int64)


@operator("Size")
def size_of(n: Call, x: Value) -> Value:
    return torch.tensor(math.prod(x.shape))


@operator("ConstantOfShape")
def constant_of_shape(n: Call, shape: Value) -> Value:
    value = n.get("value", torch.zeros(1))
    return n.run("expand", value.reshape([1] * len(sizes)), sizes) if (sizes := n.ints(shape, "shape")) else value[0]


@operator("Range")
def arange(n: Call, *bounds: Value) -> Value:
    start, end, step = (n.constant(value, "bounds").item() for value in bounds)
    if step == 0 or not (end - start) / step < LONGEST_RANGE:
        raise n.refuse("its range is far too long")
    return torch.arange(start, end, step)


# ---- reductions ----

_REDUCTIONS: dict[str, Callable] = {
    **{"ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin},
    **{"ReduceL2": torch.linalg.vector_norm, "ReduceLogSumExp": torch.logsumexp},
}


@operator(*_REDUCTIONS, "ReduceProd")
def reduce(n: Call, x: Value, axes: Value | None = None) -> Value:
    since = 13 if n.node.op == "ReduceSum" else 18
    given = n.ints_of("axes", axes, since)
    if given == [] or (given is None and n.get("noop_with_empty_axes", 0)):
        return x
    dims = sorted(a % len(x.shape) for a in given) if given is not None else list(range(len(x.shape)))
    keep = bool(n.get("keepdims", 1))
    if n.node.op == "ReduceProd":
        for d in reversed(dims):
            x = n.run(torch.prod, n.constant(x, "input"), d, keep)
        return x
    function = _REDUCTIONS[n.node.op]
    if function is torch.linalg.vector_norm:
        return n.run(function, x, 2, dims, keep)
    return n.run(function, x, dims, keep)


# ---- resizing ----


@operator("Upsample", "Resize")
def resize(n: Call, x: Moving, *inputs: Value | None) -> Value:
    """To a size that is known. Nearest positions that are torch's own run as ``interpolate``, others as an index."""
    sizes, ratios = _resized(n, x, inputs)
    rank, mode = len(x.shape), n.get("mode", "nearest")
    way = "asymmetric" if n.version < 11 else n.get("coordinate_transformation_mode", "half_pixel")
    changed = [d for d in range(rank) if sizes[d] != x.shape[d]]
    if not changed:
        return x
    if min(changed) < 2:
        raise n.refuse(f"it resizes dimension {min(changed)}")
    if mode == "nearest":
        return _nearest(n, x, sizes, ratios, way)
    if mode not in ("linear", "cubic") or n.get("antialias", 0) or n.get("exclude_outside", 0):
        raise n.refuse(f"it resizes by {mode} in a form that torch does not have")
    exact = all(math.isclose(sizes[d], x.shape[d] * ratios[d]) for d in changed)
    own = way == "align_corners" or (exact and way == "half_pixel")
    if mode == "linear" and not (own and rank in (3, 4, 5)):
        return _between(n, x, sizes, ratios, way)
    if mode == "cubic" and (rank != 4 or not own or not math.isclose(n.get("cubic_coeff_a", -0.75), -0.75)):
        raise n.refuse("it resizes by cubic in a form that torch does not have")
    name = "bicubic" if mode == "cubic" else {3: "linear", 4: "bilinear", 5: "trilinear"}[rank]
    return n.run(F.interpolate, x, size=tuple(sizes[2:]), mode=name, align_corners=way == "align_corners")


def _resized(n: Call, x: Moving, inputs: Sequence[Value | None]) -> tuple[list[int], list[float]]:
    """The new size of every dimension, and by how much it is larger."""
    inputs = [*inputs, None, None, None]
    scales, wanted = (inputs[0], None) if n.version < 11 else (inputs[1], inputs[2])
    rank = len(x.shape)
    axes = [a % rank for a in n.get("axes", range(rank))]
    sizes, ratios = list(x.shape), [1.0] * rank
    if wanted is not None and n.constant(wanted, "sizes").numel():
        if n.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise n.refuse("it keeps the aspect ratio")
        for axis, size in zip(axes, n.ints(wanted, "sizes"), strict=True):
            sizes[axis], ratios[axis] = size, size / x.shape[axis]
    else:
        for axis, ratio in zip(axes, n.constant(scales, "scales").tolist(), strict=True):
            sizes[axis], ratios[axis] = math.floor(x.shape[axis] * ratio + 1e-4), ratio
    return sizes, ratios


def _nearest(n: Call, x: Value, sizes: list[int], ratios: list[float], way: str) -> Value:
    rounding = "floor" if n.version < 11 else n.get("nearest_mode", "round_prefer_floor")
    places = {d: _places(n, x.shape[d], sizes[d], ratios[d], way, rounding) for d in range(2, len(sizes))}
    plain = {d: (torch.arange(sizes[d]) * x.shape[d]) // sizes[d] for d in places}
    if all(torch.equal(places[d], plain[d]) for d in places):
        return n.run(F.interpolate, x, size=tuple(sizes[2:]), mode="nearest")
    for d, index in places.items():
        x = _picked(n, x, d, index)
    return x


def _between(n: Call, x: Moving, sizes: list[int], ratios: list[float], way: str) -> Value:
    """Linear between the two nearest positions, dimension after dimension."""
    for d in range(2, len(sizes)):
        if sizes[d] == x.shape[d]:
            continue
        at = _sources(n, x.shape[d], sizes[d], ratios[d], way).clamp(0, x.shape[d] - 1)
        low = at.floor().long()
        share = (at - low).float().reshape([-1] + [1] * (len(sizes) - 1 - d))
        below, above = _picked(n, x, d, low), _picked(n, x, d, (low + 1).clamp(max=x.shape[d] - 1))
        x = n.run(python.add, n.run(python.mul, below, 1 - share), n.run(python.mul, above, share))
    return x


def _sources(n: Call, size: int, wanted: int, ratio: float, way: str) -> Tensor:
    """Where each of the wanted positions of a dimension comes from, between positions."""
    at = torch.arange(wanted, dtype=torch.float64)
    ways = {
        "asymmetric": at / ratio,
        "half_pixel": (at + 0.5) / ratio - 0.5,
        "pytorch_half_pixel": (at + 0.5) / ratio - 0.5 if wanted > 1 else at * 0,
        "align_corners": at * ((size - 1) / max(wanted - 1, 1)),
    }
    if way not in ways:
        raise n.refuse(f"it resizes by {way}, which is not known here")
    return ways[way]


def _places(n: Call, size: int, wanted: int, ratio: float, way: str, rounding: str) -> Tensor:
    """``_sources``, rounded."""
    roundings = {
        "floor": torch.floor,
        "ceil": torch.ceil,
        "round_prefer_floor": lambda v: torch.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: torch.floor(v + 0.5),
    }
    if rounding not in roundings:
        raise n.refuse(f"it rounds positions by {rounding}, which is not known here")
    return roundings[rounding](_sources(n, size, wanted, ratio, way).round(decimals=9)).long().clamp(0, size - 1)
