"""Moments, and the seconds between them: of the processor, or of a GPU, which gets there later and is asked later."""

from __future__ import annotations

import time
from typing import Any

import torch

Moment = float | torch.cuda.Event


def moment(device: str) -> Moment:
    """Now; on a GPU, when the work given to torch's current stream so far is done. Nothing waits for that here."""
    if device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_between(begin: Moment, end: Moment) -> float:
    """Seconds from one moment to a later one of the same device; waits for a GPU to get there."""
    if isinstance(begin, float) or isinstance(end, float):
        assert isinstance(begin, float) and isinstance(end, float)
        return end - begin
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def wall_clock(device: str) -> float:
    """The processor's clock in seconds, once a GPU has done all that this process asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Seconds summed over spans. Those of a GPU are kept as events until somebody reads the sum."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._spans: list[tuple[Moment, Moment]] = []

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: a sum, no events."""
        return {"_seconds": self.seconds, "_spans": []}

    def add(self, begin: Moment, end: Moment) -> None:
        if isinstance(begin, float):
            self._seconds += seconds_between(begin, end)
        else:
            self._spans.append((begin, end))

    @property
    def seconds(self) -> float:
        spans, self._spans = self._spans, []
        self._seconds += sum(seconds_between(*span) for span in spans)
        return self._seconds

    @seconds.setter
    def seconds(self, seconds: float) -> None:
        self._seconds, self._spans = seconds, []
