"""Evaluators against their references, and the properties that any average precision has."""

import contextlib
import importlib.util
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.roots import voc_xml, write_image

from msat_det.base.errors import InputError
from msat_det.data import VOC_CLASSES, CocoDetection, Dataset, ImageFiles, VocDetection, build_dataset, select, subset
from msat_det.measure.accuracy import (
    AgreementEvaluator,
    CocoEvaluator,
    Difference,
    Resampling,
    TopKEvaluator,
    VocEvaluator,
    evaluate,
    has_boxes,
    make_evaluator,
    topk,
)
from msat_det.measure.accuracy.detections import Found, flatten, match_classes
from msat_det.measure.accuracy.voc import THRESHOLDS, Truth, average_precision, best_overlap, voc_ap, voc_map_of_draws
from msat_det.models.detector import Detections

few = settings(max_examples=80, deadline=None)


def perfect(dataset: Dataset) -> dict:
    targets = {id: dataset.target(id) for id in dataset.ids}
    return {id: Detections(t.boxes, torch.ones(len(t.labels)), t.labels) for id, t in targets.items()}


def perturbed(dataset: Dataset, seed: int, copies: int = 3) -> dict:
    """Ground truth, repeated, moved by noise, one class in ten wrong, scores at random, some of them equal."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for id in dataset.ids:
        target = dataset.target(id)
        boxes = target.boxes.repeat(copies, 1)
        boxes += 6 * torch.randn(boxes.shape, generator=generator)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = target.labels.repeat(copies)
        wrong = torch.rand(labels.shape, generator=generator) < 0.1
        labels[wrong] = torch.randint(len(dataset.classes), (int(wrong.sum()),), generator=generator)
        scores = (torch.rand(labels.shape, generator=generator) * 50).round() / 50
        result[id] = Detections(boxes, scores, labels)
    return result


# ---- COCO against pycocotools


@pytest.fixture(scope="module")
def coco_val(shared_data: Path) -> CocoDetection:
    return build_dataset("coco", shared_data / "coco_val128")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("names", "limit"), [(None, None), (["person", "cat", "couch"], 40)])
def test_coco_equals_pycocotools_on_the_files(shared_data, coco_val, seed, names, limit) -> None:
    dataset = subset(coco_val, limit, seed)
    found = perturbed(dataset, seed)
    path = shared_data / "coco_val128/annotations/instances_val2017.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        results = [
            {"image_id": id, "category_id": dataset.category_ids[label], "score": score, "bbox": [x, y, x2 - x, y2 - y]}
            for id, one in found.items()
            for (x, y, x2, y2), score, label in zip(one.boxes.tolist(), one.scores.tolist(), one.labels, strict=True)
        ]
        run = COCOeval(truth, truth.loadRes(results), "bbox")
        run.params.imgIds = dataset.ids
        if names:
            run.params.catIds = [dataset.category_ids[dataset.classes.index(name)] for name in names]
        run.evaluate()
        run.accumulate()
        run.summarize()
    if names:
        known = {dataset.classes.index(name): number for number, name in enumerate(names)}
        found = {id: renamed(one, known) for id, one in found.items()}
    expected = {"map": run.stats[0] * 100, "map50": run.stats[1] * 100}
    assert CocoEvaluator(dataset, names or dataset.classes, "pycocotools")(found) == expected
    assert evaluate(dataset, found, names or dataset.classes) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_hotcoco_equals_pycocotools_on_real_annotations(coco_val, seed) -> None:
    pytest.importorskip("hotcoco", reason="hotcoco is not installed: pip install msat-det[fast]")
    found = perturbed(coco_val, seed, copies=8)
    some = dict(list(found.items())[::3])  # nothing is found on the other images
    engines = [CocoEvaluator(coco_val, coco_val.classes, engine) for engine in ("hotcoco", "pycocotools")]
    for detections in (found, some):
        fast, reference = (evaluator(detections) for evaluator in engines)
        assert 0 < reference["map"] < 100
        assert fast == pytest.approx(reference, abs=1e-6)


@few
@given(st.integers(0, 10**6), st.integers(0, 120), st.booleans())
def test_hotcoco_equals_pycocotools_on_ties_and_crowds(seed, count, crowd) -> None:
    """Boxes on a coarse grid with few scores: equal scores, equal overlaps, overlaps at a threshold, empty boxes."""
    pytest.importorskip("hotcoco", reason="hotcoco is not installed: pip install msat-det[fast]")
    rng = np.random.default_rng(seed)

    def boxes(number: int) -> np.ndarray:
        return np.hstack([rng.integers(0, 4, (number, 2)), rng.integers(0, 4, (number, 2))]) * 8.0

    truth = [np.maximum(boxes(5), [0, 0, 8, 8]) for _ in range(3)]
    annotations = {
        id: [
            {"category_id": 7 - i % 2, "bbox": box.tolist(), "area": box[2] * box[3], "iscrowd": int(crowd and i == 2)}
            for i, box in enumerate(found)
        ]
        for id, found in enumerate(truth)
    }
    dataset = SimpleNamespace(ids=[2, 0, 1], classes=["a", "b"], category_ids=[6, 7], annotations=annotations)
    found = {}
    for id in (0, 2):
        corners = torch.tensor(boxes(count))
        corners[:, 2:] += corners[:, :2]
        scores = torch.tensor(rng.integers(1, 4, count) / 4)
        found[id] = Detections(corners, scores, torch.tensor(rng.integers(0, 2, count)))
    fast, reference = (CocoEvaluator(dataset, ["a", "b"], engine)(found) for engine in ("hotcoco", "pycocotools"))
    assert fast == pytest.approx(reference, abs=1e-6)


def test_ids_may_be_any_whole_numbers() -> None:
    """pycocotools takes 0 and negative ones; hotcoco refuses these."""
    category_ids, ids = [-3, 0, 2**60], [-5, 0, 2**61]
    annotations = {
        id: [{"category_id": c, "bbox": [8 * i, 0, 8, 8], "area": 64, "iscrowd": 0} for i, c in enumerate(category_ids)]
        for id in ids
    }
    dataset = SimpleNamespace(ids=ids, classes=["a", "b", "c"], category_ids=category_ids, annotations=annotations)
    boxes = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8]])
    scores, labels = torch.tensor([0.9, 0.9, 0.5]), torch.tensor([0, 1, 1])  # the last one is wrong
    found = {id: Detections(boxes, scores, labels) for id in ids}
    for engine in ("pycocotools", "hotcoco"):
        if importlib.util.find_spec(engine):
            score = CocoEvaluator(dataset, ["a", "b", "c"], engine)(found)
            assert score == pytest.approx({"map": 200 / 3, "map50": 200 / 3})


def renamed(one: Detections, known: dict[int, int]) -> Detections:
    """The detections of known labels, under their new numbers."""
    keep = torch.tensor([label in known for label in one.labels.tolist()], dtype=torch.bool)
    labels = torch.tensor([known[label] for label in one.labels[keep].tolist()], dtype=torch.int64)
    return Detections(one.boxes[keep], one.scores[keep], labels)


def test_an_evaluator_keeps_nothing_between_calls(coco_root: Path, voc_root: Path, capfd) -> None:
    for dataset in (CocoDetection(coco_root), VocDetection(voc_root)):
        evaluator = make_evaluator(dataset, dataset.classes)
        first = evaluator(perturbed(dataset, 0))
        evaluator(perturbed(dataset, 1))
        assert evaluator(perturbed(dataset, 0)) == first
    assert capfd.readouterr() == ("", "")


# ---- VOC against a reference evaluator's printed figures


def test_voc_golden(shared_data: Path) -> None:
    home = shared_data / "voc_ap_golden"
    expected = json.loads((home / "expected.json").read_text())
    names = sorted(expected["AP_percent"])
    truth, found = [], []
    for number, path in enumerate(sorted((home / "ground-truth").iterdir())):
        for name, *rest in map(str.split, path.read_text().splitlines()):
            truth.append([number, names.index(name), *edges(rest[:4]), rest[4:] == ["difficult"]])
        for name, *rest in map(str.split, (home / "detection-results" / path.name).read_text().splitlines()):
            if name in names:
                found.append([number, names.index(name), float(rest[0]), *edges(rest[1:])])
    truth, found = np.array(truth), np.array(found)
    ap = voc_ap(
        Truth(truth[:, 0].astype(int), truth[:, 1].astype(int), truth[:, 2:6], truth[:, 6] > 0),
        Found(found[:, 0].astype(int), found[:, 1].astype(int), found[:, 3:], found[:, 2]),
        list(range(len(names))),
        np.array([expected["iou"]]),
    )[0]
    np.testing.assert_allclose(ap * 100, [expected["AP_percent"][name] for name in names], atol=0.01)
    assert ap.mean() * 100 == pytest.approx(expected["mAP_percent"], abs=0.01)


def edges(pixels: list[str]) -> list[float]:
    """Continuous edges of a box of VOC's pixels, the last of which belongs to it."""
    left, top, right, bottom = map(float, pixels)
    return [left - 1, top - 1, right, bottom]


def slow_voc_ap(truth: Truth, found: Found, label: int, threshold: float) -> float:
    """The definition, one box after the other."""
    order = sorted(np.flatnonzero(found.label == label), key=lambda i: -found.scores[i])
    positives = ((truth.label == label) & ~truth.difficult).sum()
    used, right = set(), []
    for i in order:
        best, which = -1.0, -1
        for j in np.flatnonzero((truth.label == label) & (truth.image == found.image[i])):
            a, b = found.boxes[i], truth.boxes[j]
            w, h = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
            common = max(w, 0) * max(h, 0)
            union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - common
            if common / union > best:
                best, which = common / union, j
        if best >= threshold and truth.difficult[which]:
            continue
        right.append(best >= threshold and which not in used)
        if best >= threshold:
            used.add(which)
    precision = [sum(right[: n + 1]) / (n + 1) for n in range(len(right))]
    return sum(max(precision[n:]) for n in range(len(right)) if right[n]) / positives if positives else float("nan")


@st.composite
def scenes(draw: st.DrawFn, integer_scores: bool = False) -> tuple[Truth, Found]:
    """A few images and classes, with boxes on a coarse grid, so that overlaps, ties and doubles are common."""

    def arrays(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        small = st.lists(st.integers(0, 2), min_size=count, max_size=count)
        corner = draw(st.lists(st.tuples(*[st.integers(0, 3)] * 2), min_size=count, max_size=count))
        size = draw(st.lists(st.tuples(*[st.integers(2, 5)] * 2), min_size=count, max_size=count))
        corner, size = (np.array(x, dtype=float).reshape(-1, 2) * 2 for x in (corner, size))
        image, label = np.array(draw(small), dtype=np.int64), np.array(draw(small), dtype=np.int64)
        return image, label, np.hstack([corner, corner + size])

    objects, boxes = draw(st.integers(0, 8)), draw(st.integers(0, 14))
    difficult = draw(st.lists(st.booleans(), min_size=objects, max_size=objects))
    scores = draw(st.lists(st.integers(0, 4), min_size=boxes, max_size=boxes))
    return Truth(*arrays(objects), np.array(difficult, dtype=bool)), Found(
        *arrays(boxes), np.array(scores, dtype=float)
    )


@few
@given(scene=scenes())
def test_voc_ap_equals_its_definition(scene: tuple[Truth, Found]) -> None:
    truth, found = scene
    expected = [[slow_voc_ap(truth, found, label, t) for label in range(3)] for t in THRESHOLDS]
    np.testing.assert_allclose(voc_ap(truth, found, [0, 1, 2], THRESHOLDS), expected)


@few
@given(scene=scenes(), eleven=st.booleans(), more=st.integers(1, 5), seed=st.integers(0, 99))
def test_voc_ap_properties(scene: tuple[Truth, Found], eleven: bool, more: int, seed: int) -> None:
    truth, found = scene
    labels = [int(x) for x in np.unique(truth.label[~truth.difficult])]
    ap = voc_ap(truth, found, labels, THRESHOLDS, eleven)
    assert ((ap >= 0) & (ap <= 1)).all()
    # boxes of wrong places at the end of the list cost nothing that was earned before, and earn nothing
    far = Found(*(np.repeat(x[:1], more, 0) for x in (found.image, found.label, found.boxes + 1e4, found.scores - 1e4)))
    if len(found.scores):
        both = Found(*(np.concatenate(pair) for pair in zip(columns(found), columns(far), strict=True)))
        np.testing.assert_allclose(voc_ap(truth, both, labels, THRESHOLDS, eleven), ap)
        # the same at the head of the list can only cost
        head = Found(far.image, far.label, far.boxes, far.scores + 2e4)
        both = Found(*(np.concatenate(pair) for pair in zip(columns(head), columns(found), strict=True)))
        assert (voc_ap(truth, both, labels, THRESHOLDS, eleven) <= ap + 1e-12).all()
    # the order of images and boxes doesn't matter where scores differ
    distinct = Found(
        found.image, found.label, found.boxes, np.random.default_rng(seed).permutation(len(found.scores)) * 1.0
    )
    order = np.random.default_rng(seed + 1).permutation(len(found.scores))
    shuffled = Found(*(x[order] for x in columns(distinct)))
    moved = Truth((truth.image + 1) % 3, truth.label, truth.boxes, truth.difficult)
    shuffled = Found((shuffled.image + 1) % 3, shuffled.label, shuffled.boxes, shuffled.scores)
    np.testing.assert_allclose(
        voc_ap(moved, shuffled, labels, THRESHOLDS, eleven), voc_ap(truth, distinct, labels, THRESHOLDS, eleven)
    )


def columns(found: Found) -> tuple[np.ndarray, ...]:
    return found.image, found.label, found.boxes, found.scores


@few
@given(right=st.lists(st.booleans(), max_size=30), missed=st.integers(0, 9))
def test_average_precision_bounds(right: list[bool], missed: int) -> None:
    positives = sum(right) + missed
    if not positives:
        return
    area, points = (average_precision(np.array(right, dtype=bool), positives, eleven) for eleven in (False, True))
    recall = sum(right) / positives
    assert 0 <= area <= recall + 1e-12
    assert (area == 1) == (points == 1) == (missed == 0 and all(right[: sum(right)]))
    assert average_precision(np.array([*right, False], dtype=bool), positives) == pytest.approx(area)


def test_eleven_points_by_hand() -> None:
    # precision 1 up to recall .3 (exactly: three of ten), then 4/8 up to .4
    right = np.array([1, 1, 1, 0, 0, 0, 0, 1], dtype=bool)
    assert average_precision(right, 10, eleven_point=True) == pytest.approx((4 * 1 + 0.5) / 11)
    assert average_precision(right, 10) == pytest.approx(0.3 + 0.1 * 0.5)


def test_overlap_of_continuous_edges() -> None:
    truth = Truth(np.array([0]), np.array([0]), np.array([[0.0, 0, 10, 10]]), np.array([False]))
    found = Found(np.array([0, 1]), np.array([0, 0]), np.array([[0.0, 0, 10, 5]] * 2), np.array([1.0, 1.0]))
    overlap, _ = best_overlap(truth, found)
    assert overlap.tolist() == [0.5, 0]  # 50 of 100 pixels; nothing on another image


def test_boxes_without_area_overlap_nothing() -> None:
    truth = Truth(np.array([0]), np.array([0]), np.array([[3.0, 3, 3, 9]]), np.array([False]))
    found = Found(np.array([0]), np.array([0]), np.array([[3.0, 3, 3, 9]]), np.array([1.0]))
    assert best_overlap(truth, found)[0].tolist() == [0]


@few
@given(st.lists(st.tuples(*[st.integers(1, 30)] * 4), min_size=2, max_size=2))
def test_edges_give_the_overlap_of_vocs_pixels(pairs: list[tuple]) -> None:
    """Of every two boxes of whole pixels, counted one by one."""
    pixels = [(min(x, z), min(y, w), max(x, z), max(y, w)) for x, y, z, w in pairs]
    inside = [{(i, j) for i in range(a, c + 1) for j in range(b, d + 1)} for a, b, c, d in pixels]
    boxes = np.array([edges(box) for box in pixels])
    overlap, _ = best_overlap(
        Truth(np.array([0]), np.array([0]), boxes[:1], np.array([False])),
        Found(np.array([0]), np.array([0]), boxes[1:], np.array([1.0])),
    )
    assert overlap[0] == pytest.approx(len(inside[0] & inside[1]) / len(inside[0] | inside[1]))


def test_difficult_objects_neither_cost_nor_earn(voc_root: Path) -> None:
    dataset = VocDetection(voc_root)
    everything = perfect(dataset)
    without = {
        id: Detections(*(x[~dataset.target(id).ignore] for x in (one.boxes, one.scores, one.labels)))
        for id, one in everything.items()
    }
    evaluator = VocEvaluator(dataset, VOC_CLASSES)
    assert evaluator(everything) == evaluator(without)
    assert evaluator(without)["map"] == 100
    assert set(evaluator({})["ap50"]) == {"dog", "person", "tvmonitor"}


# ---- both detection evaluators


@pytest.fixture(params=["voc", "coco", "yolo"])
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return build_dataset(request.param, request.getfixturevalue(f"{request.param}_root"))


def test_perfect_and_empty(dataset: Dataset) -> None:
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    evaluator = make_evaluator(dataset, dataset.classes)
    full = evaluator(perfect(dataset))
    assert (full["map"], full["map50"]) == (pytest.approx(100), pytest.approx(100))
    for empty in ({}, {dataset.ids[0]: nothing}, dict.fromkeys(dataset.ids, nothing)):
        scores = evaluator(empty)
        assert (scores["map"], scores["map50"]) == (0, 0)


EDGES = [  # of an image of 61 x 47: all of it, its corner pixels, thin boxes at its edges, one of two halves of pixels
    *([0, 0, 61, 47], [0, 0, 1, 1], [60, 46, 61, 47], [0, 3.25, 0.5, 40], [5, 46.5, 60.5, 47], [7.5, 8.5, 8.5, 9.5]),
]


def write_all_kinds(root: Path, scenes: list[list[list[float]]]) -> None:
    """Continuous boxes, of a dog and a person in turn, as VOC, COCO and YOLO write them; 61 x 47 pixels a scene."""
    home = root / "VOCdevkit/VOC2007"
    content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "dog"}, {"id": 9, "name": "person"}]}
    for folder in ("VOCdevkit/VOC2007/ImageSets/Main", "VOCdevkit/VOC2007/Annotations", "labels"):
        (root / folder).mkdir(parents=True)
    for i, boxes in enumerate(scenes):
        for name in (f"VOCdevkit/VOC2007/JPEGImages/{i}.jpg", f"images/{i}.jpg"):
            write_image(root / name, i, (61, 47))
        content["images"].append({"id": i, "file_name": f"{i}.jpg", "width": 61, "height": 47})
        objects, lines = [], []
        for k, (x1, y1, x2, y2) in enumerate(boxes):
            objects.append((["dog", "person"][k % 2], x1 + 1, y1 + 1, x2, y2, False))
            lines.append(f"{k % 2} {(x1 + x2) / 122} {(y1 + y2) / 94} {(x2 - x1) / 61} {(y2 - y1) / 47}\n")
            entry = {"image_id": i, "category_id": [3, 9][k % 2], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            content["annotations"].append(entry)
        (home / f"Annotations/{i}.xml").write_text(voc_xml(objects))
        (root / f"labels/{i}.txt").write_text("".join(lines))
    (home / "ImageSets/Main/test.txt").write_text("".join(f"{i}\n" for i in range(len(scenes))))
    (root / "all.json").write_text(json.dumps(content))
    (root / "data.yaml").write_text("val: images\nnames: [dog, person]\n")


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo"])
def test_continuous_boxes_score_exactly_100_in_every_kind(kind: str, tmp_path: Path) -> None:
    """What a detector gives, continuous edges from 0, is what each file says, to the last edge of the image."""
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, [61, 47], (40, 2, 2))
    drawn = np.concatenate([corners.min(1), np.minimum(corners.max(1) + 0.2, [61, 47])], 1).tolist()
    scenes = [EDGES, *(drawn[i : i + 5] for i in range(0, 40, 5))]
    write_all_kinds(tmp_path, scenes)
    dataset = build_dataset(kind, tmp_path)
    labels = [torch.arange(len(boxes)) % 2 for boxes in scenes]
    found = {
        id: Detections(torch.tensor(boxes), torch.linspace(1, 0.5, len(boxes)), label)
        for id, boxes, label in zip(dataset.ids, scenes, labels, strict=True)
    }
    for id, one in found.items():
        assert torch.allclose(dataset.target(id).boxes, one.boxes, atol=1e-4)
    evaluators = [make_evaluator(dataset, ["dog", "person"])]
    if kind != "voc":
        evaluators.append(CocoEvaluator(dataset, ["dog", "person"], "pycocotools"))
    for evaluator in evaluators:
        scores = evaluator(found)
        assert (scores["map"], scores["map50"]) == (100, 100)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), data=st.data())
def test_order_and_false_positives(shared_data: Path, seed: int, data: st.DataObject) -> None:
    for kind, folder in (("voc", "voc_classes_of_coco"), ("coco", "coco_val128")):
        dataset = subset(build_dataset(kind, shared_data / folder), 6, seed)
        found = perturbed(dataset, seed)
        scores = evaluate(dataset, found, dataset.classes)
        order = data.draw(st.permutations(dataset.ids))
        again = evaluate(select(dataset, order), {id: found[id] for id in reversed(order)}, dataset.classes)
        assert again == scores
        worse = {
            id: Detections(
                torch.cat([one.boxes, one.boxes + 5000]),
                torch.cat([one.scores, one.scores * 0 - 1]),
                torch.cat([one.labels, one.labels]),
            )
            for id, one in found.items()
        }
        assert evaluate(dataset, worse, dataset.classes)["map"] <= scores["map"] + 1e-9


def test_a_subset_of_classes_under_the_other_name(coco_root: Path, voc_root: Path) -> None:
    coco, voc = CocoDetection(coco_root), VocDetection(voc_root)
    for dataset, names in ((coco, ["dog", "tvmonitor"]), (voc, ["dog", "tv"])):
        known = {dataset.classes.index("dog"): 0, dataset.classes.index("tv" if dataset is coco else "tvmonitor"): 1}
        found = {id: renamed(one, known) for id, one in perfect(dataset).items()}
        assert evaluate(dataset, found, names)["map"] == pytest.approx(100)  # missing persons don't count


def test_a_detector_that_knows_more_than_the_dataset(coco_root: Path) -> None:
    dataset = CocoDetection(coco_root)
    classes = ["zebra", *dataset.classes]
    found = {id: Detections(one.boxes, one.scores, one.labels + 1) for id, one in perfect(dataset).items()}
    zebra = Detections(torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    assert CocoEvaluator(dataset, classes)(found | {30: zebra})["map"] == pytest.approx(100)


def test_match_classes() -> None:
    assert match_classes(["tv", "dog"], ["dog", "cat", "tvmonitor"]).tolist() == [2, 0]
    assert match_classes(["zebra", "cat", "dog"], ["dog", "cat"]).tolist() == [-1, 1, 0]
    # two classes are two, where both spellings are there
    assert match_classes(["couch", "sofa"], ["sofa", "dog", "couch"]).tolist() == [2, 0]
    assert match_classes(["sofa"], ["sofa", "couch"]).tolist() == [0]
    assert match_classes(["couch", "sofa"], ["sofa"]).tolist() == [-1, 0]
    with pytest.raises(InputError, match="dgo"):
        match_classes(["cat", "dgo"], ["dog", "cat"])


def test_bad_detections(dataset: Dataset) -> None:
    evaluator = make_evaluator(dataset, dataset.classes)
    box, score, label = torch.tensor([[1.0, 1, 5, 5]]), torch.ones(1), torch.zeros(1, dtype=torch.int64)
    id = dataset.ids[1]
    cases = {
        "finite": {id: Detections(box * float("nan"), score, label)},
        "not finite": {id: Detections(box, score * float("inf"), label)},
        "label": {id: Detections(box, score, label + len(dataset.classes))},
        "outside": {id: Detections(box, score, label - 1)},
        "'nope'": {"nope": Detections(box, score, label)},
        "shapes": {id: Detections(box[0], score, label)},
    }
    for part, found in cases.items():
        with pytest.raises(InputError, match=part):
            evaluator(found)
    # turned inside out, a box is just wrong
    assert evaluator({id: Detections(box.flip(1), score, label)})["map"] == 0


def test_nothing_to_find(dataset: Dataset) -> None:
    with pytest.raises(InputError, match="no object"):
        make_evaluator(select(dataset, [dataset.ids[2]]), dataset.classes)
    with pytest.raises(InputError, match="no object"):
        make_evaluator(select(dataset, [dataset.ids[3]]), ["person"])


# ---- classification


def test_topk() -> None:
    logits = torch.arange(7.0).repeat(4, 1)  # best class 6, then 5, …
    assert topk(logits, torch.tensor([6, 5, 2, 1])) == {"top1": 25, "top5": 75}
    assert topk(logits[:, :3], torch.tensor([2, 1, 0, 0])) == {"top1": 25, "top5": 100}
    assert topk(torch.zeros(4, 7), torch.tensor([0, 1, 2, 6])) == {"top1": 0, "top5": 0}
    with pytest.raises(InputError, match="NaN"):
        topk(logits * float("nan"), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InputError, match="at least one"):
        topk(logits[:0], torch.zeros(0, dtype=torch.int64))


def test_topk_evaluator(shared_data: Path) -> None:
    dataset = subset(build_dataset("cifar100", shared_data / "cifar100_subset"), 20, seed=0)
    evaluator = make_evaluator(dataset, dataset.classes)
    logits = {id: torch.nn.functional.one_hot(torch.tensor(dataset.target(id)), 100).float() for id in dataset.ids}
    assert evaluator(logits) == {"top1": 100, "top5": 100}
    with pytest.raises(InputError, match="19 images of 20"):
        evaluator({id: logits[id] for id in dataset.ids[1:]})
    with pytest.raises(InputError, match="shape"):
        evaluator({id: row[:9] for id, row in logits.items()})
    with pytest.raises(InputError, match="10 classes"):
        make_evaluator(dataset, dataset.classes[:10])


def test_class_names_tell_which_logit_is_which_label(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cat"):
        write_image(tmp_path / f"val/{name}/1.jpg")
    dataset = build_dataset("folders", tmp_path, "val")
    names = ["cat", "ant", "bee"]  # in the order in which the network was trained, not sorted
    logits = {id: torch.tensor([float(name == id.split("/")[0]) for name in names]) for id in dataset.ids}
    assert evaluate(dataset, logits, names)["top1"] == 100
    assert evaluate(dataset, logits, ["n1", "n2", "n3"])["top1"] == 0  # names that say nothing: by index
    assert make_evaluator(dataset, names).difference(logits, logits, Resampling()).value == 0


def test_numbers_are_no_names(tmp_path: Path) -> None:
    """A classifier without names calls its classes so; torchvision's ImageFolder, on which it was trained, sorts 10
    before 2."""
    for name in range(11):
        write_image(tmp_path / f"val/{name}/1.jpg")
    dataset = build_dataset("folders", tmp_path, "val")
    assert dataset.classes[:4] == ["0", "1", "10", "2"]
    logits = {id: torch.nn.functional.one_hot(torch.tensor(dataset.target(id)), 11).float() for id in dataset.ids}
    assert evaluate(dataset, logits, [str(i) for i in range(11)])["top1"] == 100


def test_images_without_labels_have_no_evaluator(coco_root: Path) -> None:
    with pytest.raises(InputError, match="no labels"):
        make_evaluator(ImageFiles(coco_root), [])


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_judged_at_half_overlap(kind: str, voc_root: Path, coco_root: Path) -> None:
    """A hit, one on an ignored object (left out), a miss, and a class that is not evaluated there."""
    dataset = VocDetection(voc_root) if kind == "voc" else CocoDetection(coco_root)
    images = [dataset.ids[number] for number in (0, 1, 2)]
    boxes = ([5, 8, 30, 40], [30, 10, 60, 44], [5, 8, 30, 40])
    found = {
        id: Detections(torch.tensor([box, box]).float(), torch.tensor([score, 0.1]), torch.tensor([0, 1]))
        for id, box, score in zip(images, boxes, (0.5, 0.9, 0.7), strict=True)
    }
    scores, right, positives = VocEvaluator(dataset, ["dog", "bottle" if kind == "voc" else "tv"]).judged(found)
    of_dogs = scores > 0.2
    assert scores[of_dogs].tolist() == pytest.approx([0.7, 0.5])
    assert right[of_dogs].tolist() == [False, True]
    assert not right[~of_dogs].any()
    assert positives == (3 if kind == "voc" else 4)


def test_boxes_in_a_crowd_are_left_out(coco_root: Path, voc_root: Path) -> None:
    """By the share that lies in it, as pycocotools has it; an object that is found in the crowd counts."""
    boxes = torch.tensor(
        [[32.0, 12, 40, 20], [1, 1, 24, 24], [55, 12, 63, 20], [0, 30, 8, 38]]
    )  # 1: in (29, 9, 60, 44)
    one = Detections(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4, dtype=torch.int64))
    scores, right, _ = VocEvaluator(CocoDetection(coco_root), ["dog"]).judged({20: one})
    assert scores.tolist() == pytest.approx([0.8, 0.6])
    assert right.tolist() == [True, False]
    scores, right, _ = VocEvaluator(VocDetection(voc_root), ["dog"]).judged({"000002": one})
    assert right.tolist() == [False, True, False, False]  # VOC's difficult is an object like others


def drawn_again(dataset: Dataset, found: dict, counts: torch.Tensor) -> tuple[Dataset, dict]:
    """The data set and detections in which every image is there as often as ``counts`` says."""
    ids = [(id, k) for id, count in zip(sorted(dataset.ids), counts.tolist(), strict=True) for k in range(count)]
    return (
        SimpleNamespace(
            ids=list(range(len(ids))),
            classes=dataset.classes,
            category_ids=getattr(dataset, "category_ids", None),
            annotations={i: getattr(dataset, "annotations", {}).get(id) for i, (id, _) in enumerate(ids)},
            target=lambda i: dataset.target(ids[i][0]),
        ),
        {i: found[id] for i, (id, _) in enumerate(ids)},
    )


def test_voc_draws_equal_the_evaluator_on_drawn_images(voc_root: Path) -> None:
    """Equal scores of two images may stand in either order: the noise leaves few of them, and no tie is kept."""
    dataset = VocDetection(voc_root, "test")
    found = perturbed(dataset, 3)
    generator = torch.Generator().manual_seed(0)
    for detections in found.values():
        detections.scores.copy_(torch.rand(len(detections.scores), generator=generator))
    evaluator = VocEvaluator(dataset, dataset.classes)
    counts = Resampling(8).counts(len(dataset))
    assert (counts.sum(1) == len(dataset)).all()
    flat = flatten(found, evaluator.ids, evaluator.matched)
    drawn = voc_map_of_draws(evaluator.truth, flat, evaluator.labels, counts.numpy())
    for row, value in zip(counts, drawn, strict=True):
        again, detections = drawn_again(dataset, found, row)
        assert value == pytest.approx(VocEvaluator(again, dataset.classes)(detections)["map"], abs=1e-9)


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_the_difference_of_two_detectors(kind: str, shared_data: Path, coco_val: CocoDetection) -> None:
    """Its value is that of the two mAPs; it is nothing against itself; the interval holds it and is about as wide as
    the spread of differences on images drawn by hand."""
    pytest.importorskip("hotcoco", reason="hotcoco is not installed: pip install msat-det[fast]")
    dataset = coco_val if kind == "coco" else VocDetection(shared_data / "voc_classes_of_coco", "test")
    ours, theirs = halved(perturbed(dataset, 4)), perturbed(dataset, 4)
    evaluator = make_evaluator(dataset, dataset.classes)
    found = evaluator.difference(ours, theirs, Resampling(400))
    assert found.value == pytest.approx(evaluator(ours)["map"] - evaluator(theirs)["map"], abs=1e-6)
    assert found.low < found.value < found.high
    assert evaluator.difference(ours, ours, Resampling(50)) == Difference(0.0, 0.0, 0.0)
    differences = []
    for row in Resampling(60, seed=7).counts(len(dataset)):
        maps = [evaluate_again(*drawn_again(dataset, each, row), kind) for each in (ours, theirs)]
        differences.append(maps[0] - maps[1])
    low, high = Resampling().interval(torch.tensor(differences))
    assert found.high - found.low == pytest.approx(high - low, rel=0.35)


def halved(found: dict) -> dict:
    """Without every other detection."""
    return {id: Detections(d.boxes[::2], d.scores[::2], d.labels[::2]) for id, d in found.items()}


def evaluate_again(dataset: Dataset, found: dict, kind: str) -> float:
    return {"voc": VocEvaluator, "coco": CocoEvaluator}[kind](dataset, dataset.classes)(found)["map"]


def test_the_difference_of_two_classifiers(shared_data: Path) -> None:
    dataset = subset(build_dataset("folders", shared_data / "cifar100_subset", "test"), 200, 0)
    labels = torch.tensor([dataset.target(id) for id in dataset.ids])
    truth = torch.nn.functional.one_hot(labels, 100).float()
    worse = truth.clone()
    worse[::4] = 0.0  # a quarter of the images is wrong
    ours, theirs = (dict(zip(dataset.ids, rows, strict=True)) for rows in (truth, worse))
    found = TopKEvaluator(dataset, dataset.classes).difference(ours, theirs, Resampling(4000))
    assert found.value == 25.0
    half = 1.645 * 100 * (0.25 * 0.75 / 200) ** 0.5  # the normal approximation of a binomial's 90 % interval
    assert (found.low, found.high) == pytest.approx((25 - half, 25 + half), abs=0.6)


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_agreement_with_the_float_network(kind: str, voc_root: Path, coco_root: Path) -> None:
    """100 for its own boxes, less for others, nothing for none; boxes below the score are no truth."""
    dataset = VocDetection(voc_root, "test") if kind == "voc" else CocoDetection(coco_root)
    level = perturbed(dataset, 3)
    agreement = AgreementEvaluator(level, dataset.classes)
    assert agreement(level) == pytest.approx({"agreement": 100})
    sure = {id: masked(d, d.scores >= 0.3) for id, d in level.items()}
    assert agreement(sure) == pytest.approx({"agreement": 100})
    assert agreement({}) == {"agreement": 0}
    assert 0 < agreement(perturbed(dataset, 4))["agreement"] < 100
    moved = {id: Detections(d.boxes + 1e4, d.scores, d.labels) for id, d in level.items()}
    assert agreement(moved) == {"agreement": 0}
    assert has_boxes(level)
    assert not has_boxes({id: masked(d, d.scores < 0.3) for id, d in level.items()})
    assert not has_boxes({0: torch.zeros(100)})  # a classifier's


def test_agreement_counts_every_box_of_a_dense_image() -> None:
    """COCO's mAP is over the best 100 boxes of a class on an image; a float network finds more on some."""
    left = 10.0 * torch.arange(150)[:, None]
    boxes = torch.cat((left, 0 * left, left + 8, 0 * left + 8), 1)
    every = Detections(boxes, torch.linspace(0.99, 0.4, 150), torch.zeros(150, dtype=torch.int64))
    most = masked(every, every.scores > every.scores[120])
    agreement = AgreementEvaluator({0: every, 1: every}, ["cell"])
    assert agreement({0: every, 1: every}) == pytest.approx({"agreement": 100})
    assert agreement({0: most, 1: most}) == pytest.approx({"agreement": 100 * 81 / 101})  # recalls 0, .01, … .8
    if agreement.engine == "hotcoco":
        ahead = agreement.difference({0: every, 1: every}, {0: most, 1: most}, Resampling(20))
        assert ahead.value == pytest.approx(100 * 20 / 101)


def masked(d: Detections, keep: torch.Tensor) -> Detections:
    return Detections(d.boxes[keep], d.scores[keep], d.labels[keep])
