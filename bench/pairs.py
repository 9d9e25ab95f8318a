"""Two pieces of work timed in turns: pairs of samples that see the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

Work = Callable[[], object]


def interleaved(one: Work, other: Work, pairs: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each, paired by position; the one that goes first alternates. Both run once before, untimed."""
    sides: list[tuple[Work, list[float]]] = [(one, []), (other, [])]
    for work, _ in sides:
        work()
    for pair in range(pairs):
        for work, times in sides[:: -1 if pair % 2 else 1]:
            began = time.perf_counter()
            work()
            times.append((time.perf_counter() - began) * 1e3)
    return sides[0][1], sides[1][1]


def speedup(slow: list[float], fast: list[float]) -> float:
    """Median of the pairwise ratios: above 1 the second list is the faster side's."""
    return median(before / after for before, after in zip(slow, fast, strict=True))
