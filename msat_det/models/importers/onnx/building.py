"""A torch.fx graph under construction, and the values in it: constants, and those that images enter."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from msat_det.base.errors import InputError
from msat_det.graph.ops import LINEAR_IN_ONE, POINTWISE, canonical_name
from msat_det.models.importers.onnx.file import MAX_ELEMENTS

MAX_CONSTANTS = 1 << 24  # elements of all that is calculated
# of each element alone
_ELEMENTWISE = POINTWISE | set("mul truediv pow square sqrt rsqrt reciprocal abs exp log sin cos erf".split())
BATCHES = (1, 3)  # images with which every value is looked at: what differs is the dimension of the images


@dataclass(frozen=True, eq=False)
class Moving:
    """A value that images enter. node: of the graph. probes: what it is for 1 and for 3 images, on the meta device."""

    node: fx.Node
    probes: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """As the file has it, which is for one image."""
        return tuple(self.probes[0].shape)

    @property
    def images(self) -> int:
        """The dimension along which the images lie."""
        return next(d for d, (a, b) in enumerate(zip(*(p.shape for p in self.probes), strict=True)) if a != b)


Value = Tensor | Moving


class Building:
    """root: layers and constants. graph: calls of them. Constants are calculated at once, never written as calls."""

    def __init__(self) -> None:
        self.root, self.graph = nn.Module(), fx.Graph()
        self.names: dict[int, str] = {}  # of constants, by their identity
        self.kept: list[Tensor] = []
        self.calculated = 0

    def input(self, name: str, sizes: Sequence[int]) -> Moving:
        """An input (images, *sizes)."""
        node = self.graph.placeholder(name)
        return Moving(node, tuple(torch.empty(batch, *sizes, device="meta") for batch in BATCHES))

    def call(self, function: Callable | str, *args: Any, **kwargs: Any) -> Any:
        """A function of torch, or a method by its name, on values: a constant where all are, else a new node.

        Raises InputError where the images of a batch would mix, RuntimeError and others where the arguments don't fit.
        """
        leaves = pytree.tree_leaves((args, kwargs))
        if not any(isinstance(value, Moving) for value in leaves):
            self.calculated += _elements(_run(function, *_as(args, kwargs, lambda x: x.to("meta"))))
            if self.calculated > MAX_CONSTANTS:
                raise InputError("too much is calculated from constants alone: simplify the file, or export it anew")
            return _run(function, args, kwargs)
        if images := _apart(function, leaves):
            return self.moved(images, lambda *first: self.call(function, *first, **kwargs), *args)
        rank = max(len(value.shape) for value in leaves if isinstance(value, Moving))
        own, named = _as(args, kwargs, lambda x: self.argument(x, rank))
        if isinstance(function, str):
            node = self.graph.call_method(function, own, named)
        else:
            node = self.graph.call_function(function, own, named)
        return self.moving(node, lambda i: _run(function, *_as(args, kwargs, lambda x: _probe(x, i))))

    def layer(self, kind: type[nn.Module], x: Value, tensors: Mapping[str, Value | None], **arguments: Any) -> Moving:
        """A layer of torch.nn with these tensors, constants all, on x. Raises as ``call``."""
        if not isinstance(x, Moving):
            raise InputError("its input is a constant: export the network with its result")
        if kind not in (nn.Linear, nn.LayerNorm) or x.images == len(x.shape) - 1:
            x = self.in_front(x)
        if x.images != 0:
            return self.moved(x.images, lambda first: self.layer(kind, first, tensors, **arguments), x)
        weights: dict[str, Tensor] = {}
        for name, value in tensors.items():
            if value is None:
                continue
            if not isinstance(value, Tensor) or not value.is_floating_point() or not value.isfinite().all():
                raise InputError("its weights are no constants, or not finite: give an undamaged file")
            if value.numel() == 0:
                raise InputError("its weights are empty: give an undamaged file")
            weights[name] = value
        with torch.device("meta"):
            layer = kind(**arguments).eval()
        probed = copy.deepcopy(layer)
        own = {name: value for name, value in layer.state_dict().items() if name not in weights}
        weights |= {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in own.items()}  # counters
        layer.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
        name = f"{kind.__name__.lower()}_{len(self.root._modules)}"
        self.root.add_module(name, layer)
        return self.moving(self.graph.call_module(name, (x.node,)), lambda i: probed(x.probes[i]))

    def moved(self, images: int, make: Callable[..., Any], *args: Any) -> Any:
        """What ``make`` gives for arguments with their images in dimension 0, where layers, neurons and products of two
        need them, moved back to the dimension where they were."""
        first = [self.call(torch.movedim, x, images, 0) if isinstance(x, Moving) else x for x in args]
        return self.call(torch.movedim, make(*first), 0, images)

    def in_front(self, x: Moving) -> Moving:
        """x with the images as the outermost factor of dimension 0, where each has its rows one after the other."""
        if x.images == 0:
            return x
        apart = self.call(torch.reshape, x, [*x.shape[: x.images], -1, *x.shape[x.images :]])
        return self.call(torch.reshape, self.call(torch.movedim, apart, x.images, 0), [-1, *x.shape[1:]])

    def moving(self, node: fx.Node, probe: Callable[[int], Any]) -> Moving:
        probes = tuple(probe(i) for i in range(len(BATCHES)))
        if _elements(probes[0]) > MAX_ELEMENTS:
            raise InputError(f"it gives {tuple(probes[0].shape)} for one image, which is far too large")
        shapes = [tuple(probe.shape) for probe in probes]
        pairs = list(zip(*shapes, strict=False))
        grown = [pair for pair in pairs if pair[0] != pair[1]]
        if len({len(shape) for shape in shapes}) > 1 or [b == a * BATCHES[1] for a, b in grown] != [True]:
            raise InputError("it mixes the images of a batch, or picks one of them: export it for one image")
        return Moving(node, probes)

    def argument(self, value: Value, rank: int) -> Any:
        """What a call in the graph gets: a node, or a plain number for a constant of one element, but no plain truth:
        torch's functions take masks as tensors alone."""
        if isinstance(value, Moving):
            return value.node
        if value.numel() == 1 and value.dim() <= rank and value.dtype is not torch.bool:
            return value.item()
        if id(value) not in self.names:
            self.names[id(value)] = name = f"constant_{len(self.names)}"
            self.kept.append(value)  # or another tensor may get its identity
            if value.is_floating_point():
                self.root.register_parameter(name, nn.Parameter(value.clone()))
            else:
                self.root.register_buffer(name, value.clone())
        return self.graph.get_attr(self.names[id(value)])


def _apart(function: Callable | str, values: Sequence[Any]) -> int:
    """The dimension of the images of all values that they enter, where the function is of each element alone and not
    linear, it is one dimension, and other values are single; else 0."""
    name = canonical_name(function if isinstance(function, str) else function.__name__)
    moving = [value for value in values if isinstance(value, Moving)]
    if name not in _ELEMENTWISE or (name in LINEAR_IN_ONE and len(moving) == 1):
        return 0
    single = all(value.numel() == 1 for value in values if isinstance(value, Tensor))
    return moving[0].images if single and len({(len(x.shape), x.images) for x in moving}) == 1 else 0


def _run(function: Callable | str, args: tuple, kwargs: dict) -> Any:
    return getattr(args[0], function)(*args[1:], **kwargs) if isinstance(function, str) else function(*args, **kwargs)


def _as(args: tuple, kwargs: dict, change: Callable[[Any], Any]) -> Any:
    """Arguments with every value in them changed."""
    return pytree.tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor | Moving) else leaf, (args, kwargs))


def _elements(value: Any) -> int:
    return sum(part.numel() for part in pytree.tree_leaves(value) if isinstance(part, Tensor))


def _probe(value: Value, index: int) -> Tensor:
    return value.probes[index] if isinstance(value, Moving) else value.to("meta")
