"""Images as people hand them in → uint8 RGB tensors, or one line that says the mend."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.base.files import is_folder
from msat_det.data.images import read_upright, upright_size
from msat_det.data.sources import images_of
from msat_det.graph.inputs import kind


def pictures(given: Any) -> list[Tensor]:
    """The images of one batch as uint8 RGB (3, H, W).

    given: an image, a sequence or tensor of images, a folder of them, or any of these before its labels. An image: such
    a tensor, a path, or one of PIL. Raises InputError for anything else.
    """
    found = _alone(given)
    if not found:
        raise InputError(f"{kind(given)} holds no image: give at least one")
    return [picture(image) for image in found]


def batched(inputs: Sequence[Tensor], mend: str) -> Tensor:
    """Preprocessed images in one batch. Raises InputError, which ends in ``mend``, where their sizes differ."""
    if len({image.shape for image in inputs}) > 1:
        shapes = ", ".join(str(tuple(image.shape)) for image in inputs[:3])
        raise InputError(f"preprocess gives images of different sizes, {shapes} …: {mend}")
    return torch.stack(list(inputs))


def _alone(given: Any) -> list[Any]:
    """The images in ``given``, without labels: what is of another form than the first value of several."""
    form = _form(given)
    if form == "path" and is_folder(Path(given)):
        return list(images_of(str(given)).values())
    if isinstance(given, Mapping):
        images = sorted(filter(_form, given.values()), key=lambda value: _form(value) == "path")
        return _alone(images[0]) if images else [given]
    if form in ("", "path", "pixels"):
        return [given]
    if isinstance(given, Tensor) or not given:
        return list(given)
    alike = [value for value in given if _form(value) == _form(given[0])]
    return _alone(given[0]) if len(alike) == 1 else list(given)


def _form(value: Any) -> str:
    """``path``, ``pixels``, ``several …`` of them, or nothing for what is no image of any kind, taken or not."""
    if isinstance(value, str | Path):
        return "path"
    if isinstance(value, list | tuple):
        return f"several {_form(value[0]) if value else ''}"
    dimensions = 3 if isinstance(value, Image.Image) else getattr(value, "ndim", 0)
    return {3: "pixels", 4: "several pixels"}.get(dimensions, "")


def picture(value: Any) -> Tensor:
    """One image, a uint8 tensor, a path or one of PIL, as uint8 RGB (3, H, W). Raises InputError for anything else.

    What a path leads to is set upright as EXIF says; the pixels of other images are taken as they are.
    """
    if isinstance(value, str | Path):
        image = read_upright(Path(value))
        if upright_size(Path(value)) != (image.shape[2], image.shape[1]):
            raise InputError(f"{value} is too large to be read whole: make it smaller, for boxes count in its pixels")
        return image
    if isinstance(value, Image.Image) and not value.mode.startswith(("I", "F")):
        return torch.from_numpy(np.array(value.convert("RGB"))).permute(2, 0, 1).contiguous()
    if isinstance(value, Tensor) and value.dtype == torch.uint8 and value.dim() == 3 and value.shape[0] == 3:
        return value
    mode = f" of mode {value.mode}" if isinstance(value, Image.Image) else ""
    raise InputError(
        f"an image is {kind(value)}{mode}: give uint8 RGB (3, H, W), 0..255, a path or a PIL image; NumPy's (H, W, 3) "
        "as torch.from_numpy(image).permute(2, 0, 1), floats from 0 to 1 as (255 * image).byte(), from 0 to 255 as "
        "image.byte()"
    )
