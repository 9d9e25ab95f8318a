"""Two pieces of work timed in turns: pairs of samples that see the same machine."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from bench.measuring.moments import moment, seconds_between

Work = Callable[[], object]


def interleaved(one: Work, other: Work, pairs: int, device: str = "cpu") -> tuple[list[float], list[float]]:
    """Milliseconds of each, paired by position; the one that goes first alternates. Both run once before, untimed.

    On a GPU each sample begins when all before it is done, and is the GPU's time between two CUDA events.
    """
    sides: list[tuple[Work, list[float]]] = [(one, []), (other, [])]
    for work, _ in sides:
        work()
    for pair in range(pairs):
        for work, times in sides[:: -1 if pair % 2 else 1]:
            began = moment(device)
            work()
            times.append(seconds_between(began, moment(device)) * 1e3)
    return sides[0][1], sides[1][1]


def speedup(slow: list[float], fast: list[float]) -> float:
    """Median of the pairwise ratios: above 1 the second list is the faster side's."""
    return median(before / after for before, after in zip(slow, fast, strict=True))
