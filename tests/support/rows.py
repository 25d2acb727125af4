"""Rows of a curve and a picture with boxes."""

import numpy as np
import torch

from msat_det.data import Sample, Target
from msat_det.measure.rows import CurveRow
from msat_det.models.detector import Detections

ROWS = [
    CurveRow("float", None, {"map": 23.3, "map50": 39.1, "map50_11point": 38.0}),
    CurveRow("if", 4, {"map": 1 / 3, "map50": 2.0, "map50_11point": float("nan")}, 1.5, 0.25, 0.0625),
    CurveRow("if", 8, {"map": 20.0, "map50": 35.0, "map50_11point": 34.0}, 3.0, 0.5, 0.125, 1.25, 0.09375),
    CurveRow("staged-4", 4, {"map": np.float32(21.5), "map50": 36.0, "map50_11point": 35.0}, 3.0, 0.5, 0.125),
    CurveRow("silent", 4, {"map": 0.0, "map50": 0.0, "map50_11point": 0.0}, 0.0, 0.0, 0.0),
]


def picture() -> tuple[Sample, list[str], dict[str, Detections], list[str]]:
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [10.0, 20.0, 60.0, 47.0]])
    target = Target(boxes, torch.tensor([1, 0]), torch.tensor([False, True]))
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = Detections(boxes + 2, torch.tensor([0.9, 0.2]), torch.tensor([0, 1]))
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    return Sample("../a/7", image, target), ["dog", "tvmonitor"], {"float": found, "t = 4": empty}, ["tv", "dog"]
