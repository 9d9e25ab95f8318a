"""One product tuned: every variant of a kernel checked, then timed in turns; the shortest median is chosen."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

import torch

from bench.cells import Row, Tell, TuneCell
from bench.measuring.causes import ends_the_caller, status_of
from bench.measuring.clocks import count_launches, timer_for
from bench.measuring.machine import physical_cores
from bench.measuring.modes import initial_modes
from kernels.check import check
from kernels.problem import GemmProblem, Launch, Variants
from kernels.registry import BACKENDS

ROUNDS = 15
LEFT_OUT = "BENCH_TUNE_WITHOUT"  # 'cluster=2,rung=FFMA': variants with one of these are not tried
MAX_SECONDS = 10.0  # then no further round begins, once FEWEST_ROUNDS are in
FEWEST_ROUNDS = 5


def candidates(backend: str, problem: GemmProblem) -> Variants:
    """What prepares each variant, by its parameters as JSON.

    Of our CUDA kernels the tiles, of a backend on a CPU the number of threads.
    """
    offered: Variants = BACKENDS[backend].variants(problem)
    if offered or problem.device != "cpu":
        return offered
    return {
        json.dumps({"threads": threads}): partial(_on_threads, backend, problem, threads)
        for threads in range(1, physical_cores() + 1)
    }


def _on_threads(backend: str, problem: GemmProblem, threads: int) -> Launch:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        launch: Launch = BACKENDS[backend].prepare(problem)
    finally:
        torch.set_num_threads(before)
    return launch


def left_out(variant: str) -> str:
    """What of $BENCH_TUNE_WITHOUT a variant has, as 'cluster=2'; empty where it has none of it."""
    asked = [each for each in os.environ.get(LEFT_OUT, "").split(",") if each]
    has = {f"{name}={value}" for name, value in json.loads(variant).items()} if asked else set()
    return next((each for each in asked if each in has), "")


@initial_modes()
def tune_cell(cell: TuneCell, tell: Tell) -> list[Row]:
    """A row for each variant: wrong, failed, or ok with its times, one of them chosen."""
    problem = cell.problem()
    torch.set_num_threads(cell.threads or physical_cores())
    reason = problem.missing_device() or BACKENDS[cell.backend].unsupported(problem)
    if reason:
        return [{"status": "unsupported", "reason": reason}]
    launches: dict[str, Launch] = {}
    rows: dict[str, Row] = {}
    for variant, prepare in candidates(cell.backend, problem).items():
        if why := left_out(variant):
            rows[variant] = {"status": "unsupported", "reason": f"{LEFT_OUT} has {why}"}
            continue
        rows[variant], launch = _checked(problem, prepare)
        if launch is not None:
            launches[variant] = launch
        tell({"variants": len(rows)})
    if not rows:
        return [{"status": "unsupported", "reason": f"{cell.backend} has nothing to tune here"}]
    if launches:
        _time(cell.device, launches, rows)
    return [{"variant": variant, **row} for variant, row in rows.items()]


def _checked(problem: GemmProblem, prepare: Callable[[], Launch]) -> tuple[Row, Launch | None]:
    """What is known of a variant before it is timed, and its launch where it is right."""
    try:
        launch = prepare()
        ratio, wrong = check(launch, problem)
    except BaseException as error:  # one that cannot be compiled or launched is no reason to know nothing of the others
        if ends_the_caller(error):
            raise
        return {"status": "failed", "reason": status_of(error)[1]}, None
    row = {"kernel": launch.kernel, "error_ratio": ratio}
    if wrong:
        return {**row, "status": "wrong", "reason": wrong}, None
    return row, launch


def _time(device: str, launches: Mapping[str, Launch], rows: dict[str, Row]) -> None:
    """Adds the times of all, in turns, to their rows."""
    timer, _ = timer_for(device, list(launches.values()))
    count = count_launches(timer, list(launches.values()))
    samples: dict[str, list[float]] = {variant: [] for variant in launches}
    begin = time.perf_counter()
    for taken in range(ROUNDS):
        if taken >= FEWEST_ROUNDS and time.perf_counter() - begin > MAX_SECONDS:
            break
        for variant, launch in launches.items():
            launch()  # so that its own operands are in the caches
            samples[variant].append(timer.time(launch, count))
    medians = {variant: median(times) for variant, times in samples.items()}
    chosen = min(medians, key=lambda variant: medians[variant])
    for variant, times in samples.items():
        timed = {"time_ms": medians[variant], "samples_ms": times, "chosen": variant == chosen, "timer": timer.name}
        rows[variant] = {"status": "ok", "reason": "", **rows[variant], **timed}
