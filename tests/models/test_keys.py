"""A key of ``model`` changes the detector or classifier that it is given for, or is refused in one line."""

import functools
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import images
from torch import nn

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.models import build_detector
from msat_det.models.classifiers import build_classifier

HERE = f"{__name__}:"
PHOTO = (60 * images(1, size=40)[0] + 120).clamp(0, 255).to(torch.uint8)[:, :30]

VALUES: dict[str, Any] = {
    "weights": "nowhere.safetensors",
    "cfg": "nowhere.cfg",
    "names": "coco",
    "trust": True,
    "arch": "yolov8n",
    "head": "yolov8",
    "strides": (4,),
    "anchors": ((10.0, 10.0),),
    "activated": True,
    "outputs": ("a",),
    "resize": "letterbox",
    "pad": 3.0,
    "bgr": False,
    "mean": (9.0, 8.0, 7.0),
    "std": (9.0, 8.0, 7.0),
    "size": 96,
    "preprocess": "caffe",
    "num_classes": 3,
    "score": 0.5,
    "nms_iou": 0.123,
    "top_k": 7,
    "regions": 9,
}


def net() -> nn.Module:
    """One level of yolox: a box, an objectness and VOC's 20 classes."""
    return nn.Conv2d(3, 25, 3, 8, 1)


def logits() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))


BOXES = {"size", "names", "resize", "score", "nms_iou", "top_k", "weights"}
HEADED = BOXES | {"head", "strides", "activated", "bgr", "mean", "std"}  # of one without anchors; pad needs a letterbox
TAKEN = [
    (build_detector, {"name": "yolo_demo"}, BOXES),
    (build_detector, {"name": "ssd_demo"}, BOXES),
    (build_detector, {"name": "ssdlite320_mobilenet_v3_large", "num_classes": 2}, BOXES - {"resize", "size"}),
    (
        build_detector,
        {"name": "fasterrcnn_mobilenet_v3_large_320_fpn", "num_classes": 2},
        BOXES - {"resize"} | {"regions"},
    ),
    (
        build_detector,
        {"name": f"{HERE}net", "head": "yolox", "size": 64, "strides": (8,), "names": "voc"},
        HEADED | {"pad"},
    ),
    (build_classifier, {"name": "vgg_demo"}, {"weights", "names", "preprocess", "size", "num_classes"}),
    (build_classifier, {"name": f"{HERE}logits"}, {"weights", "names", "preprocess", "size"}),
]
CASES = [(*case, item.name) for case in TAKEN for item in fields(Model) if item.name not in ("name", *case[1])]


@functools.cache
def outcome(build: Any, **values: Any) -> str:
    """What a model does, or why there is none."""
    try:
        made = build(Model(**values))
    except InputError as error:
        return str(error)
    pixels, _ = made.preprocess(PHOTO)
    own = made.stages.limits if hasattr(made, "stages") else made
    numbers = ("score", "nms_iou", "top_k", "score_thresh", "nms_thresh", "detections_per_img", "activated")
    plain = [*(getattr(own, name, None) for name in numbers), getattr(made.net, "picks", None)]
    return str((list(made.classes), tuple(pixels.shape), pixels[:, ::9, ::9].tolist(), plain))


@pytest.mark.parametrize(("build", "base", "taken", "key"), CASES, ids=[f"{c[1]['name']} {c[3]}" for c in CASES])
def test_a_key_changes_the_model_or_is_refused(build: Any, base: dict, taken: set[str], key: str) -> None:
    found = outcome(build, **base, **{key: VALUES[key]})
    assert found != outcome(build, **base)
    assert "\n" not in found
    refused = "has no use" in found or "leave it out" in found or "leave model" in found
    assert refused == (key not in taken), found


def test_keys_that_need_another_are_refused(tmp_path: Path) -> None:
    own = {"name": f"{HERE}net", "size": 64}
    cases = [
        (own | {"head": "fastestdet", "pad": 3.0}, "model.pad is 3, and nothing is padded: set model.resize"),
        (own | {"head": "raw", "strides": [8]}, "model.strides is set, and head raw"),
        (own | {"head": "yolox", "strides": [8], "anchors": [[9.0, 9.0]]}, "head yolox has no anchors"),
        ({"name": "ssdlite320_mobilenet_v3_large", "names": "voc", "num_classes": 3}, "voc has 20 classes, .* is 3"),
    ]
    for values, said in cases:
        with pytest.raises(InputError, match=said):
            build_detector(Model(**values))


def test_one_own_function_that_takes_the_settings_may_use_any(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def build(model: Model) -> nn.Module:
        seen.append(model.arch)
        return net()

    monkeypatch.setitem(globals(), "build", build)
    build_detector(Model(f"{HERE}build", head="yolox", size=64, names="voc", strides=[8], arch="small"))
    assert seen == ["small"]
