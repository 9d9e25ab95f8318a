"""The local engine: every cell in a worker process, so that no cell can take the sweep down with it."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pkgutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pebble import CONSTS, ProcessExpired, ProcessPool

from bench.cells import Cell, Progress, Row, Tell
from bench.engines.starts import Starts, be_ready, take_up
from bench.measuring.causes import one_line, status_of
from bench.measuring.machine import physical_cores
from bench.terminal.output import outlive_readers
from bench.training.checkpoint import Checkpoints
from kernels.system.threads import in_force

Work = Callable[[Cell, Tell], list[Row]]

# By default glibc gives every large tensor back to the system when it is freed and gets it again, zeroed page by page,
# a moment later. Keeping the memory nearly doubles training speed at a vocabulary of 33,278. glibc reads these when a
# process starts. MMAP_MAX rather than MMAP_THRESHOLD: some versions refuse a threshold above 32 MB.
WORKER_ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}

POLL_SECONDS = 0.25  # how often progress is looked at
TELL_SECONDS = 0.2  # how often at most a worker writes it
TERMINATION_SECONDS = 60.0  # a worker that trains may take to finish its batch and put the run aside
PARENT_SECONDS = 1.0  # how often a worker looks whether its parent lives


@dataclass(frozen=True)
class Ending:
    """How one cell ended. threads_used is None where torch was not reached.

    seconds: of all its pieces, where it went on from a checkpoint; started_at: of the last.
    spoiled: the worker's GPU context broke, as after an address outside memory, and fails every later cell.
    """

    cell: Cell
    rows: list[Row]
    started_at: str
    seconds: float
    threads_used: int | None = None
    spoiled: bool = False


def measure(cell: Cell, tell: Tell, checkpoints: Checkpoints | None = None) -> list[Row]:
    """The work of a real sweep, as the cell names it, with the cell's threads. checkpoints: of cells that train."""
    import torch

    torch.set_num_threads(cell.threads or physical_cores())
    work = pkgutil.resolve_name(cell.work)
    rows: list[Row] = work(cell, tell, checkpoints=checkpoints) if cell.trains else work(cell, tell)
    return rows


def run_cells(
    cells: Iterable[Cell],
    work: Work,
    workers: int,
    timeout: float | None,
    watch: Callable[[dict[str, Progress]], None],
    unlimited: bool = False,
) -> Generator[Ending, None, None]:
    """Run `cells`, at most `workers` at a time, and yield each ending as it comes.

    cells: the next one is asked for when it can begin. work: a module-level function. timeout: seconds a cell may take;
    unlimited: not one that trains. watch: called a few times a second with what each running cell last told, by its id.
    Closing the iterator ends the workers. Ctrl-C and SIGTERM, where that raises KeyboardInterrupt, do so between two
    looks at the workers; the second one at once.
    """
    waiting, asked = iter(cells), True
    with (
        _worker_environment(),
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name,
        _interrupts_wait() as look,
    ):
        crew = _Crew(workers, work, Path(name))
        try:
            while asked or crew.running or crew.again:
                while (asked or crew.again) and len(crew.running) < workers:
                    cell = crew.again.pop(0) if crew.again else next(waiting, None)
                    if cell is None:
                        asked = False
                        break
                    if not crew.begin(cell, None if unlimited and cell.trains else timeout):
                        break
                done, _ = wait(crew.running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                look()
                yield from crew.endings(done)
                yield from crew.given_up()
                watch(crew.told())
            look()
        finally:
            crew.stop()


class _Crew:
    """Worker processes and what they are at: a pool, made anew where it broke. again: cells that none took up yet."""

    def __init__(self, workers: int, work: Work, folder: Path) -> None:
        self.workers, self.work, self.folder = workers, work, folder
        self.starts = Starts(folder, _cause_of_death)
        self.running: dict[Future[Ending], tuple[Cell, float, float | None]] = {}  # since when, and its time limit
        self.again: list[Cell] = []
        self.pool = self._pool()

    def _pool(self) -> ProcessPool:
        work = getattr(self.work, "func", self.work)
        preload = ("torch",) if work is measure else ()  # so that the first cell does not pay for it
        CONSTS.term_timeout = TERMINATION_SECONDS
        given = (os.getpid(), preload, self.starts.door)
        return ProcessPool(max_workers=self.workers, initializer=_start_worker, initargs=given, context=self.starts)

    def stop(self) -> None:
        self.starts.forget()
        self.pool.stop()  # type: ignore[no-untyped-call]
        self.pool.join()

    def _renew(self) -> None:
        self.stop()
        self.pool = self._pool()

    def begin(self, cell: Cell, timeout: float | None) -> bool:
        """Give a cell to a worker; where there is none it waits in `again`."""
        try:
            if not self.pool.active and not self.running:  # it gives up when a worker dies between two cells
                self._renew()
            given = (self.work, cell, self.folder / cell.cell_id)
            future: Future[Ending] = self.pool.schedule(_work_on, args=given, timeout=timeout)
        except RuntimeError as error:  # no process to be had; or the pool gave up: cells that end open the way
            self.again.insert(0, cell)
            if not self.running:
                self.starts.refused(error)
            return False
        self.running[future] = cell, time.monotonic(), timeout
        return True

    def endings(self, done: Iterable[Future[Ending]]) -> Iterator[Ending]:
        """Those of cells that are `done`."""
        for future in done:
            cell, began, timeout = self.running.pop(future)
            if isinstance(future.exception(), BrokenProcessPool) and not self.starts.took_up(cell.cell_id):
                self.again.append(cell)
                continue
            ending = _ending(future, cell, time.monotonic() - began, timeout)
            if ending.spoiled and not self.running:
                self._renew()
            yield ending

    def given_up(self) -> Iterator[Ending]:
        """Those of cells that no worker takes up, once that was tried often enough."""
        if not (reason := self.starts.failed):
            return
        for future, (cell, _, _) in list(self.running.items()):
            if not self.starts.took_up(cell.cell_id):
                future.cancel()
                del self.running[future]
                self.again.append(cell)
        for cell in self.again:
            yield failure(cell, "crashed", reason, 0.0)
        self.again.clear()
        self.starts.one_more()

    def told(self) -> dict[str, Progress]:
        """What each running cell last told, by cell_id."""
        return {cell.cell_id: _read_progress(self.folder / cell.cell_id) for cell, _, _ in self.running.values()}


def failure(cell: Cell, status: str, reason: str, seconds: float) -> Ending:
    """The ending of a cell that gave no rows: one row that says why."""
    started = datetime.now(UTC).timestamp() - seconds
    row = {"status": status, "reason": one_line(reason)}
    return Ending(cell, [row], datetime.fromtimestamp(started, UTC).isoformat(timespec="milliseconds"), seconds)


def _ending(future: Future[Ending], cell: Cell, seconds: float, timeout: float | None) -> Ending:
    error = future.exception()  # asked for, not raised: what ended a cell is not to end this process
    if error is None:
        return future.result()
    if isinstance(error, TimeoutError):
        return failure(cell, "timeout", f"stopped after {timeout:g} s", seconds)
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
def _interrupts_wait() -> Iterator[Callable[[], None]]:
    """Inside, a signal that would raise KeyboardInterrupt anywhere, perhaps where a lock is held, raises it at a look.

    A look is a call of what this yields.
    """
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    def look() -> None:
        if came:
            raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for number in [each for each, handler in before.items() if not callable(handler)]:
        del before[number]  # ignored, or the end of the process
    for number in before:
        signal.signal(number, note)
    try:
        yield look
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    outlive_readers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; the thread below serves other systems
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    for module in preload:
        with suppress(BaseException):
            importlib.import_module(module)
    be_ready(door)


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


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

    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    try:
        rows = [_in_one_line(row) for row in work(cell, tell)]
    except BaseException as error:  # whatever it is, it is the cell's: nobody else raises anything here
        status, reason = status_of(error)
        rows = [{"status": status, "reason": reason}]
    torch = sys.modules.get("torch")
    threads = in_force() if torch else None
    earlier = max((row.get("earlier_seconds") or 0.0 for row in rows), default=0.0)
    return Ending(cell, rows, started_at, earlier + time.monotonic() - began, threads, _is_spoiled(torch))


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
