"""``msat-det inspect`` on an embedded network, its table's totals and the picture of the graph."""

import json
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

from msat_det.base.settings import PROJECT
from msat_det.report.coverage_picture import BOX_H, BOX_W, draw_graph, layers
from msat_det.report.coverage_table import coverage_text, short_source, totals
from msat_det.run import cli

SVG = "{http://www.w3.org/2000/svg}"
DEMO = ["--cfg", str(PROJECT / "configs/yolo_voc.yaml"), "--calib.limit", "2", "--threads", "1"]


def row(node: str, inputs: list[str] = (), kind: str = "linear", **more: object) -> dict:
    entry = {"node": node, "op": "conv2d", "source": "/a/net.py:7: x = f(x)", "kind": kind, "shape": [4, 2, 2]}
    return entry | {"inputs": list(inputs), "macs": 0, "analog_macs": 0} | more


def site(node: str, inputs: list[str], theta: dict) -> dict:
    return row(node, inputs, "spiking", activation="relu", neurons=16, dead_channels=1, theta=theta)


def boxes(svg: str) -> dict[str, tuple[float, float]]:
    """Node → left upper corner, from the tooltips and the frames."""
    found = {}
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        if group.get("class") == "node":
            frame = group.find(f"{SVG}rect")
            name = group.find(f"{SVG}title").text.splitlines()[0].removeprefix("node: ")
            found[name] = float(frame.get("x")), float(frame.get("y"))
    return found


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    assert cli.main(["inspect", *DEMO, "--methods", "signed,p-norm", "--out", str(folder)]) == 0
    return folder


def test_every_node_is_in_table_and_picture(inspected: Path) -> None:
    rows = json.loads((inspected / "coverage.json").read_text("utf-8"))
    lines = (inspected / "coverage.txt").read_text("utf-8").splitlines()
    assert [line.split()[0] for line in lines] == ["node", *(r["node"] for r in rows), "total:"]
    assert "θ signed" in lines[0]
    assert "θ p-norm" in lines[0]
    assert set(boxes((inspected / "coverage.svg").read_text("utf-8"))) == {r["node"] for r in rows}
    macs = sum(r["macs"] for r in rows)
    assert lines[-1].startswith(f"total: {macs:,} multiply-adds, analog share 0.0 %, coverage 100 % (")


def test_terminal_shows_the_first_method(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["inspect", *DEMO, "--methods", "signed,p-norm", "--out", str(tmp_path)]) == 0
    shown, told = capsys.readouterr()
    assert "θ signed" in shown
    assert "θ p-norm" not in shown
    assert shown.splitlines()[-1].startswith("total: ")
    assert str(tmp_path) in told.splitlines()[-1]


@pytest.mark.parametrize("words", [["--cfg", "nope.yaml"], [*DEMO, "--methods", "nope"], [*DEMO, "--calib.root", "no"]])
def test_bad_input(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["inspect", *words, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("error: ") == 1


def test_totals_and_ranges() -> None:
    rows = [row("x", kind="input"), row("a", ["x"], macs=1500, analog_macs=500), site("r", ["a"], {"m": [0.5, 2.0]})]
    assert totals(rows) == "total: 1,500 multiply-adds, analog share 33.3 %, coverage 100 % (3 of 3 nodes)"
    assert "0.5 – 2" in coverage_text(rows)
    assert "1/4" in coverage_text(rows)
    rows.append(site("bare", ["r"], {}))
    assert totals(rows).endswith("coverage 75 % (3 of 4 nodes)")


def test_a_method_with_a_graph_of_its_own() -> None:
    shared = [row("x", kind="input"), site("r", ["x"], {"m": [1.0, 1.0]})]
    own = [row("x", kind="input", method="v"), row("r", ["x"], "differential", method="v"), row("more", method="v")]
    assert coverage_text(shared + own).count("total: ") == 2
    assert "The graph of v" in coverage_text(shared + own)
    assert set(boxes(draw_graph(shared + own))) == {"x", "r"}
    shared[1]["theta"] = {}  # no method runs on this one
    assert coverage_text(shared + own).count("total: ") == 1
    assert set(boxes(draw_graph(shared + own))) == {"x", "r", "more"}


def test_short_source() -> None:
    assert short_source('/home/a b/net.py:12: y = f(x)["a.py:3"]') == "net.py:12"
    assert short_source("no source line") == "no source line"


def test_markup_in_names_is_escaped() -> None:
    name = "</text><script>&\"'"
    assert set(boxes(draw_graph([row(name, op="<lambda>", source="a & b < c")]))) == {name}


def test_layout_flows_down_without_overlap() -> None:
    rows = [row("x", kind="input"), row("weight", kind="shape")]
    for i in range(40):  # two branches of different length, joined; a skip over both
        before = f"join{i - 1}" if i else "x"
        rows += [row(f"a{i}", [before]), row(f"b{i}", [f"a{i}"]), row(f"c{i}", [before])]
        rows.append(row(f"join{i}", [f"b{i}", f"c{i}", before]))
    rows.append(row("last", ["join39", "weight"]))
    layer, place = layers(rows), boxes(draw_graph(rows))
    assert layer["weight"] == layer["last"] - 1
    assert all(place[r["node"]][1] - place[name][1] > BOX_H for r in rows for name in r["inputs"])
    corners = sorted(place.values(), key=lambda corner: (corner[1], corner[0]))
    for (x0, y0), (x1, y1) in pairwise(corners):
        assert y0 != y1 or x1 - x0 > BOX_W
