"""The boxes of torchvision's detectors for a whole batch at once, as a GPU is quick with."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from msat_det.base.device import brought
from msat_det.models.suppression import suppressed

Size: TypeAlias = tuple[int, int]  # height, width
Best: TypeAlias = tuple[Tensor, Tensor, Tensor]  # scores (B, G, n), each group's best first, of which boxes, labels
Boxes: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


def best_boxes(
    limits: Any, best: Best, decoded: Callable[[Tensor], Tensor], sizes: Sequence[Size], smallest: float = 0
) -> Boxes:
    """What torchvision's ``postprocess_detections`` gives, but for equal scores: boxes (B, N, 4), scores, labels and
    which of them there are (B, N), the best first.

    That goes through images, and levels or classes, one by one, and waits for a GPU several times at each. Here one is
    waited for once, and in each image's suppression.
    limits: what has ``score_thresh``, ``nms_thresh`` and ``detections_per_img``. best: candidates; those of different
    groups never drop each other. decoded: places (B, G, n) → boxes (B, G, n, 4). sizes: (h, w) of each image.
    smallest: a box with a side below it does not count.
    """
    scores, places, labels = best
    valid = scores > limits.score_thresh
    most = int(valid.sum(-1).max())
    scores, places, labels, valid = (each[..., :most] for each in (scores, places, labels, valid))
    boxes = decoded(places)
    edges = brought(torch.tensor([(w, h, w, h) for h, w in sizes]), boxes)
    boxes = torch.minimum(boxes.clamp(min=0), edges[:, None, None])
    valid = valid & (boxes[..., 2:] - boxes[..., :2] >= smallest).all(-1)
    images = zip(boxes, labels, valid, strict=True)
    kept = torch.stack([suppressed(*image, limits.nms_thresh) for image in images]).flatten(1)
    order = torch.where(kept, scores.flatten(1), -1).sort(dim=1, descending=True, stable=True).indices
    order = order[:, : limits.detections_per_img]
    scores, labels, kept = (each.flatten(1).gather(1, order) for each in (scores, labels, kept))
    return boxes.flatten(1, 2).take_along_dim(order[:, :, None], 1), scores, labels, kept
