"""Which files of a folder are images."""

import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from msat_det.base.errors import InputError
from msat_det.base.files import absent, inside, is_file

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".pnm"}
# With those of photographs that other programs read: where each image counts, reading them tells what is wrong.
ALL_SUFFIXES = IMAGE_SUFFIXES | {".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".dng"}


def image_names(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[str]:
    """Sorted relative paths of the image files at any depth, by their suffixes, those that links lead to among them.

    What is hidden (.git, with annexed images in it, or a Mac's ._1.jpg) is left out, and so are run directories below
    ``folder``, whose pictures are results. A folder to which several ways lead is listed once. A link that leads
    nowhere is an image where its name has an image's suffix, so that reading tells. Raises InputError for a folder that
    can't be listed, be it a link.
    """
    names, seen = [], set()
    folders: list[str] = [str(folder)]
    links: list[str] = []
    while folders or links:  # links last: images go by the folders that they are really in
        inner = folders.pop() if folders else links.pop()
        try:
            status, entries = os.stat(inner), _entries(inner)  # noqa: PTH116
            place = status.st_dev, status.st_ino
            if place in seen or (inner != str(folder) and _is_run(entries)):
                continue
            seen.add(place)
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
