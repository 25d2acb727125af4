"""The registry of detectors, and what its real networks reach in float on real photographs."""

from pathlib import Path

import pytest
import torch

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.data import build_dataset
from msat_det.measure.accuracy import evaluate
from msat_det.models import DETECTORS, build_detector

# Detector, its files in weights/, class names, and mAP and mAP50 on coco_val128 with their tolerance (SOURCES.md)
FLOAT = {
    "ssd": ("ssd_mobilenet_v1", "ssd_mobilenet_v1_075_coco", "coco", 23.3, 39.1, 0.2),
    "yolo-nano": ("darknet", "MobileNetV2-YOLOv3-Nano-coco", "coco", 17.0, 33.5, 0.3),
    "yolo-nano-voc": ("darknet", "MobileNetV2-YOLOv3-Nano-voc", "voc", 14.2, 30.2, 0.3),
    "yolo-fastest": ("darknet", "yolo-fastest-1.1", "coco", 16.7, 32.7, 0.3),
}


def test_unknown_detector_names_the_nearest() -> None:
    assert {"darknet", "ssd_mobilenet_v1", "yolo_demo", "ssd_demo"} <= DETECTORS.keys()
    with pytest.raises(InputError, match="no detector 'darkent': did you mean darknet"):
        build_detector(Model(name="darkent"))
    with pytest.raises(InputError, match="no detector 'zzz': the detectors are"):
        build_detector(Model(name="zzz"))
    with pytest.raises(InputError, match=r"model\.name is '': give a text"):  # as in a file
        Model(name="")


@pytest.mark.parametrize("network", FLOAT)
def test_float_accuracy(shared_data: Path, network: str) -> None:
    name, file, names, expected, expected50, tolerance = FLOAT[network]
    stem = shared_data / "weights" / file
    files = (
        {"weights": f"{stem}.safetensors"}
        if name.startswith("ssd")
        else {"cfg": f"{stem}.cfg", "weights": f"{stem}.weights"}
    )
    detector = build_detector(Model(name=name, names=names, **files))
    dataset = build_dataset("coco", shared_data / "coco_val128")
    found = {}
    for i in range(0, len(dataset), 8):
        samples = [dataset[j] for j in range(i, min(i + 8, len(dataset)))]
        pixels, metas = zip(*(detector.preprocess(sample.image) for sample in samples), strict=True)
        with torch.inference_mode():
            decoded = detector.decode(detector.net(torch.stack(pixels)), list(metas))
        found |= dict(zip((sample.id for sample in samples), decoded, strict=True))
    scores = evaluate(dataset, found, detector.classes)
    assert scores["map"] == pytest.approx(expected, abs=tolerance)
    assert scores["map50"] == pytest.approx(expected50, abs=tolerance)
