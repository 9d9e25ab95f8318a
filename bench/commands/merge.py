"""Merge what was measured of a sweep in several folders, as on several machines, into one.

Each cell is checked as at every reading. Of two results of a cell the one that is ok stays, else the later one; where
two runs of one training cell say different results, a line tells it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.cells import number
from bench.engines.origin import claim, require_own
from bench.run import UnusableError, is_timing
from bench.schema import columns
from bench.store import Store, Stored
from bench.storing.mirror import fetched, is_url
from bench.storing.parquet import DamagedError
from bench.storing.validation import by_cell, stored_tables
from bench.sweep import Sweep

LISTED = 20  # cells whose results differ, named

Say = Callable[[str], None]


def folder_of(source: Path, sweep: Sweep) -> Path:
    """Where a sweep lies in a folder of results, or that folder itself. UnusableError where there is nothing of it."""
    for folder in (source / sweep.name, source):
        if (folder / "cells").is_dir() or any(folder.glob("*.parquet")):
            return folder
    raise UnusableError(f"{source} holds nothing of {sweep.name}: neither cells nor tables")


def merge(
    sweep: Sweep, sources: Sequence[str | Path], results: Path, mix_machines: bool = False, say: Say = print
) -> int:
    """Take what `sources` have of `sweep` into its folder in `results`; 1 where something is damaged or differs.

    sources: folders of results, or URLs that a run was mirrored to; they stay as they are. UnusableError where timings
    of two machines would stand in one table, unless `mix_machines`, or a source has nothing of the sweep; LockedError,
    OSError where the environment is at fault.
    """
    with ExitStack() as stack:
        here = [
            stack.enter_context(fetched(str(source), sweep.name)) if is_url(str(source)) else Path(source)
            for source in sources
        ]
        folders = [folder_of(each, sweep) for each in here]
        return _merge(sweep, dict(zip(map(str, sources), folders, strict=True)), results, mix_machines, say)


def _merge(sweep: Sweep, folders: dict[str, Path], results: Path, mix_machines: bool, say: Say) -> int:
    store = Store(results / sweep.name)
    with store.lock() as repairs:
        for line in repairs:
            say(line)
        finished = store.finished()
        require_own(sweep, store.folder, finished.keys(), "--results")
        claim(store.folder, sweep)
        found = _Merged(sweep, finished, say)
        for source, folder in folders.items():
            found.read(folder, source)
        if not mix_machines:
            found.require_one_machine()
        for cell_id, table in found.taken.items():
            store.adopt(cell_id, table)
        store.compact(sweep.cells)
        stored = store.finished().keys() & found.cells.keys()
    say(f"{len(stored)} of {number(len(sweep.cells))} stored in {store.folder}: {len(found.taken)} taken over")
    if missing := len(sweep.cells) - len(stored):
        command = shlex.join(["python", "-m", "bench", "run", sweep.named, *sweep.altered, "--results", str(results)])
        say(f"{number(missing)} missing: {command} runs what is")
    return 1 if found.wrong else 0


class _Merged:
    """The best of each cell. taken: rows from a source, of cells where that is better than what was there."""

    def __init__(self, sweep: Sweep, finished: dict[str, Stored], say: Say) -> None:
        self.cells, self.say = {cell.cell_id: cell for cell in sweep.cells}, say
        self.finished = {cell_id: stored for cell_id, stored in finished.items() if cell_id in self.cells}
        self.taken: dict[str, Any] = {}
        self.wrong = 0
        self.results: dict[str, Any] = {}

    def read(self, folder: Path, source: str) -> None:
        """Take over what a folder has better. source: how its user calls it."""
        better, foreign = 0, 0
        for stored, table in self._cells(folder):
            cell_id = stored.cell_id
            if cell_id not in self.cells:
                foreign += 1
                continue
            here = self.finished.get(cell_id)
            if here is not None and here.status == stored.status == "ok" and self.cells[cell_id].trains:
                self._compare(here, stored, table)
            if here is None or _rank(stored) > _rank(here):
                self.finished[cell_id], self.taken[cell_id] = stored, table
                better += 1
        more = f"; {number(foreign, 'cell')} of no such sweep left there" if foreign else ""
        self.say(f"{source}: {number(better)} taken over{more}")

    def _cells(self, folder: Path) -> Iterator[tuple[Stored, Any]]:
        """The intact cells of a folder: of its shards, and of tables where those have more."""
        store, seen = Store(folder), set()
        for path, stored in store.scan().items():
            if isinstance(stored, DamagedError):
                self._tell(f"{stored}; left there")
            else:
                seen.add(stored.cell_id)
                yield stored, store.table(path)
        for path, _, table, lines in stored_tables(folder, lambda _, error: self._tell(f"{error}; left there")):
            for line in lines:
                self._tell(f"{path} is damaged: {line}; left there")
            for cell_id, rows in by_cell(table).items():
                if cell_id not in seen:
                    yield store.stored(rows, path), rows

    def _compare(self, here: Stored, other: Stored, table: Any) -> None:
        """Say where two runs of one cell have different results; they may, with other sources or on another machine."""
        mine = self.taken.get(here.cell_id)
        rows = [mine if mine is not None else Store(here.path.parents[1]).table(here.path), table]
        names = [column.name for column in columns(self.cells[here.cell_id].kind) if column.role == "result"]
        first, second = (each.select(names) for each in rows)
        if first.equals(second):
            return
        differ = [name for name in names if not first[name].equals(second[name])]
        alike = here.source_hash == other.source_hash and here.machine == other.machine
        why = "by the same sources on one machine" if alike else "by other sources or on another machine"
        self._tell(
            f"cell {here.cell_id} has two results, {why}: {', '.join(differ[:3])} differ; the later stays", alike
        )

    def _tell(self, line: str, is_wrong: bool = True) -> None:
        self.wrong += is_wrong
        self.say(line)

    def require_one_machine(self) -> None:
        """UnusableError where timings of several machines would stand in a table."""
        machines: dict[tuple[str, str], set[str]] = {}
        for cell_id, stored in self.finished.items():
            cell = self.cells[cell_id]
            if is_timing(cell) and stored.status == "ok" and stored.machine:
                name = f"{stored.last_row['device_name']}, torch {stored.last_row['torch']} ({stored.machine})"
                machines.setdefault((cell.kind, cell.device), set()).add(name)
        for (kind, device), names in machines.items():
            if len(names) > 1:
                raise UnusableError(
                    f"{kind} cells on {device} were timed on {len(names)} machines ({'; '.join(sorted(names))}): "
                    "timings of two do not compare; merge those of one, or --mix-machines"
                )


def _rank(stored: Stored) -> tuple[bool, str]:
    """Of two results of a cell the greater one stays."""
    return stored.status == "ok", stored.started_at
