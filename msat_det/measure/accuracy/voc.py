"""PASCAL VOC's average precision (Everingham et al. 2010, §4.2), without a loop over boxes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from msat_det.base.errors import InputError
from msat_det.data import Dataset
from msat_det.measure.accuracy.detections import Found, flatten, match_classes
from msat_det.measure.accuracy.resampling import Difference, Resampling
from msat_det.models.detector import Detections

THRESHOLDS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class Truth:
    """Ground truth of many images: image (G,), label (G,) int64, boxes (G, 4) x1 y1 x2 y2, difficult (G,) bool.

    Edges are continuous, so a box is x2 − x1 wide. VOC's inclusive pixels, x2 − x1 + 1 wide, become that where they are
    read (``data.voc_xml``), and the overlaps are the same.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    difficult: np.ndarray

    def only(self, kept: np.ndarray) -> "Truth":
        """Those of the objects that are to be kept (G,) bool."""
        return Truth(self.image[kept], self.label[kept], self.boxes[kept], self.difficult[kept])


class VocEvaluator:
    """VOC's AP over the dataset's ids and over those of its classes that the detector knows.

    Raises InputError for a class that the dataset lacks, and if no object is left to find.
    """

    def __init__(self, dataset: Dataset, classes: list[str]):
        self.ids = sorted(dataset.ids)
        self.matched = match_classes(classes, dataset.classes)
        targets: list[Any] = [dataset.target(id) for id in self.ids]
        self.truth = Truth(
            np.repeat(np.arange(len(self.ids)), [len(target.labels) for target in targets]),
            np.concatenate([target.labels.numpy() for target in targets]),
            np.concatenate([target.boxes.numpy() for target in targets]).astype(np.float64),
            np.concatenate([target.ignore.numpy() for target in targets]),
        )
        present = np.unique(self.truth.label[~self.truth.difficult])
        self.labels = [int(label) for label in np.unique(self.matched) if label in present]
        if not self.labels:
            raise InputError(
                f"no object of the detector's classes on {len(self.ids)} images: take more or other images, or see "
                "whether their annotations are where they belong"
            )
        self.classes = dataset.classes
        self.crowds = hasattr(dataset, "annotations")  # COCO's form: what is ignored there are crowds

    def __call__(self, detections: dict[str, Detections]) -> dict:
        """Image id → its Detections; in percent ``map`` (IoU .5:.95), ``map50``, ``map50_11point`` and ``ap50`` by
        class. Classes without an object (that is not difficult) on these images are left out. Raises InputError."""
        found = flatten(detections, self.ids, self.matched)
        area = voc_ap(self.truth, found, self.labels, THRESHOLDS)
        points = voc_ap(self.truth, found, self.labels, THRESHOLDS[:1], eleven_point=True)
        return {
            "map": float(area.mean() * 100),
            "map50": float(area[0].mean() * 100),
            "map50_11point": float(points.mean() * 100),
            "ap50": {self.classes[label]: float(ap * 100) for label, ap in zip(self.labels, area[0], strict=True)},
        }

    def difference(self, ours: dict, theirs: dict, resampling: Resampling) -> Difference:
        """By how much ``map`` of our detections exceeds that of theirs."""
        found = [flatten(detections, self.ids, self.matched) for detections in (ours, theirs)]
        drawn = resampling.counts(len(self.ids)).numpy()
        counts = np.concatenate((np.ones_like(drawn[:1]), drawn))  # first the images as they are
        scores = [voc_map_of_draws(self.truth, each, self.labels, counts) for each in found]
        apart = scores[0] - scores[1]
        return Difference(float(apart[0]), *resampling.interval(torch.from_numpy(apart[1:])))

    def judged(self, detections: dict) -> tuple[np.ndarray, np.ndarray, int]:
        """Scores (D,) of the evaluated classes' detections, best first, whether each is right (D,) at an IoU of .5, and
        the number of objects to be found. Works for any dataset of boxes; a detection on an ignored object is left out,
        and so is one that lies half in a crowd and finds nothing else.
        """
        found = best_first(flatten(detections, self.ids, self.matched))
        crowd = self.truth.difficult & self.crowds
        objects = self.truth.only(~crowd)
        right, counted = judge(objects, *best_overlap(objects, found), THRESHOLDS[0])
        inside, _ = best_overlap(self.truth.only(crowd), found, share=True)
        counted &= np.isin(found.label, self.labels) & (right | (inside < THRESHOLDS[0]))
        wanted = np.isin(self.truth.label, self.labels) & ~self.truth.difficult
        return found.scores[counted], right[counted], int(wanted.sum())


def voc_ap(
    truth: Truth, found: Found, labels: list[int], thresholds: np.ndarray, eleven_point: bool = False
) -> np.ndarray:
    """(len(thresholds), len(labels)) average precision in 0..1; NaN for a class without an object to find.

    Best score first, a detection takes the object of its image and class that it overlaps most. With an IoU of at
    least the threshold it is right if it is the first on that object, left out if the object is difficult; else it is
    wrong. That object does not depend on the detections before, so all of them are matched at once. Equal scores keep
    the order given.
    """
    found = best_first(found)
    overlap, taken = best_overlap(truth, found)
    result = np.full((len(thresholds), len(labels)), np.nan)
    for row, threshold in enumerate(thresholds):
        right, counted = judge(truth, overlap, taken, threshold)
        for column, label in enumerate(labels):
            positives = int(((truth.label == label) & ~truth.difficult).sum())
            if positives:
                result[row, column] = average_precision(
                    right[counted & (found.label == label)], positives, eleven_point
                )
    return result


def voc_map_of_draws(truth: Truth, found: Found, labels: list[int], counts: np.ndarray) -> np.ndarray:
    """(draws,) mAP (IoU .5:.95) in percent where image i is there counts[draw, i] times, counts (draws, N).

    A class without an object in a draw is left out of its mean; a draw without any object is NaN.
    """
    found = best_first(found)
    matched = best_overlap(truth, found)
    judged = [judge(truth, *matched, threshold) for threshold in THRESHOLDS]
    result = np.full((len(THRESHOLDS), len(labels), len(counts)), np.nan)
    for column, label in enumerate(labels):
        wanted = truth.image[(truth.label == label) & ~truth.difficult]
        positives = counts[:, wanted].sum(1)
        for row, (right, counted) in enumerate(judged):
            chosen = counted & (found.label == label)
            hit, times = right[chosen], counts[:, found.image[chosen]]
            _, envelope = precision_envelope(hit, times)
            area = (envelope * times)[:, hit].sum(1)
            np.divide(area, positives, out=result[row, column], where=positives > 0)
    there = ~np.isnan(result)
    some = there.any((0, 1))
    return np.where(some, 100 * np.nansum(result, (0, 1)) / np.maximum(there.sum((0, 1)), 1), np.nan)


def best_first(found: Found) -> Found:
    """In order of score; equal ones keep the order given."""
    order = np.argsort(-found.scores, kind="stable")
    return Found(found.image[order], found.label[order], found.boxes[order], found.scores[order])


def judge(truth: Truth, overlap: np.ndarray, taken: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Which detections, best first, are right at an IoU threshold, and which count at all: two (D,) bool."""
    right = np.zeros(len(overlap), dtype=bool)
    hit = np.flatnonzero(overlap >= threshold)
    right[hit[np.unique(taken[hit], return_index=True)[1]]] = True
    counted = np.ones(len(overlap), dtype=bool)
    counted[hit] = ~truth.difficult[taken[hit]]
    return right, counted


def best_overlap(truth: Truth, found: Found, share: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Per detection the largest IoU (D,) with an object of its image and class, and that object's index (D,).

    The IoU is 0 where there is no such object; among equal ones the first object counts. share: instead of the IoU the
    share of the detection that lies in the object, as COCO measures crowds.
    """
    # Image and class as one key; the objects, sorted by it, make one run of candidates for every detection.
    width = 1 + max(truth.label.max(initial=0), found.label.max(initial=0))
    keys, wanted = truth.image * width + truth.label, found.image * width + found.label
    order = np.argsort(keys, kind="stable")
    first, last = (np.searchsorted(keys[order], wanted, side=side) for side in ("left", "right"))
    counts = last - first
    detection = np.repeat(np.arange(len(wanted)), counts)
    starts = np.cumsum(counts) - counts
    candidate = order[np.arange(len(detection)) + np.repeat(first - starts, counts)]
    a, b = found.boxes[detection], truth.boxes[candidate]
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = sides.clip(min=0).prod(1)
    sizes = [(boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1) for boxes in (a, b)]
    union = sizes[0] if share else sizes[0] + sizes[1] - common
    iou = common / np.maximum(union, np.finfo(float).tiny)  # two boxes without area: 0
    overlap, taken = np.zeros(len(wanted)), np.zeros(len(wanted), dtype=np.int64)
    order = np.lexsort((candidate, -iou, detection))
    some, position = np.unique(detection[order], return_index=True)
    overlap[some], taken[some] = iou[order[position]], candidate[order[position]]
    return overlap, taken


def precision_envelope(right: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right detections up to each one, and the best precision from there on, both (…, D): detections in order of score,
    right (D,) bool, each there as often as times (…, D) says."""
    hits = np.cumsum(times * right, axis=-1)
    precision = hits / np.maximum(np.cumsum(times, axis=-1), 1)
    return hits, np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


def average_precision(right: np.ndarray, positives: int, eleven_point: bool = False) -> float:
    """AP in 0..1 of detections in order of score (``right`` (D,) bool) when there are ``positives`` objects to find.

    The area under the precision envelope (VOC2010 and later), or its mean at recalls 0, .1, … 1 (VOC2007).
    """
    hits, envelope = precision_envelope(right, np.ones(len(right), dtype=np.int64))
    if eleven_point:
        # integers, for .1 · 3 is not .3 in floating point
        reached = [envelope[10 * hits >= point * positives][:1].sum() for point in range(11)]
        return float(np.mean(reached))
    return float(envelope[right].sum() / positives)
