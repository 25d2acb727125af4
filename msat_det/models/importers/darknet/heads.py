"""The sections of a Darknet cfg that end in boxes: each says how the raw tensor before it is read."""

from dataclasses import dataclass

from torch import nn

from msat_det.models.importers.darknet.cfg import Section
from msat_det.models.importers.darknet.layers import Shape
from msat_det.models.yolo import BOX_VALUES

HEADS = ("yolo", "gaussian_yolo", "region")


@dataclass(frozen=True)
class Head:
    """What a section says of the raw tensor before it, in ``YoloDetector``'s terms."""

    anchors: list[tuple[float, float]]
    stride: int
    classes: int
    scale_x_y: float = 1.0
    form: str = "v3"


def read_head(section: Section, shape: Shape, size: tuple[int, int], before: nn.Module, yolor: bool = False) -> Head:
    """The head of a section of ``HEADS`` that reads a tensor of ``shape`` in a network for images of ``size``.

    before: the activation that the tensor comes from. yolor: whether the cfg is one of YOLOR's, whose program decodes
    every head as YOLOv5 does. Other options of a head matter in training only. Region anchors count in cells, yolo
    anchors in input pixels.
    """
    stride = size[0] // shape[1]
    if (shape[1] * stride, shape[2] * stride) != size:
        raise section.error(
            f"its {shape[1]}x{shape[2]} cells do not divide the input of {size[0]}x{size[1]}: choose model.size so"
        )
    classes = section.integer("classes", 20, least=1)
    numbers = section.numbers("anchors")
    anchors = list(zip(numbers[::2], numbers[1::2], strict=False))[: section.integer("num", 1, least=1)]
    if section.kind == "region":
        head = Head([(w * stride, h * stride) for w, h in anchors], stride, classes, form=_region_form(section))
    else:
        mask = section.integers("mask", list(range(len(anchors))))
        if not all(0 <= i < len(anchors) for i in mask):
            raise section.error(f"mask={mask} asks for more than its {len(anchors)} anchors", "mask")
        form, scale = ("v5", 2.0) if yolor else (_yolo_form(section, before), section.number("scale_x_y", 1.0))
        head = Head([anchors[i] for i in mask], stride, classes, scale, form)
    filters = len(head.anchors) * (BOX_VALUES[head.form] + 1 + classes)
    if shape[0] != filters:
        raise section.error(
            f"{len(head.anchors)} anchors and {classes} classes need filters={filters} "
            f"in the layer before, which has {shape[0]}"
        )
    return head


def _region_form(section: Section) -> str:
    for key in ("tree", "map"):
        if key in section.options:
            raise section.error(f"'{key}' (a tree of classes) is not supported: use a flat list of classes", key)
    return "v2" if section.integer("softmax", 0) else "v3"


def _yolo_form(section: Section, before: nn.Module) -> str:
    """With new_coords Darknet wants a sigmoid in the layer before; a cfg that PyTorch trained leaves it to the head."""
    if section.kind == "gaussian_yolo":
        if section.text("yolo_point", "center") != "center":
            raise section.error("yolo_point other than center is not supported: train with the centre", "yolo_point")
        return "gaussian"
    if not section.integer("new_coords", 0):
        return "v3"
    if not isinstance(before, nn.Sigmoid | nn.Identity):
        raise section.error(
            f"new_coords=1 needs activation=logistic or linear in the layer before, not {type(before).__name__}",
            "new_coords",
        )
    return "scaled" if isinstance(before, nn.Sigmoid) else "v5"
