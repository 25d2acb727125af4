"""COCO's layout and annotations."""

import json
from pathlib import Path

from msat_det.base.errors import InputError
from msat_det.base.files import MAX_BYTES, inside, is_text, read_text, show
from msat_det.data.base import Dataset, Target, is_number, make_target, require_images


class CocoDetection(Dataset):
    """COCO: ``root/annotations/instances_<split>.json`` and the images in ``root/<split>/`` (Lin et al. 2014).

    ``classes`` are the categories sorted by id, ``category_ids`` their ids. ``annotations``: image id → its objects
    as dicts of category_id, bbox (x y w h), area and iscrowd, just as the file has them.
    Raises InputError for a missing file or image folder, and for entries that can't be used.
    """

    name = "coco"

    def __init__(self, root: Path | str, split: str = "val2017"):
        path = inside(Path(root), "annotations", f"instances_{split}.json")
        folder = inside(Path(root), split)
        content = read_coco_json(path)
        categories, files = {}, {}
        for number, entry in enumerate(content["categories"]):
            where = f"{path}, categories[{number}]"
            categories[coco_id(entry, "id", where)] = coco_name(entry, "name", where)
        for number, entry in enumerate(content["images"]):
            where = f"{path}, images[{number}]"
            name = coco_name(entry, "file_name", where)
            inside(folder, name)
            files[coco_id(entry, "id", where)] = name
        if len(set(categories.values())) < len(content["categories"]) or len(files) < len(content["images"]):
            raise InputError(f"{path}: two categories or two images share an id or a name: make them unique")
        self.category_ids = sorted(categories)
        self.annotations: dict[int, list[dict]] = {id: [] for id in files}
        for number, entry in enumerate(content["annotations"]):
            where = f"{path}, annotations[{number}]"
            annotation = coco_annotation(entry, where)
            for key, known in (("category_id", categories), ("image_id", files)):
                if annotation[key] not in known:
                    raise InputError(f"{where}: {key} {annotation[key]} is not listed in the file: list or correct it")
            self.annotations[annotation.pop("image_id")].append(annotation)
        require_images(folder, files.values())
        super().__init__(folder, [categories[id] for id in self.category_ids], files, {})
        self._index = {id: label for label, id in enumerate(self.category_ids)}

    def target(self, id: int) -> Target:
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


def coco_id(entry: object, key: str, where: str) -> int:
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not int or abs(value) >= 2**53:
        raise InputError(f"{where}: {key} is {show(value)}, it must be an integer")
    return value


def coco_name(entry: object, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str) or not value or not is_text(value):
        raise InputError(f"{where}: {key} is {show(value)}, it must be a name")
    return value


def coco_annotation(entry: object, where: str) -> dict:
    """One checked object: image_id, category_id, bbox, area, iscrowd, with the file's own numbers."""
    result = {key: coco_id(entry, key, where) for key in ("image_id", "category_id")}
    box, area, crowd = (entry.get(key) for key in ("bbox", "area", "iscrowd"))
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) and box[2] >= 0 and box[3] >= 0):
        raise InputError(f"{where}: bbox is {show(box)}, it must be four finite numbers x, y, w ≥ 0, h ≥ 0")
    if not (is_number(area) and area >= 0):
        raise InputError(f"{where}: area is {show(area)}, it must be a finite number ≥ 0")
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        raise InputError(f"{where}: iscrowd is {show(crowd)}, it must be 0 or 1")
    return result | {"bbox": box, "area": area, "iscrowd": int(crowd)}
