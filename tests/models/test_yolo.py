"""The YOLO decoder against a box-by-box reference written from the papers' formulas."""

import math

import pytest
import torch
from torch import Tensor, nn

from msat_det.base.errors import InputError
from msat_det.models.detector import Detector
from msat_det.models.yolo import YoloDetector

ANCHORS = (((10, 13), (30, 20)), ((40, 60), (80, 70)))
STRIDES = (8, 16)
CLASSES = ["cat", "dog", "bus"]


def detector(**options) -> YoloDetector:
    return YoloDetector(nn.Identity(), CLASSES, (32, 64), ANCHORS, STRIDES, **options)


def heads(batch: int = 2, seed: int = 0, values: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 2 * values, 32 // stride, 64 // stride, generator=generator) for stride in STRIDES]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_boxes(raw: Tensor, anchors, stride: int, scale: float, form: str) -> dict:
    """(anchor, row, column) → box and class scores, of one image's head (A·8, h, w), or (A·12, h, w) of a gaussian."""
    result, values = {}, 12 if form == "gaussian" else 8
    for a, (anchor_width, anchor_height) in enumerate(anchors):
        for row in range(raw.shape[1]):
            for column in range(raw.shape[2]):
                t = raw[values * a : values * (a + 1), row, column].tolist()
                doubt = 0.0
                if form == "gaussian":
                    doubt = sum(map(sigmoid, t[1:8:2])) / 4
                    t = [*t[:8:2], *t[8:]]
                tx, ty, tw, th, to, *classes = map(sigmoid, t) if form == "v5" else t
                if form in ("scaled", "v5"):
                    x, y, objectness = tx, ty, to
                    width, height = anchor_width * (2 * tw) ** 2, anchor_height * (2 * th) ** 2
                else:
                    x, y, objectness = sigmoid(tx), sigmoid(ty), sigmoid(to)
                    width, height = anchor_width * math.exp(tw), anchor_height * math.exp(th)
                    total = sum(math.exp(c) for c in classes)
                    classes = [math.exp(c) / total if form == "v2" else sigmoid(c) for c in classes]
                x = (column + scale * x - (scale - 1) / 2) * stride
                y = (row + scale * y - (scale - 1) / 2) * stride
                box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                result[a, row, column] = box, [objectness * c * (1 - doubt) for c in classes]
    return result


@pytest.mark.parametrize(
    ("form", "scale"), [("v3", 1.0), ("v3", 1.1), ("v2", 1.0), ("scaled", 2.0), ("v5", 2.0), ("gaussian", 1.1)]
)
def test_head_equals_the_slow_reference(form: str, scale: float) -> None:
    decoder = detector(form=form)
    for level, raw in enumerate(heads(values=12 if form == "gaussian" else 8)):
        boxes, scores = decoder.decode_head(raw, decoder.anchors[level], STRIDES[level], scale)
        for image in range(2):
            slow = slow_boxes(raw[image], ANCHORS[level], STRIDES[level], scale, form)
            order = sorted(slow)  # anchor by anchor, row by row
            torch.testing.assert_close(
                boxes[image], torch.tensor([slow[key][0] for key in order]), rtol=1e-5, atol=1e-4
            )
            torch.testing.assert_close(
                scores[image], torch.tensor([slow[key][1] for key in order]), rtol=1e-5, atol=1e-6
            )


def test_one_object_comes_out_where_it_is() -> None:
    decoder = detector(score=0.5)
    assert isinstance(decoder, Detector)
    outputs = [torch.full_like(head, -20) for head in heads(batch=1)]
    # coarse head, second anchor 80x70 shrunk to 20x17.5, cell (row 1, column 2), in its middle, class 1
    outputs[1][0, 8:16, 1, 2] = torch.tensor([0, 0, -math.log(4), -math.log(4), 20, -20, 20, -20])
    photo = torch.zeros(3, 320, 320, dtype=torch.uint8)  # stretched: x by 1/5, y by 1/10
    pixels, meta = decoder.preprocess(photo)
    assert pixels.shape == (3, 32, 64)
    (found,) = decoder.decode(outputs, [meta])
    assert found.labels.tolist() == [1]
    torch.testing.assert_close(found.boxes, torch.tensor([[(40 - 10) * 5, (24 - 8.75) * 10, 50 * 5, 320.0]]))


def test_images_of_a_batch_do_not_touch() -> None:
    decoder = detector()
    outputs = heads(batch=3)
    metas = [decoder.preprocess(torch.zeros(3, 50 + i, 70, dtype=torch.uint8))[1] for i in range(3)]
    together = decoder.decode(outputs, metas)
    for i in range(3):
        (alone,) = decoder.decode([head[i : i + 1] for head in outputs], [metas[i]])
        assert torch.equal(alone.boxes, together[i].boxes)
        assert torch.equal(alone.scores, together[i].scores)


def test_extreme_outputs_give_boxes_within_the_image() -> None:
    decoder = detector()
    _, meta = decoder.preprocess(torch.zeros(3, 50, 70, dtype=torch.uint8))
    for found in decoder.decode([head * 1e4 for head in heads()], [meta] * 2):
        assert found.boxes.isfinite().all()
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor((70, 50) * 2)).all()
        assert found.scores.isfinite().all()


def test_unknown_number_of_channels() -> None:
    with pytest.raises(InputError, match="channels is 2: give 3 for RGB images or 1 for grey ones"):
        detector(channels=2)


def test_unknown_resize() -> None:
    with pytest.raises(InputError, match=r"model\.resize is 'crop': give one of stretch, letterbox"):
        detector(resize="crop")
