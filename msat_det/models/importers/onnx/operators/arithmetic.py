"""Arithmetic element by element, activations, softmax, and reductions."""

import math
import operator as python
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msat_det.models.importers.onnx.building import Moving, Value
from msat_det.models.importers.onnx.operators.call import MIXED, OPERATORS, Call, Operator, along, kind_of, operator
from msat_det.models.importers.onnx.operators.shapes import for_all, reshaped


def _plain(function: Callable | str) -> Operator:
    """An operator that is one of torch's functions of its inputs."""
    return lambda n, *inputs: n.run(function, *_for_rows(n, inputs))


def _for_rows(n: Call, inputs: Sequence[Value]) -> list[Value]:
    """Inputs where a constant for all rows of an image, which the images are folded into, is there for every image."""
    beside = max((x for x in inputs if isinstance(x, Moving)), key=lambda x: len(x.shape), default=None)
    if beside is None or beside.shape[beside.images] == 1:
        return list(inputs)
    rank = len(beside.shape)

    def own(x: Value) -> Value:
        if isinstance(x, Moving) or x.dim() < rank - beside.images or x.shape[beside.images - rank] == 1:
            return x
        return for_all(n, x.reshape([1] * (rank - x.dim()) + list(x.shape)), beside)

    return [own(x) for x in inputs]


_PLAIN: dict[str, Callable] = {
    **{"Add": python.add, "Sub": python.sub, "Mul": python.mul, "Neg": torch.neg, "Abs": torch.abs, "Exp": torch.exp},
    **{"Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal, "Erf": torch.erf, "Pow": python.pow},
    **{"Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin},
    **{"Cos": torch.cos, "Tanh": torch.tanh, "Relu": F.relu, "Sigmoid": torch.sigmoid, "HardSwish": F.hardswish},
    **{"Softplus": F.softplus, "Softsign": F.softsign, "Mish": F.mish, "Equal": python.eq, "Greater": python.gt},
    **{"GreaterOrEqual": python.ge, "Less": python.lt, "LessOrEqual": python.le, "And": torch.logical_and},
    **{"Or": torch.logical_or, "Xor": torch.logical_xor, "Not": torch.logical_not, "Where": torch.where},
}
OPERATORS |= {name: _plain(function) for name, function in _PLAIN.items()}


@operator("Div")
def div(n: Call, x: Value, y: Value) -> Value:
    whole = kind_of(x) is int
    return n.run(torch.div, x, y, rounding_mode="trunc") if whole else n.run(python.truediv, x, y)


@operator("Mod")
def mod(n: Call, x: Value, y: Value) -> Value:
    """With the sign of y, or (fmod) of x."""
    return n.run(torch.fmod if n.get("fmod", 0) else torch.remainder, x, y)


@operator("DequantizeLinear")
def dequantize(n: Call, x: Value, scale: Value, zero: Value | None = None) -> Value:
    """Weights that lie in the file as whole numbers, with one scale, or one for each place along ``axis``."""
    values, factor = n.constant(x, "input"), n.constant(scale, "scale")
    middle = torch.zeros_like(factor) if zero is None else n.constant(zero, "zero point")
    if n.get("block_size", 0) or factor.dim() > 1:
        raise n.refuse("it is quantised in blocks", "give the float file that it was made of")
    if factor.numel() > 1:
        each = [-1] + [1] * (values.dim() - 1 - n.get("axis", 1) % values.dim())
        factor, middle = factor.reshape(each), middle.reshape(each)
    return (values - middle) * factor


@operator("IsNaN")
def is_nan(n: Call, x: Value) -> Value:
    return n.run(python.ne, x, x)


@operator("CumSum")
def cumulative_sum(n: Call, x: Value, axis: Value) -> Value:
    if n.get("exclusive", 0) or n.get("reverse", 0):
        raise n.refuse("it sums up backwards, or what comes before")
    return n.run(torch.cumsum, x, along(n, x, n.ints(axis, "axis")[0]))


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
        raise n.refuse(MIXED)
    if n.version >= 13 or math.prod(x.shape[axis + 1 :]) == 1:
        return n.run(function, x, axis)
    flat = reshaped(n, x, [*x.shape[:axis], math.prod(x.shape[axis:])])
    return reshaped(n, n.run(function, flat, -1), x.shape)


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
