"""Check what is stored of a sweep, file by file: what is intact, damaged, foreign, of other sources or machines.

Nothing is changed unless that is asked for; then what is damaged is set aside, as the next run does it, what a kill has
left half written is removed, and the tables are written from the cells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.cells import number
from bench.engines.origin import RETIRED, origin, require_own
from bench.measuring.machine import source_hash
from bench.schema import COLUMNS
from bench.store import Store, Stored
from bench.storing.parquet import HALF, DamagedError, clear_strays, set_aside
from bench.storing.validation import by_cell, stored_tables
from bench.sweep import Sweep
from bench.training.checkpoint import FOLDER, Checkpoints, whole

DAMAGED = 1  # exit status where something is


def check(sweep: Sweep, folder: Path, repair: bool = False, say: Callable[[str], None] = print) -> int:
    """Say of everything in `folder`, the sweep's, what it is; 1 where something was damaged, else 0.

    Where something is to be repaired, LockedError where a run is at work there, and SweepError where the folder is that
    of another file; OSError where it cannot be read.
    """
    found = _Found(sweep, folder)
    for line in found.lines():
        say(line)
    if repair and not found.scanned:
        say(f"nothing was changed: no cells lie in {found.store.cells}, from which tables could be written")
    elif repair:
        require_own(sweep, folder, found.store.finished().keys(), "--results")
        tables = list(stored_tables(folder, lambda *_: None))
        with found.store.lock() as repairs:
            for line in repairs:
                say(line)
            for line in _restored(sweep, found.store, tables):
                say(line)
            for path in (path for path in found.checkpoints if path.is_file() and not whole(path)):
                say(f"{path} moved to {set_aside(path, found.store.damaged)}; its cell trains anew")
            clear_strays(*found.places)
            found.store.compact(sweep.cells)
    elif found.damaged and found.scanned:
        say(f"nothing was changed; --repair sets aside what is damaged: {number(found.damaged, 'file')}")
    return DAMAGED if found.damaged else 0


def _restored(sweep: Sweep, store: Store, tables: Sequence[tuple[Path, bytes, Any, list[str]]]) -> Iterator[str]:
    """Take cells of the sweep that are stored in tables alone, as those whose own file is damaged, from there."""
    missing = {cell.cell_id for cell in sweep.cells} - store.finished().keys()
    for path, _, table, _ in tables:
        there = {cell_id: rows for cell_id, rows in by_cell(table).items() if cell_id in missing}
        for cell_id, rows in there.items():
            store.adopt(cell_id, rows)
        if there:
            yield f"{number(len(there))} taken from {path.name}, where their rows are intact"


class _Found:
    """What lies in the folder of a sweep. damaged: how many files. checkpoints: those that are."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep, self.folder, self.store = sweep, folder, Store(folder)
        self.places = (folder, self.store.cells, folder / FOLDER, folder / RETIRED)
        self.scanned = self.store.scan()
        self.damaged = 0
        self.checkpoints: list[Path] = []

    def lines(self) -> Iterator[str]:
        """What there is, in words; counts what is damaged."""
        yield from self._cells()
        yield from self._tables()
        yield from self._checkpoints()
        strays = [stray for place in self.places for stray in place.glob(f"{HALF}*.tmp")]
        if strays:
            yield f"half written, by a run that was killed or one at work: {number(len(strays), 'file')}"
        owner = origin(self.folder)
        if owner not in ("", self.sweep.origin):
            yield f"foreign: {self.folder} belongs to another file called {self.sweep.name}"

    def _cells(self) -> Iterator[str]:
        ours = {cell.cell_id for cell in self.sweep.cells}
        intact = [stored for stored in self.scanned.values() if isinstance(stored, Stored)]
        here = [stored for stored in intact if stored.cell_id in ours]
        stored = {each.cell_id for each in here}
        yield f"cells: {len(stored)} of {len(ours)} stored and intact in {self.store.cells}"
        for error in (each for each in self.scanned.values() if isinstance(each, DamagedError)):
            self.damaged += 1
            yield f"damaged: {error}"
        if len(here) > len(stored):
            yield f"superseded: {number(len(here) - len(stored), 'shard')} of cells that were run again"
        if foreign := {each.cell_id for each in intact} - ours:
            yield f"foreign: {number(len(foreign), 'cell')} not in {self.sweep.path}"
        if aged := sum(each.source_hash != source_hash() for each in here):
            yield f"of other sources than today's: {number(aged)}"
        machines = Counter(str(each.last_row.get("device_name") or "unknown") for each in here)
        if len(machines) > 1:
            yield f"of {len(machines)} machines: " + "; ".join(f"{name}: {count}" for name, count in machines.items())

    def _tables(self) -> Iterator[str]:
        wrong: list[str] = []

        def damaged(_: Path, error: DamagedError) -> None:
            wrong.append(f"damaged: {error}")

        finished = {stored.cell_id for stored in self.scanned.values() if isinstance(stored, Stored)}
        for path, _, table, lines in stored_tables(self.folder, damaged):
            names = set(table["cell_id"].to_pylist())
            yield f"{path.name}: {number(len(names))} intact"
            wrong += [f"damaged: {path}: {line}" for line in lines]
            kind = path.stem
            behind = {cell.cell_id for cell in self.sweep.cells if cell.kind == kind} & finished - names
            if behind:
                yield f"{path.name}: {number(len(behind))} behind the cells: the next run writes it"
        self.damaged += len(wrong)
        yield from wrong
        lone = [kind for kind in COLUMNS if (self.folder / f"{kind}.parquet.sha256").exists()]
        for kind in (kind for kind in lone if not (self.folder / f"{kind}.parquet").exists()):
            yield f"{kind}.parquet.sha256 is there without its table"

    def _checkpoints(self) -> Iterator[str]:
        paths = sorted(Checkpoints(self.folder / FOLDER).folder.glob("*.pt"))
        self.checkpoints = [path for path in paths if not whole(path)]
        self.damaged += len(self.checkpoints)
        if paths:
            yield f"checkpoints: {len(paths) - len(self.checkpoints)} of {len(paths)} intact"
        for path in self.checkpoints:
            yield f"damaged: {path}: its sha256 is not the one at its beginning"
