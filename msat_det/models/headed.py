"""A network with a head by name as a detector: preprocessing, the network, the head's function, suppression."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.data.base import class_names
from msat_det.graph.inputs import MISFIT, reason
from msat_det.models.class_names import read_names
from msat_det.models.detector import Detections
from msat_det.models.heads import HEADS, Levels, Stride, cells_of, named, parts_of, raw_parts
from msat_det.models.meaning import check_meaning
from msat_det.models.preprocessing import Geometry, Inputs, as_size
from msat_det.models.suppression import select


class HeadDetector:
    """A network with a head by name as a ``Detector``.

    net: (B, 3, h, w), of grey images (B, 1, h, w) → the head's raw outputs, see ``heads.parts_of``.
    head: a name of ``heads.HEADS``: yolov3, yolov4, yolov5, yolov7, yolov8, yolox, nanodet, picodet, fastestdet, ssd,
        retinanet, efficientdet, fcos, rtmdet, detr, rtdetr, raw.
    classes: names, or "coco" or "voc".
    size: the input's side, or (height, width), in pixels.
    strides: input pixels a cell, for each level, or x and y of them, where they differ or are no whole numbers; None:
        the head's usual ones. Heads detr, rtdetr and raw have no levels.
    anchors: for each level the widths and heights of its anchors, one after the other, in input pixels; None: the
        head's usual ones.
    activated: whether the network's scores are already probabilities, after its own sigmoid or softmax.
    inputs: how a photograph becomes the input, a grey one of one mean and std; None: the head's usual way.
    score, top_k, nms_iou: see ``suppression.select``.
    names: what the outputs are called, one by one, where they are no dict that says so; see ``heads.parts_of``.
    """

    def __init__(
        self,
        net: nn.Module,
        head: str,
        classes: Sequence[str] | str = "coco",
        size: int | tuple[int, int] = 640,
        strides: Sequence[Stride] | None = None,
        anchors: Sequence[Sequence[float]] | None = None,
        activated: bool = False,
        inputs: Inputs | None = None,
        score: float = 0.01,
        nms_iou: float | None = None,
        top_k: int = 100,
        names: Sequence[str] | None = None,
    ):
        self.kind, self.head = HEADS.find(head), head
        known = read_names(classes) if isinstance(classes, str) else classes
        self.net, self.classes, self.size = net.eval(), class_names(known, "the detector"), as_size(size)
        own = self.kind.strides if strides is None else strides
        self.strides = tuple(stride if isinstance(stride, int | float) else tuple(stride) for stride in own)
        whole = [stride for stride in own if isinstance(stride, int)]
        usual = self.kind.anchors(whole) if len(whole) == len(own) else None
        self.anchors: Levels | None = usual if anchors is None else tuple(map(tuple, anchors))
        self.activated, self.inputs = activated, self.kind.inputs if inputs is None else inputs
        self.score, self.top_k, self.names = score, top_k, None if names is None else list(names)
        self.nms_iou = self.kind.nms_iou if nms_iou is None else nms_iou
        if strides and not self.kind.strides:
            raise InputError(f"head {head} has no strides: leave model.strides out")
        self._check_anchors()
        self.cells, self.rows = cells_of(self.size, self.strides, self.anchors)
        self.each = [len(level) // 2 for level in self.anchors] if self.anchors else [1] * len(self.strides)

    def __repr__(self) -> str:
        height, width = self.size
        return f"{type(self).__name__}({self.head}, {len(self.classes)} classes, input {height} × {width})"

    def _check_anchors(self) -> None:
        if self.anchors is None and self.kind.anchored:
            raise InputError(f"head {self.head} needs model.anchors: for each stride widths and heights in pixels")
        if self.anchors is not None and not self.kind.anchored:
            raise InputError(f"head {self.head} has no anchors: leave model.anchors out")
        if self.anchors is not None:
            fits = len(self.anchors) == len(self.strides) and all(a and len(a) % 2 == 0 for a in self.anchors)
            if not fits or min(map(min, self.anchors)) <= 0:
                raise InputError("model.anchors holds no pairs (width, height) above 0 for each of model.strides")

    @property
    def shown(self) -> float:
        """The score from which on boxes of such a head are usually looked at."""
        return self.kind.shown

    def check(self) -> "HeadDetector":
        """This detector, if its network's outputs fit the head; else InputError. One black image goes through it.

        Boxes that are decoded already do not fit, nor do ``activated`` scores that are no probabilities; of scores that
        may be some though they are not said to be it warns.

        If it takes grey images, and the three channels would be treated alike, its ``inputs`` are grey from then on.
        """
        device = next((p.device for p in self.net.parameters()), None)
        own, errors = self.inputs, []
        alike = len({*own.mean}) == len({*own.std}) == 1
        for inputs in (own, replace(own, mean=own.mean[:1], std=own.std[:1])) if alike else (own,):
            with torch.no_grad():
                try:
                    outputs = self.net(torch.zeros(1, inputs.channels, *self.size, device=device))
                except MISFIT as error:
                    errors.append(f"an image {(1, inputs.channels, *self.size)} does not fit it ({reason(error)})")
                    continue
            self.inputs = inputs
            parts = self._parts(outputs)
            if self.head != "raw":
                check_meaning(parts, self.cells, self.rows, self.each, self.activated)
            return self
        mend = (
            "give a network of one image of three channels, or of one with model.mean and model.std of one number each"
        )
        raise InputError(f"{errors[0]}: {mend}, or a size that it takes")

    def preprocess(self, image: Tensor) -> tuple[Tensor, Geometry]:
        """uint8 RGB (3, H, W) → (channels, *size) float, and how to reverse it."""
        return self.inputs.ready(image, self.size)

    def decode(self, outputs: Any, metas: list[Geometry]) -> list[Detections]:
        """The network's outputs for a batch → boxes in original pixels, best first."""
        boxes, scores = self.found(outputs)
        return select(boxes, scores, metas, self.score, self.top_k, self.nms_iou)

    def found(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Boxes (B, P, 4) in input pixels, and scores (B, P, C). Raises InputError for outputs that do not fit."""
        parts = self._parts(outputs)
        if not self.activated and self.head != "raw":
            parts = {name: x if name == "box" else self.probable(name, x) for name, x in parts.items()}
        return self.kind.decode(self.cells.to(parts["box"].device), **parts)

    def _parts(self, outputs: Any) -> dict[str, Tensor]:
        """The head's parts as the network gives them, (B, P, n). Raises InputError for outputs that do not fit."""
        head, count = self.kind, len(self.classes)
        own = named(outputs, self.names or ())
        rows, each = (self.rows, self.each) if self.rows else (list(own[0][1].shape[1:2]), [1])  # of queries
        try:
            parts = raw_parts(own, count) if self.head == "raw" else parts_of(own, head, count, rows, each)
        except InputError:
            shapes = [tuple(x.shape[1:]) for _, x in own]
            levels = f", strides {list(self.strides)} and {each} anchors a cell at {self.size}" if self.rows else ""
            keys = "model.names, model.strides, model.anchors" if self.rows else "model.names"
            raise InputError(
                f"outputs {shapes} do not fit head {self.head} with {count} classes{levels}: give {keys} or other "
                "outputs that do"
            ) from None
        return dict(zip(head.parts, parts, strict=True))

    def probable(self, name: str, logits: Tensor) -> Tensor:
        return logits.softmax(-1) if self.kind.softmax and name == "classes" else logits.sigmoid()


LEVELS = ("strides", "anchors", "activated")  # keys on raw outputs
INPUTS = ("resize", "pad", "bgr", "mean", "std")
HEAD_KEYS = ("head", "names", "size", *LEVELS, *INPUTS, "score", "nms_iou", "top_k")


def head_of(model: Model, otherwise: str | None = None) -> str:
    """The head's name in a ``config.Model``, or ``otherwise``. Raises InputError where there is none."""
    head = model.head or otherwise
    if head is None:
        raise InputError(f"model.head is not set: {model.name} needs one of {', '.join(HEADS)}")
    return head


def head_options(model: Model, head: str) -> dict[str, Any]:
    """``HeadDetector``'s options for this head, but for the size, out of a ``config.Model``.

    The classes are among them where names are given. Raises InputError for a key that another one leaves without
    effect.
    """
    own = model.given("resize", "pad", "bgr") | {k: tuple(v) for k, v in model.given("mean", "std").items()}
    inputs = replace(HEADS.find(head).inputs, **own)
    if model.pad is not None and inputs.resize == "stretch":
        raise InputError(f"model.pad is {model.pad:g}, and nothing is padded: set model.resize to letterbox or corner")
    for key in model.given(*LEVELS) if head == "raw" else ():
        raise InputError(f"model.{key} is set, and head raw takes boxes and scores as they are: leave it out")
    options = model.given(*LEVELS, "score", "nms_iou", "top_k")
    options |= {"classes": model.names} if model.names else {}
    return options | {"inputs": inputs}
