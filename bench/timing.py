"""One cell timed: the backend against its baseline, in one process, as interleaved pairs of samples.

Order of a cell: can it run here, is the output right (else no time is stored), then samples. A sample times several
launches together, the same number on both sides; the side that goes first alternates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch

from bench.cells import Row, StorageCell, Tell, TimedCell
from bench.measuring.clocks import Evictor, Timer, count_launches, eager_ms, empty_ms, host_ms, timer_for
from bench.measuring.machine import gpu_state, physical_cores
from bench.measuring.memory import require_operands
from bench.measuring.modes import initial_modes
from bench.measuring.roofs import roof
from kernels.check import check
from kernels.problem import Launch, Problem
from kernels.registry import BACKENDS

MIN_PAIRS = 30
MIN_SECONDS = 0.5
MAX_SECONDS = 3.0  # once MIN_PAIRS are in
FEWEST_PAIRS = 10  # where MIN_PAIRS would take longer than LONG_SECONDS
LONG_SECONDS = 20.0
LONG_LAUNCH_MS = 100.0  # a launch that takes longer is not launched untimed first: filling the caches is nothing to it
TELL_SECONDS = 0.5
NOISY_SPREAD = 0.1
ATTEMPTS = 3  # a noisy cell is sampled anew, until RESAMPLE_SECONDS are spent; the last attempt is kept, noisy or not
RESAMPLE_SECONDS = 10.0  # no new attempt begins later: what took long to sample is kept as it is


@contextmanager
def pinned_threads(threads: int) -> Iterator[int]:
    """Torch computes on `threads` threads inside (0: all physical cores), on as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or physical_cores())
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@dataclass
class Samples:
    """Times in ms per launch; position i of both lists is one pair."""

    launches: int
    backend: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """baseline / backend, pair by pair: above 1 the backend is faster."""
        return [base / ours for ours, base in zip(self.backend, self.baseline, strict=True)]

    @property
    def noisy(self) -> bool:
        """The middle half of the ratios spreads over more than 10 % of their median, or the samples are disturbed."""
        low, middle, high = quantiles(self.ratios, n=4)
        return self.disturbed or (high - low) / middle > NOISY_SPREAD

    @property
    def disturbed(self) -> bool:
        """A median is twice its minimum: both sides mostly waited for the same busy core, and the ratios are near 1."""
        return any(median(times) > 2 * min(times) for times in (self.backend, self.baseline))


def sampled(
    backend: Launch, baseline: Launch, timer: Timer, evict: Callable[[], None] | None = None
) -> Iterator[Samples]:
    """The same samples after each further pair, for as long as more are asked for.

    Hot (no `evict`): each side launches once untimed before its sample, so that its own operands are in the caches and
    not the other side's. Cold: the caches are evicted before each sample, which is a single launch.
    """
    samples = Samples(1 if evict else count_launches(timer, [backend, baseline]))
    sides = [(backend, samples.backend), (baseline, samples.baseline)]
    short = True
    while True:
        for launch, times in sides if len(samples.backend) % 2 == 0 else sides[::-1]:
            if evict:
                evict()
            elif short:
                launch()
            times.append(timer.time(launch, samples.launches))
        short = min(samples.backend[-1], samples.baseline[-1]) < LONG_LAUNCH_MS
        yield samples


def sample_pairs(
    backend: Launch,
    baseline: Launch,
    timer: Timer,
    evict: Callable[[], None] | None = None,
    tell: Tell | None = None,
    min_pairs: int = MIN_PAIRS,
) -> Samples:
    """Interleaved pairs, at least `min_pairs` and MIN_SECONDS of them; FEWEST_PAIRS once they take LONG_SECONDS."""
    begin = told = time.perf_counter()
    timed = 0.0
    for samples in sampled(backend, baseline, timer, evict):
        timed += (samples.backend[-1] + samples.baseline[-1]) * samples.launches / 1e3
        pairs, now = len(samples.backend), time.perf_counter()
        if tell and now - told > TELL_SECONDS:
            tell({"pairs": pairs, "backend_ms": median(samples.backend), "baseline_ms": median(samples.baseline)})
            told = now
        enough = timed >= MIN_SECONDS or now - begin >= MAX_SECONDS
        if (pairs >= min_pairs and enough) or (pairs >= FEWEST_PAIRS and now - begin >= LONG_SECONDS):
            break
    return samples


def prepare(name: str, problem: Problem) -> tuple[Launch, float]:
    """The launch and the milliseconds it took to prepare. The operands are drawn before the clock starts."""
    problem.draw()
    begin = time.perf_counter_ns()
    launch = BACKENDS[name].prepare(problem)
    return launch, (time.perf_counter_ns() - begin) / 1e6


@initial_modes()
def time_cell(cell: TimedCell, tell: Tell) -> list[Row]:
    """One row: unsupported, wrong (then without times) or ok."""
    problem = cell.problem()
    reason = problem.missing_device()
    if reason:
        return [{"status": "unsupported", "reason": reason}]
    with pinned_threads(cell.threads):
        for name in (cell.backend, cell.baseline):
            reason = BACKENDS[name].unsupported(problem)
            if reason:
                return [{"status": "unsupported", "reason": reason if name == cell.backend else f"{name}: {reason}"}]
        require_operands(cell)
        return [_measure(cell, problem, tell)]


def _measure(cell: TimedCell, problem: Problem, tell: Tell) -> Row:
    backend, prepare_ms = prepare(cell.backend, problem)
    baseline, _ = prepare(cell.baseline, problem)
    masks = problem.masks.values()
    kept, empty = sum(mask.nnzb for mask in masks), sum(mask.num_empty for mask in masks)
    row: Row = {
        "kernel": backend.kernel,
        "baseline_kernel": baseline.kernel,
        "sparsity": empty / (kept + empty),
        "nnzb": kept,
        "num_empty": empty,
        "padded_share": problem.padded_share(),
        "weight_bytes": backend.weight_bytes,
        "index_bytes": backend.index_bytes,
    }
    row |= compared(cell, problem, backend, baseline, tell)
    return row if row["status"] == "wrong" else {"prepare_ms": prepare_ms, **row, **roof(problem)}


def compared(cell: TimedCell | StorageCell, problem: Problem, backend: Launch, baseline: Launch, tell: Tell) -> Row:
    """Status, reason and error_ratio of two launches of a problem; their times, where the outputs of both are right.

    The columns are those of every table of paired timings.
    """
    ratio, wrong = check(backend, problem)
    row: Row = {"error_ratio": ratio}
    if wrong is None:
        _, wrong_baseline = check(baseline, problem)
        wrong = wrong_baseline and f"{cell.baseline}: {wrong_baseline}"
    if wrong is not None:
        return {"status": "wrong", "reason": wrong, **row}
    timer, replays = timer_for(cell.device, [backend, baseline])
    for replay in replays:
        _, wrong = check(replay, problem)
        if wrong is not None:
            return {"status": "wrong", "reason": f"replayed from a CUDA graph, {replay.kernel}: {wrong}", **row}
    evict = Evictor(cell.device) if cell.cache == "cold" else None
    begin = time.perf_counter()
    attempts, samples = 1, sample_pairs(backend, baseline, timer, evict, tell)
    while samples.noisy and attempts < ATTEMPTS and time.perf_counter() - begin < RESAMPLE_SECONDS:
        attempts, samples = attempts + 1, sample_pairs(backend, baseline, timer, evict, tell)
    state = gpu_state(cell.device)  # at once, before the clocks fall
    return {
        "status": "ok",
        "reason": "",
        **row,
        "time_ms": median(samples.backend),
        "baseline_ms": median(samples.baseline),
        "samples_ms": samples.backend,
        "baseline_samples_ms": samples.baseline,
        "launches_per_sample": samples.launches,
        "noisy": samples.noisy,
        "attempts": attempts,
        "timer": timer.name,
        "host_ms": host_ms(cell.device, backend),
        "eager_ms": eager_ms(timer, backend),
        "baseline_eager_ms": eager_ms(timer, baseline),
        "empty_ms": empty_ms(cell.device, timer, samples.launches),
        **state,
    }
