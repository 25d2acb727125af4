"""YOLO heads, read as boxes: version 2 (softmax classes), 3 and 4, scaled version 4, 5 to 7, and Gaussian YOLOv3."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from msat_det.base.device import brought
from msat_det.base.errors import InputError
from msat_det.data.base import class_names
from msat_det.models.detector import Detections
from msat_det.models.preprocessing import RESIZES, Geometry, as_size, check_resize, luma
from msat_det.models.suppression import select

Parts = tuple[Tensor, Tensor, Tensor, Tensor]  # in 0..1: centre in its cell, extent in anchors, objectness, classes


def _v3(box: Tensor, objectness: Tensor, classes: Tensor) -> Parts:
    return box[..., :2].sigmoid(), box[..., 2:].exp(), objectness.sigmoid(), classes.sigmoid()


def _v2(box: Tensor, objectness: Tensor, classes: Tensor) -> Parts:
    return *_v3(box, objectness, classes)[:3], classes.softmax(-1)


def _scaled(box: Tensor, objectness: Tensor, classes: Tensor) -> Parts:
    return box[..., :2], (2 * box[..., 2:]).square(), objectness, classes


def _v5(box: Tensor, objectness: Tensor, classes: Tensor) -> Parts:
    return _scaled(box.sigmoid(), objectness.sigmoid(), classes.sigmoid())


def _gaussian(box: Tensor, objectness: Tensor, classes: Tensor) -> Parts:
    """Means and deviations by turns: an uncertain box counts less (Choi et al. 2019, section 3.2)."""
    centre, extent, objectness, classes = _v3(box[..., ::2], objectness, classes)
    return centre, extent, objectness * (1 - box[..., 1::2].sigmoid().mean(-1, keepdim=True)), classes


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Parts]] = {
    **{"v3": _v3, "v2": _v2, "scaled": _scaled, "v5": _v5, "gaussian": _gaussian}
}
BOX_VALUES = dict.fromkeys(FORMS, 4) | {"gaussian": 8}  # raw numbers of a box


class YoloDetector:
    """A YOLO network as a ``Detector``. Input: RGB / 255.

    net: (B, 3, h, w) → one raw tensor (B, A·(5 + C), h / stride, w / stride) a head, without activation, an anchor's
        channels in the order x, y, width, height, objectness, classes.
    size: the input's side, or (height, width), in pixels.
    anchors_per_head: for each head its A pairs (width, height) in input pixels. strides: input pixels a cell, per head.
    scale_x_y: one factor, or one a head, by which the sigmoid of x and y is stretched about a cell's centre.
    form: "v3" (sigmoid classes), "v2" (softmax over the classes), "scaled" (Darknet's new_coords: the network's own
        last layer is a sigmoid; width = anchor · (2·t)²), "v5" (the same without that sigmoid: width = anchor ·
        (2·σ(t))²) or "gaussian" (A·(9 + C) channels: behind each of x, y, width and height its uncertainty).
    score, top_k, nms_iou: see ``suppression.select``. The defaults give the published style of mAP, where every box
        above a very low score counts.
    channels: 3, or 1 for a network of grey images: (B, 1, h, w), their luma / 255.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        size: int | tuple[int, int],
        anchors_per_head: Sequence[Sequence[tuple[float, float]]],
        strides: Sequence[int],
        scale_x_y: float | Sequence[float] = 1.0,
        form: str = "v3",
        resize: str = "stretch",
        score: float = 0.01,
        nms_iou: float = 0.45,
        top_k: int = 100,
        channels: int = 3,
    ):
        check_resize(resize)
        if channels not in (1, 3):
            raise InputError(f"channels is {channels}: give 3 for RGB images or 1 for grey ones")
        self.net, self.classes, self.size = net.eval(), class_names(classes, "the detector"), as_size(size)
        self.anchors = [torch.tensor(anchors, dtype=torch.float32) for anchors in anchors_per_head]
        self.strides = list(strides)
        self.scale_x_y = [float(scale_x_y)] * len(self.strides) if isinstance(scale_x_y, int | float) else [*scale_x_y]
        self.form, self.resize, self.channels = form, resize, channels
        self.score, self.nms_iou, self.top_k = score, nms_iou, top_k

    def preprocess(self, image: Tensor) -> tuple[Tensor, Geometry]:
        """uint8 RGB (3, H, W) → (3, *size), or grey (1, *size), float in 0..1, and the way back."""
        resized, geometry = RESIZES[self.resize](image, self.size)
        if self.channels == 1:
            resized = luma(resized)
        return resized / 255, geometry

    def decode(self, outputs: Any, metas: list[Geometry]) -> list[Detections]:
        """Raw heads of a batch → boxes in original pixels, best first."""
        heads = [
            self.decode_head(*head) for head in zip(outputs, self.anchors, self.strides, self.scale_x_y, strict=True)
        ]
        boxes, scores = (torch.cat(parts, 1) for parts in zip(*heads, strict=True))
        return select(boxes, scores, metas, self.score, self.top_k, self.nms_iou)

    def decode_head(self, raw: Tensor, anchors: Tensor, stride: int, scale_x_y: float) -> tuple[Tensor, Tensor]:
        """One raw head (B, A·(5 + C), h, w) → boxes (B, A·h·w, 4) in input pixels and scores (B, A·h·w, C).

        x = (σ(tx)·s − (s − 1)/2 + column)·stride, width = anchor·exp(tw) (YOLOv3, section 2.1; s from YOLOv4); score =
        objectness · class probability. Other forms: see ``FORMS``.
        """
        height, width = raw.shape[2:]
        values = BOX_VALUES[self.form], 1, len(self.classes)
        if raw.shape[1] != len(anchors) * sum(values):
            raise InputError(
                f"a head of {raw.shape[1]} channels does not fit {len(anchors)} anchors and {len(self.classes)} class "
                "names: give the names that the network was trained with"
            )
        raw = raw.unflatten(1, (len(anchors), sum(values))).movedim(2, -1)
        centre, extent, objectness, classes = FORMS[self.form](*raw.split(values, -1))
        extent = extent * brought(anchors, raw)[:, None, None]
        rows, columns = (torch.arange(n, device=raw.device) for n in (height, width))
        cell = torch.stack((columns.expand(height, width), rows[:, None].expand(height, width)), -1)
        centre = (centre * scale_x_y - (scale_x_y - 1) / 2 + cell) * stride
        boxes = torch.cat((centre - extent / 2, centre + extent / 2), -1)
        return boxes.flatten(1, 3), (objectness * classes).flatten(1, 3)
