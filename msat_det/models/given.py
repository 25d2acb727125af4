"""Calibration for a detector as people have it → batches of its network's inputs."""

from typing import Any

import torch
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.graph.inputs import items
from msat_det.models.detector import Detector
from msat_det.models.pictures import pictures

_GROUP = 8  # images that were given one by one, in a batch


def detector_batches(detector: Detector, given: Any) -> list[Tensor]:
    """Calibration for a detector as people have it → batches (B, 3, h, w) of its network's inputs.

    given: batches, each as ``pictures`` takes them or ready floats (B, 3, h, w); or images one by one.
    """
    batches: list[Tensor] = []
    single: list[Tensor] = []
    for one in items(given):
        inner = one[0] if isinstance(one, list | tuple) and one else one
        if isinstance(inner, Tensor) and inner.dim() == 4 and inner.is_floating_point():
            batches.append(inner)
            continue
        found = pictures(one)
        if len(found) > 1:
            batches.append(_ready(detector, found))
        else:
            single += found
    return batches + [_ready(detector, single[i : i + _GROUP]) for i in range(0, len(single), _GROUP)]


def _ready(detector: Detector, images: list[Tensor]) -> Tensor:
    inputs = [detector.preprocess(image)[0] for image in images]
    if len({image.shape for image in inputs}) > 1:
        shapes = ", ".join(str(tuple(image.shape)) for image in inputs[:3])
        raise InputError(
            f"preprocess gives images of different sizes, {shapes} …: bring all to one, so that they batch"
        )
    return torch.stack(inputs)
