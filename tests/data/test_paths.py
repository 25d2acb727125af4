"""Files where people keep them: behind links at every level, and under names in other capitals."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from support.roots import write_image

from msat_det.base.errors import InputError
from msat_det.data import CocoDetection, Dataset, Target, VocDetection, YoloDetection, build_dataset
from msat_det.data.images import CorruptImage

HOME = "VOCdevkit/VOC2007"


@pytest.fixture(params=["voc", "coco", "yolo", "images", "folders"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A kind of data set and a root of it, of plain files."""
    kind = request.param
    if kind in ("images", "folders"):
        for name in ("cat/1.jpg", "cat/deep/2.png", "dog/3.JPG"):
            write_image(tmp_path / kind / name)
        return kind, tmp_path / kind
    return kind, request.getfixturevalue(f"{kind}_root")


def everything(dataset: Dataset) -> list[tuple]:
    """All ids with their images, boxes and labels."""
    found = []
    for sample in map(dataset.__getitem__, range(len(dataset))):
        target = sample.target
        truth = [target.boxes.tolist(), target.labels.tolist()] if isinstance(target, Target) else target
        found.append((sample.id, sample.image.tolist(), truth))
    return found


def link(path: Path, store: Path) -> None:
    """Move what is at a path into the store, and leave a link to a link to it, the last one relative to its folder."""
    store.mkdir(exist_ok=True)
    kept = store / f"{len(list(store.iterdir()))}{path.suffix}"
    path.rename(kept)
    (store / f"{kept.name}.link").symlink_to(kept.name)
    path.symlink_to(store / f"{kept.name}.link")


def test_links_at_every_level_change_nothing(root: tuple[str, Path], tmp_path: Path) -> None:
    """Each file alone, as git-annex has them; then each folder, the innermost first; then the root."""
    kind, folder = root
    expected = everything(build_dataset(kind, folder))
    below = sorted(folder.rglob("*"), reverse=True)
    for place in [path for path in below if path.is_file()]:
        link(place, tmp_path / "store")
    assert everything(build_dataset(kind, folder)) == expected
    for place in [path for path in below if path.is_dir()]:
        link(place, tmp_path / "folders of it")
    assert everything(build_dataset(kind, folder)) == expected
    link(folder, tmp_path / "roots")
    assert everything(build_dataset(kind, folder)) == expected
    assert build_dataset(kind, folder).classes == build_dataset(kind, folder.resolve()).classes


@pytest.mark.parametrize("target", ["gone", "/gone/annex", "self"])
def test_a_part_that_is_a_link_to_nothing_is_named(
    coco_root: Path, voc_root: Path, yolo_root: Path, target: str
) -> None:
    """One part after the other; labels above all, for an image without a file of labels is background."""
    parts = {
        VocDetection: (voc_root, f"{HOME}/ImageSets/Main/test.txt", f"{HOME}/Annotations/000001.xml", HOME),
        CocoDetection: (coco_root, "annotations/instances_val2017.json"),
        YoloDetection: (yolo_root, "labels/val/000001.txt", "labels/val", "labels", "images/val", "data.yaml"),
    }
    for make, (root, *names) in parts.items():
        for place in map(root.joinpath, names):
            place.rename(root / "away")
            place.symlink_to(place.name if target == "self" else target)
            with pytest.raises(InputError) as caught:
                make(root)
            assert f"{place} is a link that leads nowhere" in str(caught.value)
            place.unlink()
            (root / "away").rename(place)
        make(root)


def test_all_images_behind_links_to_nothing(coco_root: Path, voc_root: Path) -> None:
    """As git-annex leaves them where nobody has got the contents."""
    for make, root, folder in ((CocoDetection, coco_root, "val2017"), (VocDetection, voc_root, f"{HOME}/JPEGImages")):
        for image in (root / folder).iterdir():
            image.unlink()
            image.symlink_to("/annex/objects/key")
        with pytest.raises(InputError, match=rf"none of the listed images.*/{folder}/000001.jpg is a link that leads"):
            make(root)


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_links_are_the_users_names_in_files_are_not(
    kind: str, coco_root: Path, yolo_root: Path, tmp_path: Path
) -> None:
    """The same image outside of the root: by a link below the root, and by a name that leads there."""
    write_image(tmp_path / "outside/1.jpg", 7)
    if kind == "coco":
        file, place = coco_root / "annotations/instances_val2017.json", coco_root / "val2017"
        changes = {"000001.jpg": "mine/1.jpg"}, {"mine/1.jpg": "mine/../../../outside/1.jpg"}
    else:
        file, place = yolo_root / "data.yaml", yolo_root / "images"
        changes = {"val: images/val": "val: images/mine"}, {"images/mine": "images/mine/../../../outside"}
    (place / "mine").symlink_to(tmp_path / "outside")
    text = file.read_text()
    for old, new in changes[0].items():
        file.write_text(text := text.replace(old, new))
    sample = build_dataset(kind, file.parent.parent if kind == "coco" else file.parent)[0]
    assert sample.image.shape == (3, 48, 64)
    for old, new in changes[1].items():
        file.write_text(text.replace(old, new))
    with pytest.raises(InputError, match="inside"):
        build_dataset(kind, file.parent.parent if kind == "coco" else file.parent)


def renamed(path: Path, name: str) -> Path:
    path.rename(path.with_name(name))
    return path.with_name(name)


def told(make: type[Dataset], root: Path, other: Path, *, reading: bool = False) -> None:
    """The message names the file that is there in other capitals."""
    pattern = re.escape(f"{other} is there in other capitals")
    with pytest.raises(CorruptImage if reading else InputError, match=pattern) as caught:
        make(root)[0]
    assert "\n" not in str(caught.value)


def test_names_in_other_capitals_are_told(coco_root: Path, voc_root: Path, yolo_root: Path) -> None:
    """Windows and macOS take them for the same; never as if there were no labels."""
    told(YoloDetection, yolo_root, renamed(yolo_root / "labels/val/000001.txt", "000001.TXT"))
    told(YoloDetection, yolo_root, renamed(yolo_root / "labels", "Labels"))
    told(CocoDetection, coco_root, renamed(coco_root / "val2017/000001.jpg", "000001.JPG"), reading=True)
    told(CocoDetection, coco_root, renamed(coco_root / "annotations", "Annotations"))
    told(VocDetection, voc_root, renamed(voc_root / HOME / "Annotations/000001.xml", "000001.XML"))
    told(VocDetection, voc_root, renamed(voc_root / HOME / "ImageSets/Main/test.txt", "Test.txt"))
    told(VocDetection, voc_root, renamed(voc_root / HOME, "voc2007"))
    with pytest.raises(InputError, match=r"COCO, for .*coco is there in other capitals"):
        build_dataset("coco", coco_root.with_name("COCO"))


def test_all_images_in_other_capitals(coco_root: Path) -> None:
    for image in list((coco_root / "val2017").iterdir()):
        renamed(image, image.name.upper())
    with pytest.raises(InputError, match=r"none of the listed images, .*val2017/000001.JPG is there in other capitals"):
        CocoDetection(coco_root)


def test_what_two_names_differ_in_by_capitals_alone_is_two_files(tmp_path: Path) -> None:
    names = ["A.jpg", "a.jpg", "a.JPG"]
    for seed, name in enumerate(names):
        write_image(tmp_path / "images" / name, seed)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names, 1)]
    content = {"images": images, "categories": [{"id": 1, "name": "x"}], "annotations": []}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    found = [sample.image for sample in map(CocoDetection(tmp_path).__getitem__, range(3))]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(found, 2))
