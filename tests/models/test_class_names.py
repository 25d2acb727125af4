"""Class names are checked where they enter: empty, no text, there twice, or not as many as the network has."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from msat_det.base.errors import InputError
from msat_det.data import CocoDetection, VocDetection
from msat_det.measure.accuracy import make_evaluator
from msat_det.models import TorchvisionDetector
from msat_det.models.class_names import read_names
from msat_det.models.classifiers import PREPROCESS, Classifier
from msat_det.models.ssd import SsdDetector
from msat_det.models.yolo import YoloDetector


def yolo(classes: list) -> YoloDetector:
    return YoloDetector(nn.Identity(), classes, 16, [[(4, 6), (8, 9)]], [8])


def ssd(classes: list, **options: object) -> SsdDetector:
    return SsdDetector(nn.Identity(), classes, 16, torch.full((8, 4), 0.5), **options)


def classifier(classes: list) -> Classifier:
    return Classifier(nn.Identity(), classes, PREPROCESS["cifar"])


@pytest.mark.parametrize("make", [yolo, ssd, classifier])
@pytest.mark.parametrize(
    ("classes", "part"),
    [
        ([], "has no class names"),
        (["cat", ""], "class name 2 is ''"),
        ([" ", "cat"], "class name 1 is ' '"),
        (["cat", None], "class name 2 is None"),
        (["cat", 7], "class name 2 is 7"),
        (["cat", ["dog"]], r"class name 2 is \['dog'\]"),
        (["cat", "d\0o\0g\0"], r"class name 2 is 'd\\x00o\\x00g\\x00'"),  # UTF-16
        (["\x1b[31mcat"], r"class name 1 is '\\x1b\[31mcat'"),
        (["a\nb"], r"class name 1 is 'a\\nb'"),
    ],
)
def test_a_name_is_a_text(make: Callable[[list], object], classes: list, part: str) -> None:
    with pytest.raises(InputError, match=f"^the (detector|classifier): {part}: give"):
        make(classes)


@pytest.mark.parametrize("make", [yolo, ssd])
def test_a_detectors_names_differ(make: Callable[[list], object]) -> None:
    with pytest.raises(InputError, match="the detector: class names 2 and 4 are both 'dog': give each its own"):
        make(["cat", "dog", "cow", "dog"])


def test_a_classifiers_names_may_be_alike() -> None:
    assert classifier(["crane", "crane"]).classes == ["crane", "crane"]  # a bird and a machine, in ImageNet


def test_torchvisions_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    assert TorchvisionDetector(model, ["N/A", "cat", "N/A", "dog"]).classes == ["cat", "dog"]
    for columns, part in (
        (["N/A", "cat", 3, "x"], "class name 3 is 3"),
        (["N/A", "cat", "x", "cat"], "2 and 4 are both"),
    ):
        with pytest.raises(InputError, match=part):
            TorchvisionDetector(model, columns)


@pytest.mark.parametrize(("classes", "part"), [(["dog", "dog"], "1 and 2 are both 'dog'"), (["dog", 3], "2 is 3")])
def test_those_of_ones_own_detector_are_checked_before_anything_runs(
    voc_root: Path, coco_root: Path, classes: list, part: str
) -> None:
    for dataset in (VocDetection(voc_root), CocoDetection(coco_root)):
        with pytest.raises(InputError, match=f"the detector: class names? {part}"):
            make_evaluator(dataset, classes)


def test_a_file_of_names(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_bytes("\ufeffdog \r\n???\r\nzebra crossing\r\n???\r\n\r\n".encode())
    assert read_names(path) == ["dog", "???", "zebra crossing", "???"]
    path.write_text("dog\n\ncat\n")  # that there are as many as the head has classes is checked where they meet it
    assert read_names(path) == ["dog", "cat"]
    path.write_text("dog\ncat\ndog")
    with pytest.raises(InputError, match=f"^{path}: class names 1 and 3 are both 'dog'"):
        read_names(path)
    assert read_names(path, distinct=False) == ["dog", "cat", "dog"]


def test_as_many_names_as_the_head_has_classes() -> None:
    raw = torch.zeros(1, 2 * (5 + 3), 2, 2)
    assert yolo(["a", "b", "c"]).decode_head(raw, torch.ones(2, 2), 8, 1.0)[1].shape == (1, 8, 3)
    for classes in (["a", "b"], list("abcd"), list("abcdefghijk")):
        with pytest.raises(InputError, match=f"a head of 16 channels does not fit 2 anchors and {len(classes)} class"):
            yolo(classes).decode_head(raw, torch.ones(2, 2), 8, 1.0)
    levels = [torch.zeros(1, 2 * 4, 2, 2)], [torch.zeros(1, 2 * 4, 2, 2)]
    for wrong in (ssd(["a", "b"]), ssd(list("abcd")), ssd(["a", "b"], columns=[1, 4])):
        with pytest.raises(InputError, match=f"a head of 4 columns does not fit {len(wrong.classes)} class names"):
            wrong.decode(levels, [None])
    meta = ssd(["a"]).preprocess(torch.zeros(3, 8, 8, dtype=torch.uint8))[1]
    for right in (ssd(["a", "b", "c"]), ssd(["a", "b"], columns=[1, 3])):
        assert len(right.decode(levels, [meta])) == 1
