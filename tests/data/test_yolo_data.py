"""Data sets as Ultralytics' train takes them: where images and labels lie, and what a line says."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.roots import write_image

from msat_det.base.errors import InputError
from msat_det.data import CocoDetection, VocDetection, YoloDetection, build_dataset
from msat_det.data.images import CorruptImage
from msat_det.data.yolo import label_file
from msat_det.measure.accuracy import evaluate, make_evaluator
from msat_det.models.detector import Detections


def changed(root: Path, old: str, new: str) -> YoloDetection:
    file = root / "data.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return YoloDetection(root)


def test_the_same_scenes_as_in_voc_and_coco(yolo_root: Path, voc_root: Path, coco_root: Path) -> None:
    yolo, voc, coco = YoloDetection(yolo_root), VocDetection(voc_root), CocoDetection(coco_root)
    assert yolo.classes == ["person", "dog", "tv"]
    assert yolo.ids == [f"images/val/00000{i}.jpg" for i in (1, 2, 3, 4)]
    for a, b, c in zip(yolo.ids, voc.ids, coco.ids, strict=True):
        ours, theirs, third = yolo.target(a), voc.target(b), coco.target(c)
        assert torch.allclose(ours.boxes, theirs.boxes[~theirs.ignore])
        assert torch.allclose(ours.boxes, third.boxes[~third.ignore])
        names = [coco.classes[i] for i in third.labels[~third.ignore]]
        assert [yolo.classes[i] for i in ours.labels] == names
        assert not ours.ignore.any()
        assert torch.equal(yolo.image(a), voc.image(b))


def test_an_image_without_labels_is_background(yolo_root: Path) -> None:
    dataset = YoloDetection(yolo_root)
    assert not (yolo_root / "labels/val/000003.txt").exists()
    assert len(dataset.target("images/val/000003.jpg").boxes) == 0
    (yolo_root / "labels/val/000003.txt").write_text("\n")
    assert len(YoloDetection(yolo_root).target("images/val/000003.jpg").boxes) == 0


def boxes_of(root: Path, line: str) -> list:
    (root / "labels/val/000001.txt").write_text(line)
    dataset = YoloDetection(root)
    target = dataset.target("images/val/000001.jpg")
    return [[label, *box] for label, box in zip(target.labels.tolist(), target.boxes.tolist(), strict=True)]


def test_lines_are_boxes_or_polygons_each_once(yolo_root: Path) -> None:
    assert boxes_of(yolo_root, "1 0.5 0.5 0.25 0.5\n") == [[1, 24, 12, 40, 36]]
    assert boxes_of(yolo_root, "1.0 .5 5e-1 0.25 0.5\n\n1 0.5 0.5 0.25 0.5\n") == [[1, 24, 12, 40, 36]]
    assert boxes_of(yolo_root, "2 0.25 0.5 0.75 0.25 0.5 1.0\n") == [[2, 16, 12, 48, 48]]
    two = "2 0.25 0.5 0.75 0.25 0.5 1.0\n2 0.25 0.25 0.75 0.25 0.5 1.0\n"  # polygons that differ, of one extent
    assert boxes_of(yolo_root, two) == [[2, 16, 12, 48, 48]] * 2
    with pytest.raises(InputError, match="boxes in some lines and polygons in others"):
        boxes_of(yolo_root, two + "0 0.25 0.25 0.5 0.5\n")


def test_key_points_stand_behind_the_box(yolo_root: Path) -> None:
    text = (yolo_root / "data.yaml").read_text()
    for stem in ("000002", "000004"):
        (yolo_root / f"labels/val/{stem}.txt").unlink()
    (yolo_root / "data.yaml").write_text(text + "kpt_shape: [2, 3]\n")
    pose = "1 0.5 0.5 0.25 0.5 .1 .1 2 .2 .2 1\n"
    assert boxes_of(yolo_root, pose) == [[1, 24, 12, 40, 36]]
    assert boxes_of(yolo_root, pose + pose.replace(".1 2", ".3 2")) == [[1, 24, 12, 40, 36]]  # the same box
    # as many numbers as no pose has are a polygon's
    assert boxes_of(yolo_root, "2 0.25 0.5 0.75 0.25 0.5 1.0 0.5 0.75\n") == [[2, 16, 12, 48, 48]]
    with pytest.raises(InputError, match="line 1: 10 numbers"):
        boxes_of(yolo_root, pose.removesuffix(" 1\n"))
    for wrong in ("17", "[17]", "[2, 0]", "[2, x]"):
        (yolo_root / "data.yaml").write_text(f"{text}kpt_shape: {wrong}\n")
        with pytest.raises(InputError, match=r"data\.yaml: kpt_shape is .*: give the number of key points and of"):
            YoloDetection(yolo_root)


def test_lines_are_the_same_in_single_precision(yolo_root: Path) -> None:
    """Where two exports of a box differ in their last digits, Ultralytics has it once."""
    assert boxes_of(yolo_root, "1 0.5 0.5 0.25 0.5\n1 0.5 0.500000001 0.25 0.5\n") == [[1, 24, 12, 40, 36]]
    assert len(boxes_of(yolo_root, "1 0.5 0.5 0.25 0.5\n1 0.5 0.500001 0.25 0.5\n")) == 2


WRONG_LINES = {
    "0 0.5 0.5 0.25": "line 1: 4 numbers: give class cx cy w h",
    "0 0.5 0.5 0.25 0.25 0.9": "line 1: 6 numbers",
    "0 0.5 0.5 -0.005 0.25": "line 1: coordinates are shares",
    "\n3 0.5 0.5 0.25 0.25": "line 2: class 3 is none of 0 to 2",
    "-1 0.5 0.5 0.25 0.25": "class -1 is none of",
    "0.5 0.5 0.5 0.25 0.25": "class 0.5 is none of",
    "0 32 24 16 24": "coordinates are shares of the image's width and height",
    "0 0.5 0.5 nan 0.25": "coordinates are shares",
    "dog 0.5 0.5 0.25 0.25": "'dog 0.5 0.5 0.25 0.25' are no numbers",
}


@pytest.mark.parametrize("line", WRONG_LINES)
def test_a_wrong_line_is_named(yolo_root: Path, line: str) -> None:
    with pytest.raises(InputError, match=re.escape(WRONG_LINES[line])) as caught:
        boxes_of(yolo_root, line)
    assert "labels/val/000001.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_splits_are_folders_lists_and_files_of_lines(yolo_root: Path) -> None:
    write_image(yolo_root / "more/images/a.png")
    both = changed(yolo_root, "val: images/val", "val: [images/val, more]")
    assert both.ids == [*(f"images/val/00000{i}.jpg" for i in (1, 2, 3, 4)), "more/images/a.png"]
    (yolo_root / "lists").mkdir()
    (yolo_root / "lists/val.txt").write_text("./../images/val/000002.jpg\n\nmore/images/a.png\n")
    assert changed(yolo_root, "[images/val, more]", "lists/val.txt").ids == [
        "images/val/000002.jpg",
        "more/images/a.png",
    ]
    (yolo_root / "lists/val.txt").write_text(f"{yolo_root}/images/val/000001.jpg\n")
    assert YoloDetection(yolo_root).ids == ["images/val/000001.jpg"]


def test_the_root_is_the_file_or_a_folder_with_it(yolo_root: Path, tmp_path: Path) -> None:
    expected = YoloDetection(yolo_root).ids
    assert build_dataset("yolo", yolo_root / "data.yaml", "val").ids == expected
    assert build_dataset("yolo", yolo_root).ids == expected
    (yolo_root / "data.yaml").rename(tmp_path / "elsewhere.yaml")
    with pytest.raises(InputError, match="which holds 0: give the file as the root"):
        YoloDetection(yolo_root)
    assert build_dataset("yolo", yolo_root, annotations=str(tmp_path / "elsewhere.yaml")).ids == expected
    for name in ("a", "b"):
        (yolo_root / f"{name}.yml").write_text("names: [x]\n")
    with pytest.raises(InputError, match=r"name one of 'a.yml', 'b.yml' by the key annotations"):
        YoloDetection(yolo_root)
    with pytest.raises(InputError, match="key annotations, which is for kind coco and yolo"):
        build_dataset("voc", yolo_root, annotations="x")
    with pytest.raises(InputError, match=r"no data folder .*nowhere"):
        build_dataset("yolo", tmp_path / "nowhere.yaml")


def test_what_was_trained_on_is_evaluated_only_where_it_is_named(yolo_root: Path) -> None:
    text = (yolo_root / "data.yaml").read_text()
    (yolo_root / "data.yaml").write_text(text.replace("train: images/train\nval:", "train:"))
    with pytest.raises(InputError, match=r"data\.yaml has no val: it has train; name one by the key split"):
        YoloDetection(yolo_root)
    assert len(YoloDetection(yolo_root, "train")) == 4
    (yolo_root / "data.yaml").write_text(text.replace("val:", "test:"))
    assert len(YoloDetection(yolo_root)) == 4


def test_validation_is_val(yolo_root: Path) -> None:
    write_image(yolo_root / "images/train/a.jpg")
    dataset = changed(yolo_root, "val: images/val", "validation: images/val")
    assert len(dataset) == 4  # not those of train
    assert YoloDetection(yolo_root, "val").ids == YoloDetection(yolo_root, "validation").ids == dataset.ids


def test_photographs_that_are_not_read_are_not_left_out_in_silence(yolo_root: Path) -> None:
    (yolo_root / "images/val/000005.TIF").write_bytes(b"II*")
    (yolo_root / "labels/val/000005.txt").write_text("0 0.5 0.5 1 1\n")
    dataset = YoloDetection(yolo_root)
    assert dataset.ids[4:] == ["images/val/000005.TIF"]
    assert len(dataset.target("images/val/000005.TIF").boxes) == 1
    with pytest.raises(CorruptImage, match=r"5\.TIF \(it is none of JPEG, PNG, WEBP, BMP, PPM\): restore, convert or"):
        dataset.image("images/val/000005.TIF")


def test_the_number_of_classes_may_be_text(yolo_root: Path) -> None:
    assert len(changed(yolo_root, "names:", "nc: '3'\nnames:").classes) == 3


def test_roboflows_paths_begin_above_the_folder(yolo_root: Path) -> None:
    (yolo_root / "valid").mkdir()
    for kind in ("images", "labels"):
        (yolo_root / kind / "val").rename(yolo_root / "valid" / kind)
    dataset = changed(yolo_root, "path: .\ntrain: images/train\nval: images/val", "val: ../valid/images\nnc: 3")
    assert dataset.ids == [f"valid/images/00000{i}.jpg" for i in (1, 2, 3, 4)]
    assert len(dataset.target("valid/images/000001.jpg").boxes) == 2


def test_names_by_number_and_a_network_of_other_classes(yolo_root: Path) -> None:
    dataset = changed(yolo_root, "['person', 'dog', 'tv']", "{2: tv, 0: person, 1: 7}")
    assert dataset.classes == ["person", "7", "tv"]
    found = {id: dataset.target(id) for id in dataset.ids}
    renamed = {
        id: Detections(t.boxes, torch.ones(len(t.labels)), torch.tensor([3, 1, 0])[t.labels]) for id, t in found.items()
    }
    assert evaluate(dataset, renamed, ["tv", "7", "zebra", "person"])["map"] == pytest.approx(100)
    with pytest.raises(InputError, match="number the classes from 0 on"):
        changed(yolo_root, "{2: tv, 0: person, 1: 7}", "{1: tv, 2: person, 3: dog}")


OUTSIDE: dict[str, tuple[Callable[[str], str], str]] = {
    "a split above": (lambda t: t.replace("images/val", "../../etc"), "no path inside"),
    "an absolute split": (lambda t: t.replace("images/val", "/etc"), "no path inside"),
    "a path elsewhere": (lambda t: t.replace("path: .", "path: /etc"), "its path is '/etc', outside of"),
    "a path above": (lambda t: t.replace("path: .", "path: ../other"), "its path is '../other', outside of"),
    "a split that is not there": (lambda t: t.replace("images/val", "images/none"), "no folder or file"),
    "no split": (lambda t: t.replace("val:", "other:").replace("train:", "x:"), "has no val: it has none"),
    "a number": (lambda t: t.replace("images/val", "7"), "val is 7: give a folder"),
    "nc": (lambda t: t + "nc: 4\n", "nc is 4, and there are 3 names"),
    "no names": (lambda t: t.replace("names", "labels"), "has no names"),
    "a word for names": (lambda t: t.replace("names: [", "names: x #["), "names is 'x'"),
    "no YAML": (lambda t: t + "}{", "is not YAML"),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_file_that_cannot_be_used_says_why(yolo_root: Path, case: str) -> None:
    spoil, told = OUTSIDE[case]
    (yolo_root.parent / "other").mkdir()
    file = yolo_root / "data.yaml"
    file.write_text(spoil(file.read_text()))
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        YoloDetection(yolo_root)
    assert "\n" not in str(caught.value)


def test_a_list_that_leaves_the_root_is_refused(yolo_root: Path) -> None:
    (yolo_root / "val.txt").write_text("images/val/000001.jpg\n../../secret.jpg\n")
    with pytest.raises(InputError, match=r"val.txt, line 2: '../../secret.jpg' is no image inside"):
        changed(yolo_root, "images/val", "val.txt")


def test_a_line_of_thousands_of_folders_is_refused_at_once(yolo_root: Path) -> None:
    (yolo_root / "val.txt").write_text("images/val/000001.jpg" * 6_000 + "\n")
    with pytest.raises(InputError, match=r"val\.txt, line 1: .* is no image inside") as caught:
        changed(yolo_root, "images/val", "val.txt")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("turn", range(1, 9))
def test_boxes_count_in_the_upright_image(yolo_root: Path, turn: int) -> None:
    """As cv2.imread shows it where they train: the object lies in the upright image's right lower corner."""
    path = yolo_root / "images/val/000001.jpg"
    upright = Image.new("RGB", (64, 48))
    upright.paste((255, 255, 255), (48, 36, 64, 48))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that undoes EXIF's orientation
    stored = upright if turn == 1 else upright.transpose(Image.Transpose(back[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    stored.save(path, quality=95, exif=exif)
    assert boxes_of(yolo_root, "0 0.875 0.875 0.25 0.25") == [[0, 48, 36, 64, 48]]
    image = YoloDetection(yolo_root).image("images/val/000001.jpg")
    assert image.shape == (3, 48, 64)
    assert image[:, 38:47, 50:63].float().mean() > 240
    assert image[:, :30, :40].float().mean() < 10


def test_labels_stand_where_ultralytics_looks_for_them(tmp_path: Path) -> None:
    for image, label in {
        "images/val/1.jpg": "labels/val/1.txt",
        "images/a/images/b/1.x.png": "images/a/labels/b/1.x.txt",
        "photos/1.jpg": "photos/1.txt",
        "images.jpg": "images.txt",
        "myimages/1.jpg": "myimages/1.txt",
    }.items():
        assert label_file(tmp_path, image) == tmp_path / label


def test_against_ultralytics_own_reader(yolo_root: Path) -> None:
    """The same boxes as ``verify_image_label`` reads, where their package is installed."""
    utils = pytest.importorskip("ultralytics.data.utils")
    (yolo_root / "labels/val/000004.txt").write_text(
        "2 .25 .5 .75 .25 .5 1\n1 .1 .2 .3 .4 .9 1.005\n1 .1 .2 .3 .4 .9 1.005\n"
    )
    dataset = YoloDetection(yolo_root)
    for id in dataset.ids:
        path = str(yolo_root / id)
        (label,) = utils.img2label_paths([path])
        _, lines, (height, width), *_, told = utils.verify_image_label((path, label, "", False, 3, 0, 0, False))
        assert "corrupt" not in told
        theirs = torch.tensor(lines).reshape(-1, 5)
        centre, size = theirs[:, 1:3], theirs[:, 3:]
        edges = torch.cat((centre - size / 2, centre + size / 2), 1) * torch.tensor([width, height, width, height])
        ours = dataset.target(id)
        order = sorted(range(len(edges)), key=lambda i, edges=edges: edges[i].tolist())
        mine = sorted(range(len(edges)), key=lambda i, ours=ours: ours.boxes[i].tolist())
        assert torch.allclose(ours.boxes[mine], edges[order].float(), atol=1e-3)
        assert ours.labels[mine].tolist() == theirs[order, 0].tolist()


def test_images_that_cannot_be_read_are_left_to_who_reads_them(yolo_root: Path) -> None:
    (yolo_root / "images/val/000001.jpg").write_bytes(b"no image")
    dataset = YoloDetection(yolo_root)
    make_evaluator(dataset, dataset.classes)
    with pytest.raises(InputError, match="can't read image"):
        dataset.image("images/val/000001.jpg")
