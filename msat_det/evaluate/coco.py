"""COCO's average precision, by pycocotools (Lin et al. 2014)."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from msat_det.data import CocoDetection
from msat_det.detectors.base import Detections
from msat_det.errors import InputError
from msat_det.evaluate.detections import flatten, match_classes


class CocoEvaluator:
    """COCOeval over the dataset's ids and over those of its classes that the detector knows.

    Crowds and areas are the annotation file's, so the figures are those of pycocotools on the same files.
    Raises InputError for a class that the dataset lacks, and if no object is left to find.
    """

    def __init__(self, dataset: CocoDetection, classes: list[str]):
        self.ids = sorted(dataset.ids)
        self.matched = match_classes(classes, dataset.classes)
        self.category_ids = np.array(dataset.category_ids)
        self.evaluated = self.category_ids[np.unique(self.matched[self.matched >= 0])].tolist()
        truth = [entry | {"image_id": id} for id in self.ids for entry in dataset.annotations[id]]
        if not any(entry["category_id"] in self.evaluated and not entry["iscrowd"] for entry in truth):
            raise InputError(
                f"no object of the detector's classes on {len(self.ids)} images: take more or other images"
            )
        self.truth = self._index(truth)

    def __call__(self, detections: dict[int, Detections]) -> dict[str, float]:
        """Image id → its Detections; gives ``map`` (IoU .5:.95) and ``map50`` in percent. Raises InputError."""
        found = flatten(detections, self.ids, self.matched)
        corner, size = found.boxes[:, :2], (found.boxes[:, 2:] - found.boxes[:, :2]).clip(min=0)
        columns = {
            "image_id": [self.ids[number] for number in found.image],
            "category_id": self.category_ids[found.label].tolist(),
            "bbox": np.hstack([corner, size]).tolist(),
            "area": size.prod(1).tolist(),
            "score": found.scores.tolist(),
        }
        results = self._index([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
        with contextlib.redirect_stdout(io.StringIO()):
            run = COCOeval(self.truth, results, "bbox")
            run.params.imgIds, run.params.catIds = self.ids, self.evaluated
            # map and map50 are over all areas and 100 boxes: leaving out the rest takes a quarter of the time
            run.params.areaRng, run.params.areaRngLbl, run.params.maxDets = [[0, 1e10]], ["all"], [100]
            run.evaluate()
            run.accumulate()
        precision = run.eval["precision"][..., 0, 0]  # (IoU, recall, class), −1 for a class without objects
        return {"map": _mean_percent(precision), "map50": _mean_percent(precision[0])}

    def _index(self, entries: list[dict]) -> COCO:
        """pycocotools' form of ground truth or detections, without a file. It keeps 0 for "no match", so ids from 1."""
        coco = COCO()
        coco.dataset = {
            "images": [{"id": id} for id in self.ids],
            "categories": [{"id": int(id)} for id in self.category_ids],
            "annotations": [entry | {"id": number} for number, entry in enumerate(entries, 1)],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco


def _mean_percent(precision: np.ndarray) -> float:
    return float(precision[precision > -1].mean() * 100)
