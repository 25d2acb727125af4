"""What a neuron may send in one timestep: bursts of single spikes, or terms that each carry a power of two.

``quantise`` is the readable form; ``kernels.cpu_delta`` is the same, fused with the neuron around it.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from msat_det.base.checks import check_number, check_numbers

MOST_BITS = 16
# An error of that many full timesteps (γ·θ each) is not caught up with: the neuron sends it at once. Then what is still
# to be sent never passes OVERFLOW·γ·θ, and the error of the mean over n timesteps falls as 1/n, whatever the input.
OVERFLOW = 16

SLACK = 1e-4
_EXPONENT, _ONE_UP = 0x7F800000, 1 << 23  # of a float32: the bits of its exponent, and one of it
NEAREST, BELOW = 1.5, 2.0  # of two neighbouring powers the nearer one, or the largest that is not above the value


def check_sent(whose: str, limits: Any) -> None:
    """Raise InputError for numbers out of their range among those that say what is sent in a timestep: margin, gamma,
    bits, terms, zone and stages of a ``neurons.Neuron``, or of the options that become one. whose: for the message."""
    check_number(f"{whose} margin", limits.margin, 0)
    check_number(f"{whose} gamma", limits.gamma, 1, whole=True)
    if limits.bits is not None:
        check_number(f"{whose} bits", limits.bits, 1, MOST_BITS, whole=True)
    check_numbers(f"{whose} terms", limits.terms, 0, whole=True)
    check_numbers(f"{whose} zone", limits.zone, 0.5)
    if limits.stages is not None:
        check_numbers(f"{whose} stages", limits.stages, 0, above=True)


def quantise(
    error: Tensor,
    bits: int | None,
    terms: int | Tensor,
    zone: float | Tensor,
    gamma: float = 1.0,
    ratio: float = NEAREST,
    most: float | Tensor = math.inf,
    most_terms: int = MOST_BITS,
) -> tuple[Tensor, Tensor]:
    """What is sent of an error in units of the threshold, and in how many spikes.

    bits None: a burst of up to γ single spikes, the error rounded to nearest. Otherwise up to ``terms`` terms ±2^k,
    0 ≤ k < bits, the largest first: each of what is left of the error d the power k = clamp(⌊log₂(|d|/ratio)⌋ + 1, 0,
    bits − 1). Nothing where |d| ≤ zone, as ``edge`` has it. An error of ``most`` or more is sent at once: a burst of
    any length, or the top level as often as it takes. terms: a tensor where an exported step looks them up by t, at
    most ``most_terms``. Returns (s, spikes), both of the error's shape; NaN where it is not finite.
    """
    finite = error - error  # 0, and NaN of ∞ and NaN
    if bits is None:
        size = torch.floor(error.abs() + 0.5)
        size = torch.where(error.abs() >= most, size, size.clamp(max=gamma))
        size = torch.where(error.abs() > edge(zone), size, 0.0)
        return size * torch.sign(error) + finite, size + finite
    *_, last = [(finite, finite), *by_terms(error, bits, terms, zone, ratio, most, most_terms)]
    return last


def by_terms(
    error: Tensor,
    bits: int,
    terms: int | Tensor,
    zone: float | Tensor,
    ratio: float = NEAREST,
    most: float | Tensor = math.inf,
    most_terms: int = MOST_BITS,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What ``quantise`` gives with 1, 2, … up to ``terms`` terms."""
    rest, sent = error, error - error
    spikes = sent
    if isinstance(most, Tensor) or most < math.inf:
        top, size = 2.0 ** (bits - 1), error.abs()
        over = (size >= most) & (size > edge(zone))
        times = torch.where(over, torch.floor(size * (1 / top) + (0.5 if ratio == NEAREST else 0.0)), 0.0)
        sent = times * top * torch.sign(error) + (error - error)
        rest, spikes = error - sent, times + (error - error)
    for taken in range(most_terms if isinstance(terms, Tensor) else terms):
        part = torch.where(rest.abs() > edge(zone), _power(rest, bits, ratio) * torch.sign(rest), 0.0)
        part = torch.where(terms > taken, part, 0.0) if isinstance(terms, Tensor) else part
        rest, sent, spikes = rest - part, sent + part, spikes + (part != 0)
        yield sent, spikes


def edge(zone: float | Tensor) -> float | Tensor:
    """The largest error that is left alone: the zone and what rounds off. A level sent for half a level would leave
    half a level, to be sent back in the next timestep, for ever."""
    return zone * (1 + SLACK)


def _power(rest: Tensor, bits: int, ratio: float) -> Tensor:
    """2^k: by the exponent's bits, or where a step is exported by comparisons, which every runtime has; both exact."""
    size = rest.abs() * (1 / ratio)
    if rest.dtype == torch.float32 and not torch.compiler.is_exporting():
        exponent = size.clamp(0.5, 2.0 ** (bits - 2)).view(torch.int32) & _EXPONENT
        return (exponent + _ONE_UP).view(torch.float32)
    power = torch.ones_like(rest)
    for k in range(bits - 1):
        power = torch.where(size >= 2.0**k, 2.0 ** (k + 1), power)
    return power


def digits(size: Tensor, bits: int) -> Tensor:
    """The number of binary digits that are 1 in whole numbers, the top level as often as it takes in those beyond
    2^bits − 1; a number that is not finite stays NaN."""
    return quantise(size, bits, bits, 0.5, ratio=BELOW, most=2.0**bits)[1]


def leading(s: Tensor, bits: int, terms: int | Tensor) -> Tensor:
    """Whole numbers with all but their ``terms`` leading binary digits 0, beside what lies beyond 2^bits − 1."""
    return quantise(s, bits, terms, 0.5, ratio=BELOW, most=2.0**bits, most_terms=bits)[0]
