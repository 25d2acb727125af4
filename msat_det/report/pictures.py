"""The pictures of a run: the accuracy curve and the boxes drawn on images."""

import math
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from matplotlib.ticker import LogLocator, NullLocator

from msat_det.models.detector import Detections

if TYPE_CHECKING:
    from msat_det.data import Sample
    from msat_det.report.directory import CurveRow

# Okabe and Ito's colours without yellow and black, then two of Tol's: told apart by colour-blind readers.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#999933"]
COLOURS_UNDER_WHITE = {"#0072B2", "#D55E00", "#009E73", "#882255"}  # dark enough for white text
MARKERS = "osD^vPX"
LINES = ["-", (0, (5, 1)), (0, (1, 1))]
ACCURACY = {"map": "mAP", "top1": "top-1 accuracy"}
COST_AXES = {
    "sops_per_mac": "synaptic operations / multiply-adds of the float network",
    "energy_ratio": "energy / energy of the float network",
}
INK, PALE = "#333333", "#DDDDDD"
NAMED = 0.1  # share of the float accuracy below which a point of the front has no name: they crowd there
SILENT = 0.02  # operations per multiply-add below which next to nothing has fired: no place on a log axis
MIN_SCORE, MAX_BOXES = 0.3, 30  # what is drawn of the detections
CAPTION = 7  # points


def draw_curve(rows: list["CurveRow"], title: str = "") -> Figure:
    """Main accuracy over t (left, log2) and over synaptic operations (right, log), the float figure as a level line."""
    level, *rows = rows
    metric = next(iter(level.accuracies))
    labels = list(dict.fromkeys(row.method for row in rows))
    legend_rows = math.ceil((len(labels) + 1) / 4)
    figure = Figure(figsize=(10, 4.2 + 0.25 * legend_rows), dpi=140, layout="constrained")
    over_time, over_cost = figure.subplots(1, 2, sharey=True)

    handles = []
    for i, label in enumerate(labels):
        curve = [row for row in rows if row.method == label]
        style = curve_style(i, len(curve))
        handles += over_time.plot(
            [row.t for row in curve], [row.metrics[metric] for row in curve], label=label, **style
        )
        paid = [row for row in curve if row.sops_per_mac > SILENT]
        over_cost.plot([row.sops_per_mac for row in paid], [row.metrics[metric] for row in paid], **style)
    handles.append(over_time.axhline(level.metrics[metric], color=INK, linestyle="--", linewidth=1.3))
    handles[-1].set_label(f"float network, {level.metrics[metric]:.1f}")
    over_cost.axhline(level.metrics[metric], color=INK, linestyle="--", linewidth=1.3)
    over_cost.axvline(1, color=INK, linestyle=":", linewidth=1)

    steps = sorted({row.t for row in rows})
    over_time.set_xscale("log", base=2)
    over_time.set_xticks(steps, [str(t) for t in steps])
    over_time.set(xlabel="timesteps t", ylabel=f"{ACCURACY[metric]}, %")
    over_time.xaxis.set_minor_locator(NullLocator())
    _cost_axis(over_cost, "sops_per_mac")
    top = max([level.metrics[metric], *(row.metrics[metric] for row in rows)])
    over_time.set_ylim(0, top * 1.08 or 1)
    for axes in (over_time, over_cost):
        quiet(axes)
    if title:
        figure.suptitle(title, color=INK, fontsize=12, fontweight="bold")
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=9)
    return figure


def draw_pareto(rows: list["CurveRow"], title: str = "") -> Figure:
    """Main accuracy over synaptic operations and over energy (log) of every method, the float level, and the front: the
    points that no other one beats in accuracy at the same or lower cost, named where the method changes.
    """
    level, *rows = rows
    metric = next(iter(level.accuracies))
    legend_rows = math.ceil((len({row.method for row in rows}) + 2) / 5)
    figure = Figure(figsize=(13, 5.6 + 0.25 * legend_rows), dpi=140, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, cost in zip(panels, COST_AXES, strict=True):
        _draw_front(axes, level, rows, metric, cost)
    panels[0].set_ylim(0, max([level.metrics[metric], *(row.metrics[metric] for row in rows)]) * 1.08 or 1)
    panels[0].set_ylabel(f"{ACCURACY[metric]}, %")
    if title:
        figure.suptitle(title, color=INK, fontsize=12, fontweight="bold")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _draw_front(axes: Axes, level: "CurveRow", rows: list["CurveRow"], metric: str, cost: str) -> None:
    def place(row: "CurveRow") -> tuple[float, float]:
        return getattr(row, cost), row.metrics[metric]

    for i, label in enumerate(dict.fromkeys(row.method for row in rows)):
        curve = [row for row in rows if row.method == label and row.sops_per_mac > SILENT]
        axes.plot(
            *zip(*map(place, curve), strict=True) if curve else ([], []), label=label, **curve_style(i, len(curve))
        )
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
    for before, row in zip([None, *front], front, strict=False):
        changed = before is None or before.method != row.method
        if changed and row.metrics[metric] > NAMED * level.metrics[metric]:
            name, shift = f"{row.method}, t = {row.t}", {"xytext": (-7, 5), "textcoords": "offset points"}
            axes.annotate(name, place(row), ha="right", fontsize=8, color=INK, **shift)
    name = f"float network, {level.metrics[metric]:.1f}"
    axes.axhline(level.metrics[metric], color=INK, linestyle="--", linewidth=1.3, label=name)
    axes.axvline(1, color=INK, linestyle=":", linewidth=1)
    axes.margins(x=0.12)  # room for the names
    _cost_axis(axes, cost)
    quiet(axes)


def pareto_front(rows: list["CurveRow"], metric: str, cost: str = "sops_per_mac") -> list["CurveRow"]:
    """The rows, cheapest first, that are more accurate than all of the same or lower cost; silent ones left out."""
    front: list[CurveRow] = []
    for row in sorted(rows, key=lambda row: (getattr(row, cost), -row.metrics[metric])):
        if row.sops_per_mac > SILENT and row.metrics[metric] > (front[-1].metrics[metric] if front else 0):
            front.append(row)
    return front


def curve_style(i: int, points: int) -> dict:
    """The look of the i-th method's curve; one of a single point has no line and a larger marker."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": LINES[i // len(COLOURS) % len(LINES)] if points > 1 else "none",
        "markersize": 7 if points > 1 else 10,
        "markeredgecolor": "white",
        "markeredgewidth": 0.8,
        "linewidth": 1.8,
        "clip_on": False,
        "zorder": 3,
    }


def _cost_axis(axes: Axes, cost: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(COST_AXES[cost])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def quiet(axes: Axes) -> None:
    """A pale grid and frame, so that the curves stand out."""
    axes.grid(color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(color=PALE, labelcolor=INK, labelleft=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)


def draw_detections(
    sample: "Sample", classes: list[str], columns: dict[str, Detections], names: list[str], title: str = ""
) -> Figure:
    """The image once with its ground truth and once for each of ``columns``, boxes with class names and scores.

    classes: names that the target's labels index. names: those that the Detections' labels index.
    Ignored objects (difficult, crowd) are dashed; detections below a score of .3 are left out.
    """
    target = sample.target
    panels = [("ground truth", target.boxes, [classes[i] for i in target.labels], None, target.ignore)]
    for heading, found in columns.items():
        keep = (found.scores >= MIN_SCORE).nonzero().flatten()[:MAX_BOXES]
        panels.append((heading, found.boxes[keep], [names[i] for i in found.labels[keep]], found.scores[keep], None))
    kinds = dict.fromkeys(name for _, _, panel_names, _, _ in panels for name in panel_names)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(kinds)}

    image = sample.image.permute(1, 2, 0).numpy()
    height, width = image.shape[:2]
    side = 3.2  # inches, of the image's mean side
    panel_size = side * math.sqrt(width / height), side * math.sqrt(height / width)
    figure = Figure(figsize=(panel_size[0] * len(panels), panel_size[1] + 0.75), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, wspace=0.01)
    pixels_per_point = width / (panel_size[0] * 72)
    for axes, (heading, boxes, box_names, scores, ignore) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(image, interpolation="lanczos")
        axes.set_axis_off()
        axes.set_title(heading, color=INK, fontsize=11)
        for i in reversed(range(len(boxes))):  # the best last, on top
            x1, y1, x2, y2 = boxes[i].tolist()
            dashed = ignore is not None and bool(ignore[i])
            style = {"edgecolor": colours[box_names[i]], "linewidth": 1.6, "linestyle": "--" if dashed else "-"}
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))
        shown = [name.replace("$", r"\$") for name in box_names]  # two dollars would begin and end a formula
        texts = [name if scores is None else f"{name} {scores[i]:.2f}" for i, name in enumerate(shown)]
        _write_captions(axes, boxes.tolist(), texts, [colours[name] for name in box_names], pixels_per_point)
    if title:
        figure.suptitle(title, color=INK, fontsize=12, fontweight="bold")
    return figure


def _write_captions(axes: Axes, boxes: list, texts: list[str], colours: list[str], pixels_per_point: float) -> None:
    """Each box's text on its colour, where ``caption_places`` finds room."""
    line = 10 * pixels_per_point
    lengths = [(TextPath((0, 0), text, size=CAPTION).get_extents().width + 4) * pixels_per_point for text in texts]
    places = caption_places(boxes, lengths, line, axes.get_xlim()[1], axes.get_ylim()[0])
    for place, length, text, colour in zip(places, lengths, texts, colours, strict=True):
        if place:
            axes.add_patch(Rectangle(place, length, line, facecolor=colour, edgecolor="none", zorder=2))
            where = (place[0] + length / 2, place[1] + line / 2)
            style = {
                "color": text_on(colour),
                "fontsize": CAPTION,
                "ha": "center",
                "va": "center_baseline",
                "zorder": 3,
            }
            axes.text(*where, text, **style)


def text_on(colour: str) -> str:
    """The colour of text that can be read on one of COLOURS."""
    return "white" if colour in COLOURS_UNDER_WHITE else "black"


def caption_places(
    boxes: list, lengths: list[float], line: float, right: float, bottom: float
) -> list[tuple[float, float] | None]:
    """For each box's caption, ``line`` high, the first free place around the box's left side, as left and top.

    None where all are taken, or lie outside of an image of size (right, bottom).
    """
    places: list[tuple[float, float] | None] = []
    taken: list[tuple[float, float, float, float]] = []
    for (x1, y1, _, y2), length in zip(boxes, lengths, strict=True):
        left = max(0, min(x1, right - length))
        for top in (y1 - line, y1, y2 - line, y2):
            clear = all(left >= c or left + length <= a or top >= d or top + line <= b for a, b, c, d in taken)
            if clear and top >= 0 and top + line <= bottom:
                taken.append((left, top, left + length, top + line))
                places.append((left, top))
                break
        else:
            places.append(None)
    return places
