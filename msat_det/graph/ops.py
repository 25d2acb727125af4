"""What becomes of every operation of a traced network: its kind, by its canonical name.

The canonical name of ``nn.LeakyReLU``, ``F.leaky_relu`` and ``torch.leaky_relu_`` is ``leakyrelu``: lower case without
underscores. An operation that stands in none of the tables is refused, never passed over.
"""

import functools
import inspect
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ParamSpec

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.overrides import handle_torch_function, has_torch_function


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

    rectified: the function is min(max(x, 0), upper), so that a soft-reset neuron does for it; otherwise a tracking
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


P = ParamSpec("P")


def one_node(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """A function that stands as a single node in the graph of a network that is recorded, whatever it calls; its
    arguments stand there by their places."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        given = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if has_torch_function(given) and not torch.compiler.is_compiling():
            node: Callable[..., Tensor] = call
            return handle_torch_function(node, given, *inspect.signature(function).bind(*args, **kwargs).args)
        return function(*args, **kwargs)

    return call


def identity(x: Tensor) -> Tensor:
    """f(x) = x: the call site that ``spiking_linear`` puts behind a linear node."""
    return x


def hard_mish(x: Tensor) -> Tensor:
    """Darknet's: x for x > 0, x²/2 + x down to −2, 0 below."""
    return x / 2 * (x + 2).clamp(0, 2)


def assigned(x: Tensor, index: Any, value: Tensor | float) -> Tensor:
    """What ``x`` is behind ``x[index] = value``."""
    y = x.clone()
    y[index] = value
    return y


def topk_values(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Tensor:
    """The first of what ``torch.topk`` gives."""
    return x.topk(k, dim, largest, sorted)[0]


@one_node
def topk_places(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Tensor:
    """The second: where in ``x`` they are, of equal ones the first of them, as in ONNX; PyTorch leaves that open."""
    if torch.compiler.is_compiling():  # to be written down as ONNX, which has no stable sort
        return x.topk(k, dim, largest, sorted)[1]
    return x.sort(dim=dim, descending=largest, stable=True).indices.narrow(dim, 0, k)


def guard(found: int, traced: int) -> None:
    """Raise ValueError unless a size, or what was decided by it, is as it was when the network was traced."""
    if found != traced:
        raise ValueError(f"the network was traced where this is {traced}, and takes another way where it is {found}")


# Operations that multiply: their multiply-adds are what a network costs.
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convtranspose1d", "convtranspose2d", "convtranspose3d"}
GEOMETRY = ("stride", "padding", "dilation", "groups")  # their arguments behind input, weight and bias
GEOMETRY_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
DEFORMABLE = "deformconv2d"  # torchvision's, whose offsets come from an image as what it samples does
MULTIPLYING = CONVOLUTIONS | {"linear", "matmul", "bmm", "mm", "einsum", DEFORMABLE}

_PADS = {f"{way}pad{n}d" for n in "123" for way in ("zero", "constant", "reflection", "replication", "circular")}
# Outputs that nothing else refers to; an einsum of one tensor gives that very one.
FRESH = (MULTIPLYING - {"einsum"}) | {"add", "sub", "mul", "truediv", "cat", "batchnorm2d"}

AVERAGE_POOLINGS = {f"{way}avgpool{n}d" for n in "123" for way in ("", "adaptive")}
MAX_POOLINGS = {f"{way}maxpool{n}d" for n in "123" for way in ("", "adaptive")}
RESIZINGS = {"upsample", "interpolate", "upsamplingnearest2d", "upsamplingbilinear2d"}
BATCH_NORMS = {"batchnorm", "batchnorm1d", "batchnorm2d", "batchnorm3d", "syncbatchnorm", "frozenbatchnorm2d"}
# What carries elements from place to place, and calculates nothing.
JOINING = {"cat", "concat", "concatenate", "assigned"}
MOVING = JOINING | {
    *("flatten", "unflatten", "view", "reshape", "permute", "transpose", "t", "movedim", "squeeze", "unsqueeze"),
    *("expand", "broadcastto", "repeat", "tile", "getitem", "chunk", "split", "tensorsplit", "unbind", "select"),
    *("narrow", "indexselect", "gather", "takealongdim", "flip", "roll", "stack"),
}

# Linear or affine in their image input whatever their other arguments are.
LINEAR = {
    *(CONVOLUTIONS | AVERAGE_POOLINGS | RESIZINGS | BATCH_NORMS | MOVING | _PADS),
    *("linear", "add", "sub", "rsub", "neg", "pos", "sum", "mean", "hstack", "dstack", "columnstack", "pad"),
    *("pixelshuffle", "pixelunshuffle", "channelshuffle", "fold", "unfold", "rot90", "fliplr", "flipud"),
    *("repeatinterleave", "viewas", "reshapeas", "expandas", "ravel", "where", "maskedfill", "diagonal"),
    *("identity", "contiguous", "clone", "detach", "to", "float", "type", "typeas"),
    *("zeroslike", "oneslike", "fulllike", "newzeros", "newones", "newfull"),
}
# Linear while an image enters through one argument only; a product or quotient of two branches is differential.
LINEAR_IN_ONE = {"mul", "truediv", "matmul", "bmm", "mm", "einsum"}
# Dropped from the graph: they do nothing in evaluation.
NEUTRAL = {
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout", "featuredropout", "featurealphadropout"),
    *("stochasticdepth", "dropblock2d", "dropblock3d", "identity"),
}
# Their result is true or false: a mask, which acts on what it meets at once and is never summed up.
COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne", "and", "or", "xor", "invert"}
COMPARISONS |= {"logicaland", "logicalor", "logicalxor", "logicalnot"}
QUANTIFIERS = {"all", "any"}  # of what is true or false along a dimension
PROPOSALS = "regionproposals"
PICKS = {PROPOSALS, "topkplaces"}  # the best of many by their scores
REGIONS = {PROPOSALS, "pooledregions"}  # of ``regions``: how many there are differs by image
CHOICES = {"where", "maskedfill"}  # linear where their condition does not come from an image
DIFFERENTIAL = {
    *MAX_POOLINGS,
    *(
        "amax",
        "max",
        "amin",
        "argmax",
        "argmin",
        "topkvalues",
        "topkplaces",
        "maximum",
        "minimum",
        "lppool1d",
        "lppool2d",
        "lppool3d",
    ),
    *("groupnorm", "layernorm", "instancenorm", "instancenorm1d", "instancenorm2d", "instancenorm3d"),
    "localresponsenorm",
    *("normalize", "norm", "vectornorm", "rmsnorm", "std", "var"),
    *("softmax", "softmax2d", "softmin", "logsoftmax", "logsumexp", "glu", "lerp", "addcmul", "addcdiv"),
    *("pow", "square", "sqrt", "rsqrt", "reciprocal", "abs", "exp", "expm1", "log", "log1p"),
    *("sin", "cos", "atan", "erf", "sign", "gridsample"),
    *REGIONS,
    "pooledboxes",
    DEFORMABLE,
    *LINEAR_IN_ONE,
    *COMPARISONS,
    *QUANTIFIERS,
}
SHAPE = {"size", "dim", "numel"}  # of an image's tensor; any operation that no image enters is of this kind too
SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}
# Of sizes alone, or of a parameter and sizes: no image enters them.
SIZED = {
    *("floordiv", "mod", "zeros", "ones", "full", "arange", "linspace", "guard", "eye", "meshgrid", "cumsum", "outer"),
    *("cartesianprod", "tril", "triu", "floor", "ceil", "round", "long", "int", "bool"),
}
RECTIFIED = {"relu", "relu6"}
PIECEWISE_LINEAR = {"leakyrelu", "rrelu", "prelu", "hardtanh", "hardsigmoid", "hardshrink", "softshrink", "threshold"}
CLAMPS = {"clamp", "clip", "clampmin", "clampmax"}
CURVED = {"hardswish", "silu", "sigmoid", "tanh", "elu", "celu", "selu", "gelu", "mish", "softplus", "logsigmoid"}
CURVED |= {"hardmish", "softsign", "tanhshrink"}
POINTWISE = RECTIFIED | PIECEWISE_LINEAR | CLAMPS | CURVED
KNOWN = POINTWISE | LINEAR | LINEAR_IN_ONE | DIFFERENTIAL | NEUTRAL

# The names that Python's operators and some spellings hide behind.
_ALIASES = {
    **{"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv", "ipow": "pow", "div": "truediv"},
    **{"divide": "truediv", "truedivide": "truediv", "multiply": "mul", "subtract": "sub", "pack": "cat"},
    **{"upsamplenearest": "upsample", "upsamplebilinear": "upsample", "swish": "silu", "negative": "neg"},
    **{"swapaxes": "transpose", "swapdims": "transpose", "moveaxis": "movedim"},
    "nativechannelshuffle": "channelshuffle",
    **{"positive": "pos", "absolute": "abs", "arctan": "atan", "dropoutnd": "dropout", "zeropad": "zeropad2d"},
    **{"greater": "gt", "greaterequal": "ge", "less": "lt", "lessequal": "le", "notequal": "ne", "inv": "invert"},
    **{"linalgnorm": "norm", "linalgvectornorm": "vectornorm", "linalgmatmul": "matmul"},
    **{"bitwiseand": "and", "bitwiseor": "or", "bitwisexor": "xor", "bitwisenot": "invert"},
}


_OVERWRITING = {getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv", "ipow", "setitem")}


def canonical(node: fx.Node, module: nn.Module | None) -> str:
    """The canonical name of what a node calls."""
    if module is not None:
        name = type(module).__name__
    elif node.kwargs.get("rounding_mode") is not None:
        name = "floordiv"  # whatever the division is called
    else:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return canonical_name(name)


def canonical_name(name: str) -> str:
    """The canonical name of a function, method or class called ``name``."""
    name = name.lower().replace("_", "")
    return _ALIASES.get(name, name)


def argument(node: fx.Node, position: int, *names: str) -> Any:
    """What a call is given at a position, else by the first of these names that it has; None where by neither."""
    if len(node.args) > position:
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), None)


def is_inplace(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the node writes its result into its first argument."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.kwargs.get("inplace") is True:
        return True
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if getattr(node.target, "__module__", "") == "_operator":
        return node.target in _OVERWRITING
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
    if name == "threshold" and _arguments(node, module, "threshold", "value") == [0, 0]:
        return Activation("relu", call, rectified=True)
    if name in ("leakyrelu", "rrelu"):
        slope = -float(call(torch.tensor(-1.0)))
        return Activation("leakyrelu" if slope <= 1 else "steeprelu", call, slope=slope)
    return Activation(name, call, curved=name in CURVED)


def _arguments(node: fx.Node, module: nn.Module | None, *names: str) -> list[Any]:
    """The arguments of these names, which stand behind the input in this order."""
    if module is not None:
        return [getattr(module, name) for name in names]
    return [argument(node, position, name) for position, name in enumerate(names, 1)]


def _bounds(name: str, node: fx.Node, module: nn.Module | None) -> tuple[float | fx.Node, float | fx.Node]:
    if name == "hardtanh":
        low, high = _arguments(node, module, "min_val", "max_val")
        return (-1.0 if low is None else low), (1.0 if high is None else high)
    names = {"clampmin": ("min",), "clampmax": ("max",)}.get(name, ("min", "max"))
    given = dict(zip(names, _arguments(node, None, *names), strict=True))
    low, high = given.get("min"), given.get("max")
    return (-math.inf if low is None else low), (math.inf if high is None else high)
