"""The local engine: every cell in a worker process, so that no cell can take the sweep down with it."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pebble import CONSTS, ProcessExpired, ProcessPool

from bench.cells import Cell, Progress, Row, Tell
from bench.engines.families import Interrupts, children, end_children, kill_groups, lead
from bench.engines.output import PATIENCE, outlive_readers
from bench.engines.starts import Starts, be_ready, take_up
from bench.measuring.causes import one_line, status_of
from bench.measuring.machine import physical_cores
from bench.measuring.peaks import forget, peaks
from bench.training.checkpoint import Checkpoints
from kernels.system.temporary import temporary_folder
from kernels.system.threads import in_force

Work = Callable[[Cell, Tell], list[Row]]

# By default glibc gives every large tensor back to the system when it is freed and gets it again, zeroed page by page,
# a moment later. Keeping the memory nearly doubles training speed at a vocabulary of 33,278. glibc reads these when a
# process starts. MMAP_MAX rather than MMAP_THRESHOLD: some versions refuse a threshold above 32 MB.
WORKER_ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}

POLL_SECONDS = 0.25  # how often progress is looked at
TELL_SECONDS = 0.2  # how often at most a worker writes it
TERMINATION_SECONDS = 60.0  # a worker that trains may take to finish its batch and put the run aside


def moment(at: datetime) -> str:
    """As rows have it: ISO 8601, UTC, in milliseconds, so that the earlier of two is the smaller."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Ending:
    """How one cell ended. threads_used is None where torch was not reached; peaks: `bench.measuring.peaks`.

    facts: columns of where it ran (`bench.measuring.machine.facts`), where that was another machine than this. seconds:
    of all its pieces, where it went on from a checkpoint; started_at: of the last.
    spoiled: the worker's GPU context broke, as after an address outside memory, and fails every later cell.
    """

    cell: Cell
    rows: list[Row]
    started_at: str
    seconds: float
    threads_used: int | None = None
    spoiled: bool = False
    facts: Row | None = None
    peaks: Row | None = None


def measure(cell: Cell, tell: Tell, checkpoints: Checkpoints | None = None) -> list[Row]:
    """The work of a real sweep, as the cell names it, with the cell's threads. checkpoints: of cells that train."""
    import torch

    torch.set_num_threads(cell.threads or physical_cores())
    work = pkgutil.resolve_name(cell.work)
    rows: list[Row] = work(cell, tell, checkpoints=checkpoints) if cell.trains else work(cell, tell)
    return rows


def run_cells(
    cells: Iterable[Cell | None],
    work: Work,
    workers: int,
    timeout: float | None,
    watch: Callable[[dict[str, Progress]], None],
    unlimited: bool = False,
    crew: Crew | None = None,
) -> Generator[Ending, None, None]:
    """Run `cells`, at most `workers` at a time, and yield each ending as it comes.

    cells: the next one is asked for when it can begin; None where none may yet. work: a module-level function. timeout:
    seconds a cell may take; unlimited: not one that trains. watch: called a few times a second with what each running
    cell last told, by its id. crew: workers to run them, which stay for others unless something is raised; else some
    are started, and end with the last cell. Closing the iterator ends the workers. Ctrl-C, SIGTERM and SIGHUP, where
    they raise KeyboardInterrupt, do so between two looks at the workers; the second one at once. Ctrl-Z stops the
    workers too.
    """
    waiting, asked = iter(cells), True
    crew, own = crew or Crew(workers, work), crew is None
    with Interrupts() as interrupts, crew.at_work(stay=not own):
        while asked or crew.running or crew.again:
            while (asked or crew.again) and len(crew.running) < workers:
                try:
                    cell = crew.again.pop(0) if crew.again else next(waiting)
                except StopIteration:
                    asked = False
                    break
                if cell is None or not crew.begin(cell, None if unlimited and cell.trains else timeout):
                    break
            if not crew.running:
                interrupts.pause(POLL_SECONDS if asked or crew.again else 0.0)
            done, _ = wait(crew.running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            crew.stood_still(interrupts.look(crew.starts.leaders()))
            crew.starts.end_families()
            yield from crew.endings(done)
            yield from crew.given_up()
            crew.end_late()
            watch(crew.told())
        interrupts.look()


@dataclass
class _Running:
    """A cell that was given to a worker at the time `since`. limit: seconds it may take, from when it was taken up."""

    cell: Cell
    limit: float | None
    since: float
    taken_up: float | None = None
    late: bool = False


class Crew:
    """Worker processes and what they are at: a pool, made anew where it broke. again: cells that none took up yet."""

    def __init__(self, workers: int, work: Work) -> None:
        self.workers, self.work, self.stack = workers, work, ExitStack()
        self.folder = self.stack.enter_context(temporary_folder("bench-"))
        self.starts = Starts(self.folder, _cause_of_death)
        self.running: dict[Future[Ending], _Running] = {}
        self.again: list[Cell] = []
        self.pool = self._pool()

    def _pool(self) -> ProcessPool:
        work = getattr(self.work, "func", self.work)
        preload = ("torch",) if work is measure else ()  # so that the first cell does not pay for it
        CONSTS.term_timeout = TERMINATION_SECONDS
        given = (os.getpid(), preload, self.starts.door)
        return ProcessPool(max_workers=self.workers, initializer=_start_worker, initargs=given, context=self.starts)

    @contextmanager
    def at_work(self, stay: bool) -> Iterator[None]:
        """Inside, workers find their environment. At the end they go, unless they `stay`, where nothing is raised."""
        with _worker_environment():
            try:
                yield
            except BaseException:
                self.stop()
                raise
            if not stay:
                self.stop()

    def stop(self) -> None:
        """End the workers, what they run and what that has started."""
        try:
            self._end()
        finally:
            self.stack.close()

    def _end(self) -> None:
        self.starts.forget()
        try:
            self.pool.stop()  # type: ignore[no-untyped-call]
            self.pool.join()
        finally:  # also where that is cut short
            kill_groups(self.starts.leaders())
            self.starts.end_families()

    def _renew(self) -> None:
        self._end()
        self.pool = self._pool()

    def begin(self, cell: Cell, timeout: float | None) -> bool:
        """Give a cell to a worker; where there is none it waits in `again`."""
        try:
            if not self.pool.active and not self.running:  # it gives up when a worker dies between two cells
                self._renew()
            given = (self.work, cell, self.folder / cell.cell_id)
            future: Future[Ending] = self.pool.schedule(_work_on, args=given)
        except RuntimeError as error:  # no process to be had; or the pool gave up: cells that end open the way
            self.again.insert(0, cell)
            if not self.running:
                self.starts.refused(error)
            return False
        self.running[future] = _Running(cell, timeout, time.monotonic())
        return True

    def end_late(self) -> None:
        """Stop what takes longer than it may, by a clock that nobody sets; pebble's limit goes by the time of day."""
        now = time.monotonic()
        for future, run in self.running.items():
            if run.taken_up is None and future.running():
                run.taken_up = now
            if run.limit and run.taken_up is not None and not run.late and now - run.taken_up > run.limit:
                run.late = future.cancel()

    def stood_still(self, seconds: float) -> None:
        """Take from the time of all that runs a while in which it was stopped."""
        for run in self.running.values():
            run.since += seconds
            run.taken_up = None if run.taken_up is None else run.taken_up + seconds

    def endings(self, done: Iterable[Future[Ending]]) -> Iterator[Ending]:
        """Those of cells that are `done`."""
        for future in done:
            run = self.running.pop(future)
            seconds = time.monotonic() - (run.taken_up or run.since)
            if future.cancelled():
                yield failure(run.cell, "timeout", f"stopped after {run.limit:g} s", seconds)
                continue
            if isinstance(future.exception(), BrokenProcessPool) and not self.starts.took_up(run.cell.cell_id):
                self.again.append(run.cell)
                continue
            ending = _ending(future, run.cell, seconds)
            if ending.spoiled and not self.running:
                self._renew()
            yield ending

    def given_up(self) -> Iterator[Ending]:
        """Those of cells that no worker takes up, once that was tried often enough."""
        if not (reason := self.starts.failed):
            return
        for future, run in list(self.running.items()):
            if not self.starts.took_up(run.cell.cell_id):
                future.cancel()
                del self.running[future]
                self.again.append(run.cell)
        for cell in self.again:
            yield failure(cell, "crashed", reason, 0.0)
        self.again.clear()
        self.starts.one_more()

    def told(self) -> dict[str, Progress]:
        """What each running cell last told, by cell_id."""
        ids = [run.cell.cell_id for run in self.running.values()]
        return {cell_id: _read_progress(self.folder / cell_id) for cell_id in ids}


def failure(cell: Cell, status: str, reason: str, seconds: float) -> Ending:
    """The ending of a cell that gave no rows: one row that says why."""
    started = datetime.now(UTC).timestamp() - seconds
    row = {"status": status, "reason": one_line(reason)}
    return Ending(cell, [row], moment(datetime.fromtimestamp(started, UTC)), seconds)


def _ending(future: Future[Ending], cell: Cell, seconds: float) -> Ending:
    error = future.exception()  # asked for, not raised: what ended a cell is not to end this process
    if error is None:
        return future.result()
    if isinstance(error, ProcessExpired):
        return failure(cell, "crashed", _cause_of_death(error.exitcode), seconds)
    return failure(cell, "crashed", status_of(error)[1], seconds)  # the pool broke, or the result did not travel


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name if -exitcode in set(signal.Signals) else f"signal {-exitcode}"
        hint = " (the system may have run out of memory)" if name == "SIGKILL" else ""
        return f"the worker was killed by {name}{hint}"
    return f"the worker ended with exit code {exitcode}"


def _read_progress(path: Path) -> Progress:
    try:
        told: Progress = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return told


@contextmanager
def _worker_environment() -> Iterator[None]:
    """WORKER_ENVIRONMENT in this process's environment, which workers inherit, also those started after a crash."""
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# What follows runs in the workers.


def _start_worker(parent: int, preload: Sequence[str], door: Connection) -> None:
    """Leave Ctrl-C to the parent, and die with it, however it dies; import the modules named in `preload`; be ready.

    What cannot be imported is left to the cell, whose row says so.
    """
    outlive_readers(PATIENCE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    lead(parent)
    for module in preload:
        with suppress(BaseException):
            importlib.import_module(module)
    be_ready(door)


def _work_on(work: Work, cell: Cell, progress: Path) -> Ending:
    take_up(progress.parent, cell.cell_id)
    began, last = time.monotonic(), 0.0

    def tell(told: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_SECONDS:
            temporary = progress.with_suffix(".tmp")
            with suppress(OSError):  # news may be lost (a full disk, a cleaned temporary folder), a measurement not
                temporary.write_text(json.dumps(told))
                temporary.replace(progress)
            last = time.monotonic()

    started_at = moment(datetime.now(UTC))
    ours, forgotten = children(), forget()
    try:
        rows = [_in_one_line(row) for row in work(cell, tell)]
    except BaseException as error:  # whatever it is, it is the cell's: nobody else raises anything here
        status, reason = status_of(error)
        rows = [{"status": status, "reason": reason}]
    highest = peaks(forgotten)
    end_children(but=ours)
    torch = sys.modules.get("torch")
    threads = in_force() if torch else None
    earlier = max((row.get("earlier_seconds") or 0.0 for row in rows), default=0.0)
    seconds = earlier + time.monotonic() - began
    return Ending(cell, rows, started_at, seconds, threads, _is_spoiled(torch), peaks=highest)


def _in_one_line(row: Row) -> Row:
    return {**row, "reason": one_line(row["reason"])} if isinstance(row.get("reason"), str) else row


def _is_spoiled(torch: Any) -> bool:
    """Whether nothing can run on the GPU any more."""
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
