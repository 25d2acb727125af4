"""Thresholds by the distribution of activations, beside the same found on the activations themselves."""

import pytest
import torch
from torch import Tensor

from msat_det.methods.observe import Site
from msat_det.methods.thresholds import STEPS, balanced, least_error, mean


@pytest.fixture
def seen() -> tuple[Site, Tensor]:
    """Activations (N, C) of three channels: rectified normal ones, heavy-tailed ones, and a dead one."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(20_000, 3, generator=generator)
    values = torch.stack((normal[:, 0].relu(), normal[:, 1].relu() ** 4, normal[:, 2] * 0), 1)
    site = Site.empty(3)
    site.add(values)
    return site, values


@pytest.mark.parametrize("levels", [4, 16, 255])
def test_the_least_error_is_that_of_the_activations(seen: tuple[Site, Tensor], levels: int) -> None:
    site, values = seen
    found = least_error(site, levels)
    for channel in (0, 1):
        x = values[:, channel].double()

        def error(theta: float, x: Tensor = x) -> float:
            step = theta / levels
            return ((x / step + 0.5).floor().clamp(max=levels) * step - x).square().mean().item()

        tried = [x.max().item() * 2 ** (-i / 4) for i in range(STEPS)]
        assert error(found[channel].item()) <= 1.05 * min(map(error, tried))
    assert found[2] == 0


def test_fewer_levels_clip_more(seen: tuple[Site, Tensor]) -> None:
    few, many = (least_error(seen[0], levels) for levels in (4, 1024))
    assert (few[:2] < many[:2]).all()


def test_balancing_by_the_distribution_is_balancing_by_the_activations(seen: tuple[Site, Tensor]) -> None:
    site, values = seen
    theta = torch.zeros(3, dtype=torch.float64)
    for _ in range(200):
        theta += 2 * (values - theta).clamp(min=0).mean(0)
    assert balanced(site, 200)[:2].tolist() == pytest.approx(theta[:2].tolist(), rel=0.02)
    assert balanced(site, 200)[2] == 0
    share = (values[:, 0] > balanced(site, 1000)[0]).float().mean()
    assert 0 < share < 0.002  # a high quantile, as the paper says


def test_mean(seen: tuple[Site, Tensor]) -> None:
    assert mean(seen[0]).tolist() == pytest.approx(seen[1].mean(0).tolist(), rel=0.01)
