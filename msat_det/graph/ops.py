"""What becomes of every operation of a traced network: its kind, by its canonical name (DESIGN §4).

The canonical name of ``nn.LeakyReLU``, ``F.leaky_relu`` and ``torch.leaky_relu_`` is ``leakyrelu``: lower case without
underscores. An operation that stands in none of the tables is refused, never passed over.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


class Kind(str, Enum):
    """The verdict on a node."""

    INPUT = "input"
    SHAPE = "shape"  # sizes, parameters and other values that no image enters
    LINEAR = "linear"  # runs on the graded spikes as it is
    SPIKING = "spiking"  # a pointwise activation, replaced by a neuron
    DIFFERENTIAL = "differential"  # acts on running means, passes on differences
    OUTPUT = "output"


@dataclass(frozen=True)
class Activation:
    """The pointwise function that a call site computes.

    rectified: the function is min(max(x, 0), upper), so that the neuron of DESIGN §3 applies; otherwise a tracking
        neuron follows ``fn``.
    curved: evaluating ``fn`` needs more than comparisons and a multiplication (counted as one more operation a step).
    slope: of a leaky ReLU below 0.
    """

    name: str
    fn: Callable[[Tensor], Tensor]
    rectified: bool = False
    upper: float = math.inf
    curved: bool = False
    slope: float = 0.0


def identity(x: Tensor) -> Tensor:
    """f(x) = x: the call site that ``spiking_linear`` puts behind a linear node."""
    return x


def hard_mish(x: Tensor) -> Tensor:
    """Darknet's: x for x > 0, x²/2 + x down to −2, 0 below."""
    return x / 2 * (x + 2).clamp(0, 2)


# Operations that multiply: their multiply-adds are what a network costs.
MULTIPLYING = {"conv1d", "conv2d", "conv3d", "convtranspose2d", "linear", "matmul", "bmm", "mm", "einsum"}

# Linear or affine in their image input whatever their other arguments are.
LINEAR = {
    *("conv1d", "conv2d", "conv3d", "convtranspose2d", "linear"),
    *("add", "sub", "rsub", "neg", "sum", "mean", "cat", "concat", "concatenate", "stack"),
    *("avgpool1d", "avgpool2d", "avgpool3d", "adaptiveavgpool1d", "adaptiveavgpool2d"),
    *("upsample", "interpolate", "upsamplingnearest2d", "upsamplingbilinear2d", "pixelshuffle", "channelshuffle"),
    *("pad", "zeropad2d", "constantpad2d", "reflectionpad2d", "replicationpad2d"),
    *("flatten", "unflatten", "view", "reshape", "permute", "transpose", "t", "movedim", "squeeze", "unsqueeze"),
    *("expand", "repeat", "getitem", "chunk", "split", "unbind", "select", "narrow", "indexselect", "tile", "flip"),
    *("identity", "contiguous", "clone", "detach", "to", "float", "batchnorm2d", "batchnorm1d", "batchnorm"),
    *("frozenbatchnorm2d", "zeroslike", "oneslike", "newzeros", "newones"),
}
# Linear while an image enters through one argument only; a product or quotient of two branches is differential.
LINEAR_IN_ONE = {"mul", "truediv", "matmul", "bmm", "mm"}
# Dropped from the graph: they do nothing in evaluation.
NEUTRAL = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout", "featuredropout", "identity"}
DIFFERENTIAL = {
    *("maxpool1d", "maxpool2d", "maxpool3d", "adaptivemaxpool2d", "amax", "max", "amin"),
    *("groupnorm", "layernorm", "instancenorm2d", "localresponsenorm", "normalize", "norm", "vectornorm", "rmsnorm"),
    *(
        "softmax",
        "logsoftmax",
        "pow",
        "square",
        "sqrt",
        "rsqrt",
        "exp",
        "log",
        "abs",
        "reciprocal",
        "maximum",
        "minimum",
    ),
    *("mul", "truediv", "matmul", "bmm", "mm"),
}
SHAPE = {"size", "dim", "numel"}  # of an image's tensor; any operation that no image enters is of this kind too
SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}
RECTIFIED = {"relu", "relu6"}
PIECEWISE_LINEAR = {"leakyrelu", "prelu", "hardtanh", "hardsigmoid"}
CLAMPS = {"clamp", "clip", "clampmin", "clampmax"}
CURVED = {
    *("hardswish", "silu", "sigmoid", "tanh", "elu", "celu", "selu", "gelu", "mish", "softplus", "logsigmoid"),
    "hardmish",
}
POINTWISE = RECTIFIED | PIECEWISE_LINEAR | CLAMPS | CURVED

# The names that Python's operators and some spellings hide behind.
_ALIASES = {
    **{"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv", "div": "truediv", "divide": "truediv"},
    **{"multiply": "mul", "subtract": "sub", "pack": "cat", "upsamplenearest": "upsample", "swish": "silu"},
    **{"negative": "neg", "swapaxes": "transpose", "dropoutnd": "dropout", "zeropad": "zeropad2d"},
}


def canonical(node: fx.Node, module: nn.Module | None) -> str:
    """The canonical name of what a node calls."""
    if module is not None:
        name = type(module).__name__
    else:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return canonical_name(name)


def canonical_name(name: str) -> str:
    """The canonical name of a function, method or class called ``name``."""
    name = name.lower().replace("_", "")
    return _ALIASES.get(name, name)


def is_inplace(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the node writes its result into its first argument."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.kwargs.get("inplace") is True:
        return True
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    if node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem):
        return True
    if node.target in (F.relu, F.relu6, F.leaky_relu, F.hardtanh, F.elu, F.silu, F.mish, F.hardswish, F.hardsigmoid):
        # F.relu(x, True): the last positional argument of these is `inplace`
        return len(node.args) > 1 and node.args[-1] is True
    return getattr(node.target, "__name__", "").rstrip("_") != getattr(node.target, "__name__", "")


def activation_of(name: str, node: fx.Node, module: nn.Module | None, call: Callable[..., Any]) -> Activation:
    """The ``Activation`` of a pointwise node; ``call(x)`` evaluates the node on a tensor in place of its first input.

    A clamp from 0 upwards, in whatever spelling, is a ReLU with an upper bound.
    """
    if name == "relu":
        return Activation("relu", torch.relu, rectified=True)
    if name == "relu6":
        return Activation("relu6", call, rectified=True, upper=6.0)
    if name in CLAMPS or name == "hardtanh":
        low, high = _bounds(name, node, module)
        if isinstance(low, fx.Node) or isinstance(high, fx.Node):
            return Activation(name, call)  # bounds that differ by element
        if low == 0:
            label = "relu" if high == math.inf else "relu6" if high == 6 else f"clamp(0, {high:g})"
            return Activation(label, call, rectified=True, upper=high)
        return Activation(f"clamp({low:g}, {high:g})", call)
    slope = -float(call(torch.tensor(-1.0))) if name == "leakyrelu" else 0.0
    return Activation(name, call, curved=name in CURVED, slope=slope)


def _bounds(name: str, node: fx.Node, module: nn.Module | None) -> tuple[float | fx.Node, float | fx.Node]:
    if module is not None:
        return float(module.min_val), float(module.max_val)
    args = list(node.args[1:])
    if name == "clampmin":
        low, high = (args or [node.kwargs.get("min")])[0], None
    elif name == "clampmax":
        low, high = None, (args or [node.kwargs.get("max")])[0]
    else:
        keys = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
        defaults = (-1.0, 1.0) if name == "hardtanh" else (None, None)
        args += [None] * (2 - len(args))
        low, high = (
            arg if arg is not None else node.kwargs.get(key, default)
            for arg, key, default in zip(args[:2], keys, defaults, strict=True)
        )
    return (-math.inf if low is None else low), (math.inf if high is None else high)
