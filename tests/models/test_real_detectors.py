"""The float figures of imported detectors on real photographs, and what delta coding keeps of them at t = 1."""

from pathlib import Path

import pytest
import torch

from msat_det.base.settings import PROJECT
from msat_det.data import build_dataset
from msat_det.measure.accuracy import evaluate
from msat_det.models import build_detector
from msat_det.run.arguments import load_config

# configuration → mAP, mAP50 of the float network on coco_val128, as measured by the networks' own programs
FLOAT = {
    "yolov8n_coco": (36.5, 49.9),
    "yolox_nano_coco": (34.0, 52.3),
    "picodet_s_coco": (37.7, 52.8),
    "fastestdet_coco": (20.8, 33.7),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOAT)
def test_float_figures(name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "yolov8n_coco":
        pytest.importorskip("ultralytics")
    monkeypatch.chdir(PROJECT)
    config = load_config(["--cfg", str(PROJECT / f"configs/real/{name}.yaml")])
    detector = build_detector(config.model)
    dataset = build_dataset("coco", shared_data / "coco_val128", "val2017", classes=detector.classes)
    found = {}
    for begin in range(0, len(dataset), 8):
        ids = dataset.ids[begin : begin + 8]
        pixels, metas = zip(*(detector.preprocess(dataset.image(id)) for id in ids), strict=True)
        with torch.inference_mode():
            outputs = detector.net(torch.stack(pixels))
        found |= dict(zip(ids, detector.decode(outputs, list(metas)), strict=True))
    scores = evaluate(dataset, found, detector.classes)
    assert scores["map"] == pytest.approx(FLOAT[name][0], abs=0.3)
    assert scores["map50"] == pytest.approx(FLOAT[name][1], abs=0.8)
