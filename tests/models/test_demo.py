"""The embedded data, the scenes it is made of, and the small networks that are trained on such scenes."""

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from torchvision.ops import box_iou
from training import scenes
from training.losses import Objects, fit, match_priors, mirror, pad_objects, scene_batches, ssd_loss, yolo_loss

from msat_det.base.config import Model
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.data import VOC_CLASSES, build_dataset
from msat_det.data.voc_xml import read_voc_xml
from msat_det.graph.facts import facts
from msat_det.graph.trace import trace
from msat_det.measure.accuracy import evaluate
from msat_det.models import build_detector, demo
from msat_det.models.classifiers import build_classifier

DATA = PROJECT / "data"
SPLITS = {"voc": ("trainval", "test"), "coco": ("train2017", "val2017")}
NETWORKS = ["yolo_demo", "ssd_demo"]
LOSSES = {"yolo_demo": yolo_loss, "ssd_demo": ssd_loss}
needs_font = pytest.mark.skipif(
    not scenes.FONT.is_file(), reason="no emoji font: apt-get install fonts-noto-color-emoji"
)


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PROJECT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------------------------------------------ scenes


@needs_font
def test_generator_writes_the_same_bytes_again(tmp_path: Path) -> None:
    make = tool("make_demo_data")
    for name in ("once", "again"):
        make.make_voc(tmp_path / name / "voc", {"trainval": 1, "test": 2})
        make.make_coco(tmp_path / name / "coco", {"val2017": 2})
        make.make_tiles(tmp_path / name / "cls", {"test": 1})
    once = contents(tmp_path / "once")
    assert len(once) == 2 + 3 * 2 + 1 + 2 + 20
    assert once == contents(tmp_path / "again")


def test_voc_files_read_back_as_the_boxes_that_were_drawn(tmp_path: Path) -> None:
    boxes, flags = np.array([[0, 0, 30, 40], [12, 7, 13, 8]]), np.array([False, True])
    nothing = np.zeros((40, 30, 3), np.uint8)
    scene = scenes.Scene(nothing, boxes, np.array([3, 11]), flags, flags, ~flags, nothing[None, ..., 0] > 0)
    ElementTree.ElementTree(tool("make_demo_data").voc_annotation(scene, "a.jpg")).write(tmp_path / "a.xml")
    target = read_voc_xml(tmp_path / "a.xml").target(scenes.CLASSES)
    assert target.boxes.tolist() == boxes.tolist()
    assert (target.labels.tolist(), target.ignore.tolist()) == ([3, 11], [False, True])


@needs_font
@pytest.mark.parametrize("crowds", [False, True])
def test_boxes_bound_what_is_seen(crowds: bool) -> None:
    for index in range(12):
        scene = scenes.draw_scene(7, index, crowds)
        assert not (scene.masks.sum(0) > 1).any()
        for (x1, y1, x2, y2), mask in zip(scene.boxes, scene.masks, strict=True):
            inside = mask[y1:y2, x1:x2]
            assert inside.sum() == mask.sum() > 0
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
        assert not (scene.difficult & scene.crowd).any()


@needs_font
def test_other_numbers_draw_other_scenes() -> None:
    pictures = {scenes.draw_scene(*key).image.tobytes() for key in ((1, 1), (1, 2), (2, 1), (1, 1, True))}
    assert len(pictures) == 4


def test_missing_font_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "FONT", Path("/nowhere/emoji.ttf"))
    scenes.glyph_image.cache_clear()
    with pytest.raises(InputError, match="apt-get install fonts-noto-color-emoji"):
        scenes.draw_scene(0, 0)


# ---------------------------------------------------------------------------------------------- embedded data


@pytest.mark.parametrize("kind", SPLITS)
def test_layout_is_read(kind: str) -> None:
    calibration, test = (build_dataset(kind, DATA / kind, split) for split in SPLITS[kind])
    assert (len(calibration), len(test)) == (48, 100)
    targets = [test.target(id) for id in test.ids]
    labels = torch.cat([target.labels[~target.ignore] for target in targets])
    assert labels.unique().numel() == 20
    assert sum(int(target.ignore.sum()) for target in targets) >= 20
    for dataset in (calibration, test):
        height, width = dataset[0].image.shape[1:]
        assert 144 <= min(height, width) <= max(height, width) <= 192


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools and NumPy 2
def test_coco_outlines_are_valid() -> None:
    coco = COCO(DATA / "coco" / "annotations" / "instances_val2017.json")
    crowds = [entry for entry in coco.anns.values() if entry["iscrowd"]]
    assert len(crowds) >= 10
    assert all(coco.annToMask(entry).sum() == entry["area"] for entry in crowds)
    ratios = [coco.annToMask(entry).sum() / entry["area"] for entry in coco.anns.values()]
    assert 0.85 < np.median(ratios) < 1.05
    assert {entry["name"]: entry["id"] for entry in coco.cats.values()}["dining table"] == 67


def test_no_picture_is_there_twice_and_all_are_small() -> None:
    pictures = [path.read_bytes() for folder in (*SPLITS, "cls") for path in (DATA / folder).rglob("*.jpg")]
    assert len({hashlib.sha256(picture).digest() for picture in pictures}) == len(pictures) == 2 * 148 + 460
    assert sum(map(len, pictures)) <= 3e6
    sizes = {path.stem: path.stat().st_size for path in (DATA / "weights").glob("*.safetensors")}
    assert set(sizes) >= {*NETWORKS, "vgg_demo"}
    assert max(sizes.values()) <= 2e6
    assert sizes["vgg_demo"] + sum(path.stat().st_size for path in (DATA / "cls").rglob("*.jpg")) <= 1.5e6


# ---------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("name", NETWORKS)
def test_float_accuracy(name: str, kind: str) -> None:
    detector = build_detector(Model(name, names=kind))
    dataset = build_dataset(kind, DATA / kind, SPLITS[kind][1])
    scores = tool("train_demo").score(detector, dataset)
    assert scores["map50"] >= 80


def test_classifier_accuracy() -> None:
    classifier = build_classifier(Model("vgg_demo"))
    dataset = build_dataset("folders", DATA / "cls", "test")
    logits = {}
    with torch.inference_mode():
        inputs = torch.stack([classifier.preprocess(dataset[i].image)[0] for i in range(len(dataset))])
        for id, row in zip(dataset.ids, classifier.decode(classifier.net(inputs), [None] * len(dataset)), strict=True):
            logits[id] = row
    assert evaluate(dataset, logits, classifier.classes)["top1"] >= 90


@pytest.mark.parametrize("name", NETWORKS)
def test_converter_takes_the_network(name: str) -> None:
    graph = trace(build_detector(Model(name)).net, torch.rand(2, 3, 160, 160))
    assert len(graph.sites) >= 12
    assert {facts(site).activation.name for site in graph.sites} == {"relu"}


@pytest.mark.parametrize("name", NETWORKS)
def test_other_sizes_work(name: str) -> None:
    detector = build_detector(Model(name, size=192))
    image, geometry = detector.preprocess(torch.zeros(3, 100, 120, dtype=torch.uint8))
    with torch.inference_mode():
        (found,) = detector.decode(detector.net(image[None]), [geometry])
    assert found.boxes.shape[1] == 4
    with pytest.raises(InputError, match="multiples of 16"):
        build_detector(Model(name, size=100))


def test_names_by_vocabulary(tmp_path: Path) -> None:
    assert build_detector(Model("yolo_demo")).classes == VOC_CLASSES
    assert build_detector(Model("ssd_demo", names="coco")).classes[-1] == "tv"
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="2 names"):
        build_detector(Model("yolo_demo", names=str(tmp_path / "names.txt")))


# ---------------------------------------------------------------------------------------------------- training


def objects_of(*images: list[tuple]) -> Objects:
    """Images as lists of (x1, y1, x2, y2, label, ignore)."""
    rows = [torch.tensor(image, dtype=torch.float32).reshape(-1, 6) for image in images]
    return pad_objects([r[:, :4] for r in rows], [r[:, 4].long() for r in rows], [r[:, 5].bool() for r in rows])


OBJECTS = objects_of(
    [(10, 12, 50, 40, 3, 0), (70, 60, 150, 140, 7, 0), (20, 100, 42, 131, 19, 0)],
    [(100, 10, 128, 60, 0, 0), (5, 5, 60, 60, 4, 1)],
    [],
)


@pytest.mark.parametrize("name", NETWORKS)
def test_least_loss_decodes_to_the_objects(name: str) -> None:
    """With the outputs themselves as parameters, the loss leads to outputs that ``decode`` reads as the objects."""
    detector = build_detector(Model(name))
    _, geometry = detector.preprocess(torch.zeros(3, 160, 160, dtype=torch.uint8))
    with torch.no_grad():
        outputs = detector.net(torch.zeros(3, 3, 160, 160))
    flat, spec = torch.utils._pytree.tree_flatten(outputs)
    parameters = [torch.zeros_like(output).requires_grad_() for output in flat]
    optimiser = torch.optim.Adam(parameters, 0.2)
    for _ in range(150):
        optimiser.zero_grad()
        LOSSES[name](detector, torch.utils._pytree.tree_unflatten(parameters, spec), OBJECTS).backward()
        optimiser.step()
    with torch.no_grad():
        found = detector.decode(torch.utils._pytree.tree_unflatten(parameters, spec), [geometry] * 3)
    for image, detections in enumerate(found):
        wanted = OBJECTS.wanted[image]
        sure = detections.scores > 0.5
        overlap = box_iou(detections.boxes[sure], OBJECTS.boxes[image][wanted])
        assert sure.sum() == wanted.sum()
        if wanted.any():
            assert (overlap.amax(1) > 0.9).all()
            assert torch.equal(detections.labels[sure], OBJECTS.labels[image][wanted][overlap.argmax(1)])


def test_every_object_gets_a_prior_and_ignored_ones_none() -> None:
    centre, extent = (demo.ssd_priors(160)[:, [1, 0, 3, 2]] * 160).split(2, 1)
    number, given = match_priors(torch.cat((centre - extent / 2, centre + extent / 2), 1), OBJECTS)
    assert set(number[0][given[0]].tolist()) == {0, 1, 2}
    assert set(number[1][given[1]].tolist()) == {0}
    assert not given[2].any()


def test_mirror() -> None:
    images = torch.rand(3, 3, 8, 160)
    chosen = torch.tensor([True, False, True])
    once, objects = mirror(images, OBJECTS, chosen)
    assert torch.equal(once[0], images[0].flip(-1))
    assert objects.boxes[0, 0].tolist() == [110, 12, 150, 40]
    twice, back = mirror(once, objects, chosen)
    assert torch.equal(twice, images)
    assert torch.equal(back.boxes, OBJECTS.boxes)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_lowers_the_loss_and_repeats_to_the_bit(name: str) -> None:
    images = torch.rand(8, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    objects = objects_of(*[[(10 * i + 5, 20, 10 * i + 45, 70, i, 0)] for i in range(8)])
    untrained = tool("train_demo").untrained
    runs = []
    for _ in range(2):
        detector = untrained(name.removesuffix("_demo"))
        batches = scene_batches(images, objects, 4, seed=1, steps=12)
        losses = fit(detector.net, batches, lambda out, target, d=detector: LOSSES[name](d, out, target), 12, 3e-3)
        runs.append((losses, detector.net.state_dict()))
    assert np.mean(runs[0][0][-3:]) < 0.7 * np.mean(runs[0][0][:3])
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][key], runs[1][1][key]) for key in runs[0][1])
