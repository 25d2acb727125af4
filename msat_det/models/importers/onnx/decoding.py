"""What an ONNX file's own decoding says of its raw outputs: which head's they are, and by which anchors."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from msat_det.base.errors import InputError
from msat_det.models.headed import HeadDetector
from msat_det.models.heads import Head, Stride
from msat_det.models.importers.onnx.file import OnnxFile
from msat_det.models.importers.onnx.network import network_of

_MOST = 32  # tensors that may be the decoded boxes
_COMPARED = 64  # boxes
_NEAR = 0.5  # pixels
_WHOLE = 0.01


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a file makes of raw outputs, as far as it may be boxes: each (n, m), its boxes rows or columns.

    outputs: raw ones drawn by chance, (1, …) each. by_chance, at_zero: what it makes of these, and of zeros.
    Nothing where the file ends there, or goes on in what is not known here.
    """

    outputs: list[Tensor]
    by_chance: list[Tensor]
    at_zero: list[Tensor]


def decoded(file: OnnxFile, raw: fx.GraphModule) -> Decoded:
    """The file's outputs first, then what it puts together before them, the last one first.

    raw: the network up to its raw outputs.
    """
    names = raw.meta["outputs"]
    cut = [replace(node, outputs=[f"{x}, cut off" if x in names else x for x in node.outputs]) for node in file.nodes]
    sizes: dict[str, list[int | None] | None] = {name: [1, *own] for name, own in raw.meta["inputs"].items()}
    sizes |= {name: [1, *shape] for name, shape in zip(names, raw.meta["shapes"], strict=True)}
    behind = replace(file, inputs=sizes, nodes=cut)
    chance = torch.Generator().manual_seed(0)
    outputs = [torch.randn(1, *shape, generator=chance) for shape in raw.meta["shapes"]]
    image = {name: torch.zeros(1, *own) for name, own in raw.meta["inputs"].items()}
    found = Decoded(outputs, [], [])
    for name in _after(file, names):
        try:
            net = network_of(behind, None, [name])
        except InputError:
            continue
        rows = [n for n in net.meta["shapes"][0] if n != 1]
        if len(rows) == 2 and min(rows) >= 4:
            for values, into in ((outputs, found.by_chance), ([x * 0 for x in outputs], found.at_zero)):
                given = image | dict(zip(names, values, strict=True))
                with torch.no_grad():
                    into.append(net(*(given[name] for name in net.meta["inputs"]))[0].squeeze().nan_to_num())
    return found


def _after(file: OnnxFile, names: Sequence[str]) -> list[str]:
    """The file's outputs, and what is put together of these tensors before them, the last one first."""
    after, joined = set(names), list[str]()
    for node in file.nodes:
        if after.intersection(node.inputs):
            after.update(node.outputs)
            joined += node.outputs if node.op == "Concat" else []
    return [name for name in (*file.outputs, *joined[:-_MOST:-1]) if name in after.difference(names)]


def _centred(rows: Tensor) -> Tensor:
    return torch.cat((rows[..., :2] - rows[..., 2:] / 2, rows[..., :2] + rows[..., 2:] / 2), -1)


def _crosswise(rows: Tensor) -> Tensor:
    return rows[..., [1, 0, 3, 2]]


def _cornered(rows: Tensor) -> Tensor:
    return torch.cat((rows[..., :2], rows[..., :2] + rows[..., 2:]), -1)


# of a box: x y w h of its middle, x1 y1 x2 y2, y1 x1 y2 x2, x1 y1 w h
_FORMS: tuple[Callable[[Tensor], Tensor], ...] = (_centred, torch.clone, _crosswise, _cornered)


def _rows(found: Tensor, count: int) -> Tensor | None:
    """The first four columns of ``count`` rows."""
    found = found if len(found) == count else found.T
    return found[:, :4] if len(found) == count else None


def fits(found: Decoded, one: HeadDetector) -> bool:
    """Whether the file gives the boxes that ``one`` does.

    Boxes of any order and form, in pixels or in parts of the image's sides, cut at its edges or not.
    """
    extent = torch.tensor(one.size[::-1] * 2)
    own = one.found(found.outputs)[0][0]
    places = torch.randint(len(own), (_COMPARED,), generator=torch.Generator().manual_seed(0))
    some = own[places].clamp(min=0).minimum(extent)
    for each in found.by_chance:
        rows = _rows(each, len(own))
        if rows is None:
            continue
        for form, scale in itertools.product(_FORMS, (torch.ones(4), extent)):
            boxes = (form(rows) * scale).clamp(min=0).minimum(extent)
            if torch.cdist(some, boxes, 2.0, "donot_use_mm_for_euclid_dist").amin(1).max() <= _NEAR:
                return True
    return False


def decodes(found: Decoded, count: int) -> bool:
    """Whether the file gives so many boxes, at different places where its raw outputs are all 0."""
    at_zero = [_rows(each, count) for each in found.at_zero]
    return any(bool((boxes[:, :2] != boxes[:1, :2]).any()) for boxes in at_zero if boxes is not None)


def anchors_of(
    found: Decoded, head: Head, classes: int, size: tuple[int, int]
) -> tuple[list[Stride], list[list[float]]]:
    """The strides of the levels, and for each the widths and heights of its anchors, as ``HeadDetector`` takes them.

    They are the boxes that the file decodes where its raw outputs are 0. Empty where these are not the maps of such a
    head, or it decodes no grid of boxes.
    """
    each = classes + head.background + sum({"box": 4, "objectness": 1}.get(part, 0) for part in head.parts)
    channels: dict[tuple[int, int], int] = {}  # of each level, by its sides
    for shape in (x.shape[1:] for x in found.outputs):
        count, *sides = shape if len(shape) == 3 else (0, 0, 0)
        channels[sides[0], sides[1]] = channels.get((sides[0], sides[1]), 0) + count
    if any(count % each or not count for count in channels.values()):
        return [], []
    numbers = [h * w * (count // each) for (h, w), count in channels.items()]
    extent = torch.tensor(size[::-1] * 2)
    every: list[list[_Grid]] = []
    for boxes_at_zero in found.at_zero:
        rows = _rows(boxes_at_zero, sum(numbers))
        if rows is not None:
            parts = (rows * (extent if rows.max() <= 2 else 1)).split(numbers)
            for form, inner in itertools.product(_FORMS, (True, False)):
                every.append([_Grid.of(form(part), *of, inner) for part, of in zip(parts, channels, strict=True)])
    every = [grids for grids in every if all(min(grid.stride) >= 1 for grid in grids)]
    if not every:
        return [], []
    best = min(every, key=lambda grids: round(sum(grid.error for grid in grids), 2))  # the first of equal ones
    best.sort(key=lambda grid: grid.stride)
    square = all(x == y == round(x) for x, y in (grid.stride for grid in best))
    return [int(grid.stride[0]) if square else grid.stride for grid in best], [grid.anchors for grid in best]


@dataclass(frozen=True)
class _Grid:
    """A level's boxes. error: by how much those of different cells differ in sides. stride: x, y."""

    error: float
    stride: tuple[float, float]
    anchors: list[float]

    @classmethod
    def of(cls, boxes: Tensor, height: int, width: int, inner: bool) -> "_Grid":
        """boxes: x1 y1 x2 y2, a cell's one after the other (``inner``), or an anchor's."""
        cells = boxes.unflatten(0, (height, width, -1) if inner else (-1, height, width))
        cells = cells if inner else cells.movedim(0, 2)
        sides = (cells[..., 2:] - cells[..., :2]).flatten(0, 1)
        usual = sides.median(0).values
        x, y = ((cells[..., :2] + cells[..., 2:]) / 2).mean(2).unbind(-1)
        stride = _step(x.mean(0)), _step(y.mean(1))
        return cls((sides - usual).abs().mean().item(), stride, usual.flatten().tolist())


def _step(centres: Tensor) -> float:
    """From one to the next; of a single one twice its distance from the edge. A whole number where it is near one."""
    first, last = centres[[0, -1]].tolist()
    step = (last - first) / (len(centres) - 1) if len(centres) > 1 else 2 * first
    return float(round(step)) if abs(step - round(step)) < _WHOLE else round(step, 4)
