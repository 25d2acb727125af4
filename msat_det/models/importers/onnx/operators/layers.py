"""What becomes a layer of torch.nn: convolutions and other products, norms, pooling."""

import math
import operator as python
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msat_det.models.importers.onnx.building import Moving, Value
from msat_det.models.importers.onnx.operators.call import Call, kind_of, operator
from msat_det.models.importers.onnx.operators.shapes import cut, for_all, padded

MOST_PRODUCTS = 1 << 28  # multiply-adds of a product of constants


# ---- products ----


@operator("Conv")
def conv(n: Call, x: Value, weight: Value, bias: Value | None = None) -> Value:
    kind, weight, steps = _layer_of(n, weight, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    begin, end = _pads(n, x.shape[2:], weight.shape[2:], **steps)
    if begin != end:
        x, begin = padded(n, x, begin, end, 0.0), [0] * len(begin)
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
    return cut(n, y, {d + 2: slice(*r) for d, r in enumerate(ranges)})


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
    if any(isinstance(x, Moving) for x in inputs) and not all(kind_of(x) is float for x in inputs):
        raise n.refuse("it multiplies whole numbers with floats", "give an undamaged file")


def _bound(n: Call, products: int) -> None:
    if products > MOST_PRODUCTS:
        raise n.refuse("its product of constants is far too large", "export it with its result")


def _linear(n: Call, x: Moving, weight: Tensor, bias: Tensor | None) -> Value:
    tensors = {"weight": weight.contiguous(), "bias": bias}
    sizes = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    folded = x.images == len(x.shape) - 1  # (L, 1, C), attention's rows, made (L, C)
    rows = n.run(torch.reshape, x, [*x.shape[:-1], -1, x.shape[-1]]) if folded else x
    y = n.building.layer(nn.Linear, rows, tensors, **sizes, bias=bias is not None)
    return n.run(torch.reshape, y, [*x.shape[:-1], -1]) if folded else y


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
def layer_norm(n: Call, x: Value, scale: Value, bias: Value | None = None) -> Value:
    shape = x.shape[n.get("axis", -1) :]
    if isinstance(x, Tensor):
        return n.run(F.layer_norm, x, shape, scale, bias, n.get("epsilon", 1e-5))
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
            return cut(n, y, cuts)
    raise n.refuse(f"its padding of {begin} and {end} is not known to torch")


@operator("AveragePool")
def average_pool(n: Call, x: Value) -> Value:
    kernel, stride, dilation, begin, end, wanted = _windows(n, x)
    inside = bool(n.get("count_include_pad", 0))
    if set(dilation) != {1} or (begin != end and not inside):
        raise n.refuse("its average leaves out padding that differs between the ends, or it is dilated")
    if begin != end:
        x, begin = padded(n, x, begin, end, 0.0), [0] * len(kernel)
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


@operator("GridSample")
def grid_sample(n: Call, x: Moving, grid: Value) -> Value:
    mode, corners = n.get("mode", "linear"), bool(n.get("align_corners", 0))
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return n.run(F.grid_sample, x, for_all(n, grid, x), mode, n.get("padding_mode", "zeros"), corners)


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
