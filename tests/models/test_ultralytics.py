"""Ultralytics' detectors: their package's networks up to the raw maps, their state dicts, and their boxes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import msat_det
from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.models import build_detector
from msat_det.models.headed import HeadDetector
from msat_det.models.importers.ultralytics import as_detection_model, ultralytics_detector

tasks = pytest.importorskip("ultralytics.nn.tasks")
YOLO, RTDETR = (getattr(pytest.importorskip("ultralytics"), name) for name in ("YOLO", "RTDETR"))


def network(name: str, classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return tasks.DetectionModel(f"{name}.yaml", nc=classes, verbose=False).eval()


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolov10n", "yolo26n"])
def test_boxes_are_those_of_their_own_head(name: str) -> None:
    """Before suppression; their boxes are centres and sizes unless the head needs no suppression."""
    net = network(name)
    one = ultralytics_detector(net, 64)
    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    head = net.model[-1]
    with torch.inference_mode():
        boxes, scores = one.found(one.net(batch))
        raw = net(batch)[1]
        theirs = head._inference(raw["one2one" if head.end2end else "one2many"] if "one2one" in raw else raw)
    centre, extent = theirs[:, :4].transpose(1, 2).split(2, -1)
    if not head.end2end:
        centre, extent = centre - extent / 2, centre + extent / 2
    torch.testing.assert_close(boxes, torch.cat((centre, extent), -1), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(scores, theirs[:, 4:].transpose(1, 2), atol=1e-5, rtol=1e-4)
    assert one.strides == (8, 16, 32)
    assert (one.nms_iou == 1.0) == head.end2end


def test_queries_of_rtdetr_are_those_that_it_chooses_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = tasks.RTDETRDetectionModel("rtdetr-resnet50.yaml", nc=3, verbose=False).eval()
    one = ultralytics_detector(net, 64)
    with torch.inference_mode():
        batch = torch.rand(2, 3, 64, 64)
        boxes, scores = one.found(one.net(batch))
        theirs = net(batch)[0]
    best = scores.flatten(1).topk(theirs.shape[1])
    chosen = boxes.gather(1, (best.indices // 3)[..., None].expand(-1, -1, 4))
    torch.testing.assert_close(best.values, theirs[..., 4])
    torch.testing.assert_close((best.indices % 3).float(), theirs[..., 5])
    torch.testing.assert_close((chosen[..., :2] + chosen[..., 2:]) / 2, 64 * theirs[..., :2])
    torch.testing.assert_close(chosen[..., 2:] - chosen[..., :2], 64 * theirs[..., 2:4])
    assert (one.head, one.nms_iou) == ("rtdetr", 1.0)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    words = {"arch": "rtdetr-resnet50", "weights": str(tmp_path / "net.safetensors"), "size": 64}
    again = build_detector(Model("ultralytics", names=str(tmp_path / "names.txt"), **words))
    with torch.inference_mode():
        assert all(map(torch.equal, again.found(again.net(batch)), (boxes, scores)))


def test_convert_takes_them_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8) for _ in range(4)]
    net = network("yolov8n")
    torch.save({"model": net, "train_args": {"imgsz": 64}, "ema": None}, tmp_path / "mine.pt")
    monkeypatch.chdir(tmp_path)
    snn = msat_det.convert(YOLO("mine.pt"), [images], "delta-3")
    assert isinstance(snn.detector, HeadDetector)
    assert snn.detector.size == (64, 64)
    batch = torch.stack([snn.detector.preprocess(image)[0] for image in images])
    outputs = torch.cat([part.flatten() for level in snn.run(batch, 2)[2] for part in level])
    with torch.inference_mode():
        expected = torch.cat([part.flatten() for level in snn.detector.net(batch) for part in level])
    assert (outputs - expected).norm() < 0.05 * expected.norm()


@pytest.mark.filterwarnings("ignore")  # of PyTorch's exporter
@pytest.mark.parametrize("name", ["yolo11n", "yolov10n"])
def test_what_they_export_says_its_head_and_classes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes are those of the network that was exported, its decoding and suppression cut off."""
    pytest.importorskip("onnx")
    monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
    monkeypatch.chdir(tmp_path)
    net = network(name)
    net.names = {0: "cat", 1: "dog", 2: "hen"}
    torch.save({"model": net, "train_args": {"imgsz": 64}, "ema": None}, "mine.pt")
    YOLO("mine.pt").export(format="onnx", imgsz=64, simplify=False)
    found, expected = msat_det.load_detector("mine.onnx"), ultralytics_detector(net, 64)
    assert (found.head, found.classes, found.size) == ("yolov8", ["cat", "dog", "hen"], (64, 64))
    assert found.nms_iou == expected.nms_iou
    by_name = build_detector(Model(name="onnx", weights="mine.onnx"))
    assert (by_name.head, by_name.classes) == (found.head, found.classes)
    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for ours, theirs in zip(found.found(found.net(batch)), expected.found(expected.net(batch)), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-4)


SMALL_RTDETR = {
    "nc": 3,
    "backbone": [[-1, 1, "Conv", [16, 3, 4]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [32, 3, 2]]],
    "head": [[-1, 1, "AIFI", [64, 4]], [[1, 3], 1, "RTDETRDecoder", ["nc", 32, 24, 4, 4, 2]]],
}


@pytest.mark.filterwarnings("ignore")  # of PyTorch's exporter
def test_rtdetr_of_an_onnx_file_gives_the_same_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, with nothing chosen yet, from a file that says its head; and nearly the same when converted."""
    pytest.importorskip("onnx")
    monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = tasks.RTDETRDetectionModel(SMALL_RTDETR, nc=3, verbose=False).eval()
    net.names = {0: "cat", 1: "dog", 2: "hen"}
    for layer in net.modules():
        if isinstance(layer, torch.nn.Linear):  # scores that are not all next to the same
            torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    torch.save({"model": net, "train_args": {"imgsz": 64}, "ema": None}, "mine.pt")
    RTDETR("mine.pt").export(format="onnx", imgsz=64, simplify=False)
    found, expected = msat_det.load_detector("mine.onnx"), ultralytics_detector(net, 64)
    assert (found.head, found.classes, found.size) == ("rtdetr", ["cat", "dog", "hen"], (64, 64))
    batch = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, theirs = found.net(batch), expected.net(batch)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    snn = msat_det.convert(found, [batch[:4]], "delta-3")
    goal, got = torch.cat(ours, -1)[4:], torch.cat(snn.run(batch[4:], 4)[4], -1)
    nearest = got.take_along_dim(torch.cdist(goal, got).argmin(-1, keepdim=True), 1)
    assert (nearest - goal).norm() < 0.05 * goal.norm()


def test_state_dicts_need_no_trust(tmp_path: Path) -> None:
    """As trained and after fuse(), the number of classes from the file; a .pt file is code."""
    net, path = network("yolov8n", classes=5), tmp_path / "net.safetensors"
    batch = torch.rand(1, 3, 64, 64)
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    with torch.inference_mode():
        expected = ultralytics_detector(net, 64).net(batch)
    for fused in (False, True):
        save_file(
            {k: v.contiguous() for k, v in (net.fuse(verbose=False) if fused else net).state_dict().items()}, path
        )
        one = build_detector(Model("ultralytics", str(path), arch="yolov8n", names=str(names), size=64))
        assert one.classes == ["a", "b", "c", "d", "e"]
        with torch.inference_mode():
            for a, b in zip(one.net(batch), expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    torch.save({"model": net, "train_args": {"imgsz": 64}, "ema": None}, tmp_path / "net.pt")
    named = build_detector(Model("ultralytics", str(tmp_path / "net.pt"), trust=True, arch="yolov8n"))  # as real/ does
    assert len(named.classes) == 5
    trusted = build_detector(Model("ultralytics", str(tmp_path / "net.pt"), trust=True))
    assert repr(trusted) == "HeadDetector(yolov8, 5 classes, input 64 × 64)"
    assert (trusted.size, len(trusted.classes)) == ((64, 64), 5)
    for wrong, message in (
        (Model("ultralytics", str(tmp_path / "net.pt")), r"holds code that reading it runs: set model\.trust"),
        (
            Model("ultralytics", str(tmp_path / "net.pt"), arch="yolov8n"),
            r"save a state dict.*; or set model\.trust true",
        ),
        (Model("ultralytics", str(tmp_path / "yolov8n.pt"), trust=True), "no such file"),
        (Model("ultralytics", str(path), arch="yolov8n", trust=True), r"model\.trust is true, .* no \.pt file"),
        (Model("ultralytics", str(path)), r"model\.arch is None: give the network's name"),
        (Model("ultralytics", str(path), arch="../net"), "give the network's name"),
        (Model("ultralytics", arch="yolov8n"), "yolov8n has no weights"),
        (Model("ultralytics", arch="yolo0n", num_classes=2), "yolo0n: Ultralytics' package can't build it"),
    ):
        with pytest.raises(InputError, match=message):
            build_detector(wrong)


def test_other_tasks_are_refused() -> None:
    with pytest.raises(InputError, match="ends in Segment: of Ultralytics' networks those for detection convert"):
        as_detection_model(tasks.SegmentationModel("yolov8n-seg.yaml", nc=2, verbose=False))


def test_public_weights(shared_data: Path) -> None:
    path = shared_data / "weights/yolov8n_fused_fp16.safetensors"
    one = build_detector(Model("ultralytics", str(path), arch="yolov8n", names="coco", size=64))
    stored = load_file(path)["model.0.conv.weight"].float()
    assert torch.equal(one.net.layers[0].conv.weight, stored)
    assert one.classes[:2] == ["person", "bicycle"]
