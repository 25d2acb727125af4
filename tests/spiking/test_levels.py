"""What one event may carry: bursts, and terms that are powers of two (docs/delta.md)."""

import math

import pytest
import torch

from msat_det.spiking.levels import digits, leading, quantise


def sent(error: float, bits: int | None, terms: int = 1, zone: float = 0.5, **more: float) -> tuple[float, float]:
    s, spikes = quantise(torch.tensor(error), bits, terms, zone, **more)
    return s.item(), spikes.item()


@pytest.mark.parametrize(
    ("error", "terms", "expected"),
    [
        (5.0, 1, (4, 1)),  # 5 / 1.5 = 3.3: k = 2
        (5.0, 2, (5, 2)),
        (6.0, 1, (8, 1)),  # halfway between 4 and 8: 6 / 1.5 = 4, k = 3
        (6.0, 2, (6, 2)),  # 8 − 2
        (7.0, 2, (7, 2)),  # 8 − 1
        (-7.0, 2, (-7, 2)),
        (0.49, 3, (0, 0)),
        (0.5, 3, (0, 0)),  # sent, it would leave −.5
        (0.51, 3, (1, 1)),
        (1.49, 1, (1, 1)),
        (1.5, 1, (2, 1)),
        (1000.0, 2, (64, 2)),  # the top level of six bits, twice
        (0.0, 2, (0, 0)),
    ],
)
def test_terms_are_the_nearest_powers_of_two_of_what_is_left(
    error: float, terms: int, expected: tuple[float, float]
) -> None:
    assert sent(error, 6, terms) == expected


@pytest.mark.parametrize(
    ("error", "bits", "expected"),
    [
        (999.0, 6, (64, 2)),
        (1000.0, 6, (1000, 32)),  # 31 · 32, then the term 8
        (-1000.0, 6, (-1000, 32)),
        (999.0, None, (5, 5)),
        (1000.4, None, (1000, 1000)),
        (-1000.4, None, (-1000, 1000)),
    ],
)
def test_an_overflow_is_sent_at_once(error: float, bits: int | None, expected: tuple[float, float]) -> None:
    assert sent(error, bits, 2, gamma=5, most=1000.0) == expected


@pytest.mark.parametrize(("zone", "expected"), [(0.5, 1.0), (1.0, 0.0), (0.9, 1.0)])
def test_errors_inside_the_zone_are_left_alone(zone: float, expected: float) -> None:
    assert sent(0.95, 6, 3, zone)[0] == expected
    assert sent(0.95, None, 1, zone)[0] == expected


@pytest.mark.parametrize(("error", "expected"), [(2.4, 2), (2.5, 3), (-2.5, -3), (9.0, 5), (-9.0, -5), (0.4, 0)])
def test_bursts_are_rounded_and_bounded(error: float, expected: float) -> None:
    assert sent(error, None, gamma=5) == (expected, abs(expected))


@pytest.mark.parametrize("bits", [None, 6])
@pytest.mark.parametrize("error", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_none(error: float, bits: int | None) -> None:
    assert all(math.isnan(x) for x in sent(error, bits, 2))


@pytest.mark.parametrize("bits", [3, 6, 8])
@pytest.mark.parametrize("terms", [1, 2, 3])
def test_each_term_leaves_at_most_a_third(bits: int, terms: int) -> None:
    """|d − 2^k| ≤ |d|/3 for the nearest power, so that m terms leave 3^−m of it, or half a level."""
    error = torch.linspace(-(1.5 * 2 ** (bits - 1)), 1.5 * 2 ** (bits - 1), 4001)
    s, spikes = quantise(error, bits, terms, 0.5)
    bound = torch.maximum(error.abs() / 3**terms, torch.tensor(0.5))
    assert ((error - s).abs() <= bound + 1e-4).all()
    assert (spikes <= terms).all()
    assert ((s == 0) == (spikes == 0)).float().mean() > 0.99


def test_binary_digits() -> None:
    numbers = torch.arange(256.0)
    assert digits(numbers, 8).tolist() == [n.bit_count() for n in range(256)]
    assert torch.equal(leading(numbers, 8, 8), numbers)
    assert leading(torch.tensor([0.0, 7, 255, -13]), 8, 2).tolist() == [0, 6, 192, -12]
    beyond = torch.tensor([256.0, 300, 5000])  # the top level, 128, as often as it takes: 300 = 2 · 128 + 32 + 8 + 4
    assert digits(beyond, 8).tolist() == [2, 5, 40]  # 5000 = 39 · 128 + 8
    assert leading(beyond, 8, 1).tolist() == [256, 288, 5000]
