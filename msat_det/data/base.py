"""What a dataset is: images by id with their ground truth. Files are untrusted, and no name in them leaves the root."""

import copy
import random
import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.base.files import MissingData, astray, bytes_of, inside, is_file, show
from msat_det.data.images import Size, image_size, read_image, reduction

MAX_COORDINATE = 1e9
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # UTF-16 read as UTF-8, or what a terminal would obey


@dataclass(frozen=True, eq=False)
class Target:
    """The objects of one image.

    boxes: (N, 4) float32, x1 y1 x2 y2 in pixels, continuous edges from 0 at the image's left and top: a box is x2 − x1
        wide, whatever its file counts.
    labels: (N,) int64, index into the dataset's ``classes``.
    ignore: (N,) bool, VOC's ``difficult`` or COCO's ``iscrowd``: neither a miss nor a false alarm.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """One image: uint8 (3, H, W) RGB, and its ``Target`` (detection), class index (classification) or None."""

    id: int | str
    image: Tensor
    target: Target | int | None

    @property
    def objects(self) -> Target:
        """The objects that are on it. Raises TypeError where the dataset tells of none."""
        if not isinstance(self.target, Target):
            raise TypeError(f"image {self.id} has no boxes")
        return self.target


class Dataset:
    """Images by id: ``dataset[i]`` reads image ``ids[i]``; ``target(id)`` reads no image.

    folder: where the image files are. files: id → path relative to it. targets: id → ground truth, may be empty.
    sizes: id → (width, height) that the boxes count in, None where the annotation has none; may be left out.
    Images that are read smaller than they are (``images.reduction``) have boxes as much smaller.
    Raises InputError when there are no images.
    """

    name = ""

    def __init__(
        self,
        folder: Path,
        classes: list[str],
        files: dict,
        targets: dict,
        sizes: Mapping[Any, Size | None] | None = None,
    ):
        if not files:
            raise InputError(f"no images in {folder}: check the root and the split")
        self.folder, self.classes, self.ids = folder, classes, sorted(files)
        self._files, self._targets, self._sizes = files, targets, dict(sizes or {})
        boxed = self._sizes.keys() | {id for id, target in targets.items() if isinstance(target, Target)}
        self._factors = {id: factor for id in boxed if (factor := self._factor(id)) > 1}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        id = self.ids[index]
        return Sample(id, self.image(id), self.target(id))

    def for_classes(self, classes: Sequence[str]) -> "Dataset":
        """The dataset for a network of these classes; the same one unless its labels take their meaning from it."""
        return self

    def image(self, id: int | str) -> Tensor:
        """uint8 (3, H, W) RGB, upright where EXIF and the annotation's size say so. Raises CorruptImage."""
        return read_image(inside(self.folder, self._files[id]), self._sizes.get(id))

    def content(self, id: int | str) -> bytes:
        """An image as it is stored. Raises OSError."""
        return bytes_of(inside(self.folder, self._files[id]))

    def length(self, id: int | str) -> int | None:
        """The number of bytes of ``content``; None where there is no file."""
        path = inside(self.folder, self._files[id])
        return path.stat().st_size if is_file(path) else None

    def target(self, id: int | str) -> Target | int | None:
        """The ground truth of one image; None where the dataset has none."""
        target, factor = self._targets.get(id), self._factors.get(id)
        return replace(target, boxes=target.boxes / factor) if factor and isinstance(target, Target) else target

    def misfit(self, id: int | str, image: Tensor) -> str:
        """What to say of an image that has another size than its annotation says; "" where it has that one."""
        size, (height, width) = self._sizes.get(id), image.shape[1:]
        factor = self._factors.get(id, 1)
        if size is None or (width, height) == tuple(-(-side // factor) for side in size):
            return ""
        path = self.folder / self._files[id]
        found, annotated = (f"{width} x {height}" for width, height in (image_size(path) or (width, height), size))
        return f"{path} has {found} pixels, its annotation is for {annotated}"

    def _factor(self, id: int | str) -> int:
        size = self._sizes.get(id) or image_size(inside(self.folder, self._files[id]))
        return reduction(*size) if size else 1


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
    names = list(names)
    if not any(is_file(inside(folder, name)) for name in names):
        why = astray(folder / names[0]) if names else ""
        raise MissingData(
            f"none of the listed images is in {folder}{why and f' ({why})'}: put them there or check the root and the "
            "split"
        )


def class_names(names: Sequence[object], where: object, repeated: Collection[str] = ()) -> list[str]:
    """A network's class names. Raises InputError for one that is empty, no text, of control characters or there twice.

    repeated: names that may be there twice.
    """
    if not names:
        raise InputError(f"{where}: has no class names: give one for each class")
    for number, name in enumerate(names, 1):
        if not isinstance(name, str) or not name.strip() or CONTROL.search(name):
            raise InputError(f"{where}: class name {number} is {show(name)}: give each class a name, as text")
    if pair := alike(number if name in repeated else name for number, name in enumerate(names)):
        first, second = pair
        raise InputError(
            f"{where}: class names {first + 1} and {second + 1} are both {show(names[first])}: give each its own"
        )
    return [str(name) for name in names]


def alike(values: Iterable[Hashable]) -> tuple[int, int] | None:
    """The positions of the first value that is there again, and of its first copy; None where all differ."""
    seen: dict[Hashable, int] = {}
    for position, value in enumerate(values):
        if (first := seen.setdefault(value, position)) != position:
            return first, position
    return None


def make_target(boxes: list, labels: list[int], ignore: list) -> Target:
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignore, dtype=torch.bool),
    )


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_COORDINATE  # false for NaN, too
