"""The regions of a two-stage detector, in tensors of fixed sizes: proposed by its first stage, pooled for its second.

Each function is one node of a graph. What they pick depends on values, and is found anew at every timestep.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, roi_align  # which has ``WAYS`` made known to PyTorch

from msat_det.graph.ops import one_node

LARGEST_GROWTH = math.log(1000 / 16)  # of a box over its anchor, in exponents: torchvision's bound
EPSILON = 1e-6  # of a level, as torchvision has it


@one_node
def region_proposals(
    objectness: Sequence[Tensor],
    offsets: Sequence[Tensor],
    anchors: Tensor,
    edges: Tensor,
    before: int,
    after: int,
    iou: float,
    score: float,
    smallest: float,
) -> Tensor:
    """The boxes that a region proposal network hands to the second stage (Ren et al. 2015), as torchvision picks them.

    objectness: (B, A, h, w) logits of each level. offsets: (B, 4·A, h, w) of its anchors. anchors: (P, 4) x1 y1 x2 y2
    of all levels, the A of a cell side by side. edges: (B, 4) w h w h of each image, which boxes are clipped to.
    Of each level the best ``before`` boxes enter suppression above ``iou``, but for those with a score below ``score``
    or a side below ``smallest``; of what it leaves in all levels the best ``after`` are taken.
    Returns (B, K, 4), K being ``after`` or, where there are fewer, the boxes that enter, in the order of their anchors:
    a change of scores alone moves none of them. Rows left over are 0, boxes without an area.
    """
    logits = [level.permute(0, 2, 3, 1).flatten(1) for level in objectness]
    best = [level.topk(min(before, level.shape[1])) for level in logits]
    starts = accumulate((level.shape[1] for level in logits[:-1]), initial=0)
    places = torch.cat([level.indices + start for level, start in zip(best, starts, strict=True)], 1)
    count = min(after, places.shape[1])
    if anchors.shape != (sum(level.shape[1] for level in logits), 4):
        raise ValueError(f"anchors of shape {tuple(anchors.shape)} for {[level.shape[1] for level in logits]} scores")
    if places.is_meta:  # shapes alone
        return places.new_empty(len(places), count, 4, dtype=logits[0].dtype)
    moves = [level.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(len(level), -1, 4) for level in offsets]
    boxes = _moved(anchors[places], torch.cat(moves, 1).take_along_dim(places[..., None], 1))
    boxes = torch.minimum(boxes.clamp(min=0), edges[:, None])
    scores = torch.cat([level.values for level in best], 1).sigmoid()
    valid = (boxes[..., 2:] - boxes[..., :2] >= smallest).all(-1) & (scores >= score)
    scores = scores.where(valid, -1.0)
    levels = torch.cat([torch.full_like(level.indices[0], i) for i, level in enumerate(best)])
    kept = torch.zeros_like(valid)
    for row, inside, score_of in zip(kept, boxes, scores, strict=True):
        row[batched_nms(inside, score_of, levels, iou)[:after]] = True
    kept &= valid
    order = places.where(kept, len(anchors)).argsort(1)[:, :count]
    return boxes.where(kept[..., None], 0.0).take_along_dim(order[..., None], 1)


def _moved(anchors: Tensor, offsets: Tensor) -> Tensor:
    """Anchors (…, 4), x1 y1 x2 y2, by the offsets of their centres, in sides, and the logarithms of their growth."""
    sides = anchors[..., 2:] - anchors[..., :2]
    centres = anchors[..., :2] + 0.5 * sides + offsets[..., :2] * sides
    half = 0.5 * sides * offsets[..., 2:].clamp(max=LARGEST_GROWTH).exp()
    return torch.cat((centres - half, centres + half), -1)


@one_node
def pooled_regions(
    features: Sequence[Tensor],
    boxes: Tensor,
    scales: Sequence[float],
    size: tuple[int, int],
    sampling: int,
    canonical: tuple[int, int],
) -> Tensor:
    """What the backbone's maps show in each region, by RoIAlign (He et al. 2017), as torchvision pools it.

    features: (B, C, h, w) of each level. boxes: (B, K, 4) in pixels of the network's input. scales: of the levels, in
    cells a pixel. size: (h, w) of the result. sampling: points a cell and direction; 0 or below: as many as fit.
    canonical: side of a region that is pooled from a level, and that level, 2 to whose power is its stride: others have
    theirs by their area, eq. 1 of Lin et al. 2017.
    Returns (B·K, C, *size).
    """
    flat = boxes.flatten(0, 1)
    found = features[0].new_zeros(len(flat), features[0].shape[1], *size)
    if found.is_meta:  # shapes alone
        return found
    image = torch.arange(len(boxes), device=flat.device, dtype=flat.dtype).repeat_interleave(boxes.shape[1])
    regions = torch.cat((image[:, None], flat), 1)
    areas = (flat[:, 2:] - flat[:, :2]).prod(1)
    first, last = (-round(math.log2(scale)) for scale in (scales[0], scales[-1]))
    side, its_level = canonical
    level_of = (its_level + (areas.sqrt() / side).log2() + EPSILON).floor().clamp(first, last)
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True), first):
        chosen = (level_of == level).nonzero().squeeze(1)
        found[chosen] = roi_align(feature, regions[chosen], size, scale, sampling)
    return found


# What torchvision pools by (features, regions (K, 5), …); some of them give a second tensor, for the gradient.
WAYS = {name: getattr(torch.ops.torchvision, name) for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")}


@one_node
def pooled_boxes(feature: Tensor, boxes: Tensor, each: int, way: str, settings: Sequence[Any]) -> Tensor:
    """What a map shows in boxes, by one of ``WAYS`` with these settings.

    feature: (B, C, h, w). boxes: (B·each, 4), those of an image one after the other, or as many for each of a part of
    the images, which the others have as well: fixed ones come once. Returns (B·each, C, …).
    """
    image = torch.arange(len(feature), device=boxes.device, dtype=boxes.dtype).repeat_interleave(each)
    found = WAYS[way](feature, torch.cat((image[:, None], boxes.repeat(len(image) // len(boxes), 1)), 1), *settings)
    return found if isinstance(found, Tensor) else found[0]
