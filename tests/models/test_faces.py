"""Faces: YuNet and UltraFace find, as spiking networks, every face of which their float networks are sure."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

import msat_det
from msat_det import SpikingNetwork, load_onnx
from msat_det.data import build_dataset, subset
from msat_det.models.detector import Detections
from msat_det.models.heads import cells_of
from msat_det.models.preprocessing import Geometry, Inputs
from msat_det.models.suppression import select

IMAGES = 48  # the first photographs of coco_val128
SURE = 0.6


class YuNet:
    """Wu et al. 2023: score = √(class · objectness), centre and extent in cells; its outputs go through sigmoids."""

    def __init__(self, path: Path):
        self.classes = ["face"]
        self.net, self.inputs = load_onnx(path), Inputs("letterbox", 0, bgr=True, std=(1.0, 1.0, 1.0))
        self.cells, _ = cells_of((320, 320), (8, 16, 32), None)

    def preprocess(self, image: Tensor) -> tuple[Tensor, Geometry]:
        return self.inputs.ready(image, (320, 320))

    def decode(self, outputs: tuple[Tensor, ...], metas: list[Geometry]) -> list[Detections]:
        classes, objectness, box = (torch.cat(outputs[i : i + 3], 1) for i in (0, 3, 6))
        cells = self.cells
        centre = cells.centre + (box[..., :2] - 0.5) * cells.stride
        extent = box[..., 2:].exp() * cells.stride
        boxes = torch.cat((centre - extent / 2, centre + extent / 2), -1)
        return select(boxes, (classes.clamp(0, 1) * objectness.clamp(0, 1)).sqrt(), metas, 0.3, 100, 0.45)


class UltraFace:
    """Its file decodes by itself: scores (background first) and boxes in 0..1."""

    def __init__(self, path: Path):
        self.classes = ["face"]
        self.net, self.inputs = load_onnx(path), Inputs(mean=(127.0,) * 3, std=(128.0,) * 3)

    def preprocess(self, image: Tensor) -> tuple[Tensor, Geometry]:
        return self.inputs.ready(image, (240, 320))

    def decode(self, outputs: tuple[Tensor, Tensor], metas: list[Geometry]) -> list[Detections]:
        scores, boxes = outputs
        return select(boxes * torch.tensor([320.0, 240, 320, 240]), scores[..., 1:], metas, 0.3, 100, 0.3)


def photographs(shared_data: Path) -> list[Tensor]:
    dataset = build_dataset("coco", shared_data / "coco_val128", "val2017")
    return [dataset.image(id) for id in dataset.ids[:IMAGES]]


def calibration(shared_data: Path) -> list[list[Tensor]]:
    dataset = subset(build_dataset("images", shared_data / "coco_calib64", None), 16, 0)
    return [[dataset.image(id) for id in dataset.ids]]


def found_again(sure: list[Detections], spiking: list[Detections]) -> tuple[int, int]:
    """How many faces the float network is sure of, and how many of them the spiking one finds (IoU .5)."""
    total = again = 0
    for a, b in zip(sure, spiking, strict=True):
        boxes = a.boxes[a.scores > SURE]
        total += len(boxes)
        if len(boxes) and len(b.boxes):
            again += int((box_iou(boxes, b.boxes).amax(1) > 0.5).sum())
    return total, again


CODINGS: dict[str, tuple[dict[str, Any], int]] = {
    "delta": ({"method": "delta-3"}, 4),
    "rate": ({"method": "signed-b7"}, 32),
}
NETWORKS: dict[str, tuple[Callable[[Path], Any], str, int]] = {
    "YuNet": (YuNet, "yunet_n_320_320.onnx", 18),
    "UltraFace": (UltraFace, "version-RFB-320.onnx", 21),
}


def convert(name: str, coding: str, shared_data: Path) -> tuple[Any, SpikingNetwork]:
    make, file, _ = NETWORKS[name]
    detector = make(shared_data / "weights" / file)
    return detector, msat_det.convert(detector, calibration(shared_data), **CODINGS[coding][0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::msat_det.CalibrationWarning")
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_face_is_found(name: str, coding: str, shared_data: Path) -> None:
    detector, snn = convert(name, coding, shared_data)
    T, images = CODINGS[coding][1], photographs(shared_data)
    sure: list[Detections] = []
    spiking: list[Detections] = []
    for begin in range(0, IMAGES, 8):
        pixels, metas = zip(*map(detector.preprocess, images[begin : begin + 8]), strict=True)
        with torch.inference_mode():
            sure += detector.decode(detector.net(torch.stack(pixels)), list(metas))
    shown = [number for number, boxes in enumerate(sure) if (boxes.scores > SURE).any()]  # nothing is missed elsewhere
    for begin in range(0, len(shown), 8):
        spiking += snn.detect([images[number] for number in shown[begin : begin + 8]], T=T)[T]
    total, again = found_again([sure[number] for number in shown], spiking)
    assert abs(total - NETWORKS[name][2]) <= 2  # as published beside the data, up to the way that images are resized
    assert again == total
