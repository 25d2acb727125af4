"""Datasets: images by id with their ground truth. Files are untrusted, and none outside the root is opened."""

import copy
import difflib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor
from torchvision.datasets import CIFAR100

from msat_det.catalogue import data_command, fetch_command
from msat_det.errors import InputError
from msat_det.files import MAX_BYTES, MAX_XML, MissingData, inside, is_file, is_text, read_text, show
from msat_det.images import CorruptImage as CorruptImage
from msat_det.images import image_names, read_image

# fmt: off
VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]
# fmt: on
MAX_COORDINATE = 1e9


@dataclass(frozen=True)
class Target:
    """The objects of one image.

    boxes: (N, 4) float32, x1 y1 x2 y2 in pixels, in the dataset's own convention: COCO's are continuous edges from 0;
        VOC's are the XML's integers, counted from 1 with the last pixel included (a box is x2 − x1 + 1 wide).
    labels: (N,) int64, index into the dataset's ``classes``.
    ignore: (N,) bool, VOC's ``difficult`` or COCO's ``iscrowd``: neither a miss nor a false alarm.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor


@dataclass(frozen=True)
class Sample:
    """One image: uint8 (3, H, W) RGB, and its ``Target`` (detection), class index (classification) or None."""

    id: int | str
    image: Tensor
    target: Target | int | None


class Dataset:
    """Images by id: ``dataset[i]`` reads image ``ids[i]``; ``target(id)`` reads no image.

    folder: where the image files are. files: id → path relative to it. targets: id → ground truth, may be empty.
    Raises InputError when there are no images.
    """

    name = ""

    def __init__(self, folder: Path, classes: list[str], files: dict, targets: dict):
        if not files:
            raise InputError(f"no images in {folder}: check the root and the split")
        self.folder, self.classes, self.ids = folder, classes, sorted(files)
        self._files, self._targets = files, targets

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        id = self.ids[index]
        return Sample(id, self.image(id), self.target(id))

    def image(self, id: int | str) -> Tensor:
        """uint8 (3, H, W) RGB. Raises CorruptImage."""
        return read_image(inside(self.folder, self._files[id]))

    def target(self, id: int | str) -> Target | int | None:
        """The ground truth of one image; None where the dataset has none."""
        return self._targets.get(id)


def select(dataset: Dataset, ids: Iterable[int | str]) -> Dataset:
    """A view of ``dataset`` that holds ``ids`` alone, in the order given."""
    view = copy.copy(dataset)
    view.ids = list(ids)
    if not view.ids:
        raise InputError(f"no images of {dataset.folder} are selected: the dataset would be empty")
    return view


def subset(dataset: Dataset, limit: int | None, seed: int, skip: int = 0) -> Dataset:
    """A view with ``limit`` ids of a seeded shuffle of the sorted ids, after its first ``skip``, in that order.

    So a larger limit only appends images, and ``skip`` = N leaves out those that ``limit`` = N selects. No limit and
    nothing skipped leaves the dataset as it is. Raises InputError for a limit below 1, and where no image is left.
    """
    if limit is None and not skip:
        return dataset
    if limit is not None and limit < 1:
        raise InputError(f"data limit {limit}: give a number of images of at least 1")
    ids = sorted(dataset.ids)
    random.Random(seed).shuffle(ids)
    return select(dataset, ids[skip:][:limit])


class VocDetection(Dataset):
    """PASCAL VOC: ``root/VOCdevkit/VOC<year>/{Annotations,ImageSets/Main,JPEGImages}`` (Everingham et al. 2010).

    Ids are the image names of ``ImageSets/Main/<split>.txt``. An object without ``difficult`` is not difficult.
    Raises InputError for a missing list, annotation or image folder, and for annotations that can't be used.
    """

    name = "voc"

    def __init__(self, root: Path | str, split: str = "test", year: str = "2007"):
        home = inside(Path(root), "VOCdevkit", f"VOC{year}")
        listing = inside(home, "ImageSets", "Main", f"{split}.txt")
        if not is_file(listing):
            known = ", ".join(sorted(path.stem for path in listing.parent.glob("*.txt"))[:8]) or "none"
            raise MissingData(f"no image list {listing} (there: {known}): check the root, the split and the year")
        ids = [line.split()[0] for line in read_text(listing).splitlines() if line.strip()]
        if twice := [id for id, count in Counter(ids).items() if count > 1]:
            raise InputError(f"{listing}: {show(twice[0])} is listed twice: list each image once")
        folder = inside(home, "JPEGImages")
        files = {id: f"{id}.jpg" for id in ids}
        require_images(folder, files.values())
        index = {name: label for label, name in enumerate(VOC_CLASSES)}
        targets = {id: read_voc_xml(inside(home / "Annotations", f"{id}.xml"), index) for id in ids}
        super().__init__(folder, VOC_CLASSES.copy(), files, targets)


def read_voc_xml(path: Path, index: dict[str, int]) -> Target:
    """One VOC annotation file → its Target. ``index``: class name → label. Raises InputError that names the object."""
    text = read_text(path, MAX_XML)
    if "<!DOCTYPE" in text:  # no document type, so no entities: neither bombs nor files of the machine
        raise InputError(f"{path}: has a document type, which no VOC annotation needs: remove <!DOCTYPE …>")
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter two: odd encodings
        raise InputError(f"{path}: broken XML ({error}): restore the file") from error
    if tree.tag != "annotation":
        raise InputError(f"{path}: the root element is {show(tree.tag)}, a VOC annotation has <annotation>")
    boxes, labels, difficult = [], [], []
    for number, element in enumerate(tree.findall("object"), 1):
        where = f"{path}, object {number}"
        name = element.findtext("name", "").strip()
        if name not in index:
            raise InputError(f"{where}: unknown class {show(name)}: VOC's classes are {', '.join(index)}")
        try:
            box = [float(element.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError as error:
            raise InputError(f"{where}: bndbox needs four numbers xmin, ymin, xmax, ymax") from error
        if not (all(abs(value) < MAX_COORDINATE for value in box) and box[0] <= box[2] and box[1] <= box[3]):
            raise InputError(f"{where}: box {box} must be finite with xmin ≤ xmax and ymin ≤ ymax")
        flag = element.findtext("difficult", "0").strip()
        if flag not in ("0", "1"):
            raise InputError(f"{where}: difficult is {show(flag)}, it must be 0 or 1")
        boxes.append(box)
        labels.append(index[name])
        difficult.append(flag == "1")
    return make_target(boxes, labels, difficult)


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


class ImageFiles(Dataset):
    """All images under ``root/<split>``, at any depth, without labels: enough for calibration. Ids are the paths."""

    name = "images"

    def __init__(self, root: Path | str, split: str = ""):
        folder = inside(Path(root), split)
        super().__init__(folder, [], {name: name for name in image_names(folder)}, {})


class ClassFolders(Dataset):
    """Classification: one folder a class under ``root/<split>``; the sorted folder names are the classes.

    An empty folder is a class without images. ImageNet's ``val/`` with its 1000 wnid folders has this form.
    """

    name = "folders"

    def __init__(self, root: Path | str, split: str = ""):
        folder = inside(Path(root), split)
        if not folder.is_dir():
            raise MissingData(f"no folder {folder}: check the root and the split")
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if wrong := [name for name in classes if not is_text(name)]:
            raise InputError(f"{folder}: the class folder {show(wrong[0])} has no name in UTF-8: rename it")
        index = {name: label for label, name in enumerate(classes)}
        names = [name for name in image_names(folder) if name.split("/")[0] in index]
        super().__init__(folder, classes, {name: name for name in names}, {n: index[n.split("/")[0]] for n in names})


class Cifar100(Dataset):
    """CIFAR-100 in its official form, ``root/cifar-100-python/{train,test,meta}`` (Krizhevsky 2009). Ids are 0, 1, ….

    These files are pickles: torchvision compares them with the official MD5 sums before it opens them.
    """

    name = "cifar100"

    def __init__(self, root: Path | str, split: str = "test"):
        if split not in ("train", "test"):
            raise InputError(f"CIFAR-100 has no split {show(split)}: give train or test")
        for name in ("train", "test", "meta"):
            inside(Path(root), CIFAR100.base_folder, name)
        try:
            source = CIFAR100(root, train=split == "train")
        except (RuntimeError, OSError) as error:
            where = Path(root, CIFAR100.base_folder)
            raise InputError(
                f"{where}: missing files or MD5 sums that aren't CIFAR-100's: move it away, then "
                f"{fetch_command('cifar100', root)}"
            ) from error
        targets = dict(enumerate(source.targets))
        super().__init__(Path(root), list(source.classes), dict.fromkeys(targets, CIFAR100.base_folder), targets)
        self._pixels = torch.from_numpy(source.data).permute(0, 3, 1, 2)

    def image(self, id: int) -> Tensor:
        return self._pixels[id].contiguous()


def _cifar100(root: Path, split: str) -> Dataset:
    official = (root / CIFAR100.base_folder).is_dir()
    return Cifar100(root, split) if official else ClassFolders(root, split)


# kind → a function of root, split and year ("" where not given).
DATASETS: dict[str, Callable[[Path, str, str], Dataset]] = {
    "voc": lambda root, split, year: VocDetection(root, split or "test", year or "2007"),
    "coco": lambda root, split, year: CocoDetection(root, split or "val2017"),
    "images": lambda root, split, year: ImageFiles(root, split),
    "folders": lambda root, split, year: ClassFolders(root, split),
    "imagenet": lambda root, split, year: ClassFolders(root, split or "val"),
    "cifar100": lambda root, split, year: _cifar100(root, split or "test"),
}


def build_dataset(
    kind: str, root: Path | str, split: str | None = None, year: int | str | None = None, option: str = "--data.root"
) -> Dataset:
    """The dataset of a registered kind. ``option`` is the setting that a message about the root names.

    Raises InputError for an unknown kind, a missing root, an empty dataset or files that can't be used.
    """
    if kind not in DATASETS:
        near = difflib.get_close_matches(kind, DATASETS, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(DATASETS)}"
        raise InputError(f"unknown kind of dataset {show(kind)}: {mend}")
    if not root:
        raise InputError(f"no data folder named: give one with {option}")
    root, split, year = Path(root), str(split or ""), str(year or "")
    try:
        if not root.is_dir():
            raise MissingData(f"no data folder {root}: give an existing one with {option}")
        return DATASETS[kind](root, split, year)
    except MissingData as error:
        command = data_command(kind, root, split, year)
        if not command:
            raise
        raise MissingData(f"{error}, or get the data with: {command}") from error


def require_images(folder: Path, names: Iterable[str]) -> None:
    """Raise InputError unless at least one of the listed images is there."""
    if not any(is_file(inside(folder, name)) for name in names):
        raise MissingData(f"none of the listed images is in {folder}: put them there or check the root and the split")


def make_target(boxes: list, labels: list[int], ignore: list) -> Target:
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignore, dtype=torch.bool),
    )


def is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_COORDINATE  # false for NaN, too
