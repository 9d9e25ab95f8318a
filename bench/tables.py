"""Tables that are rewritten whole after every cell: few files, for a machine that brings few back.

    <folder>/gemm.parquet, gemm.parquet.sha256, ...   every finished cell, in the order of the sweep

A kill at any moment leaves the tables before or after a cell: the checksum file names the new bytes beside the old ones
until the table has taken its place, so that one of its lines is always right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from bench.cells import Cell
from bench.parquet import (
    Row,
    checksum_line,
    checksum_of,
    concatenated,
    conform,
    from_parquet,
    publish,
    to_parquet,
    to_table,
)
from bench.schema import COLUMNS


class Tables:
    """The finished cells of one folder, by cell_id; `order` first, others that are stored after them."""

    def __init__(self, folder: str | PathLike[str], order: Iterable[Cell]) -> None:
        self.folder, self.places = Path(folder), {cell.cell_id: place for place, cell in enumerate(order)}
        self.tables: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}

    def load(self, folder: str | PathLike[str] | None = None) -> list[str]:
        """Take up what is stored in `folder` (default: its own); a line for every file that is damaged, and left out."""
        lines = []
        for kind in COLUMNS:
            path = Path(folder or self.folder) / f"{kind}.parquet"
            if not path.is_file():
                continue
            data, accepted = path.read_bytes(), []
            with suppress(OSError):
                accepted = checksum_of(path).read_text().splitlines(keepends=True)
            if checksum_line(path, data) not in accepted:
                lines.append(f"{path} is damaged: its sha256 is not the one beside it; its cells run again")
                continue
            table = conform(from_parquet(data), kind, path)
            names = table["cell_id"].to_pylist()
            for cell_id in dict.fromkeys(names):
                rows = [place for place, name in enumerate(names) if name == cell_id]
                self.tables[cell_id], self.kinds[cell_id] = table.take(rows), kind
        return lines

    def put(self, cell: Cell, rows: Sequence[Row], provenance: Row) -> None:
        """Publish the rows of one finished cell, replacing earlier ones. ValueError where a row does not fit the table."""
        self.tables[cell.cell_id] = to_table(cell, rows, provenance)
        self.kinds[cell.cell_id] = cell.kind
        self.write(cell.kind)

    def write(self, kind: str) -> None:
        """Publish one table as it is now."""
        ids = [cell_id for cell_id in self.tables if self.kinds[cell_id] == kind]
        ids.sort(key=lambda cell_id: self.places.get(cell_id, len(self.places)))
        if not ids:
            return
        data = to_parquet(concatenated(self.tables[cell_id] for cell_id in ids))
        path = self.folder / f"{kind}.parquet"
        self.folder.mkdir(parents=True, exist_ok=True)
        before, line = "", checksum_line(path, data)
        if path.is_file():
            before = checksum_line(path, path.read_bytes())
        publish(checksum_of(path), (line + before).encode())
        publish(path, data)
        publish(checksum_of(path), line.encode())

    def share(self, cell: Cell, other: Tables) -> None:
        """Take over the rows of one cell from other tables; `write` publishes them."""
        self.tables[cell.cell_id], self.kinds[cell.cell_id] = other.tables[cell.cell_id], cell.kind

    def rows(self, cell: Cell) -> list[dict[str, Any]]:
        """What is stored of a cell; nothing where it is not finished."""
        table = self.tables.get(cell.cell_id)
        return [] if table is None else list(table.to_pylist())
