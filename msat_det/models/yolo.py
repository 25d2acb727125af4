"""YOLO heads, read as boxes: version 2 (softmax classes), version 3 and 4, and the scaled form of version 4."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from msat_det.base.errors import InputError
from msat_det.models.detector import Detections
from msat_det.models.preprocessing import RESIZES, Geometry, as_size
from msat_det.models.suppression import select


class YoloDetector:
    """A YOLO network as a ``Detector``. Input: RGB / 255.

    net: (B, 3, h, w) → one raw tensor (B, A·(5 + C), h / stride, w / stride) a head, without activation, an anchor's
        channels in the order x, y, width, height, objectness, classes.
    size: the input's side, or (height, width), in pixels.
    anchors_per_head: for each head its A pairs (width, height) in input pixels. strides: input pixels a cell, per head.
    scale_x_y: one factor, or one a head, by which the sigmoid of x and y is stretched about a cell's centre.
    form: "v3" (sigmoid classes), "v2" (softmax over the classes) or "scaled" (Darknet's new_coords: the network's own
        last layer is a sigmoid; width = anchor · (2·t)²).
    score, top_k, nms_iou: see ``select.select``. The defaults give the published style of mAP, where every box above a
        very low score counts.
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
    ):
        if resize not in RESIZES:
            raise InputError(f"model.resize is '{resize}': give one of {', '.join(RESIZES)}")
        self.net, self.classes, self.size = net.eval(), list(classes), as_size(size)
        self.anchors = [torch.tensor(anchors, dtype=torch.float32) for anchors in anchors_per_head]
        self.strides = list(strides)
        self.scale_x_y = [float(scale_x_y)] * len(self.strides) if isinstance(scale_x_y, int | float) else [*scale_x_y]
        self.form, self.resize = form, resize
        self.score, self.nms_iou, self.top_k = score, nms_iou, top_k

    def preprocess(self, image: Tensor) -> tuple[Tensor, Geometry]:
        """uint8 RGB (3, H, W) → (3, *size) float in 0..1, and the way back."""
        resized, geometry = RESIZES[self.resize](image, self.size)
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
        objectness · class probability.
        """
        height, width = raw.shape[2:]
        raw = raw.unflatten(1, (len(anchors), 5 + len(self.classes))).movedim(2, -1)
        centre, extent, objectness, classes = raw.split((2, 2, 1, len(self.classes)), -1)
        anchors = anchors.to(raw)[:, None, None]
        if self.form == "scaled":
            extent = (2 * extent).square() * anchors
        else:
            centre, objectness = centre.sigmoid(), objectness.sigmoid()
            classes = classes.softmax(-1) if self.form == "v2" else classes.sigmoid()
            extent = extent.exp() * anchors
        rows, columns = (torch.arange(n, device=raw.device) for n in (height, width))
        cell = torch.stack((columns.expand(height, width), rows[:, None].expand(height, width)), -1)
        centre = (centre * scale_x_y - (scale_x_y - 1) / 2 + cell) * stride
        boxes = torch.cat((centre - extent / 2, centre + extent / 2), -1)
        return boxes.flatten(1, 3), (objectness * classes).flatten(1, 3)
