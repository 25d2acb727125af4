"""What moves elements from place to place, changes their type, or gives values that no image enters."""

import math
import operator as python
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from msat_det.models.importers.onnx.building import Moving, Value
from msat_det.models.importers.onnx.operators.call import FREE, MIXED, Call, kind_of, operator

LONGEST_RANGE = 1 << 20


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
        raise n.refuse("it takes away the dimension of the images", FREE)
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
    if not isinstance(x, Moving) or len(times) != len(x.shape) or times[x.images] == 1:
        return n.run("repeat", x, *times)
    d = x.images  # of which each has its rows several times, one after the other
    sizes = [size * count for size, count in zip(x.shape, times, strict=True)]
    y = n.run("repeat", n.run(torch.reshape, x, [*x.shape[:d], -1, *x.shape[d:]]), *times[:d], 1, *times[d:])
    return n.run(torch.reshape, y, [*sizes[:d], -1, *sizes[d + 1 :]])


@operator("Concat")
def concat(n: Call, *inputs: Value) -> Value:
    moving = next((x for x in inputs if isinstance(x, Moving)), None)
    if moving is None:
        return n.run(torch.cat, list(inputs), n.get("axis", 0))
    axis = n.get("axis", 0) % len(moving.shape)
    if axis == moving.images:
        raise n.refuse(MIXED)
    return n.run(torch.cat, [for_all(n, x, moving) for x in inputs], axis)


def for_all(n: Call, x: Value, beside: Moving) -> Value:
    """A constant for one image, a class token say, once for every image."""
    if isinstance(x, Moving):
        return x
    d = beside.images
    first = {other: slice(0, 1) for other in range(len(beside.shape)) if other != d}
    zero = n.run(python.mul, cut(n, beside, first), kind_of(beside)(0))
    if x.shape[d] == 1:
        return n.run(python.add, zero, x)
    apart = n.run(torch.reshape, zero, [*zero.shape[:d], -1, *zero.shape[d:]])
    return n.run(torch.reshape, n.run(python.add, apart, x.unsqueeze(d)), [*x.shape[:d], -1, *x.shape[d + 1 :]])


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
    return [cut(n, x, {axis: slice(b, b + size)}) for b, size in zip(begins, lengths, strict=True)]


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
            x = picked(n, x, axis, torch.tensor(list(places), dtype=torch.int64))
        else:
            cuts[axis] = slice(_within(start, x.shape[axis]), _within(end, x.shape[axis]), None if step == 1 else step)
    return cut(n, x, cuts)


def _within(place: int, size: int) -> int | None:
    """A beginning or end that is beyond the size as Python's slices have it."""
    return None if place > size or (place < -size and place < -(2**31)) else place


def cut(n: Call, x: Value, cuts: dict[int, slice]) -> Value:
    kept = {d: c for d, c in cuts.items() if c.indices(x.shape[d]) != (0, x.shape[d], 1)}
    if isinstance(x, Moving) and x.images in kept:
        raise n.refuse("it picks some images of a batch", FREE)
    return n.run(python.getitem, x, tuple(kept.get(d, slice(None)) for d in range(max(kept) + 1))) if kept else x


def picked(n: Call, x: Value, axis: int, index: Tensor) -> Value:
    """The elements of these places, (K,), along a dimension."""
    first, count = int(index[0]) if len(index) else 0, len(index)
    if torch.equal(index, torch.arange(first, first + count)):
        return cut(n, x, {axis: slice(first, first + count)})
    if isinstance(x, Moving) and axis == x.images:
        raise n.refuse("it picks some images of a batch", FREE)
    if torch.equal(index, torch.arange(x.shape[axis]).flip(0)):
        return n.run(torch.flip, x, [axis])
    return n.run(torch.index_select, x, axis, index)


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
    return padded(n, x, begin[first:], end[first:], fill, mode)


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
    wanted = kind.get(n.get("to", 1)) if like is None else kind_of(like)
    if wanted is None:
        raise n.refuse(f"it casts to type {n.get('to')}, which is neither float nor whole")
    if isinstance(x, Tensor):
        return n.run("to", x, {float: torch.float32, bool: torch.bool, int: torch.int64}[wanted])
    if wanted is kind_of(x):
        return x
    if wanted is float:
        return n.run("to", x, torch.float32)
    raise n.refuse("it rounds what the image gives to whole numbers")


def padded(n: Call, x: Value, begin: Sequence[int], end: Sequence[int], value: float, mode: str = "constant") -> Value:
    """begin, end: of the last dimensions."""
    amounts = [amount for pair in reversed(list(zip(begin, end, strict=True))) for amount in pair]
    return n.run(F.pad, x, amounts, mode, value) if mode == "constant" else n.run(F.pad, x, amounts, mode)


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
