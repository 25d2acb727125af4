"""How sure a difference between two methods is: the bootstrap over images (Efron 1979), both on the same images."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Resampling:
    """draws: sets of as many images, drawn with replacement. confidence: share of them inside the interval, 0 to 1."""

    draws: int = 1000
    confidence: float = 0.9
    seed: int = 0

    def counts(self, images: int) -> Tensor:
        """(draws, images) int64: how often each image is in each set."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randint(images, (self.draws, images), generator=generator)
        return torch.zeros(self.draws, images, dtype=torch.int64).scatter_add_(1, drawn, torch.ones_like(drawn))

    def interval(self, differences: Tensor) -> tuple[float, float]:
        """The bounds between which ``confidence`` of the differences (draws,) lie, equal shares beyond each.

        Draws that are NaN, having nothing to find, are left out.
        """
        outside = (1 - self.confidence) / 2
        bounds = torch.tensor([outside, 1 - outside], dtype=torch.float64)
        low, high = differences[~differences.isnan()].double().quantile(bounds).tolist()
        return low, high


@dataclass(frozen=True)
class Difference:
    """Of two main accuracies, in points of percent, with the interval that the resampled images give."""

    value: float
    low: float
    high: float
