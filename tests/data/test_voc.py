"""VOC's layout as VOC and the tools of others write it: pixels, class names, lists and XML files."""

import json
import shutil
import tracemalloc
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from support.roots import SCENES, voc_xml, write_image

from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.data import VOC_CLASSES, CocoDetection, Dataset, VocDetection, build_dataset
from msat_det.data.images import ORIENTATION
from msat_det.data.voc_classes import vocabulary
from msat_det.data.voc_xml import VocObject, read_voc_xml
from msat_det.measure.accuracy import evaluate
from msat_det.measure.accuracy.detections import match_classes
from msat_det.models.detector import Detections
from msat_det.run import cli

HOME = "VOCdevkit/VOC2007"
OWN = {"dog": "helmet", "person": "safety vest", "tvmonitor": "crane"}  # SCENES' classes, under names of one's own


def renamed(root: Path, names: dict[str, str]) -> None:
    """Give the annotated classes of a VOC root other names."""
    for path in (root / HOME / "Annotations").iterdir():
        text = path.read_text()
        for old, new in names.items():
            text = text.replace(f"<name>{old}</name>", f"<name>{new}</name>")
        path.write_text(text)


@pytest.fixture
def own_root(voc_root: Path) -> Path:
    """SCENES as a VOC root with classes that are none of VOC's."""
    renamed(voc_root, OWN)
    return voc_root


# ---- pixels


def exact(dataset: Dataset) -> dict[int | str, Detections]:
    """The exact edges of every object, from the files without the reader: what a detector without a fault gives."""
    found = {}
    for id in dataset.ids:
        if isinstance(dataset, CocoDetection):
            names = dict(zip(dataset.category_ids, dataset.classes, strict=True))
            entries = dataset.annotations[id]
            boxes = [(x, y, x + w, y + h) for x, y, w, h in (entry["bbox"] for entry in entries)]
            objects = [names[entry["category_id"]] for entry in entries]
        else:
            elements = ElementTree.parse(dataset.folder.parent / f"Annotations/{id}.xml").findall("object")
            corners = [[float(element.find("bndbox").findtext(edge)) for edge in EDGES] for element in elements]
            boxes = [(x1 - 1, y1 - 1, x2, y2) for x1, y1, x2, y2 in corners]
            objects = [element.findtext("name") for element in elements]
        labels = torch.tensor([dataset.classes.index(name) for name in objects], dtype=torch.int64)
        found[id] = Detections(torch.tensor(boxes).float().reshape(-1, 4), torch.ones(len(labels)), labels)
    return found


EDGES = ("xmin", "ymin", "xmax", "ymax")
DETECTION_DATA = {
    "drawn VOC": ("voc", "data/voc", "test"),
    "drawn VOC to calibrate on": ("voc", "data/voc", "trainval"),
    "drawn COCO": ("coco", "data/coco", "val2017"),
    "drawn COCO to calibrate on": ("coco", "data/coco", "train2017"),
    "photographs, VOC": ("voc", "voc_classes_of_coco", "test"),
    "photographs, COCO": ("coco", "coco_val128", "val2017"),
    "VOC with difficult": ("voc", "voc_root", "test"),
    "COCO with crowds": ("coco", "coco_root", "val2017"),
    "VOC with own classes": ("voc", "own_root", "test"),
}


@pytest.mark.parametrize("data", DETECTION_DATA)
def test_perfect_detections_give_exactly_100(data: str, request: pytest.FixtureRequest) -> None:
    kind, root, split = DETECTION_DATA[data]
    if root.startswith("data/"):
        folder = PROJECT / root
    elif root.endswith("_root"):
        folder = request.getfixturevalue(root)
    else:
        folder = request.getfixturevalue("shared_data") / root
    dataset = build_dataset(kind, folder, split)
    scores = evaluate(dataset, exact(dataset), dataset.classes)
    assert (scores["map"], scores["map50"]) == (100, 100)


def test_voc_and_coco_give_the_same_boxes(voc_root: Path, coco_root: Path) -> None:
    voc, coco = VocDetection(voc_root), CocoDetection(coco_root)
    for stem in SCENES:
        assert torch.equal(voc.target(stem).boxes, coco.target(10 * int(stem)).boxes)


@pytest.mark.parametrize(
    ("written", "edges"),
    [
        ((1, 1, 1, 1), (0, 0, 1, 1)),  # one pixel
        ((5, 8, 30, 40), (4, 7, 30, 40)),
        ((45.7, 2.25, 60.5, 9.75), (44.7, 1.25, 60.5, 9.75)),
        ((0, 0, 30, 40), (0, 0, 30, 40)),  # a tool that counts from 0
        ((-3, 0.5, 30, 40), (0, 0, 30, 40)),
        ((-9, -9, -2, -1), (0, 0, 0, 0)),
    ],
)
def test_voc_pixels_become_edges(tmp_path: Path, written: tuple, edges: tuple) -> None:
    (tmp_path / "a.xml").write_text(voc_xml([("dog", *written, False)]))
    assert read_voc_xml(tmp_path / "a.xml").objects[0].box == pytest.approx(edges)


# ---- classes


def test_labels_index_the_networks_classes(own_root: Path) -> None:
    network = ["crane", "lorry", "helmet", "safety vest"]
    dataset = build_dataset("voc", own_root, classes=network)
    assert dataset.classes == network
    assert [dataset.target(stem).labels.tolist() for stem in SCENES] == [[2, 3], [2, 2], [], [0, 2]]
    assert evaluate(dataset, exact(dataset), network)["map"] == 100


def test_without_a_network_the_annotations_tell_the_classes(own_root: Path) -> None:
    dataset = build_dataset("voc", own_root)
    assert dataset.classes == ["crane", "helmet", "safety vest"]
    assert dataset.target("000001").labels.tolist() == [1, 2]
    assert build_dataset("voc", own_root, classes=dataset.classes).target("000004").labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("annotated", "network", "classes"),
    [
        ({"dog", "person"}, None, VOC_CLASSES),
        (set(), None, VOC_CLASSES),
        ({"tv", "dog"}, None, VOC_CLASSES),  # as COCO spells it
        ({"dog", "crane"}, None, ["crane", "dog"]),
        ({"dog", "person"}, ["person", "crane", "dog"], ["person", "crane", "dog"]),
        ({"tvmonitor"}, ["tv", "couch", "zebra"], ["tv", "couch", "zebra"]),
        ({"dog", "person"}, ["tv", "dog"], VOC_CLASSES),  # who knows some of VOC's classes is judged by those
        ({"dog", "person"}, ["dog", "crane"], ["dog", "crane"]),  # persons are unknown to it, as the reader will say
    ],
)
def test_what_labels_index(annotated: set, network: list | None, classes: list) -> None:
    assert vocabulary(annotated, network) == classes
    if network and annotated <= {*classes}:
        match_classes(network, classes)  # no vocabulary is left that the evaluator refuses


def test_a_sofa_is_no_couch_where_the_network_knows_both(voc_root: Path) -> None:
    renamed(voc_root, {"dog": "sofa", "person": "couch"})
    dataset = build_dataset("voc", voc_root, classes=["couch", "tv", "sofa"])
    assert [dataset.target(stem).labels.tolist() for stem in SCENES] == [[2, 0], [2, 2], [], [1, 2]]
    assert build_dataset("voc", voc_root, classes=["couch", "tv"]).target("000001").labels.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("network", "part"),
    [
        (["crane", "helmt", "safety vest"], r"000001\.xml, object 1: unknown class 'helmet', .*did you mean helmt\?"),
        (
            ["crane", "helmet"],
            r"object 2: unknown class 'safety vest', the network's classes are crane, helmet: correct",
        ),
        (["crane", "HELMET", "safety vest"], r"unknown class 'helmet', .*did you mean HELMET"),
        (VOC_CLASSES, r"000001\.xml, object 1: unknown class 'helmet'"),
    ],
)
def test_a_class_that_the_network_does_not_know(own_root: Path, network: list[str], part: str) -> None:
    with pytest.raises(InputError, match=part):
        build_dataset("voc", own_root, classes=network)


@pytest.fixture
def own_scenes(tmp_path: Path) -> tuple[Path, Path]:
    """The drawn scenes with classes of one's own, and the file with the names of the demo network's outputs."""
    root = tmp_path / "scenes"
    shutil.copytree(PROJECT / "data/voc", root)
    names = {name: f"kind {20 - number}" for number, name in enumerate(VOC_CLASSES)}  # in another order than sorted
    renamed(root, names)
    (tmp_path / "own.names").write_text("".join(f"{name}\n" for name in names.values()))
    return root, tmp_path / "own.names"


FEW = ["--data.limit", "4", "--calib.limit", "2", "--methods", "signed-b3", "--sim.record", "4", "--draw.images", "1"]
CFG = ["--cfg", str(PROJECT / "configs/yolo_voc.yaml")]


def test_commands_take_own_classes(own_scenes: tuple[Path, Path], tmp_path: Path) -> None:
    """The figures are those under VOC's names."""
    root, names = own_scenes
    own = ["--data.root", str(root), "--model.names", str(names)]
    assert cli.main(["compare", *CFG, *FEW, *own, "--out", str(tmp_path / "own")]) == 0
    assert cli.main(["convert-det", *CFG, *FEW, "--out", str(tmp_path / "voc")]) == 0
    figures = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("own", "voc")]
    assert figures[0]["float"]["map"] == figures[1]["float"]["map"] > 30
    mine, vocs = (figure["methods"]["signed-b3"]["4"] for figure in figures)
    by_class = [list(one.pop("ap50").values()) for one in (mine, vocs)]  # in the network's order
    assert (mine, by_class[0]) == (vocs, by_class[1])
    image = json.loads((tmp_path / "own/report.json").read_text())["images"][0]
    assert {box[4][:5] for box in image["truth"] + image["float"]} == {"kind "}
    words = [*CFG, *FEW[2:6], *own, "--sim.T", "2"]
    assert cli.main(["doctor", *words, "--images", "1", "--out", str(tmp_path / "look")]) == 0
    assert cli.main(["inspect", *words, "--out", str(tmp_path / "inspect")]) == 0


def test_a_wrong_name_of_an_own_class_is_one_line(
    own_scenes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, names = own_scenes
    names.write_text(names.read_text().replace("kind 1\n", "sort 1\n"))
    words = [*CFG, *FEW, "--data.root", str(root), "--model.names", str(names), "--out", str(tmp_path / "out")]
    assert cli.main(["convert-det", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "unknown class 'kind 1'" in line
    assert ".xml, object" in line
    assert "did you mean kind " in line


# ---- XML as tools write it

BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>4</xmax><ymax>5</ymax></bndbox>"
OBJECT = "<object><name>{name}</name>{flags}" + BOX + "</object>"
PLAIN = f"<annotation>{OBJECT.format(name='dog', flags='')}</annotation>"
DOG = VocObject("dog", (1, 2, 4, 5), False)


@pytest.mark.parametrize(
    ("flag", "difficult"),
    [(flag, False) for flag in ("0", "", " ", "Unspecified", "False", "false", "no", "None", "0.0", "\n0\n")]
    + [(flag, True) for flag in ("1", "True", "TRUE", "true", "yes", "1.0", " 1 ")],
)
def test_difficult_as_tools_write_it(tmp_path: Path, flag: str, difficult: bool) -> None:
    text = OBJECT.format(name="dog", flags=f"<difficult>{flag}</difficult>")
    (tmp_path / "a.xml").write_text(f"<annotation>{text}</annotation>")
    assert [found.difficult for found in read_voc_xml(tmp_path / "a.xml").objects] == [difficult]


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ("<size><width>500</width><height> 375 </height><depth>3</depth></size>", (500, 375)),
        ("<size><width>0</width><height>0</height></size>", None),
        ("<size><width>500</width></size>", None),
        ("<size><width>wide</width><height>-3</height></size>", None),
        ("", None),
    ],
)
def test_the_size_that_was_annotated(tmp_path: Path, size: str, found: tuple | None) -> None:
    (tmp_path / "a.xml").write_text(PLAIN.replace("<object>", f"{size}<object>"))
    assert read_voc_xml(tmp_path / "a.xml").size == found


def test_an_empty_difficult_and_no_truncated(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(PLAIN.replace("</name>", "</name><difficult/>"))
    assert read_voc_xml(tmp_path / "a.xml").objects == [DOG]


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("UTF-8", "chien âgé"),
        ("latin-1", "chien âgé"),
        ("ISO-8859-1", "chien âgé"),
        ("windows-1252", "Hündin – alt"),
        ("gb2312", "狗"),
        ("GBK", "狗"),
        ("Shift_JIS", "いぬ"),
        ("euc-kr", "개"),
        ("koi8-r", "собака"),
        ("utf-16", "狗"),
        ("utf-16-le", "狗"),
        ("utf-16-be", "狗"),
        ("us-ascii", "dog"),
    ],
)
def test_xml_is_read_in_the_encoding_that_it_declares(tmp_path: Path, encoding: str, name: str) -> None:
    text = f"<?xml version='1.0' encoding='{encoding}'?>\n<annotation>{OBJECT.format(name=name, flags='')}</annotation>"
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    assert [found.name for found in read_voc_xml(tmp_path / "a.xml").objects] == [name]


DECLARED = '<?xml version="1.0" encoding="utf-8" standalone="no"?>'


@pytest.mark.parametrize(
    "content",
    [
        f"\n{DECLARED}{PLAIN}",
        f" \r\n\t{DECLARED}\n{PLAIN}\n",
        f"\ufeff{DECLARED}{PLAIN}",
        f"\ufeff\n{DECLARED}{PLAIN}",
        f"\ufeff{PLAIN}",
        f"{DECLARED.replace('utf-8', 'utf-16')}{PLAIN}",  # what a program writes that made a string of it
        f"{DECLARED.replace('utf-8', 'utf-8-sig')}{PLAIN}",
        f"{DECLARED}<!-- by a tool --><?style none?>{PLAIN}",
        f"<!DOCTYPE annotation>{PLAIN}",
        f'{DECLARED}\n<!DOCTYPE annotation SYSTEM "http://example.org/voc.dtd">\n{PLAIN}',
        f'<!DOCTYPE annotation PUBLIC "-//VOC//EN" "voc.dtd" [<!ELEMENT annotation (object*)>]>{PLAIN}',
        PLAIN.replace("<annotation>", '<annotation verified="yes" xmlns="http://example.org/voc">'),
        PLAIN.replace("<", "<v:").replace("<v:/", "</v:").replace("<v:annotation>", '<v:annotation xmlns:v="urn:voc">'),
        PLAIN.replace("<object>", '<object id="3"><pose/><part><name>head</name><bndbox/></part>'),
        PLAIN.replace("<name>dog</name>", "<name>\n  dog\n</name>"),
        PLAIN.replace("<xmin>2<", "<xmin> 2.0 <"),
    ],
)
def test_xml_as_tools_write_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.xml").write_bytes(content.encode())
    assert read_voc_xml(tmp_path / "a.xml").objects == [DOG]


BOMB = '<!DOCTYPE annotation [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    "content",
    [
        BOMB.encode(),
        BOMB.encode("utf-16"),
        BOMB.encode("utf-16-be"),
        BOMB.replace("<!DOCTYPE", "<?xml version='1.0' encoding='gb2312'?><!DOCTYPE").encode(),
        b'<!DOCTYPE annotation [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]><annotation/>',
        b'<!DOCTYPE annotation SYSTEM "file:///etc/passwd"><annotation><filename>&x;</filename></annotation>',
        b'<!DOCTYPE annotation [<!ATTLIST object a CDATA "long">]><annotation><object/></annotation>',
    ],
)
def test_a_document_type_may_declare_nothing_that_grows(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.xml: its document type"):
        read_voc_xml(tmp_path / "a.xml")


def test_namespaces_make_no_bomb(tmp_path: Path) -> None:
    """Every name would have a namespace of 100 KB before it: 2 GB."""
    tags = "".join(f"<a{number:x}/>" for number in range(20_000))
    (tmp_path / "a.xml").write_text(f'<annotation xmlns="{"x" * 100_000}">{tags}</annotation>')
    tracemalloc.start()
    assert read_voc_xml(tmp_path / "a.xml").objects == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("<annotation>é</annotation>".encode("latin-1"), "as UTF-8 text .* declare its encoding"),
        (b"<?xml version='1.0' encoding='gb2312'?><annotation>\xff</annotation>", "as GB2312 text"),
        (b"<?xml version='1.0' encoding='punycode'?><annotation/>", "unknown encoding: punycode"),
        (b"<?xml version='1.0' encoding='zip'?><annotation/>", "broken XML"),
        (b"<?xml version='1.0' encoding='no-such'?><annotation/>", "broken XML"),
        (b"<?xml version='1.0' encoding='utf-7'?><annotation>+2AA-</annotation>", "broken XML|UTF-7"),
        (b"\xff\xfe<", "as UTF-16 text"),
    ],
)
def test_bad_encodings(tmp_path: Path, content: bytes, part: str) -> None:
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(InputError, match=part) as error:
        read_voc_xml(tmp_path / "a.xml")
    assert str(error.value).isprintable()


# ---- lists and image files


def listed(root: Path, lines: str, *stems: str) -> Path:
    """A VOC root with that list, and an annotation and an image for each of ``stems``."""
    home = root / HOME
    for folder in ("Annotations", "ImageSets/Main"):
        (home / folder).mkdir(parents=True)
    (home / "ImageSets/Main/test.txt").write_text(lines)
    for seed, stem in enumerate(stems):
        (home / f"Annotations/{stem}.xml").write_text(voc_xml([("dog", 1, 2, 3, 4, False)]))
        write_image(home / f"JPEGImages/{stem}.jpg", seed)
    return root


@pytest.mark.parametrize(
    ("lines", "ids"),
    [
        ("000001\n000002\n", ["000001", "000002"]),
        ("000001  1\n000002 -1\n000003\t0\n", ["000001", "000002", "000003"]),
        ("my photo\nmy photo 2\n", ["my photo", "my photo 2"]),
        ("my photo 1\n", ["my photo 1"]),  # its name, as there is one
        ("my photo  1\nmy  dog -1\n", ["my  dog", "my photo"]),
        ("my photo -1\n", ["my photo"]),
        ("000001.jpg\n000002.JPG 1\nmy photo.xml\n", ["000001", "000002", "my photo"]),
        ("a.b\nc.jpg\n", ["a.b", "c.jpg"]),  # parts of names
        ("  000001 \r\n\n", ["000001"]),
        ("1\n", ["1"]),
    ],
)
def test_lists_of_images(tmp_path: Path, lines: str, ids: list[str]) -> None:
    stems = ["000001", "000002", "000003", "my photo", "my photo 1", "my photo 2", "my  dog", "a.b", "c.jpg", "1"]
    dataset = VocDetection(listed(tmp_path, lines, *stems))
    assert dataset.ids == ids
    assert [len(dataset[i].target.labels) for i in range(len(ids))] == [1] * len(ids)


def test_a_line_of_thousands_of_folders_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test\.txt: a line has more than 8192 characters"):
        VocDetection(listed(tmp_path, "000001\n" + "a/" * 500_000 + "\n", "000001"))


def test_a_list_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*/Annotations/my photo\.xml"):
        VocDetection(listed(tmp_path, "000001\nmy photo.jpg 1\n", "000001"))
    with pytest.raises(InputError, match="'000001' is listed twice"):
        VocDetection(listed(tmp_path / "twice", "000001\n000001.jpg\n", "000001"))


@pytest.mark.parametrize(
    ("line", "called", "there", "read"),
    [
        ("a", "a.jpg", ["a.jpg"], "a.jpg"),
        ("a", "", ["a.PNG"], "a.PNG"),
        ("a", "a.jpg", ["a.JPEG"], "a.JPEG"),
        ("a", "a.png", ["a.bmp", "a.jpg", "a.png"], "a.png"),
        ("a.bmp", "a.png", ["a.bmp", "a.jpg", "a.png"], "a.bmp"),
        ("a", "", ["a.bmp", "a.jpg"], "a.jpg"),
        ("a", r"C:\photos\b.png", ["b.png"], "b.png"),
        ("a", "b.jpg", ["a.webp", "b.jpg"], "a.webp"),
    ],
)
def test_the_image_of_an_annotation(tmp_path: Path, line: str, called: str, there: list[str], read: str) -> None:
    root = listed(tmp_path, f"{line}\n")
    xml = voc_xml([("dog", 1, 2, 3, 4, False)]).replace("<annotation>", f"<annotation><filename>{called}</filename>")
    (root / HOME / "Annotations/a.xml").write_text(xml)
    for number, name in enumerate(there):
        write_image(root / HOME / "JPEGImages" / name, size=(8, 8 + number))
    image = VocDetection(root)[0].image
    assert image.shape[1] == 8 + there.index(read)


def test_another_annotations_image_is_not_taken(tmp_path: Path) -> None:
    """Copied annotations often call an image what it was copied from."""
    root = listed(tmp_path, "a\nb\nc\n", "a", "b", "c")
    for stem in "abc":
        path = root / HOME / f"Annotations/{stem}.xml"
        path.write_text(path.read_text().replace("<annotation>", "<annotation><filename>a.jpg</filename>"))
    (root / HOME / "JPEGImages/b.jpg").unlink()
    dataset = VocDetection(root)
    with pytest.raises(InputError, match=r"no image file .*b\.jpg"):
        dataset[1]


def test_a_photograph_that_was_annotated_upright_is_set_upright(voc_root: Path) -> None:
    home = voc_root / "VOCdevkit/VOC2007"
    xml = home / "Annotations/000001.xml"
    xml.write_text(xml.read_text().replace("<object>", "<size><width>64</width><height>48</height></size><object>", 1))
    path = home / "JPEGImages/000001.jpg"
    stored = VocDetection(voc_root).image("000001")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    dataset = VocDetection(voc_root)
    upright = dataset.image("000001")
    assert upright.shape == stored.shape == (3, 48, 64)
    assert (upright.float() - stored.float()).abs().mean() < 12  # JPEG once more
    assert dataset.misfit("000001", upright) == ""
    with Image.open(path) as image:
        image.resize((30, 20)).save(path)
    assert "30 x 20 pixels, its annotation is for 64 x 48" in dataset.misfit("000001", dataset.image("000001"))
