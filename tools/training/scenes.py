"""The pictures of the embedded data sets: colour-emoji glyphs of VOC's 20 classes over drawn backgrounds.

Every picture is a function of its seed alone, so the sets in ``data/`` can be drawn again to the byte, and training
can draw as many new scenes as it likes without storing any.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, features

from msat_det.base.errors import InputError

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
GLYPH_SIZE = 109  # the only size at which this bitmap font can be drawn

TONES = ["", "\U0001f3fb", "\U0001f3fd", "\U0001f3ff"]
GLYPHS: dict[str, list[str]] = {
    "aeroplane": ["✈", "🛩"],
    "bicycle": ["🚲"],
    "bird": ["🐦", "🦜", "🦆"],
    "boat": ["⛵", "🚤", "🛥"],
    "bottle": ["🍾", "🍼"],
    "bus": ["🚌", "🚍"],
    "car": ["🚗", "🚙", "🚘"],
    "cat": ["🐈", "🐈‍⬛"],
    "chair": ["🪑"],
    "cow": ["🐄", "🐂"],
    "diningtable": ["🍽"],
    "dog": ["🐕", "🦮", "🐩"],
    "horse": ["🐎", "🐴"],
    "motorbike": ["🏍", "🛵"],
    "person": [body + tone for body in "🧍🚶" for tone in TONES],
    "pottedplant": ["🪴"],
    "sheep": ["🐑", "🐏"],
    "sofa": ["🛋"],
    "train": ["🚂", "🚆"],
    "tvmonitor": ["📺", "🖥"],
}
CLASSES = list(GLYPHS)
CLUTTER = list("🍎🍋⚽🎈🌸🍄⭐🎁🔑🍕☂🎸🦋🐢🏠🌲🧸☁🌙🎩👟📦🥕🐠🕰🎺🧢💎🪁🍩")
FRAMES = [(192, 144), (144, 192), (176, 144), (160, 160), (184, 152)]  # width, height

MIN_VISIBLE = 0.35  # nothing is drawn that would hide more than this leaves of an object
DIFFICULT_VISIBLE = 0.55  # less of an object than this in view: VOC's `difficult`
DIFFICULT_SIDE = 13  # pixels; a box that is narrower or lower: `difficult`


@dataclass(frozen=True)
class Scene:
    """One drawn picture and what is in it; N objects, crowds among them.

    image: (H, W, 3) uint8 RGB. boxes: (N, 4) int64 x1 y1 x2 y2, the visible pixels' bounds, x2 and y2 exclusive.
    labels: (N,) int64, index into ``CLASSES``. difficult, truncated, crowd: (N,) bool. masks: (N, H, W) bool, visible
    pixels.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    truncated: np.ndarray
    crowd: np.ndarray
    masks: np.ndarray


def draw_scene(seed: int, index: int, crowds: bool = False) -> Scene:
    """Draw scene number ``index`` of the series ``seed``; the same two numbers give the same pixels.

    crowds: False draws the VOC kind of scene (tiny and half hidden objects, marked difficult); True the COCO kind
    (no tiny ones, but in two scenes of five a crowd of one class). Raises InputError where the emoji font is missing.
    """
    rng = np.random.default_rng([seed, index, int(crowds)])
    width, height = FRAMES[rng.integers(len(FRAMES))]
    canvas = _Canvas(draw_background(rng, width, height))
    if crowds and rng.random() < 0.4:
        canvas.add_crowd(rng, int(rng.integers(len(CLASSES))))
    for _ in range(rng.integers(0, 4)):
        canvas.add(rng, CLUTTER[rng.integers(len(CLUTTER))], None, rng.uniform(16, 42))
    for side in sorted(_sizes(rng, min(width, height), crowds), reverse=True):  # small ones in front
        label = int(rng.integers(len(CLASSES)))
        canvas.add(rng, _pick(rng, GLYPHS[CLASSES[label]]), label, side)
    return canvas.scene(rng)


def draw_tile(seed: int, index: int, label: int, size: int = 32) -> np.ndarray:
    """Draw one classification picture (size, size, 3) uint8 of the class ``CLASSES[label]``."""
    rng = np.random.default_rng([seed, index, 1000 + label])
    large = 3 * size
    canvas = _Canvas(draw_background(rng, large, large))
    if rng.random() < 0.5:
        canvas.add(rng, _pick(rng, CLUTTER), None, large * rng.uniform(0.25, 0.4))
    sprite = draw_sprite(rng, _pick(rng, GLYPHS[CLASSES[label]]), large * rng.uniform(0.68, 0.95))
    slack = np.array([large - sprite.width, large - sprite.height])
    x, y = np.round(slack * rng.uniform(0.2, 0.8, 2)).astype(int)
    canvas.paste(sprite, int(x), int(y), label)
    return np.asarray(canvas.image.resize((size, size), Image.Resampling.LANCZOS))


def _sizes(rng: np.random.Generator, frame: int, crowds: bool) -> list[float]:
    """The longer sides of a scene's objects in pixels: few large ones, or many small ones."""
    count = int(rng.integers(1, 7))
    largest = frame * (0.85 if count <= 2 else 0.6)
    sides = list(np.exp(rng.uniform(np.log(24), np.log(largest), count)))
    if not crowds and rng.random() < 0.3:
        sides.append(rng.uniform(10, 15))  # a tiny, difficult one
    return sides


class _Canvas:
    """A picture under construction and, for every pixel, the object that is seen there (-1: none)."""

    def __init__(self, background: Image.Image) -> None:
        self.image = background
        self.owner = np.full((background.height, background.width), -1)
        self.labels: list[int | None] = []  # of everything drawn; None is clutter
        self.areas: list[int] = []  # pixels of each when nothing hides it
        self.visible: list[int] = []
        self.crowd: list[bool] = []

    def add(self, rng: np.random.Generator, glyph: str, label: int | None, side: float) -> None:
        """Draw a glyph at the first of some random places where it hides nothing too much, or not at all."""
        sprite = draw_sprite(rng, glyph, side)
        for _ in range(30):
            reach = rng.uniform(-0.12, 1.12, 2) if rng.random() < 0.15 else rng.random(2)  # may leave the frame a bit
            x = int(reach[0] * (self.image.width - sprite.width))
            y = int(reach[1] * (self.image.height - sprite.height))
            if self._fits(sprite, x, y):
                self.paste(sprite, x, y, label)
                return

    def add_crowd(self, rng: np.random.Generator, label: int) -> None:
        """Draw eight to sixteen small glyphs of one class close together: one object, a crowd."""
        side = rng.uniform(15, 21)
        centre = rng.uniform(0.3, 0.7, 2) * [self.image.width, self.image.height]
        places = centre + rng.uniform(-1, 1, (rng.integers(8, 17), 2)) * [2.4 * side, 1.3 * side]
        number = len(self.labels)
        mask = np.zeros_like(self.owner, dtype=bool)
        for x, y in places[np.argsort(places[:, 1])].astype(int).tolist():
            sprite = draw_sprite(rng, _pick(rng, GLYPHS[CLASSES[label]]), side * rng.uniform(0.85, 1.15))
            mask |= self.paste(sprite, x - sprite.width // 2, y - sprite.height // 2, label)
        for name in ("labels", "areas", "visible", "crowd"):
            del getattr(self, name)[number:]
        self.owner[mask] = number
        self._enter(label, int(mask.sum()), int(mask.sum()), crowd=True)

    def paste(self, sprite: Image.Image, x: int, y: int, label: int | None) -> np.ndarray:
        """Draw the sprite with a soft shadow; returns (H, W) bool, the pixels it covers."""
        shadow = sprite.getchannel("A").point(lambda a: a // 3).filter(ImageFilter.GaussianBlur(2))
        self.image.paste((20, 20, 30), (x + 1, y + 2), shadow)
        self.image.paste(sprite, (x, y), sprite)
        mask = self._mask(sprite, x, y)
        self.owner[mask] = len(self.labels)
        self._enter(label, int((np.asarray(sprite.getchannel("A")) > 127).sum()), int(mask.sum()))
        return mask

    def scene(self, rng: np.random.Generator) -> Scene:
        """Finish the picture (a little grain) and read boxes, flags and masks off the map of owners."""
        numbers = [i for i, label in enumerate(self.labels) if label is not None and (self.owner == i).any()]
        masks = self.owner == np.array(numbers, dtype=int)[:, None, None]
        boxes = np.array([_bounds(mask) for mask in masks], dtype=np.int64).reshape(-1, 4)
        share = masks.sum((1, 2)) / np.maximum(1, np.array(self.areas)[numbers])
        inside = np.array(self.visible)[numbers] / np.maximum(1, np.array(self.areas)[numbers])
        crowd = np.array(self.crowd, dtype=bool)[numbers]
        short = (boxes[:, 2:] - boxes[:, :2]).min(1) < DIFFICULT_SIDE
        grain = rng.normal(0, rng.uniform(0, 4), (*self.owner.shape, 1))
        return Scene(
            image=np.clip(np.asarray(self.image) + grain, 0, 255).astype(np.uint8),
            boxes=boxes,
            labels=np.array([self.labels[i] for i in numbers], dtype=np.int64),
            difficult=((share < DIFFICULT_VISIBLE) | short) & ~crowd,
            truncated=(inside < 0.99) & ~crowd,
            crowd=crowd,
            masks=masks,
        )

    def _enter(self, label: int | None, area: int, visible: int, crowd: bool = False) -> None:
        self.labels.append(label)
        self.areas.append(area)
        self.visible.append(visible)
        self.crowd.append(crowd)

    def _fits(self, sprite: Image.Image, x: int, y: int) -> bool:
        mask = self._mask(sprite, x, y)
        full = max(1, (np.asarray(sprite.getchannel("A")) > 127).sum())
        if mask.sum() / full < 0.7:
            return False
        hidden = np.bincount(self.owner[mask & (self.owner >= 0)], minlength=len(self.labels))
        shown = np.bincount(self.owner[self.owner >= 0], minlength=len(self.labels))
        least = np.where(self.crowd, 0.8, MIN_VISIBLE) if self.labels else np.zeros(0)
        objects = np.array([label is not None for label in self.labels], dtype=bool)
        return bool(((shown - hidden >= least * np.array(self.areas)) | ~objects).all())

    def _mask(self, sprite: Image.Image, x: int, y: int) -> np.ndarray:
        mask = Image.new("L", self.image.size)
        mask.paste(sprite.getchannel("A"), (x, y))
        return np.asarray(mask) > 127


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _pick(rng: np.random.Generator, choices: list[str]) -> str:
    return choices[rng.integers(len(choices))]


# ---------------------------------------------------------------------------------------------------- sprites


@cache
def glyph_image(glyph: str) -> Image.Image:
    """The glyph as RGBA, cropped to what can be seen of it. Raises InputError where it can't be drawn."""
    if not FONT.is_file():
        raise InputError(f"no emoji font at {FONT}: apt-get install fonts-noto-color-emoji")
    if not features.check("raqm"):
        raise InputError("this Pillow has no Raqm layout, which joins emoji: pip install --force-reinstall pillow")
    image = Image.new("RGBA", (136, 128))
    ImageDraw.Draw(image).text((0, 0), glyph, font=ImageFont.truetype(str(FONT), GLYPH_SIZE), embedded_color=True)
    return image.crop(image.getbbox())


def draw_sprite(rng: np.random.Generator, glyph: str, side: float) -> Image.Image:
    """A glyph with its longer side ``side`` pixels, perhaps mirrored, a bit turned, its colours a bit changed."""
    sprite = glyph_image(glyph)
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    stretch = np.exp(rng.uniform(-0.12, 0.12, 2))
    scale = side / max(sprite.size)
    size = [max(4, round(length * scale * s)) for length, s in zip(sprite.size, stretch, strict=True)]
    sprite = sprite.resize(size, Image.Resampling.LANCZOS)
    if rng.random() < 0.6:
        sprite = sprite.rotate(rng.normal(0, 9), Image.Resampling.BICUBIC, expand=True)
    alpha = sprite.getchannel("A")
    colours = sprite.convert("RGB")
    for enhance, spread in ((ImageEnhance.Color, 0.25), (ImageEnhance.Brightness, 0.15), (ImageEnhance.Contrast, 0.12)):
        colours = enhance(colours).enhance(float(np.exp(rng.normal(0, spread))))
    colours.putalpha(alpha)
    return colours.crop(alpha.getbbox())


# ------------------------------------------------------------------------------------------------ backgrounds
# Each pattern gives (H, W) weights in 0..1 that blend two colours; x and y run over -1..1 on the longer side.


def _gradient(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return 0.5 + 0.5 * (x * np.cos(angle) + y * np.sin(angle))


def _glow(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    cx, cy = rng.uniform(-0.7, 0.7, 2)
    return np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / rng.uniform(0.3, 1.2))


def _horizon(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    level = rng.uniform(-0.3, 0.4) + rng.uniform(0, 0.12) * np.sin(rng.uniform(1, 5) * x + rng.uniform(0, 6))
    ground = np.clip((y - level) * 40, 0, 1)
    return ground * (0.75 + 0.25 * np.clip(y - level, 0, 1)) + (1 - ground) * 0.25 * np.clip(1 + y - level, 0, 1)


def _stripes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    wave = np.sin(rng.uniform(6, 28) * _gradient(rng, x, y) + rng.uniform(0, 6))
    return 0.5 + 0.5 * np.clip(wave * rng.choice([1.0, 6.0]), -1, 1)


def _tiles(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    pitch = rng.uniform(0.12, 0.35)
    if rng.random() < 0.5:  # a chequerboard; otherwise joints between equal tiles
        return ((np.floor(x / pitch) + np.floor(y / pitch)) % 2) * 0.8
    return np.clip(1.3 - 14 * np.minimum((x / pitch) % 1, (y / pitch) % 1), 0, 1)


def _dots(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    pitch = rng.uniform(0.15, 0.35)
    shift = 0.5 * (np.floor(y / pitch) % 2)
    radius = np.hypot((x / pitch + shift) % 1 - 0.5, (y / pitch) % 1 - 0.5)
    return np.clip((rng.uniform(0.15, 0.35) - radius) * 12, 0, 1)


def _clouds(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = sum((_noise(rng, x.shape, cells) / cells**0.7 for cells in (3, 6, 12, 24)), np.zeros(x.shape))
    return (total - total.min()) / np.ptp(total)


def _grain(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    rows, columns = rng.integers(8, 60, 2)
    return np.clip(0.5 + 0.6 * (_noise(rng, x.shape, columns, rows) - 0.5), 0, 1)


PATTERNS: list[Callable[..., np.ndarray]] = [
    _gradient,
    _glow,
    _horizon,
    _horizon,
    _stripes,
    _tiles,
    _dots,
    _clouds,
    _clouds,
    _grain,
]


def draw_background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A pattern in two kindred colours, under a second faint one and a slow change of light."""
    longer = max(width, height) / 2
    y, x = np.mgrid[:height, :width] / longer - np.array([height, width])[:, None, None] / (2 * longer)
    hue, light = rng.random(), rng.uniform(0.55, 1)
    shift = rng.choice([0.03, 0.08, 0.15, 0.5]) * rng.choice([-1, 1])
    first = _colour(hue, rng.uniform(0.1, 0.5), light)
    second = _colour(hue + shift, rng.uniform(0.1, 0.5), float(np.clip(light + rng.normal(0, 0.15), 0.4, 1)))
    weight = PATTERNS[rng.integers(len(PATTERNS))](rng, x, y)[..., None]
    picture = first * (1 - weight) + second * weight
    for pattern, strength in ((_clouds, rng.uniform(0, 0.2)), (_gradient, rng.uniform(0, 0.3))):
        picture = picture * (1 + strength * (pattern(rng, x, y)[..., None] - 0.5))
    return Image.fromarray(np.clip(picture * 255, 0, 255).astype(np.uint8))


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """HSV in 0..1 (the hue wraps around) to RGB in 0..1."""
    wheel = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return value * (1 - saturation * (1 - np.clip(wheel, 0, 1)))


def _noise(rng: np.random.Generator, shape: tuple[int, int], columns: int, rows: int | None = None) -> np.ndarray:
    """Smooth noise in 0..1 of this (H, W), with so many cells along and down."""
    cells = rng.integers(0, 256, (rows or columns, columns), dtype=np.uint8)
    return np.asarray(Image.fromarray(cells).resize(shape[::-1], Image.Resampling.BICUBIC)) / 255
