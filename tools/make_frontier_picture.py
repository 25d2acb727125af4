"""Make docs/frontier.png: what share of the float network's accuracy each coding keeps, over the energy that it takes.

python tools/make_frontier_picture.py

It reads the tables that tools/make_results.py has left in docs/results: of both codings, of delta coding, and of fitted
thresholds under rate coding. Each table's accuracies are shares of its own float network's.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from msat_det.base.colours import COLOURS, INK
from msat_det.base.errors import InputError
from msat_det.base.settings import PROJECT
from msat_det.methods import METHODS
from msat_det.report.style import legend_below, quiet
from msat_det.run.arguments import Parser
from msat_det.run.terminal import once

DOCS = PROJECT / "docs"
NETWORKS = {
    "ssd_mobilenet_coco": "SSD-MobileNetV1, COCO",
    "yolo_nano_coco": "YOLOv3-Nano, COCO",
    "resnet20_cifar100": "ResNet-20, CIFAR-100",
    "squeezenet_imagenet": "SqueezeNet 1.0, ImageNet",
}
COSTS = {
    "energy_ratio": "energy / energy of the float network",
    "energy_ratio_int8": "the same with 8-bit weights / energy of the 8-bit network",
}
KINDS = {"rate": (COLOURS[1], "o"), "delta": (COLOURS[0], "s"), "8-bit network": (INK, "*")}
LEAST = 80.0  # percent of the float network's accuracy


@dataclass(frozen=True)
class Point:
    kind: str  # of KINDS
    name: str
    cost: float
    kept: float  # percent of the float network's accuracy


def points(network: str, cost: str) -> list[Point]:
    """What the network's tables hold, a method at one t each, without what keeps less than ``LEAST``."""
    found = []
    for table in tables(network):
        level, *rows = csv.DictReader(table.read_text("utf-8").splitlines())
        metric = "map" if "map" in level else "top1"
        for row in rows:
            if row["source"] == "measured" and float(row.get(cost) or 0) > 0:
                kept = 100 * float(row[metric]) / float(level[metric])
                found.append(Point(kind(row["method"]), f"{row['label']}, t = {row['t']}", float(row[cost]), kept))
    return [point for point in found if point.kept >= LEAST]


def tables(network: str) -> list[Path]:
    files = [DOCS / f"results/{network}_{name}.csv" for name in ("codings", "delta", "fit")]
    return [file for file in files if file.is_file()]


def kind(method: str) -> str:
    if method == "int8":
        return "8-bit network"
    return "delta" if METHODS[method].options().coding == "delta" else "rate"


def front(found: list[Point]) -> list[Point]:
    """The points, cheapest first, that keep more than all that cost no more."""
    best: list[Point] = []
    for point in sorted(found, key=lambda point: (point.cost, -point.kept)):
        if not best or point.kept > best[-1].kept:
            best.append(point)
    return best


def draw() -> Figure:
    networks = {name: title for name, title in NETWORKS.items() if len(tables(name)) > 1}
    if not networks:
        raise InputError(f"{DOCS / 'results'} holds no table of {', '.join(NETWORKS)}: run tools/make_results.py")
    figure = Figure(figsize=(4 * len(networks), 6.6), dpi=110, layout="constrained")
    panels = figure.subplots(len(COSTS), len(networks), sharey=True, squeeze=False)
    for row, (cost, words) in zip(panels, COSTS.items(), strict=True):
        for axes, name in zip(row, networks, strict=True):
            _panel(axes, points(name, cost))
            axes.set_xlabel(words, fontsize=8)
        row[0].set_ylabel("% of the float network's accuracy", fontsize=8)
    for axes, title in zip(panels[0], networks.values(), strict=True):
        axes.set_title(title, color=INK, fontsize=10)
    handles, labels = panels[0][0].get_legend_handles_labels()
    legend_below(figure, 4, handles, labels)
    return figure


def _panel(axes: Axes, found: list[Point]) -> None:
    for each, (colour, marker) in KINDS.items():
        own = [point for point in found if point.kind == each]
        size = 90 if each == "8-bit network" else 16
        axes.scatter([p.cost for p in own], [p.kept for p in own], c=colour, marker=marker, s=size, alpha=0.5, zorder=3)
        best = front(own)
        label = each if each == "8-bit network" else f"{each} coding, its frontier"
        axes.step(
            [p.cost for p in best], [p.kept for p in best], where="post", color=colour, marker=marker, label=label
        )
    axes.axhline(100, color=INK, linestyle="--", linewidth=1)
    axes.axvline(1, color=INK, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=7)
    quiet(axes)


@once
def main(argv: list[str]) -> None:
    parser = Parser(description="Draws docs/frontier.png, accuracy over energy under rate and under delta coding.")
    parser.add_argument("--out", metavar="FILE", type=Path, default=DOCS / "frontier.png", help="default: %(default)s")
    target = parser.parse_args(argv).out
    draw().savefig(target, format="png", metadata={"Software": None})
    print(target)


if __name__ == "__main__":
    sys.exit(main())
