"""A detector's output in a dataset's terms: class names matched, all images in flat arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from msat_det.base.errors import InputError
from msat_det.data.base import class_names
from msat_det.data.voc_classes import class_index
from msat_det.models.detector import Detections


@dataclass(frozen=True)
class Found:
    """Boxes found on many images, in order of image and, within one, as the detector gave them.

    image (D,) int64: index into the ids. label (D,) int64: index into the dataset's classes. boxes (D, 4) float64:
    x1 y1 x2 y2. scores (D,) float64.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def match_classes(classes: list[str], known: list[str]) -> np.ndarray:
    """(len(classes),) int64: the index in ``known`` of each of a detector's classes, −1 for one that is not there.

    One vocabulary must hold the other (names compared with VOC's and COCO's spellings made equal): a detector may know
    fewer classes than the dataset or more. Otherwise InputError names the first class that is unknown, as for a name
    that is none or there twice.
    """
    classes = class_names(classes, "the detector")
    index = class_index(known)
    found = np.array([index.get(name, -1) for name in classes], dtype=np.int64)
    # one that is spelled otherwise gives way to the class of that very name
    taken = [i >= 0 and known[i] != name and known[i] in classes for i, name in zip(found, classes, strict=True)]
    matched = np.where(taken, -1, found)
    if (matched < 0).any() and len(set(matched[matched >= 0])) < len(known):
        name = classes[int(np.argmax(matched < 0))]
        raise InputError(f"the dataset has no class {name!r}, which the detector knows: correct the detector's names")
    return matched


def flatten(detections: Mapping[Any, Detections], ids: list[int | str], matched: np.ndarray) -> Found:
    """All detections on ``ids`` (images without an entry have none), without the classes that ``matched`` calls −1.

    Raises InputError for an unknown image, for labels that are no class and for boxes or scores that are not finite.
    """
    strange = detections.keys() - set(ids)
    if strange:
        raise InputError(f"detections on image {min(map(str, strange))!r}, which the dataset has not: evaluate its ids")
    found = [(number, detections[id]) for number, id in enumerate(ids) if id in detections]
    for number, one in found:
        if one.boxes.shape != (len(one.scores), 4) or one.labels.shape != one.scores.shape:
            shapes = f"{tuple(one.boxes.shape)}, {tuple(one.scores.shape)} and {tuple(one.labels.shape)}"
            raise InputError(f"detections on image {ids[number]!r} have shapes {shapes}: give (N, 4), (N,) and (N,)")
    image = np.repeat([number for number, _ in found], [len(one.scores) for _, one in found]).astype(np.int64)
    boxes = _concatenate([one.boxes for _, one in found]).reshape(-1, 4)
    scores = _concatenate([one.scores for _, one in found])
    label = _concatenate([one.labels for _, one in found]).astype(np.int64)
    bad = ~(np.isfinite(boxes).all(1) & np.isfinite(scores))
    if bad.any():
        raise InputError(f"detections on image {ids[image[bad.argmax()]]!r} are not finite: check the network's output")
    if ((label < 0) | (label >= len(matched))).any():
        raise InputError(f"detections have a label outside 0…{len(matched) - 1}: labels index the detector's classes")
    label = matched[label]
    keep = label >= 0
    return Found(image[keep], label[keep], boxes[keep], scores[keep])


def _concatenate(tensors: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([tensor.detach().cpu().double() for tensor in tensors]).numpy() if tensors else np.zeros(0)
