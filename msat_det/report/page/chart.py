"""The charts of report.html as numbers: places in percent of the plotting area, so that a page of any width draws them.

The templates of msat_det/report/page/ make SVG of them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from msat_det.measure.rows import CurveRow

COLOURS, MARKERS, DASHES = 8, 7, 3  # how many of each page.css and the templates define
MOST_TICKS = 8
ROOM = 4  # percent left free at either end of a logarithmic axis


@dataclass(frozen=True)
class Curve:
    """A method's curve, the ``number``-th on the page. rows: by t. colour, marker, dash: numbers of any size. lost: it
    finds next to nothing and is grey."""

    name: str
    rows: list[CurveRow]
    number: int
    colour: int
    marker: int
    dash: int
    lost: bool = False

    @property
    def style(self) -> str:
        """The classes of page.css."""
        colour = "lost" if self.lost else f"c{self.colour % COLOURS}"
        return f"{colour} d{self.dash % DASHES}"

    @property
    def mark(self) -> str:
        """The id of the marker in parts.html."""
        return f"m{self.marker % MARKERS}"


@dataclass(frozen=True)
class Point:
    """x, y: percent from the left and from the top. tip: what is said of it."""

    x: float
    y: float
    tip: str


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """title: what it shows. columns and lines: ticks of x and of y. curves: with their points. levels: floats' figures.

    one: place of the float network's own energy, where the axis has it.
    """

    title: str
    x_label: str
    y_label: str
    columns: list[Tick]
    lines: list[Tick]
    curves: list[tuple[Curve, list[Point]]]
    levels: list[Tick]
    one: float | None = None


def charts(curves: list[Curve], levels: dict[str, float], metric: str, name: str) -> list[Chart]:
    """Accuracy over t and over energy. levels: text → the accuracy of a float network. metric, name: which accuracy."""
    rows = [row for curve in curves for row in curve.rows]
    top = max([*levels.values(), *(row.metrics[metric] for row in rows)]) * 1.08 or 1
    lines = [Tick(_up(y, top), f"{y:g}") for y in steps(top)]
    level_lines = [Tick(_up(y, top), text) for text, y in levels.items()]
    made = []
    for title, x_label, key, base in (
        (f"{name} over time", "timesteps t", "t", 2),
        (f"{name} over energy", "estimated energy / float network’s", "energy_ratio", 10),
    ):
        places = [x for row in rows if (x := getattr(row, key)) > 0]  # 0 has no place on a logarithmic axis
        axis = _Axis(places, base)
        drawn = [
            (curve, [Point(axis(getattr(row, key)), _up(row.metrics[metric], top), tip(curve.name, row, metric, name))
                     for row in curve.rows if getattr(row, key) > 0])
            for curve in curves
        ]  # fmt: skip
        one = axis(1.0) if base == 10 and axis.low <= 1 <= axis.high else None
        made.append(Chart(title, x_label, f"{name}, %", axis.ticks(), lines, drawn, level_lines, one))
    return made


def tip(curve: str, row: CurveRow, metric: str, name: str) -> str:
    return f"{curve}, t = {row.t}: {row.metrics[metric]:.1f} % {name}, energy {row.energy_ratio:.2f} × float"


def steps(top: float) -> list[float]:
    """0 and up to six round numbers below ``top``."""
    unit = 10.0 ** math.floor(math.log10(top))
    step = next(unit * factor for factor in (0.1, 0.2, 0.5, 1, 2) if top / (unit * factor) <= 6.001)
    return [round(i * step, 10) for i in range(int(top / step + 1e-9) + 1)]


class _Axis:
    """A logarithmic axis that holds ``values`` (> 0): value → percent from the left."""

    def __init__(self, values: Iterable[float], base: int):
        values = sorted(values) or [1.0]
        self.low, self.high, self.base = values[0], values[-1], base

    def __call__(self, value: float) -> float:
        if self.low == self.high:
            return 50.0
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(ROOM + (100 - 2 * ROOM) * share, 2)

    def ticks(self) -> list[Tick]:
        first, last = (math.floor(math.log(x, self.base)) for x in (self.low, self.high))
        powers = [float(self.base) ** k for k in range(first, last + 2)]
        finer = [(1, 2, 5), (1, 3), (1,)] if self.base == 10 else [(1,)]
        for factors in finer:
            values = [factor * x for x in powers for factor in factors if self.low <= factor * x <= self.high]
            if len(values) <= MOST_TICKS:
                break
        if len(values) < 2:
            values = sorted({self.low, self.high})
        values = values[:: math.ceil(len(values) / MOST_TICKS)]
        return [Tick(self(value), f"{value:.3g}" if self.base == 10 else f"{value:g}") for value in values]


def _up(value: float, top: float) -> float:
    return round(100 - 100 * value / top, 2)
