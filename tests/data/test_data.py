"""Readers: the right samples from good roots, and one InputError from anything else."""

import contextlib
import hashlib
import json
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.roots import SCENES, voc_xml, write_image
from torchvision.datasets import CIFAR100

from msat_det.base.errors import InputError
from msat_det.data import (
    DATASETS,
    VOC_CLASSES,
    Cifar100,
    ClassFolders,
    CocoDetection,
    ImageFiles,
    Target,
    VocDetection,
    build_dataset,
    select,
    subset,
)
from msat_det.data.images import CorruptImage, read_image
from msat_det.data.voc_xml import read_voc_xml

fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_message(error: pytest.ExceptionInfo, *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# ---- good roots


def test_voc_boxes_become_edges_from_0_and_difficult_is_kept(voc_root: Path) -> None:
    dataset = build_dataset("voc", voc_root, "test", 2007)
    assert (dataset.name, dataset.ids, dataset.classes) == ("voc", sorted(SCENES), VOC_CLASSES)
    sample = dataset[1]
    assert (sample.id, sample.image.shape, sample.image.dtype) == ("000002", (3, 48, 64), torch.uint8)
    assert sample.target.boxes.tolist() == [[0, 0, 24, 24], [29, 9, 60, 44]]
    assert sample.target.labels.tolist() == [VOC_CLASSES.index("dog")] * 2
    assert sample.target.ignore.tolist() == [False, True]
    assert dataset[2].target.boxes.shape == (0, 4)


def test_coco_sorts_categories_and_keeps_crowd(coco_root: Path) -> None:
    dataset = build_dataset("coco", coco_root)
    assert (dataset.name, dataset.ids) == ("coco", [10, 20, 30, 40])
    assert (dataset.classes, dataset.category_ids) == (["person", "dog", "tv"], [1, 18, 72])
    target = dataset[1].target
    assert target.boxes.tolist() == [[0, 0, 24, 24], [29, 9, 60, 44]]
    assert (target.labels.tolist(), target.ignore.tolist()) == ([1, 1], [False, True])


def test_image_files_have_no_target_and_may_be_nested(tmp_path: Path) -> None:
    for name in ("b.jpg", "deep/er/a.PNG", "c.webp"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    dataset = ImageFiles(tmp_path)
    assert dataset.ids == ["b.jpg", "c.webp", "deep/er/a.PNG"]
    assert dataset[2].target is None


def test_class_folders_count_empty_classes(tmp_path: Path) -> None:
    (tmp_path / "val/ant").mkdir(parents=True)
    write_image(tmp_path / "val/bee/1.png")
    write_image(tmp_path / "val/stray.png")
    dataset = build_dataset("imagenet", tmp_path)
    assert (dataset.classes, dataset.ids, dataset[0].target) == (["ant", "bee"], ["bee/1.png"], 1)


@pytest.fixture
def cifar_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The official layout in small, with torchvision's MD5 sums set to these files'."""
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    sums = {}
    for name in ("train", "test", "meta"):
        content = (
            {"data": pixels, "fine_labels": [2, 0, 1]} if name != "meta" else {"fine_label_names": ["a", "b", "c"]}
        )
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": sums["meta"]})
    return tmp_path


def test_class_folders_leave_no_photograph_out_in_silence(tmp_path: Path) -> None:
    write_image(tmp_path / "val/cat/1.jpg")
    (tmp_path / "val/cat/2.tiff").write_bytes(b"II*")
    dataset = ClassFolders(tmp_path, "val")
    assert dataset.ids == ["cat/1.jpg", "cat/2.tiff"]
    with pytest.raises(CorruptImage, match=r"cat/2\.tiff \(it is none of JPEG, PNG, WEBP, BMP, PPM\)"):
        dataset.image("cat/2.tiff")
    assert ImageFiles(tmp_path).ids == ["val/cat/1.jpg"]  # to calibrate on


def test_cifar100_official_form(cifar_root: Path) -> None:
    dataset = build_dataset("cifar100", cifar_root)
    assert isinstance(dataset, Cifar100)
    assert (dataset.classes, dataset.ids, [dataset[i].target for i in range(3)]) == (
        ["a", "b", "c"],
        [0, 1, 2],
        [2, 0, 1],
    )
    assert dataset[0].image.shape == (3, 32, 32)


class Payload:
    """A pickle that leaves a trace where it is loaded."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_cifar100_pickle_is_not_opened_unless_its_sum_is_right(cifar_root: Path) -> None:
    for name in ("train", "test", "meta"):
        (cifar_root / CIFAR100.base_folder / name).write_bytes(pickle.dumps(Payload(cifar_root / "trace")))
    with pytest.raises(InputError) as error:
        Cifar100(cifar_root)
    check_message(error, "MD5")
    assert not (cifar_root / "trace").exists()


def test_class_folders_that_have_no_name_in_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9").mkdir()
    with pytest.raises(InputError, match=r"'caf\\udce9' has no name in UTF-8: rename it"):
        ClassFolders(tmp_path)


def test_cifar100_from_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "test/apple/1.png")
    assert isinstance(build_dataset("cifar100", tmp_path), ClassFolders)


def test_real_data(shared_data: Path) -> None:
    counts = {"coco_val128": ("coco", None, 128, 80), "voc_classes_of_coco": ("voc", None, 97, 20)}
    counts |= {"coco_calib64": ("images", None, 64, 0), "imagenet_subset": ("imagenet", None, 600, 1000)}
    counts |= {"cifar100_subset": ("cifar100", "test", 916, 100)}
    for folder, (kind, split, images, classes) in counts.items():
        dataset = build_dataset(kind, shared_data / folder, split)
        assert (len(dataset), len(dataset.classes)) == (images, classes)
        assert dataset[0].image.shape[0] == 3
    coco = build_dataset("coco", shared_data / "coco_val128")
    assert sum(len(coco.target(id).labels) for id in coco.ids) == 939
    assert sum(int(coco.target(id).ignore.sum()) for id in coco.ids) == 10


# ---- views


def test_subset_is_seeded_and_grows_by_appending(coco_root: Path) -> None:
    dataset = CocoDetection(coco_root)
    few, more = subset(dataset, 2, seed=5), subset(dataset, 3, seed=5)
    assert more.ids[:2] == few.ids
    assert subset(dataset, 2, seed=5).ids == few.ids
    assert {tuple(subset(dataset, 2, seed=s).ids) for s in range(9)} != {tuple(few.ids)}
    assert (few.classes, few.name, len(few), few[0].id) == (dataset.classes, "coco", 2, few.ids[0])
    assert sorted(subset(dataset, 99, seed=0).ids) == dataset.ids
    assert subset(dataset, None, seed=0).ids == dataset.ids
    assert subset(dataset, 1, seed=5, skip=2).ids == more.ids[2:]
    assert sorted(few.ids + subset(dataset, None, seed=5, skip=2).ids) == dataset.ids
    assert subset(select(dataset, dataset.ids[::-1]), 2, seed=5).ids == few.ids  # whatever order it comes in


@pytest.mark.parametrize("limit", [0, -1])
def test_subset_needs_a_positive_limit(coco_root: Path, limit: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        subset(CocoDetection(coco_root), limit, seed=0)


def test_select_refuses_to_be_empty(coco_root: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        select(CocoDetection(coco_root), [])
    with pytest.raises(InputError, match="empty"):
        subset(CocoDetection(coco_root), 3, seed=0, skip=99)


# ---- images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode).save(path)
    image = read_image(path)
    assert (image.shape, image.dtype, image.is_contiguous()) == ((3, 3, 5), torch.uint8, True)
    assert image.min() >= 254


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 5), 0x4080, np.uint16)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").unique().tolist() == [0x40]


def test_exif_orientation_is_left_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (3, 4, 8)


def test_png_bomb_is_refused_unread(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))))
    with pytest.raises(CorruptImage) as error:
        read_image(path)
    check_message(error, "bomb.png")


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"text"])
def test_what_is_no_image_is_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    dataset = ImageFiles(tmp_path)
    with pytest.raises(CorruptImage) as error:
        dataset[0]
    check_message(error, "bad.jpg")


@fuzz
@given(kind=st.sampled_from(["jpeg", "png", "webp", "bmp", "ppm"]), data=st.data())
def test_damaged_images_are_read_or_corrupt(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    path = tmp_path / "damaged.bin"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path, format=kind)
    content = bytearray(path.read_bytes())
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=5)
    ):
        content[position] = value
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(CorruptImage):
        assert read_image(path).shape[0] == 3


def test_a_missing_listed_image_is_named_when_read(voc_root: Path) -> None:
    (voc_root / "VOCdevkit/VOC2007/JPEGImages/000001.jpg").unlink()
    dataset = VocDetection(voc_root)
    with pytest.raises(CorruptImage) as error:
        dataset[0]
    check_message(error, "000001.jpg")


# ---- bad roots


def test_unknown_kind_and_missing_root(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data kind 'cocoo': did you mean coco"):
        build_dataset("cocoo", tmp_path)
    for kind in DATASETS:
        with pytest.raises(InputError, match=r"nowhere.*--data\.root"):
            build_dataset(kind, tmp_path / "nowhere")
        with pytest.raises(InputError):
            build_dataset(kind, tmp_path)
    with pytest.raises(InputError, match=r"--calib\.root"):
        build_dataset("images", tmp_path / "nowhere", option="--calib.root")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("VOCdevkit/VOC2007/ImageSets/Main/test.txt", "no image list"),
        ("VOCdevkit/VOC2007/Annotations/000003.xml", "000003.xml"),
        ("VOCdevkit/VOC2007/JPEGImages", "JPEGImages"),
    ],
)
def test_voc_parts_missing(voc_root: Path, path: str, part: str) -> None:
    (voc_root / path).rename(voc_root / "away")
    with pytest.raises(InputError) as error:
        VocDetection(voc_root)
    check_message(error, part)


def test_voc_list_names_the_splits_there_are(voc_root: Path) -> None:
    with pytest.raises(InputError, match="there: test"):
        VocDetection(voc_root, "train")


@pytest.mark.parametrize("content", ["", "\n\n", "000001\n000001\n"])
def test_voc_list_empty_or_with_doubles(voc_root: Path, content: str) -> None:
    (voc_root / "VOCdevkit/VOC2007/ImageSets/Main/test.txt").write_text(content)
    with pytest.raises(InputError):
        VocDetection(voc_root)


GOOD_XML = voc_xml([("dog", 1, 2, 3, 4, False)])


@pytest.mark.parametrize(
    ("xml", "part"),
    [
        ("", "broken XML"),
        ("<annotation><object>", "broken XML"),
        ("<html/>", "'html'"),
        (voc_xml([("unicorn", 1, 2, 3, 4, False)]), "unknown class 'unicorn'"),
        (voc_xml([("dog", 1, 2, 3, 4, False), ("dog", 5, 2, 3, 4, False)]), "object 2"),
        (voc_xml([("dog", 1, 9, 3, 4, False)]), "ymin ≤ ymax"),
        (voc_xml([("dog", "nan", 2, 3, 4, False)]), "finite"),
        (voc_xml([("dog", 1, 2, "inf", 4, False)]), "finite"),
        (voc_xml([("dog", 1, 2, "1e99", 4, False)]), "finite"),
        (voc_xml([("dog", "one", 2, 3, 4, False)]), "four numbers"),
        (voc_xml([("dog", 1, 2, 3, 4, 7)]), "difficult"),
        (GOOD_XML.replace("<xmin>1</xmin>", ""), "four numbers"),
        (GOOD_XML.replace("<name>dog</name>", ""), "unknown class ''"),
        (GOOD_XML.replace("dog", "do\ng" * 500), "unknown class"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "document type"),
        ('<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>', "document type"),
        ("<annotation>&x;</annotation>", "broken XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/', "broken XML"),
    ],
)
def test_bad_voc_xml(tmp_path: Path, xml: str, part: str) -> None:
    (tmp_path / "a.xml").write_text(xml)
    with pytest.raises(InputError) as error:
        read_voc_xml(tmp_path / "a.xml").target(["dog"])
    check_message(error, "a.xml", part)


def test_voc_xml_in_another_encoding_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>'.encode("utf-16"))
    with pytest.raises(InputError, match="document type"):
        read_voc_xml(tmp_path / "a.xml").target(["dog"])


def test_voc_object_without_difficult_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(GOOD_XML.replace("<difficult>0</difficult>", ""))
    assert read_voc_xml(tmp_path / "a.xml").target(["dog"]).ignore.tolist() == [False]


@fuzz
@given(data=st.data())
def test_voc_xml_fuzzed(tmp_path: Path, data: st.DataObject) -> None:
    """Cuts, swapped bytes and spliced fragments: a Target or an InputError, never anything else."""
    content = bytearray(voc_xml([("dog", 1, 2, 3, 4, True), ("cat", 5, 6, 70, 80, False)]).encode())
    pieces = [
        b"<",
        b">",
        b"</object>",
        b"<!DOCTYPE",
        b"]]>",
        b"&lt;",
        b"&#0;",
        b"nan",
        b"-1",
        b"\xff",
        b"\x00",
        b"<a" * 50,
    ]
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content)))
        piece = data.draw(st.one_of(st.sampled_from(pieces), st.binary(max_size=4)))
        content[at : at + data.draw(st.integers(0, 9))] = piece
    (tmp_path / "a.xml").write_bytes(content)
    with contextlib.suppress(InputError):
        check_target(read_voc_xml(tmp_path / "a.xml").target(["dog", "cat"]), 2)


def check_target(target: Target, classes: int) -> None:
    assert target.boxes.isfinite().all()
    assert (target.boxes[:, 2:] >= target.boxes[:, :2]).all()
    assert len(target.boxes) == len(target.labels) == len(target.ignore)
    assert ((target.labels >= 0) & (target.labels < classes)).all()


# ---- bad COCO files


def coco_file(root: Path) -> Path:
    return root / "annotations/instances_val2017.json"


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        (("annotations", 0, "category_id"), 5, "category_id 5"),
        (("annotations", 0, "image_id"), 999, "image_id 999"),
        (("annotations", 0, "category_id"), "dog", "category_id is 'dog'"),
        (("annotations", 0, "category_id"), 18.5, "category_id is 18.5"),
        (("annotations", 0, "bbox"), [1, 2, 3], "annotations[0]"),
        (("annotations", 0, "bbox"), [1, 2, -3, 4], "w ≥ 0"),
        (("annotations", 0, "bbox"), [1, 2, float("nan"), 4], "bbox"),
        (("annotations", 0, "bbox"), [1, 2, True, 4], "bbox"),
        (("annotations", 0, "bbox"), [10**400, 2, 3, 4], "bbox"),
        (("annotations", 0, "area"), float("inf"), "area"),
        (("annotations", 0, "iscrowd"), 2, "iscrowd"),
        (("annotations", 0, "iscrowd"), 1.5, "iscrowd"),
        (("annotations", 0), "dog", "annotations[0]"),
        (("images", 0, "id"), True, "images[0]"),
        (("images", 0, "id"), 20, "images: entries 0 and 1 share the id 20: make it unique"),
        (("images", 0, "file_name"), 5, "file_name"),
        (("images", 0, "file_name"), "\ud800.jpg", "must be a name"),
        (("images", 0), None, "images[0]"),
        (("categories", 0, "name"), "", "categories[0]"),
        (("categories", 0, "name"), "dog", "categories: ids 18 and 72 share the name 'dog': make it unique"),
        (("categories", 0, "name"), [7], "categories[0]: name is [7]"),
        (("categories", 0, "name"), " ", "categories[0]: name is ' '"),
        (("categories", 0, "id"), 1, "categories: entries 0 and 2 share the id 1: make it unique"),
        (("categories",), {}, "'categories'"),
        (("images",), [], "image_id 10 is not listed"),
        ((), [], "'images'"),
    ],
)
def test_bad_coco_json(coco_root: Path, path: tuple, value: object, part: str) -> None:
    content = json.loads(coco_file(coco_root).read_text())
    coco_file(coco_root).write_text(json.dumps(replaced(content, path, value)))
    with pytest.raises(InputError) as error:
        CocoDetection(coco_root)
    check_message(error, part)


def replaced(content: object, path: tuple, value: object) -> object:
    """``content`` with the entry at ``path`` changed in place."""
    if not path:
        return value
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return content


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\ufeff{", '{"images": ' + "9" * 5000 + "}"])
def test_broken_coco_json(coco_root: Path, text: str) -> None:
    coco_file(coco_root).write_text(text)
    with pytest.raises(InputError, match="broken JSON"):
        CocoDetection(coco_root)


def test_coco_without_images(coco_root: Path) -> None:
    (coco_root / "val2017").rename(coco_root / "away")
    with pytest.raises(InputError, match="none of the listed images"):
        CocoDetection(coco_root)


def places(content: object, path: tuple = ()) -> list[tuple]:
    """Every path into nested JSON."""
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return [path, *(place for key, child in items for place in places(child, (*path, key)))]
    return [path]


numbers = st.integers() | st.floats() | st.sampled_from([10**400, 2**53, -1, 0, 1])
values = st.recursive(
    st.none()
    | st.booleans()
    | numbers
    | st.text(max_size=5)
    | st.sampled_from(["../a.jpg", "/etc/passwd", "\x00", "x" * 999]),
    lambda child: (
        st.lists(child, max_size=5) | st.dictionaries(st.sampled_from(["id", "bbox", "a"]), child, max_size=3)
    ),
    max_leaves=6,
)


@fuzz
@given(data=st.data())
def test_coco_json_fuzzed(coco_root: Path, data: st.DataObject) -> None:
    """Any entry deleted or replaced by any JSON: a dataset or an InputError, never anything else."""
    original = coco_file(coco_root).read_text()
    content = json.loads(original)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places(content)))
        if path and data.draw(st.booleans()):
            parent = content
            for key in path[:-1]:
                parent = parent[key]
            del parent[path[-1]]
        else:
            content = replaced(content, path, data.draw(values))
    coco_file(coco_root).write_text(json.dumps(content))
    with contextlib.suppress(InputError):
        dataset = CocoDetection(coco_root)
        for id in dataset.ids:
            check_target(dataset.target(id), len(dataset.classes))
    coco_file(coco_root).write_text(original)


# ---- names that leave the root


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    write_image(tmp_path / "secret.jpg")
    return tmp_path / "secret.jpg"


def test_coco_file_name_stays_inside(coco_root: Path, secret: Path) -> None:
    original = coco_file(coco_root).read_text()
    for name in (
        "../../secret.jpg",
        str(secret),
        "a/../../../secret.jpg",
        "../val2017_other/x.jpg",
        "..",
        "\x00",
    ):
        content = replaced(json.loads(original), ("images", 0, "file_name"), name)
        coco_file(coco_root).write_text(json.dumps(content))
        with pytest.raises(InputError, match="inside") as error:
            CocoDetection(coco_root)
        check_message(error)


def test_voc_id_stays_inside(voc_root: Path, secret: Path) -> None:
    listing = voc_root / "VOCdevkit/VOC2007/ImageSets/Main/test.txt"
    for name in ("../../../../secret", str(secret.with_suffix("")), "a\x00b"):
        listing.write_text(f"000001\n{name}\n")
        with pytest.raises(InputError, match="inside"):
            VocDetection(voc_root)


def test_a_name_too_long_to_exist(coco_root: Path, voc_root: Path) -> None:
    for name in ("x" * 5000, "x/" * 3000 + "x.jpg"):
        content = replaced(json.loads(coco_file(coco_root).read_text()), ("images", 0, "file_name"), name)
        coco_file(coco_root).write_text(json.dumps(content))
        with pytest.raises(CorruptImage, match="no image file"):
            CocoDetection(coco_root)[0]
    for kind in DATASETS:
        with pytest.raises(InputError, match=r"^(no|can't list the)"):
            build_dataset(kind, coco_root, "x" * 300)
        with pytest.raises(InputError, match="no data folder"):
            build_dataset(kind, coco_root / ("x" * 300))
        with pytest.raises(InputError, match=r"^(no|can't list the)"):
            build_dataset(kind, coco_root, "test", "x" * 300)
    (voc_root / "VOCdevkit/VOC2007/ImageSets/Main/test.txt").write_text(f"000001\n{'x' * 5000}\n")
    with pytest.raises(InputError, match="no file"):
        VocDetection(voc_root)


@pytest.mark.parametrize("split", ["../x", "/etc", "\x00"])
@pytest.mark.parametrize("kind", DATASETS)
def test_split_and_year_stay_inside(tmp_path: Path, kind: str, split: str) -> None:
    with pytest.raises(InputError):
        build_dataset(kind, tmp_path, split)
    with pytest.raises(InputError, match="inside"):
        build_dataset("voc", tmp_path, "test", "/../../../x")


def test_links_that_the_user_laid_are_followed(coco_root: Path, voc_root: Path, tmp_path: Path, secret: Path) -> None:
    """Of DVC, git-annex and caches: single images and annotations, folders of images and of annotations."""
    home = voc_root / "VOCdevkit/VOC2007"
    for image in (coco_root / "val2017/000001.jpg", home / "JPEGImages/000001.jpg"):
        image.unlink()
        image.symlink_to(secret)
    moved = (coco_root / "val2017", coco_root / "annotations", home / "JPEGImages", home / "Annotations", home)
    for number, place in enumerate(moved):
        place.rename(tmp_path / f"elsewhere{number}")
        place.symlink_to(tmp_path / f"elsewhere{number}")
    for dataset in (CocoDetection(coco_root), VocDetection(voc_root)):
        assert dataset[0].image.equal(read_image(secret))
        assert dataset[1].target.boxes.shape == (2, 4)
    for name in ("images/a.jpg", "class/b.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).symlink_to(secret)
    assert ImageFiles(tmp_path / "images")[0].image.equal(read_image(secret))
    (tmp_path / "folders/val").mkdir(parents=True)
    (tmp_path / "folders/val/cat").symlink_to(tmp_path / "class")
    folders = ClassFolders(tmp_path / "folders", "val")
    assert (folders.ids, folders.classes, folders[0].target) == (["cat/b.jpg"], ["cat"], 0)


def test_links_that_lead_nowhere_are_named(coco_root: Path, voc_root: Path, tmp_path: Path) -> None:
    image = coco_root / "val2017/000001.jpg"
    for target in ("000001.jpg", "/gone/annex/object"):  # a loop, and what was never fetched
        image.unlink()
        image.symlink_to(target)
        assert CocoDetection(coco_root).ids == [10, 20, 30, 40]
        with pytest.raises(CorruptImage, match=rf"^{image} is a link that leads nowhere \(to '{target}'\): restore"):
            CocoDetection(coco_root)[0]
        with pytest.raises(CorruptImage, match="is a link that leads nowhere"):
            ImageFiles(coco_root)[0]
    for folder, make in ((coco_root / "annotations", CocoDetection), (voc_root / "VOCdevkit", VocDetection)):
        folder.rename(tmp_path / "away")
        folder.symlink_to("/gone")
        with pytest.raises(InputError, match=rf"no .*, for {folder} is a link that leads nowhere \(to '/gone'\)"):
            make(folder.parent)
        (tmp_path / "away").rename(tmp_path / folder.name)
    (tmp_path / "root").symlink_to("/gone")
    with pytest.raises(InputError, match="root is a link that leads nowhere"):
        build_dataset("images", tmp_path / "root")
    (tmp_path / "folders/ant").mkdir(parents=True)
    (tmp_path / "folders/bee").symlink_to("/gone")
    with pytest.raises(InputError, match=r"folders/bee is a link that leads nowhere .*: put there what it leads to"):
        ClassFolders(tmp_path / "folders")


def test_a_root_that_is_itself_a_link_works(coco_root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(coco_root)
    assert CocoDetection(tmp_path / "link")[0].image.shape == (3, 48, 64)


@pytest.mark.parametrize(
    ("kind", "split", "year", "command"),
    [
        ("voc", None, None, "voc2007 --root ROOT"),
        ("voc", "val", 2012, "voc2012 --root ROOT"),
        ("coco", None, None, "coco2017 --root ROOT"),
        ("coco", "train2017", None, "coco_calib64 --root ROOT, then add --calib.kind images --calib.split null"),
        ("cifar100", "train", None, "cifar100 --root ROOT"),
        ("imagenet", None, None, "imagenet --root ROOT"),
        ("images", None, None, None),
        ("voc", None, 2009, None),
        ("coco", "test2017", None, None),
    ],
)
def test_missing_data_name_the_command_that_gets_them(
    tmp_path: Path, kind: str, split: str | None, year: int | None, command: str | None
) -> None:
    for root in (tmp_path / "no folder", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError) as error:
            build_dataset(kind, root, split, year)
        message = str(error.value)
        assert "\n" not in message
        if command is None:
            assert "fetch" not in message
        else:
            quoted = f"'{root}'" if " " in str(root) else str(root)
            assert f"get the data with: msat-det fetch {command}".replace("ROOT", quoted) in message


def test_calibration_images_by_the_name_of_their_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"with: msat-det fetch coco_calib64 --root {tmp_path}$"):
        build_dataset("images", tmp_path / "coco_calib64", option="--calib.root")


def test_data_that_are_there_are_not_to_be_fetched(voc_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the year$"):
        build_dataset("voc", voc_root, "val")
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(InputError, match=f"move it away, then msat-det fetch cifar100 --root {tmp_path}$"):
        build_dataset("cifar100", tmp_path)
