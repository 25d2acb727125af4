"""report.html: what it says, that no file can break it, equal bytes, several runs in one page, a browser."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from msat_det.base.config import Config
from msat_det.base.errors import InputError
from msat_det.base.provenance import versions
from msat_det.base.settings import PROJECT
from msat_det.data import VOC_CLASSES, Dataset, Sample, Target
from msat_det.measure.batch_files import Part, Parts
from msat_det.measure.rows import CurveRow
from msat_det.models.detector import Detections
from msat_det.report.directory import RunDirectory
from msat_det.report.example_boxes import _clarity, animate, write_about
from msat_det.report.page.chart import Curve, charts, steps
from msat_det.report.page.page import comparison_page, run_page, verdict, write_report
from msat_det.report.style import METHOD_COLOURS
from msat_det.run import cli
from msat_det.run.arguments import load_config

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
CLASSES = [*VOC_CLASSES[:2], HOSTILE]


def point(label: str, t: int | None, accuracy: float, energy: float = 1.0) -> CurveRow:
    return CurveRow(label, t, {"map": accuracy, "map50": 90.0}, None if t is None else 1.5, 1.25, energy)


ROWS = [
    point("float", None, 50.0),
    *[point("signed", 1, 0.0, 0.0), point("signed", 4, 40.0, 0.3), point("signed", 16, 49.0, 1.2)],
    point("staged-4", 4, 47.5, 0.4),
    *[point("p-norm", 4, 1.0, 0.1), point("p-norm", 16, 20.0, 0.5)],
]


class Pictures(Dataset):
    """Two images in memory."""

    name = "voc"

    def __init__(self) -> None:
        self.classes, self.ids = CLASSES, ["a", HOSTILE]

    def __getitem__(self, index: int) -> Sample:
        image = torch.full((3, 60, 80), 40 * index, dtype=torch.uint8)
        boxes = torch.tensor([[8.0, 6.0, 40.0, 30.0], [20.0, 30.0, 90.0, 50.0]])
        return Sample(self.ids[index], image, Target(boxes, torch.tensor([0, 2]), torch.tensor([False, True])))


def found(scores: list[float]) -> list[Detections]:
    boxes = torch.tensor([[8.0, 6.0, 40.0, 30.0]]).repeat(len(scores), 1)
    return [Detections(boxes, torch.tensor(scores), torch.zeros(len(scores), dtype=torch.int64))] * 2


def make_run(folder: Path, rows: list[CurveRow] = ROWS, images: int = 2, **facts: Any) -> Path:
    """A finished run with all of its optional parts, one of them hostile."""
    directory = RunDirectory(folder)
    words = ["--cfg", str(PROJECT / "configs/yolo_voc.yaml"), "--draw.images", str(images), "--out", "run"]
    config = load_config(words)
    directory.write("config.yaml", config.to_yaml())
    directory.write_summary(rows, **{"images": 2, "seed": 0, "commit": HOSTILE, "corrupt_images": [HOSTILE]} | facts)
    node = {"source": f"/a/net.py:7: {HOSTILE}", "shape": [4, 2, 2], "inputs": [], "macs": 1500, "analog_macs": 300}
    site = {"op": "relu", "kind": "spiking", "activation": "relu", "theta": {"signed": [0.5, 2.0]}, "dead_channels": 1}
    directory.write_coverage([node | {"node": HOSTILE, "op": HOSTILE, "kind": "linear"}, node | {"node": "r"} | site])
    entry = {"method": "signed", "t": 16, "site": HOSTILE, "total": 0.5, "quantisation": 0.4, "sin": 0.2, "dead": None}
    (folder / "ledger.json").write_text(json.dumps([entry | {"inherited": -0.1}, entry | {"total": 0.25}]))
    advice = {"site": HOSTILE, "cause": "too coarse", "mend": "percentile 99.9 → 99.99"}
    (folder / "doctor.json").write_text(json.dumps({"signed": [advice]}))
    label = rows[1].method if rows[1:] else None
    write_about(directory, config, Pictures(), CLASSES, make_parts(folder, rows), rows, label, versions())
    return folder


def make_parts(folder: Path, rows: list[CurveRow]) -> Parts:
    (folder / "parts").mkdir()
    part = Part(Pictures().ids, [])
    for row in rows:
        part.found[row.method, row.t] = found([0.9, 0.1] if row.t == 4 else [0.9, 0.6, 0.1])
    parts = Parts(folder / "parts")
    parts.write(0, part)
    return parts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


class Reader(HTMLParser):
    """The page's elements, its text outside scripts, and the content of its scripts."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text, self.scripts = "", []
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts and not self.scripts[-1]:
            self.scripts[-1] = data
        elif self.lasttag != "style":
            self.text += data


def sections(page: str) -> list[str]:
    return [attributes["aria-labelledby"] for tag, attributes in Reader(page).elements if tag == "section"]


def test_the_summary_in_words(folder: Path) -> None:
    text = Reader(run_page(folder)).text
    assert (
        "The float network reaches 50.0 % mAP. staged-4 is good enough, that is, keeps 95 % of it, from t = 4: 47.5 % "
        "for an estimated 0.40 of the float network’s energy. So does signed from t = 16 (1.20 ×). "
        "p-norm does not at any recorded t."
    ) in text
    assert "1 more image could not be read and is left out." in text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [point("a", 4, 30, 2.5)],
            "No method keeps 95 % of it; the closest is a at t = 4 with 30.0 % for an estimated",
        ),
        ([point("a", 4, 30, 2.5)], "2.50 times the float network’s energy, more than it saves"),
        ([], "No method was run."),
        ([point(label, 4, 49, cost) for label, cost in (("a", 2), ("b", 1), ("c", 3))], "b is good enough"),
        ([point(label, 4, 49, cost) for label, cost in (("a", 2), ("b", 1), ("c", 3))], "a from t = 4 (2.00 ×) and c"),
        ([point("a", 4, 1), point("b", 4, 2), point("c", 4, 49)], "a and b do not at any recorded t."),
    ],
)
def test_other_outcomes_in_words(rows: list[CurveRow], words: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [ROWS[0], *rows], images=0)
    assert words in Reader(run_page(run)).text


def test_nothing_is_good_enough_for_a_network_that_finds_nothing(folder: Path) -> None:
    from msat_det.report.comparison import read_comparison

    run = read_comparison(make_run(folder.parent / "zero", [point("float", None, 0.0), point("a", 4, 0.0)]))
    assert verdict(run)["best"] is None
    assert "–" in Reader(run_page(folder.parent / "zero")).text


def boxes_of(page: str) -> dict[str, Any]:
    """What the page tells its slider."""
    return json.loads(next(script for script in Reader(page).scripts if script.startswith("{")))


def test_it_opens_at_the_verdict(folder: Path, tmp_path: Path) -> None:
    """The method of least energy that keeps 95 %, there; else the most accurate one; else what ``draw.method`` says."""
    first = boxes_of(run_page(folder))
    assert (first["method"], first["t"]) == ("staged-4", 4)
    closest = boxes_of(run_page(make_run(tmp_path / "closest", [ROWS[0], *ROWS[5:], point("a", 4, 30.0)])))
    assert (closest["method"], closest["t"]) == ("a", 4)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("  method: null\nledger", "  method: signed\nledger"))
    asked = boxes_of(run_page(folder))
    assert (asked["method"], asked["t"]) == ("signed", 16)


def test_buttons_for_what_is_kept(folder: Path) -> None:
    """Each at the row of least energy that keeps its share: staged-4 has 95 %, signed 98 %, nothing 99 %."""
    page = run_page(folder)
    found = re.findall(r"<button type=\"button\" aria-pressed=\"false\"(.*?)>(\d\d) %</button>", page)
    assert found == [
        (' data-keeps="staged-4" data-t="4"', "90"),
        (' data-keeps="staged-4" data-t="4"', "95"),
        (' disabled title="no method keeps it"', "99"),
    ]
    text = "".join(Reader(page).text.split())
    rows = ["allfloatnetwork50.01.00", "90%staged-4447.50.40", "95%staged-4447.50.40", "99%none–––"]
    assert f"keepsmethodfromtmAP%energy{''.join(rows)}" in text


def test_intervals_stand_beside_their_figures(folder: Path) -> None:
    """Where the run has them; nothing is said of them where it has none."""
    assert "head of" not in Reader(run_page(folder)).text.replace("heads", "")
    summary = json.loads((folder / "summary.json").read_text())
    apart = {"method": "staged-4", "against": "signed", "t": 4, "metric": "map", "difference": 7.5, "low": -1.04}
    others = [apart | {"high": 9.25}, apart | {"high": 0.0, "metric": "agreement"}]
    (folder / "summary.json").write_text(json.dumps(summary | {"differences": others}))
    page = run_page(folder)
    assert page.count('data-value="7.5"><span class="apart">+7.5 (−1.0, +9.2)</span>') == 4  # verdict twice, two tables
    assert page.count("ahead of signed") == 3
    assert "in brackets what 90 % of 1000 bootstrap samples of the images hold" in Reader(page).text
    for broken in ([{}], [apart], [apart | {"high": "1"}], [apart | {"high": 1.0, "against": 7}], 3):
        (folder / "summary.json").write_text(json.dumps(summary | {"differences": broken}))
        with pytest.raises(InputError, match=r"summary\.json is not what a run writes"):
            run_page(folder)


def test_agreement_stands_beside_the_metric(folder: Path, tmp_path: Path) -> None:
    """Where a run has measured it, behind mAP at its last t, at every t, and in the verdict; no column where not."""
    assert "greement" not in Reader(run_page(folder)).text
    rows = [replace(row, metrics=row.metrics | {"agreement": 91.26}) if row.t == 4 else row for row in ROWS]
    measured = make_run(tmp_path / "measured", [rows[0], *rows[2:3], *rows[4:6]])
    text = "".join(Reader(run_page(measured)).text.split())
    assert "keepsmethodfromtmAP%agreement%energyallfloatnetwork50.01.0090%staged-4447.591.30.40" in text
    assert "lasttmAP%agreement%mAP50%" in text
    assert "methodtmAP%agreement%mAP50%offloat%" in text
    assert "signed440.091.390.080.0" in text
    assert "Agreement:mAPwiththeboxesthatthefloatnetworkfindsasthetruth." in text
    both = "".join(Reader(comparison_page([folder, measured])).text.split())
    assert "runp-norm1620.0–90.040.0" in both
    assert "measuredp-norm41.091.390.02.0" in both


def test_why_a_method_never_arrives(folder: Path) -> None:
    """p-norm's neurons are unsigned. The doctor is linked where he has seen it, else the command that asks him."""
    page = run_page(folder)
    assert "p-norm: its neurons cannot take back spikes that came too early" in Reader(page).text
    (folder / "doctor.json").write_text(json.dumps({name: [{"site": "a", "cause": "b"}] for name in ("x", "p-norm")}))
    page = run_page(folder)
    assert '<a href="#doctor-1">p-norm</a>' in page
    assert '<h3 id="doctor-1">p-norm</h3>' in page
    assert "msat-det doctor" not in Reader(page).text
    for others in ({}, {"signed": [{"site": "a"}]}):
        (folder / "doctor.json").write_text(json.dumps(others))
        text = Reader(run_page(folder)).text
        assert "msat-det doctor config.yaml --out . --overwrite in this folder, then msat-det report ." in text


def test_a_method_of_another_version_has_no_reason(folder: Path) -> None:
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("method: p-norm", "method: gone"))
    assert "cannot take back" not in Reader(run_page(folder)).text


def test_the_page_needs_nothing_else_and_runs_no_other_script(folder: Path) -> None:
    reader = Reader(run_page(folder))
    for tag, attributes in reader.elements:
        assert not {"src", "srcset", "action", "data"} & attributes.keys(), tag
        assert attributes.get("href", "#").startswith("#"), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not re.search(r"url\(|@import", (PROJECT / "msat_det/report/page/page.css").read_text())
    policy = next(a["content"] for _, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(reader.scripts[-1].encode()).digest()).decode()
    assert policy.split("; ") == [
        *("default-src 'none'", "base-uri 'none'", "form-action 'none'"),
        *("img-src data:", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'"),
    ]


def test_whatever_the_files_hold_is_text(folder: Path) -> None:
    page = run_page(folder)
    reader = Reader(page)
    assert [attributes.get("type") for tag, attributes in reader.elements if tag == "script"] == [
        "application/json",
        None,
    ]
    assert not [tag for tag, _ in reader.elements if tag == "img"]
    shown = [attributes.get("data-value") for _, attributes in reader.elements]
    assert shown.count(HOSTILE) == 4  # two ledger rows, a node and its operation
    boxes = json.loads(reader.scripts[0])
    assert boxes["images"][1]["id"] == HOSTILE
    assert boxes["images"][0]["truth"][1][4] == HOSTILE
    assert HOSTILE not in page


def test_equal_runs_give_equal_bytes_and_so_does_making_the_page_anew(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / name) for name in "ab")
    for run in (first, second):
        assert write_report([run]) == run / "report.html"
    for name in ("report.html", "report.json", "boxes.gif"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    before = (first / "report.html").read_bytes()
    write_report([first])
    assert (first / "report.html").read_bytes() == before


def test_parts_that_are_not_there_are_left_out(folder: Path) -> None:
    everything = ["curves", "boxes-heading", "methods", "doctor", "ledger", "coverage", "origin"]
    assert sections(run_page(folder)) == everything
    for name, lost in (("ledger.json", "ledger"), ("doctor.json", "doctor"), ("coverage.json", "coverage")):
        (folder / name).unlink()
        everything.remove(lost)
        assert sections(run_page(folder)) == everything
    (folder / "report.json").unlink()
    assert sections(run_page(folder)) == ["curves", "methods", "origin"]


def test_a_classifier_has_no_boxes(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    config = load_config(["--cfg", str(PROJECT / "configs/vgg_demo.yaml")])
    rows = [CurveRow("float", None, {"top1": 80.0, "top5": 95.0}), CurveRow("a", 4, {"top1": 79.0, "top5": 95.0}, 1.0)]
    run.write("config.yaml", config.to_yaml())
    run.write_summary(rows, images=2, seed=0, commit=None)
    write_about(run, config, Pictures(), CLASSES, Parts(run.parts), rows, None, versions())
    page = run_page(run.path)
    assert sections(page) == ["curves", "methods", "origin"]
    assert "80.0 % top-1 accuracy" in Reader(page).text
    assert not (run.path / "boxes.gif").exists()


@pytest.mark.parametrize("name", ["report.json", "coverage.json", "ledger.json", "doctor.json", "summary.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"a": 1}', "7", "[[[]]]", '[{"method": "a", "t": {}}]', "[" * 9999]
)
def test_damaged_files_are_told(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=f"{name} is not what a run writes") as caught:
        run_page(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "photo", ["https://example.org/a.jpg", "data:image/svg+xml;base64,AA", 'data:image/jpeg;base64,A"B']
)
def test_an_image_from_elsewhere_is_refused(photo: str, folder: Path) -> None:
    about = json.loads((folder / "report.json").read_text())
    about["images"][0]["photo"] = photo
    (folder / "report.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"report\.json is not what a run writes"):
        run_page(folder)


def test_the_page_shows_command_and_versions(folder: Path) -> None:
    about = json.loads((folder / "report.json").read_text())
    assert about["command"].startswith("msat-det run --cfg ")
    assert list(about["versions"]) == ["python", "msat-det", "torch", "torchvision"]
    text = Reader(run_page(folder)).text
    assert all(word in text for word in (about["command"], *about["versions"].values(), "split: test"))


def test_drawn_boxes(folder: Path) -> None:
    about = json.loads((folder / "report.json").read_text())
    image = about["images"][0]
    assert (image["width"], image["height"], about["method"]) == (80, 60, "signed")
    assert image["truth"] == [[8, 6, 40, 30, CLASSES[0], False], [20, 30, 80, 50, HOSTILE, True]]  # within the image
    assert image["float"] == [[8, 6, 40, 30, CLASSES[0], 0.9], [8, 6, 40, 30, CLASSES[0], 0.6]]  # not the one of .1
    counts = {label: {t: len(boxes) for t, boxes in of.items()} for label, of in image["methods"].items()}
    assert counts == {"signed": {"1": 2, "4": 1, "16": 2}, "staged-4": {"4": 1}, "p-norm": {"4": 1, "16": 2}}
    photo = base64.b64decode(image["photo"].partition(",")[2])
    assert Image.open(io.BytesIO(photo)).size == (80, 60)


def test_the_animation_has_a_frame_for_each_t(folder: Path) -> None:
    with Image.open(folder / "boxes.gif") as gif:
        assert (gif.n_frames, gif.info["loop"]) == (3, 0)
        times, pictures = [], []
        for number in range(3):
            gif.seek(number)
            times.append(gif.info["duration"])
            pictures.append(gif.convert("RGB"))
    assert times == [900, 900, 2700]
    third = pictures[0].width // 3 * 2 + 10
    for a, b in ((0, 1), (1, 2)):
        before, after = (pictures[i].crop((0, 0, third, pictures[i].height)) for i in (a, b))
        assert before.tobytes() == after.tobytes()  # ground truth and float network stand still
        assert pictures[a].tobytes() != pictures[b].tobytes()


def test_the_animation_takes_the_clearest_image() -> None:
    """The one on which the float network finds most and errs least."""
    right = [0, 0, 10, 10, "dog", False]
    good = {"truth": [right], "float": [[0, 0, 10, 8, "dog", 0.9]]}
    bad = {"truth": [right] * 3, "float": [[0, 0, 10, 10, "cat", 0.9], [5, 5, 15, 15, "dog", 0.9]] * 4}
    empty = {"truth": [], "float": []}
    assert [_clarity(image) for image in (good, bad, empty)] == [1, -11, 0]


def test_a_large_photograph_is_made_small(folder: Path) -> None:
    from msat_det.report.example_boxes import SIDE, _photo

    photo = _photo(torch.zeros(3, 900, 1800, dtype=torch.uint8))
    assert Image.open(io.BytesIO(base64.b64decode(photo.partition(",")[2]))).size == (SIDE, SIDE // 2)
    image = json.loads((folder / "report.json").read_text())["images"][0] | {
        "photo": photo,
        "width": 1800,
        "height": 900,
    }
    assert animate(image, "staged-4", "", {"4": ""}, dict.fromkeys(CLASSES, 0)).startswith(b"GIF89a")


def test_charts() -> None:
    curve = Curve("signed", ROWS[1:4], 0, 0, 0, 0)
    time, energy = charts([curve], {"float 50.0": 50.0}, "map", "mAP")
    (_, points), (_, paid) = time.curves[0], energy.curves[0]
    assert [point.x for point in points] == [4, 50, 96]  # 1, 4, 16: equal steps
    assert [tick.text for tick in time.columns] == ["1", "2", "4", "8", "16"]
    assert points[0].y == 100
    assert points[2].y == pytest.approx(100 - 100 * 49 / (50 * 1.08), abs=0.01)
    assert time.levels[0].at == pytest.approx(100 - 100 / 1.08, abs=0.01)
    assert len(paid) == 2  # the silent one has no place on a logarithmic axis
    assert points[1].tip == "signed, t = 4: 40.0 % mAP, energy 0.30 × float"
    assert energy.one == pytest.approx(4 + 92 * 0.8685, abs=0.1)  # ln(1/.3)/ln(1.2/.3)
    assert time.one is None


@pytest.mark.parametrize("times", [[1], [4], [1, 1024, 4096], [3, 5], list(range(1, 200, 7))])
def test_axes_have_two_to_nine_ticks_within(times: list[int]) -> None:
    rows = [point("a", t, 10, t / 7) for t in times]
    for chart in charts([Curve("a", rows, 0, 0, 0, 0)], {"float": 50.0}, "map", "mAP"):
        assert min(len(times), 2) <= len(chart.columns) <= 9
        assert all(0 <= tick.at <= 100 for tick in (*chart.columns, *chart.lines))
        assert len({tick.at for tick in chart.columns}) == len(chart.columns)


@pytest.mark.parametrize(("top", "last"), [(100, 100), (54.2, 50), (0.3, 0.3), (7, 6), (1, 1)])
def test_round_steps(top: float, last: float) -> None:
    values = steps(top)
    assert values[0] == 0
    assert values[-1] == last
    assert 3 <= len(values) <= 8


def test_colours_can_be_seen_in_both_modes() -> None:
    style = (PROJECT / "msat_det/report/page/page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    for mode in (light, dark):
        colours = dict(re.findall(r"--(\w+): (#\w{6})", light)) | dict(re.findall(r"--(\w+): (#\w{6})", mode))
        assert [colours[f"k{i}"].upper() for i in range(8)] == METHOD_COLOURS  # the same as in curve.png
        for name in [f"k{i}" for i in range(8)] + ["spiking", "linear", "differential", "input", "shape"]:
            assert contrast(colours[name], colours["card"]) >= 3, name
        for name in ("ink", "soft", "accent", "warn"):
            assert min(contrast(colours[name], colours[below]) for below in ("card", "paper")) >= 4.5, name
    for colour, text in re.findall(r"\.b\d \{ --c: (#\w{6}); --t: (#\w{3});", style):
        assert contrast(colour, f"#{text[1:] * 2}") >= 4.5


def contrast(a: str, b: str) -> float:
    """WCAG 2's contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [x / 255 for x in bytes.fromhex(colour[1:])]
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_several_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", [point("float", None, 60.0), *ROWS[1:4]])]
    assert cli.main(["report", *map(str, runs), "--out", str(tmp_path / "all.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'all.html'}\n"
    page = (tmp_path / "all.html").read_text("utf-8")
    reader = Reader(page)
    shown = [attributes["data-toggle"] for _, attributes in reader.elements if "data-toggle" in attributes]
    assert shown == ["0", "1", "2", "3"]
    assert all(text in reader.text for text in ("a · signed", "a · staged-4", "a · p-norm", "b · signed"))
    assert all(text in reader.text for text in ("a: float 50.0", "b: float 60.0", "2 runs on 2 images of voc/test"))
    assert HOSTILE not in page
    assert comparison_page(runs) == page
    colours = re.findall(r'<g class="curve (c\d) (d\d)" data-curve="(\d)">', page)[:4]
    assert colours == [("c0", "d0", "0"), ("c1", "d0", "1"), ("c2", "d0", "2"), ("c0", "d1", "3")]


def test_what_finds_nothing_is_grey(tmp_path: Path) -> None:
    """On a run's page and where it stands beside others; the rest keep their colours."""
    rows = [ROWS[0], point("msat", 4, 2.0), *ROWS[1:4]]
    runs = [make_run(tmp_path / name, rows) for name in "ab"]
    for page, count in ((run_page(runs[0]), 1), (comparison_page(runs), 2)):
        styles = re.findall(r'<g class="curve (\w+) d\d"', page)
        assert styles == ["lost", "c1"] * count * 2  # two charts


def other_metric(run: Path) -> None:
    rows = [CurveRow("float", None, {"top1": 80.0, "top5": 95.0}), CurveRow("a", 4, {"top1": 79.0, "top5": 95.0}, 1.0)]
    RunDirectory(run).write_summary(rows, images=2)


def other_number(run: Path) -> None:
    RunDirectory(run).write_summary(ROWS, images=3)


def other_images(run: Path) -> None:
    about = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(about | {"evaluated": "0" * 64}))


def other_root(run: Path) -> None:
    (run / "report.json").unlink()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("/data/voc\n", "/elsewhere\n", 1))


def other_split(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("split: test", "split: val", 1))


def no_run(run: Path) -> None:
    (run / "summary.json").unlink()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_metric, "the metric is mAP in .*a and top1 in .*b"),
        (other_number, "the number of images is 2 in .*a and 3 in .*b"),
        (other_images, r"the list of evaluated images is \w{12} in .*a and 0{12} in .*b"),
        (other_root, "data.root is .*/data/voc in .*a and .*/elsewhere in .*b"),
        (other_split, "data.split is test in .*a and val in .*b"),
        (no_run, "no .*b/summary.json: the run did not end"),
    ],
)
def test_runs_that_cannot_be_compared(change: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = [make_run(tmp_path / name, images=0) for name in "ab"]
    change(runs[1])
    assert cli.main(["report", *map(str, runs), "--out", str(tmp_path / "all.html")]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: {told}.*\n", error)
    assert not (tmp_path / "all.html").exists()


def test_the_command(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert cli.main(["report", str(folder), str(folder)]) == 2
    assert "run is given twice" in capsys.readouterr().err
    assert cli.main(["report", str(folder), "--out", str(folder / "summary.json/x")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert cli.main(["report"]) == 2
    assert "--help" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name / "run", images=0) for name in "ab"]
    assert f"{tmp_path}/b/run · signed" in Reader(comparison_page(runs)).text


# What a reader does: moves the slider, picks another method, sorts, hides a curve. Then it stands in the title.
DRIVER = """{
const said = [];
const act = (id, value, event) => {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event(event, { bubbles: true }));
  say();
};
const say = () => said.push(document.querySelector(".spiking-boxes .picture").ariaLabel.replace(/: aero.*/, ""));
say();
const press = (share) => {
  const buttons = [...document.querySelectorAll(".keeps button")];
  const button = buttons.find((one) => one.textContent.startsWith(share));
  button.click();
  say();
  said.push(buttons.map((one) => one.ariaPressed).join());
};
press("99");
press("90");
act("method", "signed", "change");
act("time", 2, "input");
act("time", 1, "input");
act("method", "staged-4", "change");
act("method", "p-norm", "change");
const [head] = document.querySelectorAll("#methods ~ .wide th:nth-child(4) button");
head.click();
head.click();
const rows = document.querySelectorAll("#methods ~ .wide tbody:last-child th");
said.push([...rows].map((row) => row.dataset.value).join());
document.querySelector("[data-toggle='1']").click();
said.push([...document.querySelectorAll("[data-curve]")].map((curve) => getComputedStyle(curve).display).join());
const count = (selector) => document.querySelectorAll(selector).length;
said.push(count(".spiking-boxes .box"), count(".float-boxes .box"), count(".truth .box"), count("img"));
said.push(document.documentElement.scrollWidth <= innerWidth);
document.title = JSON.stringify(said);
}"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium in PATH: apt-get install chromium")
    return found


def title_of(page: str, chromium: str, folder: Path, *flags: str) -> str:
    """The document's title once all scripts have run."""
    file = folder / "page.html"
    file.write_text(page, "utf-8")
    common = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command = [chromium, *common, "--virtual-time-budget=2000", *flags, "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1].replace("&quot;", '"')


@pytest.mark.timeout(240)
def test_in_a_browser(chromium: str, tmp_path: Path) -> None:
    page = run_page(make_run(tmp_path / "run", [*ROWS[:3], point("signed", 16, 49.6, 1.2), *ROWS[4:]]))
    driven = page.replace("</body>", f"<script>{DRIVER}</script></body>")
    untouched = title_of(driven, chromium, tmp_path)  # the policy forbids the added script
    assert untouched == "yolo_demo on 2 images of voc/test · msat-det"
    free = re.sub(r"<meta http-equiv=.*?>", "", driven)
    said = json.loads(title_of(free, chromium, tmp_path, "--window-size=500,800"))
    assert said == [
        "Image a, staged-4, t = 4: 1 box",  # the verdict's
        *("Image a, signed, t = 16: 2 boxes", "false,false,true"),  # keeps 99 %
        *("Image a, staged-4, t = 4: 1 box", "true,true,false"),
        "Image a, signed, t = 4: 1 box",
        "Image a, signed, t = 16: 2 boxes",
        "Image a, signed, t = 4: 1 box",
        "Image a, staged-4, t = 4: 1 box",
        "Image a, p-norm, t = 4: 1 box",
        "signed,staged-4,p-norm",  # by the best mAP, falling
        "inline,none,inline,inline,none,inline",
        *[2, 4, 4, 0, True],
    ]


def test_config_knows_its_command_line() -> None:
    words = ["--cfg", str(PROJECT / "configs/yolo_voc.yaml"), "--seed", "3"]
    config: Config = load_config([*words, "--resume"])
    assert config.command == f"msat-det run {' '.join(words)}"
    assert "command" not in config.to_yaml()
    assert (
        load_config([*words, "--resume", "true"], "msat-det compare").command == f"msat-det compare {' '.join(words)}"
    )
    with pytest.raises(InputError, match="unknown key command"):
        load_config([*words, "--command", "x"])
