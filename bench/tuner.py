"""The tuner: variants of our kernels timed for the shapes of sweeps, and the winners as a table that backends read.

<folder>/tune.parquet holds every variant with its samples and provenance; the JSON file the winners, with provenance.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from bench.budget import Job, left_over, run_jobs
from bench.campaign import locked, require_device
from bench.cells import GemmCell, TuneCell, number
from bench.engines.estimate import Pace
from bench.engines.local import Work, measure
from bench.measuring.machine import source_hash
from bench.run import FINE, counted, lacked, terminable
from bench.storing.parquet import publish, require_file
from bench.storing.tables import Tables
from bench.sweep import Sweep
from bench.training.needs import thread_lines
from kernels.system.cache import SEAL, sealed

SHAPE = ("op", "dtype", "math", "block_size", "m", "k", "n", "target_sparsity")
PROVENANCE = ("commit", "dirty", "source_hash", "device_name", "driver", "torch", "python", "os", "started_at")
OURS = {"cpu": "native", "cuda": "cuda"}
CUT_SHORT = ("timeout", "crashed", "out_of_memory")  # says nothing of a kernel


def tune_cells(sweeps: Sequence[Sweep], device: str) -> list[TuneCell]:
    """The products of our backend on `device`, each shape once, in the order of the files."""
    found = {}
    for cell in (cell for sweep in sweeps for cell in sweep.cells):
        if isinstance(cell, GemmCell) and cell.device == device and cell.backend == OURS[device]:
            shape = {name: getattr(cell, name) for name in SHAPE}
            tune = TuneCell(backend=cell.backend, device=device, threads=cell.threads, **shape).canonical()
            found[tune.cell_id] = tune
    return list(found.values())


def run_tuner(
    sweeps: Sequence[Sweep],
    out: str | PathLike[str],
    budget: float,
    device: str = "cuda",
    timeout: float = 300.0,
    work: Work = measure,
) -> int:
    """Tune what is missing, write the table to `out` and return the exit status: 0, 1 (something failed) or 130 (interrupted).

    budget, timeout: seconds for all, for one shape. No table is written where no shape is tuned: an earlier one stays.
    Raises as `bench.campaign.run_campaign`.
    """
    deadline, out = time.monotonic() + budget, Path(out)
    require_file(out)  # known before anything is timed
    require_device(device)
    cells, pace = tune_cells(sweeps, device), Pace()
    with locked(out.parent):
        tables = Tables(out.parent, cells)
        for line in tables.load():
            print(line, flush=True)
        todo = [cell for cell in cells if _is_stale(tables.rows(cell))]
        print(f"tuner on {device}: {number(len(cells), 'shape')}, {len(todo)} to tune", flush=True)
        for line in thread_lines(todo):
            print(line, flush=True)
        interrupted = False
        try:
            with terminable():
                late = run_jobs([Job(cell, tables) for cell in todo], deadline, timeout, work, pace)
        except KeyboardInterrupt:
            interrupted = True
        choices = [choice for cell in cells for choice in winner(tables.rows(cell))]
        if choices:
            publish(out, table(choices, tables, cells).encode())
    if not cells:
        print(
            f"nothing to tune: no product of {OURS[device]} on {device} in {', '.join(sweep.name for sweep in sweeps)}"
        )
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


def _failures(shapes: Sequence[list[dict[str, Any]]]) -> int:
    """Say which variants of the shapes did not end well; 1 where there are such, else 0."""
    statuses = Counter(row["status"] for rows in shapes for row in rows if row["status"] not in FINE)
    if not statuses:
        return 0
    failed = sum(any(row["status"] not in FINE for row in rows) for rows in shapes)
    first = next(row for rows in shapes for row in rows if row["status"] not in FINE)
    print(
        f"{number(failed, 'shape')} with failures: {counted(statuses)}; the first: {first['status']}: {first['reason']}"
    )
    return 1


def _is_stale(rows: list[dict[str, Any]]) -> bool:
    """Whether a shape is to be tuned: by other sources, for want of something, or where it was cut short before any variant."""
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
