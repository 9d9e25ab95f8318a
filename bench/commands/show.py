"""Show: what of a sweep is stored, and what is still to run: for people, and for programs as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from bench.cells import Cell
from bench.engines.progress import labels
from bench.run import Plan, training_workers
from bench.store import Stored
from bench.sweep import REGISTRIES, load, names

WATCH_SECONDS = 2.0
FIRST = ("cell_id", "kind", "status", "reason")  # columns of CSV


def listed() -> str:
    """The sweeps that come with the suite and the names that sweep files can use, as JSON."""
    sweeps = [(name, load(name)) for name in names()]
    found = [{"name": name, "cells": len(each.cells), "description": each.description} for name, each in sweeps]
    return json.dumps({"sweeps": found, **{noun: each.names() for noun, each in REGISTRIES.items()}}, indent=1)


def planned(plan: Plan, workers: int | None = None) -> str:
    """How many cells a sweep has, of what kind, stored and to run, and the seconds that takes, as JSON."""
    content = {
        "sweep": plan.sweep.name,
        "description": plan.sweep.description,
        "cells": len(plan.cells),
        "kinds": Counter(cell.kind for cell in plan.cells),
        "stored": Counter(stored.status for stored in plan.stored.values()),
        "to_run": len(plan.todo),
        "half_done": plan.halfway,
        "seconds": plan.pace().seconds(plan.todo, training_workers(plan.todo, workers)) if plan.todo else 0.0,
        "lines": plan.lines(workers),
    }
    return json.dumps(content, indent=1)


def cells_of(plan: Plan) -> list[dict[str, Any]]:
    """Each cell with its status, settings, and the last row that is stored of it."""
    found = []
    for cell in plan.sweep.cells:
        stored = plan.stored.get(cell.cell_id)
        found.append(
            {
                "cell_id": cell.cell_id,
                "kind": cell.kind,
                "status": stored.status if stored else "to run",
                "reason": stored.reason if stored else "",
                "settings": cell.model_dump(),
                "last_row": stored.last_row if stored else None,
            }
        )
    return found


def as_json(plan: Plan) -> str:
    """`cells_of` as JSON."""
    return json.dumps({"sweep": plan.sweep.name, "cells": cells_of(plan)}, indent=1, default=str)


def as_csv(plan: Plan) -> str:
    """A line for each cell: its settings, and the single values of its last row; lists are left to the tables."""
    lines = []
    for each in cells_of(plan):
        row = {name: value for name, value in (each["last_row"] or {}).items() if not isinstance(value, list | dict)}
        lines.append({**row, **each["settings"], **{name: each[name] for name in FIRST}})
    columns = dict.fromkeys([*FIRST, *(name for line in lines for name in line)])
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue().rstrip("\n")


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


def watch_cells(plan_now: Callable[[], Plan]) -> None:
    """Show how far a sweep is and the cells that began last, again and again, until all are stored or Ctrl-C."""
    console, told = Console(highlight=False, markup=False), -1
    while not console.is_terminal:
        plan = plan_now()
        if len(plan.stored) != told:
            told = len(plan.stored)
            print(f"{told} of {len(plan.cells)} stored; {plan.left()}", flush=True)
        if not plan.todo:
            return
        time.sleep(WATCH_SECONDS)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            plan = plan_now()
            names, lines = labels(plan.sweep.cells), plan.lines()
            table = Table("begun (UTC)", "status", "cell", "key figures", box=None, pad_edge=False)
            cells = {cell.cell_id: cell for cell in plan.cells}
            room = max(1, console.height - len(lines) - 3)
            newest = sorted(plan.stored.values(), key=lambda stored: stored.started_at, reverse=True)
            for stored in newest[:room]:
                cell = cells[stored.cell_id]
                table.add_row(stored.started_at[:19], stored.status, names[cell.cell_id], key_figures(cell, stored))
            live.update(Group(*lines, table), refresh=True)
            if not plan.todo:
                return
            time.sleep(WATCH_SECONDS)


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
    eager, compiled = (row.get(f"loss_{name}_ms") or [] for name in ("eager", "compiled"))
    ratios = [before / after for before, after in zip(eager, compiled, strict=True)]
    words["compiled"] = f", its loss compiled {median(ratios):.3g}x as fast" if ratios else ""
    words["noisy"] = ", noisy" if row.get("noisy") else ""
    words["kernel"] = row.get("kernel") or "watched"
    return cell.figures.format_map(words)
