"""The SSD decoder against a slow reference, TensorFlow's padding, and weights that don't fit."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.models.detector import Detector
from msat_det.models.ssd import ConvRelu6, SsdDetector, SsdMobileNetV1, ssd_mobilenet_v1

CELLS, ANCHORS, COLUMNS = ((4, 3), (2, 2)), (2, 3), 4  # two levels; background and three classes


def detector(**options) -> SsdDetector:
    generator = torch.Generator().manual_seed(9)
    count = sum(height * width * a for (height, width), a in zip(CELLS, ANCHORS, strict=True))
    priors = torch.rand(count, 4, generator=generator) * 0.5 + 0.2
    return SsdDetector(nn.Identity(), ["cat", "dog", "bus"], (40, 60), priors, **options)


def outputs(batch: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = list(zip(ANCHORS, CELLS, strict=True))
    return tuple([torch.randn(batch, a * n, *cells, generator=generator) for a, cells in sizes] for n in (4, COLUMNS))


def slow(decoder: SsdDetector, levels: tuple[list[Tensor], list[Tensor]], image: int) -> list[tuple[list, list]]:
    """(box, column scores) for every prior in order."""
    result, prior = [], iter(decoder.priors.tolist())
    for boxes, logits, anchors in zip(*levels, ANCHORS, strict=True):
        for row in range(boxes.shape[2]):
            for column in range(boxes.shape[3]):
                for a in range(anchors):
                    cy, cx, height, width = next(prior)
                    ty, tx, th, tw = boxes[image, 4 * a : 4 * a + 4, row, column].tolist()
                    values = logits[image, COLUMNS * a : COLUMNS * (a + 1), row, column].tolist()
                    cy, cx = cy + ty / 10 * height, cx + tx / 10 * width
                    height, width = height * math.exp(th / 5), width * math.exp(tw / 5)
                    box = [(cx - width / 2) * 60, (cy - height / 2) * 40, (cx + width / 2) * 60, (cy + height / 2) * 40]
                    if decoder.activation == "sigmoid":
                        scores = [1 / (1 + math.exp(-v)) for v in values]
                    else:
                        scores = [math.exp(v) / sum(math.exp(u) for u in values) for v in values]
                    result.append((box, scores))
    return result


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_decode_equals_the_slow_reference(activation: str) -> None:
    decoder = detector(activation=activation, nms_iou=1.0, score=0.0, top_k=1000)
    assert isinstance(decoder, Detector)
    levels = outputs()
    _, meta = decoder.preprocess(torch.zeros(3, 40, 60, dtype=torch.uint8))  # original pixels are input pixels
    boxes = decoder.decode_boxes(decoder.by_prior(levels[0]))
    for image, found in enumerate(decoder.decode(levels, [meta] * 2)):
        expected = slow(decoder, levels, image)
        torch.testing.assert_close(boxes[image], torch.tensor([box for box, _ in expected]), atol=1e-4, rtol=1e-5)
        scores = sorted((s for _, columns in expected for s in columns[1:]), reverse=True)
        torch.testing.assert_close(found.scores, torch.tensor(scores))
        best = max((columns[label + 1], label, box) for box, columns in expected for label in range(3))
        assert found.labels[0] == best[1]
        clipped = torch.tensor(best[2]).clamp(min=0).minimum(torch.tensor((60.0, 40.0) * 2))
        torch.testing.assert_close(found.boxes[0], clipped, atol=1e-4, rtol=1e-5)


def test_columns_choose_the_classes() -> None:
    decoder = detector(columns=(3, 0, 2), activation="sigmoid", score=0.9, nms_iou=1.0)
    boxes, logits = outputs(batch=1)
    for level in logits:
        level.fill_(-9)
    logits[0][0, 2 * 0 + 0, 0, 0] = 9  # column 0 of the first prior is class 1
    _, meta = decoder.preprocess(torch.zeros(3, 40, 60, dtype=torch.uint8))
    (found,) = decoder.decode((boxes, logits), [meta])
    assert found.labels.tolist() == [1]


def test_preprocess_normalises() -> None:
    pixels, _ = detector(mean=128.0, std=64.0).preprocess(torch.full((3, 9, 9), 192, dtype=torch.uint8))
    assert (pixels == 1).all()


def test_outputs_without_a_box_for_every_prior() -> None:
    decoder = detector()
    boxes, logits = outputs()
    with pytest.raises(InputError, match="priors"):
        decoder.decode((boxes[:1], logits[:1]), [None] * 2)


@pytest.mark.parametrize("extent", [5, 6, 11, 12])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_same_padding(extent: int, kernel: int, stride: int) -> None:
    layer = ConvRelu6(2, 4, kernel, stride, 1, extent)
    x = torch.rand(1, 2, extent, extent)
    before = max((-(-extent // stride) - 1) * stride + kernel - extent, 0) // 2
    padded = F.pad(x, (before, kernel, before, kernel))  # more than enough at the bottom and right, then cut
    expected = F.conv2d(padded, layer.conv.weight, layer.conv.bias, stride).clamp(0, 6)
    cells = -(-extent // stride)
    assert layer(x).shape[2:] == (cells, cells)
    torch.testing.assert_close(layer(x), expected[:, :, :cells, :cells])


def config(**fields) -> Model:
    return Model("ssd_mobilenet_v1", **fields)


def test_network_traces_and_fits_the_priors() -> None:
    net = SsdMobileNetV1(0.25, columns=5, size=96)
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        boxes, scores = net(x)
        for traced, plain in zip(fx.symbolic_trace(net)(x), (boxes, scores), strict=True):
            for one, other in zip(traced, plain, strict=True):
                torch.testing.assert_close(one, other)
    assert [level.shape[1:] for level in boxes[:2]] == [(12, 6, 6), (24, 3, 3)]
    assert [level.shape[1] for level in scores] == [15, *(30,) * 5]


def test_weights_that_do_not_fit(shared_data: Path, tmp_path: Path) -> None:
    whole = load_file(shared_data / "weights" / "ssd_mobilenet_v1_075_coco.safetensors")
    path = tmp_path / "bad.safetensors"
    bad = {
        "'layers.Conv2d_0.conv.bias': the network has shape .24,., the file no such tensor": {"Conv2d_0.bias": None},
        "the network has no such tensor, the file shape .1,.": {"Conv2d_99.bias": torch.zeros(1)},
        "the network has shape .24,., the file shape .25,.": {"Conv2d_0.bias": torch.zeros(25)},
        "tensor 'Conv2d_0.bias' holds NaN": {"Conv2d_0.bias": torch.full((24,), float("nan"))},
        r"'anchors' has shape \(1916, 4\), not \(1917, 4\)": {"anchors": whole["anchors"][1:].clone()},
        r"'anchors' has shape \(0,\), not": {"anchors": None},
    }
    for message, change in bad.items():
        save_file({name: tensor for name, tensor in (whole | change).items() if tensor is not None}, path)
        with pytest.raises(InputError, match=message):
            ssd_mobilenet_v1(config(weights=path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not readable as safetensors"):
        ssd_mobilenet_v1(config(weights=path))
    with pytest.raises(InputError, match="not readable as safetensors"):
        ssd_mobilenet_v1(config(weights=tmp_path / "none.safetensors"))
    with pytest.raises(InputError, match=r"model\.weights is not set"):
        ssd_mobilenet_v1(config())
    with pytest.raises(InputError, match=r"model\.size is 320"):
        ssd_mobilenet_v1(config(weights=path, size=320))


def test_labels_file_and_coco_agree(shared_data: Path) -> None:
    weights = shared_data / "weights" / "ssd_mobilenet_v1_075_coco.safetensors"
    built_in = ssd_mobilenet_v1(config(weights=weights))
    from_file = ssd_mobilenet_v1(config(weights=weights, names=weights.with_suffix(".labels.txt")))
    assert len(built_in.classes) == 80
    assert built_in.classes == from_file.classes
    assert torch.equal(built_in.columns, from_file.columns)
