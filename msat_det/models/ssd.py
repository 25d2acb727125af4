"""SSD: box coder, priors and per-class suppression as a ``Detector``, and TensorFlow's MobileNetV1 SSD network."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from msat_det.base.config import Model
from msat_det.base.device import brought
from msat_det.base.errors import InputError
from msat_det.data.base import class_names
from msat_det.models.class_names import COCO_COLUMNS, NO_CLASS, read_names
from msat_det.models.detector import Detections
from msat_det.models.preprocessing import RESIZES, Geometry, as_size, check_resize
from msat_det.models.state_dict import load_tensors
from msat_det.models.suppression import select
from msat_det.models.weights import read_tensors

PRIORS = 1917  # of SSD-MobileNet at 300 pixels: 19²·3 + (10² + 5² + 3² + 2² + 1)·6


class SsdDetector:
    """An SSD network as a ``Detector``. Input: (RGB − mean) / std, both on the scale 0..255.

    net: (B, 3, h, w) → (boxes, scores), each a sequence with one raw tensor a level: (B, A·4, h, w) and (B, A·K, h, w),
        the channels of an anchor side by side, the four of a box in the order cy, cx, h, w.
    classes: names; ``columns`` gives, for each, its column among the K (default: 1, 2, …, the background being 0).
    size: the input's side, or (height, width), in pixels.
    priors: (P, 4) cy cx h w in 0..1, levels one after the other, in each row by row, anchor by anchor.
    box_scales: what the offsets of cy, cx, h, w were multiplied by in training.
    activation: "sigmoid", or "softmax" over the K columns.
    score, top_k, nms_iou: see ``suppression.select``.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        size: int | tuple[int, int],
        priors: Tensor,
        box_scales: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
        mean: float = 127.5,
        std: float = 127.5,
        activation: str = "softmax",
        columns: Sequence[int] | None = None,
        resize: str = "stretch",
        score: float = 0.01,
        nms_iou: float = 0.6,
        top_k: int = 100,
    ):
        check_resize(resize)
        self.net, self.classes, self.size = net.eval(), class_names(classes, "the detector"), as_size(size)
        self.priors, self.box_scales = priors, torch.tensor(box_scales)
        self.mean, self.std, self.activation = mean, std, activation
        self.by_count = columns is None
        self.columns = torch.tensor(range(1, len(classes) + 1) if columns is None else columns)
        self.resize, self.score, self.nms_iou, self.top_k = resize, score, nms_iou, top_k

    def preprocess(self, image: Tensor) -> tuple[Tensor, Geometry]:
        """uint8 RGB (3, H, W) → (3, *size) float, normalised, and the way back."""
        resized, geometry = RESIZES[self.resize](image, self.size)
        return (resized - self.mean) / self.std, geometry

    def decode(self, outputs: Any, metas: list[Geometry]) -> list[Detections]:
        """Raw levels of a batch → boxes in original pixels, best first."""
        offsets = self.by_prior(outputs[0])
        logits = self.by_prior(outputs[1])
        count, need = logits.shape[-1], int(self.columns.max()) + 1
        if count < need or (self.by_count and count > need):
            raise InputError(
                f"a head of {count} columns does not fit {len(self.classes)} class names: give one for each column but "
                "the background's, or the columns of those that have a name"
            )
        scores = logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(-1)
        scores = scores[:, :, brought(self.columns, scores.device)]
        return select(self.decode_boxes(offsets), scores, metas, self.score, self.top_k, self.nms_iou)

    def by_prior(self, levels: Sequence[Tensor]) -> Tensor:
        """Raw levels (B, A·n, h, w) → (B, P, n)."""
        width, rest = divmod(sum(level[0].numel() for level in levels), len(self.priors))
        if rest or any(level.shape[1] % width for level in levels):
            shapes = [tuple(level.shape) for level in levels]
            raise InputError(f"network outputs {shapes} do not fit the {len(self.priors)} priors: give priors for them")
        return torch.cat([level.movedim(1, -1).reshape(len(level), -1, width) for level in levels], 1)

    def decode_boxes(self, offsets: Tensor) -> Tensor:
        """Offsets (B, P, 4) to the priors → x1 y1 x2 y2 in input pixels.

        Centre = prior centre + offset / scale · prior size; size = prior size · exp(offset / scale) (Faster R-CNN's
        coder, with SSD's variances as scales).
        """
        sizes = self.priors, self.box_scales, torch.tensor(self.size)
        priors, box_scales, pixels = (brought(values, offsets) for values in sizes)
        centre, extent = (offsets / box_scales).split(2, -1)
        extent = extent.exp() * priors[:, 2:]
        centre = centre * priors[:, 2:] + priors[:, :2]
        corners = (centre - extent / 2) * pixels, (centre + extent / 2) * pixels
        return torch.cat([corner.flip(-1) for corner in corners], -1)


class ConvRelu6(nn.Sequential):
    """A 3x3 or 1x1 convolution with TensorFlow's SAME padding, then ReLU6. extent: the input's height and width.

    SAME pads so that the output has ⌈extent / stride⌉ positions; an odd pixel goes to the bottom and right.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, extent: int):
        padding = max(0, (-(-extent // stride) - 1) * stride + kernel - extent)
        symmetrical = padding % 2 == 0
        super().__init__()
        if not symmetrical:
            self.pad = nn.ZeroPad2d((padding // 2, padding // 2 + 1) * 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding // 2 if symmetrical else 0, groups=groups)
        self.activation = nn.ReLU6()


class SsdMobileNetV1(nn.Module):
    """MobileNetV1 SSD, its layers named as in TensorFlow's model zoo: (B, 3, size, size) → (boxes, scores), six levels.

    The levels are the backbone's Conv2d_11 (3 anchors a cell) and Conv2d_13, then four times a 1x1 and a 3x3
    convolution at stride 2 (6 anchors each). There is no batch norm: it is folded into the convolutions.
    multiplier: width of the whole network against 1.0. columns: classes and background.
    """

    ANCHORS = (3, 6, 6, 6, 6, 6)

    def __init__(self, multiplier: float = 0.75, columns: int = 91, size: int = 300):
        super().__init__()
        self.layers, self.boxes, self.scores = nn.ModuleDict(), nn.ModuleList(), nn.ModuleList()
        self.taps: list[str] = []
        channels, extent = 3, size
        for name, full, kernel, stride, depthwise, is_level in mobilenet_v1_rows():
            outputs = channels if depthwise else int(full * multiplier)
            self.layers[name] = ConvRelu6(channels, outputs, kernel, stride, channels if depthwise else 1, extent)
            channels, extent = outputs, -(-extent // stride)
            if is_level:
                anchors = self.ANCHORS[len(self.taps)]
                self.taps.append(name)
                self.boxes.append(nn.Conv2d(channels, anchors * 4, 1))
                self.scores.append(nn.Conv2d(channels, anchors * columns, 1))
        self.eval()

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        levels = []
        for name, layer in self.layers.items():
            x = layer(x)
            if name in self.taps:
                levels.append(x)
        boxes = tuple(head(level) for head, level in zip(self.boxes, levels, strict=True))
        return boxes, tuple(head(level) for head, level in zip(self.scores, levels, strict=True))


def mobilenet_v1_rows() -> Iterator[tuple[str, int, int, int, bool, bool]]:
    """Name, output channels at width 1, kernel, stride, whether depthwise, and whether a level of the SSD ends here."""
    yield "Conv2d_0", 32, 3, 2, False, False
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    widths = (64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)
    for i, (stride, width) in enumerate(zip(strides, widths, strict=True), 1):
        yield f"Conv2d_{i}_depthwise", width, 3, stride, True, False
        yield f"Conv2d_{i}_pointwise", width, 1, 1, False, i in (11, 13)
    for i, width in enumerate((512, 256, 256, 128), 2):
        yield f"Conv2d_13_pointwise_1_Conv2d_{i}_1x1", width // 2, 1, 1, False, False
        yield f"Conv2d_13_pointwise_2_Conv2d_{i}_3x3_s2", width, 3, 2, False, True


def from_tensorflow(name: str) -> str:
    """A tensor's name in the model zoo's files → its name in ``SsdMobileNetV1``."""
    if predictor := re.fullmatch(r"BoxPredictor_(\d)\.(Box|Class)\w+\.(\w+)", name):
        level, kind, parameter = predictor.groups()
        return f"{'boxes' if kind == 'Box' else 'scores'}.{level}.{parameter}"
    layer, _, parameter = name.rpartition(".")
    layer = re.sub(r"(?<=1x1|_s2)_[0-9]+$", "", layer)  # the extra layers' names end with their channels
    return f"layers.{layer}.conv.{parameter}"


def ssd_mobilenet_v1(model: Model) -> SsdDetector:
    """The COCO detector SSD-MobileNetV1 x0.75 of ``model.weights`` (safetensors; it holds the priors as ``anchors``).

    model.names: a file with a name for each of the network's columns, '???' where there is no class, or "coco", the
        default: background and COCO's ids 1 to 90.
    Input (RGB − 128) / 128, stretched to 300x300; sigmoid scores; suppression at IoU .6.
    """
    model.refuse_others("weights", "names", "size", "resize", "score", "nms_iou", "top_k")
    if model.weights is None:
        raise InputError(
            "model.weights is not set: detector 'ssd_mobilenet_v1' needs a file; give --model.weights FILE"
        )
    if model.size is not None and as_size(model.size) != (300, 300):
        raise InputError(f"model.size is {model.size}: ssd_mobilenet_v1's priors are for 300; leave it out")
    tensors = read_tensors(model.weights)
    names = COCO_COLUMNS if model.names in (None, "coco") else read_names(model.names)
    columns = [i for i, name in enumerate(names) if name not in NO_CLASS]
    net = SsdMobileNetV1(columns=len(names))
    priors = tensors.pop("anchors", torch.empty(0))
    load_tensors(net, {from_tensorflow(name): tensor for name, tensor in tensors.items()}, model.weights)
    if priors.shape != (PRIORS, 4):
        raise InputError(
            f"{model.weights}: 'anchors' has shape {tuple(priors.shape)}, not {PRIORS, 4}; give whole weights"
        )
    return SsdDetector(
        net,
        [names[i] for i in columns],
        300,
        priors,
        mean=128.0,
        std=128.0,
        activation="sigmoid",
        columns=columns,
        **model.given("resize", "score", "nms_iou", "top_k"),
    )
