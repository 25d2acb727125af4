"""COCO's format as annotation tools write and lay it out: the right samples, or a line that names the mend."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.roots import write_image

from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.data import CocoDetection, build_dataset, images
from msat_det.data.coco import coco_annotation
from msat_det.data.images import read_image
from msat_det.measure.accuracy import evaluate, make_evaluator
from msat_det.models.detector import Detections
from msat_det.run.arguments import load_config

BOX = [4.0, 8.0, 20.0, 10.0]


def content(*names: str, **changes: object) -> dict:
    """Two images of 64 x 48, each with a dog (id 2) at BOX."""
    listed = [{"id": i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)]
    found = [{"id": i, "image_id": i, "category_id": 2, "bbox": BOX} for i in range(len(names))]
    return {"images": listed, "annotations": found, "categories": [{"id": 2, "name": "dog"}]} | changes


def write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """COCO's own layout."""
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        write_image(tmp_path / "coco/val2017" / name, seed)
    write(tmp_path / "coco/annotations/instances_val2017.json", content("a.jpg", "b.jpg"))
    return tmp_path / "coco"


def rewrite(root: Path, change: Callable[[dict], object]) -> None:
    path = root / "annotations/instances_val2017.json"
    value = json.loads(path.read_text())
    change(value)
    write(path, value)


def score(dataset: CocoDetection, ids: dict | None = None) -> float:
    """The mAP of what is annotated, found as it is."""
    found = {}
    for id in dataset.ids:
        target = dataset.target(id)
        ones = torch.ones(len(target.labels))
        found[(ids or {}).get(id, id)] = Detections(target.boxes, ones, target.labels)
    return evaluate(dataset, found, dataset.classes)["map"]


# ---- entries


def test_without_iscrowd_and_area(root: Path) -> None:
    dataset = CocoDetection(root)
    assert dataset.annotations[0] == [{"category_id": 2, "bbox": BOX, "area": 200.0, "iscrowd": 0}]
    assert score(dataset) == 100
    rewrite(root, lambda value: value["annotations"][0].update(area=None, iscrowd=None))
    assert CocoDetection(root).annotations == dataset.annotations


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"area": "200", "iscrowd": "0", "bbox": ["5", " 10.0", "20", "1e1"]}, {}),
        ({"area": "", "iscrowd": ""}, {}),  # tables' empty cells, by way of CSV and of pandas
        ({"area": math.nan, "iscrowd": math.nan}, {}),
        ({"iscrowd": 0.0}, {}),
        ({"iscrowd": "1.0"}, {"iscrowd": 1}),
        ({"area": "7.5"}, {"area": 7.5}),
    ],
)
def test_numbers_as_text_and_empty_cells(given: dict, told: dict) -> None:
    entry = {"image_id": "1.0", "category_id": 2, "bbox": [5, 10, 20, 10]}
    expected = {"image_id": 1, "category_id": 2, "bbox": [5, 10, 20, 10], "area": 200, "iscrowd": 0}
    assert coco_annotation(entry | given, "x") == expected | told


@pytest.mark.parametrize(
    "given",
    [{"area": "large"}, {"area": "inf"}, {"area": -1}, {"iscrowd": "yes"}, {"iscrowd": 0.5}, {"bbox": ["", 1, 2, 3]},
     {"bbox": "1 2 3 4"}, {"bbox": {"x": 1}}, {"image_id": "1.5"}, {"image_id": "a1"}],
)  # fmt: skip
def test_what_is_no_number_is_told(given: dict) -> None:
    entry = {"image_id": 1, "category_id": 2, "bbox": [5, 10, 20, 10]}
    with pytest.raises(InputError, match=f"x: {next(iter(given))} is "):
        coco_annotation(entry | given, "x")


def test_a_class_may_be_a_digit(root: Path) -> None:
    rewrite(root, lambda value: value["categories"][0].update(name=7))
    assert CocoDetection(root).classes == ["7"]


@pytest.mark.parametrize("form", [str, float, lambda id: f"{id:012}", lambda id: f" {id} ", lambda id: f"{id}.0"])
def test_ids_as_text_and_as_whole_floats(root: Path, form: Callable[[int], object]) -> None:
    before = CocoDetection(root)

    def change(value: dict) -> None:
        value["images"][1]["id"] = form(1)
        value["categories"][0]["id"] = form(2)
        for entry in value["annotations"]:
            entry.update(image_id=form(entry["image_id"]), category_id=form(2))

    rewrite(root, change)
    dataset = CocoDetection(root)
    assert (dataset.ids, dataset.category_ids, dataset.annotations) == ([0, 1], [2], before.annotations)
    assert [type(id) for id in (*dataset.ids, *dataset.category_ids)] == [int] * 3
    assert score(dataset, {1: form(1)}) == 100


def test_a_result_that_is_given_twice_is_told(root: Path) -> None:
    dataset = CocoDetection(root)
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="image 1 are given twice"):
        evaluate(dataset, {1: none, "1": none}, dataset.classes)


def test_text_with_a_byte_order_mark(root: Path) -> None:
    path = root / "annotations/instances_val2017.json"
    text = path.read_text()
    for code in ("utf-8-sig", "utf-16"):
        path.write_bytes(text.replace(",", ",\r\n").encode(code))
        assert CocoDetection(root).ids == [0, 1]


def test_an_object_without_a_box_has_that_of_its_polygons() -> None:
    entry = {"image_id": 1, "category_id": 2, "segmentation": [[10, 20, 30.5, 20, 30.5, 50], [5, 25, 6, 25, 6, 26]]}
    for box in ({}, {"bbox": None}, {"bbox": []}):
        assert coco_annotation(entry | box, "x")["bbox"] == [5, 20, 25.5, 30]
    for polygons in (
        None,
        [],
        [[]],
        {"counts": "abc", "size": [4, 4]},
        [[1, 2, 3]],
        [[1, 2, "3", 4]],
        [[1, 2, 1e99, 3]],
    ):
        with pytest.raises(InputError, match="x: has neither a bbox nor polygons to take one from: add it, or leave"):
            coco_annotation(entry | {"segmentation": polygons}, "x")


def test_a_category_that_only_groups_others_is_no_class(root: Path) -> None:
    """Roboflow's: id 0, of the project's name, which may be a class's, too."""
    group, dog, cat = ({"id": i, "name": n} for i, n in ((0, "dog"), (2, "dog"), (1, "cat")))
    roboflow = [group | {"supercategory": "none"}, dog | {"supercategory": "dog"}, cat | {"supercategory": "dog"}]
    rewrite(root, lambda value: value.update(categories=roboflow))
    dataset = CocoDetection(root)
    assert (dataset.classes, dataset.category_ids, dataset[0].target.labels.tolist()) == (["cat", "dog"], [1, 2], [1])
    assert score(dataset) == 100
    pets = [group | {"name": "pets", "supercategory": "none"}, dog | {"supercategory": "pets"}]
    found = {0: Detections(torch.tensor([[4.0, 8, 24, 18]]), torch.ones(1), torch.ones(1, dtype=torch.int64))}
    rewrite(root, lambda value: value.update(categories=pets))
    assert evaluate(CocoDetection(root), found, ["pets", "dog"])["map"] == pytest.approx(50.5, abs=0.1)  # one of two
    # whatever an object is of is a class, and so is COCO's person, which is its own supercategory
    rewrite(root, lambda value: value["annotations"][0].update(category_id=0))
    assert CocoDetection(root).classes == ["pets", "dog"]
    person = {"id": 5, "name": "person", "supercategory": "person"}
    rewrite(root, lambda value: value.update(categories=[group, dog | {"name": "x"}, person]))
    assert CocoDetection(root).classes == ["dog", "x", "person"]


# ---- names of images


@pytest.mark.parametrize(
    "name", ["val2017/a.jpg", "val2017\\a.jpg", "coco/val2017/a.jpg", ".\\a.jpg", "a", "val2017/a"]
)
def test_names_with_folders_in_front_and_without_suffix(root: Path, name: str) -> None:
    write(root / "annotations/instances_val2017.json", content(name, "b.jpg"))
    dataset = CocoDetection(root)
    assert dataset[0].image.equal(read_image(root / "val2017/a.jpg"))
    assert dataset[1].image.equal(read_image(root / "val2017/b.jpg"))


def test_a_folder_that_is_there_is_meant(root: Path) -> None:
    write_image(root / "val2017/val2017/a.jpg", 5)
    write(root / "annotations/instances_val2017.json", content("val2017/a.jpg", "a.jpg"))
    dataset = CocoDetection(root)
    assert dataset[0].image.equal(read_image(root / "val2017/val2017/a.jpg"))
    assert dataset[1].image.equal(read_image(root / "val2017/a.jpg"))


@pytest.mark.parametrize("name", ["..\\..\\secret.jpg", "a\\..\\..\\x.jpg", "\\\\server\\x.jpg", "/a.jpg"])
def test_backslashes_do_not_lead_outside(root: Path, name: str) -> None:
    write(root / "annotations/instances_val2017.json", content(name))
    with pytest.raises(InputError, match=r"images\[0\]: file_name '.*' is no path inside .*, as in images/1.jpg"):
        CocoDetection(root)


# ---- layouts

LAYOUTS = {  # what the tools write: annotation file, images, their names in the file, split
    "coco": ("annotations/instances_val2017.json", "val2017/{}", "{}", ""),
    "roboflow": ("valid/_annotations.coco.json", "valid/{}", "{}", "valid"),
    "roboflow, one split": ("train/_annotations.coco.json", "train/{}", "{}", ""),
    "cvat": ("annotations/instances_default.json", "images/default/{}", "{}", ""),
    "cvat, flat": ("annotations/instances_default.json", "images/{}", "{}", ""),
    "cvat, subset": ("annotations/instances_Train.json", "images/Train/{}", "{}", "Train"),
    "label studio": ("result.json", "images/{}", "images/{}", ""),
    "label studio, Windows": ("result.json", "images/{}", "images\\{}", ""),
    "ultralytics": ("annotations/instances_val2017.json", "images/val2017/{}", "{}", "val2017"),
    "ultralytics, no split": ("annotations/instances_val2017.json", "images/val2017/{}", "images/val2017/{}", ""),
    "fiftyone": ("labels.json", "data/{}", "{}", ""),
    "labelme2coco": ("val.json", "JPEGImages/{}", "JPEGImages/{}", "val"),
    "one folder": ("instances.json", "{}", "{}", ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_annotation_tools_work_as_they_are(tmp_path: Path, layout: str) -> None:
    file, place, name, split = LAYOUTS[layout]
    for seed, stem in enumerate(("a.jpg", "b.png")):
        write_image(tmp_path / place.format(stem), seed)
    write(tmp_path / file, content(name.format("a.jpg"), name.format("b.png")))
    dataset = build_dataset("coco", tmp_path, split)
    assert all(dataset[i].image.equal(read_image(tmp_path / place.format(n))) for i, n in ((0, "a.jpg"), (1, "b.png")))
    assert score(dataset) == 100


def test_the_folder_of_most_images_is_meant(tmp_path: Path) -> None:
    """One of the root's folders has an image of the name of another that lies in the root."""
    for seed, name in enumerate(names := ["1.png", "images/1.png", "a/2.png"]):
        write_image(tmp_path / name, seed)
    images = [{"id": i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "result.json").write_text(json.dumps(content))
    dataset = CocoDetection(tmp_path)
    for i, name in enumerate(names):
        assert torch.equal(dataset.image(i), read_image(tmp_path / name))


def test_several_annotation_files_are_listed(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_image(tmp_path / split / "a.jpg")
        write(tmp_path / split / "_annotations.coco.json", content("a.jpg"))
    for split in (None, "test"):
        with pytest.raises(InputError) as error:
            build_dataset("coco", tmp_path, split)
        assert str(error.value) == (
            f"no file {tmp_path}/annotations/instances_{split or 'val2017'}.json: name one of those there by the key "
            "annotations, beside root: 'train/_annotations.coco.json', 'valid/_annotations.coco.json'"
        )
    assert build_dataset("coco", tmp_path, "valid").folder == tmp_path / "valid"


def test_the_keys_name_file_and_folder(tmp_path: Path) -> None:
    """From the configuration to the data set, relative to the root and elsewhere."""
    write_image(tmp_path / "far/pictures/a.jpg")
    write(tmp_path / "root/lists/mine.json", content("pictures/a.jpg"))
    words = ["--cfg", "configs/ssd_coco.yaml", "--data.root", str(tmp_path / "root")]
    words += ["--data.annotations", "lists/mine.json", "--data.images", str(tmp_path / "far/pictures")]
    words += ["--calib.annotations=~/x.json", "--calib.images", "$MSAT_DET_DATA/x"]
    config: Config = load_config(words)
    assert (config.data.annotations, config.data.images) == ("lists/mine.json", str(tmp_path / "far/pictures"))
    assert config.calib.annotations == str(Path.home() / "x.json")
    assert Path(config.calib.images).is_absolute()
    keys = {key: getattr(config.data, key) for key in ("annotations", "images")}
    dataset = build_dataset("coco", config.data.root, config.data.split, **keys)
    assert dataset[0].image.equal(read_image(tmp_path / "far/pictures/a.jpg"))
    with pytest.raises(InputError, match=r"none of the listed images, such as 'pictures/a\.jpg', is in \S*/x: put"):
        build_dataset("coco", config.data.root, annotations="lists/mine.json", images="x")
    with pytest.raises(InputError, match=r"no file \S*/root/none\.json"):
        build_dataset("coco", config.data.root, annotations="none.json")
    with pytest.raises(InputError, match="kind voc with the key annotations, which is for kind coco and yolo"):
        build_dataset("voc", config.data.root, annotations="lists/mine.json")


def test_calibration_on_the_evaluated_images_is_told_for_the_keys_too(tmp_path: Path) -> None:
    words = ["--cfg", "configs/ssd_coco.yaml", "--calib.split", "val2017", "--calib.skip", "4"]
    with pytest.raises(InputError, match="calibration images would be evaluated"):
        load_config(words).require_unseen()
    load_config([*words, "--calib.annotations", "other.json"]).require_unseen()


@pytest.mark.parametrize("own", ["photos/1.jpg", "notes.txt", "annotations/instances_default.json", "result.json"])
def test_nothing_is_fetched_into_somebodys_own_folder(tmp_path: Path, own: str) -> None:
    ours = ("VOCdevkit/VOC2012/x", "train2017/1.jpg", "annotations/captions_val2017.json", ".cache/x", "a.sha256")
    for name in ours:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for kind in ("coco", "voc"):
        with pytest.raises(InputError, match=f"or get the data with: msat-det fetch {kind}20[01]7 --root"):
            build_dataset(kind, tmp_path)
    (tmp_path / own).parent.mkdir(exist_ok=True)
    (tmp_path / own).touch()
    for kind in ("coco", "voc"):
        with pytest.raises(InputError) as error:
            build_dataset(kind, tmp_path)
        assert "msat-det" not in str(error.value)


# ---- sizes


def test_sizes_of_annotation_and_image_are_compared(root: Path) -> None:
    def size(width: object, height: object) -> Callable[[dict], None]:
        return lambda value: value["images"][0].update(width=width, height=height)

    for fits in ((64, 48), ("64", 48.0), (0, 0), (None, 48), (64.5, 1)):
        rewrite(root, size(*fits))
        dataset = CocoDetection(root)
        assert dataset.misfit(0, dataset.image(0)) == ""
    rewrite(root, size(128, 96))
    dataset = CocoDetection(root)
    text = f"{root}/val2017/a.jpg has 64 x 48 pixels, its annotation is for 128 x 96"
    assert dataset.misfit(0, dataset.image(0)) == text
    rewrite(root, size(48, 64))  # no EXIF explains it
    dataset = CocoDetection(root)
    assert dataset.misfit(0, dataset.image(0)).endswith("for 48 x 64")
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    with Image.open(root / "val2017/a.jpg") as image:
        image.load()
        image.save(root / "val2017/a.jpg", exif=exif)
    assert dataset.image(0).shape == (3, 64, 48)
    assert dataset.misfit(0, dataset.image(0)) == ""


@pytest.mark.parametrize("known", [True, False])
def test_boxes_follow_a_photograph_that_is_read_smaller(
    root: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr(images, "WHOLE", 1000)
    if not known:
        rewrite(root, lambda value: [entry.pop("width") for entry in value["images"]])
    write_image(root / "val2017/b.jpg", size=(30, 30))
    rewrite(root, lambda value: value["images"][1].update(width=30, height=30))
    dataset = CocoDetection(root)
    assert dataset[0].image.shape == (3, 24, 32)
    assert dataset[0].target.boxes.tolist() == [[2, 4, 12, 9]]
    assert (dataset.annotations[0][0]["bbox"], dataset.annotations[0][0]["area"]) == ([2, 4, 10, 5], 50)
    assert dataset[1].target.boxes.tolist() == [[4, 8, 24, 18]]
    assert [dataset.misfit(id, dataset.image(id)) for id in (0, 1)] == ["", ""]
    found = {i: Detections(dataset.target(i).boxes, torch.ones(1), torch.zeros(1, dtype=torch.int64)) for i in (0, 1)}
    assert evaluate(dataset, found, ["dog"])["map"] == 100


TEXTS = {"abc": "abc", "0f8f-11": "0f8f-11", "12": "12", "7.0": 7, "frame 1.jpg": "frame 1.jpg"}  # in images, objects


def test_image_ids_may_be_text(tmp_path: Path) -> None:
    """Names or UUIDs; a number among them is the same whether it is text or not."""
    images = [{"id": id, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i, id in enumerate(TEXTS)]
    objects = [{"image_id": id, "category_id": 1, "bbox": [i, 1, 4, 5]} for i, id in enumerate(TEXTS.values())]
    for i in range(len(TEXTS)):
        write_image(tmp_path / f"val/{i}.jpg", i)
    content = {"images": images, "annotations": objects, "categories": [{"id": "1", "name": "dog"}]}
    file = tmp_path / "annotations/instances_val.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    dataset = CocoDetection(tmp_path, "val")
    assert dataset.ids == sorted(["abc", "0f8f-11", "12", "7", "frame 1.jpg"])
    at = {id: dataset.target(id).boxes.tolist() for id in dataset.ids}
    assert at == {str(id).removesuffix(".0"): [[i, 1, i + 4, 6]] for i, id in enumerate(TEXTS)}
    evaluator = make_evaluator(dataset, ["dog"])
    perfect = {
        id: Detections(dataset.target(id).boxes, torch.ones(1), torch.zeros(1, dtype=torch.int64)) for id in dataset.ids
    }
    assert evaluator(perfect)["map"] == 100
    assert evaluator({**perfect, "abc": perfect["12"]})["map"] < 100
    for wrong, told in (("abd", "image_id 'abd' is not listed"), ("\x07", r"image_id is '\\x07', it must be an int")):
        objects[0]["image_id"] = wrong
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=told):
            CocoDetection(tmp_path, "val")


def test_a_category_id_that_is_text_is_told(tmp_path: Path) -> None:
    content = {"images": [], "annotations": [], "categories": [{"id": "dog", "name": "dog"}]}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"categories\[0\]: id is 'dog', it must be an integer"):
        CocoDetection(tmp_path)
