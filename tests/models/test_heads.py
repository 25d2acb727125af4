"""Heads by name against their meaning box by box, every form of outputs, and detectors around them."""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.head_outputs import ANCHORS, CLASSES, SIZE, STRIDES, anchored, maps, meaning, widths
from torch import Tensor, nn

import msat_det
from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.models import build_detector
from msat_det.models.detector import Detector
from msat_det.models.headed import HeadDetector
from msat_det.models.heads import HEADS, cells_of
from msat_det.models.preprocessing import Inputs, to_originals

QUERIES = ["detr", "rtdetr"]
NAMES = [name for name in HEADS if name not in (*QUERIES, "raw")]


def detector(head: str, **options) -> HeadDetector:
    own = {"strides": STRIDES, "anchors": ANCHORS if anchored(head) else None} | options
    return HeadDetector(nn.Identity(), head, ["cat", "dog", "bus"], SIZE, **own)


@pytest.mark.parametrize("head", NAMES)
def test_heads_equal_their_meaning(head: str) -> None:
    levels = maps(head)
    boxes, scores = detector(head).found(levels)
    for image in range(2):
        expected = meaning(head, levels, image)
        torch.testing.assert_close(boxes[image], torch.tensor([box for box, _ in expected]), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(scores[image], torch.tensor([s for _, s in expected]))


def forms(head: str, levels: list[Tensor]) -> dict[str, object]:
    """The same outputs as networks and exporters give them."""
    each = 2 if anchored(head) else 1
    rows = [x.unflatten(1, (each, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in levels]
    whole = torch.cat(rows, 1)
    parts = [x.split(list(widths(head).values()), -1) for x in rows]
    return {
        "rows of each level": rows,
        "rows of all levels": whole,
        "columns": whole.transpose(1, 2),
        "parts": {"a": [part for level in parts for part in level]},
        "parts of all levels": tuple(torch.cat(part, 1) for part in zip(*parts, strict=True)),
        "parts in another order": [part for level in parts for part in level[::-1]],
        "levels in another order": levels[::-1],
    } | ({"anchors apart": [x.unflatten(1, (each, -1)).movedim(2, -1) for x in levels]} if each > 1 else {})


@pytest.mark.parametrize("head", NAMES)
def test_outputs_in_every_form(head: str) -> None:
    levels, one = maps(head), detector(head)
    boxes, scores = one.found(levels)
    every = forms(head, levels)
    if head == "ssd":  # four columns and four numbers of a box: only their order tells them apart
        del every["parts in another order"]
    for form, outputs in every.items():
        found = one.found(outputs)
        torch.testing.assert_close(found[0], boxes, msg=form)
        torch.testing.assert_close(found[1], scores, msg=form)


ALIKE = {  # heads whose box is as wide as their scores of so many classes, and what people call their outputs
    "ssd": (3, {"classification_headers": "classes", "regression_headers": "box"}),
    "retinanet": (4, {"cls_logits": "classes", "bbox_regression": "box"}),
    "fcos": (4, {"bbox_regression": "box", "bbox_ctrness": "objectness", "cls_logits": "classes"}),
    "yolov8": (20, {"scores": "classes", "boxes": "box"}),
    "nanodet": (20, {"dis_pred": "box", "cls_pred": "classes"}),
}


@pytest.mark.parametrize("head", ALIKE)
def test_outputs_of_one_size_are_what_they_are_called(head: str) -> None:
    count, called = ALIKE[head]
    anchors = ANCHORS if anchored(head) else None
    classes = [f"class {i}" for i in range(count)]
    one = HeadDetector(nn.Identity(), head, classes, SIZE, STRIDES, anchors)
    told = HeadDetector(nn.Identity(), head, classes, SIZE, STRIDES, anchors, names=list(called))
    width = widths(head) | {"classes": count + HEADS[head].background}
    parts = {part: torch.randn(2, sum(one.rows), n) for part, n in width.items()}
    expected = one.found(list(parts.values()))
    given = {name: parts[part] for name, part in called.items()}
    for outputs, by in ((given, one), (tuple(given.values()), told)):
        assert all(torch.equal(a, b) for a, b in zip(by.found(outputs), expected, strict=True))


def test_scores_that_are_probabilities() -> None:
    levels = maps("yolox")
    boxes, scores = detector("yolox").found(levels)
    done = [torch.cat((x[:, :4], x[:, 4:].sigmoid()), 1) for x in levels]
    for a, b in zip(detector("yolox", activated=True).found(done), (boxes, scores), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("head", QUERIES)
def test_queries_are_parts_of_the_input_and_need_no_suppression(head: str) -> None:
    """A DETR's classes are one against the others, the last is none; the later ones' are each by itself."""
    boxes, logits = torch.rand(2, 7, 4), torch.randn(2, 7, 3 + (head == "detr"))
    one = HeadDetector(nn.Identity(), head, ["cat", "dog", "bus"], (64, 32))
    probable = logits.softmax(-1)[..., :3] if head == "detr" else logits.sigmoid()
    x, y, w, h = (boxes * torch.tensor([32, 64, 32, 64])).unbind(-1)
    expected = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), -1), probable
    every = {
        "by name": {"logits": logits, "pred_boxes": boxes},
        "in order": (boxes, logits),
        "in one": torch.cat((boxes, logits), -1),
    }
    for form, outputs in every.items():
        for found, wanted in zip(one.found(outputs), expected, strict=True):
            torch.testing.assert_close(found, wanted, msg=form)
    assert one.nms_iou == 1.0
    with pytest.raises(
        InputError, match=rf"outputs \[\(7, 5\)\] do not fit head {head} with 3 classes: give model.names "
    ):
        one.found(torch.rand(2, 7, 5))
    with pytest.raises(InputError, match=f"head {head} has no strides: leave model.strides out"):
        HeadDetector(nn.Identity(), head, strides=[8])


def test_raw_boxes_and_scores() -> None:
    boxes, scores = torch.rand(2, 7, 4), torch.rand(2, 7, CLASSES)
    raw = detector("raw")
    assert torch.equal(raw.found((boxes, scores))[1], scores)
    raw_of_two = HeadDetector(nn.Identity(), "raw", ["cat", "dog"], SIZE)  # a column more: the background, the first
    assert torch.equal(raw_of_two.found((torch.rand(2, 7, 1), scores, boxes))[1], scores[..., 1:])
    of_four = HeadDetector(nn.Identity(), "raw", list("abcd"), SIZE)  # four columns both: boxes are pixels
    for outputs in ((40 * boxes, boxes), (boxes, 40 * boxes), {"boxes": boxes, "scores": 40 * boxes}):
        expected = boxes if isinstance(outputs, dict) else 40 * boxes  # unless they say what they are
        assert torch.equal(of_four.found(outputs)[0], expected)
    with pytest.raises(InputError, match=r"outputs \[\(7, 4\)\] do not fit head raw with 3 classes"):
        raw.found(boxes)


def test_outputs_that_do_not_fit() -> None:
    message = r"outputs \[\(9, 4, 6\), \(8, 2, 3\)\] do not fit head yolox with 3 classes, strides \[16, 32\]"
    levels = maps("yolox")
    with pytest.raises(InputError, match=message):
        detector("yolox").found([torch.cat((levels[0], levels[0][:, :1]), 1), levels[1]])
    with pytest.raises(InputError, match="did you mean yolov8"):
        detector("yolo8")
    with pytest.raises(InputError, match=r"needs model\.anchors"):
        detector("ssd", anchors=None)
    with pytest.raises(InputError, match="holds no pairs"):
        detector("yolov5", anchors=[[10, 20], [3]])
    with pytest.raises(InputError, match="more than 1048576 boxes"):
        HeadDetector(nn.Identity(), "yolox", ["cat"], 8192, strides=(1,))


def test_retinanets_usual_anchors_are_torchvisions() -> None:
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.retinanet import _default_anchorgen

    generator: AnchorGenerator = _default_anchorgen()
    one = HeadDetector(nn.Identity(), "retinanet", ["cat"], (128, 256))
    levels = [torch.zeros(1, 1, 128 // s, 256 // s) for s in one.strides]
    (expected,) = generator(ImageList(torch.zeros(1, 3, 128, 256), [(128, 256)]), levels)
    centre = one.cells.centre - one.cells.stride / 2
    found = torch.cat((centre - one.cells.anchor / 2, centre + one.cells.anchor / 2), 1)
    torch.testing.assert_close(found, expected)


def test_efficientdets_usual_anchors() -> None:
    """Three sizes from four cells on, a third of an octave apart, each square, 1.4 × .7 and .7 × 1.4."""
    one = HeadDetector(nn.Identity(), "efficientdet", ["cat"], 128)
    first = torch.tensor(one.anchors[0]).reshape(3, 3, 2)
    torch.testing.assert_close(first[0], torch.tensor([[32, 32], [44.8, 22.4], [22.4, 44.8]]))
    torch.testing.assert_close(first[2], first[0] * 1.5874)
    torch.testing.assert_close(torch.tensor(one.anchors[4]).reshape(3, 3, 2), 16 * first)


def test_cells_that_are_not_square() -> None:
    """SSDs whose maps do not divide the input: a cell is the input's side over their own, in x and in y."""
    strides = [[300 / 19, 7.5], [300, 60]]
    (cells, rows) = cells_of((60, 300), strides, ((4.0, 5.0, 6.0, 7.0), (40.0, 50.0)))
    assert rows == [8 * 19 * 2, 1]
    torch.testing.assert_close(cells.centre[2 * 20], torch.tensor([1.5 * 300 / 19, 1.5 * 7.5]))  # second row and column
    torch.testing.assert_close(cells.centre[-1], torch.tensor([150.0, 30.0]))
    assert cells.stride[-1].tolist() == [300, 60]
    one = HeadDetector(nn.Identity(), "fcos", ["cat"], (60, 300), [[300, 30.0]])
    boxes, _ = one.found(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0]).reshape(1, 6, 1, 1).expand(1, 6, 2, 1))
    torch.testing.assert_close(boxes[0, 1], torch.tensor([150 - 30, 45 - 6, 150 + 90, 45 + 12.0]))
    for wrong in ([0], [[8, 8, 8]], [[8, -1]], [float("inf")]):
        with pytest.raises(InputError, match="give each level's input pixels a cell, or"):
            HeadDetector(nn.Identity(), "yolox", ["cat"], SIZE, wrong)
    with pytest.raises(InputError, match=r"needs model\.anchors"):  # its usual ones are multiples of a cell's side
        HeadDetector(nn.Identity(), "retinanet", ["cat"], SIZE, strides)


def test_inputs() -> None:
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    image[0] = 200  # red
    pixels, meta = Inputs("corner", 114, bgr=True, mean=(1, 2, 3), std=(1, 1, 2)).ready(image, (32, 32))
    assert pixels[:, 0, 0].tolist() == [-1, -2, (200 - 3) / 2]
    assert pixels[:, 31, 0].tolist() == [113, 112, 111 / 2]
    assert to_originals(torch.tensor([[[0.0, 0, 32, 16]]]), [meta]).tolist() == [[[0, 0, 40, 20]]]
    pixels, meta = Inputs("letterbox", 114).ready(image, (32, 32))
    assert pixels[:, 0, 0].tolist() == pytest.approx([114 / 255] * 3)
    assert to_originals(torch.tensor([[[0.0, 8, 32, 24]]]), [meta]).tolist() == [[[0, 0, 40, 20]]]
    for bad, message in (
        ({"resize": "crop"}, "give one of"),
        ({"std": (0, 1, 1)}, "three numbers above 0"),
        ({"std": (1, 2)}, "three numbers above 0, or one for grey images"),
        ({"std": (1,)}, r"model\.mean is \[0.0, 0.0, 0.0\] and model\.std \[1\]: give as many numbers for both"),
    ):
        with pytest.raises(InputError, match=message):
            Inputs(**bad)


def test_inputs_of_one_channel_are_the_luma() -> None:
    """As Pillow makes a photograph grey, which rounds."""
    image = torch.randint(0, 256, (3, 20, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = torch.from_numpy(np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")))
    pixels, _ = Inputs("letterbox", 114, mean=(7,), std=(2,)).ready(image, (40, 40))
    assert pixels.shape == (1, 40, 40)
    assert (2 * pixels[0, 10:30] + 7 - grey).abs().max() <= 0.51
    assert pixels[0, 0].tolist() == pytest.approx([(114 - 7) / 2] * 40)


class Small(nn.Module):
    """A network of one's own with head yolox at strides 16 and 32."""

    channels = 3

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(self.channels, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, 16, 2, 2), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 2, 2), nn.ReLU())
        self.heads = nn.ModuleList(nn.Conv2d(16, 5 + CLASSES, 1) for _ in STRIDES)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.stem(x)
        return [head(level) for head, level in zip(self.heads, (fine, self.deep(fine)), strict=True)]


class Grey(Small):
    channels = 1


def build(model: Model) -> HeadDetector:
    return HeadDetector(Small(), "yolox", ["cat", "dog", "bus"], SIZE, STRIDES, score=model.score or 0.5)


NOTHING = None
HERE = f"{__name__}:"


def own(name: str, **values) -> Model:
    return Model(HERE + name, **values)


def test_own_networks_by_name(tmp_path: Path) -> None:
    assert build_detector(own("build", score=0.25)).score == 0.25
    weights, names = tmp_path / "weights.pt", tmp_path / "names.txt"
    net = Small()
    torch.nn.init.constant_(net.heads[0].bias, 0.75)
    torch.save({"state_dict": net.state_dict()}, weights)
    names.write_text("cat\ndog\nbus\n")
    own_config = {"weights": str(weights), "names": str(names), "head": "yolox", "strides": [16, 32]}
    found = build_detector(own("Small", size=64, mean=[0, 0, 1], **own_config))
    assert isinstance(found, Detector)
    assert (found.net.heads[0].bias == 0.75).all()
    assert found.inputs == Inputs("corner", 114, True, (0, 0, 1), (1, 1, 1))
    for wrong, message in (
        (own("Small", **own_config), r"model\.size is not set"),
        (own("Small", size=64, names=str(names)), r"model\.head is not set: .* needs one of yolov3"),
        (own("Small", size=64, **own_config | {"strides": [8, 16]}), "do not fit head yolox"),
        (own("None_", size=64), "has no function or class 'None_'"),
        (own("NOTHING", size=64), "has no function or class 'NOTHING'"),
        (Model("no_such_package.there:Net"), "No module named 'no_such_package'"),
        (own("SimpleNamespace", size=64), "neither an nn.Module, nor a detector"),
    ):
        with pytest.raises(InputError, match=message):
            build_detector(wrong)


def test_networks_of_grey_images_by_name(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nbus\n")
    keys = {"names": str(tmp_path / "names.txt"), "size": 64, "strides": [16, 32], "head": "yolox"}
    found = build_detector(own("Grey", **keys))
    assert found.inputs == Inputs("corner", 114, True, (0.0,), (1.0,))
    assert build_detector(own("Grey", **keys, mean=[3], std=[2])).inputs.mean == (3,)
    with pytest.raises(
        InputError, match=r"^an image \(1, 3, 64, 64\) .* or of one with model\.mean and model\.std of one"
    ):
        build_detector(own("Grey", **keys, mean=[1, 2, 3]))


class Keeping(nn.Module):
    """It keeps what it has made for images of a size, as RT-DETR its anchors."""

    def __init__(self):
        super().__init__()
        self.rows, self.kept = nn.LazyLinear(4 * 7), None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = torch.ones(4, 7) if self.kept is None else self.kept
        return self.kept * self.rows(x.flatten(1)).unflatten(1, (4, 7))


def test_outputs_that_are_no_tensors_are_left_aside() -> None:
    levels, one = maps("yolox"), detector("yolox")
    for found, wanted in zip(one.found((levels, [40, 10], None)), one.found(levels), strict=True):
        torch.testing.assert_close(found, wanted)
    with pytest.raises(InputError, match=r"outputs \[\(8, .*\)\] do not fit head yolox"):
        one.found((levels[:1], 4))


def test_a_network_that_is_looked_at_may_be_trained_on() -> None:
    net = Keeping()
    HeadDetector(net, "rtdetr", ["cat", "dog", "bus"], SIZE).check()
    net(torch.rand(1, 3, *SIZE)).sum().backward()


def of_queries() -> HeadDetector:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4 * 7))
    return HeadDetector(nn.Sequential(*net, nn.Unflatten(1, (4, 7))), "rtdetr", ["cat", "dog", "bus"], SIZE)


def of_oblong_cells() -> HeadDetector:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((3, 2)), nn.Conv2d(8, 8, 1))
    own = Inputs("corner", 114)  # in 0..1, or boxes are far away
    return HeadDetector(net, "yolox", ["cat", "dog", "bus"], SIZE, [[48, 64 / 3]], inputs=own)


def of_grey_images() -> HeadDetector:
    own = Inputs(mean=(20.0,), std=(2.0,))
    return HeadDetector(Grey(), "yolox", ["cat", "dog", "bus"], SIZE, STRIDES, inputs=own, score=0.1)


MAKE = {
    "grey": of_grey_images,
    "cells": lambda: build(SimpleNamespace(score=0.01)),
    "queries": of_queries,
    "oblong cells": of_oblong_cells,
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_saved_with_its_head(make: Callable[[], HeadDetector], tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8, generator=random) for _ in range(3)]
    own = make()
    snn = msat_det.convert(own, [images], "delta")
    snn.save(tmp_path / "net.msat")
    twin = msat_det.load(tmp_path / "net.msat")
    for a, b in zip(snn.detect(images, 2)[2], twin.detect(images, 2)[2], strict=True):
        assert len(a.scores)
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.labels, b.labels)
    assert vars(twin.detector) | dict.fromkeys(("net", "cells")) == vars(own) | dict.fromkeys(("net", "cells"))


class Shaped(nn.Module):
    """Gives what ``make`` makes of its images, which a convolution of no effect sees."""

    def __init__(self, make: Callable[[Tensor], object]):
        super().__init__()
        self.make, self.stem = make, nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> object:
        return self.make(0 * self.stem(x).mean())


def behind(head: str, make: Callable[[Tensor], object], **options) -> HeadDetector:
    own = {"strides": STRIDES, "anchors": ANCHORS if anchored(head) else None} if NAMES.count(head) else {}
    return HeadDetector(Shaped(make), head, ["cat", "dog", "bus"], SIZE, **own | options)


def decoded(head: str, order: str) -> Tensor:
    """What a network gives that decodes its boxes itself: they lie about their cells, some pixels away."""
    cells, random = detector(head).cells, torch.Generator().manual_seed(0)
    near, size, scores = torch.rand(3, len(cells.centre), 4, generator=random)
    middle, extent = cells.centre + 4 * near[:, :2], 8 + 8 * size[:, :2]
    box = (middle, extent) if order == "middles" else (middle - extent / 2, middle + extent / 2)
    return torch.cat((*box, scores if "objectness" in HEADS[head].parts else scores[:, 1:]), 1)[None]


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("order", ["corners", "middles"])
@pytest.mark.parametrize("head", ["yolov3", "yolov5", "yolov8", "yolox"])
def test_boxes_that_are_decoded_already_are_refused(head: str, order: str, activated: bool) -> None:
    """YOLOX's own network decodes unless it is told not to, YOLOv5's gives decoded boxes first: of fitting sizes."""
    images = torch.rand(2, 3, *SIZE)
    with pytest.raises(InputError, match=r"lie where their cells do, as decoded ones: give its raw outputs"):
        msat_det.convert(behind(head, lambda zero: decoded(head, order) + zero, activated=activated), images)


def test_decoded_boxes_of_one_anchor_after_the_other_are_refused() -> None:
    levels = decoded("yolov5", "middles").split(detector("yolov5").rows, 1)
    apart = torch.cat([x.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2) for x in levels], 1)
    with pytest.raises(InputError, match="as decoded ones"):
        behind("yolov5", lambda zero: apart + zero).check()


def test_distances_to_the_sides_of_an_image_are_no_decoded_boxes() -> None:
    """What a detector that sees nothing may well give: the whole image from everywhere."""
    cells = detector("fcos").cells
    box = torch.cat((cells.centre, cells.size - cells.centre), -1)[None] / cells.stride[:, :1]
    scores = torch.linspace(-3, 0, len(cells.centre) * 4).reshape(1, -1, 4)
    behind("fcos", lambda zero: {"cls": scores[..., :3] + zero, "box": box, "obj": scores[..., 3:]}).check()


@pytest.mark.parametrize("head", ["yolox", "rtdetr"])
def test_scores_are_probabilities_if_they_are_said_to_be(head: str) -> None:
    box, logits = torch.rand(1, 50, 4), torch.linspace(-2, 2, 200).reshape(1, 50, 4)
    if head == "yolox":
        box, logits = (x[:, :1].expand(1, len(detector(head).cells.centre), 4) for x in (box, logits))
    scores = {"cls": logits[..., :3]} | ({"obj": logits[..., 3:]} if head == "yolox" else {})
    make = behind(head, lambda zero: {"box": box + zero, **scores}, activated=True)
    with pytest.raises(InputError, match=r"reach from -2 to .*, which are no probabilities: leave out activated"):
        make.check()
    make.activated = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make.check()
    scores = {name: x.sigmoid() for name, x in scores.items()}
    with pytest.warns(UserWarning, match=r"between 0\.119\d and .*: if they are probabilities already, say activated"):
        make.check()
    make.activated = True
    make.check()


def test_boxes_of_queries_are_parts_of_the_sides() -> None:
    box, scores = 300 * torch.rand(1, 50, 4) + 5, torch.randn(1, 50, 3)
    with pytest.raises(InputError, match=r"not parts of the image's sides, from 0 to 1, but of 1\d\d"):
        behind("rtdetr", lambda zero: {"box": box + zero, "cls": scores}).check()
