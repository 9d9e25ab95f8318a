"""The one check of a table that is read back: that it can be read at all, that its columns are ours, and cell by cell.

What is wrong with a file is a `DamagedError`, what is wrong with some of its cells a line for each; the rest is intact.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.cells import KINDS, Cell, identity
from bench.schema import COLUMNS, SCHEMA_VERSION, STATUSES, arrow_schema
from bench.storing.parquet import DamagedError, Row, from_parquet, read_table, to_table
from bench.storing.rules import faults

KEYS = {"train": ("epoch",), "check": ("pattern", "n"), "tune": ("variant",)}  # what tells the rows of a cell apart
LISTED = 3


class NewerError(RuntimeError):
    """A file of the store was made by a newer version of the suite: it stays, and nothing is measured over it."""


def stored_tables(
    folder: Path, damaged: Callable[[Path, DamagedError], None]
) -> Iterator[tuple[Path, bytes, pa.Table, list[str]]]:
    """(path, bytes, intact cells, a line for every other) of each table in a folder.

    Of one that has no cells `damaged` is told. NewerError where a newer version of the suite has stored something.
    """
    for kind in COLUMNS:
        path = folder / f"{kind}.parquet"
        if not os.path.lexists(path):
            continue
        try:
            data = read_table(path)
            table, wrong = whole_table(data, kind, path)
        except DamagedError as error:
            damaged(path, error)
        else:
            yield path, data, table, wrong


def by_cell(table: pa.Table) -> dict[str, pa.Table]:
    """The rows of each cell of a table, in the order of their first ones."""
    places: dict[str, list[int]] = {}
    for place, cell_id in enumerate(table["cell_id"].to_pylist()):
        places.setdefault(cell_id, []).append(place)
    return {cell_id: table.take(rows) for cell_id, rows in places.items()}


def whole_table(data: bytes, kind: str, path: Path) -> tuple[pa.Table, list[str]]:
    """(the intact cells of a table under today's schema, a line for every other). DamagedError where there are none."""
    table = conform(parsed(data, path), kind, path)
    wrong = wrong_cells(table, kind)
    names = table["cell_id"].to_pylist()
    kept = table.filter(pa.array([name not in wrong for name in names], pa.bool_()))
    return kept, [f"cell {cell_id}: {line}" for cell_id, line in wrong.items()]


def shard_table(data: bytes, cell_id: str, path: Path) -> pa.Table:
    """The rows of one cell under today's schema. DamagedError where they are not exactly that."""
    table = parsed(data, path)
    require_version(table, path)
    require_type(table, "kind", pa.string(), path)
    kinds = set(table["kind"].to_pylist())
    if len(kinds) != 1 or not kinds <= COLUMNS.keys():
        raise DamagedError(f"{path} is damaged: kind is {_listed(kinds)}; accepted: one of {', '.join(COLUMNS)}")
    (kind,) = kinds
    table = conform(table, kind, path)
    found = set(table["cell_id"].to_pylist())
    if found != {cell_id}:
        raise DamagedError(f"{path} is damaged: cell_id is {_listed(found)}, not the one in its name")
    for line in wrong_cells(table, kind).values():
        raise DamagedError(f"{path} is damaged: {line}")
    return table


def new_table(cell: Cell, rows: Sequence[Row], provenance: Row) -> pa.Table:
    """The rows of a cell that has just ended, as they will be read back.

    ValueError naming the column where they do not fit the table, or say what cannot be.
    """
    table = to_table(cell, rows, provenance)
    for fault in faults(table, cell.kind):
        raise ValueError(f"{fault.column}: {fault.wrong}")
    return table


def parsed(data: bytes, path: Path) -> pa.Table:
    """The table in the bytes of a file. DamagedError where there is none, it has no rows, or a column twice."""
    try:
        table = from_parquet(data)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedError(f"{path} is damaged: it is no parquet table ({why})") from None
    if len(table) == 0:
        raise DamagedError(f"{path} is damaged: it has no rows")
    twice = [(name, times) for name, times in Counter(table.column_names).items() if times > 1]
    for name, times in twice:
        raise DamagedError(f"{path} is damaged: column {name} is there {times} times")
    return table


def require_version(table: pa.Table, path: Path) -> None:
    """NewerError where a newer version of the suite made `table`, DamagedError where none did."""
    require_type(table, "schema_version", pa.int64(), path)
    versions = set(table["schema_version"].to_pylist())
    if not all(version is not None and version >= 1 for version in versions):
        raise DamagedError(f"{path} is damaged: schema_version is {_listed(versions)}; accepted: 1 to {SCHEMA_VERSION}")
    if max(versions) > SCHEMA_VERSION:
        raise _newer(path, f"schema_version {max(versions)}, this one reads up to {SCHEMA_VERSION}")


def conform(table: pa.Table, kind: str, path: Path) -> pa.Table:
    """A table under today's schema: a setting it lacks had its default, a result it lacks is null.

    DamagedError where a column is of another type; NewerError where there are more columns than today's.
    """
    require_version(table, path)
    schema, fields = arrow_schema(kind), KINDS[kind].model_fields
    foreign = sorted({*table.column_names} - {*schema.names})
    unknown = [name for name in foreign if all(name not in arrow_schema(other).names for other in COLUMNS)]
    if unknown:
        raise _newer(path, f"columns this one does not know: {', '.join(unknown)}")
    if foreign:
        raise DamagedError(f"{path} is damaged: column {foreign[0]} is none of a {kind} table")
    arrays, there = [], dict(zip(table.column_names, table.columns, strict=True))
    for field in schema:
        column = there.get(field.name)
        if column is None:
            default = fields[field.name].get_default() if field.name in fields else None
            arrays.append(pa.array([default] * len(table), field.type))
        elif pa.types.is_null(column.type):
            arrays.append(pa.nulls(len(table), field.type))
        elif column.type == field.type:
            arrays.append(column)
        else:
            require_type(table, field.name, field.type, path)
            arrays.append(column.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def require_type(table: pa.Table, name: str, type_: pa.DataType, path: Path) -> None:
    """DamagedError where a column is missing or of another type."""
    if name not in table.column_names:
        raise DamagedError(f"{path} is damaged: it has no column {name}")
    if not _alike(table[name].type, type_):
        raise DamagedError(f"{path} is damaged: column {name} is {table[name].type}, not {type_}")


def _newer(path: Path, how: str) -> NewerError:
    return NewerError(
        f"{path}: made by a newer version of the suite ({how}); it is kept, and nothing was run: "
        "update the suite, or choose another folder"
    )


def _alike(stored: pa.DataType, wanted: pa.DataType) -> bool:
    """Equal but for the names that versions of parquet give the elements of lists."""
    if pa.types.is_list(stored) and pa.types.is_list(wanted):
        return _alike(stored.value_type, wanted.value_type)
    if pa.types.is_struct(stored) and pa.types.is_struct(wanted):
        ours, theirs = list(wanted), list(stored)
        return [field.name for field in ours] == [field.name for field in theirs] and all(
            _alike(theirs[place].type, field.type) for place, field in enumerate(ours)
        )
    return bool(stored == wanted)


def wrong_cells(table: pa.Table, kind: str) -> dict[str | None, str]:
    """What is wrong with a cell of a table, for every cell with which something is."""
    settings = list(KINDS[kind].model_fields)
    needed = ["cell_id", "kind", "status", "started_at", "cell_seconds", *settings, *KEYS.get(kind, ())]
    cells: dict[str | None, list[Row]] = {}
    for row in table.select(list(dict.fromkeys(needed))).to_pylist():
        cells.setdefault(row["cell_id"], []).append(row)
    found = {cell_id: _wrong(rows, kind, settings) for cell_id, rows in cells.items()}
    wrong = {cell_id: line for cell_id, line in found.items() if line}
    names = table["cell_id"].to_pylist()
    for fault in faults(table, kind):
        for row in fault.rows:
            wrong.setdefault(names[row], f"{fault.column}: {fault.wrong}")
    return wrong


def _wrong(rows: Sequence[Row], kind: str, settings: Sequence[str]) -> str:
    """The first thing that is wrong with the rows of a cell, naming the column; nothing where they are right."""
    first = rows[0]
    for row in rows:
        if row["cell_id"] is None:
            return "cell_id is missing"
        if row["kind"] != kind:
            return f"kind is {row['kind']!r}, not {kind!r}"
        if row["status"] not in STATUSES:
            return f"status is {row['status']!r}; accepted: {', '.join(STATUSES)}"
        seconds = row["cell_seconds"]
        if row["started_at"] is None or seconds is None or not 0.0 <= seconds < math.inf:
            return f"started_at is {row['started_at']!r} and cell_seconds {seconds!r}; accepted: a time, and seconds"
        for name in settings:
            if row[name] != first[name]:
                return f"its rows have {name} {_listed({row[name], first[name]})}"
    keys = [tuple(row[name] for name in KEYS.get(kind, ())) for row in rows]
    if len(set(keys)) < len(keys):
        what = " and ".join(KEYS.get(kind, ()))
        return f"several rows with the same {what}" if what else f"{len(rows)} rows where one is right"
    return _wrong_identity({name: first[name] for name in settings}, str(first["cell_id"]), kind)


def _wrong_identity(settings: Mapping[str, Any], cell_id: str, kind: str) -> str:
    """Settings are stored as the cell is identified, so that their hash is the cell's, whatever today's rules are."""
    for name, value in settings.items():
        if value is None:
            return f"{name} is missing"
    found = identity(kind, settings)
    return "" if found == cell_id else f"its settings are those of cell {found}"


def _listed(values: set[Any]) -> str:
    """A few values, in order."""
    shown = sorted(map(repr, values))
    return " and ".join(shown[:LISTED]) + (f" and {len(shown) - LISTED} more" if len(shown) > LISTED else "")


def short_sum(data: bytes) -> str:
    """What the name of a shard says of its bytes."""
    return hashlib.sha256(data).hexdigest()[:16]
