"""Agreement with the float network: COCO's mAP where the boxes that the float network found are the truth.

It needs no annotation, and it tells conversions apart that a data set's mAP cannot: an object that the float network
misses, or a box that it invents, is no error of the conversion.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from msat_det.measure.accuracy.coco import CocoEvaluator
from msat_det.models.detector import Detections

FOUND = 0.3  # score from which a box of the float network counts as found


@dataclass(frozen=True)
class FloatBoxes:
    """The float network's boxes in the form of a data set's annotations."""

    ids: list[int | str]
    classes: list[str]
    category_ids: list[int]
    annotations: dict[int | str, list[dict]]


class AgreementEvaluator(CocoEvaluator):
    """level: image id → what the float network found there. classes: the detector's.

    Raises InputError where the float network found nothing on any image.
    """

    def __init__(self, level: Mapping[int | str, Detections], classes: list[str]):
        annotations = {id: _annotations(found) for id, found in level.items()}
        counts = Counter((id, one["category_id"]) for id, found in annotations.items() for one in found)
        truth = FloatBoxes(list(level), classes, list(range(len(classes))), annotations)
        super().__init__(truth, classes, most=max(100, *counts.values()))

    def __call__(self, detections: Mapping[int | str, Detections]) -> dict[str, float]:
        """Image id → its Detections; gives ``agreement`` in percent, 100 for the float network's own boxes."""
        return {"agreement": super().__call__(detections)["map"]}


def has_boxes(level: Mapping[int | str, Any]) -> bool:
    """Whether the float network found anything that a conversion can agree with."""
    return any(isinstance(found, Detections) and bool((found.scores >= FOUND).any()) for found in level.values())


def _annotations(found: Detections) -> list[dict]:
    kept = found.scores >= FOUND
    boxes, labels = found.boxes[kept].double(), found.labels[kept]
    sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    rows = torch.cat((boxes[:, :2], sizes, sizes.prod(1, keepdim=True)), 1).tolist()
    return [
        {"bbox": row[:4], "area": row[4], "iscrowd": 0, "category_id": label}
        for row, label in zip(rows, labels.tolist(), strict=True)
    ]
