"""Reading files that nobody vouches for: nothing outside a folder is opened, and every fault is an InputError."""

import os
import reprlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msat_det.errors import InputError

# Named, because Pillow knows formats that start other programs (EPS) or need far more trust than a photograph does.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
MAX_PIXELS = 30_000_000  # decoding takes up to 14 bytes a pixel: the whole process stays under 1 GiB
SHORT = reprlib.Repr()
SHORT.maxstring = 100


class CorruptImage(InputError):
    """An image that can't be read; the message names the file. A run may count it and go on."""


class MissingData(InputError):
    """A part of a dataset that is not there at all, so that it may help to fetch it."""


def read_image(path: Path) -> Tensor:
    """An image file → uint8 (3, H, W) RGB. EXIF orientation is left alone, as VOC's and COCO's own tools do.

    Raises CorruptImage for anything that can't be decoded, and for more than MAX_PIXELS pixels.
    """
    if not is_file(path):
        raise CorruptImage(f"no image file {one_line(path)}: restore it or take it off the list")
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            pixels = _rgb(image)
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise CorruptImage(f"can't read image {one_line(path)} ({one_line(error)}): restore or remove it") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _rgb(image: Image.Image) -> np.ndarray:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow would clip them, not scale them
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def inside(folder: Path, *names: str) -> Path:
    """``folder/names…``. Raises InputError if that leaves the folder, be it by ``..``, a root or a symbolic link."""
    path = Path(folder, *names)
    try:
        if path.resolve().is_relative_to(Path(folder).resolve()):
            return path
    except (OSError, ValueError, RuntimeError):  # a zero byte, half a character, a loop of links
        pass
    raise InputError(f"{show('/'.join(names))} is no path inside {folder}: name a file within it")


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises InputError, MissingData where there is none."""
    if not is_file(path):  # also keeps us from waiting on a pipe
        raise MissingData(f"no file {one_line(path)}: check the root, the split and the year")
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"can't read {one_line(path)} as UTF-8 text ({one_line(error)}): restore the file") from error


def is_file(path: Path) -> bool:
    """Whether a regular file is there; unlike ``Path.is_file``, False for a name too long to exist as well."""
    return os.path.isfile(path)  # noqa: PTH113


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def show(value: object) -> str:
    """An untrusted value for a message: short, printable, on one line."""
    return SHORT.repr(value)
