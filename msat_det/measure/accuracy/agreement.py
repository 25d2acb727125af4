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
from msat_det.measure.accuracy.resampling import Difference, Resampling
from msat_det.models.detector import Detections

FOUND = 0.3  # score from which a box of the float network counts as found


@dataclass(frozen=True)
class FloatBoxes:
    """The float network's boxes in the form of a data set's annotations; images by number."""

    ids: list[int]
    classes: list[str]
    category_ids: list[int]
    annotations: dict[int, list[dict]]


class AgreementEvaluator:
    """level: image id → what the float network found there. classes: the detector's.

    Raises InputError where the float network found nothing on any image.
    """

    def __init__(self, level: Mapping[int | str, Detections], classes: list[str]):
        self.ids = sorted(level)
        annotations = {i: _annotations(level[id]) for i, id in enumerate(self.ids)}
        numbers = list(range(1, len(classes) + 1))
        most = max(
            Counter((i, one["category_id"]) for i, each in annotations.items() for one in each).values(), default=0
        )
        truth = FloatBoxes(list(annotations), classes, numbers, annotations)
        self.coco = CocoEvaluator(truth, classes, most=max(100, most))

    @property
    def engine(self) -> str:
        return self.coco.engine

    def __call__(self, found: Mapping[int | str, Detections]) -> float:
        """The agreement in percent; 100 for the float network's own boxes."""
        return self.coco(self._by_number(found))["map"]

    def difference(self, ours: Mapping, theirs: Mapping, resampling: Resampling) -> Difference:
        """By how much the agreement of our detections exceeds that of theirs."""
        return self.coco.difference(self._by_number(ours), self._by_number(theirs), resampling)

    def _by_number(self, found: Mapping[int | str, Detections]) -> dict[int, Detections]:
        return {i: found[id] for i, id in enumerate(self.ids) if id in found}


def has_boxes(level: Mapping[int | str, Any]) -> bool:
    """Whether the float network found anything that a conversion can agree with."""
    return any(isinstance(found, Detections) and bool((found.scores >= FOUND).any()) for found in level.values())


def _annotations(found: Detections) -> list[dict]:
    kept = found.scores >= FOUND
    boxes, labels = found.boxes[kept].double(), found.labels[kept]
    sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    rows = torch.cat((boxes[:, :2], sizes, sizes.prod(1, keepdim=True)), 1).tolist()
    return [
        {"bbox": row[:4], "area": row[4], "iscrowd": 0, "category_id": label + 1}
        for row, label in zip(rows, labels.tolist(), strict=True)
    ]
