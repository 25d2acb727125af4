"""Calibration for a detector as people have it → batches of its network's inputs."""

from pathlib import Path
from typing import Any

from torch import Tensor

from msat_det.base.files import is_file, is_folder
from msat_det.graph.inputs import items
from msat_det.models.detector import Detector
from msat_det.models.pictures import batched, pictures

_GROUP = 8  # images that were given one by one, in a batch


def detector_batches(detector: Detector, given: Any) -> list[Tensor]:
    """Calibration for a detector as people have it → batches (B, 3, h, w) of its network's inputs.

    given: batches, each as ``pictures`` takes them or ready floats (B, 3, h, w); images one by one; a folder of them.
    """

    def ready(images: list[Tensor]) -> Tensor:
        return batched([detector.preprocess(image)[0] for image in images], "bring all to one, so that they batch")

    batches: list[Tensor] = []
    single: list[Tensor] = []
    is_place = isinstance(given, str | Path) and (is_folder(Path(given)) or is_file(given))
    for one in [given] if is_place else items(given):
        inner = one[0] if isinstance(one, list | tuple) and one else one
        if isinstance(inner, Tensor) and inner.dim() == 4 and inner.is_floating_point():
            batches.append(inner)
            continue
        found = pictures(one)
        if len(found) > 1:
            batches.append(ready(found))
        else:
            single += found
    return batches + [ready(single[i : i + _GROUP]) for i in range(0, len(single), _GROUP)]
