"""The small ReLU networks of the embedded data set: a YOLO and an SSD that train in minutes on two cores."""

import torch
from torch import Tensor, nn

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.data import VOC_CLASSES
from msat_det.data.voc_classes import common_name
from msat_det.models.class_names import read_names
from msat_det.models.ssd import SsdDetector
from msat_det.models.weights import OWN_WEIGHTS, fill
from msat_det.models.yolo import YoloDetector

SIZE = 160  # pixels, the side of the input in training

YOLO_STRIDES = (8, 16)
YOLO_ANCHORS = (((20, 26), (34, 26), (30, 42)), ((48, 40), (50, 62), (78, 80)))  # medians of clusters of drawn objects
SSD_STRIDES = (8, 16, 32, 64)
SSD_SIDES = (24, 44, 76, 112, 150)  # pixels of a prior at each level; the last one only bounds the level before it


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Residual(nn.Module):
    """x + a bottleneck of x."""

    def __init__(self, width: int):
        super().__init__()
        self.branch = nn.Sequential(conv(width, width // 2, 1), conv(width // 2, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Backbone(nn.Module):
    """(B, 3, h, w) → 64 channels at stride 8 and 128 channels at stride 16."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, stride=2), conv(16, 32, stride=2), conv(32, 32), nn.MaxPool2d(2))
        self.fine = nn.Sequential(conv(32, 64), conv(64, 64), conv(64, 64))
        self.coarse = nn.Sequential(nn.MaxPool2d(2), conv(64, 128), Residual(128), Residual(128))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(self.stem(x))
        return fine, self.coarse(fine)


class YoloDemo(nn.Module):
    """YOLO heads at stride 8, from the coarse map upsampled beside the fine one, and at stride 16."""

    def __init__(self, classes: int):
        super().__init__()
        self.backbone = Backbone()
        self.lateral = conv(128, 64, 1)
        self.up = nn.Upsample(scale_factor=2)
        self.neck = conv(128, 64)
        self.heads = nn.ModuleList(
            nn.Conv2d(width, len(anchors) * (5 + classes), 1)
            for width, anchors in zip((64, 128), YOLO_ANCHORS, strict=True)
        )
        for head in self.heads:  # training starts from "almost every cell is empty"
            nn.init.constant_(head.get_parameter("bias").detach().view(-1, 5 + classes)[:, 4:], -4.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, h, w) in 0..1 → raw heads (B, A·(5 + C), h/8, w/8) and (B, A·(5 + C), h/16, w/16)."""
        fine, coarse = self.backbone(x)
        merged = self.neck(torch.cat((fine, self.up(self.lateral(coarse))), 1))
        return self.heads[0](merged), self.heads[1](coarse)


class SsdDemo(nn.Module):
    """SSD levels at strides 8, 16, 32 and 64 with four priors a cell; the scores await a softmax."""

    PRIORS = 4

    def __init__(self, classes: int):
        super().__init__()
        self.backbone = Backbone()
        self.coarser = nn.ModuleList(nn.Sequential(conv(width, 64, 1), conv(64, 64, stride=2)) for width in (128, 64))
        widths = (64, 128, 64, 64)
        self.boxes = nn.ModuleList(nn.Conv2d(width, self.PRIORS * 4, 1) for width in widths)
        self.scores = nn.ModuleList(nn.Conv2d(width, self.PRIORS * (1 + classes), 1) for width in widths)

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(B, 3, h, w) in -1..1 → boxes (B, 4·4, h', w') and scores (B, 4·(1 + C), h', w') of every level."""
        levels = list(self.backbone(x))
        for layer in self.coarser:
            levels.append(layer(levels[-1]))
        boxes = tuple(head(level) for head, level in zip(self.boxes, levels, strict=True))
        return boxes, tuple(head(level) for head, level in zip(self.scores, levels, strict=True))


def ssd_priors(size: int) -> Tensor:
    """(P, 4) cy cx h w in 0..1 (SSD, section 2.2): a cell's priors are two squares, an upright and a lying box."""
    levels = []
    for stride, side, following in zip(SSD_STRIDES, SSD_SIDES, SSD_SIDES[1:], strict=False):
        cells = -(-size // stride)
        centres = (torch.arange(cells) + 0.5) * stride / size
        cy, cx = torch.meshgrid(centres, centres, indexing="ij")
        larger = (side * following) ** 0.5
        shapes = torch.tensor(
            [(side, side), (larger, larger), (side / 2**0.5, side * 2**0.5), (side * 2**0.5, side / 2**0.5)]
        )
        place = torch.stack((cy, cx), -1)[:, :, None].expand(-1, -1, len(shapes), -1)
        extent = (shapes / SIZE).expand(cells, cells, -1, -1)
        levels.append(torch.cat((place, extent), -1).reshape(-1, 4))
    return torch.cat(levels)


def yolo_demo(model: Model) -> YoloDetector:
    """The project's own small YOLO; ``model.weights`` defaults to the trained ones of data/weights.

    model.names: voc (default), coco or a file with the 20 names, one a line. model.size: a multiple of 16, default 160.
    """
    size = _size(model)
    net = fill(YoloDemo(len(VOC_CLASSES)), model.weights or OWN_WEIGHTS / "yolo_demo.safetensors")
    options = model.given("resize", "score", "nms_iou", "top_k")
    return YoloDetector(net, _names(model.names), size, YOLO_ANCHORS, YOLO_STRIDES, **options)


def ssd_demo(model: Model) -> SsdDetector:
    """The project's own small SSD (softmax); its options are those of ``yolo_demo``."""
    size = _size(model)
    net = fill(SsdDemo(len(VOC_CLASSES)), model.weights or OWN_WEIGHTS / "ssd_demo.safetensors")
    options = {"nms_iou": 0.45} | model.given("resize", "score", "nms_iou", "top_k")
    return SsdDetector(net, _names(model.names), size, ssd_priors(size), **options)


def _size(model: Model) -> int:
    model.refuse_others("weights", "names", "size", "resize", "score", "nms_iou", "top_k")
    size = model.size or SIZE
    if size % 16:  # the stride of the coarse map
        raise InputError(f"model.size is {size}: {model.name} takes multiples of 16")
    return size


def _names(names: str | None) -> list[str]:
    """The 20 classes in VOC's order under VOC's names, COCO's, or those of a file."""
    if names in (None, "voc"):
        return list(VOC_CLASSES)
    if names == "coco":
        return [common_name(name) for name in VOC_CLASSES]
    read = read_names(names)
    if len(read) != len(VOC_CLASSES):
        raise InputError(f"{names} has {len(read)} names: the demo networks know VOC's {len(VOC_CLASSES)} classes")
    return read
