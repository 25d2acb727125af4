"""More calibration images out of few: seeded changes of an image, by albumentations."""

import copy
from typing import Any

from torch import Tensor

from msat_det.base.config import Augment
from msat_det.data.base import Dataset
from msat_det.data.corrupt import edited, seed_of


def augmented(dataset: Dataset, how: Augment, seed: int) -> Dataset:
    """A view of ``dataset`` with ``how.copies`` changed copies of every image behind the images themselves.

    A copy's id is (id, number); what is random in it depends on the seed and that id alone.
    """
    if not (how.flip or how.photometric or how.crop):
        return dataset
    view = copy.copy(dataset)
    view.ids = [*dataset.ids, *((id, number) for number in range(how.copies) for id in dataset.ids)]

    def image(id: Any) -> Tensor:
        if not isinstance(id, tuple):
            return dataset.image(id)
        original = dataset.image(id[0])
        return edited(original, lambda a: _steps(a, how, *original.shape[1:]), seed_of(seed, *id))

    vars(view).update(image=image, target=lambda id: None)
    return view


def _steps(a: Any, how: Augment, height: int, width: int) -> list:
    steps = [a.HorizontalFlip(p=1)] if how.flip else []
    if how.photometric:
        steps += [a.ColorJitter((0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.03, 0.03), p=1)]
    if how.crop:
        steps += [a.RandomResizedCrop((height, width), scale=(0.4, 1), ratio=(3 / 4, 4 / 3), p=1)]
    return steps
