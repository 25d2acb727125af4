"""From what a network found on a data set's images to its score. An evaluator is built once and called many times."""

from collections.abc import Callable
from typing import Any

from msat_det.base.errors import InputError
from msat_det.data import Dataset
from msat_det.measure.accuracy.agreement import AgreementEvaluator, has_boxes
from msat_det.measure.accuracy.coco import CocoEvaluator
from msat_det.measure.accuracy.resampling import Difference, Resampling
from msat_det.measure.accuracy.topk import TopKEvaluator, topk
from msat_det.measure.accuracy.voc import VocEvaluator, voc_ap

# A dataset's name → its evaluator. A user's own dataset may take one of these names or add its own.
EVALUATORS: dict[str, Callable[[Any, list[str]], Callable[[dict], dict]]] = {
    "coco": CocoEvaluator,
    "voc": VocEvaluator,
    "yolo": CocoEvaluator,
    "cifar100": TopKEvaluator,
    "folders": TopKEvaluator,
}


def make_evaluator(dataset: Dataset, classes: list[str]) -> Callable[[dict], dict]:
    """The evaluator of a dataset, for a network that knows ``classes``.

    It takes id → Detections (or id → logits (K,) for classification) and returns a dict of scores in percent. An image
    without an entry counts as one on which nothing was found. Raises InputError where the dataset has no labels.
    """
    if dataset.name not in EVALUATORS:
        raise InputError(
            f"{dataset.folder} has no labels to evaluate on: use a dataset of kind voc, coco, yolo or folders"
        )
    return EVALUATORS[dataset.name](dataset, classes)


def evaluate(dataset: Dataset, found: dict[int | str, Any], classes: list[str]) -> dict:
    """``make_evaluator`` and one call of it."""
    return make_evaluator(dataset, classes)(found)


__all__ = [
    "EVALUATORS",
    "AgreementEvaluator",
    "CocoEvaluator",
    "Difference",
    "Resampling",
    "TopKEvaluator",
    "VocEvaluator",
    "evaluate",
    "has_boxes",
    "make_evaluator",
    "topk",
    "voc_ap",
]
