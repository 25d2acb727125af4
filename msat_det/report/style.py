"""The look that all pictures share: colours, markers, quiet axes."""

from matplotlib.axes import Axes

from msat_det.base.colours import COLOURS, INK

MARKERS = "osD^vPX"
LINES = ["-", (0, (5, 1)), (0, (1, 1))]
PALE = "#DDDDDD"


GREY = "#BBBBBB"  # of a method that finds next to nothing


def curve_style(i: int, points: int, grey: bool = False) -> dict:
    """The look of the i-th method's curve, the same in every picture of a run; one of a single point has no line and a
    larger marker. grey: it finds next to nothing."""
    return _curve_style(i, points) | ({"color": GREY, "zorder": 2} if grey else {})


def _curve_style(i: int, points: int) -> dict:
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


def quiet(axes: Axes) -> None:
    """A pale grid and frame, so that the curves stand out."""
    axes.grid(color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(color=PALE, labelcolor=INK, labelleft=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
