"""What a dataset is: images by id with their ground truth. Files are untrusted, and none outside the root is opened."""

import copy
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.base.files import MissingData, inside, is_file
from msat_det.data.images import read_image

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
