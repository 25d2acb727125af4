"""Thresholds that published methods find from the distribution of each channel's activations."""

import torch
from torch import Tensor

from msat_det.base.device import wide
from msat_det.methods.observe import Site

STEPS = 32  # candidates, four to the octave, from the maximum down


def least_error(site: Site, levels: int) -> Tensor:
    """(C,), or () where no channels are known, the top θ of ``levels`` equal steps that clips and rounds a channel's
    |f(x)| with the least squared error.

    By the observed histogram, where Huang et al. 2025 (DCGS) take pre-activations for normal ones.
    """
    values, shares = _seen(site)
    best, least = site.maximum.clone(), torch.full_like(site.maximum, float("inf"))
    for i in range(STEPS):
        theta = site.maximum * 2 ** (-i / 4)
        step = (theta / levels).clamp(min=1e-30)[:, None]
        sent = (values / step + 0.5).floor().clamp(max=levels) * step
        error = ((sent - values).square() * shares).sum(1)
        best = torch.where(error < least, theta, best)
        least = torch.minimum(error, least)
    return _of(site, best)


def balanced(site: Site, updates: int) -> Tensor:
    """(C,) or () θ after ``updates`` steps θ ← θ + 2·E[(|f(x)| − θ)⁺] from 0 (local threshold balancing).

    Every step sees the expectation over all calibration images in place of one batch's mean.
    """
    values, shares = (wide(found) for found in _seen(site))
    none = torch.zeros(len(shares), 1, dtype=torch.float64)
    above = torch.cat((shares.flip(1).cumsum(1).flip(1), none), 1)  # share of what lies in a bin or beyond, and its sum
    beyond = torch.cat(((shares * values).flip(1).cumsum(1).flip(1), none), 1)
    theta = none.squeeze(1)
    for _ in range(updates):
        first = torch.searchsorted(values, theta, right=True)[:, None]
        theta = theta + 2 * (beyond.gather(1, first).squeeze(1) - theta * above.gather(1, first).squeeze(1))
    return _of(site, theta.float().minimum(site.maximum))


def mean(site: Site) -> Tensor:
    """(C,) or () the mean of |f(x)|."""
    values, shares = site.levels()
    return _of(site, (values * shares).sum(1).float())


def _of(site: Site, values: Tensor) -> Tensor:
    """Values (C,) as a neuron has them: () where no channels are known."""
    return values.squeeze(0) if site.axis is None else values


def _seen(site: Site) -> tuple[Tensor, Tensor]:
    """``Site.levels`` in single precision, without the bins that no channel has."""
    values, shares = site.levels()
    seen = (shares > 0).any(0)
    return values[seen], shares[:, seen].float()
