"""Selection of boxes against torchvision's suppression, and its bounds."""

import time

import pytest
import torch
from support.devices import CUDA, MPS, StandIn
from support.on_gpu import needs_gpu
from torchvision.ops import nms

from msat_det.models import suppression
from msat_det.models.preprocessing import Geometry
from msat_det.models.suppression import CANDIDATES, ROUNDS, select, suppressed

WHOLE = Geometry(100, 100, (1.0, 1.0))


def random_boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * 70
    return torch.cat((corner, corner + 5 + 25 * torch.rand(*shape, 2, generator=generator)), -1)


@pytest.mark.parametrize("nms_iou", [0.0, 0.3, 0.6, 1.0])
def test_equals_suppression_class_by_class(nms_iou: float) -> None:
    boxes, scores = random_boxes(3, 60), torch.rand(3, 60, 4, generator=torch.Generator().manual_seed(1))
    found = select(boxes, scores, [WHOLE] * 3, 0.4, 1000, nms_iou)
    for i, detections in enumerate(found):
        expected = []
        for label in range(4):
            above = (scores[i, :, label] > 0.4).nonzero()[:, 0]
            kept = above[nms(boxes[i, above], scores[i, above, label], nms_iou)]
            expected += [(scores[i, k, label].item(), label, boxes[i, k].tolist()) for k in kept]
        expected.sort(reverse=True)
        assert detections.scores.tolist() == [score for score, _, _ in expected]
        assert detections.labels.tolist() == [label for _, label, _ in expected]
        torch.testing.assert_close(detections.boxes, torch.tensor([box for _, _, box in expected]))


def test_nothing_above_the_threshold() -> None:
    (found,) = select(random_boxes(1, 5), torch.full((1, 5, 2), 0.2), [WHOLE], 0.2, 10, 0.5)
    assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((0, 4), (0,), (0,))
    assert found.labels.dtype == torch.int64


def test_boxes_outside_the_image_or_beyond_all_numbers() -> None:
    infinity = float("inf")
    boxes = torch.tensor([[[-20, 0, -1, 9], [-20, 5, 9, 300], [-infinity, -infinity, infinity, infinity]]])
    scores = torch.tensor([[[0.9], [0.8], [0.7]]])
    (found,) = select(boxes, scores, [WHOLE], 0.1, 10, 0.5)
    assert found.boxes.tolist() == [[0, 5, 9, 100], [0, 0, 100, 100]]


def test_top_k_keeps_the_best() -> None:
    boxes, scores = random_boxes(2, 400), torch.rand(2, 400, 3, generator=torch.Generator().manual_seed(2))
    for few, many in zip(*(select(boxes, scores, [WHOLE] * 2, 0.0, k, 0.9) for k in (7, 1000)), strict=True):
        assert len(many.scores) <= CANDIDATES
        assert torch.equal(few.boxes, many.boxes[:7])
        assert (few.scores[:-1] >= few.scores[1:]).all()


@pytest.mark.parametrize("nms_iou", [0.0, 0.3, 0.6, 1.0])
def test_all_at_once_is_one_by_one(nms_iou: float) -> None:
    """Equal scores and boxes without area among them, and of each image another number that counts."""
    boxes = random_boxes(4, 200).double()
    boxes[:, ::10, 2:] = boxes[:, ::10, :2]
    boxes[:, 1::10] = boxes[:, ::10]
    scores = torch.rand(4, 200, generator=torch.Generator().manual_seed(1)).double().sort(1, descending=True)[0]
    scores[:, 50:60] = scores[:, 50:51]
    labels = torch.randint(0, 3, (4, 200), generator=torch.Generator().manual_seed(2))
    valid = torch.arange(200) < torch.tensor([0, 1, 120, 200])[:, None]
    expected = suppression._image_by_image(boxes, scores, labels, valid, nms_iou)
    assert torch.equal(suppressed(boxes, labels, valid, nms_iou), expected)


def test_boxes_in_a_row_drop_each_other_by_turns() -> None:
    """Each overlaps the next one by .6 / 1.4, so that a box is settled when all before it are."""
    left = torch.arange(20 * ROUNDS).double()[None] * 0.4
    boxes = torch.stack((left, torch.zeros_like(left), left + 1, torch.ones_like(left)), -1)
    kept = suppressed(boxes, torch.zeros_like(left), torch.ones_like(left, dtype=torch.bool), 0.3)
    assert kept[0].tolist() == [True, False] * (10 * ROUNDS)


@pytest.mark.parametrize(("images", "where"), [(1, CUDA), (9, CUDA), (2, MPS)])
def test_a_gpu_is_waited_for_as_often_however_many_images(images: int, where: torch.device) -> None:
    boxes, scores = random_boxes(images, 60), torch.rand(images, 60, 4, generator=torch.Generator().manual_seed(1))
    expected = select(boxes, scores, [WHOLE] * images, 0.4, 20, 0.5)
    with StandIn(where) as device:
        there = boxes.to(where), scores.to(where)
        device.copies.clear()
        found = select(*there, [WHOLE] * images, 0.4, 20, 0.5)
        assert (device.waits, device.copies) == (["equal", "tolist"], ["to"] * (where is MPS))
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.boxes.cpu(), other.boxes)
            assert torch.equal(one.scores.cpu(), other.scores)
            assert torch.equal(one.labels.cpu(), other.labels)


@needs_gpu
@pytest.mark.parametrize("nms_iou", [0.3, 0.6])
def test_boxes_on_a_gpu_are_those_of_the_cpu(nms_iou: float) -> None:
    generator, pairs = torch.Generator().manual_seed(1), 400 * 80
    # no two of an image alike, which top-k may take in any order
    scores = torch.stack([torch.randperm(pairs, generator=generator) for _ in range(16)]).reshape(16, 400, 80) / pairs
    boxes = random_boxes(16, 400)
    expected = select(boxes, scores, [WHOLE] * 16, 0.4, 100, nms_iou)
    for one, other in zip(select(boxes.cuda(), scores.cuda(), [WHOLE] * 16, 0.4, 100, nms_iou), expected, strict=True):
        assert one.boxes.is_cuda
        torch.testing.assert_close(one.boxes.cpu(), other.boxes)
        assert torch.equal(one.scores.cpu(), other.scores)
        assert torch.equal(one.labels.cpu(), other.labels)


def test_noise_is_selected_from_in_bounded_time() -> None:
    scores = torch.rand(8, 1500, 80)  # 120 000 pairs an image, all above the threshold
    boxes = random_boxes(8, 1500)
    start = time.perf_counter()
    select(boxes, scores, [WHOLE] * 8, 0.01, 100, 0.45)
    assert time.perf_counter() - start < 1  # 15 ms on an idle core
