"""Key figures of the stored cells of a sweep, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.cells import Cell, CheckCell, TimedCell, TuneCell
from bench.engines.progress import labels
from bench.run import Plan
from bench.store import Stored


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


def key_figures(cell: Cell, stored: Stored) -> str:
    """What one would ask first; the reason where a cell is not ok."""
    if stored.status != "ok":
        return stored.reason or ""
    row = stored.last_row
    if isinstance(cell, TimedCell):
        ratio = row["baseline_ms"] / row["time_ms"] if row.get("baseline_ms") and row.get("time_ms") else None
        speed = f", {ratio:.3g}x {cell.baseline}" if ratio else ""
        return f"{_figure(row, 'time_ms')} ms{speed}{', noisy' if row.get('noisy') else ''}"
    if isinstance(cell, CheckCell | TuneCell):
        return f"{_figure(row, 'error_ratio')} of the error bound in the last row, {row.get('kernel') or 'watched'}"
    return (
        f"val_ppl {_figure(row, 'val_ppl')}, test_ppl {_figure(row, 'test_ppl')}, "
        f"sparsity {_figure(row, 'sparsity')}, epoch {row.get('epoch')}"
    )


def _figure(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "-" if value is None else f"{value:.4g}"


def _rank(stored: Stored | None) -> tuple[bool, str]:
    return stored is None, stored.status if stored else ""
