"""The store: results/<sweep>/ on disk. A finished cell is never lost, never half there, never silently damaged.

    cells/<cell_id>-<sha256 of the bytes, 16 digits>.parquet   one file (a shard) per finished cell
    damaged/                                                   shards whose bytes no longer have the sha256 in their name
    gemm.parquet, gemm.parquet.sha256, lstm.parquet, ...       every finished cell of the sweep, and its checksum

Parquet readers do not notice a flipped bit, hence the checksums; a name holds its file's, so that both appear at once.
Files are written under a hidden name, flushed to the disk and renamed: a kill or a full disk leaves the old state.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq

from bench.cells import KINDS, Cell
from bench.schema import COLUMNS, SCHEMA_VERSION, STATUSES, columns

Row = Mapping[str, Any]

SHARD = re.compile(r"(?P<cell_id>[0-9a-f]+)-(?P<sha>[0-9a-f]{16})\.parquet")
SETTING_TYPES = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


class DamagedError(ValueError):
    """A file of the store is missing or not what was written."""


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


def arrow_schema(kind: str) -> pa.Schema:
    """The columns of one table: identity, settings, results and measurements, provenance; documented in the metadata."""
    fields = []
    described = [(column.name, column.type, column.role, column.unit, column.doc) for column in columns(kind)]
    settings = [
        (
            name,
            SETTING_TYPES.get(getattr(field.annotation, "__name__", ""), pa.string()),
            "setting",
            "",
            field.description,
        )
        for name, field in KINDS[kind].model_fields.items()
    ]
    for name, type_, role, unit, doc in [*described[:2], *settings, *described[2:]]:
        fields.append(pa.field(name, type_, metadata={"role": role, "unit": unit, "doc": doc or ""}))
    return pa.schema(fields)


class Store:
    """One folder of results."""

    def __init__(self, folder: Path) -> None:
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
        data = _to_parquet(_to_table(cell, rows, provenance))
        path = self.cells / f"{cell.cell_id}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        _publish(path, data)
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
                _checksum_of(target).unlink(missing_ok=True)
                continue
            data = _to_parquet(pa.concat_tables([_conform(_verified(path), kind, path) for path in paths]))
            _publish(target, data)
            _publish(_checksum_of(target), f"{hashlib.sha256(data).hexdigest()}  {target.name}\n".encode())

    def read(self, kind: str) -> pa.Table:
        """One compacted table, verified. DamagedError where it is missing or damaged."""
        target = self.folder / f"{kind}.parquet"
        remedy = f"run the sweep {self.folder.name} again: finished cells are kept"
        try:
            data, wanted = target.read_bytes(), _checksum_of(target).read_bytes()
        except FileNotFoundError as error:
            raise DamagedError(f"{error.filename} is missing; {remedy}") from None
        if f"{hashlib.sha256(data).hexdigest()}  {target.name}\n".encode() != wanted:
            raise DamagedError(f"{target} is damaged: its sha256 is not that of {_checksum_of(target).name}; {remedy}")
        return _from_parquet(data)


def _newest(scanned: Mapping[Path, Stored | DamagedError]) -> dict[str, Stored]:
    whole = [stored for stored in scanned.values() if isinstance(stored, Stored)]
    return {stored.cell_id: stored for stored in sorted(whole, key=lambda stored: stored.started_at)}


def _to_table(cell: Cell, rows: Sequence[Row], provenance: Row) -> pa.Table:
    if not rows:
        raise ValueError("a cell needs at least one row")
    schema = arrow_schema(cell.kind)
    identity = {"cell_id": cell.cell_id, "kind": cell.kind, "schema_version": SCHEMA_VERSION}
    shared = {**identity, **cell.canonical().model_dump(), **provenance}
    full: list[Row] = [{**shared, **row} for row in sorted(rows, key=_epoch_order)]
    for row in full:
        for name in row:
            if name not in schema.names:
                raise ValueError(f"unknown column {name!r} in a {cell.kind} row; accepted: {', '.join(schema.names)}")
        if row.get("status") not in STATUSES:
            raise ValueError(f"unknown status {row.get('status')!r}; accepted: {', '.join(STATUSES)}")
    arrays = []
    for field in schema:
        try:
            arrays.append(pa.array([row.get(field.name) for row in full], field.type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"column {field.name!r} of a {cell.kind} row is no {field.type}: {error}") from None
    return pa.Table.from_arrays(arrays, schema=schema)


def _epoch_order(row: Row) -> tuple[bool, int]:
    epoch = row.get("epoch")
    return epoch is None, epoch or 0


def _conform(table: pa.Table, kind: str, path: Path) -> pa.Table:
    """A shard under today's schema: a setting it lacks had its default, a result it lacks is null."""
    schema, fields = arrow_schema(kind), KINDS[kind].model_fields
    foreign = sorted(set(table.column_names) - set(schema.names))
    if foreign:
        raise DamagedError(f"{path} has columns this version does not know: {', '.join(foreign)}")
    arrays = []
    for field in schema:
        if field.name in table.column_names:
            arrays.append(table[field.name].cast(field.type))
        else:
            default = fields[field.name].get_default() if field.name in fields else None
            arrays.append(pa.array([default] * len(table), field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _verified(path: Path) -> pa.Table:
    """The table of a shard whose bytes have the sha256 in its name. DamagedError otherwise."""
    match = SHARD.fullmatch(path.name)
    data = path.read_bytes()
    if match is None or hashlib.sha256(data).hexdigest()[:16] != match["sha"]:
        raise DamagedError(f"{path} is damaged: its sha256 is not the one in its name")
    return _from_parquet(data)


def _read_shard(path: Path) -> Stored:
    table = _verified(path)
    rows = table.select([field.name for field in table.schema if not pa.types.is_list(field.type)]).to_pylist()
    worst = next((row for row in rows if row["status"] != "ok"), rows[-1])
    names = ("cell_id", "status", "reason", "cell_seconds", "started_at", "source_hash")
    values = {name: worst.get(name) for name in names}
    return Stored(path=path, last_row=rows[-1], **values)


def _to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _from_parquet(data: bytes) -> pa.Table:
    """Without threads: after `pq.read_table` some processes abort while they exit (pyarrow 26, 1 in 30 on two cores)."""
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def _checksum_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _publish(path: Path, data: bytes) -> None:
    """All of `data` under `path`, or nothing: hidden temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
