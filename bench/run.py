"""Plan, run and show: the cells of a sweep that are not stored yet, and the key figures of those that are."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.cells import KINDS, Cell, is_training, number
from bench.data.corpus import DataError, data_dir, load_data
from bench.engines.driver import Job, Terms, run_jobs, say
from bench.engines.estimate import Pace, spoken
from bench.engines.origin import claim, require_own
from bench.engines.progress import labels
from bench.measuring.machine import physical_cores, source_hash
from bench.measuring.memory import lines as memory_lines
from bench.pruning.emptied import warnings
from bench.store import Store, Stored
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
        ended = ((cell, self.stored.get(cell.cell_id)) for cell in self.sweep.cells)
        return Pace((cell, stored.cell_seconds) for cell, stored in ended if stored and stored.status == "ok")

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


def make_plan(sweep: Sweep, results: str | PathLike[str], retry: bool = False, store: Store | None = None) -> Plan:
    """Compare a sweep with what is stored; changes nothing. retry: also run again what did not end ok.

    store: the sweep's, which need not read again what it has read.

    SweepError where another file of the same name has cells there: the tables would become this file's.
    """
    folder = Path(results) / sweep.name
    finished = (store or Store(folder)).finished()
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
    if not wanted and any(cell.trains and cell.device == "cuda" for cell in cells):
        return 1
    threads = max((cell.threads or physical_cores() for cell in cells if cell.trains), default=1)
    return wanted or max(1, physical_cores() // threads)


def run_sweep(
    sweep: Sweep,
    results: str | PathLike[str],
    workers: int | None = None,
    retry: bool = False,
    checkpoint_seconds: float = SECONDS,
    terms: Terms = Terms(),  # noqa: B008 - it is frozen
) -> int:
    """Run what is not stored yet and return the exit status: 0, 1 (some cells failed) or 130 (interrupted).

    Timings come first, one at a time with nothing else running; then training, side by side: `workers` cells, or as
    many as fit. checkpoint_seconds: between two checkpoints of a cell that trains. Raises OSError, LockedError or
    UnusableError where the environment is at fault; every cell finished before that stays stored.
    """
    store = Store(Path(results) / sweep.name)
    checkpoints = Checkpoints(store.folder / FOLDER, checkpoint_seconds)
    with store.lock() as repairs:
        plan = make_plan(sweep, results, retry, store)
        claim(store.folder, sweep)
        checkpoints.discard(stale(plan))
        for line in [*repairs, *plan.lines(workers)]:
            say(line)
        check_datasets(plan.todo)
        jobs = [Job(cell, store) for cell in sorted(plan.todo, key=lambda cell: cell.trains)]
        terms = replace(terms, together=training_workers(plan.todo, workers))
        ended = run_jobs(jobs, terms, plan.pace(), checkpoints=checkpoints, names=labels(sweep.cells))
        checkpoints.tidy()
        store.compact(sweep.cells)
    plan = make_plan(sweep, results, store=store)
    if ended.interrupted:
        print(f"interrupted: {len(plan.stored)} of {len(sweep.cells)} cells are stored; run again to go on")
        return 130
    return _summary(plan, store)


def check_datasets(cells: Sequence[Cell]) -> None:
    """Load every data set once, before any worker starts, downloaded where it must be. UnusableError, one line."""
    for name in sorted({cell.dataset for cell in cells if is_training(cell)}):
        try:
            load_data(name, data_dir())
        except (OSError, DataError) as error:
            raise UnusableError(f"dataset {name}: {error}") from None


def lacked(row: Mapping[str, Any]) -> bool:
    """Whether a cell failed for want of something that day, space, permission, a GPU: no answer to keep."""
    reason = str(row["reason"])
    return row["status"] == "failed" and (reason.startswith(ResourceError.__name__) or is_lack(reason))


def stale(plan: Plan) -> list[str]:
    """The cells whose checkpoint nothing goes on from any more."""
    left = {cell.cell_id for cell in plan.todo}
    return [name for name, stored in plan.stored.items() if name not in left and stored.status not in CONTINUED]


def _summary(plan: Plan, store: Store) -> int:
    cells = plan.sweep.cells
    statuses = Counter(stored.status for stored in plan.stored.values())
    failed = failures(statuses.elements())
    line = f"{statuses['ok']} of {len(cells)} cells ok"
    line += f"; {statuses['unsupported']} unsupported here" if statuses["unsupported"] else ""
    line += f"; {failed.total()} failed: {counted(failed)}" if failed else ""
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


def failures(statuses: Iterable[str]) -> Counter[str]:
    """How many did not end fine, by status: where there are such, a command ends with exit status 1."""
    return Counter(status for status in statuses if status not in FINE)


def counted(counts: Mapping[str, int]) -> str:
    """'3 ok, 1 wrong'."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def print_cells(plan: Plan) -> None:
    """One line a cell, those that are not ok with their reason, then the counts."""
    names = labels(plan.sweep.cells)
    table = Table("status", "cell", "key figures", box=None, pad_edge=False)
    for cell in sorted(plan.sweep.cells, key=lambda cell: _rank(plan.stored.get(cell.cell_id))):
        stored = plan.stored.get(cell.cell_id)
        status = stored.status if stored else "to run"
        table.add_row(status, names[cell.cell_id], key_figures(cell, stored) if stored else "")
    console = Console(highlight=False, markup=False)
    console.print(table)
    for line in plan.lines():
        console.print(line, soft_wrap=True)


def _rank(stored: Stored | None) -> tuple[bool, str]:
    return stored is None, stored.status if stored else ""


def key_figures(cell: Cell, stored: Stored) -> str:
    """What one would ask first; the reason where a cell is not ok."""
    if stored.status != "ok":
        return stored.reason or ""
    row = stored.last_row
    words = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in row.items()}
    words |= {name: "-" for name, value in row.items() if value is None}
    timed = row.get("baseline_ms") and row.get("time_ms")
    right = row.get("test_accuracy")
    words["right"] = "" if right is None else f", {right:.1%} of the test right".replace("%", " %")
    words["faster"] = f", {row['baseline_ms'] / row['time_ms']:.3g}x {row.get('baseline', 'dense')}" if timed else ""
    words["noisy"] = ", noisy" if row.get("noisy") else ""
    words["kernel"] = row.get("kernel") or "watched"
    return cell.figures.format_map(words)
