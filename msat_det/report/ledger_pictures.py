"""The pictures of an examination: where the error comes from, SIN ratios, spikes, thresholds, residual potentials."""

import math
from collections.abc import Callable

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from msat_det.base.colours import COLOURS, INK
from msat_det.measure.examination import Examination
from msat_det.measure.ledger import BINS, PARTS, RESIDUAL
from msat_det.report.style import GREY, METHOD_COLOURS, curve_style, entitle, legend_below, quiet, time_axis

PART_COLOURS = dict(zip(PARTS, (*(METHOD_COLOURS[i] for i in (0, 1, 3)), GREY), strict=True))  # as page.css has them
NAMES = {"sin": "SIN"}
DEPTH = "call site, from the first layer to the last"


def draw_ledgers(examinations: list[Examination]) -> dict[str, Figure]:
    """{file name: figure}, each with all methods."""
    return {
        "errors": _panels(examinations, _errors, "Where the error comes from, at the last t", DEPTH, "relative error"),
        "sin": _panels(examinations, _sin, "Neurons that should be silent and are not", "timesteps t", "SIN ratio"),
        "spikes": _spikes(examinations),
        "thresholds": _panels(examinations, _thresholds, "Thresholds of the most active neurons", "timestep", "θ(t)"),
        "residuals": _panels(examinations, _residuals, "Potential left at the last t", DEPTH, "V / θ"),
    }


def _panels(
    examinations: list[Examination], draw: Callable[[Axes, Examination], None], title: str, x: str, y: str
) -> Figure:
    """One panel for each method, up to three in a row, and one legend for all where they have none of their own."""
    columns = min(3, len(examinations))
    rows = math.ceil(len(examinations) / columns)
    figure = Figure(figsize=(1.5 + 4.6 * columns, 1.1 + 2.9 * rows), dpi=120, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, one in zip(panels, examinations, strict=False):
        draw(axes, one)
        axes.set_title(f"{one.label}, t = {one.t}", fontsize=10, color=INK)
        axes.set(xlabel=x, ylabel=y)
        quiet(axes)
        axes.grid(visible=not axes.images)
    for axes in panels[len(examinations) :]:
        axes.set_visible(False)
    entitle(figure, title)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles and panels[0].get_legend() is None:
        legend_below(figure, 5, handles, labels)
    return figure


def _errors(axes: Axes, one: Examination) -> None:
    """Stacked bars; a part that goes against the whole hangs below the line."""
    entries = one.at(one.t)
    sites = np.arange(1, len(entries) + 1)
    above, below = np.zeros(len(sites)), np.zeros(len(sites))
    for part in reversed(PARTS):
        values = np.nan_to_num(np.array([getattr(entry, part) for entry in entries]))
        bottom = np.where(values > 0, above, below)
        axes.bar(sites, values, 0.85, bottom, color=PART_COLOURS[part], label=NAMES.get(part, part))
        above, below = above + values.clip(min=0), below + values.clip(max=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _sin(axes: Axes, one: Examination) -> None:
    """The paper's Fig. 2: a line for each call site, coloured by depth."""
    times = sorted(one.outputs)
    by_site: dict[str, list[float]] = {}
    for t in times:
        for entry in one.at(t):
            by_site.setdefault(entry.site, []).append(entry.sin_ratio)
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(by_site)))
    for number, (ratios, colour) in enumerate(zip(by_site.values(), colours, strict=True), 1):
        name = {1: "first call site", len(by_site): f"call site {len(by_site)}, the last"}.get(number)
        axes.plot(times, ratios, color=colour, marker="o", markersize=3, linewidth=1.2, label=name)
    time_axis(axes, times)
    axes.set_ylim(0, None)


def _spikes(examinations: list[Examination]) -> Figure:
    """The paper's Fig. 4: spikes of every layer."""
    figure = Figure(figsize=(8, 4.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for number, one in enumerate(examinations):
        spikes = [entry.spikes_per_neuron for entry in one.at(one.t)]
        style = curve_style(number, len(spikes)) | {"markersize": 4}
        axes.plot(range(1, len(spikes) + 1), spikes, label=f"{one.label}, t = {one.t}", **style)
    axes.set(xlabel=DEPTH, ylabel="spikes per neuron", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    quiet(axes)
    entitle(figure, "Spikes by depth")
    legend_below(figure, 3, *axes.get_legend_handles_labels())
    return figure


def _thresholds(axes: Axes, one: Examination) -> None:
    """The paper's Fig. 5: θ(t) of chosen neurons."""
    for (site, rows), colour in zip(one.traces.items(), COLOURS, strict=False):
        for row in rows:
            axes.step(range(1, len(row) + 1), row.tolist(), where="mid", color=colour, linewidth=1.4, label=site)
    axes.set_ylim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=7, frameon=False)


def _residuals(axes: Axes, one: Examination) -> None:
    shares = np.stack([counts.numpy() for counts in one.residuals.values()], 1)
    extent = (0.5, shares.shape[1] + 0.5, -RESIDUAL, RESIDUAL)
    assert len(shares) == BINS
    axes.imshow(shares**0.5, aspect="auto", origin="lower", extent=extent, cmap="Blues", interpolation="nearest")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
