"""The files of a run directory: their columns and schema, equal bytes for equal rows, and events that read back."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image
from support.rows import ROWS, picture

from msat_det.base.colours import COLOURS, text_on
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.measure.exits import ExitRow
from msat_det.measure.rows import CurveRow
from msat_det.report.boxes import draw_detections
from msat_det.report.curves import draw_curve, draw_exits
from msat_det.report.directory import RunDirectory
from msat_det.report.style import GREY, METHOD_COLOURS, class_colours


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "demo")


def write_all(run: RunDirectory) -> None:
    run.write("config.yaml", "batch: 8\n")
    run.write_curve(ROWS)
    run.write_summary(ROWS, images=128, seed=0, analog_mac_share=torch.tensor(0.25), commit="abc")
    node = {"op": "conv2d", "source": "net.py:1: conv(x)", "shape": [1, 2, 2], "inputs": [], "analog_macs": 0}
    run.write_coverage([node | {"node": "conv1", "kind": "linear", "macs": 10}])
    run.save("curve.png", draw_curve(ROWS, "demo · 128 images"))
    run.write_detections(*picture(), "if · image 7")


def test_curve(run: RunDirectory) -> None:
    run.write_curve(ROWS)
    assert (run.path / "curve.csv").read_text() == (
        "method,t,map,map50,spikes_per_neuron,sops_per_mac,energy_ratio,events_per_neuron,energy_ratio_int8\n"
        "float,,23.300,39.100,,1.00000,1.00000,,\n"
        "if,4,0.333,2.000,1.50000,0.25000,0.06250,,\n"
        "if,8,20.000,35.000,3.00000,0.50000,0.12500,1.25000,0.09375\n"
        "staged-4,4,21.500,36.000,3.00000,0.50000,0.12500,,\n"
        "silent,4,0.000,0.000,0.00000,0.00000,0.00000,,\n"
    )


def test_curve_of_a_classifier_grows_row_by_row(run: RunDirectory) -> None:
    rows = [CurveRow("float", None, {"top1": 69.3, "top5": 91.0}), CurveRow("if", 8, {"top1": 50.0, "top5": 70.0}, 1.0)]
    for count in (1, 2):
        run.write_curve(rows[:count])
        table = list(csv.DictReader((run.path / "curve.csv").open()))
        assert [(row["method"], row["t"], row["top1"]) for row in table] == [
            ("float", "", "69.300"),
            ("if", "8", "50.000"),
        ][:count]
        draw_curve(rows[:count])


def test_summary(run: RunDirectory) -> None:
    run.write_summary(ROWS, images=128, seed=0, analog_mac_share=torch.tensor(0.25), commit=None)
    summary = json.loads((run.path / "summary.json").read_text())
    assert list(summary) == ["float", "images", "seed", "analog_mac_share", "commit", "methods"]
    assert summary["float"] == {
        "map": 23.3,
        "map50": 39.1,
        "map50_11point": 38.0,
        "spikes_per_neuron": None,
        "sops_per_mac": 1.0,
        "energy_ratio": 1.0,
        "events_per_neuron": None,
        "energy_ratio_int8": None,
    }
    assert {label: list(curve) for label, curve in summary["methods"].items()} == {
        "if": ["4", "8"],
        "staged-4": ["4"],
        "silent": ["4"],
    }
    first = summary["methods"]["if"]["4"]
    assert (first["map"], first["map50_11point"], first["spikes_per_neuron"]) == (0.333333, None, 1.5)
    assert (summary["images"], summary["analog_mac_share"]) == (128, 0.25)


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    runs = [RunDirectory(tmp_path / name) for name in "ab"]
    for run in runs:
        write_all(run)
    names = {file.relative_to(runs[0].path).as_posix() for file in runs[0].path.rglob("*") if file.is_file()}
    assert names == {
        "config.yaml",
        "curve.csv",
        "summary.json",
        "coverage.json",
        "coverage.txt",
        "coverage.svg",
        "curve.png",
        "detections/___a_7.png",
    }
    for name in names:
        assert (runs[0].path / name).read_bytes() == (runs[1].path / name).read_bytes(), name


def test_pictures_show_what_they_should() -> None:
    left, right = draw_curve(ROWS).axes
    assert left.get_xscale() == right.get_xscale() == "log"
    assert [list(line.get_xdata()) for line in left.lines[:2]] == [[4, 8], [4]]
    energies = [[row.energy_ratio for row in ROWS if row.method == label] for label in ("if", "staged-4")]
    assert [list(line.get_xdata()) for line in right.lines[:2]] == energies
    assert "energy" in right.get_xlabel()
    assert [line.get_color() for line in left.lines[:3]] == [
        METHOD_COLOURS[0],
        METHOD_COLOURS[1],
        GREY,
    ]  # silent finds nothing

    figure = draw_detections(*picture(), "title")
    assert [axes.get_title() for axes in figure.axes] == ["ground truth", "float", "t = 4"]
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [["tvmonitor", "dog"], ["tv 0.90"], []]


def numbers_below(axes: Axes) -> list[str]:
    """What stands at the horizontal axis' marks that are seen, also at the small ones between them."""
    low, high = axes.get_xlim()
    ticks = [*zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)]
    ticks += zip(axes.get_xticks(minor=True), axes.get_xticklabels(minor=True), strict=True)
    return [label.get_text() for place, label in ticks if low <= place <= high]


def test_axes_of_exits_bear_plain_numbers() -> None:
    fixed = [ROWS[0], *(CurveRow("if", t, {"map": 2.0 * t, "map50": 3.0 * t}, t, t, 0.06 * t) for t in (1, 2, 4, 8))]
    exits = [ExitRow("if", None, {"map": 5.0, "map50": 6.0}, 3, 3, 0.2, 3, 0.2, tolerance=0.1, fitted=True, mean_t=3.0)]
    figure = draw_exits(exits, fixed, "")
    figure.draw_without_rendering()
    assert [numbers_below(axes) for axes in figure.axes] == [["1", "2", "4", "8"], ["0.1", "0.2", "0.5"]]


def test_timesteps_are_numbered_where_there_is_room() -> None:
    rows = [ROWS[0], *(CurveRow("if", t, {"map": 1.0 * t, "map50": 1.0}, t, t, t) for t in range(1, 17))]
    shown = numbers_below(draw_curve(rows).axes[0])
    assert shown == [*"12345678", "", "10", "", "12", "", "14", "", "16"]


def test_a_class_has_one_colour_everywhere() -> None:
    """The detector's label says which, however the dataset spells the name: VOC's tvmonitor is the network's tv."""
    sample, classes, columns, names = picture()
    numbers = class_colours(names, [*classes, "zebra"])
    assert numbers == {"tv": 0, "tvmonitor": 0, "dog": 1, "zebra": 2}
    hues = {name: COLOURS[number] for name, number in numbers.items()}
    truth, found, _ = draw_detections(sample, classes, columns, names).axes
    assert {to_hex(patch.get_edgecolor()).upper() for patch in found.patches[:1]} == {hues["tv"]}
    assert {to_hex(patch.get_edgecolor()).upper() for patch in truth.patches[:2]} == {hues["tv"], hues["dog"]}
    drawn = np.asarray(columns["float"].draw(torch.zeros(3, 48, 64, dtype=torch.uint8)))
    assert tuple(drawn[41, 20]) == tuple(bytes.fromhex(hues["tv"][1:]))
    style = (PROJECT / "msat_det/report/page/page.css").read_text()
    found = re.findall(r"\.b\d \{ --c: (#\w{6}); --t: (#\w{3});", style)
    assert found == [(colour.lower(), {"white": "#fff", "black": "#000"}[text_on(colour)]) for colour in COLOURS]


def test_boxes_lie_on_their_pixels() -> None:
    """A pixel's left edge is its number, as in a Target, not half a pixel before it."""
    sample, *rest = picture()
    for axes in draw_detections(sample, *rest).axes:
        assert axes.images[0].get_extent() == [0, sample.image.shape[2], sample.image.shape[1], 0]
    truth = draw_detections(sample, *rest).axes[0].patches
    corners = {
        (*patch.get_xy(), patch.get_x() + patch.get_width(), patch.get_y() + patch.get_height()) for patch in truth
    }
    assert set(map(tuple, sample.target.boxes.tolist())) <= corners


def test_pictures_are_images(run: RunDirectory) -> None:
    write_all(run)
    for name in ("curve.png", "detections/___a_7.png"):
        assert min(Image.open(run.path / name).size) > 200


def test_a_failed_write_leaves_the_old_file(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write("config.yaml", "old")

    def full(path: Path, _: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"cannot write .*config\.yaml: No space left on device"):
        run.write("config.yaml", "new")
    assert [file.name for file in run.path.iterdir()] == ["config.yaml"]
    assert (run.path / "config.yaml").read_text() == "old"


def test_two_images_never_share_a_picture(run: RunDirectory) -> None:
    sample, *others = picture()
    for id in ("a/b", "a_b", "x" * 100 + "1", "x" * 100 + "2"):
        run.write_detections(replace(sample, id=id), *others, "")
    assert len(list((run.path / "detections").iterdir())) == 4


def test_unwritable_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below", "/proc/none"):
        with pytest.raises(InputError, match=r"cannot write into .*; give another folder with --out DIR") as caught:
            RunDirectory(path)
        assert "\n" not in str(caught.value)
