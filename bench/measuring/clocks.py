"""Clocks: for launches, and what empties the caches between them; moments of a run; two pieces of work timed in turns.

On a GPU times are those between two CUDA events on torch's current stream. Launches are replayed from a CUDA graph,
both sides alike, where either is shorter than GRAPH_BELOW_MS or keeps the processor for more than HOST_SHARE of its
time: else the processor would be timed, which takes as long to launch them. What they take without a graph stands
beside it. A moment is the processor's, or a GPU's, which gets there later and is asked later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

from kernels.launches import Graph, Replayed, between_events, graph_of
from kernels.problem import Launch

FALLBACK_CACHE_BYTES = 64 * 2**20
GRAPH_BELOW_MS = 0.02
HOST_SHARE = 0.5  # of the time of a launch: the processor may be late for the next one
TRIALS = 5  # launches timed to choose the timer
HOST_LAUNCHES = 20
EAGER_SAMPLES = 5
SAMPLE_MS = 0.2
WARM_UP_SECONDS = 0.05


class Timer(Protocol):
    """A clock for launches of one device."""

    name: str

    def time(self, launch: Launch, launches: int) -> float:
        """Milliseconds of one launch, from `launches` timed together."""
        ...


class WallTimer:
    """The processor's monotonic clock; launches on a GPU are waited for, so their latency is in the time."""

    def __init__(self, device: str) -> None:
        self.wait: Callable[[], None] | None = torch.cuda.synchronize if device == "cuda" else None
        self.name = "perf_counter_ns, synchronised" if self.wait else "perf_counter_ns"

    def time(self, launch: Launch, launches: int) -> float:
        if self.wait:
            self.wait()
        begin = time.perf_counter_ns()
        for _ in range(launches):
            launch()
        if self.wait:
            self.wait()
        return (time.perf_counter_ns() - begin) / launches / 1e6


class EventTimer:
    """CUDA events before and after the launches. refusal: why they are not replayed from a graph though short."""

    def __init__(self, refusal: str = "") -> None:
        self.name = "CUDA events" + (f" ({refusal})" if refusal else "")

    def time(self, launch: Launch, launches: int) -> float:
        def work() -> None:
            for _ in range(launches):
                launch()

        return between_events(work) / launches


class GraphTimer:
    """CUDA events before and after one replay of a graph that holds all launches of a sample."""

    name = "CUDA events, graph replay"

    def __init__(self) -> None:
        self.graphs: dict[tuple[int, int], tuple[Launch, Graph]] = {}  # the launch too, so that no other gets its id

    def time(self, launch: Launch, launches: int) -> float:
        key = id(launch), launches
        if key not in self.graphs:
            self.graphs[key] = launch, graph_of(launch, launches)
        return between_events(self.graphs[key][1].replay) / launches


def timer_for(device: str, sides: Sequence[Launch]) -> tuple[Timer, list[Replayed]]:
    """The clock for launches that are compared, and those whose replay is to be checked before it is timed."""
    if device != "cuda":
        return WallTimer(device), []
    events = EventTimer()
    if not any(_is_late(events, launch) for launch in sides):
        return events, []
    replayed: list[Replayed] = []
    for launch in sides:
        try:
            replayed.append(Replayed(launch))
        except RuntimeError:  # in torch's words, of several lines; which side it was says enough
            torch.cuda.synchronize()
            return EventTimer(f"{launch.kernel} cannot be captured as a graph"), []
    return GraphTimer(), replayed


def _is_late(events: EventTimer, launch: Launch) -> bool:
    """Whether the processor may take longer to launch it than a GPU to be done with it."""
    shortest = min(events.time(launch, 1) for _ in range(TRIALS))
    if shortest < GRAPH_BELOW_MS:
        return True
    spent = host_ms("cuda", launch)
    return spent is not None and spent > HOST_SHARE * shortest


def eager_ms(timer: Timer, launch: Launch) -> float | None:
    """Milliseconds of one of several launches in a row without a graph; None where that is what `timer` takes.

    The processor's, where it is the slower one: what a program pays that captures nothing.
    """
    if not isinstance(timer, GraphTimer):
        return None

    def work() -> None:
        for _ in range(HOST_LAUNCHES):
            launch()

    return median(between_events(work, lead=0) / HOST_LAUNCHES for _ in range(EAGER_SAMPLES))


class Empty:
    """A launch of a kernel that does nothing, on a GPU."""

    kernel, dense, weight_bytes, index_bytes = "empty", False, 0, 0

    def __call__(self) -> None:
        torch.cuda._sleep(0)  # type: ignore[no-untyped-call]

    def outputs(self) -> dict[str, torch.Tensor]:
        return {}

    def poison(self) -> None: ...


def empty_ms(device: str, timer: Timer, launches: int) -> float | None:
    """Milliseconds that `timer` finds of an empty launch on a GPU, `launches` timed together; None on a CPU."""
    if device != "cuda":
        return None
    empty = Empty()
    return median(timer.time(empty, launches) for _ in range(TRIALS))


def host_ms(device: str, launch: Launch) -> float | None:
    """Milliseconds the processor spends on one launch on a GPU, not waiting for it; None on a CPU."""
    if device != "cuda":
        return None
    launch()
    torch.cuda.synchronize()
    begin = time.perf_counter_ns()
    for _ in range(HOST_LAUNCHES):
        launch()
    taken = (time.perf_counter_ns() - begin) / HOST_LAUNCHES / 1e6
    torch.cuda.synchronize()
    return taken


class Evictor:
    """Pushes operands out of the caches by writing a buffer twice as large as the last-level cache.

    On a GPU another as large is read afterwards: else the lines that were written would have to go to memory while what
    is timed needs it.
    """

    def __init__(self, device: str) -> None:
        size = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else last_level_cache_bytes()
        self.buffer = torch.zeros(2 * size // 4, dtype=torch.float32, device=device)
        self.clean = torch.zeros_like(self.buffer) if device == "cuda" else None

    def __call__(self) -> None:
        self.buffer.add_(1.0)
        if self.clean is not None:
            self.clean.sum()


def last_level_cache_bytes() -> int:
    """Size of the largest cache the system names; 64 MiB where it names none."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
        except OSError:  # some sandboxes list what they do not show
            continue
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes, default=FALLBACK_CACHE_BYTES)


def count_launches(timer: Timer, launches: list[Launch]) -> int:
    """How many launches make a sample of SAMPLE_MS on the faster side; warms up on the way."""
    fastest = float("inf")
    for launch in launches:
        end = time.perf_counter() + WARM_UP_SECONDS
        fastest = min(fastest, timer.time(launch, 1))
        while time.perf_counter() < end:
            fastest = min(fastest, timer.time(launch, 1))
    return max(1, -int(-SAMPLE_MS // max(fastest, 1e-6)))


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
