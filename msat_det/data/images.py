"""Reading photographs that nobody vouches for."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.base.files import bytes_of, is_file

# Named, because Pillow knows formats that start other programs (EPS) or need far more trust than a photograph does.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"}
MAX_PIXELS = 24_000_000  # decoding takes up to 22 bytes a pixel: the process stays under 1 GiB
MAX_SLOW = 2_000_000  # pixels of a PPM that Pillow reads number by number
MAX_RATIO = 256  # of the sides: resizing a line of pixels, one side first, would take gigabytes
MAX_SCANS = 100  # of a JPEG, which has ten or so: a few bytes can ask for one more pass over all pixels


class CorruptImage(InputError):
    """An image that can't be read; the message names the file. A run may count it and go on."""


def read_image(path: Path) -> Tensor:
    """An image file → uint8 (3, H, W) RGB. EXIF orientation is left alone, as VOC's and COCO's own tools do.

    Raises CorruptImage for anything that can't be decoded, and for more than MAX_PIXELS pixels, MAX_RATIO or
    MAX_SCANS.
    """
    if not is_file(path):
        raise CorruptImage(f"no image file {path}: restore it or take it off the list")
    try:
        pixels = _decode(path)  # a function of its own: what it used is free again
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise CorruptImage(f"can't read image {path} ({error}): restore or remove it") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def image_names(folder: Path) -> list[str]:
    """Sorted relative paths of the image files at any depth. Raises InputError for a folder that can't be listed."""
    names, todo = [], [str(folder)]
    while todo:  # no recursion: folders may be nested as deep as a path is long
        inner = todo.pop()
        try:
            with os.scandir(inner) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and is_file(entry.path):  # noqa: PTH122
                        names.append(os.path.relpath(entry.path, folder))
        except OSError as error:
            raise InputError(f"can't list the folder {inner} ({error.strerror}): check the root") from error
    return sorted(names)


def _decode(path: Path) -> np.ndarray:
    with Image.open(path, formats=IMAGE_FORMATS) as image:
        size = f"{image.width} x {image.height} pixels"
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{size}, more than {MAX_PIXELS}")
        if max(image.size) > MAX_RATIO * min(image.size):
            raise ValueError(f"{size}, too narrow for a photograph")
        if image.format in ("JPEG", "MPO") and bytes_of(path).count(b"\xff\xda") > MAX_SCANS:
            raise ValueError(f"more than {MAX_SCANS} scans")
        if image.format == "PPM" and image.width * image.height > MAX_SLOW and image.tile[0][0] != "raw":
            raise ValueError(f"{size} in text or of odd depth, more than {MAX_SLOW}")
        if image.mode.startswith("I"):  # 16 bits of grey: Pillow would clip them, not scale them
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
