"""Cells run in order of importance until the time is up: none begins that will not fit, and none runs on after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

from bench.cells import Cell, TrainCell
from bench.engines.estimate import Pace, spoken
from bench.engines.local import Ending, Progress, Work, failure, run_cells
from bench.engines.progress import labels, reporter
from bench.measuring.machine import facts
from bench.run import publish_ending
from bench.storing.tables import Tables
from bench.training.checkpoint import CONTINUED, Checkpoints

MARGIN = 1.25  # an estimate is trusted to be that far off
SHORTEST_PIECE = 20.0  # seconds that a cell which goes on later is begun for


class SpentError(Exception):
    """The time is up while a cell is running; it is stored nowhere and runs again, from its checkpoint where it has one."""


@dataclass(frozen=True)
class Job:
    """A cell, the tables it goes to, and what keeps it from running, asked when its turn comes.

    refusal: (status, reason) of the row that is stored instead; ('', '') to leave the cell for later, storing nothing.
    """

    cell: Cell
    tables: Tables
    refusal: Callable[[], tuple[str, str] | None] = lambda: None


def run_jobs(
    jobs: Sequence[Job],
    deadline: float,
    timeout: float,
    work: Work,
    pace: Pace,
    checkpoints: Checkpoints | None = None,
    together: int = 1,
) -> list[Job]:
    """Run `jobs` one after another until time.monotonic() is `deadline`; those that are left.

    timeout: seconds a cell may take; one that trains is bound by the deadline alone. checkpoints: those of `work`; a cell
    that trains begins then although it will not fit, and goes on in the next call. together: cells that train side by
    side, where they stand next to each other; all others run alone. Jobs of one cell are one run, stored for each.
    """
    by_id: dict[str, list[Job]] = {}
    for job in jobs:
        by_id.setdefault(job.cell.cell_id, []).append(job)
    jobs, left = [alike[0] for alike in by_id.values()], dict(by_id)
    for device in {job.cell.device for job in jobs}:
        facts(device)  # imports torch: now, not while something is being timed

    with reporter(labels([job.cell for job in jobs]), len(jobs)) as display:

        def ended(ending: Ending, workers: int) -> str:
            told = [publish_ending(job.tables, ending, workers) for job in left.pop(ending.cell.cell_id)]
            display.ended(ending.cell, *told[0], ending.seconds)
            return told[0][0]

        def affordable(jobs: Sequence[Job], workers: int) -> Iterator[Cell]:
            for job in jobs:
                refused = job.refusal()
                if refused == ("", ""):
                    continue
                if refused:
                    ended(failure(job.cell, *refused, 0.0), workers)
                elif affords(job.cell, deadline - time.monotonic()):
                    yield job.cell

        def affords(cell: Cell, seconds: float) -> bool:
            if checkpoints and isinstance(cell, TrainCell):
                return seconds >= SHORTEST_PIECE or MARGIN * pace.seconds([cell]) <= seconds
            return MARGIN * pace.seconds([cell]) <= seconds

        def watch(told: dict[str, Progress]) -> None:
            if time.monotonic() > deadline:
                raise SpentError
            display.running(told, deadline - time.monotonic())

        def run(jobs: Sequence[Job], workers: int) -> None:
            cells = affordable(jobs, workers)
            with closing(run_cells(cells, work, workers, timeout, watch, unlimited=TrainCell)) as endings:
                for ending in endings:
                    pace.learn(ending.cell, ending.seconds)
                    status = ended(ending, workers)
                    if checkpoints and status not in CONTINUED:
                        checkpoints.discard([ending.cell.cell_id])

        try:
            for trains, alike in groupby(jobs, lambda job: isinstance(job.cell, TrainCell)):
                group = list(alike)
                run(group, min(together, len(group)) if trains else 1)
        except SpentError:
            display.line("the time is up: what was running is left for the next run")  # after its checkpoint
    return [job for alike in left.values() for job in alike]


def left_over(cells: Sequence[Cell], seconds: float, pace: Pace, piecewise: bool = False) -> str:
    """One line about cells that a budget of `seconds` was too short for, and whether it is for each of them.

    piecewise: those that train go on from call to call, and fit any.
    """
    line = f"{len(cells)} left after {spoken(seconds)}: run again with the same --out to go on"
    shortest = MARGIN * min(pace.seconds([cell]) for cell in cells)
    if shortest <= seconds or (piecewise and any(isinstance(cell, TrainCell) for cell in cells)):
        return line
    return f"{line} and a larger --budget: none fits this one, the shortest may take {spoken(shortest)}"
