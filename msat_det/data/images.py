"""Reading photographs that nobody vouches for."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch

# Each module registers its format, by which ``_open`` finds it.
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, WebPImagePlugin  # noqa: F401
from torch import Tensor

from msat_det.base.errors import InputError, lack_of_memory
from msat_det.base.files import absent, bytes_of, is_file

# Named, because Pillow knows formats that start other programs (EPS) or need far more trust than a photograph does.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
JPEG = ("JPEG", "MPO")  # what Pillow calls a JPEG, and one with a second picture in it
WHOLE = 24_000_000  # pixels of a photograph that is read as it is, a larger one smaller
MAX_PIXELS = 256_000_000  # of a larger one; decoding takes seconds
MAX_DECODING = 440_000_000  # bytes that its decoder takes: the process stays under 1 GiB
MAX_SLOW = 2_000_000  # pixels of a PPM that Pillow reads number by number
MAX_RATIO = 256  # of the sides: resizing a line of pixels, one side first, would take gigabytes
MAX_SCANS = 100  # of a JPEG, which has ten or so: a few bytes can ask for one more pass over all pixels
STRIP = 1 << 20  # pixels that are made RGB at a time
MAX_EXIF = 1 << 20  # bytes; the orientation stands among the first ones
ORIENTATION = 0x0112  # EXIF's tag
FLIPS = {1: (), 2: (2,), 3: (1, 2), 4: (1,)}  # its values → axes of (3, H, W) to be turned over
SWAPPED = {5: 1, 6: 2, 7: 3, 8: 4}  # those that swap the sides → what is left to be done then
Size = tuple[int, int]
T = TypeVar("T")


class CorruptImage(InputError):
    """An image that can't be read; the message names the file. A run may count it and go on."""


def read_image(path: Path, size: Size | None = None) -> Tensor:
    """An image file → uint8 (3, H, W) RGB.

    A photograph of more than WHOLE pixels is read at a half or a quarter of its size, see ``reduction``.
    size: (width, height) that boxes on it count in. The image is read as it is stored, as VOC's and COCO's own tools
        do, unless ``size`` has its sides swapped and EXIF's orientation says so: then it is set upright.
    Raises CorruptImage for anything that can't be decoded, and for more than MAX_PIXELS, MAX_DECODING, MAX_RATIO or
    MAX_SCANS.
    """
    if not is_file(path):
        raise CorruptImage(f"{absent(path, 'image file')}: restore it or take it off the list")
    try:
        with path.open("rb") as file, _open(file) as image:
            _check(path, image)
            turn = _turn(image, size)
            pixels = _decode(image)
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        if lack_of_memory(error):
            raise
        _want_memory()
        raise CorruptImage(f"can't read image {path} ({error}): restore, convert or remove it") from error
    return _upright(pixels, turn)


def read_upright(path: Path) -> Tensor:
    """``read_image`` as EXIF's orientation sets the image upright. Raises CorruptImage."""
    return _upright(read_image(path), orientation(path))


def image_size(path: Path) -> Size | None:
    """(width, height) as an image file is stored, from its first bytes; None where they can't be read."""
    return _of_header(path, lambda image: image.size, None)


def orientation(path: Path) -> int:
    """EXIF's orientation of an image file, 1 where it has none or can't be read."""
    return _of_header(path, _orientation, 1)


def _of_header(path: Path, read: Callable[[ImageFile.ImageFile], T], otherwise: T) -> T:
    """What an image file's first bytes tell, or else ``otherwise``."""
    try:
        with path.open("rb") if is_file(path) else io.BytesIO() as file, _open(file) as image:
            return read(image)
    except Exception as error:  # who reads the whole image tells what is wrong
        if lack_of_memory(error):
            raise
        _want_memory()
        return otherwise


def _want_memory() -> None:
    """Raise MemoryError where a decoder would not find as much as it may take: libjpeg and libwebp call that damage."""
    np.empty(MAX_DECODING, np.uint8)  # nothing is written there


def upright_size(path: Path) -> Size | None:
    """``image_size`` of the image as EXIF's orientation sets it upright."""
    size = image_size(path)
    return size[::-1] if size and orientation(path) in SWAPPED else size


def reduction(width: int, height: int) -> int:
    """By how much the sides of a photograph are read smaller, 1, 2 or 4; what remains of a side is rounded up."""
    return next((factor for factor in (1, 2) if width * height <= WHOLE * factor**2), 4)


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """``Image.open`` for IMAGE_FORMATS and without its own bound, at a quarter of which it speaks of attacks."""
    start = file.read(16)
    for form in IMAGE_FORMATS:
        factory, accept = Image.OPEN[form]
        if accept and accept(start):
            file.seek(0)
            return factory(file, "")
    raise ValueError(f"it is none of {', '.join(IMAGE_FORMATS)}")


def _turn(image: ImageFile.ImageFile, size: Size | None) -> int:
    """EXIF's orientation where that explains why an image of ``size`` is stored with its sides swapped, else 1."""
    swapped = size is not None and image.size != size and image.size == size[::-1]
    turn = _orientation(image) if swapped else 1
    return turn if turn in SWAPPED else 1


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF's, 1 where it has none; Pillow would take XMP's there, which neither viewers nor other readers do."""
    if image.format == "PNG" and (behind := _png_exif(image)):
        image.info["exif"] = behind
    for name in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)
    found = Image.Image.getexif(image).get(ORIENTATION)  # a PNG's own would decode all pixels to look behind them
    return found if type(found) is int and 1 <= found <= 8 else 1


def _upright(image: Tensor, orientation: int) -> Tensor:
    if orientation in SWAPPED:
        image, orientation = image.transpose(1, 2), SWAPPED[orientation]
    return image.flip(FLIPS[orientation]).contiguous()


def _png_exif(image: Any) -> bytes:
    """What a PNG's chunk eXIf holds, wherever it stands; nothing where there is none."""
    file = image.fp
    place, found = file.tell(), b""
    file.seek(8)
    while not found and len(head := file.read(8)) == 8:
        size = int.from_bytes(head[:4], "big")
        found = file.read(min(size, MAX_EXIF)) if head[4:] == b"eXIf" else b""
        file.seek(4 if found else size + 4, os.SEEK_CUR)  # the chunk's checksum follows
    file.seek(place)
    return found


def _decode(image: ImageFile.ImageFile) -> Tensor:
    """uint8 (3, H, W), strip by strip, so that no second copy of all pixels is needed."""
    factor = reduction(*image.size)
    if image.format in JPEG and factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))
        factor = reduction(*image.size)
    image.load()
    width, height = image.size
    pixels = torch.empty(3, -(-height // factor), -(-width // factor), dtype=torch.uint8)
    rows = max(1, STRIP // (width * factor)) * factor
    for top in range(0, height, rows):
        strip = _rgb(image if height <= rows else image.crop((0, top, width, min(top + rows, height))))
        made = torch.from_numpy(np.array(strip if factor == 1 else strip.reduce(factor))).permute(2, 0, 1)
        first = top // factor
        pixels[:, first : first + made.shape[1]] = made
    return pixels


def _check(path: Path, image: ImageFile.ImageFile) -> None:
    """Raise ValueError for an image that would take too much time or memory."""
    count = image.width * image.height
    size = f"{image.width} x {image.height} pixels"
    if count > WHOLE:
        most = max(WHOLE, min(MAX_PIXELS, int(MAX_DECODING / _bytes_a_pixel(path, image))))
        if count > most:
            raise ValueError(f"{size}, a {image.format} of its kind may have {most}: make it smaller or a plain JPEG")
    if max(image.size) > MAX_RATIO * min(image.size):
        raise ValueError(f"{size}, too narrow for a photograph")
    if image.format in JPEG and bytes_of(path).count(b"\xff\xda") > MAX_SCANS:
        raise ValueError(f"more than {MAX_SCANS} scans")
    if image.mode == "F":
        raise ValueError("its pixels are no whole numbers")
    if image.format == "PPM" and count > MAX_SLOW and image.tile[0][0] != "raw":
        raise ValueError(f"{size} in text or of odd depth, more than {MAX_SLOW}")


def _bytes_a_pixel(path: Path, image: ImageFile.ImageFile) -> float:
    """What decoding an image of more than WHOLE pixels takes, before it is made smaller."""
    if image.format not in JPEG:
        return 16 if image.format == "WEBP" else 4
    layers = vars(image)["layer"]  # which Pillow's JPEG images alone have
    channels = [horizontal * vertical for _, horizontal, vertical, _ in layers]
    if not image.info.get("progressive") and _first_scan(bytes_of(path)) == len(channels):
        return 1  # it is never whole in memory
    return 2 * sum(channels) / max(*channels, 1)  # the coefficients of all channels are kept until the last scan


def _first_scan(data: bytes) -> int:
    """The number of channels in a JPEG's first scan; 0 where its segments do not follow each other."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 < len(data):
        if data[at + 1] == 0xDA:
            return data[at + 4]
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def _rgb(strip: Image.Image) -> Image.Image:
    if strip.mode.startswith("I"):  # 16 bits of grey: Pillow would clip them, not scale them
        strip = Image.fromarray((np.asarray(strip) >> 8).astype(np.uint8))
    strip.info.pop("transparency", None)  # of a palette Pillow would say on stderr what to do with it
    return strip if strip.mode == "RGB" else strip.convert("RGB")
