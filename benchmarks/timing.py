"""How long a call takes, on the CPU or on a device, and how often as long as another, measured in turns so that a noisy
machine disturbs both alike."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

LEAST, MOST = 3, 9  # repeats
SHORTEST = 0.2  # seconds: a shorter baseline is called several times in a row


@dataclass
class Ratio:
    """value: median over the repeats. baseline, seconds: medians of one call of each, in seconds."""

    value: float
    low: float
    high: float
    repeats: int
    seconds: float
    baseline: float


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch in here has a single thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seconds_of(call: Callable[[], Any], times: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, the mean over ``times`` calls in a row."""
    start = clock()
    for _ in range(times):
        call()
    return (clock() - start) / times


def median_seconds(call: Callable[[], Any], repeats: int = 15) -> float:
    """Seconds of a call: the median over ``repeats``, after one that does not count."""
    call()
    return statistics.median(seconds_of(call) for _ in range(repeats))


def ratio(
    call: Callable[[], Any],
    baseline: Callable[[], Any],
    budget: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Ratio:
    """Time of ``call`` over time of ``baseline``, the median over repeats; each is held against the baselines right
    before and after it.

    Both must have been called once before, for what happens only then. budget: seconds that the repeats may take; there
    are at least 3, but for a single call that is longer than the budget: then 1, and at most 9.
    """
    times = max(2, math.ceil(SHORTEST / max(seconds_of(baseline, 1, clock), 1e-9)))
    times = min(times, 100)
    ratios: list[float] = []
    lengths, baselines = [], [seconds_of(baseline, times, clock)]
    begun = clock()
    while len(ratios) < MOST:
        lengths.append(seconds_of(call, 1, clock))
        baselines.append(seconds_of(baseline, times, clock))
        ratios.append(lengths[-1] / statistics.mean(baselines[-2:]))
        spent = clock() - begun
        least = 1 if lengths[0] > budget else LEAST
        if len(ratios) >= least and spent + lengths[-1] > budget:
            break
    values = statistics.median(ratios), min(ratios), max(ratios)
    return Ratio(*values, len(ratios), statistics.median(lengths), statistics.median(baselines))


class Clock:
    """Time that is left, and how long a call takes on a device."""

    def __init__(self, device: torch.device, seconds: float):
        self.device, self.end = device, time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def once(self, call: Callable[[], Any]) -> float:
        """Seconds of one call."""
        self.wait()
        if self.device.type != "cuda":
            begun = time.perf_counter()
            call()
            return time.perf_counter() - begun
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def median(self, call: Callable[[], Any], budget: float = 1.0) -> float:
        """Seconds of a call that was made before: the median of 3 to 20, or one that takes longer than the budget."""
        lengths = [self.once(call)]
        while len(lengths) < 20 and (len(lengths) < 3 or sum(lengths) < budget) and lengths[0] < budget:
            lengths.append(self.once(call))
        return statistics.median(lengths)

    def waiting(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call, which then waits for the device."""

        def both() -> None:
            call()
            self.wait()

        return both
