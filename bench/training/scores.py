"""Scores: what a network makes of data, and when that is no longer a number."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.schema import LARGEST_PPL


class DivergedError(Exception):
    """The loss is no longer a finite number."""


def finite(nats: float, epoch: int) -> float:
    """The loss itself; DivergedError if it is no number to go on with."""
    if not math.isfinite(nats):
        raise DivergedError(f"the loss became {nats} in epoch {epoch}")
    return nats


def perplexity(nats: float, epoch: int | None) -> float:
    """exp(mean nats per token); DivergedError where that is beyond what a table holds."""
    try:
        ppl = math.exp(nats)
    except OverflowError:
        ppl = math.inf
    if not ppl <= LARGEST_PPL:
        raise DivergedError(f"the perplexity became {ppl:g}" + (f" in epoch {epoch}" if epoch else " in evaluation"))
    return ppl


@dataclass(frozen=True)
class Scores:
    """What is evaluated, in windows: nats and number of the targets of each.

    correct: of how many targets the most probable class was right, of a classifier.
    """

    nats: list[float]
    targets: list[int]
    correct: int | None = None

    @property
    def count(self) -> int:
        return sum(self.targets)

    @property
    def perplexity(self) -> float:
        return perplexity(math.fsum(self.nats) / self.count, None)

    @property
    def accuracy(self) -> float | None:
        """Share of the targets that a classifier gets right; None of a language model."""
        return None if self.correct is None else self.correct / self.count

    def change_since(self, earlier: list[float]) -> tuple[float, float]:
        """By how many nats a target it is above `earlier`, the windows' nats before, and the standard error of that.

        The error is that of a mean over windows, each by its number of targets, as if they were independent.
        """
        mean = (math.fsum(self.nats) - math.fsum(earlier)) / self.count
        pairs = zip(self.nats, earlier, self.targets, strict=True)
        spread = math.fsum((now - before - mean * targets) ** 2 for now, before, targets in pairs)
        number = len(self.nats)
        return mean, math.sqrt(spread * number / (number - 1)) / self.count if number > 1 else math.nan
