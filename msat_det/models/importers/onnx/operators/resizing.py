"""Resizing: to nearest positions, or between them."""

import math
import operator as python
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from msat_det.models.importers.onnx.building import Value
from msat_det.models.importers.onnx.operators.call import Call, operator
from msat_det.models.importers.onnx.operators.shapes import picked


@operator("Upsample", "Resize")
def resize(n: Call, x: Value, *inputs: Value | None) -> Value:
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
    smooth = bool(n.get("antialias", 0))  # torch's own then leaves out what is beyond the edges
    if mode not in ("linear", "cubic") or smooth != bool(n.get("exclude_outside", 0)):
        raise n.refuse(f"it resizes by {mode} in a form that torch does not have")
    exact = all(math.isclose(sizes[d], x.shape[d] * ratios[d]) for d in changed)
    own = way == "align_corners" or (exact and way == "half_pixel")
    if mode == "linear" and not smooth and not (own and rank in (3, 4, 5)):
        return _between(n, x, sizes, ratios, way)
    bent = mode == "cubic" and not math.isclose(n.get("cubic_coeff_a", -0.75), -0.5 if smooth else -0.75)
    if ((mode == "cubic" or smooth) and (rank != 4 or not own)) or bent:
        raise n.refuse(f"it resizes by {mode} in a form that torch does not have")
    name = "bicubic" if mode == "cubic" else {3: "linear", 4: "bilinear", 5: "trilinear"}[rank]
    options = {"size": tuple(sizes[2:]), "mode": name, "align_corners": way == "align_corners"}
    return n.run(F.interpolate, x, **options | ({"antialias": True} if smooth else {}))


def _resized(n: Call, x: Value, inputs: Sequence[Value | None]) -> tuple[list[int], list[float]]:
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
        x = picked(n, x, d, index)
    return x


def _between(n: Call, x: Value, sizes: list[int], ratios: list[float], way: str) -> Value:
    """Linear between the two nearest positions, dimension after dimension."""
    for d in range(2, len(sizes)):
        if sizes[d] == x.shape[d]:
            continue
        at = _sources(n, x.shape[d], sizes[d], ratios[d], way).clamp(0, x.shape[d] - 1)
        low = at.floor().long()
        share = (at - low).float().reshape([-1] + [1] * (len(sizes) - 1 - d))
        below, above = picked(n, x, d, low), picked(n, x, d, (low + 1).clamp(max=x.shape[d] - 1))
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
