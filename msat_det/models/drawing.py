"""Boxes drawn on a photograph, each with a caption where there is room for one."""

from collections.abc import Sequence
from functools import cache

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from msat_det.base.colours import text_on

FONT = "DejaVu Sans"  # comes with matplotlib

Box = Sequence[float]  # x1, y1, x2, y2 in pixels of the picture


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont(FONT), size)


def draw_boxes(photo: Image.Image, boxes: Sequence[Box], texts: Sequence[str], colours: Sequence[str]) -> Image.Image:
    """A copy of an RGB photograph with boxes, the first one on top, lines and letters in proportion to its size."""
    panel = photo.copy()
    side = max(panel.size)
    size, width = max(11, side // 45), max(2, side // 280)
    pen, letters, line = ImageDraw.Draw(panel), font(size), round(1.36 * size)
    for (x1, y1, x2, y2), colour in reversed(list(zip(boxes, colours, strict=True))):
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=width)
    lengths = [pen.textlength(text, letters) + 6 for text in texts]
    places = caption_places(boxes, lengths, line, *panel.size)
    for place, length, text, colour in zip(places, lengths, texts, colours, strict=True):
        if place and text:
            left, top = place
            pen.rectangle((left, top, left + length, top + line), fill=colour)
            pen.text((left + 3, top + line / 2), text, text_on(colour), letters, anchor="lm")
    return panel


def caption_places(
    boxes: Sequence[Box], lengths: Sequence[float], line: float, right: float, bottom: float
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
