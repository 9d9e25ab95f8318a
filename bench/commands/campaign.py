"""Campaign and tune: all that is to be measured on a machine lent for minutes, each as one resumable command.

A campaign times cells in the order of their sweep files, of several sweeps in turns, checks each kernel just before its
first cell, and makes a few checks once more under compute-sanitizer at the end, until the time is up. What is finished
is on the disk after every cell: <out>/check.parquet and <out>/<sweep>/gemm.parquet or lstm.parquet, each with its
checksum, and <out>/<sweep>/.sweep, which file that sweep is: two sweeps leave eight files. Cells that a sweep no longer
has are kept apart (`bench.engines.origin`). Cells that train run too, several side by side where that is asked for:
where checkpoints are, each that does not fit is put aside in <out>/.checkpoints when the time is up, and goes on in the
next call.

The tuner times the variants of our kernels for the shapes of sweeps: <folder>/tune.parquet holds every variant with its
samples and provenance, a JSON file the winners, with provenance, as a table that backends read.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, zip_longest
from os import PathLike
from pathlib import Path
from typing import Any

from bench.cells import Cell, CheckCell, TuneCell, number
from bench.engines.driver import MARGIN, Job, Terms, run_jobs, say
from bench.engines.estimate import Pace, spoken
from bench.engines.origin import Kept
from bench.measuring.machine import machine, source_hash
from bench.run import FINE, UnusableError, check_datasets, counted, failures, is_timing, lacked
from bench.store import locked
from bench.storing.parquet import clear_strays, publish, require_file
from bench.storing.tables import Tables
from bench.sweep import Sweep, distinct
from bench.training.checkpoint import FOLDER, Checkpoints
from bench.training.needs import thread_lines
from kernels.system.cache import SEAL, sealed

WATCHED = (("dsd", "memcheck"), ("sdd", "memcheck"), ("forward_backward", "memcheck"), ("dsd", "racecheck"))
SHAPE = ("op", "dtype", "math", "block_size", "m", "k", "n", "target_sparsity")
PROVENANCE = ("commit", "dirty", "source_hash", "device_name", "driver", "torch", "python", "os", "started_at")
OURS = {"cpu": "native", "cuda": "cuda"}
CUT_SHORT = ("timeout", "crashed", "out_of_memory")  # says nothing of a kernel
TERMS = Terms(timeout=120.0)

Rows = Sequence[Mapping[str, Any]]


def require_device(device: str) -> None:
    """UnusableError, one line, where there is no such device."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            why = "finds no GPU or driver" if torch.version.cuda else "is built without CUDA"
            raise UnusableError(f"no GPU here (torch {torch.__version__} {why}); --device cpu runs the CPU's cells")


def checks_for(cells: Sequence[Cell]) -> list[CheckCell]:
    """Every kernel of `cells`, each once."""
    return list({check.cell_id: check for cell in cells for check in cell.kernel_checks()}.values())


def watched(checks: Sequence[CheckCell], ours: str) -> list[CheckCell]:
    """A few checks of backend `ours` once more under compute-sanitizer, whose start takes longer than they do."""
    found = []
    for op, tool in WATCHED:
        first = [check for check in checks if check.op == op and check.backend == ours]
        found += [check.model_copy(update={"tool": tool}) for check in first[:1]]
    return found


def verdict(tables: Tables, cell: Cell) -> tuple[str, str] | None:
    """What the checks of a cell's kernels say against timing it: (status, reason), or None.

    ('', '') where one has not said it yet. Only an output that is wrong speaks against a kernel: a check that ended
    otherwise, as at a time limit, is made again.
    """
    checked = [tables.rows(check) for check in cell.kernel_checks()]
    for row in (row for rows in checked if says(rows) for row in rows):
        if row["status"] == "wrong":
            where = f"{row['pattern']}, n = {row['n']}" if row["pattern"] else "every problem"
            return "wrong", f"not timed: its check on this device ended wrong ({where}): {row['reason']}"
    return None if all(rows and says(rows) for rows in checked) else ("", "")


def says(rows: Rows) -> bool:
    """Whether the rows of a check say what its kernel is: right, wrong or not here; else it is made again.

    It was cut short where it ran out of time or memory, crashed or failed. One wrong output says it all, unless the
    machine lacked something.
    """
    statuses = {row["status"] for row in rows}
    return not any(map(lacked, rows)) and ("wrong" in statuses or statuses <= set(FINE))


def is_finished(tables: Tables, cell: Cell, renewed: bool = False) -> bool:
    """Whether a cell need not run. One that ended ill, and every check, is run again by other sources.

    One for which the machine lacked something is run again always, and so is a check that did not say what its kernel
    is. renewed: so is a timing on a GPU by other sources, the tuned table of its kernels among them.
    """
    rows = tables.rows(cell)
    if any(map(lacked, rows)) or (cell.checks and not says(rows)):
        return False
    old = renewed and cell.device == "cuda" and is_timing(cell)
    settled = rows and all(row["status"] == "ok" for row in rows) and not cell.checks and not old
    return bool(settled or (rows and rows[0]["source_hash"] == source_hash()))


class Campaign:
    """What is to be measured of `sweeps` on a device, and what of it is stored in `out`."""

    def __init__(self, sweeps: Sequence[Sweep], out: Path, device: str, renewed: bool = False) -> None:
        self.renewed = renewed
        self.device, self.cells = device, [cell for sweep in sweeps for cell in sweep.cells]
        self.checks = checks_for([cell for cell in self.cells if cell.device == device])
        self.watched = watched(self.checks, "cuda") if device == "cuda" else []
        self.checked = Tables(out, [*self.checks, *self.watched])
        self.timed = [[cell for cell in each.cells if cell.device == device] for each in sweeps]
        self.kept = [Kept(each, out / each.name, cells) for each, cells in zip(sweeps, self.timed, strict=True)]

    def load(self, earlier: Path | None) -> None:
        """Take up what is stored, in `earlier` too, the folder of a campaign before this one; say what is damaged."""
        for folder in (earlier, None) if earlier else (None,):
            for line in self.checked.load(folder):
                say(line)
        for each in self.kept:
            each.load(say, earlier and earlier / each.sweep.name)
        for each in self.kept:
            each.settle(say)
        if earlier and not self.checked.tables and not any(each.tables.tables for each in self.kept):
            say(f"note: nothing of these sweeps is stored in {earlier}")

    def is_finished(self, job: Job[Tables]) -> bool:
        return is_finished(job.tables, job.cell, self.renewed)

    def jobs(self) -> list[Job[Tables]]:
        """All in their order: what is timed and trained, each kernel's check before its first cell; a few once more."""
        jobs: list[Job[Tables]] = []
        checks = {check.cell_id: check for check in self.checks}
        for job in in_turns([self._jobs_of(each, cells) for each, cells in zip(self.kept, self.timed, strict=True)]):
            first = [checks.pop(check.cell_id, None) for check in job.cell.kernel_checks()]
            jobs += [*(Job(check, self.checked) for check in first if check is not None), job]
        return [*jobs, *(Job(check, self.checked) for check in self.watched)]

    def _jobs_of(self, kept: Kept, cells: Sequence[Cell]) -> list[Job[Tables]]:
        return [Job(cell, kept.tables, partial(verdict, self.checked, cell)) for cell in cells]

    def lines(self, jobs: Sequence[Job[Tables]], todo: Sequence[Job[Tables]]) -> list[str]:
        """The plan in words."""
        checks = len(self.checks) + len(self.watched)
        lines = [
            f"campaign on {self.device}: {number(len(jobs), 'cell')}, {checks} of them checks; "
            f"{len({job.cell.cell_id for job in todo})} to run",
            *thread_lines([job.cell for job in todo]),
        ]
        if left_out := sum(cell.device != self.device for cell in self.cells):
            lines.append(f"note: {number(left_out, 'cell')} of these sweeps not on {self.device}: left out")
        return lines

    def write(self) -> None:
        """Publish every table as it is now, with what came from another folder."""
        for tables in (self.checked, *(each.tables for each in self.kept)):
            for kind in set(tables.kinds.values()):
                tables.write(kind)


def in_turns(sweeps: Sequence[Sequence[Job[Tables]]]) -> list[Job[Tables]]:
    """One job of each sweep after the other, so that none waits for the end of another.

    Where some train they follow each other: those that train stand together, to run side by side.
    """
    if any(job.cell.trains for jobs in sweeps for job in jobs):
        return list(chain.from_iterable(sweeps))
    return [job for turn in zip_longest(*sweeps) for job in turn if job is not None]


def run_campaign(
    sweeps: Sequence[Sweep],
    out: str | PathLike[str],
    budget: float,
    device: str = "cuda",
    resume_from: str | PathLike[str] | None = None,
    checkpoint_mib: float = 0.0,
    terms: Terms = TERMS,
    mix_machines: bool = False,
    renew: bool = False,
) -> int:
    """Run what is missing and return the exit status: 0, 1 (something failed) or 130 (interrupted).

    budget: seconds for all. resume_from: the `out` of an earlier campaign, where that is another folder.
    checkpoint_mib: the largest checkpoint that is kept; 0 keeps none. mix_machines: timings may stand in one table with
    those of another machine. renew: timings on a GPU by older sources, or before its kernels were tuned, are taken
    anew. A cell of several sweeps runs once and is stored for each. Raises UnusableError, LockedError or OSError where
    the environment is at fault, SweepError where two sweeps would share a folder, or one has another's.
    """
    deadline = time.monotonic() + budget
    sweeps, out, earlier = distinct(sweeps), Path(out), None if resume_from is None else Path(resume_from)
    if earlier is not None:
        os.scandir(earlier).close()  # raises where it is missing, no folder, or shut
    require_device(device)
    with locked(out, leave=False) as unseen:
        campaign = Campaign(sweeps, out, device, renew)
        if unseen:
            say(f"{unseen}; but what both store in one moment may be lost")
        else:
            clear_strays(
                out, out / FOLDER, *(each.folder for kept in campaign.kept for each in (kept.tables, kept.retired))
            )
        campaign.load(earlier)
        jobs = campaign.jobs()
        share(jobs, campaign.is_finished)
        todo = [job for job in jobs if not campaign.is_finished(job)]
        if not mix_machines:
            require_one_machine(jobs, todo, device)
        stored = [(job.tables.folder.name, job.cell, rows[-1]) for job in jobs if (rows := job.tables.rows(job.cell))]
        pace = Pace((cell, row["cell_seconds"]) for _, cell, row in stored if row["status"] == "ok")
        for line in campaign.lines(jobs, todo):
            say(line)
        check_datasets([job.cell for job in todo], stored)
        checkpoints = take_over(out, earlier, jobs, todo, int(checkpoint_mib * 2**20)) if checkpoint_mib else None
        try:
            ended = run_jobs(todo, terms, pace, deadline, checkpoints)
        finally:
            if checkpoints:
                checkpoints.tidy()
            campaign.write()
    if ended.interrupted:
        print("interrupted; run again to go on")
        return 130
    return _summary(jobs, out, budget, pace, piecewise=checkpoints is not None)


def require_one_machine(jobs: Sequence[Job[Tables]], todo: Sequence[Job[Tables]], device: str) -> None:
    """UnusableError where timings of this machine would stand beside those of another in a table."""
    timed = {id(job.tables) for job in todo if is_timing(job.cell)}
    others: dict[str, str] = {}
    for job in jobs:
        if is_timing(job.cell) and id(job.tables) in timed:
            for row in job.tables.rows(job.cell)[:1]:
                if row["status"] == "ok" and row["machine"] not in (None, machine(device)):
                    others[job.cell.cell_id] = f"{row['device_name']}, torch {row['torch']}"
    if others:
        where = ", ".join(sorted(set(others.values())))
        raise UnusableError(
            f"{number(len(others), 'timing')} stored on another machine or with other libraries ({where}): timings of "
            "two do not compare; choose another --out, or --mix-machines"
        )


def share(jobs: Sequence[Job[Tables]], is_done: Callable[[Job[Tables]], bool]) -> None:
    """What is finished for one sweep is so for every other that has the same cell."""
    finished = {job.cell.cell_id: job.tables for job in jobs if is_done(job)}
    for job in jobs:
        if job.cell.cell_id in finished and not is_done(job):
            job.tables.take(job.cell.cell_id, finished[job.cell.cell_id])


def take_over(
    out: Path, earlier: Path | None, jobs: Sequence[Job[Any]], todo: Sequence[Job[Any]], largest: int
) -> Checkpoints:
    """The checkpoints of `todo` in `out`, with those of an earlier campaign; none is left of other jobs."""
    checkpoints = Checkpoints(out / FOLDER, largest=largest)
    left = {job.cell.cell_id for job in todo}
    checkpoints.discard(job.cell.cell_id for job in jobs if job.cell.cell_id not in left)
    before = Checkpoints((earlier or out) / FOLDER)
    for cell_id in left:
        here, there = checkpoints.path(cell_id), before.path(cell_id)
        if there.is_file() and not here.exists():
            here.parent.mkdir(exist_ok=True)
            shutil.copyfile(there, here)
    return checkpoints


def _summary(jobs: Sequence[Job[Tables]], out: Path, budget: float, pace: Pace, piecewise: bool) -> int:
    ended = {job: rows for job in jobs if (rows := job.tables.rows(job.cell))}
    statuses = Counter(map(worst, ended.values()))
    print(f"{len(ended)} of {len(jobs)} cells stored in {out}: {counted(statuses) or 'none'}")
    cut_short = {job.cell.cell_id: worst(rows) for job, rows in ended.items() if job.cell.checks and not says(rows)}
    left = [job.cell for job in jobs if job not in ended]
    waiting = [cell for cell in left if any(check.cell_id in cut_short for check in cell.kernel_checks())]
    if cut_short:
        print(
            f"{number(len(cut_short), 'check')} did not say whether the kernel is right "
            f"({counted(Counter(cut_short.values()))}) and will be made again; "
            f"not timed until then: {number(len(waiting), 'cell')}"
        )
    if late := [cell for cell in left if cell not in waiting]:
        print(left_over(late, budget, pace, piecewise))
    return 1 if failures(statuses) else 0


def worst(rows: Sequence[Mapping[str, Any]]) -> str:
    """How a cell ended: the status of its first row that is not fine, else of its last."""
    return str(next((row["status"] for row in rows if row["status"] not in FINE), rows[-1]["status"]))


def left_over(cells: Sequence[Cell], seconds: float, pace: Pace, piecewise: bool = False) -> str:
    """One line about cells that a budget of `seconds` was too short for, and whether it is for each of them.

    piecewise: those that train go on from call to call, and fit any.
    """
    line = f"{len(cells)} left after {spoken(seconds)}: run again with the same --out to go on"
    shortest = MARGIN * min(pace.seconds([cell]) for cell in cells)
    if shortest <= seconds or (piecewise and any(cell.trains for cell in cells)):
        return line
    return f"{line} and a larger --budget: none fits this one, the shortest may take {spoken(shortest)}"


def tune_cells(sweeps: Sequence[Sweep], device: str) -> list[TuneCell]:
    """The products of our backend on `device`, each shape once, in the order of the files."""
    cells = [cell.kernel_tuning() for sweep in sweeps for cell in sweep.cells if cell.device == device]
    return list({cell.cell_id: cell for cell in cells if cell and cell.backend == OURS[device]}.values())


def run_tuner(
    sweeps: Sequence[Sweep], out: str | PathLike[str], budget: float, device: str = "cuda", terms: Terms = TERMS
) -> int:
    """Tune what is missing, write the table to `out`, return the exit status: 0, 1 (something failed) or 130.

    budget: seconds for all. No table is written where no shape is tuned: an earlier one stays. Raises as
    `run_campaign`.
    """
    deadline, out = time.monotonic() + budget, Path(out)
    require_file(out)  # known before anything is timed
    require_device(device)
    cells, pace = tune_cells(sweeps, device), Pace()
    with locked(out.parent, leave=False) as unseen:
        if unseen:
            say(f"{unseen}; but what both store in one moment may be lost")
        else:
            clear_strays(out.parent)
        tables = Tables(out.parent, cells)
        for line in tables.load():
            say(line)
        todo = [cell for cell in cells if _is_stale(tables.rows(cell))]
        say(f"tuner on {device}: {number(len(cells), 'shape')}, {len(todo)} to tune")
        for line in thread_lines(todo):
            say(line)
        late, interrupted = run_jobs([Job(cell, tables) for cell in todo], terms, pace, deadline)
        choices = [choice for cell in cells for choice in winner(tables.rows(cell))]
        if choices:
            publish(out, table(choices, tables, cells).encode())
    if not cells:
        names = ", ".join(sweep.name for sweep in sweeps)
        print(f"nothing to tune: no product of {OURS[device]} on {device} in {names}")
    print(f"{len(choices)} of {number(len(cells), 'shape')} tuned; {_place(out, bool(choices))}")
    if interrupted:
        print("interrupted; run again to go on")
        return 130
    if late:
        print(left_over([job.cell for job in late], budget, pace))
    return _failures([tables.rows(cell) for cell in cells])


def _place(out: Path, written: bool) -> str:
    if written:
        return f"table in {out}"
    return f"no table is written, {out} is an earlier one" if out.exists() else "no table is written"


def _failures(shapes: Sequence[Rows]) -> int:
    """Say which variants of the shapes did not end well; 1 where there are such, else 0."""
    ill = [[row for row in rows if row["status"] not in FINE] for rows in shapes]
    statuses = failures(row["status"] for rows in ill for row in rows)
    if not statuses:
        return 0
    first = next(row for rows in ill for row in rows)
    said = f"{counted(statuses)}; the first: {first['status']}: {first['reason']}"
    print(f"{number(sum(map(bool, ill)), 'shape')} with failures: {said}")
    return 1


def _is_stale(rows: list[dict[str, Any]]) -> bool:
    """Whether a shape is to be tuned: other sources, want of something, or cut short before any variant."""
    if not rows or rows[0]["source_hash"] != source_hash() or any(map(lacked, rows)):
        return True
    return all(row["status"] in CUT_SHORT for row in rows)


def winner(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chosen variant of one shape as an entry of the table; nothing where none was right."""
    times = sorted(row["time_ms"] for row in rows if row["time_ms"] is not None)
    return [
        {
            **{name: row[name] for name in SHAPE},
            "variant": json.loads(row["variant"]),
            "time_ms": row["time_ms"],
            "runner_up_ms": times[1] if len(times) > 1 else None,
        }
        for row in rows
        if row["chosen"]
    ]


def table(choices: list[dict[str, Any]], tables: Tables, cells: Sequence[TuneCell]) -> str:
    """The table as JSON, an entry a line, with its sha256 and the provenance of the shape tuned last."""
    rows = [row for cell in cells for row in tables.rows(cell)[:1]]
    last = max(rows, key=lambda row: str(row["started_at"]))
    whole = sealed({"provenance": {name: last[name] for name in PROVENANCE}, "choices": choices})
    lines = ",\n    ".join(json.dumps(choice) for choice in choices)
    parts = [f'"{name}": {json.dumps(whole[name])}' for name in (SEAL, "provenance")]
    return f'{{\n  {parts[0]},\n  {parts[1]},\n  "choices": [\n    {lines}\n  ]\n}}\n'
