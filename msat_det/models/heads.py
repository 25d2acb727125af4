"""Heads by name: what a detector's raw outputs mean as boxes and scores, one function each.

A function gets where the outputs' rows lie (``Cells``) and their parts by name, each (B, P, n): the numbers of boxes as
the network gives them, objectness and class scores as probabilities. It gives boxes (B, P, 4) x1 y1 x2 y2 in pixels of
the network's input, and scores (B, P, C).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from msat_det.base.device import brought
from msat_det.base.errors import InputError
from msat_det.base.names import Names
from msat_det.models.preprocessing import RGB, Inputs

MOST_ROWS = 1 << 20  # boxes of an image
Stride = int | Sequence[float]  # input pixels a cell; x and y where they differ or are no whole numbers
Levels = tuple[tuple[float, ...], ...]  # for each level width and height of its anchors, one after the other
Found = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Cells:
    """Where the rows of a head's outputs lie: level after level, row by row, anchor by anchor.

    centre: (P, 2) x y of the middle of each cell, in input pixels. stride: (P, 2), a cell's width and height. anchor:
    (P, 2) width and height in input pixels (a cell's own, where the head has none). size: (2,) those of the input.
    """

    centre: Tensor
    stride: Tensor
    anchor: Tensor
    size: Tensor

    def to(self, device: torch.device) -> "Cells":
        return Cells(*(brought(getattr(self, item.name), device) for item in fields(self)))


def yolov3(cells: Cells, box: Tensor, objectness: Tensor, classes: Tensor) -> Found:
    """Redmon and Farhadi 2018, section 2.1: x = (σ(t) + column)·stride, width = exp(t)·anchor."""
    centre = cells.centre + (box[..., :2].sigmoid() - 0.5) * cells.stride
    return _around(centre, box[..., 2:].exp() * cells.anchor), objectness * classes


def yolov4(cells: Cells, box: Tensor, objectness: Tensor, classes: Tensor) -> Found:
    """Bochkovskiy et al. 2020: as YOLOv3, with σ(t) stretched about a cell's centre by 1.2, 1.1, 1.05 at strides 8, 16,
    32."""
    centre = cells.centre + (box[..., :2].sigmoid() - 0.5) * (cells.stride + 1.6)
    return _around(centre, box[..., 2:].exp() * cells.anchor), objectness * classes


def yolov5(cells: Cells, box: Tensor, objectness: Tensor, classes: Tensor) -> Found:
    """YOLOv5 to v7, and scaled YOLOv4: x = (2σ(t) − ½ + column)·stride, width = (2σ(t))²·anchor."""
    box = 2 * box.sigmoid()
    centre = cells.centre + (box[..., :2] - 1) * cells.stride
    return _around(centre, box[..., 2:].square() * cells.anchor), objectness * classes


def yolox(cells: Cells, box: Tensor, objectness: Tensor, classes: Tensor) -> Found:
    """Ge et al. 2021: x = (t + column)·stride, width = exp(t)·stride."""
    centre = cells.centre + (box[..., :2] - 0.5) * cells.stride
    return _around(centre, box[..., 2:].exp() * cells.stride), objectness * classes


def yolov8(cells: Cells, box: Tensor, classes: Tensor) -> Found:
    """Ultralytics' v8 and later, and PicoDet (Yu et al. 2021): distances to the four sides as distributions (Li et al.
    2020)."""
    return _within(cells.centre, expected(box), cells), classes


def nanodet(cells: Cells, box: Tensor, classes: Tensor) -> Found:
    """NanoDet-Plus: as PicoDet, but a cell counts from its upper left corner."""
    return _within(cells.centre - cells.stride / 2, expected(box), cells), classes


def fastestdet(cells: Cells, box: Tensor, objectness: Tensor, classes: Tensor) -> Found:
    """Ma 2022: x = (tanh(t) + column)·stride, width = σ(t) of the image's; score = objectness^.6 · class^.4."""
    centre = cells.centre + (box[..., :2].tanh() - 0.5) * cells.stride
    return _around(centre, box[..., 2:].sigmoid() * cells.size), objectness**0.6 * classes**0.4


def ssd(cells: Cells, box: Tensor, classes: Tensor) -> Found:
    """Liu et al. 2016: offsets x y w h from the anchors, multiplied by 10, 10, 5, 5 in training; background first."""
    centre = cells.centre + box[..., :2] / 10 * cells.anchor
    return _around(centre, (box[..., 2:] / 5).exp() * cells.anchor), classes[..., 1:]


def retinanet(cells: Cells, box: Tensor, classes: Tensor) -> Found:
    """Lin et al. 2017: offsets x y w h from the anchors, which stand about a cell's upper left corner."""
    centre = cells.centre - cells.stride / 2 + box[..., :2] * cells.anchor
    return _around(centre, box[..., 2:].clamp(max=math.log(1000 / 16)).exp() * cells.anchor), classes


def efficientdet(cells: Cells, box: Tensor, classes: Tensor) -> Found:
    """Tan et al. 2020: offsets y x h w from the anchors, which stand about a cell's centre."""
    centre = cells.centre + box[..., [1, 0]] * cells.anchor
    return _around(centre, box[..., [3, 2]].exp() * cells.anchor), classes


def fcos(cells: Cells, box: Tensor, objectness: Tensor, classes: Tensor) -> Found:
    """Tian et al. 2019, with distances in units of the stride: relu(t)·stride; score = √(class · centre-ness)."""
    return _within(cells.centre, box.relu(), cells), (classes * objectness).sqrt()


def rtmdet(cells: Cells, box: Tensor, classes: Tensor) -> Found:
    """Lyu et al. 2022: distances to the four sides in pixels, from a cell's upper left corner."""
    corner = cells.centre - cells.stride / 2
    return torch.cat((corner - box[..., :2], corner + box[..., 2:]), -1), classes


def detr(cells: Cells, box: Tensor, classes: Tensor) -> Found:
    """Carion et al. 2020: a row is a query's, x y w h of the middle in parts of the image's sides; no class last."""
    return rtdetr(cells, box, classes[..., :-1])


def rtdetr(cells: Cells, box: Tensor, classes: Tensor) -> Found:
    """Deformable DETR (Zhu et al. 2021), RT-DETR (Zhao et al. 2024), D-FINE: as DETR, but each class by itself."""
    return _around(box[..., :2] * cells.size, box[..., 2:] * cells.size), classes


def raw(cells: Cells, box: Tensor, classes: Tensor) -> Found:
    """The outputs are boxes in input pixels and scores as they are."""
    return box, classes


def expected(box: Tensor) -> Tensor:
    """(B, P, 4·bins) → (B, P, 4), the mean of the distribution over 0 … bins − 1; of one bin the number itself."""
    bins = box.unflatten(-1, (4, -1))
    if bins.shape[-1] == 1:
        return box
    return bins.softmax(-1) @ torch.arange(bins.shape[-1], dtype=box.dtype, device=box.device)


def _around(centre: Tensor, extent: Tensor) -> Tensor:
    return torch.cat((centre - extent / 2, centre + extent / 2), -1)


def _within(centre: Tensor, distances: Tensor, cells: Cells) -> Tensor:
    """From a point and its distances to the left, top, right and bottom, in cells."""
    sides = distances * cells.stride.repeat(1, 2)
    return torch.cat((centre - sides[..., :2], centre + sides[..., 2:]), -1)


@dataclass(frozen=True)
class Head:
    """A registered head.

    decode: see above. parts: of one map of outputs, in the order of its channels. strides: the usual ones; none where a
    row is not a cell's. anchored: whether boxes start from anchors. anchors: the usual ones for some strides, where
    there are any. bins: whether a box is four distributions. powers: whether its numbers may be powers of e. softmax:
    whether classes are one against the others, not each by itself. background: whether one of them is none. inputs: how
    a photograph is usually made ready. nms_iou: overlap above which the weaker of two boxes is usually dropped. shown:
    the score from which on boxes are usually looked at.
    """

    decode: Callable[..., Found]
    parts: tuple[str, ...]
    strides: tuple[int, ...] = (8, 16, 32)
    anchored: bool = False
    anchors: Callable[[Sequence[int]], Levels | None] = lambda strides: None
    bins: bool = False
    powers: bool = False
    softmax: bool = False
    background: bool = False
    inputs: Inputs = RGB
    nms_iou: float = 0.6
    shown: float = 0.3


_COCO_ANCHORS: dict[int, Levels] = {  # by how many levels there are: YOLOv3's and v5's, YOLOv3-tiny's
    3: ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326)),
    2: ((10, 14, 23, 27, 37, 58), (81, 82, 135, 169, 344, 319)),
}


def _coco_anchors(strides: Sequence[int]) -> Levels | None:
    return _COCO_ANCHORS.get(len(strides))


def _yolov4_anchors(strides: Sequence[int]) -> Levels | None:
    """YOLOv7's too."""
    known = (12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146), (142, 110, 192, 243, 459, 401)
    return known if len(strides) == 3 else None


def _efficientdet_anchors(strides: Sequence[int]) -> Levels:
    """Three sizes from 4·stride on, each as square, lying and upright: the order of its authors' code."""
    shapes = (1.0, 1.0), (1.4, 0.7), (0.7, 1.4)
    sizes = [2 ** (k / 3) for k in range(3)]
    return tuple(tuple(4 * s * size * side for size in sizes for shape in shapes for side in shape) for s in strides)


def _retinanet_anchors(strides: Sequence[int]) -> Levels:
    """Three shapes (lying, square, upright) of three sizes from 4·stride on: torchvision's, in its order."""

    def level(stride: int) -> tuple[float, ...]:
        sides = [int(4 * stride * 2 ** (k / 3)) for k in range(3)]
        return tuple(round(n / 2) * 2 for r in (0.5, 1, 2) for side in sides for n in (side / r**0.5, side * r**0.5))

    return tuple(map(level, strides))


_ULTRALYTICS = Inputs("letterbox", 114)
_IMAGENET = Inputs(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
_CAFFE = Inputs(bgr=True, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395))
_PADDED = replace(_IMAGENET, resize="corner", pad=116)  # by the mean, near enough
_YOLO = ("box", "objectness", "classes")
_FIVE = (8, 16, 32, 64, 128)
HEADS: Names[Head] = Names(
    "head",
    {
        "yolov3": Head(yolov3, _YOLO, anchored=True, anchors=_coco_anchors, nms_iou=0.45),
        "yolov4": Head(yolov4, _YOLO, anchored=True, anchors=_yolov4_anchors, nms_iou=0.45),
        "yolov5": Head(yolov5, _YOLO, anchored=True, anchors=_coco_anchors, inputs=_ULTRALYTICS),
        "yolov7": Head(yolov5, _YOLO, anchored=True, anchors=_yolov4_anchors, inputs=_ULTRALYTICS),
        "yolov8": Head(yolov8, ("box", "classes"), bins=True, inputs=_ULTRALYTICS, nms_iou=0.7),
        "yolox": Head(yolox, _YOLO, inputs=Inputs("corner", 114, True, std=(1.0,) * 3)),
        "nanodet": Head(nanodet, ("classes", "box"), (8, 16, 32, 64), bins=True, inputs=_CAFFE),
        "picodet": Head(yolov8, ("classes", "box"), (8, 16, 32, 64), bins=True, inputs=_IMAGENET),
        "fastestdet": Head(
            fastestdet, ("objectness", "box", "classes"), (16,), softmax=True, inputs=Inputs(bgr=True), shown=0.65
        ),
        "ssd": Head(
            ssd, ("box", "classes"), anchored=True, softmax=True, background=True, inputs=_IMAGENET, nms_iou=0.45
        ),
        "retinanet": Head(
            retinanet, ("box", "classes"), _FIVE, anchored=True, anchors=_retinanet_anchors, inputs=_IMAGENET
        ),
        "efficientdet": Head(
            efficientdet,
            ("box", "classes"),
            _FIVE,
            anchored=True,
            anchors=_efficientdet_anchors,
            inputs=_PADDED,
            nms_iou=0.5,
        ),
        "fcos": Head(fcos, ("classes", "box", "objectness"), _FIVE, inputs=_IMAGENET),
        "rtmdet": Head(
            rtmdet,
            ("classes", "box"),
            powers=True,
            inputs=Inputs("corner", 114, True, (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)),
        ),
        "detr": Head(
            detr, ("box", "classes"), (), softmax=True, background=True, inputs=_IMAGENET, nms_iou=1.0, shown=0.7
        ),
        "rtdetr": Head(rtdetr, ("box", "classes"), (), nms_iou=1.0),
        "raw": Head(raw, ("box", "classes")),
    },
)


def cells_of(size: tuple[int, int], strides: Sequence[Stride], anchors: Levels | None) -> tuple[Cells, list[int]]:
    """The cells of all levels of an input of (height, width), and how many rows each level has. Raises InputError."""
    each = [len(level) // 2 for level in anchors or ()] or [1] * len(strides)
    pairs = [(stride, stride) if isinstance(stride, int | float) else tuple(stride) for stride in strides]
    if any(len(pair) != 2 or not 0 < min(pair) <= max(pair) <= MOST_ROWS for pair in pairs):
        raise InputError(f"strides are {list(strides)}: give each level's input pixels a cell, or [x, y] of them")
    grids = [(math.ceil(round(size[0] / y, 4)), math.ceil(round(size[1] / x, 4))) for x, y in pairs]
    if sum(height * width * n for (height, width), n in zip(grids, each, strict=True)) > MOST_ROWS:
        raise InputError(f"strides {list(strides)} make more than {MOST_ROWS} boxes of an input of {size}")
    levels: list[Tensor] = []
    for level, (pair, (height, width)) in enumerate(zip(pairs, grids, strict=True)):
        stride = torch.tensor(pair, dtype=torch.float32)
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        sides = torch.tensor(anchors[level] if anchors else pair, dtype=torch.float32).reshape(-1, 2)
        places = torch.stack((x, y), -1).reshape(-1, 1, 2) * stride
        rows = torch.cat((places.expand(-1, len(sides), -1), sides.expand(len(places), -1, -1)), -1).flatten(0, 1)
        levels.append(torch.cat((rows, stride.expand(len(rows), 2)), 1))
    every = torch.cat([torch.empty(0, 6), *levels])
    extent = torch.tensor(size[::-1], dtype=torch.float32)
    return Cells(every[:, :2], every[:, 4:], every[:, 2:4], extent), [len(level) for level in levels]


def strides_of(shapes: Sequence[tuple[int, ...]], size: tuple[int, int], usual: Sequence[int]) -> list[int] | None:
    """The strides by which maps, (n, h, w) or (A, h, w, n), divide an input of (height, width), powers of two.

    None where they are the usual ones, there are no maps, or one could be of several strides.
    """
    maps = {shape[1:3] for shape in shapes if len(shape) > 2}
    if not usual or not maps or maps == {tuple(-(-side // stride) for side in size) for stride in usual}:
        return None
    fitting = [
        [2**k for k in range(12) if cells == tuple(-(-side // 2**k) for side in size)] for cells in maps
    ]  # of each map
    return sorted(found[0] for found in fitting) if all(len(found) == 1 for found in fitting) else None


Named = tuple[str, Tensor]  # an output, and what it is called


def named(outputs: Any, names: Sequence[str] = ()) -> list[Named]:
    """The tensors of a network's outputs by ``names``, or by where they stand in its own dicts and lists."""
    leaves = [(path, x) for path, x in pytree.tree_flatten_with_path(outputs)[0] if isinstance(x, Tensor)]
    if len(names) == len(leaves):
        return [(name, x) for name, (_, x) in zip(names, leaves, strict=True)]
    return [(pytree.keystr(path), x) for path, x in leaves]


def parts_of(outputs: list[Named], head: Head, classes: int, rows: Sequence[int], each: Sequence[int]) -> list[Tensor]:
    """A network's outputs → the head's parts, each (B, P, n).

    outputs: of a level one for all parts or one for each: maps (B, A·n, h, w) or (B, A, h, w, n), or rows (B, P, n) or
    (B, n, P), of one level or of all. rows: of each level; each: its anchors a cell. Where the sizes leave open which
    part one is its name decides, and if that does not, the order.
    Raises InputError for what does not fit, which the caller knows the shapes of.
    """
    levels: list[list[Named]] = [[] for _ in rows]
    for name, x in outputs:
        for level, part in _as_rows(x, rows, each):
            levels[level].append((name, part))
    columns = classes + head.background
    found = [_as_parts(level, head, columns) for level in levels]
    return [torch.cat(parts, 1) for parts in zip(*found, strict=True)]


def raw_parts(outputs: list[Named], classes: int) -> list[Tensor]:
    """Boxes (B, P, 4) and scores (B, P, C) out of a network's outputs; a column more is the background, the first.

    Of two that could be the boxes it is the one that is called so, or else the one with the larger numbers.
    """
    fitting = []
    for pair in itertools.permutations(outputs, 2):
        box, scores = (x for _, x in pair)
        fits = box.dim() == scores.dim() == 3 and box.shape[:2] == scores.shape[:2] and box.shape[2] == 4
        if fits and scores.shape[2] in (classes, classes + 1):
            fitting.append(pair)
    if not fitting:
        raise InputError("")
    if len(fitting) > 1:
        fitting.sort(key=lambda pair: (_misnamed(("box", "classes"), pair), -pair[0][1].abs().max().item()))
    (_, box), (_, scores) = fitting[0]
    return [box, scores[..., scores.shape[2] - classes :]]


_WORDS = {"objectness": "obj ctr cent", "box": "box reg loc dist", "classes": "cls class score logit conf prob"}


def _misnamed(parts: Sequence[str], outputs: Sequence[Named]) -> int:
    """How many of the outputs, which would be these parts, have another part's name."""
    meant = [_meant(name) for name, _ in outputs]
    return sum(bool(of) and of != part for part, of in zip(parts, meant, strict=True))


def _meant(name: str) -> str:
    """The part that an output is called by; "" where it is by none, or by two."""
    found = [part for part, words in _WORDS.items() if any(word in name.lower() for word in words.split())]
    return found[0] if len(found) == 1 or "objectness" in found else ""


def _as_rows(x: Tensor, rows: Sequence[int], each: Sequence[int]) -> list[tuple[int, Tensor]]:
    """A tensor as (level, (B, rows of it, n)), once or for every level."""
    if x.dim() == 5:  # (B, A, h, w, n)
        x = x.permute(0, 2, 3, 1, 4).flatten(1, 3)
    elif x.dim() == 4:
        counts = [count // anchors for count, anchors in zip(rows, each, strict=True)]
        cells = x.shape[2] * x.shape[3]
        if cells in counts and x.shape[1] % each[counts.index(cells)] == 0:
            x = x.unflatten(1, (each[counts.index(cells)], -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
    if x.dim() == 3 and x.shape[1] not in (*rows, sum(rows)):
        x = x.transpose(1, 2)
    if x.dim() == 3 and x.shape[1] == sum(rows):
        return list(enumerate(x.split(list(rows), 1)))
    if x.dim() == 3 and x.shape[1] in rows:
        return [(list(rows).index(x.shape[1]), x)]
    raise InputError("")


def _as_parts(found: list[Named], head: Head, columns: int) -> list[Tensor]:
    """What a level's tensors hold, in the order of the head's parts."""
    widths = {"objectness": 1, "classes": columns, "box": 4}
    if len(found) == 1:
        ((_, whole),) = found
        widths["box"] = whole.shape[-1] - sum(widths[part] for part in head.parts if part != "box")
        if widths["box"] == 4 or (head.bins and widths["box"] > 0 and widths["box"] % 4 == 0):
            return list(whole.split([widths[part] for part in head.parts], -1))
        raise InputError("")
    if len(found) != len(head.parts):
        raise InputError("")
    fitting = []
    for order in itertools.permutations(found):
        pairs = zip(head.parts, (x.shape[-1] for _, x in order), strict=True)
        if all(n % 4 == 0 if part == "box" and head.bins else n == widths[part] for part, n in pairs):
            fitting.append(order)
    if not fitting:
        raise InputError("")
    return [x for _, x in min(fitting, key=lambda order: _misnamed(head.parts, order))]  # of several the given one
