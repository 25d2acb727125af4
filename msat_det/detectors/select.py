"""From every box's scores to the few that are kept: threshold, top-k and one non-maximum suppression for the batch."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from msat_det.detectors.base import Detections
from msat_det.detectors.resize import Geometry

CANDIDATES = 1000  # (box, class) pairs of an image that enter suppression; 300 already cost no mAP to speak of


def select(
    boxes: Tensor, scores: Tensor, metas: list[Geometry], score: float, top_k: int, nms_iou: float
) -> list[Detections]:
    """Keep the best boxes of every image: one box may be kept for several classes.

    boxes: (B, N, 4) x1 y1 x2 y2 in pixels of the network's input. scores: (B, N, C) in 0..1.
    Of the (box, class) pairs of an image with a score above ``score`` the best 1000 enter one non-maximum suppression,
    which works by image and class; the best ``top_k`` of an image leave it. The cap bounds the cost when a noisy early
    timestep puts thousands over the threshold. IoU is the same after a stretch, so suppression works in input pixels.
    """
    classes = scores.shape[-1]
    values, pairs = scores.flatten(1).topk(min(CANDIDATES, scores[0].numel()))
    image, rank = torch.nonzero(values > score, as_tuple=True)
    values, pairs = values[image, rank], pairs[image, rank]
    labels = pairs % classes
    boxes = boxes[image, pairs // classes]
    kept = batched_nms(boxes, values, image * classes + labels, nms_iou)
    detections = []
    for i, meta in enumerate(metas):
        of_image = kept[image[kept] == i]
        placed = meta.to_original(boxes[of_image])
        visible = ((placed[:, 2:] > placed[:, :2]).all(1)).nonzero()[:top_k, 0]
        of_image = of_image[visible]
        detections.append(Detections(placed[visible], values[of_image], labels[of_image]))
    return detections
