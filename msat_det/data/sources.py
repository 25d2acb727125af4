"""The pictures that a user points at: one, those of a folder, or those that a pattern of names fits."""

import glob
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from msat_det.base.errors import InputError
from msat_det.base.files import absent, is_file, is_folder, show
from msat_det.base.settings import expanded
from msat_det.data.listing import ALL_SUFFIXES, IMAGE_SUFFIXES, image_names


def images_of(source: str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Name → image file: of a file its name, of a folder or a pattern the paths below it, sorted. Raises InputError."""
    path = expanded(source)
    if is_folder(path):
        found = {name: path / name for name in image_names(path, suffixes)}
    elif is_file(path):
        found = {path.name: path}
    elif glob.has_magic(source):
        found = _matching(str(path), suffixes)
    else:
        raise InputError(f"{absent(path, 'picture, folder or video')}: give one that is there")
    if not found:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"{show(source)} names no picture: give one, or a folder with some ({kinds})")
    return found


def images_of_all(sources: Iterable[str]) -> dict[str, Path]:
    """Name → image file of several sources: pictures of one name in different folders have as much of their paths as
    tells them apart, and those of a kind that is not read are among them. Raises InputError."""
    given = [(name, path) for source in sources for name, path in images_of(source, ALL_SUFFIXES).items()]
    once = {path.parent.resolve() / path.name: (Path(name), path) for name, path in given}
    names = {place: name for place, (name, _) in once.items()}
    while twice := {name for name, count in Counter(names.values()).items() if count > 1}:
        for place, name in names.items():
            if name in twice:
                parts = [part.strip("/\\:") for part in place.parts]
                names[place] = Path(*list(filter(None, parts))[-len(name.parts) - 1 :])
    return {name.as_posix(): once[place][1] for place, name in names.items()}


def _matching(pattern: str, suffixes: Collection[str]) -> dict[str, Path]:
    """The images that a pattern fits, ** at any depth; their names are relative to its part without wildcards."""
    parts = Path(pattern).parts
    fixed = parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))]
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 (a whole pattern)
    images = [path for path in paths if path.suffix.lower() in suffixes and is_file(path)]
    return {path.relative_to(Path(*fixed)).as_posix(): path for path in images}
