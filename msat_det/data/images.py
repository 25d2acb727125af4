"""Reading photographs that nobody vouches for."""

import io
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch

# Each module registers its format, by which ``_open`` finds it.
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, WebPImagePlugin  # noqa: F401
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.base.files import absent, bytes_of, inside, is_file

# Named, because Pillow knows formats that start other programs (EPS) or need far more trust than a photograph does.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
JPEG = ("JPEG", "MPO")  # what Pillow calls a JPEG, and one with a second picture in it
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".pnm"}
# With those of photographs that other programs read: where each image counts, reading them tells what is wrong.
ALL_SUFFIXES = IMAGE_SUFFIXES | {".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".dng"}
WHOLE = 24_000_000  # pixels of a photograph that is read as it is, a larger one smaller
MAX_PIXELS = 256_000_000  # of a larger one; decoding takes seconds
MAX_DECODING = 440_000_000  # bytes that its decoder takes: the process stays under 1 GiB
MAX_SLOW = 2_000_000  # pixels of a PPM that Pillow reads number by number
MAX_RATIO = 256  # of the sides: resizing a line of pixels, one side first, would take gigabytes
MAX_SCANS = 100  # of a JPEG, which has ten or so: a few bytes can ask for one more pass over all pixels
STRIP = 1 << 20  # pixels that are made RGB at a time
MAX_EXIF = 1 << 20  # bytes; the orientation stands among the first ones
ORIENTATION = 0x0112  # EXIF's tag
FLIPS = {2: (2,), 3: (1, 2), 4: (1,)}  # its values that keep the sides → axes of (3, H, W) to be turned over
TURNS: dict[int, Callable[[Tensor], Tensor]] = {  # those that swap the sides → (3, H, W) set upright
    5: lambda image: image.transpose(1, 2),
    6: lambda image: image.rot90(-1, (1, 2)),
    7: lambda image: image.transpose(1, 2).flip(1, 2),
    8: lambda image: image.rot90(1, (1, 2)),
}
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
        raise CorruptImage(f"can't read image {path} ({error}): restore, convert or remove it") from error
    return TURNS[turn](pixels).contiguous() if turn else pixels


def read_upright(path: Path) -> Tensor:
    """``read_image`` as EXIF's orientation sets the image upright. Raises CorruptImage."""
    image, turn = read_image(path), orientation(path)
    return TURNS[turn](image).contiguous() if turn in TURNS else image.flip(FLIPS.get(turn, ()))


def image_size(path: Path) -> Size | None:
    """(width, height) as an image file is stored, from its first bytes; None where they can't be read."""
    return _of_header(path, lambda image: image.size, None)


def orientation(path: Path) -> int:
    """EXIF's orientation of an image file, 1 where it has none or can't be read."""
    found = _of_header(path, _orientation, 1)
    return found if type(found) is int else 1


def _of_header(path: Path, read: Callable[[ImageFile.ImageFile], T], otherwise: T) -> T:
    """What an image file's first bytes tell, or else ``otherwise``."""
    try:
        with path.open("rb") if is_file(path) else io.BytesIO() as file, _open(file) as image:
            return read(image)
    except Exception:  # noqa: BLE001 (who reads the whole image tells what is wrong)
        return otherwise


def upright_size(path: Path) -> Size | None:
    """``image_size`` of the image as EXIF's orientation sets it upright."""
    size = image_size(path)
    return size[::-1] if size and orientation(path) in TURNS else size


def reduction(width: int, height: int) -> int:
    """By how much the sides of a photograph are read smaller, 1, 2 or 4; what remains of a side is rounded up."""
    return next((factor for factor in (1, 2) if width * height <= WHOLE * factor**2), 4)


def image_names(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[str]:
    """Sorted relative paths of the image files at any depth, by their suffixes, those that links lead to among them.

    What is hidden (.git, with annexed images in it, or a Mac's ._1.jpg) is left out, and so are run directories below
    ``folder``, whose pictures are results. A folder to which several ways
    lead is listed once. A link that leads nowhere is an image where its name has an image's suffix, so that reading
    tells. Raises InputError for a folder that can't be listed, be it a link.
    """
    names, seen = [], set()
    folders: list[str] = [str(folder)]
    links: list[str] = []
    while folders or links:  # links last: images go by the folders that they are really in
        inner = folders.pop() if folders else links.pop()
        try:
            status = os.stat(inner)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = _entries(inner)
            if inner != str(folder) and _is_run(entries):
                continue
            for entry in entries[::-1]:
                if entry.name.startswith("."):
                    continue
                if _is_image(entry, suffixes):
                    names.append(os.path.relpath(entry.path, folder))
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112
                    links.append(entry.path)
                elif _leads_nowhere(entry) and "." not in entry.name:  # to where a folder was
                    raise InputError(f"{absent(Path(entry.path))}: put there what it leads to, or remove it")
        except OSError as error:
            raise InputError(f"can't list the folder {inner} ({error.strerror}): check the root") from error
    return sorted(names)


def image_finder(folder: Path) -> Callable[[str], str]:
    """A function of the name of an image in ``folder``, such as 000001 or a/000001 → that name with its suffix.

    The suffix may be any of IMAGE_SUFFIXES, in any case; .jpg where there is no such image, and where there are
    several. Raises InputError if none of several is .jpg, and for a name that leaves the folder. A folder is listed
    once, however many names are asked for.
    """
    listed: dict[str, dict[str, list[str]]] = {}

    def find(name: str) -> str:
        inside(folder, name)
        inner, last = os.path.split(name)
        if inner not in listed:
            listed[inner] = _by_stem(folder / inner)
        if last in listed[inner].get(os.path.splitext(last)[0], []):  # noqa: PTH122 (it has a suffix already)
            return name
        found = listed[inner].get(last, [])
        if len(found) > 1 and f"{last}.jpg" not in found:
            raise InputError(f"{folder / inner} holds {found[0]} and {found[1]}: leave one of them there")
        return os.path.join(inner, found[0] if len(found) == 1 else f"{last}.jpg")  # noqa: PTH118

    return find


def _entries(folder: str | Path) -> list[os.DirEntry]:
    """Sorted by name. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_run(entries: list[os.DirEntry]) -> bool:
    """Whether it is a run directory (``report.directory``) that these lie in."""
    names = {entry.name for entry in entries}
    return ".lock" in names and not names.isdisjoint(("config.yaml", "doctor.json"))


def _by_stem(folder: Path) -> dict[str, list[str]]:
    """The image files of one folder by their names without suffix; none where it can't be listed."""
    found: dict[str, list[str]] = {}
    with suppress(OSError):
        for entry in _entries(folder):
            if _is_image(entry):
                found.setdefault(os.path.splitext(entry.name)[0], []).append(entry.name)  # noqa: PTH122
    return found


def _is_image(entry: os.DirEntry, suffixes: Collection[str] = IMAGE_SUFFIXES) -> bool:
    """By its name; a link that leads nowhere is one, too."""
    if os.path.splitext(entry.name)[1].lower() not in suffixes:  # noqa: PTH122
        return False
    if entry.is_symlink():
        return is_file(entry.path) or _leads_nowhere(entry)
    return entry.is_file(follow_symlinks=False)


def _leads_nowhere(entry: os.DirEntry) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110


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
    """EXIF's orientation where that explains why an image of ``size`` is stored with its sides swapped, else 0."""
    swapped = size is not None and image.size != size and image.size == size[::-1]
    orientation = _orientation(image) if swapped else 0
    return orientation if orientation in TURNS else 0


def _orientation(image: ImageFile.ImageFile) -> Any:
    """EXIF's; Pillow would take XMP's where there is none, which neither viewers nor other readers do."""
    if image.format == "PNG" and (behind := _png_exif(image)):
        image.info["exif"] = behind
    for name in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)
    return Image.Image.getexif(image).get(ORIENTATION, 1)  # a PNG's own would decode all pixels to look behind them


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
