"""Ultralytics' data sets: a YAML file that names images, and a text file of boxes beside each of them."""

import os
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.base.files import (
    MAX_NAME,
    MAX_YAML,
    MissingData,
    absent,
    astray,
    inside,
    is_file,
    is_folder,
    read_text,
    show,
    yaml_value,
)
from msat_det.data.base import Dataset, Target, class_names, make_target
from msat_det.data.images import read_upright, upright_size
from msat_det.data.listing import ALL_SUFFIXES, image_names

SPLITS = ("val", "test", "train")  # where none is named the first one that is there, but never what was trained on
SLACK = 0.01  # beyond the image that a coordinate may lie, as where they train


class YoloDetection(Dataset):
    """The data that ``yolo train data=FILE.yaml`` takes: ``root`` is that file, or a folder that holds it.

    split: a key of the file, train, val or test; a folder, a text file with an image a line, or a list of them.
    annotations: the file, where it lies elsewhere, relative to the root. A label file stands for an image in the last
    folder ``images`` of its path as the same path below ``labels``, with the suffix .txt; without one there is nothing
    to be found. Its lines are ``class cx cy w h`` in shares of the upright image, with key points behind where the file
    has ``kpt_shape``, or ``class x1 y1 x2 y2 x3 y3 …``, a polygon, whose extent is the box. Lines that are there twice
    count once; there are no crowds.
    ``annotations`` and ``category_ids``: the same boxes as COCO's objects, for its evaluation. Ids are paths.
    Raises InputError for a missing file or split, and for lines that can't be used.
    """

    name = "yolo"

    def __init__(self, root: Path | str, split: str = "", annotations: str = ""):
        file = data_file(Path(root), annotations)
        root = Path(root) if is_folder(Path(root)) else file.parent
        content = read_data(file)
        split = split or next(filter(content.get, SPLITS[:2]), SPLITS[0])
        names = listed_images(file, content, split, root)
        columns = pose_columns(file, content)
        sizes = {name: upright_size(inside(root, name)) for name in names}
        classes = read_classes(file, content)
        self._shares = {name: read_labels(label_file(root, name), len(classes), columns) for name in names}
        super().__init__(root, classes, {name: name for name in names}, {}, sizes)
        self.category_ids = list(range(len(classes)))
        self.annotations = {name: self._objects(name) for name in names}

    def image(self, id: Any) -> Tensor:
        """uint8 (3, H, W) RGB, upright. Raises CorruptImage."""
        return read_upright(inside(self.folder, self._files[id]))

    def target(self, id: Any) -> Target:
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (entry["bbox"] for entry in self.annotations[id])]
        labels = [entry["category_id"] for entry in self.annotations[id]]
        return make_target(boxes, labels, [False] * len(labels))

    def _objects(self, id: str) -> list[dict[str, Any]]:
        """COCO's objects of an image, in pixels of the image as it is read."""
        size = self._sizes[id] or (1, 1)  # of an image that can't be read
        width, height = (side / self._factors.get(id, 1) for side in size)
        found = []
        for label, cx, cy, w, h in self._shares[id].tolist():
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            found.append({"category_id": int(label), "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        return found


def data_file(root: Path, own: str) -> Path:
    """The YAML file: ``root`` itself, the one that is named, data.yaml, or the only one in the folder."""
    if own or is_file(root):
        return root / own
    found = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    named = [path for path in found if path.stem == "data"] or found
    if len(named) == 1:
        return named[0]
    there = f"name one of {', '.join(show(path.name) for path in found[:8])}" if found else "give the file as the root"
    raise MissingData(f"no single YAML file in {root}, which holds {len(found)}: {there} by the key annotations")


def read_data(file: Path) -> dict[str, Any]:
    """The data file. Raises InputError."""
    try:
        content = yaml_value(read_text(file, MAX_YAML))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not YAML ({show(str(error))}): restore the file") from None
    if not isinstance(content, dict) or "names" not in content:
        raise InputError(f"{file} has no names: give a data file as Ultralytics' train takes it")
    return content | {"val": content.get("val") or content.get("validation")}  # its other name


def read_classes(file: Path, content: dict[str, Any]) -> list[str]:
    """The class names, of a list or of a mapping from 0 on. Raises InputError."""
    names = content["names"]
    if isinstance(names, dict):
        numbers = [int(key) if str(key).isdecimal() and len(str(key)) < 9 else key for key in names]
        if set(numbers) != set(range(len(names))):
            raise InputError(f"{file}: names has the keys {show(list(names))}: number the classes from 0 on")
        names = [name for _, name in sorted(zip(numbers, names.values(), strict=True), key=lambda pair: pair[0])]
    if not isinstance(names, list):
        raise InputError(f"{file}: names is {show(names)}: give a list, or a mapping of numbers to names")
    names = [str(name) if type(name) in (int, float) else name for name in names]
    if content.get("nc") not in (None, len(names), str(len(names))):
        raise InputError(f"{file}: nc is {show(content['nc'])}, and there are {len(names)} names: make them agree")
    return class_names(names, file)


def listed_images(file: Path, content: dict[str, Any], split: str, root: Path) -> list[str]:
    """The paths of a split's images relative to ``root``, sorted, each once. Raises InputError."""
    entries = content.get(split)
    if not entries:
        there = ", ".join(key for key in SPLITS if content.get(key)) or "none"
        raise InputError(f"{file} has no {split}: it has {there}; name one by the key split")
    base = base_folder(file, content, root)
    names: list[str] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, str) or not entry.strip():
            raise InputError(f"{file}: {split} is {show(entry)}: give a folder, a text file, or a list of them")
        place = located(entry, base, root, f"{file}, {split}")
        path = root / place
        if is_folder(path):
            found = image_names(path, ALL_SUFFIXES)
            names += [os.path.normpath(os.path.join(place, name)) for name in found]  # noqa: PTH118
        else:
            names += listed_lines(path, base, root)
    return sorted(dict.fromkeys(names))


def base_folder(file: Path, content: dict[str, Any], root: Path) -> str:
    """What the splits' paths are relative to, itself relative to ``root``: the key path where it leads anywhere there.

    Ultralytics looks for it in its own folder of data sets; here all lies below the root.
    """
    given = content.get("path")
    if isinstance(given, str) and given.strip():
        place = relative(given.strip(), "", root)
        if place is not None and is_folder(root / place):
            return place
        if is_folder(root / given.strip()):
            raise InputError(
                f"{file}: its path is {show(given)}, outside of {root}: give that folder as the root, and this file by "
                "the key annotations, beside root"
            )
    return ""


def located(entry: str, base: str, root: Path, where: str) -> str:
    """A path of the file relative to ``root``; one that begins with ../ and is not there also without it (Roboflow)."""
    tries = [entry.strip(), entry.strip().removeprefix("../")]
    places = [relative(one, base, root) for one in tries]
    for place in places:
        if place is not None and (is_folder(root / place) or is_file(root / place)):
            return place
    if places == [None, None]:
        raise InputError(f"{where} is {show(entry)}, no path inside {root}: give the folder that holds it as the root")
    raise MissingData(f"{absent(root / (places[0] or places[1] or ''), 'folder or file')}, which {where} names")


def relative(path: str, base: str, root: Path) -> str | None:
    """``base/path`` relative to ``root`` by their names alone; None where it leads out of it or can't be a path."""
    whole = os.path.normpath(os.path.join(os.path.abspath(root), base, path))  # noqa: PTH100, PTH118
    if "\0" in whole or len(whole) > MAX_NAME:
        return None
    place = os.path.relpath(whole, os.path.abspath(root))  # noqa: PTH100
    return None if Path(place).parts[:1] == ("..",) else place


def listed_lines(path: Path, base: str, root: Path) -> list[str]:
    """The images that a text file lists, a line each: "./" is the file's own folder, others begin at the base."""
    own = os.path.relpath(path.parent, root)
    names = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        place = relative(name, own if name.startswith("./") else base, root)
        if place is None or Path(place).suffix.lower() not in ALL_SUFFIXES:
            raise InputError(f"{path}, line {number}: {show(name)} is no image inside {root}: correct the list")
        names.append(place)
    return names


def label_file(root: Path, name: str) -> Path:
    """Where the boxes of an image stand: its last folder images is labels there."""
    parts = Path(name).with_suffix(".txt").parts
    last = max((i for i, part in enumerate(parts[:-1]) if part == "images"), default=None)
    return inside(root, *(part if i != last else "labels" for i, part in enumerate(parts)))


def pose_columns(file: Path, content: dict[str, Any]) -> int | None:
    """How long a line is in which key points stand behind the box; None where there are none. Raises InputError."""
    shape = content.get("kpt_shape")
    if not shape:
        return None
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(side) is int and side > 0 for side in shape)):
        raise InputError(f"{file}: kpt_shape is {show(shape)}: give the number of key points and of numbers for each")
    return 5 + shape[0] * shape[1]


def read_labels(path: Path, classes: int, pose: int | None = None) -> np.ndarray:
    """(N, 5) class, and centre and size in shares of the image; no file: none.

    pose: as many numbers are a box and key points, which don't count. Raises InputError with file and line.
    """
    if not is_file(path):
        if why := astray(path):  # labels there are, somewhere
            raise MissingData(f"no labels {path}, for {why}: restore them, or remove what is there")
        return np.zeros((0, 5))
    rows: dict[tuple[float, ...], str] = {}  # each once
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if words := line.split():
            where = f"{path}, line {number}"
            rows.setdefault(_numbers(words[:5] if len(words) == pose else words, where), where)
    if len({len(row) > 5 for row in rows}) > 1:
        raise InputError(f"{path} has boxes in some lines and polygons in others: make all of one kind")
    return np.array([_box(row, where, classes) for row, where in rows.items()]).reshape(-1, 5)


def _numbers(words: list[str], where: str) -> tuple[float, ...]:
    """In single precision, in which Ultralytics tells lines apart. Raises InputError."""
    try:
        return tuple(array("f", map(float, words)))
    except ValueError:
        raise InputError(f"{where}: {show(' '.join(words))} are no numbers: class cx cy w h") from None


def _box(row: tuple[float, ...], where: str, classes: int) -> tuple[float, ...]:
    """(class, cx, cy, w, h) of a line. Raises InputError."""
    label, *values = row
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise InputError(f"{where}: {len(row)} numbers: give class cx cy w h, or class and a polygon's corners")
    if label not in range(classes):
        raise InputError(f"{where}: class {label:g} is none of 0 to {classes - 1}: correct it, or the names")
    if len(values) > 4:
        xs, ys = values[::2], values[1::2]
        values = [(min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)]
    if not (all(-SLACK <= value <= 1 + SLACK for value in values) and min(values[2:]) >= 0):
        raise InputError(f"{where}: coordinates are shares of the image's width and height, 0 to 1: divide them by it")
    return (label, *values)
