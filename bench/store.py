"""The store: results/<sweep>/ on disk. A finished cell is never lost, never half there, never silently damaged.

    cells/<cell_id>-<sha256 of the bytes, 16 digits>.parquet   one file (a shard) per finished cell
    damaged/                                                   shards whose bytes no longer have the sha256 in their name
    .checkpoints/                                              cells that train, half done (`bench.checkpoint`)
    gemm.parquet, gemm.parquet.sha256, lstm.parquet, ...       every finished cell of the sweep, and its checksum

Parquet readers do not notice a flipped bit, hence the checksums; a name holds its file's, so that both appear at once.
Files are written under a hidden name, flushed to the disk and renamed: a kill or a full disk leaves the old state.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa

from bench.cells import Cell
from bench.parquet import (
    DamagedError,
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

SHARD = re.compile(r"(?P<cell_id>[0-9a-f]+)-(?P<sha>[0-9a-f]{16})\.parquet")


class LockedError(RuntimeError):
    """Another run uses the folder."""


@dataclass(frozen=True)
class Stored:
    """A finished cell: how it ended (the worst status of its rows), how long it took, what code made it."""

    cell_id: str
    path: Path
    status: str
    reason: str
    cell_seconds: float
    started_at: str
    source_hash: str
    last_row: dict[str, Any]


class Store:
    """One folder of results."""

    def __init__(self, folder: str | PathLike[str]) -> None:
        folder = Path(folder)
        self.folder, self.cells, self.damaged = folder, folder / "cells", folder / "damaged"

    @contextmanager
    def lock(self) -> Iterator[list[str]]:
        """Hold the folder for one run; yields a line for everything that had to be put right. Makes the folder.

        LockedError at once where another run holds it; OSError where the folder cannot be written.
        """
        self.cells.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise LockedError(
                f"{self.folder} is in use by another run; wait for it, or choose another --results"
            ) from None
        try:
            yield self._put_right()
        finally:
            lock.release()

    def _put_right(self) -> list[str]:
        for folder in (self.folder, self.cells):
            for stray in folder.glob(".*.tmp"):
                stray.unlink()
        scanned = self._scan()
        newest = _newest(scanned)
        lines = []
        for path, stored in scanned.items():
            if isinstance(stored, DamagedError):
                self.damaged.mkdir(exist_ok=True)
                path.rename(self.damaged / path.name)
                lines.append(f"{stored}; moved to {self.damaged}, its cell runs again")
            elif newest[stored.cell_id] is not stored:
                path.unlink()  # a retry was killed between storing the new rows and removing these
        return lines

    def finished(self) -> dict[str, Stored]:
        """What is stored and intact, by cell_id; of two shards of a cell the one started last. Changes nothing."""
        return _newest(self._scan())

    def _scan(self) -> dict[Path, Stored | DamagedError]:
        found: dict[Path, Stored | DamagedError] = {}
        for path in sorted(self.cells.glob("*.parquet")):
            try:
                found[path] = _read_shard(path)
            except DamagedError as error:
                found[path] = error
        return found

    def put(self, cell: Cell, rows: Sequence[Row], provenance: Row) -> Path:
        """Publish the rows of one finished cell, replacing an earlier shard of it.

        ValueError naming the column where a row does not fit the table; OSError leaves everything as it was.
        """
        data = to_parquet(to_table(cell, rows, provenance))
        path = self.cells / f"{cell.cell_id}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        publish(path, data)
        for old in self.cells.glob(f"{cell.cell_id}-*.parquet"):
            if old != path:
                old.unlink()
        return path

    def compact(self, cells: Sequence[Cell]) -> None:
        """Write one parquet per table with the finished ones of `cells`, in their order, and its checksum."""
        finished = self.finished()
        for kind in COLUMNS:
            paths = [finished[c.cell_id].path for c in cells if c.kind == kind and c.cell_id in finished]
            target = self.folder / f"{kind}.parquet"
            if not paths:
                target.unlink(missing_ok=True)
                checksum_of(target).unlink(missing_ok=True)
                continue
            data = to_parquet(concatenated([conform(_verified(path), kind, path) for path in paths]))
            publish(target, data)
            publish(checksum_of(target), checksum_line(target, data).encode())

    def read(self, kind: str) -> pa.Table:
        """One compacted table, verified. DamagedError where it is missing or damaged."""
        target = self.folder / f"{kind}.parquet"
        remedy = f"run the sweep {self.folder.name} again: finished cells are kept"
        try:
            data, wanted = target.read_bytes(), checksum_of(target).read_bytes()
        except FileNotFoundError as error:
            raise DamagedError(f"{error.filename} is missing; {remedy}") from None
        if checksum_line(target, data).encode() != wanted:
            raise DamagedError(f"{target} is damaged: its sha256 is not that of {checksum_of(target).name}; {remedy}")
        return from_parquet(data)


def _newest(scanned: Mapping[Path, Stored | DamagedError]) -> dict[str, Stored]:
    whole = [stored for stored in scanned.values() if isinstance(stored, Stored)]
    return {stored.cell_id: stored for stored in sorted(whole, key=lambda stored: stored.started_at)}


def _verified(path: Path) -> pa.Table:
    """The table of a shard whose bytes have the sha256 in its name. DamagedError otherwise."""
    match = SHARD.fullmatch(path.name)
    data = path.read_bytes()
    if match is None or hashlib.sha256(data).hexdigest()[:16] != match["sha"]:
        raise DamagedError(f"{path} is damaged: its sha256 is not the one in its name")
    return from_parquet(data)


def _read_shard(path: Path) -> Stored:
    table = _verified(path)
    rows = table.select([field.name for field in table.schema if not pa.types.is_list(field.type)]).to_pylist()
    worst = next((row for row in rows if row["status"] != "ok"), rows[-1])
    names = ("cell_id", "status", "reason", "cell_seconds", "started_at", "source_hash")
    values = {name: worst.get(name) for name in names}
    return Stored(path=path, last_row=rows[-1], **values)
