"""Tables that are rewritten whole after every cell: few files, for a machine that brings few back.

    <folder>/gemm.parquet, gemm.parquet.sha256, ...   every finished cell, in the order of the sweep
    damaged/                                          tables that were not what was written

A kill at any moment leaves the tables before or after a cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from bench.cells import Cell
from bench.storing.parquet import (
    DamagedError,
    Moment,
    Row,
    free_name,
    moment,
    publish,
    publish_table,
    set_table_aside,
)
from bench.storing.validation import by_cell, new_table, stored_tables


class Tables:
    """The finished cells of one folder, by cell_id; `order` first, others that are stored after them."""

    def __init__(self, folder: str | PathLike[str], order: Iterable[Cell]) -> None:
        self.folder = Path(folder)
        self.damaged = self.folder / "damaged"
        self.places = {cell.cell_id: place for place, cell in enumerate(order)}
        self.tables: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}
        self.dropped: set[str] = set()
        self.seen: dict[str, Moment] = {}  # what was there of its own tables when they were last read or written

    def load(self, folder: str | PathLike[str] | None = None) -> list[str]:
        """Take up what is stored in `folder` (default: its own); a line for everything that is damaged, and left out.

        Of its own folder what is damaged is moved aside, so that nothing is written over it; another's stays as it is.
        NewerError where a newer version of the suite has stored something.
        """
        lines: list[str] = []

        def damaged(path: Path, error: DamagedError) -> None:
            lines.append(f"{error}; {self._put_away(path, own=folder is None)}; its cells run again")

        for path, data, table, wrong in stored_tables(Path(folder or self.folder), damaged):
            if folder is None:
                self.seen[path.stem] = moment(path)
            for cell_id, rows in by_cell(table).items():
                self.tables[cell_id], self.kinds[cell_id] = rows, path.stem
            if wrong:
                more = f" and {len(wrong) - 1} more cells" if len(wrong) > 1 else ""
                where = self._put_away(path, own=folder is None, data=data)
                lines.append(f"{path} is damaged: {wrong[0]}{more}; {where}; the others are kept")
        return lines

    def _put_away(self, path: Path, own: bool, data: bytes | None = None) -> str:
        """Keep a damaged table where nothing is written over it, and say where; data: of one with intact cells."""
        if not own:
            return "it stays there"
        if data is not None and path.stem in self.kinds.values():
            self.damaged.mkdir(parents=True, exist_ok=True)
            place = free_name(path, self.damaged)
            publish(place, data)
            self.write(path.stem)
            return f"kept as {place}"
        return f"moved to {set_table_aside(path, self.damaged)}"

    def put(self, cell: Cell, rows: Sequence[Row], provenance: Row) -> None:
        """Publish the rows of one finished cell, replacing earlier ones. ValueError as `new_table`."""
        self.tables[cell.cell_id] = new_table(cell, rows, provenance)
        self.kinds[cell.cell_id] = cell.kind
        self.write(cell.kind)

    def write(self, kind: str) -> None:
        """Publish one table as it is now; without a cell there is none.

        What a run beside this one, that could not be seen, has stored there meanwhile stays.
        """
        path = self.folder / f"{kind}.parquet"
        if moment(path) not in (None, self.seen.get(kind)):
            self._join(Tables(self.folder, ()), kind)
        ids = [cell_id for cell_id in self.tables if self.kinds[cell_id] == kind]
        ids.sort(key=lambda cell_id: self.places.get(cell_id, len(self.places)))
        publish_table(path, [self.tables[cell_id] for cell_id in ids], self.damaged)
        self.seen[kind] = moment(path)

    def _join(self, others: Tables, kind: str) -> None:
        """Take up the cells that are stored under `others` and unknown here."""
        others.load(self.folder)
        for cell_id, stored in others.kinds.items():
            if stored == kind and cell_id not in self.tables and cell_id not in self.dropped:
                self.take(cell_id, others)

    def take(self, cell_id: str, other: Tables) -> None:
        """Take over the rows of one cell from other tables; `write` publishes them."""
        self.tables[cell_id], self.kinds[cell_id] = other.tables[cell_id], other.kinds[cell_id]

    def drop(self, cell_id: str) -> None:
        """Leave out a cell; `write` publishes the table without it."""
        del self.tables[cell_id], self.kinds[cell_id]
        self.dropped.add(cell_id)

    def rows(self, cell: Cell) -> list[dict[str, Any]]:
        """What is stored of a cell; nothing where it is not finished."""
        table = self.tables.get(cell.cell_id)
        return [] if table is None else list(table.to_pylist())
