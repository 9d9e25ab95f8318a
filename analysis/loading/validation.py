"""The one check of a table that comes across the parquet wall, against the columns of `bench` in columns.json.

A table that is not one of ours is refused; of one that is, cells that say what cannot be are left out, with a line for
each kind of fault. What is left has every column of today's schema: a setting that an older file lacks had its default,
the rest is null there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.loading.rules import ALWAYS, NEEDED, Fault, faults, keys
from analysis.loading.schema import BadInputError, Column, columns, schema

ARROW = {"int64": pa.int64(), "double": pa.float64(), "string": pa.string(), "bool": pa.bool_()}
NAMED = 3  # cells in a line


def validated(data: bytes, kind: str) -> tuple[pa.Table, list[str]]:
    """(the rows that can be used, with every column of today; a line for what was left out).

    BadInputError, naming the column, where that is no table of this kind or nothing of it can be used.
    """
    stored = parsed(data)
    _require_version(stored)
    table = _typed(stored, kind)
    foreign = sorted(set(stored.column_names) - set(table.column_names))
    lines = [f"columns that this analysis does not know are not read: {', '.join(foreign)}"] if foreign else []
    left = np.ones(len(table), dtype=bool)
    for fault in _copies(table, kind):
        left[fault.rows] = False
        lines.append(f"{fault.column}: {fault.wrong}")
    table, names = table.filter(pa.array(left)), np.array(table["cell_id"].to_pylist(), dtype=object)[left]
    found: dict[tuple[str, str], list[Any]] = {}
    seen: set[Any] = set()
    for fault in faults(table, kind):
        cells = [name for name in dict.fromkeys(names[list(fault.rows)]) if name not in seen]
        if cells:
            found.setdefault((fault.column, fault.wrong), []).extend(cells)
            seen.update(cells)
    lines += [f"{column}: {wrong}; left out: {_named(cells)}" for (column, wrong), cells in found.items()]
    kept = table.filter(pa.array([name not in seen for name in names], pa.bool_()))
    if len(table) and not len(kept):
        raise BadInputError(f"{lines[0]}; no cell is left")
    return kept, lines


def parsed(data: bytes) -> pa.Table:
    """A parquet table as it is stored; BadInputError where it is none."""
    try:
        # read_table and its threads now and then abort the process at exit
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:  # pyarrow's own
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"damaged, it is no parquet table ({why})") from None
    twice = sorted(name for name, times in Counter(table.column_names).items() if times > 1)
    if twice:
        raise BadInputError(f"{twice[0]}: the column is there more than once")
    return table


def _require_version(table: pa.Table) -> None:
    """Rows of another version are of other columns, whose meaning is not known here."""
    if "schema_version" not in table.column_names:
        raise BadInputError("schema_version: the column is missing; this is no table of the suite")
    ours, found = schema()["schema_version"], table["schema_version"].to_pylist()
    versions = sorted({str(version) for version in found if version not in range(1, ours + 1)})
    if versions:
        known = sorted({str(version) for version in found})
        raise BadInputError(
            f"schema_version: written with schema [{', '.join(known)}], this analysis reads schema {ours}"
        )


def _typed(stored: pa.Table, kind: str) -> pa.Table:
    """`stored` with every column of today and no other; BadInputError where one has another type, or is missing."""
    arrays, there = {}, dict(zip(stored.column_names, stored.columns, strict=True))
    for column in columns(kind):
        if column.name in there:
            arrays[column.name] = _cast(there[column.name], column)
        elif column.name in (*ALWAYS, *NEEDED[kind]):
            raise BadInputError(f"{column.name}: the column is missing; this is no {kind} table of the suite")
        else:
            type_ = ARROW.get(column.type, pa.null())
            arrays[column.name] = pa.array([column.default] * len(stored), type_)
    return pa.table(arrays)


def _cast(stored: pa.ChunkedArray, column: Column) -> pa.ChunkedArray | pa.Array:
    """A column under its own type, where that loses nothing: others write whole numbers as floats, and long strings."""
    types, found = pa.types, stored.type
    if types.is_null(found):
        return pa.nulls(len(stored), ARROW.get(column.type, pa.null()))
    text = found.value_type if types.is_dictionary(found) else found
    fits = {
        "string": types.is_string(text) or types.is_large_string(text),
        "bool": types.is_boolean(found),
        "int64": types.is_integer(found) or types.is_floating(found),
        "double": types.is_integer(found) or types.is_floating(found),
    }
    try:
        if fits.get(column.type, False):
            return stored.cast(ARROW[column.type])
    except pa.ArrowInvalid:
        pass
    if column.type not in ARROW and _spoken(found) == column.type:
        return stored
    raise BadInputError(f"{column.name}: the column holds {_spoken(found)} where {column.type} is right")


def _spoken(type_: pa.DataType) -> str:
    return str(type_).replace("list<element: ", "list<").replace("list<item: ", "list<")


def _copies(table: pa.Table, kind: str) -> Iterator[Fault]:
    """Rows that are there already, word for word."""
    places: dict[Any, list[int]] = {}
    for place, key in enumerate(keys(table, kind)):
        places.setdefault(key, []).append(place)
    again = []
    for several in (found for key, found in places.items() if len(found) > 1 and key[0] is not None):
        first, *others = table.take(several).to_pylist()
        again += [place for place, row in zip(several[1:], others, strict=True) if repr(row) == repr(first)]
    if again:
        yield Fault("cell_id", f"{len(again)} rows are copies of others; each is read once", again)


def _named(cells: Sequence[Any]) -> str:
    """'cell 0123, 4567 and 89ab', the first few."""
    shown = [" ".join(str(name).split()) if name else "rows without a cell_id" for name in cells[:NAMED]]
    more = f" and {len(cells) - NAMED} more" if len(cells) > NAMED else ""
    return f"cell{'s' if len(cells) > 1 else ''} {', '.join(shown)}{more}" if cells[0] else ", ".join(shown) + more
