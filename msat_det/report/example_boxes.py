"""The boxes that report.html and boxes.gif show: what every method finds at every t on the first evaluated images."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import box_iou

from msat_det.base.colours import COLOURS, INK
from msat_det.base.config import Config
from msat_det.base.files import digest
from msat_det.data import Dataset
from msat_det.measure.accuracy.detections import match_classes
from msat_det.measure.batch_files import Key, Parts
from msat_det.measure.rows import CurveRow
from msat_det.models.detector import Detections
from msat_det.models.drawing import draw_boxes, font
from msat_det.report.boxes import shown
from msat_det.report.directory import RunDirectory
from msat_det.report.style import class_colours

SIDE, QUALITY = 480, 82  # longer side in pixels and JPEG quality of an image within the page
PHOTO = "data:image/jpeg;base64,"
PANEL = 300  # pixels, mean side of an image in the animation
HEAD, FOOT, GAP = 30, 28, 10
HOLD, LAST = 900, 2700  # milliseconds that a frame stays
SHADES = 200  # of the animation's 256 colours, those that the photograph takes

Box = list  # x1, y1, x2, y2 in pixels, the class, and the score (detections) or whether it is ignored (ground truth)


def write_about(
    directory: RunDirectory,
    config: Config,
    dataset: Dataset,
    classes: list[str],
    parts: Parts,
    rows: list[CurveRow],
    label: str | None,
    versions: Mapping[str, str | None],
) -> None:
    """report.json, what the page shows beyond the run's other files; of a detector also boxes.gif.

    classes: names that the Detections' labels index. label: the method that is shown first. versions: of what computed
    it, by its name.
    """
    images, colours = [], {}
    if label and config.draw.images and "map" in rows[0].metrics:
        colours = class_colours(classes, dataset.classes)
        images = drawn_images(dataset, classes, [(row.method, row.t) for row in rows[1:]], parts, config.draw.images)
        under = {str(row.t): f"mAP {row.metrics['map']:.1f} %" for row in rows if row.method == label}
        shown = max(images, key=_clarity)
        directory.write("boxes.gif", animate(shown, label, f"mAP {rows[0].metrics['map']:.1f} %", under, colours))
    about = {
        "command": config.command,
        "versions": versions,
        "evaluated": digest(json.dumps(dataset.ids).encode()),
        "method": label,
        "colours": colours,
        "images": images,
    }
    directory.write_json("report.json", about, indent=None)


def drawn_images(
    dataset: Dataset, classes: list[str], keys: Sequence[Key], parts: Parts, count: int
) -> list[dict[str, Any]]:
    """The first ``count`` images with their ground truth and what was found, as JSON holds it.

    classes: names that the Detections' labels index; a class is given the dataset's name for it where it has one.
    keys: the methods and timesteps. Boxes as ``boxes.shown`` picks them.
    """
    matched = match_classes(classes, dataset.classes)
    names = [dataset.classes[i] if i >= 0 else name for i, name in zip(matched, classes, strict=True)]
    found = {key: parts.found(*key, least=count) for key in [("float", None), *keys]}
    images = []
    for i in range(min(count, len(dataset))):
        sample = dataset[i]
        truth = sample.objects
        height, width = sample.image.shape[1:]
        methods: dict[str, dict[str, list[Box]]] = {}
        for label, t in keys:
            methods.setdefault(label, {})[str(t)] = _found(found[label, t][sample.id], names, width, height)
        images.append(
            {
                "id": str(sample.id),
                "width": width,
                "height": height,
                "photo": _photo(sample.image),
                "truth": _boxes(
                    truth.boxes, [dataset.classes[k] for k in truth.labels], truth.ignore.tolist(), width, height
                ),
                "float": _found(found["float", None][sample.id], names, width, height),
                "methods": methods,
            }
        )
    return images


def _found(one: Detections, names: list[str], width: int, height: int) -> list[Box]:
    best = shown(one)
    scores = [round(score, 3) for score in best.scores.tolist()]
    return _boxes(best.boxes, [names[k] for k in best.labels], scores, width, height)


def _boxes(boxes: Tensor, classes: list[str], marks: list, width: int, height: int) -> list[Box]:
    corners = torch.minimum(boxes.double().clamp(min=0), torch.tensor([width, height] * 2, dtype=torch.float64))
    return [
        [*(round(x, 1) for x in corner), name, mark]
        for corner, name, mark in zip(corners.tolist(), classes, marks, strict=True)
    ]


def _photo(image: Tensor) -> str:
    """uint8 (3, H, W) → a JPEG of at most SIDE pixels as a data URI."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, optimize=True)
    return PHOTO + base64.b64encode(file.getvalue()).decode()


def _clarity(image: dict[str, Any]) -> int:
    """How many objects of an image the float network finds, its box half on one of the same class, less those that it
    misses and the boxes that are wrong."""
    truth, found = image["truth"], image["float"]
    overlap = box_iou(*(torch.tensor([box[:4] for box in boxes]).reshape(-1, 4) for boxes in (truth, found)))
    same = torch.tensor([[a[4] == b[4] for b in found] for a in truth], dtype=torch.bool).reshape(overlap.shape)
    found_objects = int(((overlap >= 0.5) & same).any(1).sum())
    return 3 * found_objects - len(truth) - len(found)


def animate(image: dict[str, Any], label: str, level: str, captions: dict[str, str], colours: dict[str, int]) -> bytes:
    """A GIF that runs forever: one image with its ground truth, the float network's boxes, and a method's over t.

    image: of ``drawn_images``. level, captions: what stands under the float network's and, by t, the method's boxes.
    colours: of ``class_colours``.
    """
    photo = Image.open(io.BytesIO(base64.b64decode(image["photo"].removeprefix(PHOTO)))).convert("RGB")
    factor = PANEL / (photo.width * photo.height) ** 0.5
    photo = photo.resize((round(photo.width * factor), round(photo.height * factor)), Image.Resampling.LANCZOS)
    palette = _palette(photo)
    # The photograph is dithered once, before anything is drawn on it: so the boxes stay clean and frames differ little.
    photo = photo.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).convert("RGB")
    still = [("ground truth", image["truth"], ""), ("float network", image["float"], level)]
    found = image["methods"][label]
    frames = []
    for t, boxes in found.items():
        frame = Image.new("RGB", (3 * photo.width + 4 * GAP, photo.height + HEAD + FOOT), "white")
        for i, (heading, drawn, caption) in enumerate([*still, (f"{label}, t = {t}", boxes, captions[t])]):
            left = GAP + i * (photo.width + GAP)
            frame.paste(_panel(photo, drawn, colours, photo.width / image["width"]), (left, HEAD))
            pen = ImageDraw.Draw(frame)
            pen.text((left, HEAD / 2), heading, INK, font(15), anchor="lm")
            pen.text((left, HEAD + photo.height + FOOT / 2), caption, INK, font(13), anchor="lm")
        frames.append(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    file = io.BytesIO()
    times = [HOLD] * (len(frames) - 1) + [LAST]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=False)
    return file.getvalue()


def _panel(photo: Image.Image, boxes: list[Box], colours: dict[str, int], scale: float) -> Image.Image:
    """The photograph with boxes and their classes."""
    corners = [[scale * x for x in box[:4]] for box in boxes]
    texts = [name if isinstance(mark, bool) else f"{name} {mark:.2f}" for *_, name, mark in boxes]
    return draw_boxes(photo, corners, texts, [COLOURS[colours[box[4]]] for box in boxes])


def _palette(photo: Image.Image) -> Image.Image:
    """256 colours for all frames: the photograph's, those of the boxes, and greys for text."""
    shades = photo.quantize(SHADES, dither=Image.Dither.NONE).getpalette()
    assert shades is not None  # a quantised picture has one
    exact = [channel for colour in COLOURS for channel in bytes.fromhex(colour[1:])]
    greys = [level for level in range(0, 256, 15) for _ in range(3)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(shades[: 3 * SHADES] + exact + greys)
    return palette
