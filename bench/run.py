"""Plan and run: every cell of a sweep that is not stored yet."""

from __future__ import annotations

import shlex
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from bench.cells import KINDS, Cell, TrainCell, number
from bench.data.corpus import DataError, data_dir, load_corpus
from bench.engines.estimate import Pace, spoken
from bench.engines.local import Ending, Progress, Work, failure, measure, run_cells
from bench.engines.progress import Reporter, labels, reporter
from bench.measuring.machine import facts, physical_cores, source_hash
from bench.measuring.memory import lines as memory_lines
from bench.measuring.quiet import await_quiet
from bench.origin import claim, require_own
from bench.pruning.emptied import warnings
from bench.store import Store, Stored
from bench.storing.tables import Tables
from bench.sweep import Sweep
from bench.training.checkpoint import CONTINUED, FOLDER, SECONDS, Checkpoints
from bench.training.needs import lines as needs_lines
from kernels.system.resources import ResourceError, is_lack

FINE = ("ok", "unsupported")  # a sweep of these alone ends with exit status 0
LISTED = 20  # cells that are not ok, named at the end


class UnusableError(RuntimeError):
    """The environment lacks something a run needs; one line."""


@dataclass(frozen=True)
class Plan:
    """What of a sweep is stored and what is still to run.

    other: intact stored cells that the sweep no longer has. halfway: cells to run that were put aside in a checkpoint.
    tables_alone: the folder, where it has tables and no cell, as what is committed, or a campaign's.
    """

    sweep: Sweep
    stored: dict[str, Stored]
    todo: tuple[Cell, ...]
    other: int
    halfway: int
    tables_alone: Path | None = None

    def pace(self) -> Pace:
        pace = Pace()
        for cell in self.sweep.cells:
            if cell.cell_id in self.stored and self.stored[cell.cell_id].status == "ok":
                pace.learn(cell, self.stored[cell.cell_id].cell_seconds)
        return pace

    def lines(self, workers: int | None = None) -> list[str]:
        """The plan in words."""
        kinds = Counter(cell.kind for cell in self.sweep.cells)
        statuses = Counter(stored.status for stored in self.stored.values())
        lines = [f"{self.sweep.name}: {number(len(self.sweep.cells))} ({counted(kinds)})"]
        lines.append(f"stored: {len(self.stored)}" + (f" ({counted(statuses)})" if statuses else ""))
        if self.todo:
            pace = self.pace()
            basis = (
                f"from {number(pace.cells, 'stored cell')}"
                if pace.cells
                else "a rough figure from the number of operations"
            )
            seconds = pace.seconds(self.todo, training_workers(self.todo, workers))
            lines.append(f"to run: {len(self.todo)}, about {spoken(seconds)} ({basis})")
        else:
            lines.append("to run: 0")
        lines += [*memory_lines(self.todo, training_workers(self.todo, workers)), *needs_lines(self.todo)]
        lines += warnings(self.todo)
        if self.halfway:
            lines.append(f"half done: {self.halfway} of them go on from a checkpoint")
        if self.tables_alone:
            where = shlex.quote(str(self.tables_alone))
            lines.append(
                f"note: tables alone lie in {self.tables_alone}, without cells/: nothing goes on from them; "
                f"read them with python -m analysis report {where}"
            )
        if self.other:
            lines.append(
                f"note: not in this sweep file: {number(self.other, 'more stored cell')}, kept outside the tables"
            )
        if aged := sum(stored.source_hash != source_hash() for stored in self.stored.values()):
            lines.append(f"note: {number(aged, 'stored cell')} measured by other sources than today's, and kept")
        return lines


def make_plan(sweep: Sweep, results: str | PathLike[str], retry: bool = False) -> Plan:
    """Compare a sweep with what is stored; changes nothing. retry: also run again what did not end ok.

    SweepError where another file of the same name has cells there: the tables would become this file's.
    """
    folder = Path(results) / sweep.name
    finished = Store(folder).finished()
    ours = {cell.cell_id: finished[cell.cell_id] for cell in sweep.cells if cell.cell_id in finished}
    require_own(sweep, folder, finished.keys(), "--results")
    todo = tuple(
        cell for cell in sweep.cells if cell.cell_id not in ours or (retry and ours[cell.cell_id].status != "ok")
    )
    checkpoints = Checkpoints(folder / FOLDER)
    halfway = sum(checkpoints.path(cell.cell_id).is_file() for cell in todo)
    alone = not finished and any((folder / f"{kind}.parquet").is_file() for kind in KINDS)
    return Plan(sweep, ours, todo, len(finished) - len(ours), halfway, folder if alone else None)


def training_workers(cells: Sequence[Cell], wanted: int | None) -> int:
    """Training cells side by side: as many as fit the physical cores, or one where a GPU trains, unless `wanted`."""
    if not wanted and any(isinstance(cell, TrainCell) and cell.device == "cuda" for cell in cells):
        return 1
    threads = max((cell.threads or physical_cores() for cell in cells if isinstance(cell, TrainCell)), default=1)
    return wanted or max(1, physical_cores() // threads)


def run_sweep(
    sweep: Sweep,
    results: str | PathLike[str],
    workers: int | None = None,
    timeout: float | None = None,
    retry: bool = False,
    work: Work = measure,
    checkpoint_seconds: float = SECONDS,
    wait_quiet: float | None = None,
) -> int:
    """Run what is not stored yet and return the exit status: 0, 1 (some cells failed) or 130 (interrupted).

    timeout: seconds a cell may take. checkpoint_seconds: between two checkpoints of a cell that trains. wait_quiet: seconds
    to wait for a machine that is busy with other work, None does not look. Raises OSError, LockedError or UnusableError where
    the environment is at fault; every cell finished before that stays stored.
    """
    store = Store(Path(results) / sweep.name)
    checkpoints = Checkpoints(store.folder / FOLDER, checkpoint_seconds)
    if work is measure:
        work = partial(measure, checkpoints=checkpoints)
    with store.lock() as repairs:
        plan = make_plan(sweep, results, retry)
        claim(store.folder, sweep)
        checkpoints.discard(stale(plan))
        for line in [*repairs, *plan.lines(workers)]:
            print(line, flush=True)
        interrupted = False
        if plan.todo:
            check_datasets(plan.todo)
            try:
                if wait_quiet is not None:
                    await_quiet(wait_quiet, partial(print, flush=True))
                with terminable(), reporter(labels(sweep.cells), len(plan.todo)) as display:
                    _run_phases(plan, store, training_workers(plan.todo, workers), timeout, work, display, checkpoints)
            except KeyboardInterrupt:
                interrupted = True
        checkpoints.tidy()
        store.compact(sweep.cells)
    plan = make_plan(sweep, results)
    if interrupted:
        print(f"interrupted: {len(plan.stored)} of {len(sweep.cells)} cells are stored; run again to go on")
        return 130
    return _summary(plan, store)


def check_datasets(cells: Sequence[Cell]) -> None:
    """Load every data set once (downloading it where it must be), before any worker starts. UnusableError with one line."""
    for name in sorted({cell.dataset for cell in cells if isinstance(cell, TrainCell)}):
        try:
            load_corpus(name, data_dir())
        except (OSError, DataError) as error:
            raise UnusableError(f"dataset {name}: {error}") from None


def lacked(row: Mapping[str, Any]) -> bool:
    """Whether a cell failed for what the machine lacked that day, space or permission or a GPU that answers: no answer to be kept."""
    reason = str(row["reason"])
    return row["status"] == "failed" and (reason.startswith(ResourceError.__name__) or is_lack(reason))


def stale(plan: Plan) -> list[str]:
    """The cells whose checkpoint nothing goes on from any more."""
    left = {cell.cell_id for cell in plan.todo}
    return [name for name, stored in plan.stored.items() if name not in left and stored.status not in CONTINUED]


def _run_phases(
    plan: Plan,
    store: Store,
    workers: int,
    timeout: float | None,
    work: Work,
    display: Reporter,
    checkpoints: Checkpoints,
) -> None:
    """Timings first, one at a time with nothing else running; then training, side by side."""
    timing = [cell for cell in plan.todo if not isinstance(cell, TrainCell)]
    training = [cell for cell in plan.todo if isinstance(cell, TrainCell)]
    for device in {cell.device for cell in plan.todo}:
        facts(device)  # imports torch: now, not while something is being timed
    left, pace = {cell.cell_id: cell for cell in plan.todo}, plan.pace()

    def watch(told: dict[str, Progress]) -> None:
        display.running(told, pace.seconds(left.values(), workers))

    for cells, side_by_side in ((timing, 1), (training, min(workers, len(training)))):
        if cells:
            with closing(run_cells(cells, work, side_by_side, timeout, watch)) as endings:
                for ending in endings:
                    status, reason = publish_ending(store, ending, side_by_side)
                    if status not in CONTINUED:
                        checkpoints.discard([ending.cell.cell_id])
                    del left[ending.cell.cell_id]
                    pace.learn(ending.cell, ending.seconds)
                    display.ended(ending.cell, status, reason, ending.seconds)


def publish_ending(store: Store | Tables, ending: Ending, workers: int) -> tuple[str, str]:
    """Store one ending; rows that do not fit the table are a failed cell, not the end of the sweep."""
    provenance = {
        **facts(ending.cell.device),
        "threads_used": ending.threads_used,
        "workers": workers,
        "started_at": ending.started_at,
        "cell_seconds": ending.seconds,
    }
    try:
        store.put(ending.cell, ending.rows, provenance)
    except ValueError as error:
        ending = failure(ending.cell, "failed", f"its rows do not fit the table: {error}", ending.seconds)
        store.put(ending.cell, ending.rows, provenance)
    worst = next((row for row in ending.rows if row["status"] != "ok"), ending.rows[-1])
    return str(worst["status"]), str(worst.get("reason") or "")


def _summary(plan: Plan, store: Store) -> int:
    cells = plan.sweep.cells
    statuses = Counter(stored.status for stored in plan.stored.values())
    fine = sum(statuses[status] for status in FINE)
    failed = {status: count for status, count in statuses.items() if status not in FINE}
    line = f"{statuses['ok']} of {len(cells)} cells ok"
    line += f"; {statuses['unsupported']} unsupported here" if statuses["unsupported"] else ""
    line += f"; {len(cells) - fine} failed: {counted(failed)}" if failed else ""
    print(f"{line}; results in {store.folder}")
    names = labels(cells)
    not_ok = [cell for cell in cells if plan.stored[cell.cell_id].status != "ok"]
    for cell in not_ok[:LISTED]:
        stored = plan.stored[cell.cell_id]
        print(f"  {stored.status}: {names[cell.cell_id]}: {stored.reason}")
    if len(not_ok) > LISTED:
        shown = shlex.join([plan.sweep.named, "--results", str(store.folder.parent)])
        print(f"  and {len(not_ok) - LISTED} more: python -m bench show {shown}")
    return 1 if failed else 0


def counted(counts: dict[str, int] | Counter[str]) -> str:
    """'3 ok, 1 wrong'."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: finished cells stay, workers go, tables are written."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
