"""Boxes drawn on images, ground truth and detections side by side."""

import functools
import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from torch import Tensor

from msat_det.base.colours import COLOURS, INK, text_on
from msat_det.data import Sample
from msat_det.models.detector import Detections
from msat_det.models.drawing import caption_places
from msat_det.report.style import class_colours, entitle

MIN_SCORE, MAX_BOXES = 0.3, 30  # what is drawn of the detections
CAPTION = 7  # points


def shown(found: Detections) -> Detections:
    """What pictures show of the boxes that were found."""
    sure = found.above(MIN_SCORE)
    return Detections(sure.boxes[:MAX_BOXES], sure.scores[:MAX_BOXES], sure.labels[:MAX_BOXES], sure.classes)


def draw_detections(
    sample: Sample, classes: list[str], columns: dict[str, Detections], names: list[str], title: str = ""
) -> Figure:
    """The image once with its ground truth and once for each of ``columns``, boxes with class names and scores.

    classes: names that the target's labels index. names: those that the Detections' labels index.
    Ignored objects (difficult, crowd) are dashed; detections below a score of .3 are left out.
    """
    truth = sample.objects
    panels: list[tuple[str, Tensor, list[str], Tensor | None, Tensor | None]]  # heading, boxes, names, scores, ignored
    panels = [("ground truth", truth.boxes, [classes[i] for i in truth.labels], None, truth.ignore)]
    for heading, found in columns.items():
        best = shown(found)
        panels.append((heading, best.boxes, [names[i] for i in best.labels], best.scores, None))
    colours = {name: COLOURS[number] for name, number in class_colours(names, classes).items()}

    image = sample.image.permute(1, 2, 0).numpy()
    height, width = image.shape[:2]
    side = 3.2  # inches, of the image's mean side
    panel_size = side * math.sqrt(width / height), side * math.sqrt(height / width)
    figure = Figure(figsize=(panel_size[0] * len(panels), panel_size[1] + 0.75), dpi=120)
    figure.set_layout_engine("constrained", w_pad=0.03, wspace=0.01)
    pixels_per_point = width / (panel_size[0] * 72)
    for axes, (heading, boxes, box_names, scores, ignore) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(image, interpolation="lanczos", extent=(0, width, height, 0))  # a pixel begins at its number
        axes.set_axis_off()
        axes.set_title(heading, color=INK, fontsize=11)
        for i in reversed(range(len(boxes))):  # the best last, on top
            x1, y1, x2, y2 = boxes[i].tolist()
            dashed = ignore is not None and bool(ignore[i])
            frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colours[box_names[i]], linewidth=1.6)
            frame.set_linestyle("--" if dashed else "-")
            axes.add_patch(frame)
        plain = [name.replace("$", r"\$") for name in box_names]  # two dollars would begin and end a formula
        texts = [name if scores is None else f"{name} {scores[i]:.2f}" for i, name in enumerate(plain)]
        _write_captions(axes, boxes.tolist(), texts, [colours[name] for name in box_names], pixels_per_point)
    entitle(figure, title)
    return figure


def _write_captions(axes: Axes, boxes: list, texts: list[str], colours: list[str], pixels_per_point: float) -> None:
    """Each box's text on its colour, where ``caption_places`` finds room."""
    line = 10 * pixels_per_point
    lengths = [(_width(text) + 4) * pixels_per_point for text in texts]
    places = caption_places(boxes, lengths, line, axes.get_xlim()[1], axes.get_ylim()[0])
    for place, length, text, colour in zip(places, lengths, texts, colours, strict=True):
        if place:
            axes.add_patch(Rectangle(place, length, line, facecolor=colour, edgecolor="none", zorder=2))
            x, y = place[0] + length / 2, place[1] + line / 2
            axes.text(x, y, text, color=text_on(colour), fontsize=CAPTION, ha="center", va="center_baseline", zorder=3)


@functools.lru_cache(4096)
def _width(text: str) -> float:
    """Of a caption, in points. It takes milliseconds, and captions come again: at the next timesteps, say."""
    return TextPath((0, 0), text, size=CAPTION).get_extents().width
