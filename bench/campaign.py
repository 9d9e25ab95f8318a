"""A campaign: everything that is to be measured on a machine that is lent for minutes, as one resumable command.

First every kernel is checked on the device, then cells are timed in the order of their sweep files, then a few checks are
made once more under compute-sanitizer, until the time is up.
What is finished is on the disk after every cell: <out>/check.parquet and <out>/<sweep>/gemm.parquet or lstm.parquet, each
with its checksum, and <out>/<sweep>/.sweep, which file that sweep is: three sweeps leave at most eleven files. Cells that a
sweep no longer has are kept apart (`bench.origin`). Cells that train run too, several side by side where that is asked
for: where checkpoints are, each that does not fit is put aside in <out>/.checkpoints when the time is up, and goes on in
the next call.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import filelock

from bench.budget import Job, left_over, run_jobs
from bench.cells import Cell, CheckCell, GemmCell, LstmCell, TrainCell, number
from bench.engines.estimate import Pace
from bench.engines.local import Work, measure
from bench.measuring.machine import source_hash
from bench.measuring.quiet import await_quiet
from bench.origin import Kept
from bench.run import FINE, UnusableError, check_datasets, counted, lacked, terminable
from bench.store import LockedError
from bench.storing.tables import Tables
from bench.sweep import Sweep, distinct
from bench.training.checkpoint import FOLDER, Checkpoints
from bench.training.needs import thread_lines

WATCHED = (("dsd", "memcheck"), ("sdd", "memcheck"), ("forward_backward", "memcheck"), ("dsd", "racecheck"))


def require_device(device: str) -> None:
    """UnusableError, one line, where there is no such device."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            why = "finds no GPU or driver" if torch.version.cuda else "is built without CUDA"
            raise UnusableError(f"no GPU here (torch {torch.__version__} {why}); --device cpu runs the CPU's cells")


def check_of(cell: Cell) -> CheckCell | None:
    """What is to be checked before `cell` is timed, or trained on a GPU by kernels that skip empty blocks."""
    if isinstance(cell, TrainCell) and cell.device == "cuda" and cell.path != "dense":
        arithmetic = {"dtype": "bfloat16"} if cell.precision == "bfloat16" else {"math": cell.precision}
        alike: dict[str, Any] = {name: getattr(cell, name) for name in ("block_size", "device", "threads")}
        return CheckCell(backend="cuda", op="forward_backward", **arithmetic, **alike)
    if not isinstance(cell, GemmCell | LstmCell):
        return None
    op = cell.op if isinstance(cell, GemmCell) else cell.passes
    shared = {name: getattr(cell, name) for name in ("backend", "block_size", "dtype", "math", "device", "threads")}
    return CheckCell(op=op, **shared).canonical()


def checks_for(cells: Sequence[Cell]) -> list[CheckCell]:
    """Every kernel of `cells`, each once."""
    return list({check.cell_id: check for check in map(check_of, cells) if check is not None}.values())


def watched(checks: Sequence[CheckCell], ours: str) -> list[CheckCell]:
    """A few checks of backend `ours` once more under compute-sanitizer, whose start takes longer than they do."""
    found = []
    for op, tool in WATCHED:
        first = [check for check in checks if check.op == op and check.backend == ours]
        found += [check.model_copy(update={"tool": tool}) for check in first[:1]]
    return found


def verdict(tables: Tables, cell: Cell) -> tuple[str, str] | None:
    """What the check of a cell's kernel says against timing it: (status, reason), ('', '') where it has not said it yet, or None.

    Only an output that is wrong speaks against a kernel: a check that ended otherwise, as at a time limit, is made again.
    """
    check = check_of(cell)
    rows = tables.rows(check) if check else []
    if check and (not rows or not says(rows)):
        return "", ""
    for row in rows:
        if row["status"] == "wrong":
            where = f"{row['pattern']}, n = {row['n']}" if row["pattern"] else "every problem"
            return "wrong", f"not timed: its check on this device ended wrong ({where}): {row['reason']}"
    return None


def says(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the rows of a check say what its kernel is: right, wrong or not here; else it is made again.

    It was cut short where it ran out of time or memory, crashed or failed. One wrong output says it all, unless the machine
    lacked something.
    """
    statuses = {row["status"] for row in rows}
    return not any(map(lacked, rows)) and ("wrong" in statuses or statuses <= set(FINE))


def is_finished(tables: Tables, cell: Cell) -> bool:
    """Whether a cell need not run. One that ended ill, and every check, is run again by other sources.

    One for which the machine lacked something is run again always, and so is a check that did not say what its kernel is.
    """
    rows = tables.rows(cell)
    if any(map(lacked, rows)) or (isinstance(cell, CheckCell) and not says(rows)):
        return False
    settled = rows and all(row["status"] == "ok" for row in rows) and not isinstance(cell, CheckCell)
    return bool(settled or (rows and rows[0]["source_hash"] == source_hash()))


def run_campaign(
    sweeps: Sequence[Sweep],
    out: str | PathLike[str],
    budget: float,
    device: str = "cuda",
    resume_from: str | PathLike[str] | None = None,
    timeout: float = 120.0,
    work: Work = measure,
    checkpoint_mib: float = 0.0,
    together: int = 1,
    wait_quiet: float | None = None,
) -> int:
    """Run what is missing and return the exit status: 0, 1 (something failed) or 130 (interrupted).

    budget, timeout: seconds for all, for one cell that is timed. resume_from: the `out` of an earlier campaign, where that
    is another folder. checkpoint_mib: the largest checkpoint that is kept; 0 keeps none. together: cells that train side
    by side. wait_quiet: seconds to wait for a machine that is busy with other work, None does not look. A cell of several
    sweeps runs once and is stored for each. Raises UnusableError, LockedError or OSError where the environment is at fault,
    SweepError where two sweeps would share a folder, or one has another's.
    """
    deadline = time.monotonic() + budget
    sweeps, out = distinct(sweeps), Path(out)
    if resume_from is not None:
        resume_from = Path(resume_from)
        os.scandir(resume_from).close()  # raises where it is missing, no folder, or shut
    require_device(device)
    timed = {sweep.name: [cell for cell in sweep.cells if cell.device == device] for sweep in sweeps}
    checks = checks_for([cell for cells in timed.values() for cell in cells])
    sanitized = watched(checks, "cuda") if device == "cuda" else []
    with locked(out):
        checked = Tables(out, [*checks, *sanitized])
        kept = [Kept(sweep, out / sweep.name, timed[sweep.name]) for sweep in sweeps]
        say = partial(print, flush=True)
        for folder in (resume_from, None) if resume_from else (None,):
            for line in checked.load(folder):
                say(line)
        for each in kept:
            each.load(say, resume_from and resume_from / each.sweep.name)
        for each in kept:
            each.settle(say)
        if resume_from and not checked.tables and not any(each.tables.tables for each in kept):
            say(f"note: nothing of these sweeps is stored in {resume_from}")
        stores = {each.sweep.name: each.tables for each in kept}
        pace = Pace()
        jobs = [Job(check, checked) for check in checks]
        for name, cells in timed.items():
            jobs += [Job(cell, stores[name], partial(verdict, checked, cell)) for cell in cells]
        jobs += [Job(check, checked) for check in sanitized]
        share(jobs)
        todo = [job for job in jobs if not is_finished(job.tables, job.cell)]
        for job in jobs:
            rows = job.tables.rows(job.cell)
            if rows and rows[-1]["status"] == "ok":
                pace.learn(job.cell, rows[-1]["cell_seconds"])
        left_out = sum(len(sweep.cells) for sweep in sweeps) - sum(map(len, timed.values()))
        say(
            f"campaign on {device}: {number(len(jobs), 'cell')}, {len(checks) + len(sanitized)} of them checks; "
            f"{len({job.cell.cell_id for job in todo})} to run"
        )
        for line in thread_lines([job.cell for job in todo]):
            say(line)
        if left_out:
            say(f"note: {number(left_out, 'cell')} of these sweeps not on {device}: left out")
        check_datasets([job.cell for job in todo])
        checkpoints = None
        if checkpoint_mib:
            checkpoints = take_over(out, resume_from, jobs, todo, int(checkpoint_mib * 2**20))
            work = partial(measure, checkpoints=checkpoints) if work is measure else work
        try:
            with terminable():
                if todo and wait_quiet is not None:
                    await_quiet(wait_quiet, say)
                run_jobs(todo, deadline, timeout, work, pace, checkpoints, together)
        except KeyboardInterrupt:
            print("interrupted; run again to go on")
            return 130
        finally:
            if checkpoints:
                checkpoints.tidy()
            for tables in (checked, *stores.values()):
                for kind in set(tables.kinds.values()):
                    tables.write(kind)  # what came from another folder too
        return _summary(jobs, out, budget, pace, piecewise=checkpoints is not None)


def share(jobs: Sequence[Job]) -> None:
    """What is finished for one sweep is so for every other that has the same cell."""
    finished = {job.cell.cell_id: job.tables for job in jobs if is_finished(job.tables, job.cell)}
    for job in jobs:
        if job.cell.cell_id in finished and not is_finished(job.tables, job.cell):
            job.tables.take(job.cell.cell_id, finished[job.cell.cell_id])


def take_over(
    out: Path, resume_from: Path | None, jobs: Sequence[Job], todo: Sequence[Job], largest: int
) -> Checkpoints:
    """The checkpoints of `todo` in `out`, with those of an earlier campaign; none is left of other jobs."""
    checkpoints = Checkpoints(out / FOLDER, largest=largest)
    left = {job.cell.cell_id for job in todo}
    checkpoints.discard(job.cell.cell_id for job in jobs if job.cell.cell_id not in left)
    earlier = Checkpoints((resume_from or out) / FOLDER)
    for cell_id in left:
        here, there = checkpoints.path(cell_id), earlier.path(cell_id)
        if there.is_file() and not here.exists():
            here.parent.mkdir(exist_ok=True)
            shutil.copyfile(there, here)
    return checkpoints


def _summary(jobs: Sequence[Job], out: Path, budget: float, pace: Pace, piecewise: bool) -> int:
    statuses: Counter[str] = Counter()
    left: list[Cell] = []
    for job in jobs:
        rows = job.tables.rows(job.cell)
        if rows:
            statuses[worst(rows)] += 1
        else:
            left.append(job.cell)
    print(f"{len(jobs) - len(left)} of {len(jobs)} cells stored in {out}: {counted(statuses) or 'none'}")
    cut_short = {
        job.cell.cell_id: worst(rows)
        for job in jobs
        if isinstance(job.cell, CheckCell) and (rows := job.tables.rows(job.cell)) and not says(rows)
    }
    waiting = [cell for cell in left if (check := check_of(cell)) and check.cell_id in cut_short]
    if cut_short:
        ended = counted(Counter(cut_short.values()))
        print(
            f"{number(len(cut_short), 'check')} did not say whether the kernel is right ({ended}) and will be made again; "
            f"not timed until then: {number(len(waiting), 'cell')}"
        )
    if late := [cell for cell in left if cell not in waiting]:
        print(left_over(late, budget, pace, piecewise))
    return 1 if any(status not in FINE for status in statuses) else 0


def worst(rows: Sequence[Mapping[str, Any]]) -> str:
    """How a cell ended: the status of its first row that is not fine, else of its last."""
    return str(next((row["status"] for row in rows if row["status"] not in FINE), rows[-1]["status"]))


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a folder, made where it is missing; LockedError where another run has it."""
    out.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise LockedError(f"{out} is in use by another run") from None
    try:
        yield
    finally:
        lock.release()
