"""Bringing photographs to a network's input size, and its boxes back to the photograph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from msat_det.base.device import brought
from msat_det.base.errors import InputError

GREY = 127.0  # of 0..255
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as image readers make photographs grey


@dataclass(frozen=True)
class Geometry:
    """Where a photograph lies in the network's input: x_input = x_photo · scale + offset, in pixels, for x and for y.

    width, height: the photograph's size. scale, offset: (x, y).
    """

    width: int
    height: int
    scale: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)

    def to_input(self, boxes: Tensor) -> Tensor:
        """(N, 4) x1 y1 x2 y2 in pixels of the photograph → pixels of the network's input."""
        return boxes * boxes.new_tensor(self.scale * 2) + boxes.new_tensor(self.offset * 2)


def to_originals(boxes: Tensor, metas: Sequence[Geometry]) -> Tensor:
    """(B, N, 4) x1 y1 x2 y2 in pixels of the network's input → pixels of the B photographs, clipped to their edges."""
    ways = torch.tensor([(m.offset * 2, m.scale * 2, (m.width, m.height) * 2) for m in metas], dtype=boxes.dtype)
    offset, scale, edge = brought(ways, boxes)[:, :, None].unbind(1)
    return torch.minimum(((boxes - offset) / scale).clamp(min=0), edge)


def stretch(image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Geometry]:
    """uint8 (3, H, W) → float (3, *size) in 0..255, the aspect ratio not kept. Bilinear, antialiased, rounded."""
    _, height, width = image.shape
    resized = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return resized.float(), Geometry(width, height, (size[1] / width, size[0] / height))


def letterbox(
    image: Tensor, size: tuple[int, int], grey: float = GREY, centred: bool = True
) -> tuple[Tensor, Geometry]:
    """As ``stretch``, but the aspect ratio is kept: grey goes around the photograph, or to its right and bottom."""
    _, height, width = image.shape
    ratio = min(size[0] / height, size[1] / width)
    inner = max(1, round(height * ratio)), max(1, round(width * ratio))
    resized, geometry = stretch(image, inner)
    top, left = ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2) if centred else (0, 0)
    around = (left, size[1] - inner[1] - left, top, size[0] - inner[0] - top)
    return F.pad(resized, around, value=grey), Geometry(width, height, geometry.scale, (left, top))


Resize = Callable[..., tuple[Tensor, Geometry]]
RESIZES: dict[str, Resize] = {"stretch": stretch, "letterbox": letterbox, "corner": partial(letterbox, centred=False)}


def luma(image: Tensor) -> Tensor:
    """RGB (3, h, w) → grey (1, h, w)."""
    return torch.tensordot(image.new_tensor(LUMA), image, 1)[None]


def check_resize(name: str) -> None:
    """Raise InputError for a name that ``RESIZES`` does not have."""
    if name not in RESIZES:
        raise InputError(f"model.resize is {name!r}: give one of {', '.join(RESIZES)}")


@dataclass(frozen=True)
class Inputs:
    """How a photograph becomes a detector's input: resized, its channels in order, (pixels − mean) / std.

    resize: a name of ``RESIZES``: stretch, letterbox (centred) or corner (letterbox at the top left). pad: the grey
    that a letterbox puts around the photograph. bgr: blue first, as OpenCV reads images. mean, std: one number for each
    channel in that order; of a single number each the input is grey (1, h, w). All numbers are on the scale 0..255.
    """

    resize: str = "stretch"
    pad: float = GREY
    bgr: bool = False
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (255.0, 255.0, 255.0)

    def __post_init__(self) -> None:
        check_resize(self.resize)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, 3) or (name == "std" and not min(values) > 0):
                wanted = f"three numbers{' above 0' * (name == 'std')}, or one for grey images"
                raise InputError(f"model.{name} is {list(values)}: give {wanted}")
        if len(self.mean) != len(self.std):
            raise InputError(
                f"model.mean is {list(self.mean)} and model.std {list(self.std)}: give as many numbers for both"
            )

    @property
    def channels(self) -> int:
        """Of the input: 3, or 1 of a grey one."""
        return len(self.mean)

    def ready(self, image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Geometry]:
        """uint8 RGB (3, H, W) → float (channels, *size), and the way back."""
        options = {} if self.resize == "stretch" else {"grey": self.pad}
        resized, geometry = RESIZES[self.resize](image, size, **options)
        mean, std = (resized.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        ordered = luma(resized) if self.channels == 1 else resized.flip(0) if self.bgr else resized
        return (ordered - mean) / std, geometry


RGB = Inputs()  # 0..1, stretched


def as_size(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """One number or (height, width) → (height, width); anything else is an InputError."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise InputError(f"model.size is {size}: give one positive number of pixels, or a height and a width")
    return pair
