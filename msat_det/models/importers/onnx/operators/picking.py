"""What finds places, the largest values' say, and what picks elements by places. Each image has its own."""

import functools
import math
import operator as python
from collections.abc import Sequence

import torch
from torch import Tensor

from msat_det.graph import ops
from msat_det.models.importers.onnx.building import Moving, Value
from msat_det.models.importers.onnx.operators.call import FREE, Call, along, operator
from msat_det.models.importers.onnx.operators.shapes import cut, for_all, picked, reshaped


@operator("TopK")
def top_k(n: Call, x: Value, count: Value | None = None) -> list[Value]:
    k = n.get("k") if n.version < 10 else n.ints(count, "K")[0]
    axis, largest = along(n, x, n.get("axis", -1)), bool(n.get("largest", 1))
    places = n.run(ops.topk_places, x, k, axis, largest)
    return [n.run(torch.gather, x, axis, places), places]


@operator("ArgMax", "ArgMin")
def extreme(n: Call, x: Value) -> Value:
    if n.get("select_last_index", 0):
        raise n.refuse("of equal ones it takes the last")
    return n.run(
        torch.argmax if n.node.op == "ArgMax" else torch.argmin,
        x,
        along(n, x, n.get("axis", 0)),
        bool(n.get("keepdims", 1)),
    )


@operator("Gather")
def gather(n: Call, x: Value, indices: Value) -> Value:
    axis = n.get("axis", 0) % len(x.shape)
    size = x.shape[axis]
    before, behind = x.shape[:axis], x.shape[axis + 1 :]
    if isinstance(indices, Moving):
        flat = [math.prod(before), size, math.prod(behind)]
        sizes = [*before, *indices.shape, *behind]
        return _taken(n, x, flat, indices, [1, math.prod(indices.shape), 1], 1, sizes, axis + indices.images)
    if indices.numel() and not (-size <= indices.min() and indices.max() < size):
        raise n.refuse("its indices lead out of what it gathers from")
    indices = torch.where(indices < 0, indices + size, indices)
    if indices.dim() == 0:
        if isinstance(x, Moving) and axis == x.images:
            raise n.refuse("it picks one image of a batch", FREE)
        return n.run(torch.select, x, axis, int(indices))
    y = picked(n, x, axis, indices.flatten())
    return y if indices.dim() == 1 else reshaped(n, y, [*before, *indices.shape, *behind])


@operator("GatherElements")
def gather_elements(n: Call, x: Value, indices: Value) -> Value:
    axis = n.get("axis", 0) % len(x.shape)
    x = cut(n, x, {d: slice(0, size) for d, size in enumerate(indices.shape) if d != axis})
    images = next((value.images for value in (indices, x) if isinstance(value, Moving)), 0)
    return _taken(n, x, x.shape, indices, indices.shape, axis, indices.shape, images)


@operator("GatherND")
def gather_nd(n: Call, x: Value, indices: Value) -> Value:
    """indices: in their last dimension places along x's first ones, behind the ``batch_dims`` that both have."""
    shared, depth = n.get("batch_dims", 0), indices.shape[-1]
    each, sizes, behind = x.shape[:shared], x.shape[shared : shared + depth], x.shape[shared + depth :]
    # along a dimension of one element, that of the images among them, there is nothing to choose
    steps = {i: math.prod(sizes[i + 1 :]) for i, size in enumerate(sizes) if size > 1}
    last = len(indices.shape) - 1
    parts = [n.run(python.mul, cut(n, indices, {last: slice(i, i + 1)}), step) for i, step in (steps or {0: 0}).items()]
    places = functools.reduce(lambda one, other: n.run(python.add, one, other), parts)
    flat = [math.prod(each), math.prod(sizes), math.prod(behind)]
    wanted = [math.prod(each), math.prod(indices.shape[shared:-1]), 1]
    images = places.images if isinstance(places, Moving) else 0
    return _taken(n, x, flat, places, wanted, 1, [*indices.shape[:-1], *behind], images)


@operator("ScatterND")
def scatter_nd(n: Call, x: Value, indices: Value, updates: Value) -> Value:
    if n.get("reduction", "none") != "none":
        raise n.refuse("it does not write values, but joins them")
    indices = n.constant(indices, "indices")
    if isinstance(x, Tensor) and isinstance(updates, Tensor):
        return n.run(torch.index_put, x, indices.unbind(-1), updates)
    each = [places.unique() for places in indices.unbind(-1)]
    slices = [slice(int(places[0]), int(places[0]) + len(places)) for places in each]
    ranges = [torch.arange(size)[kept] for size, kept in zip(x.shape, slices, strict=False)]
    if not torch.equal(torch.cartesian_prod(*ranges).reshape(-1, len(each)), indices.reshape(-1, len(each))):
        raise n.refuse("it writes to places that are no block")
    if isinstance(x, Moving) and x.images < len(slices):
        slices[x.images] = slice(None) if len(ranges[x.images]) == x.shape[x.images] else slices[x.images]
    block = reshaped(n, updates, [*map(len, ranges), *x.shape[len(each) :]])
    whole = for_all(n, x, block) if isinstance(block, Moving) else x
    return n.run(ops.assigned, whole, tuple(slices), block)


def _taken(
    n: Call,
    x: Value,
    flat: Sequence[int],
    places: Value,
    wanted: Sequence[int],
    axis: int,
    sizes: Sequence[int],
    images: int,
) -> Value:
    """Elements of x at places along an axis; elsewhere what is of size 1 is there for all that the other one has.

    flat, wanted: shapes that x and places are looked at in, for one image. sizes: the result's. images: where they are
    to lie in it.
    """
    y = n.run(torch.take_along_dim, _by_image(n, x, flat), _by_image(n, places, wanted), axis + 1)
    y = n.run(torch.movedim, n.run(torch.reshape, y, [-1, *sizes]), 0, images) if images else y
    return n.run(torch.reshape, y, [*sizes[:images], -1, *sizes[images + 1 :]])


def _by_image(n: Call, x: Value, sizes: Sequence[int]) -> Value:
    """The images (1 for a constant) in a dimension of their own before all others, which become these."""
    if isinstance(x, Tensor):
        return n.run(torch.reshape, x, [1, *sizes])
    return n.run(torch.reshape, n.building.in_front(x), [-1, *sizes])
