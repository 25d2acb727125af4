"""torchvision's detectors: the same boxes as torchvision's own code, weights of any source, and their conversion."""

import itertools
import resource
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from support.devices import StandIn
from support.networks import unit_variance
from support.on_gpu import needs_gpu
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign, box_iou

import msat_det
from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.graph.facts import facts
from msat_det.methods import METHODS
from msat_det.methods.observe import observe
from msat_det.models import Detections, build_detector
from msat_det.models.class_names import COCO_CLASSES
from msat_det.models.importers.torchvision.building import SINGLE_STAGE, TWO_STAGE, as_detector
from msat_det.models.importers.torchvision.detector import TorchvisionDetector
from msat_det.models.importers.torchvision.two_stage import Regions
from msat_det.spiking.formats.graph import read_graph, write_graph
from msat_det.spiking.formats.onnx_step import Step
from msat_det.spiking.network import SpikingNetwork

RETINANET, SSDLITE = "retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large"
FASTER = "fasterrcnn_mobilenet_v3_large_320_fpn"
# SSD300's 31 billion multiply-adds an image cannot be had at a smaller size, nor those of two stages with 1,000 regions
LONG = {"ssd300_vgg16", *TWO_STAGE} - {FASTER}
QUICKLY = [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in SINGLE_STAGE + TWO_STAGE]


def picture(height: int, width: int, seed: int) -> Tensor:
    """A photograph's stand-in: noise at five scales, the coarse ones stronger."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.rand(1, 3, cells, cells, generator=generator) for cells in (3, 6, 12, 24, 48)]
    mixed = sum(F.interpolate(n, (height, width), mode="bilinear")[0] / n.shape[-1] ** 0.3 for n in noise)
    return ((mixed - mixed.min()) / (mixed.max() - mixed.min()) * 255).byte()


def batch(detector: TorchvisionDetector, images: list[Tensor]) -> tuple[Tensor, list]:
    pixels, metas = zip(*map(detector.preprocess, images), strict=True)
    return torch.stack(pixels), list(metas)


@torch.no_grad()
def enliven(detector: TorchvisionDetector, images: list[Tensor], seed: int = 0) -> TorchvisionDetector:
    """Seeded weights under which every layer has something to say, as a trained network's have.

    FCOS's distances are 2 ± 1 strides, and RetinaNet's offsets ± .2 of an anchor: its coder does not scale them down as
    SSD's does. The scores of both are shifted so that about ten (anchor, class) pairs an image pass .3, where an
    untrained head would pass it at thousands or at none. Of two stages, regions are anchors moved by ± .2 of their
    sides, and the classes' logits N(0, 3²).
    """
    if isinstance(detector.net, Regions):
        unit_variance(detector.net, batch(detector, images)[0], seed)
        detector.net.rpn_head.bbox_pred.weight *= 0.2
        detector.net.box_predictor.cls_score.weight *= 3
        return detector
    head = detector.net.head
    if hasattr(head.regression_head, "bbox_ctrness"):
        head.regression_head.bbox_reg.bias.fill_(2.0)
    outputs = unit_variance(detector.net, batch(detector, images)[0], seed)
    if isinstance(detector.model, RetinaNet):
        head.regression_head.bbox_reg.weight *= 0.2
    if not isinstance(detector.model, SSD):
        logits = outputs["cls_logits"]
        if "bbox_ctrness" in outputs:  # the score is the root of a product
            logits = (logits.sigmoid() * outputs["bbox_ctrness"].sigmoid()).sqrt().logit()
        passing = logits.flatten().topk(10 * len(images)).values[-1]
        head.classification_head.cls_logits.bias += torch.tensor(0.3).logit() - passing
    return detector


def lively(name: str, images: list[Tensor], size: int | None = None) -> TorchvisionDetector:
    torch.manual_seed(0)
    return enliven(build_detector(Model(name, size=None if "ssd" in name else size)), images)


def own_boxes(detector: TorchvisionDetector, images: list[Tensor]) -> list[Detections]:
    return detector.decode(detector.net(batch(detector, images)[0]), batch(detector, images)[1])


@pytest.mark.parametrize("name", QUICKLY)
@torch.no_grad()
def test_boxes_are_those_of_torchvisions_own_forward(name: str, capsys: pytest.CaptureFixture) -> None:
    # the square one makes torchvision pad the other to the same square
    images = [picture(96, 96, 1), picture(60, 110, 2)]
    detector = lively(name, images, size=128)
    assert "drawn at random" in capsys.readouterr().err
    assert detector.classes == (["person"] if name.startswith("keypoint") else COCO_CLASSES)
    found = own_boxes(detector, images)
    detector.model.transform = detector.transform
    names = dict(enumerate(detector.columns))
    for mine, theirs in zip(found, detector.model([image.float() / 255 for image in images]), strict=True):
        areas = (theirs["boxes"][:, 2:] - theirs["boxes"][:, :2]).prod(1)
        labels = enumerate(theirs["labels"].tolist())
        known = [i for i, label in labels if names[label] in detector.classes and areas[i] > 0]
        assert len(known) > 3
        assert [detector.classes[label] for label in mine.labels] == [names[theirs["labels"][i].item()] for i in known]
        assert torch.equal(mine.scores, mine.scores.sort(descending=True)[0])
        torch.testing.assert_close(mine.scores, theirs["scores"][known], rtol=1e-4, atol=1e-5)
        expected = theirs["boxes"][known]
        if name in TWO_STAGE:  # whose regions lie in another order: small ones in one cell may score the same
            assert (mine.boxes[:, None] - expected).abs().amax(-1).amin(1).gt(1e-2).sum() <= 1
        else:
            torch.testing.assert_close(mine.boxes, expected, rtol=1e-3, atol=1e-2)


def of_two_images(name: str) -> tuple[TorchvisionDetector, dict[str, Tensor], list]:
    """A detector, its outputs for two images, and what it knows of them."""
    images = [picture(96, 96, 1), picture(60, 110, 2)]
    detector = lively(name, images, size=128)
    pixels, metas = batch(detector, images)
    return detector, detector.net(pixels), metas


@pytest.mark.parametrize("name", QUICKLY)
@torch.no_grad()
def test_a_gpu_gives_the_same_boxes_and_is_seldom_waited_for(name: str) -> None:
    """torchvision's own code waits 21 to 373 times an image."""
    detector, outputs, metas = of_two_images(name)
    expected = detector.decode(outputs, metas)
    with StandIn() as device:
        there = {key: value.to("cuda") for key, value in outputs.items()}
        device.copies.clear()
        found = detector.decode(there, metas)
        assert device.waits == ["__int__", *["equal"] * len(metas), "tolist"]
        assert len(device.copies) <= 2  # torchvision's own, for a batch
        for one, other in zip(found, expected, strict=True):
            assert len(one) > 3
            assert torch.equal(one.labels.cpu(), other.labels)
            torch.testing.assert_close(one.scores.cpu(), other.scores)
            torch.testing.assert_close(one.boxes.cpu(), other.boxes)
        detector.stages.limits.score_thresh = 1.0
        assert [len(one) for one in detector.decode(there, metas)] == [0, 0]


@needs_gpu
@pytest.mark.parametrize("name", QUICKLY)
@torch.no_grad()
def test_a_real_gpu_gives_the_same_boxes(name: str) -> None:
    detector, outputs, metas = of_two_images(name)
    found = detector.decode({key: value.cuda() for key, value in outputs.items()}, metas)
    for one, other in zip(found, detector.decode(outputs, metas), strict=True):
        assert torch.equal(one.labels.cpu(), other.labels)
        torch.testing.assert_close(one.boxes.cpu(), other.boxes)


def test_images_of_any_shape_make_one_batch() -> None:
    detector = build_detector(Model("fcos_resnet50_fpn", size=100, num_classes=3))
    pixels, metas = batch(detector, [picture(50, 75, 1), picture(200, 31, 2), picture(100, 100, 3)])
    assert pixels.shape == (3, 3, 128, 128)
    assert metas == [((66, 100), (50, 75)), ((100, 15), (200, 31)), ((100, 100), (100, 100))]
    assert pixels[0, :, 66:].eq(0).all()
    assert pixels[1, :, :, 15:].eq(0).all()
    assert detector.classes == ["1", "2", "3"]


def test_options_of_the_configuration_reach_torchvision(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("???\ncat\nN/A\ndog\n")
    detector = build_detector(
        Model(SSDLITE, names=str(tmp_path / "names.txt"), score=0.2, nms_iou=0.3, top_k=7),
    )
    assert detector.classes == ["cat", "dog"]
    assert detector.index.tolist() == [-1, 0, -1, 1]
    model = detector.model
    assert (model.score_thresh, model.nms_thresh, model.detections_per_img) == (0.2, 0.3, 7)
    assert len(build_detector(Model(SSDLITE, names="voc")).index) == 21


def tensors_of(name: str, seed: int, **options: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return get_model(name, weights=None, weights_backbone=None, **options).state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_a_file(tmp_path: Path, suffix: str) -> None:
    tensors = tensors_of(SSDLITE, 7, num_classes=4)
    path = tmp_path / f"own{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    detector = build_detector(Model(SSDLITE, weights=str(path), num_classes=3))
    assert all(torch.equal(value, tensors[key]) for key, value in detector.model.state_dict().items())
    with pytest.raises(InputError, match=r"its head scores .* times as many classes .* --model.names"):
        build_detector(Model(SSDLITE, weights=str(path)))


def old_names(name: str) -> OrderedDict:
    """Random weights as torchvision's first files have them: no counters, convolutions without their blocks."""
    renamed = OrderedDict()
    for key, tensor in tensors_of(name, 3).items():
        parts = key.split(".")
        if "inner_blocks" in key or "layer_blocks" in key:
            del parts[-2]
        elif key.startswith("rpn.head.conv"):
            del parts[-3:-1]
        elif key.startswith("roi_heads.mask_head"):
            parts[-3:-1] = [f"mask_fcn{int(parts[-3]) + 1}"]
        elif "_head.conv." in key:
            parts[-3:-1] = [str(2 * int(parts[-3]))]
        if parts[-1] != "num_batches_tracked":
            renamed[".".join(parts)] = tensor.clone().uniform_(0.01, 0.1)
    return renamed


@pytest.mark.parametrize("name", [RETINANET, "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn"])
def test_published_weights_are_run_as_torchvision_runs_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old names and the missing ε of batch norm, compared with torchvision's own loader."""
    published = old_names(name)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda enum, **options: OrderedDict(published))
    theirs = get_model(name, weights="COCO_V1").eval()
    mine = build_detector(Model(name, weights="DEFAULT", size=64))
    assert {m.eps for m in mine.net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.0}
    own = mine.model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in theirs.state_dict().items())
    image = batch(mine, [picture(64, 64, 1)])[0][:, :3]
    with torch.no_grad():
        expected, got = theirs.backbone(image), mine.model.backbone(image)
    for level, value in expected.items():
        torch.testing.assert_close(got[level], value, rtol=1e-4, atol=1e-4)


def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(enum: WeightsEnum, **options: bool) -> None:
        raise URLError("no network")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(InputError, match=r"ssdlite320.*can't be fetched.*--model.weights FILE"):
        build_detector(Model(SSDLITE, weights="COCO_V1"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "COCO_V9"}, r"no weights 'COCO_V9': .*'s names are COCO_V1"),
        ({"weights": "none.pth"}, "none.pth: not readable"),
        ({"resize": "stretch"}, "model.resize is stretch: .* leave it out"),
        ({"size": 300}, "model.size is 300: this SSD's anchors are for 320x320"),
    ],
)
def test_bad_input(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_detector(Model(SSDLITE, **fields))


def test_a_torchvision_model_becomes_a_detector() -> None:
    model = get_model(SSDLITE, weights=None, weights_backbone=None, num_classes=5)
    detector = as_detector(model)
    assert isinstance(detector, TorchvisionDetector)
    assert detector.classes == ["1", "2", "3", "4"]
    assert as_detector(detector) is detector
    assert as_detector(detector.net) is detector.net


PLACES = ("cls_logits", "bbox_regression")


def faster(**changes: Any) -> FasterRCNN:
    """One of somebody's own: a backbone of a single map, and three classes to find."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 4, 1), nn.ReLU())
    backbone.out_channels = 32
    anchors = AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),))
    given = {"box_roi_pool": MultiScaleRoIAlign(["0"], 5, 2), "box_head": TwoMLPHead(32 * 25, 64)}
    given |= {"box_predictor": FastRCNNPredictor(64, 4), "rpn_anchor_generator": anchors}
    return FasterRCNN(backbone, rpn_post_nms_top_n_test=30, **given | changes)


def apart(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, float]:
    """The share of the regions ``wanted`` that are none of ``got`` (within two pixels), and the relative error of what
    the second stage gives for the others."""
    distance, near = (wanted["proposals"][:, :, None] - got["proposals"][:, None]).abs().amax(-1).min(2)
    found = distance < 2
    outputs = [(got[k].take_along_dim(near[..., None], 1)[found], wanted[k][found]) for k in PLACES]
    return 1 - found.float().mean().item(), max(((a - b).norm() / b.norm()).item() for a, b in outputs)


def of_two_stages() -> tuple[TorchvisionDetector, list[Tensor], Tensor, dict[str, Tensor]]:
    """A detector, two pictures, these as its input, and its outputs."""
    images = [picture(70, 100, 1), picture(100, 50, 2)]
    detector = enliven(TorchvisionDetector(faster(), size=96), images)
    pixels, _ = batch(detector, images)
    with torch.no_grad():
        return detector, images, pixels, detector.net(pixels)


def test_a_faster_rcnn_converts_whole(tmp_path: Path) -> None:
    detector, images, pixels, wanted = of_two_stages()
    assert detector.classes == ["1", "2", "3"]
    snn = msat_det.convert(detector, [images], "delta-3")
    assert [facts(site).image_shape for site in snn.graph.sites][-2:] == [(30, 64)] * 2
    found = snn.run(pixels, 4, (1, 4))
    lost, error = apart(found[4], wanted)
    assert lost < 0.1
    assert error < 0.05
    alone = snn.run(pixels[1:], 4)[4]
    for key, value in alone.items():
        torch.testing.assert_close(value, found[4][key][1:], atol=1e-4, rtol=1e-4)
    boxes = snn.detect(images, T=4)[4][0].boxes
    assert len(boxes) > 0
    assert (boxes <= torch.tensor([100.0, 70, 100, 70]) + 1e-3).all()
    snn.detector = None  # no file tells of a model of one's own
    msat_det.save(snn, tmp_path / "snn.safetensors")
    again = msat_det.load(tmp_path / "snn.safetensors")
    torch.testing.assert_close(again.run(pixels, 4)[4], found[4], atol=0, rtol=0)


def test_two_stages_of_torchvisions_are_saved_with_what_surrounds_them(tmp_path: Path) -> None:
    images = [picture(96, 96, 1), picture(60, 110, 2)]
    detector = lively(FASTER, images, size=96)
    detector.stages.limits.detections_per_img = 7
    snn = msat_det.convert(detector, [images], "delta-3")
    msat_det.save(snn, tmp_path / "snn.safetensors")
    again = msat_det.load(tmp_path / "snn.safetensors")
    assert again.detector.size == (96, 96)
    for one, other in zip(snn.detect(images, T=2)[2], again.detect(images, T=2)[2], strict=True):
        assert len(one) == 7
        assert torch.equal(one.boxes, other.boxes)
        assert one.names == other.names


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_two_stages(method: str) -> None:
    detector, images, pixels, wanted = of_two_stages()
    snn = msat_det.convert(detector, [images], method, T=4)
    outputs = snn.run(pixels, 4)[4]
    assert {key: value.shape for key, value in outputs.items()} == {key: value.shape for key, value in wanted.items()}
    assert all(value.isfinite().all() for value in outputs.values())
    assert snn.counts[4].energy.min() > 0


def test_fewer_regions_are_an_option_of_two_stages_alone() -> None:
    detector = build_detector(Model(FASTER, size=96, regions=20))
    with torch.no_grad():
        outputs = detector.net(batch(detector, [picture(96, 96, 1)])[0])
    assert outputs["proposals"].shape == (1, 20, 4)
    with pytest.raises(InputError, match=r"model.regions is 20, for which ssdlite.* has no use"):
        build_detector(Model(SSDLITE, regions=20))
    with pytest.raises(InputError, match=r"model.regions is 0"):
        Model(FASTER, regions=0)


def test_a_file_cannot_make_regions_cost_what_it_likes() -> None:
    detector, images, *_ = of_two_stages()
    document, tensors = write_graph(msat_det.convert(detector, [images], "delta-3").graph)
    nodes = {node["target"]: node for node in document["nodes"]}
    pooled = nodes["pooled_regions"]["args"]
    for place, value in ((4, 0), (4, 1 << 40), (2, [1e9]), (2, [-1.0])):
        before, pooled[place] = pooled[place], value
        with pytest.raises(InputError, match="points a cell: 1 to 64 can be saved"):
            read_graph(document, tensors)
        pooled[place] = before
    (name,) = (key for key, tensor in tensors.items() if tensor.shape[1:] == (4,) and tensor.dim() == 2)
    with pytest.raises(InputError, match=r"does not fit together \(anchors of shape \(9, 4\) for \[324\] scores"):
        read_graph(document, tensors | {name: tensors[name][:9]})


def test_a_step_of_two_stages_is_no_onnx() -> None:
    detector, images, *_ = of_two_stages()
    with pytest.raises(InputError, match="picks regions by non-maximum suppression"):
        Step(msat_det.convert(detector, [images], "delta-3"))


def test_rate_coding_comes_closer_with_time() -> None:
    detector, images, pixels, wanted = of_two_stages()
    snn = msat_det.convert(detector, [images], "signed-b7")
    found = snn.run(pixels, 256, (4, 16, 64, 256))
    lost, errors = zip(*(apart(found[t], wanted) for t in (4, 64, 256)), strict=True)
    assert lost[2] < lost[1] < lost[0]
    assert errors[2] < errors[1] < errors[0]
    assert errors[1] < 0.04  # of regions that are another choice in every timestep .14
    assert errors[2] < 0.01


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_regions_are_held_for_as_long_as_they_have_been_looked_for(chunk: int) -> None:
    detector, images, pixels, _ = of_two_stages()
    snn = msat_det.convert(detector, [images], "signed-b3")
    snn.chunk = chunk
    regions = {t: outputs["proposals"] for t, outputs in snn.run(pixels, 10, range(1, 11)).items()}
    for picked, until in ((1, 1), (2, 2), (3, 4), (5, 8), (9, 10)):
        assert all(torch.equal(regions[t], regions[picked]) for t in range(picked, until + 1))
        assert picked == 1 or not torch.equal(regions[picked], regions[picked - 1])
    alone = snn.run(pixels[1:], 10)[10]
    torch.testing.assert_close(alone["proposals"], regions[10][1:], atol=1e-3, rtol=1e-4)


def test_stages_of_ones_own_are_refused_in_a_sentence() -> None:
    model = faster()
    model.roi_heads.box_roi_pool = nn.Identity()
    with pytest.raises(InputError, match=r"FasterRCNN has stages of its own: give one with .* MultiScaleRoIAlign"):
        msat_det.convert(model, [[picture(64, 64, 1)]])


def test_photographs_in_boxes_out() -> None:
    """Of a torchvision model with classes of its own; each level of the shared head has its own neurons."""
    torch.manual_seed(0)
    model = get_model("fcos_resnet50_fpn", weights=None, weights_backbone=None, num_classes=4)
    images = [picture(70, 100, 1), picture(100, 50, 2)]
    detector = enliven(TorchvisionDetector(model, size=64), images)
    snn = msat_det.convert(detector, [images], "constant", scale="channel", initial="half", signed=True, gamma=7)
    convolutions = [n for n in snn.graph.nodes if n.target == "head.classification_head.conv.0"]
    relus = [n for n in snn.graph.sites if n.target == "head.classification_head.conv.2"]
    assert len(convolutions) == len(relus) == 5
    found = snn.detect(images, T=4, record=(2, 4))
    assert list(found) == [2, 4]
    assert [len(boxes) for boxes in found.values()] == [2, 2]
    assert found[4][0].labels.max() < 3
    limit = torch.tensor([100.0, 70, 100, 70])
    assert (found[4][0].boxes <= limit + 1e-3).all()


@dataclass
class Check:
    """What a conversion at T = ``record`` gave: relative errors by head output, and the share of boxes found again."""

    snn: SpikingNetwork
    traced: float
    errors: dict[int, dict[str, float]]
    matched: float
    line: str


def check(name: str, record: tuple[int, ...], size: int = 320) -> Check:
    """Convert on two pictures and run them. Thresholds: the channel's maximum × .25, γ = 7, half, signed."""
    images = [picture(240, 333, 1), picture(400, 320, 2)]
    detector = lively(name, images, size)
    pixels, metas = batch(detector, images)
    started = time.perf_counter()
    observation = observe(detector.net, [pixels])
    observed = time.perf_counter()
    goal = observation.graph(pixels)
    floated = time.perf_counter()
    with torch.inference_mode():
        original = detector.net(pixels)
    options = {"scale": "channel", "factor": 0.25, "initial": "half", "signed": True, "gamma": 7}
    snn = msat_det.convert(observation, method="constant", **options)
    begun = time.perf_counter()
    outputs = snn.run(pixels, record[-1], record)
    ended = time.perf_counter()
    errors = {t: {k: ((out[k] - goal[k]).norm() / goal[k].norm()).item() for k in goal} for t, out in outputs.items()}
    traced = max(((original[k] - goal[k]).abs().max() / original[k].abs().max()).item() for k in goal)
    matched = found_again(detector.decode(goal, metas), detector.decode(outputs[record[-1]], metas))
    per_step = (ended - begun) / record[-1]
    line = (
        f"{name} {tuple(pixels.shape)}: {snn.fanout.total / 1e9:.1f} GMAC an image, {len(snn.graph.sites)} call sites; "
        f"trace and observe {observed - started:.1f} s, float {floated - observed:.2f} s, timestep {per_step:.2f} s, "
        f"T = {record[-1]} {ended - begun:.0f} s; peak memory of the process {peak_gigabytes():.2f} GB; traced "
        f"{traced:.0e}; largest error "
        + ", ".join(f"{max(e.values()):.2%} at {t}" for t, e in errors.items())
        + f"; boxes found again {matched:.0%}; spikes per neuron {snn.counts[record[-1]].spikes_per_neuron:.1f}, "
        f"analog multiply-adds {snn.fanout.analog_share:.1%}"
    )
    print(line, file=sys.stderr)
    return Check(snn, traced, errors, matched, line)


def peak_gigabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def found_again(expected: list[Detections], found: list[Detections]) -> float:
    """The share of the expected boxes with a score of .3 or more, the best ten of an image where none has, that a found
    box of the same class meets with an IoU of .9 or more."""
    hits = []
    for goal, got in zip(expected, found, strict=True):
        count = int((goal.scores >= 0.3).sum()) or 10
        alike = goal.labels[:count, None] == got.labels
        hits.append((box_iou(goal.boxes[:count], got.boxes) * alike).amax(1) >= 0.9)
    return torch.cat(hits).float().mean().item()


def assert_converted(result: Check, limit: float) -> None:
    assert result.traced < 1e-4
    series = list(result.errors.values())
    for before, after in itertools.pairwise(series):
        assert all(after[name] < before[name] for name in before)
    assert max(series[-1].values()) <= limit
    kinds = {row["kind"] for row in result.snn.coverage}
    assert len(result.snn.coverage) == len(result.snn.graph.nodes)
    assert kinds == {"input", "shape", "linear", "spiking", "differential", "output"}


@pytest.mark.parametrize(
    ("name", "size"), [(SSDLITE, 320), ("fcos_resnet50_fpn", 64), ("retinanet_resnet50_fpn_v2", 64)]
)
def test_conversion_in_short(name: str, size: int) -> None:
    assert_converted(check(name, (4, 8), size), limit=0.4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SINGLE_STAGE)
def test_conversion(name: str) -> None:
    """The whole check, up to the first T that is close enough; the pyramids' at half the side of docs/torchvision.md's
    table takes a quarter of its time."""
    T = (8, 16, 32, 64) if name.startswith("fcos") else (8, 16, 32)
    result = check(name, T, 320 if name.startswith("ssd") else 160)
    assert_converted(result, limit=0.03)
    assert result.matched >= 0.9
