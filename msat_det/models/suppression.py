"""From every box's scores to the few that are kept: threshold, top-k, non-maximum suppression."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from msat_det.models.detector import Detections
from msat_det.models.preprocessing import Geometry, to_originals

CANDIDATES = 500  # (box, class) pairs of an image that enter suppression
ROUNDS = 16  # of ``suppressed`` before it looks whether they were enough


def select(
    boxes: Tensor, scores: Tensor, metas: list[Geometry], score: float, top_k: int, nms_iou: float
) -> list[Detections]:
    """Keep the best boxes of every image; one box may be kept for several classes.

    boxes: (B, N, 4) x1 y1 x2 y2 in pixels of the network's input. scores: (B, N, C) in 0..1.
    Of an image's (box, class) pairs with a score above ``score`` the best 500 enter non-maximum suppression, class by
    class, and the best ``top_k`` leave it, clipped to the image. The cap bounds the cost when a noisy early timestep
    puts thousands over the threshold. IoU is the same after a stretch, so suppression works in input pixels.
    A GPU is waited for twice, however many images there are.
    """
    values, pairs = scores.flatten(1).topk(min(CANDIDATES, scores[0].numel()))
    labels = pairs % scores.shape[-1]
    boxes = boxes.take_along_dim((pairs // scores.shape[-1])[:, :, None], 1)
    # Finite, and double where there is that: batched_nms moves classes apart by adding multiples of the largest number.
    apart = (boxes if boxes.device.type == "mps" else boxes.double()).clamp(-1e5, 1e5)
    valid = values > score
    if boxes.device.type == "cpu":
        kept = _image_by_image(apart, values.double(), labels, valid, nms_iou)
    else:
        kept = suppressed(apart, labels, valid, nms_iou)
    placed = to_originals(boxes, metas)
    kept &= have_area(placed)
    return packed(placed, values, labels, kept, top_k)


def have_area(boxes: Tensor) -> Tensor:
    """Which boxes (…, 4), x1 y1 x2 y2, are more than a line: (…) bool."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def packed(boxes: Tensor, scores: Tensor, labels: Tensor, kept: Tensor, top_k: int) -> list[Detections]:
    """Of each image the first ``top_k`` boxes that are kept: (B, N, 4), and three times (B, N)."""
    best = kept.byte().sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    boxes, scores, labels = boxes.take_along_dim(best[:, :, None], 1), scores.gather(1, best), labels.gather(1, best)
    counts = kept.sum(1).clamp(max=top_k).tolist()
    return [Detections(boxes[i, :n], scores[i, :n], labels[i, :n]) for i, n in enumerate(counts)]


def _image_by_image(boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, nms_iou: float) -> Tensor:
    """``suppressed`` by torchvision: on a CPU seven times as fast for a batch of 16."""
    kept = torch.zeros_like(valid)
    for i, count in enumerate(valid.sum(1).tolist()):
        kept[i, batched_nms(boxes[i, :count], scores[i, :count], labels[i, :count], nms_iou)] = True
    return kept


def suppressed(boxes: Tensor, labels: Tensor, valid: Tensor, nms_iou: float) -> Tensor:
    """Which boxes non-maximum suppression keeps, class by class, in all images at once: (B, N) bool.

    boxes: (B, N, 4), the best first. labels: (B, N). valid: (B, N), boxes that count at all.
    Of the boxes that may be kept each drops those behind it that overlap it by more than ``nms_iou``; that is done to
    all at once until nothing changes (Cluster NMS, Zheng et al. 2021). With every round one box more at least is
    settled for good, so that what is left is what taking them one by one leaves.
    """
    corners = boxes.movedim(-1, 0)
    (x1, y1, x2, y2), (left, top, right, bottom) = corners[..., None], corners[..., None, :]
    inner = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp_(min=0)
    inner *= (torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp_(min=0)
    areas = (corners[2] - corners[0]) * (corners[3] - corners[1])
    union = areas[:, :, None] + areas[:, None] - inner
    drops = (inner.div_(union) > nms_iou) & (labels[:, :, None] == labels[:, None])
    drops = drops.triu_(1)
    kept = valid
    while True:
        for _ in range(ROUNDS):
            before, kept = kept, valid & ~(drops & kept[:, :, None]).any(1)
        if torch.equal(before, kept):
            return kept
