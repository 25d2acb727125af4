"""COCO's annotations, as its authors and as other tools write them."""

import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from msat_det.base.errors import InputError
from msat_det.base.files import MAX_BYTES, inside, is_text, read_text, show
from msat_det.data.base import CONTROL, Dataset, Target, alike, is_number, make_target
from msat_det.data.coco_layout import Within, annotation_file, image_folder
from msat_det.data.images import Size

WHOLE = re.compile(r"\s*(-?[0-9]+)(?:\.0*)?\s*")
Id = int | str
MOST_ID = 2**53  # of those that a float tells apart, as which some tools write them


class CocoDetection(Dataset):
    """COCO's format (Lin et al. 2014): ``root/annotations/instances_<split>.json`` and the images in ``root/<split>/``,
    or where Roboflow, CVAT, Label Studio and Ultralytics put them (``coco_layout``).

    annotations, images: file and folder, where they lie elsewhere; relative to the root.
    ``classes`` are the categories sorted by id, but for one that only groups others, ``category_ids`` their ids.
    ``annotations``: image id → its objects as dicts of category_id, bbox (x y w h), area and iscrowd.
    Raises InputError for a missing file or image folder, and for entries that can't be used.
    """

    name = "coco"

    def __init__(self, root: Path | str, split: str = "", annotations: str = "", images: str = ""):
        root = Path(root)
        path = annotation_file(root, split, annotations)
        content = read_coco_json(path)
        files, sizes = coco_images(content["images"], path, root)
        categories = coco_categories(content["categories"], f"{path}, categories")
        self.annotations = coco_objects(content["annotations"], path, files, categories)
        if not files:
            raise InputError(f"{path}: lists no images: name a file that does")
        used = {entry["category_id"] for entries in self.annotations.values() for entry in entries}
        classes = coco_classes(categories, used, f"{path}, categories")
        self.category_ids = list(classes)
        self._index = {id: label for label, id in enumerate(self.category_ids)}
        folder = image_folder(root, split, path, list(files.values()), images)
        within = Within(folder)
        super().__init__(folder, list(classes.values()), {id: within(name) for id, name in files.items()}, {}, sizes)
        for id, factor in self._factors.items():
            self.annotations[id] = [_smaller(entry, factor) for entry in self.annotations[id]]

    def target(self, id: Id) -> Target:
        found = self.annotations[id]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (entry["bbox"] for entry in found)]
        labels = [self._index[entry["category_id"]] for entry in found]
        return make_target(boxes, labels, [entry["iscrowd"] for entry in found])


def read_coco_json(path: Path) -> dict:
    """The annotation file with its three lists (images, annotations, categories). Raises InputError."""
    try:
        content = json.loads(read_text(path, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON ({error}): restore the file") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: has no list {key!r}: give an instances file in COCO's format")
    return content


def coco_images(entries: list, path: Path, root: Path) -> tuple[dict[Id, str], dict[Id, Size | None]]:
    """id → name with slashes, and id → (width, height), None where that is not told. All ids are text where one is no
    number. Raises InputError."""
    files, sizes = [], []
    for number, entry in enumerate(entries):
        where = f"{path}, images[{number}]"
        name = coco_name(entry, "file_name", where).replace("\\", "/")
        try:
            inside(root, name)
        except InputError as error:
            raise InputError(f"{where}: file_name {error}, as in images/1.jpg") from error
        files.append((coco_image_id(entry, "id", where), name))
        sizes.append(coco_size(entry))
    if any(isinstance(id, str) for id, _ in files):
        files = [(str(id), name) for id, name in files]
    refuse_alike([id for id, _ in files], f"{path}, images", "id")
    return dict(files), {id: size for (id, _), size in zip(files, sizes, strict=True)}


def coco_categories(entries: list, where: str) -> dict[int, dict]:
    """id → name and supercategory. Raises InputError."""
    found = []
    for number, entry in enumerate(entries):
        id, name = coco_id(entry, "id", f"{where}[{number}]"), coco_name(entry, "name", f"{where}[{number}]").strip()
        group = entry.get("supercategory")
        found.append((id, {"name": name, "supercategory": group if isinstance(group, str) else None}))
    refuse_alike([id for id, _ in found], where, "id")
    return dict(found)


def coco_classes(categories: dict[int, dict], used: set[int], where: str) -> dict[int, str]:
    """id → name of the categories that are classes, sorted by id.

    Roboflow's first category only groups the others: no object is of it, and it is another one's supercategory.
    Raises InputError for two of one name.
    """
    groups = {category["supercategory"] for category in categories.values()}

    def is_class(id: int, name: str, supercategory: str | None) -> bool:
        return id in used or supercategory == name or name not in groups

    kept = {id: category for id, category in sorted(categories.items()) if is_class(id, **category)}
    refuse_alike([category["name"] for category in kept.values()], where, "name", list(kept))
    return {id: category["name"] for id, category in kept.items()}


def refuse_alike(values: list, where: str, key: str, ids: list | None = None) -> None:
    """Raise InputError where two entries share a value. ids: what the message calls them by; None: their positions."""
    if pair := alike(values):
        first, second = (ids[position] if ids else position for position in pair)
        who = f"{'ids' if ids else 'entries'} {first} and {second}"
        raise InputError(f"{where}: {who} share the {key} {show(values[pair[0]])}: make it unique")


def coco_objects(
    entries: list, path: Path, images: Collection[Id], categories: Collection[int]
) -> dict[Id, list[dict]]:
    """Image id → its checked objects. Raises InputError."""
    found: dict[Id, list[dict]] = {id: [] for id in images}
    text = any(isinstance(id, str) for id in images)
    for number, entry in enumerate(entries):
        where = f"{path}, annotations[{number}]"
        annotation = coco_annotation(entry, where, text)
        for key, known in (("category_id", categories), ("image_id", found)):
            if annotation[key] not in known:
                raise InputError(
                    f"{where}: {key} {show(annotation[key])} is not listed in the file: list or correct it"
                )
        found[annotation.pop("image_id")].append(annotation)
    return found


def coco_id(entry: object, key: str, where: str) -> int:
    """A whole number, also as text ("12") or as a float (12.0), as some tools write it. Raises InputError."""
    value = entry.get(key) if isinstance(entry, dict) else None
    id = whole(value)
    if id is None or abs(id) >= MOST_ID:
        raise InputError(f"{where}: {key} is {show(value)}, it must be an integer")
    return id


def coco_image_id(entry: object, key: str, where: str) -> Id:
    """The same, or a text that is no number, as a name or a UUID is one. Raises InputError."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, str) and whole(value) is None and value.strip() and not CONTROL.search(value):
        return coco_name(entry, key, where)
    return coco_id(entry, key, where)


def whole(value: object) -> int | None:
    """The whole number that a JSON value stands for; None where it stands for none."""
    if isinstance(value, str) and len(value) < 24 and (found := WHOLE.fullmatch(value)):
        return int(found[1])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def number(value: object) -> Any:
    """A JSON value with numbers that are text ("12.5") made numbers, in lists too; None for "" and NaN, which stand in
    tables for what is not there. Anything else as it is."""
    if isinstance(value, list):
        return [number(item) for item in value]
    if isinstance(value, str) and len(value) < 40:
        try:
            value = float(value) if value.strip() else math.nan
        except ValueError:
            return value
    return None if isinstance(value, float) and math.isnan(value) else value


def coco_name(entry: object, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if key == "name" and type(value) in (int, float):  # digits are classes, too
        value = str(value)
    if not isinstance(value, str) or not value.strip() or not is_text(value):
        raise InputError(f"{where}: {key} is {show(value)}, it must be a name")
    return value


def coco_size(entry: dict) -> Size | None:
    """(width, height) of an image's entry; None where it has none."""
    width, height = whole(entry.get("width")), whole(entry.get("height"))
    return (width, height) if width and height and width > 0 < height else None


def coco_annotation(entry: Any, where: str, text: bool = False) -> dict:
    """One checked object: image_id, category_id, bbox, area, iscrowd, with the file's own numbers.

    text: whether the ids of images are text.
    An object without a box has that of its polygons; one without area the box's; one without iscrowd is no crowd.
    """
    image = str(coco_image_id(entry, "image_id", where)) if text else coco_id(entry, "image_id", where)
    result: dict[str, Any] = {"image_id": image, "category_id": coco_id(entry, "category_id", where)}
    box, area, crowd = (number(entry.get(key)) for key in ("bbox", "area", "iscrowd"))
    if box is None or box == []:
        box = polygon_box(entry.get("segmentation"), where)
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) and box[2] >= 0 and box[3] >= 0):
        raise InputError(f"{where}: bbox is {show(box)}, it must be four finite numbers x, y, w ≥ 0, h ≥ 0")
    if area is None:
        area = box[2] * box[3]
    elif not (is_number(area) and area >= 0):
        raise InputError(f"{where}: area is {show(area)}, it must be a finite number ≥ 0")
    crowd = 0 if crowd is None else crowd
    if type(crowd) not in (int, float, bool) or crowd not in (0, 1):
        raise InputError(f"{where}: iscrowd is {show(crowd)}, it must be 0 or 1")
    return result | {"bbox": box, "area": area, "iscrowd": int(crowd)}


def polygon_box(polygons: object, where: str) -> list[float]:
    """x, y, w, h around the polygons [[x1, y1, x2, y2, …], …]. Raises InputError where there are none."""
    parts = [part for part in polygons if isinstance(part, list)] if isinstance(polygons, list) else []
    numbers = [number for part in parts for number in part]
    if not numbers or any(len(part) % 2 for part in parts) or not all(map(is_number, numbers)):
        raise InputError(f"{where}: has neither a bbox nor polygons to take one from: add it, or leave the object out")
    columns, rows = ([number for part in parts for number in part[axis::2]] for axis in (0, 1))
    return [min(columns), min(rows), max(columns) - min(columns), max(rows) - min(rows)]


def _smaller(entry: dict, factor: int) -> dict:
    """An object on an image whose sides are read ``factor`` times smaller."""
    return entry | {"bbox": [edge / factor for edge in entry["bbox"]], "area": entry["area"] / factor**2}
