"""The look that all pictures share: colours, markers, quiet axes."""

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from msat_det.base.colours import COLOURS, INK
from msat_det.data.voc_classes import class_index

# Of methods, in pictures and on the page: seen on white and on a dark page (3:1), told apart by colour-blind readers.
METHOD_COLOURS = ["#0077BB", "#DD6611", "#11AA66", "#EE0044", "#7744FF", "#FF11DD", "#995588", "#779988"]
MARKERS = "osD^vXP"
LINES = ["-", (0, (5, 1)), (0, (1, 1))]
PALE = "#DDDDDD"
GREY = "#BBBBBB"  # of a method that finds next to nothing
CLOSE = 1.12  # factor between timesteps whose numbers stand side by side


def class_colours(classes: Sequence[str], others: Iterable[str]) -> dict[str, int]:
    """The number in COLOURS of each class, the same in every picture: a detector's label, as in ``Detections.draw``.

    others: a dataset's names; those that are none of the detector's, however spelled, come after its classes.
    """
    known, others = class_index(classes), list(others)
    strange = [name for name in dict.fromkeys(others) if name not in known]
    known |= {name: number for number, name in enumerate(strange, len(classes))}
    return {name: known[name] % len(COLOURS) for name in (*classes, *others)}


def curve_style(i: int, points: int, grey: bool = False) -> dict:
    """The look of the i-th method's curve, the same in every picture of a run; one of a single point has no line and a
    larger marker. grey: it finds next to nothing."""
    return {
        "color": GREY if grey else METHOD_COLOURS[i % len(METHOD_COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": LINES[i // len(METHOD_COLOURS) % len(LINES)] if points > 1 else "none",
        "markersize": 7 if points > 1 else 10,
        "markeredgecolor": "white",
        "markeredgewidth": 0.8,
        "linewidth": 1.8,
        "clip_on": False,
        "zorder": 2 if grey else 3,
    }


def entitle(figure: Figure, title: str) -> None:
    """The picture's title, where it has one."""
    if title:
        figure.suptitle(title, color=INK, fontsize=12, fontweight="bold")


def legend_below(figure: Figure, most: int, handles: Sequence[Artist], labels: Sequence[str], **more: Any) -> None:
    """One legend for all panels below them. most: entries in a row."""
    figure.legend(handles, labels, loc="outside lower center", ncols=most, frameon=False, fontsize=9, **more)


def quiet(axes: Axes) -> None:
    """A pale grid and frame, so that the curves stand out."""
    axes.grid(color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(color=PALE, labelcolor=INK, labelleft=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)


def time_axis(axes: Axes, times: list[int]) -> None:
    """Log2, with a mark at each of the timesteps in rising order, and its number where that has room."""
    shown: list[int] = []
    for t in reversed(times):  # the last one has its number
        shown += [t] if not shown or shown[-1] >= CLOSE * t else []
    axes.set_xscale("log", base=2)
    axes.set_xticks(times, [str(t) if t in shown else "" for t in times])
    axes.xaxis.set_minor_locator(NullLocator())
