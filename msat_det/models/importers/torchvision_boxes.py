"""The boxes of torchvision's single-stage detectors for a whole batch at once, as a GPU is quick with."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from msat_det.base.device import brought
from msat_det.models.suppression import suppressed


def best_boxes(
    model: SSD | RetinaNet | FCOS,
    outputs: dict[str, Tensor],
    anchors: Tensor,
    counts: list[int],
    sizes: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``model.postprocess_detections`` gives, but for equal scores: boxes (B, N, 4), scores, labels and which of
    them there are (B, N), the best first.

    That goes through images, and levels or classes, one by one, and waits for a GPU several times at each. Here one is
    waited for once, and in each image's suppression.
    outputs: of the head, (B, P, …). anchors: (P, 4). counts: of them in each level. sizes: (h, w) of each image.
    """
    best = _best_of_classes if isinstance(model, SSD) else _best_of_levels
    scores, places, labels = best(model, outputs, counts)  # (B, G, n): boxes of different G never drop each other
    valid = scores > model.score_thresh
    most = int(valid.sum(-1).max())
    scores, places, labels, valid = (each[..., :most] for each in (scores, places, labels, valid))
    boxes = _decoded(model, outputs["bbox_regression"], anchors, places.flatten(1)).unflatten(1, places.shape[1:])
    edges = brought(torch.tensor([(w, h, w, h) for h, w in sizes]), boxes)
    boxes = torch.minimum(boxes.clamp(min=0), edges[:, None, None])
    images = zip(boxes, labels, valid, strict=True)
    kept = torch.stack([suppressed(*image, model.nms_thresh) for image in images]).flatten(1)
    order = torch.where(kept, scores.flatten(1), -1).sort(dim=1, descending=True, stable=True).indices
    order = order[:, : model.detections_per_img]
    scores, labels, kept = (each.flatten(1).gather(1, order) for each in (scores, labels, kept))
    return boxes.flatten(1, 2).take_along_dim(order[:, :, None], 1), scores, labels, kept


def _decoded(model: SSD | RetinaNet | FCOS, offsets: Tensor, anchors: Tensor, places: Tensor) -> Tensor:
    """The boxes of the anchors ``places`` (B, N) → (B, N, 4)."""
    offsets = offsets.take_along_dim(places[:, :, None], 1)
    decode = model.box_coder.decode if isinstance(model, FCOS) else model.box_coder.decode_single
    return decode(offsets.flatten(0, 1), anchors[places].flatten(0, 1)).view_as(offsets)


Best = tuple[Tensor, Tensor, Tensor]  # scores (B, G, n), the best of each group first, of which anchors, labels


def _best_of_classes(model: SSD, outputs: dict[str, Tensor], counts: list[int]) -> Best:
    """Of every class but the background."""
    scores = outputs["cls_logits"].softmax(-1)[..., 1:].movedim(-1, 1)
    best, places = scores.topk(min(model.topk_candidates, scores.shape[-1]))
    labels = torch.arange(1, scores.shape[1] + 1, device=scores.device)[:, None]
    return best, places, labels.expand_as(places)


def _best_of_levels(model: RetinaNet | FCOS, outputs: dict[str, Tensor], counts: list[int]) -> Best:
    """Of every level, all in one group."""
    scores = outputs["cls_logits"].sigmoid()
    if isinstance(model, FCOS):
        scores = (scores * outputs["bbox_ctrness"].sigmoid()).sqrt()
    found, first, classes = [], 0, scores.shape[-1]
    for level in scores.split(counts, 1):
        best, pairs = level.flatten(1).topk(min(model.topk_candidates, level[0].numel()))
        found.append((best, first + pairs // classes, pairs % classes))
        first += level.shape[1]
    scores, places, labels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores[:, None], places.gather(1, order)[:, None], labels.gather(1, order)[:, None]
