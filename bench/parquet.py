"""Rows as parquet: typed by the schema, brought up to today's, and published whole or not at all.

Parquet readers do not notice a flipped bit, hence the checksums of those that call this.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.cells import KINDS, Cell
from bench.schema import SCHEMA_VERSION, STATUSES, columns

Row = Mapping[str, Any]

SETTING_TYPES = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


class DamagedError(ValueError):
    """A file of the store is missing or not what was written."""


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


def to_table(cell: Cell, rows: Sequence[Row], provenance: Row) -> pa.Table:
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


def conform(table: pa.Table, kind: str, path: Path) -> pa.Table:
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


def to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def from_parquet(data: bytes) -> pa.Table:
    """Without threads: after `pq.read_table` some processes abort while they exit (pyarrow 26, 1 in 30 on two cores)."""
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def checksum_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def publish(path: Path, data: bytes) -> None:
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


def concatenated(tables: Iterable[pa.Table]) -> pa.Table:
    """The rows of several tables of one schema."""
    return pa.concat_tables(list(tables))


def checksum_line(path: Path, data: bytes) -> str:
    """A line of the checksum file of `path`, as sha256sum writes it."""
    return f"{hashlib.sha256(data).hexdigest()}  {path.name}\n"
