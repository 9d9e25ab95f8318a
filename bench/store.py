"""The store: results/<sweep>/ on disk. A finished cell is never lost, never half there, never silently damaged.

    cells/<cell_id>-<sha256 of the bytes, 16 digits>.parquet   one file (a shard) per finished cell
    damaged/                                                   shards that are not what was written, and tables likewise
    replaced/                                                  tables with rows of cells without a shard: a campaign's
    .checkpoints/                                              cells that train, half done (`bench.training.checkpoint`)
    gemm.parquet, gemm.parquet.sha256, lstm.parquet, ...       every finished cell of the sweep, and its checksum

Parquet readers do not notice a flipped bit, hence the checksums; a name holds its file's, so that both appear at once.
Files are written under a hidden name, flushed to the disk and renamed: a kill or a full disk leaves the old state.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa

from bench.cells import Cell, number
from bench.schema import COLUMNS
from bench.storing.parquet import (
    DamagedError,
    Moment,
    Row,
    free_name,
    from_parquet,
    moment,
    publish,
    publish_table,
    read_table,
    regular,
    set_aside,
    set_table_aside,
    to_parquet,
)
from bench.storing.validation import new_table, shard_table, short_sum, stored_tables

SHARD = re.compile(r"(?P<cell_id>[0-9a-f]+)-(?P<sha>[0-9a-f]{16})\.parquet")


class LockedError(RuntimeError):
    """Another run uses the folder."""


@contextmanager
def locked(folder: Path, hint: str = "") -> Iterator[None]:
    """Hold a folder, made where it is missing, for one run. LockedError at once, with `hint`, where another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise LockedError(f"{folder} is in use by another run{hint}") from None
    try:
        yield
    finally:
        lock.release()


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
        self.folder = folder = Path(folder)
        self.cells, self.damaged, self.replaced = folder / "cells", folder / "damaged", folder / "replaced"
        # Shards that were read or written, while they stay the same.
        self._known: dict[Path, tuple[Moment, Stored]] = {}

    @contextmanager
    def lock(self) -> Iterator[list[str]]:
        """Hold the folder for one run; yields a line for everything that had to be put right. Makes the folder.

        LockedError at once where another run holds it; NewerError where a newer version of the suite has left cells in
        it; OSError where the folder cannot be written, or a file in it cannot be read.
        """
        self.cells.mkdir(parents=True, exist_ok=True)
        with locked(self.folder, "; wait for it, or choose another --results"):
            yield self._put_right()

    def _put_right(self) -> list[str]:
        for folder in (self.folder, self.cells):
            for stray in folder.glob(".*.tmp"):
                if not stray.is_dir():
                    stray.unlink()
        scanned = self._scan()
        newest = _newest(scanned)
        lines = []
        for path, stored in scanned.items():
            if isinstance(stored, DamagedError):
                lines.append(f"{stored}; moved to {set_aside(path, self.damaged)}, its cell runs again")
            elif newest[stored.cell_id] is not stored:
                path.unlink()  # a retry was killed between storing the new rows and removing these
        return lines + self._put_tables_right(newest.keys())

    def _put_tables_right(self, stored: Set[str]) -> list[str]:
        """Tables are written anew when a run ends: what they alone hold is kept before, where nothing replaces it."""
        lines: list[str] = []

        def damaged(path: Path, error: DamagedError) -> None:
            lines.append(f"{error}; moved to {set_table_aside(path, self.damaged)}, it is written anew")

        for path, data, table, _ in stored_tables(self.folder, damaged):
            alone = set(table["cell_id"].to_pylist()) - stored
            if alone:
                self.replaced.mkdir(exist_ok=True)
                publish(place := free_name(path, self.replaced), data)
                lines.append(f"{path} has rows of {number(len(alone))} not in {self.cells}: kept as {place}")
        return lines

    def finished(self) -> dict[str, Stored]:
        """What is stored and intact, by cell_id; of two shards of a cell the one started last. Changes nothing.

        NewerError where a newer version of the suite has stored some of it; OSError where the folder cannot be read.
        """
        return _newest(self._scan())

    def _scan(self) -> dict[Path, Stored | DamagedError]:
        found: dict[Path, Stored | DamagedError] = {}
        try:
            paths = sorted(self.cells.iterdir())  # unlike a glob, which finds nothing where it may not look
        except FileNotFoundError:
            return found
        for path in (path for path in paths if path.suffix == ".parquet"):
            seen, known = moment(path), self._known.get(path)
            if known and known[0] == seen:
                found[path] = known[1]
                continue
            try:
                found[path] = stored = _stored(_read_table(path), path)
                self._known[path] = seen, stored
            except DamagedError as error:
                if os.path.lexists(path):  # else replaced by a run beside this one
                    found[path] = error
        return found

    def put(self, cell: Cell, rows: Sequence[Row], provenance: Row) -> Path:
        """Publish the rows of one finished cell, replacing an earlier shard of it.

        ValueError naming the column where a row does not fit the table, or says what cannot be; OSError leaves
        everything as it was.
        """
        table = new_table(cell, rows, provenance)
        data = to_parquet(table)
        path = self.cells / f"{cell.cell_id}-{short_sum(data)}.parquet"
        publish(path, data)
        self._known[path] = moment(path), _stored(table, path)
        for old in self.cells.glob(f"{cell.cell_id}-*.parquet"):
            if old != path:
                old.unlink()
        return path

    def compact(self, cells: Sequence[Cell]) -> None:
        """Write one parquet per table with the finished ones of `cells`, in their order, and its checksum."""
        finished = self.finished()
        for kind in COLUMNS:
            paths = [finished[c.cell_id].path for c in cells if c.kind == kind and c.cell_id in finished]
            publish_table(self.folder / f"{kind}.parquet", list(self._tables(paths)), self.damaged)

    def _tables(self, paths: Iterable[Path]) -> Iterator[pa.Table]:
        """The rows of shards; one that was damaged since it was seen is left out, and no more known."""
        for path in paths:
            try:
                yield _read_table(path)
            except DamagedError:
                self._known.pop(path, None)

    def read(self, kind: str) -> pa.Table:
        """One compacted table, verified. DamagedError where it is missing or damaged."""
        try:
            return from_parquet(read_table(self.folder / f"{kind}.parquet"))
        except DamagedError as error:
            raise DamagedError(f"{error}; run the sweep {self.folder.name} again: finished cells are kept") from None


def _newest(scanned: Mapping[Path, Stored | DamagedError]) -> dict[str, Stored]:
    whole = [stored for stored in scanned.values() if isinstance(stored, Stored)]
    return {stored.cell_id: stored for stored in sorted(whole, key=lambda stored: stored.started_at)}


def _read_table(path: Path) -> pa.Table:
    """The rows of a shard whose bytes have the sha256 in its name, under today's schema. DamagedError otherwise."""
    match, data = SHARD.fullmatch(path.name), regular(path)
    if match is None or short_sum(data) != match["sha"]:
        raise DamagedError(f"{path} is damaged: its sha256 is not the one in its name")
    return shard_table(data, match["cell_id"], path)


def _stored(table: pa.Table, path: Path) -> Stored:
    rows = table.select([field.name for field in table.schema if not pa.types.is_list(field.type)]).to_pylist()
    worst = next((row for row in rows if row["status"] != "ok"), rows[-1])
    names = ("cell_id", "status", "reason", "cell_seconds", "started_at", "source_hash")
    return Stored(path=path, last_row=rows[-1], **{name: worst[name] for name in names})
