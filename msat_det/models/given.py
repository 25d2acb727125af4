"""Images as people hand them to a detector → uint8 RGB tensors and batches, or one line that says the mend."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.data.images import read_image
from msat_det.graph.inputs import items, kind
from msat_det.models.detector import Detector

_GROUP = 8  # images that were given one by one, in a batch


def pictures(given: Any) -> list[Tensor]:
    """The images of one batch as uint8 RGB (3, H, W).

    given: an image, a sequence or tensor of images, or any of these before its labels. An image: such a tensor, a path,
    or one of PIL. Raises InputError for anything else.
    """
    found = _alone(given)
    if not found:
        raise InputError(f"{kind(given)} holds no image: give at least one")
    return [_picture(image) for image in found]


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


def _alone(given: Any) -> list[Any]:
    """The images in ``given``, labels left out."""
    if isinstance(given, Mapping):
        given = [value for value in given.values() if _is_image(value) or _holds_images(value)]
    if not isinstance(given, Sequence | Tensor) or _is_image(given) or len(given) == 0:
        return [given] if not isinstance(given, Sequence) or given else []
    if _holds_images(given[0]):
        return _alone(given[0])
    labels = isinstance(given, Sequence) and _is_image(given[0]) and not any(map(_is_image, given[1:]))
    return [given[0]] if labels else list(given)


def _is_image(value: Any) -> bool:
    """Whether it is one image, be it of a kind that is not taken."""
    return isinstance(value, str | Path | Image.Image) or getattr(value, "ndim", None) == 3


def _holds_images(value: Any) -> bool:
    return getattr(value, "ndim", None) == 4 or (
        isinstance(value, list | tuple) and bool(value) and _is_image(value[0])
    )


def _picture(value: Any) -> Tensor:
    if isinstance(value, str | Path):
        return read_image(Path(value))
    if isinstance(value, Image.Image) and not value.mode.startswith(("I", "F")):
        return torch.from_numpy(np.array(value.convert("RGB"))).permute(2, 0, 1).contiguous()
    if isinstance(value, Tensor) and value.dtype == torch.uint8 and value.dim() == 3 and value.shape[0] == 3:
        return value
    mode = f" of mode {value.mode}" if isinstance(value, Image.Image) else ""
    raise InputError(
        f"an image is {kind(value)}{mode}: give uint8 RGB (3, H, W), 0..255, a path or a PIL image; NumPy's (H, W, 3) "
        "as torch.from_numpy(image).permute(2, 0, 1)"
    )
