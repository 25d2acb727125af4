"""One photograph several times in a row, each time with the boxes that something else has found on it."""

from collections.abc import Mapping
from dataclasses import replace

from PIL import Image, ImageDraw

from msat_det.base.colours import INK
from msat_det.models.detector import Detections
from msat_det.models.drawing import font

WIDTH = 480  # pixels of the longer side of a photograph in a row
GAP, HEAD, LETTERS = 10, 34, 16


def side_by_side(photo: Image.Image, columns: Mapping[str, Detections], score: float) -> Image.Image:
    """The photograph once for each of ``columns`` (heading → what was found), boxes of at least ``score``."""
    scale = WIDTH / max(photo.size)
    width, height = (max(1, round(side * scale)) for side in photo.size)
    photo = photo.resize((width, height), Image.Resampling.LANCZOS)
    row = Image.new("RGB", (len(columns) * (width + GAP) + GAP, height + HEAD + GAP), "white")
    pen = ImageDraw.Draw(row)
    for number, (heading, found) in enumerate(columns.items()):
        left = GAP + number * (width + GAP)
        row.paste(replace(found, boxes=found.boxes * scale).draw(photo, score), (left, HEAD))
        pen.text((left, HEAD / 2), heading, INK, font(LETTERS), anchor="lm")
    return row
