"""Tiny data sets: scenes that stand in VOC and COCO roots alike."""

from pathlib import Path

import numpy as np
from PIL import Image

# file stem → objects (VOC class, x1, y1, x2, y2 as VOC counts them, ignored?)
SCENES = {
    "000001": [("dog", 5, 8, 30, 40, False), ("person", 20, 4, 47, 47, False)],
    "000002": [("dog", 1, 1, 24, 24, False), ("dog", 30, 10, 60, 44, True)],
    "000003": [],
    "000004": [("tvmonitor", 10, 10, 50, 40, False), ("dog", 2, 30, 20, 46, False)],
}


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (64, 48)) -> None:
    """A photograph's stand-in: coloured noise of the given (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def voc_xml(objects: list[tuple]) -> str:
    parts = (
        f"<object><name>{name}</name><difficult>{int(ignore)}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2, ignore in objects
    )
    return f"<annotation>{''.join(parts)}</annotation>"
