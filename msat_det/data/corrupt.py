"""Images as cameras, weather and savings of bytes spoil them, by albumentations: ``NAME:SEVERITY``, severity 1 to 5.

The strengths of noise (standard deviation), brightness and JPEG quality are those of Hendrycks & Dietterich,
"Benchmarking neural network robustness to common corruptions and perturbations", 2019; blur is a Gaussian's σ in
pixels, fog albumentations' coefficient.
"""

import copy
import os
import re
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msat_det.base.errors import InputError
from msat_det.base.files import show
from msat_det.data.base import Dataset

STRENGTHS = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "blur": (1.0, 2.0, 3.0, 4.0, 6.0),
    "fog": (0.2, 0.35, 0.5, 0.65, 0.8),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "jpeg": (25, 18, 15, 10, 7),
}


def corrupted(dataset: Dataset, how: str | None, seed: int) -> Dataset:
    """A view of ``dataset`` whose images are spoilt; ``how`` as in data.corrupt, None leaves it as it is.

    What is random depends on the seed and the image's id alone. Raises InputError for an unknown name or severity.
    """
    if how is None:
        return dataset
    name, strength = parse(how)
    view = copy.copy(dataset)
    vars(view)["image"] = lambda id: edited(dataset.image(id), _steps(name, strength), seed_of(seed, id))
    return view


def parse(how: str) -> tuple[str, float]:
    """``noise:3`` → the corruption and its strength. Raises InputError."""
    match = re.fullmatch(r"(\w+):([1-5])", how)
    if not match or match[1] not in STRENGTHS:
        raise InputError(f"data.corrupt is {show(how)}: give one of {', '.join(STRENGTHS)} and 1 to 5, such as noise:3")
    return match[1], STRENGTHS[match[1]][int(match[2]) - 1]


def edited(image: Tensor, make: Callable[[Any], list], seed: int) -> Tensor:
    """A uint8 RGB image (3, H, W) after the steps that ``make(albumentations)`` gives; random by ``seed`` alone."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest release
    import albumentations  # only now: it takes seconds, and most runs need none of it

    pixels = albumentations.Compose(make(albumentations), seed=seed)(image=image.permute(1, 2, 0).numpy())["image"]
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def seed_of(*facts: object) -> int:
    """A 32-bit seed for these facts."""
    return zlib.crc32(repr(facts).encode())


def _steps(name: str, strength: float) -> Callable[[Any], list]:
    return {
        "noise": lambda a: [a.GaussNoise((strength, strength), p=1)],
        "blur": lambda a: [a.GaussianBlur(0, (strength, strength), p=1)],
        "fog": lambda a: [a.RandomFog(fog_coef_range=(strength, strength), p=1)],
        "brightness": lambda a: [a.RandomBrightnessContrast((strength, strength), 0, p=1)],
        "jpeg": lambda a: [a.ImageCompression(quality_range=(int(strength), int(strength)), p=1)],
    }[name]
