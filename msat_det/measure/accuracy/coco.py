"""COCO's average precision (Lin et al. 2014), by pycocotools or, where it is installed, by hotcoco."""

import contextlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from msat_det.base.errors import InputError
from msat_det.data.base import alike
from msat_det.data.coco import whole
from msat_det.measure.accuracy.detections import flatten, match_classes
from msat_det.measure.accuracy.resampling import Difference, Resampling
from msat_det.models.detector import Detections

Engine = Literal["pycocotools", "hotcoco"]


class Annotated(Protocol):
    """What is asked of a data set: ``CocoDetection`` has it, and whatever writes its boxes in the same form."""

    @property
    def ids(self) -> Sequence[Any]: ...
    @property
    def classes(self) -> list[str]: ...
    @property
    def category_ids(self) -> list[int]: ...
    @property
    def annotations(self) -> dict[Any, list[dict]]: ...


class CocoEvaluator:
    """COCOeval over the dataset's ids and over those of its classes that the detector knows.

    Crowds and areas are the annotation file's, so the figures are those of pycocotools on the same files.
    engine: who computes it. hotcoco (the optional extra ``fast``) is pycocotools in Rust with bit for bit the same
        figures, so it is taken where it is installed; tests/measure/test_evaluate.py holds the two against each other.
    most: boxes of a class on an image that count, the best ones; COCO's own figures are of 100.
    Raises InputError for a class that the dataset lacks, and if no object is left to find.
    """

    def __init__(self, dataset: Annotated, classes: list[str], engine: Engine | None = None, most: int = 100):
        self.most = most
        self.engine = engine or ("hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools")
        self.ids = sorted(dataset.ids)
        self.names = dataset.classes
        self.matched = match_classes(classes, self.names)
        # An engine may keep ids as floats, and take no negative ones: both have images and classes by number, from 1.
        self.images = list(range(1, len(self.ids) + 1))
        self.evaluated = (1 + np.unique(self.matched[self.matched >= 0])).tolist()
        category = {id: number for number, id in enumerate(dataset.category_ids, 1)}
        truth = [
            entry | {"image_id": image, "category_id": category[entry["category_id"]]}
            for image, id in zip(self.images, self.ids, strict=True)
            for entry in dataset.annotations[id]
        ]
        if not any(entry["category_id"] in self.evaluated and not entry["iscrowd"] for entry in truth):
            raise InputError(
                f"no object of the detector's classes on {len(self.ids)} images: take more or other images, or see "
                "whether their annotations are where they belong"
            )
        self.truth = self._index(truth)

    def __call__(self, detections: Mapping[Any, Detections]) -> dict[str, float]:
        """Image id (12, "12" or 12.0) → its Detections; gives ``map`` (IoU .5:.95) and ``map50`` in percent.

        Raises InputError.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            run = self._matched(detections)
            run.accumulate()
        precision = run.eval["precision"][..., 0, 0]  # (IoU, recall, class), −1 for a class without objects
        return {"map": _mean_percent(precision), "map50": _mean_percent(precision[0])}

    def difference(self, ours: Mapping, theirs: Mapping, resampling: Resampling) -> Difference:
        """By how much ``map`` of our detections exceeds that of theirs; the engine must be hotcoco."""
        runs = [self._matched(detections) for detections in (theirs, ours)]
        settings = {"n_bootstrap": resampling.draws, "confidence": resampling.confidence, "seed": resampling.seed}
        found = _hotcoco().compare(*runs, **settings)
        bounds = (found["ci"]["AP"][name] for name in ("lower", "upper"))
        return Difference(*(100 * value for value in (found["deltas"]["AP"], *bounds)))

    def _matched(self, detections: Mapping[Any, Detections]) -> Any:
        """The engine's evaluation with detections and objects matched, not yet summed up."""
        found = flatten(_by_id(detections, set(self.ids)), self.ids, self.matched)
        corner, size = found.boxes[:, :2], (found.boxes[:, 2:] - found.boxes[:, :2]).clip(min=0)
        image, category = 1 + found.image, 1 + found.label
        if self.engine == "hotcoco":
            rows = np.column_stack([image, corner, size, found.scores, category])
            run = _hotcoco().COCOeval(self.truth, self.truth.load_res(rows), "bbox")
        else:
            columns = {
                "image_id": image.tolist(),
                "category_id": category.tolist(),
                "bbox": np.hstack([corner, size]).tolist(),
                "area": size.prod(1).tolist(),
                "score": found.scores.tolist(),
            }
            entries = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            run = COCOeval(self.truth, self._index(entries), "bbox")
        run.params.imgIds, run.params.catIds = self.images, self.evaluated
        # map and map50 are over all areas and the most boxes: leaving out the rest takes a quarter of the time
        run.params.areaRng, run.params.areaRngLbl, run.params.maxDets = [[0, 1e10]], ["all"], [self.most]
        run.evaluate()
        return run

    def _index(self, entries: list[dict]) -> Any:
        """The engine's form of ground truth or detections, without a file. It keeps 0 for "no match", so ids from 1."""
        content = {
            "images": [{"id": number} for number in self.images],
            "categories": [{"id": number, "name": name} for number, name in enumerate(self.names, 1)],
            "annotations": [entry | {"id": number} for number, entry in enumerate(entries, 1)],
        }
        if self.engine == "hotcoco":
            return _hotcoco().COCO(content)
        coco = COCO()
        coco.dataset = content
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco


def _hotcoco() -> Any:
    import hotcoco

    return hotcoco


def _by_id(detections: Mapping[Any, Detections], known: set) -> dict[int | str, Detections]:
    """By the ids that are known: results may come with "12" or 12.0 for 12. Raises InputError for a double."""
    ids: list[Any] = [number if id not in known and (number := whole(id)) in known else id for id in detections]
    if pair := alike(ids):
        raise InputError(f"detections on image {ids[pair[0]]!r} are given twice: give them once")
    return dict(zip(ids, detections.values(), strict=True))


def _mean_percent(precision: np.ndarray) -> float:
    return float(precision[precision > -1].mean() * 100)
