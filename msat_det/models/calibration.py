"""Calibration for a detector as people have it → batches of its network's inputs."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.base.files import is_file, is_folder
from msat_det.graph.inputs import MISFIT, items
from msat_det.models.detector import Detector
from msat_det.models.pictures import batched, pictures

_GROUP = 8  # images that were given one by one, in a batch


def detector_batches(detector: Detector, given: Any) -> list[Tensor]:
    """Calibration for a detector as people have it → batches (B, 3, h, w) of its network's inputs.

    given: batches, each as ``pictures`` takes them or ready floats (B, 3, h, w); images one by one; a folder of them.
    Raises InputError for ready batches that ``preprocess`` can't have made, by the range of their values.
    """

    def ready(images: list[Tensor]) -> Tensor:
        return batched([detector.preprocess(image)[0] for image in images], "bring all to one, so that they batch")

    batches: list[Tensor] = []
    single: list[Tensor] = []
    is_place = isinstance(given, str | Path) and (is_folder(Path(given)) or is_file(given))
    for one in [given] if is_place else items(given):
        inner = one[0] if isinstance(one, list | tuple) and one else one
        if isinstance(inner, Tensor) and inner.dim() == 4 and inner.is_floating_point():
            _check_range(detector, inner, f"calibration batch {len(batches)}")
            batches.append(inner)
            continue
        found = pictures(one)
        if len(found) > 1:
            batches.append(ready(found))
        else:
            single += found
    return batches + [ready(single[i : i + _GROUP]) for i in range(0, len(single), _GROUP)]


def _check_range(detector: Detector, batch: Tensor, name: str) -> None:
    """Raise InputError for a batch with values that lie outside of those that ``preprocess`` makes of black and white
    by more than half of their distance: less may come of resizing or augmentation."""
    image = torch.zeros(3, *batch.shape[2:], dtype=torch.uint8)
    try:
        ends = [detector.preprocess(each)[0].float().aminmax() for each in (image, image + 255)]
    except MISFIT:  # its own preprocess may want other images
        return
    low, high = min(black for black, _ in ends).item(), max(white for _, white in ends).item()
    least, most = (value.item() for value in batch.float().aminmax())
    slack = (high - low) / 2
    if slack > 0 and (least < low - slack or most > high + slack):
        raise InputError(
            f"{name} holds values from {least:.4g} to {most:.4g}, and the detector's preprocess gives {low:.4g} to "
            f"{high:.4g}: give images as uint8 RGB, which it makes ready, or batches of what it gives"
        )
