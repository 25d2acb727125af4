"""Training of the small networks: targets in padded batches, the losses of YOLO and SSD, one training loop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, complete_box_iou_loss

from msat_det.base.progress import Progress
from msat_det.models.ssd import SsdDetector
from msat_det.models.yolo import YoloDetector

NEGATIVES_PER_POSITIVE = 3  # SSD, section 2.2


@dataclass(frozen=True)
class Objects:
    """The objects of B images, padded to the same number G.

    boxes: (B, G, 4) x1 y1 x2 y2 in pixels of the network's input, zeros where padded. labels: (B, G) int64, -1 where
    padded. ignore: (B, G) bool, regions in which nothing counts as background.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor

    def __getitem__(self, images: Tensor) -> "Objects":
        return Objects(self.boxes[images], self.labels[images], self.ignore[images])

    @property
    def wanted(self) -> Tensor:
        """(B, G) bool: the objects to be found."""
        return (self.labels >= 0) & ~self.ignore


def pad_objects(boxes: list[Tensor], labels: list[Tensor], ignore: list[Tensor]) -> Objects:
    """One (n, 4), (n,) and (n,) tensor an image → the padded batch."""
    pad = nn.utils.rnn.pad_sequence
    return Objects(
        pad(boxes, batch_first=True), pad(labels, batch_first=True, padding_value=-1), pad(ignore, batch_first=True)
    )


def mirror(images: Tensor, objects: Objects, chosen: Tensor) -> tuple[Tensor, Objects]:
    """Mirror the chosen (B,) bool images (B, 3, h, w) and their boxes left to right."""
    width = images.shape[-1]
    x1, y1, x2, y2 = objects.boxes.unbind(-1)
    boxes = torch.stack((width - x2, y1, width - x1, y2), -1) * (objects.labels >= 0)[..., None]
    return (
        torch.where(chosen[:, None, None, None], images.flip(-1), images),
        Objects(torch.where(chosen[:, None, None], boxes, objects.boxes), objects.labels, objects.ignore),
    )


def yolo_loss(detector: YoloDetector, outputs: Any, objects: Objects) -> Tensor:
    """YOLO's loss (Redmon & Farhadi 2018, section 2) with complete IoU on the boxes (Zheng et al. 2020); a scalar.

    An object is to be found, in the cell of its centre, by every anchor of any head whose shape has an IoU above one
    half with it, and by the best one. All other boxes are background, but those that overlap an object with an IoU
    above .6 and those in a region to ignore.
    """
    heads, places, anchors, cells = [], [], [], []
    for head, priors, stride, scale in zip(
        outputs, detector.anchors, detector.strides, detector.scale_x_y, strict=True
    ):
        _, _, height, width = head.shape
        heads.append(head.unflatten(1, (len(priors), -1)).movedim(2, -1).flatten(1, 3))
        places.append(detector.decode_head(head, priors, stride, scale)[0])
        anchors.append(priors)
        cells.append((stride, height, width))
    raw, boxes = torch.cat(heads, 1), torch.cat(places, 1)  # (B, N, 5 + C), (B, N, 4)

    image, number, place = _yolo_places(objects, anchors, cells)
    found = raw[image, place]
    box_loss = complete_box_iou_loss(boxes[image, place], objects.boxes[image, number], reduction="sum")
    wanted = F.one_hot(objects.labels[image, number], len(detector.classes)).to(raw)
    class_loss = F.binary_cross_entropy_with_logits(found[:, 5:], wanted, reduction="sum")

    objectness = torch.zeros_like(raw[..., 4])
    objectness[image, place] = 1
    weight = 1 - (_covers(boxes.detach(), objects) & (objectness == 0)).to(raw)
    object_loss = F.binary_cross_entropy_with_logits(raw[..., 4], objectness, weight, reduction="sum")
    return (2 * box_loss + class_loss + object_loss) / max(1, len(image))


def _yolo_places(
    objects: Objects, anchors: list[Tensor], cells: list[tuple[int, int, int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the N boxes is to find which object: image, object and box index of every pair."""
    extent = objects.boxes[..., 2:] - objects.boxes[..., :2]
    fits = _shape_iou(extent, torch.cat(anchors))
    given = (fits > 0.5) | (fits == fits.amax(-1, keepdim=True))
    image, number, anchor = (given & objects.wanted[..., None]).nonzero(as_tuple=True)
    centre = (objects.boxes[..., :2] + extent / 2)[image, number]
    counts = torch.tensor([len(a) for a in anchors])
    head = torch.arange(len(anchors)).repeat_interleave(counts)[anchor]
    within = anchor - (counts.cumsum(0) - counts)[head]
    stride, height, width = torch.tensor(cells)[head].unbind(-1)
    sizes = counts * torch.tensor([h * w for _, h, w in cells])
    first = (sizes.cumsum(0) - sizes)[head]
    column = (centre[:, 0] / stride).long().clamp(min=0).minimum(width - 1)
    row = (centre[:, 1] / stride).long().clamp(min=0).minimum(height - 1)
    return image, number, first + (within * height + row) * width + column


def _shape_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of (…, 2) and (K, 2) widths and heights laid on one centre → (…, K)."""
    common = torch.minimum(a[..., None, :], b).prod(-1)
    return common / (a.prod(-1)[..., None] + b.prod(-1) - common)


def _covers(boxes: Tensor, objects: Objects, iou: float = 0.6) -> Tensor:
    """(B, N) bool: the boxes (B, N, 4) that cover an object, or lie by more than half in a region to ignore."""
    low = torch.maximum(boxes[:, :, None, :2], objects.boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], objects.boxes[:, None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    own = (boxes[..., 2:] - boxes[..., :2]).prod(-1)[..., None].clamp(min=1e-6)
    theirs = (objects.boxes[..., 2:] - objects.boxes[..., :2]).prod(-1)[:, None]
    over = torch.where(objects.ignore[:, None], common / own > 0.5, common / (own + theirs - common) > iou)
    return over.any(-1)


def ssd_loss(detector: SsdDetector, outputs: Any, objects: Objects) -> Tensor:
    """SSD's multibox loss (Liu et al. 2016, section 2.2); a scalar.

    A prior is to find the object that it overlaps most, if by more than half; every object has its best prior as well.
    Of the other priors three times as many, those with the largest loss, count as background.
    """
    offsets, logits = (detector.by_prior(levels) for levels in outputs)
    height, width = detector.size
    priors = detector.priors[:, [1, 0, 3, 2]] * torch.tensor([width, height, width, height])  # cx cy w h in pixels
    corners = torch.cat((priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2), 1)
    number, given = match_priors(corners, objects)
    image, place = given.nonzero(as_tuple=True)
    number = number[image, place]
    truth = objects.boxes[image, number]
    centre = ((truth[:, :2] + truth[:, 2:]) / 2 - priors[place, :2]) / priors[place, 2:]
    extent = ((truth[:, 2:] - truth[:, :2]) / priors[place, 2:]).log()
    wanted = torch.cat((centre.flip(-1), extent.flip(-1)), 1) * detector.box_scales
    box_loss = F.smooth_l1_loss(offsets[image, place], wanted, reduction="sum")

    labels = torch.zeros(given.shape, dtype=torch.long)
    labels[image, place] = 1 + objects.labels[image, number]
    losses = F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
    neutral = given | _covers(corners.expand(len(given), -1, -1), objects)
    rank = losses.detach().masked_fill(neutral, -1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    negatives = ~neutral & (rank < NEGATIVES_PER_POSITIVE * given.sum(1, keepdim=True).clamp(min=1))
    return (box_loss + losses[given | negatives].sum()) / max(1, len(image))


def match_priors(corners: Tensor, objects: Objects) -> tuple[Tensor, Tensor]:
    """Priors (P, 4) x1 y1 x2 y2 → which object (B, P) each is to find, and whether it is to find any (B, P) bool."""
    batch, most = objects.labels.shape
    iou = box_iou(objects.boxes.reshape(-1, 4), corners).reshape(batch, most, -1)
    iou = iou * objects.wanted[..., None]
    best = iou.argmax(-1)  # (B, G): each object's best prior is its own
    image, number = objects.wanted.nonzero(as_tuple=True)
    iou[image, number, best[image, number]] += 1
    overlap, number = iou.max(1)
    return number, overlap > 0.5


def fit(
    net: nn.Module,
    batches: Iterator[tuple[Tensor, Any]],
    loss: Callable[[Any, Any], Tensor],
    steps: int,
    rate: float,
    decay: float = 0.02,
) -> list[float]:
    """Train ``net`` with AdamW and a one-cycle learning rate up to ``rate``; leaves it in evaluation mode.

    batches: (input, target), at least ``steps`` of them. loss: (outputs, target) → scalar. Returns every step's loss.
    The same network, batches and thread count give the same weights to the bit.
    """
    net.train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.2)
    losses = []
    progress = Progress(range(steps), desc="training", unit="step")
    for _ in progress:
        inputs, target = next(batches)
        optimiser.zero_grad()
        value = loss(net(inputs.contiguous(memory_format=torch.channels_last)), target)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        losses.append(value.item())
        progress.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", refresh=False)
    net.eval().to(memory_format=torch.contiguous_format)
    return losses


def scene_batches(
    images: Tensor, objects: Objects, batch: int, seed: int, steps: int
) -> Iterator[tuple[Tensor, Objects]]:
    """Batches of preprocessed pictures (N, 3, h, w), reshuffled every epoch; about half are mirrored."""
    random = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.cat((order, torch.randperm(len(images), generator=random)))
        chosen, order = order[:batch], order[batch:]
        yield mirror(images[chosen].float(), objects[chosen], torch.rand(batch, generator=random) < 0.5)
