"""Figures in the written pages and in the configurations' headers are those of the measured tables (docs/results)."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from msat_det.base.settings import PROJECT

RESULTS = PROJECT / "docs" / "results"
NETWORKS = {
    "SSD-MobileNet": "ssd_mobilenet_coco",
    "YOLO Nano": "yolo_nano_coco",
    "YOLO-Fastest": "yolo_fastest_coco",
    "YOLOv8n": "yolov8n_coco",
    "YOLOX-Nano": "yolox_nano_coco",
    "PicoDet-S": "picodet_s_coco",
    "FastestDet": "fastestdet_coco",
}
DELTA = "Delta coding, held-out images"


def measured(name: str) -> dict[tuple[str, str], dict[str, float]]:
    """{(label, t): figures} of one table, t "" for the float network; mAP or top-1 as ``accuracy``."""
    found = {}
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["source"] == "measured":
                numbers = {key: float(value) for key, value in row.items() if re.fullmatch(r"[\d.e-]+", value or "")}
                accuracy = numbers["map"] if "map" in numbers else numbers["top1"]
                found[row["label"], row["t"]] = numbers | {"accuracy": accuracy}
    return found


def cells(text: str, head: str) -> list[list[str]]:
    """The rows of the first Markdown table whose heading begins with ``head``, the heading first."""
    rows = []
    for line in text[text.index(f"\n| {head}") + 1 :].splitlines():
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def agreement(name: str) -> dict[tuple[str, str], str]:
    """{(label, t): agreement} on the held-out images, as the network's page has it."""
    page = (RESULTS / f"{name}.md").read_text("utf-8")
    head, *rows = cells(page[page.index(f"## {DELTA}") :], "agreement")
    times = [re.sub(r"\D", "", cell) for cell in head[1:]]
    return {(row[0].strip("`"), t): cell for row in rows for t, cell in zip(times, row[1:], strict=True)}


def expected(file: Path) -> Iterator[tuple[str, str, str]]:
    """(table, label, accuracy) of what a configuration's header says, on all images and on the held-out ones."""
    header = " ".join(line.lstrip("# ") for line in file.read_text("utf-8").split("data:")[0].splitlines())
    everything, _, held_out = header[header.index("Expected:") :].partition("On the 64 others")
    every = next(file.stem + end for end in ("_all", "_codings", "") if (RESULTS / f"{file.stem}{end}.csv").is_file())
    for table, text in ((every, everything), (f"{file.stem}_delta", held_out)):
        for label, accuracy in re.findall(r"\b(float|delta-2|delta-3|delta-fit|int8) (?:mAP |top1 )?(\d+\.\d)\b", text):
            yield table, label, accuracy


def test_readme() -> None:
    rows = cells((PROJECT / "README.md").read_text("utf-8"), "network, 64 COCO images")[1:]
    assert [row[0] for row in rows] == ["SSD-MobileNet", "YOLO Nano", "YOLOv8n"]
    for network, *figures in rows:
        table = measured(f"{NETWORKS[network]}_delta")
        made = [table["delta-3", "1"], table["delta-fit", "1"]]
        wanted = [f"{one['accuracy']:.1f} ({one['energy_ratio']:.2f})" for one in made]
        assert figures[:3] == [f"{table['float', '']['accuracy']:.1f}", *wanted], network
        if figures[3] != "not measured":
            paper = measured(f"{NETWORKS[network]}_fit")["msat-reference", "16"]
            assert figures[3] == f"{paper['accuracy']:.1f} ({paper['energy_ratio']:.1f})"


def test_own_detector() -> None:
    head, *rows = cells((PROJECT / "docs/own_detector.md").read_text("utf-8"), "| YOLOv8n")
    tables = [measured(f"{NETWORKS[cell.split(',')[0]]}_delta") for cell in head[1:]]
    for kind, *figures in rows:
        label, _, t = kind.replace("`", "").partition(", t = ")
        for figure, table in zip(figures, tables, strict=True):
            if label != "from" and figure:
                one = table[label, "" if label == "float" else t or "1"]
                energy = f" ({one['energy_ratio']:.2f})".replace("0.", ".", 1)
                assert figure == f"{one['accuracy']:.1f}" + energy * (label != "float"), kind


def test_delta() -> None:
    rows = cells((PROJECT / "docs/delta.md").read_text("utf-8"), "| t | SSD: mAP")[1:]
    label = ""
    for row in rows:
        label = re.match(r"`([\w-]+)`|", row[0])[1] or label
        for network, figures in (("SSD-MobileNet", row[2:6]), ("YOLO Nano", row[6:10])):
            one = measured(f"{NETWORKS[network]}_delta")[label, row[1]]
            costs = [f"{one[cost]:.2f}" for cost in ("energy_ratio", "energy_ratio_int8")]
            assert figures == [f"{one['accuracy']:.1f}", agreement(NETWORKS[network])[label, row[1]], *costs], row


def test_findings() -> None:
    head, *rows = cells((PROJECT / "docs/findings.md").read_text("utf-8"), "| `delta-2`, t = 1")
    keys = [tuple(cell.replace("`", "").split(", t = ")) for cell in head[1:-1]] + [("int8", "1")]
    assert [row[0] for row in rows] == list(NETWORKS)
    for network, *figures in rows:
        table, agreed = measured(f"{NETWORKS[network]}_delta"), agreement(NETWORKS[network])
        for key, figure in zip(keys, figures, strict=True):
            assert figure == (f"{agreed[key]} for {table[key]['energy_ratio']:.2f}" if agreed.get(key) else ""), network


@pytest.mark.parametrize(
    "file",
    [file for file in sorted((PROJECT / "configs/real").glob("*.yaml")) if list(RESULTS.glob(f"{file.stem}*.csv"))],
    ids=lambda file: file.stem,
)
def test_configurations(file: Path) -> None:
    for table, label, accuracy in expected(file):
        rows = {t: figures["accuracy"] for (name, t), figures in measured(table).items() if name == label}
        assert accuracy == f"{next(iter(rows.values())):.1f}", f"{file.name}: {label} of {table}"
