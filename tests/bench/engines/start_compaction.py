"""Write the tables of a sweep and of a campaign again and again, in turns with one cell and with two.

start_compaction.py FOLDER.
"""

from __future__ import annotations

import sys
from itertools import cycle
from pathlib import Path

from bench.cells import Cell, GemmCell
from bench.store import Store
from bench.storing.tables import Tables

CELLS: list[Cell] = [GemmCell(seed=seed) for seed in range(2)]
ROW = {
    "status": "ok", "sparsity": 0.8, "time_ms": 0.5, "baseline_ms": 1.0, "samples_ms": [0.5],
    "baseline_samples_ms": [1.0], "timer": "perf_counter",
}  # fmt: skip
PROVENANCE = {"cell_seconds": 1.0, "started_at": "2026-01-01", "source_hash": "a", "device_name": "Test CPU"}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    store, tables = Store(folder / "sweep"), Tables(folder / "campaign", CELLS)
    with store.lock():
        for cell in CELLS:
            store.put(cell, [ROW], PROVENANCE)
        for count in cycle((1, 2)):
            store.compact(CELLS[:count])
            tables.put(CELLS[0], [{**ROW, "time_ms": float(count)}], PROVENANCE)
            tables.put(CELLS[1], [ROW], PROVENANCE)
