"""Data sets, one file each, and their registry; images that are read, changed and fetched.

May import: base.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from torchvision.datasets import CIFAR100

from msat_det.base.errors import InputError
from msat_det.base.files import MissingData, absent, is_file, is_folder
from msat_det.base.names import Names
from msat_det.data.base import Dataset, Sample, Target, make_target, select, subset
from msat_det.data.catalogue import data_command
from msat_det.data.cifar100 import Cifar100
from msat_det.data.coco import CocoDetection
from msat_det.data.folders import ClassFolders, ImageFiles
from msat_det.data.voc import VOC_CLASSES, VocDetection
from msat_det.data.yolo import YoloDetection

__all__ = [
    "DATASETS",
    "VOC_CLASSES",
    "Cifar100",
    "ClassFolders",
    "CocoDetection",
    "Dataset",
    "ImageFiles",
    "Sample",
    "Target",
    "VocDetection",
    "YoloDetection",
    "build_dataset",
    "make_target",
    "select",
    "subset",
]


def _cifar100(root: Path, split: str) -> Dataset:
    official = (root / CIFAR100.base_folder).is_dir()
    return Cifar100(root, split) if official else ClassFolders(root, split)


# kind → a function of root, split and year ("" where not given), of kinds in PLACES also of those places.
PLACES = {"coco": ("annotations", "images"), "yolo": ("annotations",)}
DATASETS: Names[Callable[..., Dataset]] = Names(
    "data kind",
    {
        "voc": lambda root, split, year: VocDetection(root, split or "test", year or "2007"),
        "coco": lambda root, split, year, **places: CocoDetection(root, split, **places),
        "yolo": lambda root, split, year, **places: YoloDetection(root, split, **places),
        "images": lambda root, split, year: ImageFiles(root, split),
        "folders": lambda root, split, year: ClassFolders(root, split),
        "imagenet": lambda root, split, year: ClassFolders(root, split or "val"),
        "cifar100": lambda root, split, year: _cifar100(root, split or "test"),
    },
)


def build_dataset(
    kind: str,
    root: Path | str | None,
    split: str | None = None,
    year: int | str | None = None,
    option: str = "--data.root",
    classes: Sequence[str] | None = None,
    annotations: str | None = None,
    images: str | None = None,
) -> Dataset:
    """The dataset of a registered kind. ``option`` is the setting that a message about the root names.

    classes: of the network that is evaluated on it. Kinds whose files list no classes (voc) adopt them.
    annotations, images: file and folder of kind coco, and file of kind yolo, where it does not find them itself,
    relative to the root, which of kind yolo may be that file itself.
    Raises InputError for an unknown kind, a missing root, an empty dataset, files that can't be used, and annotated
    classes that the network does not know.
    """
    make = DATASETS.find(kind)
    if not root:
        raise InputError(f"no data folder named: give one with {option}")
    root, split, year = Path(root), str(split or ""), str(year or "")
    places = {key: str(place) for key, place in (("annotations", annotations), ("images", images)) if place}
    if wrong := [key for key in places if key not in PLACES.get(kind, ())]:
        for_kinds = " and ".join(name for name, keys in PLACES.items() if wrong[0] in keys)
        raise InputError(f"kind {kind} with the key {wrong[0]}, which is for kind {for_kinds}: leave it out")
    try:
        if not is_folder(root) and not (kind == "yolo" and is_file(root)):
            raise MissingData(f"{absent(root, 'data folder')}: give an existing one with {option}")
        dataset = make(root, split, year, **places)
    except MissingData as error:
        command = "" if places else data_command(kind, root, split, year)
        if not command:
            raise
        raise MissingData(f"{error}, or get the data with: {command}") from error
    return dataset if classes is None else dataset.for_classes(classes)
