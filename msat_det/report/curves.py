"""The pictures of a run's figures: accuracy over t, over costs, and with exits."""

import math
import textwrap

import numpy as np
import textalloc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from msat_det.base.colours import INK
from msat_det.measure.exits import ExitRow
from msat_det.measure.lost import lost
from msat_det.measure.rows import MAIN, CurveRow
from msat_det.report.style import PALE, curve_style, entitle, legend_below, quiet, time_axis

COST_AXES = {  # energy first: the order of methods differs
    "energy_ratio": "energy / energy of the float network",
    "sops_per_mac": "synaptic operations / multiply-adds of the float network",
}
ZOOM = 0.8  # share of the float accuracy from which on the picture of a front is drawn, where any method reaches it
NAMED = 0.1  # share of the float accuracy below which a point of the front has no name: they crowd there
SILENT = 0.02  # operations per multiply-add below which next to nothing has fired: no place on a log axis


def draw_curve(rows: list[CurveRow], title: str = "") -> Figure:
    """Main accuracy over t (left, log2) and over energy (right, log), the float figure as a level line; methods that
    find next to nothing in grey."""
    level, *rows = rows
    metric = level.metric
    labels = list(dict.fromkeys(row.method for row in rows))
    pale = lost([level, *rows])
    legend_rows = math.ceil((len(labels) + 1) / 4)
    figure = Figure(figsize=(10, 4.2 + 0.25 * legend_rows), dpi=140, layout="constrained")
    over_time, over_cost = figure.subplots(1, 2, sharey=True)

    handles = []
    for i, label in enumerate(labels):
        curve = [row for row in rows if row.method == label]
        style = curve_style(i, len(curve), label in pale)
        handles += over_time.plot(
            [row.t for row in curve], [row.metrics[metric] for row in curve], label=label, **style
        )
        paid = [row for row in curve if row.sops_per_mac > SILENT]
        over_cost.plot([row.energy_ratio for row in paid], [row.metrics[metric] for row in paid], **style)
    handles.append(over_time.axhline(level.metrics[metric], color=INK, linestyle="--", linewidth=1.3))
    handles[-1].set_label(f"float network, {level.metrics[metric]:.1f}")
    over_cost.axhline(level.metrics[metric], color=INK, linestyle="--", linewidth=1.3)
    over_cost.axvline(1, color=INK, linestyle=":", linewidth=1)

    time_axis(over_time, sorted({row.steps for row in rows}))
    over_time.set(xlabel="timesteps t", ylabel=f"{MAIN[metric]}, %")
    _cost_axis(over_cost, "energy_ratio")
    top = max([level.metrics[metric], *(row.metrics[metric] for row in rows)])
    over_time.set_ylim(0, top * 1.08 or 1)
    for axes in (over_time, over_cost):
        quiet(axes)
    entitle(figure, title)
    legend_below(figure, 4, handles, [handle.get_label() for handle in handles])
    return figure


def draw_pareto(rows: list[CurveRow], title: str = "") -> Figure:
    """Main accuracy over energy and over synaptic operations (log) of every method, from ZOOM of the float accuracy on
    where any reaches that, the float level, and the front: the points that no other one beats in accuracy at the same
    or lower cost, named where the method changes.
    """
    level, *rows = rows
    metric = level.metric
    floor = ZOOM * level.metrics[metric]
    best = {row.method: max(r.metrics[metric] for r in rows if r.method == row.method) for row in rows}
    zoomed = max(best.values(), default=0) > floor
    below = [label for label, accuracy in best.items() if zoomed and accuracy < floor]
    legend_rows = math.ceil((len(best) - len(below) + 2) / 5)
    figure = Figure(figsize=(13, 5.6 + 0.25 * legend_rows), dpi=140, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    top = max([level.metrics[metric], *best.values()])
    panels[0].set_ylim((floor, top + 0.15 * (top - floor)) if zoomed else (0, top * 1.08 or 1))
    for axes, cost in zip(panels, COST_AXES, strict=True):
        _draw_front(axes, level, rows, metric, cost, set(below))
    panels[0].set_ylabel(f"{MAIN[metric]}, %")
    entitle(figure, title)
    handles, labels = panels[0].get_legend_handles_labels()
    text = f"never at {ZOOM:.0%} of the float network: {', '.join(below)}" if below else None
    legend_below(figure, 5, handles, labels, title=text and textwrap.fill(text, 150), title_fontsize=9)
    figure.draw_without_rendering()  # the axes have their size: now names find their places
    for axes, cost in zip(panels, COST_AXES, strict=True):
        _name_front(axes, level, rows, metric, cost)
    return figure


def _draw_front(axes: Axes, level: CurveRow, rows: list[CurveRow], metric: str, cost: str, below: set[str]) -> None:
    def place(row: CurveRow) -> tuple[float, float]:
        return getattr(row, cost), row.metrics[metric]

    pale = lost([level, *rows])
    for i, label in enumerate(dict.fromkeys(row.method for row in rows)):
        curve = [row for row in rows if row.method == label and row.sops_per_mac > SILENT]
        if label in below:
            continue
        style = curve_style(i, len(curve), label in pale) | {"clip_on": True}
        axes.plot(*zip(*map(place, curve), strict=True) if curve else ([], []), label=label, **style)
    front = pareto_front(rows, metric, cost)
    axes.step(
        [place(row)[0] for row in front],
        [place(row)[1] for row in front],
        where="post",
        color=PALE,
        linewidth=9,
        solid_capstyle="round",
        zorder=2,
        label="no method is better at this cost",
    )
    name = f"float network, {level.metrics[metric]:.1f}"
    axes.axhline(level.metrics[metric], color=INK, linestyle="--", linewidth=1.3, label=name)
    axes.axvline(1, color=INK, linestyle=":", linewidth=1)
    _fit_costs(axes, [getattr(row, cost) for row in rows if row.metrics[metric] >= axes.get_ylim()[0]])
    _cost_axis(axes, cost)
    quiet(axes)


def _fit_costs(axes: Axes, costs: list[float]) -> None:
    """The axis of costs from the least to the largest of those that are seen, with room for names."""
    seen = [cost for cost in costs if cost > 0]
    if seen:
        axes.set_xlim(min(*seen, 1) / 1.4, max(*seen, 1) * 1.4)


def _name_front(axes: Axes, level: CurveRow, rows: list[CurveRow], metric: str, cost: str) -> None:
    """Names where the front's method changes, none over another one or over a point (textalloc)."""
    front = pareto_front(rows, metric, cost)
    low = max(axes.get_ylim()[0], NAMED * level.metrics[metric])
    named = [
        row
        for before, row in zip([None, *front], front, strict=False)
        if row.metrics[metric] > low and (before is None or before.method != row.method)
    ]
    if not named:
        return
    seen = [row for row in rows if row.metrics[metric] >= low and getattr(row, cost) > 0]
    curves = [np.array(line.get_data()) for line in axes.lines if line.get_zorder() == 3]
    lines = [curve for curve in curves if curve.shape[1] > 1]
    lines += map(np.array, [((1, 1), axes.get_ylim()), (axes.get_xlim(), [level.metrics[metric]] * 2)])  # the float's
    textalloc.allocate(
        axes,
        [getattr(row, cost) for row in named],
        [row.metrics[metric] for row in named],
        [f"{row.method}, t = {row.t}" for row in named],
        x_scatter=[getattr(row, cost) for row in seen],
        y_scatter=[row.metrics[metric] for row in seen],
        x_lines=[x.tolist() for x, _ in lines],
        y_lines=[y.tolist() for _, y in lines],
        textsize=8,
        textcolor=INK,
        linecolor=INK,
        linewidth=0.6,
        margin=0.01,
        max_distance=0.4,
        nbr_candidates=1000,
    )


def pareto_front(rows: list[CurveRow], metric: str, cost: str = "sops_per_mac") -> list[CurveRow]:
    """The rows, cheapest first, that are more accurate than all of the same or lower cost; silent ones left out."""
    front: list[CurveRow] = []
    for row in sorted(rows, key=lambda row: (getattr(row, cost), -row.metrics[metric])):
        if row.sops_per_mac > SILENT and row.metrics[metric] > (front[-1].metrics[metric] if front else 0):
            front.append(row)
    return front


def _cost_axis(axes: Axes, cost: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(COST_AXES[cost])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def draw_exits(rows: list[ExitRow], fixed: list[CurveRow], title: str) -> Figure:
    """Accuracy over mean t and over energy: a fixed t (line), exits (broken line) and the fitted rule (large)."""
    metric = fixed[0].metric
    figure = Figure(figsize=(11, 5), dpi=140, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, at, cost in zip(panels, ("mean_t", "energy_ratio"), ("t", "energy_ratio"), strict=True):
        order = list(dict.fromkeys(row.method for row in fixed[1:]))  # as in the other pictures
        for label in dict.fromkeys(row.method for row in rows):
            i = order.index(label) if label in order else len(order)
            held = [row for row in fixed if row.method == label]
            own = [row for row in rows if row.method == label]
            style = curve_style(i, len(held))
            axes.plot([getattr(r, cost) for r in held], [r.metrics[metric] for r in held], label=label, **style)
            broken = style | {"linestyle": ":", "marker": None}
            axes.plot([getattr(r, at) for r in own], [r.metrics[metric] for r in own], label=f"{label}, exit", **broken)
            fitted = [row for row in own if row.fitted]
            large = style | {"linestyle": "none", "markersize": 12}
            axes.plot([getattr(r, at) for r in fitted], [r.metrics[metric] for r in fitted], **large)
        axes.axhline(fixed[0].metrics[metric], color=INK, linestyle="--", linewidth=1.3)
        quiet(axes)
    time_axis(panels[0], sorted({row.steps for row in fixed[1:]}))
    panels[0].set_xlabel("timesteps, mean over images")
    _cost_axis(panels[1], "energy_ratio")
    panels[0].set_ylabel(f"{MAIN[metric]}, %")
    panels[0].set_ylim(bottom=0)
    legend_below(figure, 4, *panels[0].get_legend_handles_labels())
    entitle(figure, title)
    return figure
