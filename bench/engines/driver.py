"""The driver: jobs run one after another, those that train side by side, until all are done or the time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from bench.cells import Cell, Progress, Row
from bench.engines.estimate import Pace, spoken
from bench.engines.families import terminable
from bench.engines.local import Ending, Work, failure, measure, run_cells
from bench.engines.progress import Reporter, labels, reporter
from bench.engines.turns import turn_to_time
from bench.measuring.machine import facts
from bench.measuring.quiet import await_quiet
from bench.training.checkpoint import CONTINUED, Checkpoints
from kernels.system.resources import in_words, is_of_disk

MARGIN = 1.25  # an estimate is trusted to be that far off
SHORTEST_PIECE = 20.0  # seconds that a cell which goes on later is begun for
STORE_AGAIN = 2.0  # seconds after which rows that could not be stored are stored again
STORE_SECONDS = 600.0  # for which that is tried: whoever makes room by then loses nothing

say = partial(print, flush=True)


class Shelf(Protocol):
    """Where the rows of a finished cell are put. ValueError where they do not fit."""

    def put(self, cell: Cell, rows: Sequence[Row], provenance: Row) -> object: ...


class Engine(Protocol):
    """What runs cells and tells how each ended: `bench.engines.local.run_cells` says what is given and asked."""

    def __call__(
        self,
        cells: Iterable[Cell | None],
        work: Work,
        workers: int,
        timeout: float | None,
        watch: Callable[[dict[str, Progress]], None],
        unlimited: bool = False,
    ) -> Generator[Ending, None, None]: ...


Where = TypeVar("Where", bound=Shelf, covariant=True)


@dataclass(frozen=True)
class Job(Generic[Where]):
    """A cell, the tables it goes to, and what keeps it from running, asked when its turn comes.

    refusal: (status, reason) of the row that is stored instead; ('', '') to leave the cell for later, storing nothing.
    """

    cell: Cell
    tables: Where
    refusal: Callable[[], tuple[str, str] | None] = lambda: None


@dataclass(frozen=True)
class Terms:
    """On what terms jobs run.

    work: a module-level function. timeout: seconds a cell may take; where there is a deadline, one that trains is bound
    by that alone. together: cells that train side by side, where they stand next to each other; all others run alone.
    wait_quiet: seconds to wait for a machine that is busy with other work, None does not look. engine: what runs them.
    """

    work: Work = measure
    timeout: float | None = None
    together: int = 1
    wait_quiet: float | None = None
    engine: Engine = run_cells


class Ended(NamedTuple):
    """How jobs ended: those that are left, and whether by Ctrl-C, SIGTERM or SIGHUP."""

    left: list[Job[Any]]
    interrupted: bool


class LeftError(Exception):
    """What a cell gave is not to be stored; it is left for another run, and one line says why."""


class SpentError(Exception):
    """The time is up while a cell is running: stored nowhere it runs again, from its checkpoint where it has one."""


def run_jobs(
    jobs: Sequence[Job[Any]],
    terms: Terms,
    pace: Pace,
    deadline: float = math.inf,
    checkpoints: Checkpoints | None = None,
    names: Mapping[str, str] | None = None,
) -> Ended:
    """Run `jobs` in their order, until time.monotonic() is `deadline`: none begins that will not fit.

    Jobs of one cell are one run, stored for each. checkpoints: where a cell that trains goes on from; it begins then
    although it will not fit, and goes on in the next call. names: of the cells for people, by cell_id.
    """
    drive = _Drive(jobs, terms, pace, deadline, checkpoints)
    try:
        if jobs:
            with terminable():
                drive.run(names)
    except KeyboardInterrupt:
        return Ended(drive.undone(), True)
    return Ended(drive.undone(), False)


class _Drive:
    """Jobs under way. left: those of each cell that did not end yet, by cell_id."""

    def __init__(
        self, jobs: Sequence[Job[Any]], terms: Terms, pace: Pace, deadline: float, checkpoints: Checkpoints | None
    ) -> None:
        self.terms, self.pace, self.deadline, self.checkpoints = terms, pace, deadline, checkpoints
        self.left: dict[str, list[Job[Any]]] = {}
        self.unstored: list[tuple[Ending, int]] = []  # for which there was no room, and the workers beside each
        self.refused = self.tried = 0.0  # when there was none first and last
        for job in jobs:
            self.left.setdefault(job.cell.cell_id, []).append(job)
        self.display: Reporter

    def undone(self) -> list[Job[Any]]:
        return [job for alike in self.left.values() for job in alike]

    def run(self, names: Mapping[str, str] | None) -> None:
        if self.terms.wait_quiet is not None:
            await_quiet(self.terms.wait_quiet, say)
        jobs = [alike[0] for alike in self.left.values()]
        cells = [job.cell for job in jobs]
        for device in {cell.device for cell in cells}:
            facts(device)  # imports torch: now, not while something is being timed
        with reporter(names or labels(cells), len(cells)) as self.display:
            try:
                for trains, alike in groupby(jobs, lambda job: job.cell.trains):
                    group = list(alike)
                    with nullcontext() if trains else self._turn(group[0].cell.device):
                        self._run_group(group, min(self.terms.together, len(group)) if trains else 1)
            except SpentError as spent:  # after the checkpoint of what was running
                self.display.line(f"the time is up: {spent or 'what was running is left for the next run'}")
            finally:
                self._store_last()

    def _turn(self, device: str) -> AbstractContextManager[None]:
        """This machine's turn to time, where it is this machine that does."""
        here = self.terms.engine is run_cells and self.terms.work is measure
        return turn_to_time(device, self._await_turn) if here else nullcontext()

    def _await_turn(self, is_first: bool) -> None:
        if is_first:
            self.display.line("another run is timing on this machine: waiting until it is done")
        if time.monotonic() > self.deadline:
            raise SpentError("another run was timing on this machine all along")
        self._watch({})

    def _store_last(self) -> None:
        """Store what is kept, or say that it is lost."""
        for ending, workers in self.unstored:
            try:
                self._store(ending, workers)
            except OSError as error:
                self.display.line(
                    f"lost, and to be run again: {ending.cell.kind} {ending.cell.cell_id}: {in_words(error)}"
                )
        self.unstored.clear()

    def _run_group(self, jobs: Sequence[Job[Any]], workers: int) -> None:
        work, timeout = self.terms.work, self.terms.timeout
        if work is measure:
            work = partial(measure, checkpoints=self.checkpoints)
        cells, unlimited = self._affordable(jobs, workers), self.deadline < math.inf
        with closing(self.terms.engine(cells, work, workers, timeout, self._watch, unlimited)) as endings:
            for ending in endings:
                self.pace.learn(ending.cell, ending.seconds)
                self._ended(ending, workers)
        while self.unstored and time.monotonic() < self.deadline:
            self._store_again()
            time.sleep(min(1.0, STORE_SECONDS))

    def _affordable(self, jobs: Sequence[Job[Any]], workers: int) -> Iterator[Cell | None]:
        """The cells to run, each when it can begin; None while there is no room for the rows of those that ended."""
        for job in jobs:
            while True:
                while self.unstored:
                    self._store_again()
                    yield None
                try:
                    refused = job.refusal()
                    break
                except OSError as error:
                    self._no_room(error)
                    yield None
            if refused == ("", ""):
                continue
            if refused:
                self._ended(failure(job.cell, *refused, 0.0), workers)
            elif self._affords(job.cell, self.deadline - time.monotonic()):
                yield job.cell

    def _affords(self, cell: Cell, seconds: float) -> bool:
        goes_on = self.checkpoints is not None and cell.trains
        return (goes_on and seconds >= SHORTEST_PIECE) or MARGIN * self.pace.seconds([cell]) <= seconds

    def _watch(self, told: dict[str, Progress]) -> None:
        seconds = self.deadline - time.monotonic()
        if seconds < 0:
            raise SpentError
        if self.unstored:
            self._store_again()
        if seconds == math.inf:
            seconds = self.pace.seconds((alike[0].cell for alike in self.left.values()), self.terms.together)
        self.display.running(told, seconds)

    def _ended(self, ending: Ending, workers: int) -> None:
        """Store what a cell gave, or keep it until there is room."""
        try:
            self._store(ending, workers)
        except OSError as error:
            self._no_room(error)
            self.unstored.append((ending, workers))

    def _no_room(self, error: OSError) -> None:
        """Say it once. `error` where it is of another kind, or there was no room for STORE_SECONDS."""
        now = time.monotonic()
        if not is_of_disk(error) or (self.refused and now - self.refused >= STORE_SECONDS):
            raise error
        if not self.refused:
            self.refused = self.tried = now
            why = f"{in_words(error)}: nothing more begins until what ended is stored"
            self.display.line(f"{why}; tried for {spoken(STORE_SECONDS)}")

    def _store_again(self) -> None:
        """Store what is kept, where that is possible now. OSError once it was not for STORE_SECONDS."""
        now = time.monotonic()
        if now - self.tried < min(STORE_AGAIN, STORE_SECONDS):
            return
        self.tried = now
        try:
            while self.unstored:
                self._store(*self.unstored[0])
                self.unstored.pop(0)
        except OSError as error:
            self._no_room(error)

    def _store(self, ending: Ending, workers: int) -> None:
        cell = ending.cell
        try:
            told = [publish_ending(job.tables, ending, workers) for job in self.left[cell.cell_id]]
        except LeftError as why:
            self.display.line(f"not stored: {cell.kind} {cell.cell_id}: {why}")
            del self.left[cell.cell_id]
            return
        self.refused = 0.0
        del self.left[cell.cell_id]
        status, reason = told[0]
        self.display.ended(cell, status, reason, ending.seconds)
        if self.checkpoints and status not in CONTINUED:
            self.checkpoints.discard([cell.cell_id])


def publish_ending(tables: Shelf, ending: Ending, workers: int) -> tuple[str, str]:
    """Store one ending, and tell its status and reason; rows that do not fit the table are a failed cell."""
    provenance = {
        **facts(ending.cell.device),
        "plugins": ending.cell.plugins,
        "threads_used": ending.threads_used,
        "workers": workers,
        "started_at": ending.started_at,
        "cell_seconds": ending.seconds,
        **(ending.peaks or {}),
        **(ending.facts or {}),
    }
    try:
        tables.put(ending.cell, ending.rows, provenance)
    except ValueError as error:
        ending = failure(ending.cell, "failed", f"its rows do not fit the table: {error}", ending.seconds)
        tables.put(ending.cell, ending.rows, provenance)
    worst = next((row for row in ending.rows if row["status"] != "ok"), ending.rows[-1])
    return str(worst["status"]), str(worst.get("reason") or "")
