"""The one check of a table that comes across the parquet wall, against the columns of `bench` as columns.json tells them.

A table that is not one of ours is refused; of one that is, cells that say what cannot be are left out, with a line for each
kind of fault. What is left has every column of today's schema: a setting that an older file lacks had its default, the rest
is null there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

COLUMNS_FILE = Path(__file__).with_name("columns.json")  # made by `python -m bench columns --schema`
ARROW = {"int64": pa.int64(), "double": pa.float64(), "string": pa.string(), "bool": pa.bool_()}
NAMED = 3  # cells in a line
ROUNDING = 1e-9

# Without these columns a table says nothing; a row that is ok has a value in each.
TIMED = ("sparsity", "time_ms", "baseline_ms", "samples_ms", "baseline_samples_ms", "timer")
AFTER_TRAINING = ("mean_sparsity", "train_seconds", "val_ppl", "test_ppl")  # null in epoch 0, which is before it
NEEDED = {"gemm": TIMED, "lstm": TIMED, "train": ("epoch", "sparsity", "vocabulary", *AFTER_TRAINING)}
ALWAYS = ("cell_id", "kind", "status", "schema_version", "device_name")  # a value in every row
PAIRED = ("samples_ms", "baseline_samples_ms")


@dataclass(frozen=True)
class Column:
    """A column as `bench` describes it; a setting has a default."""

    name: str
    type: str
    role: str
    unit: str
    default: Any = None


@dataclass(frozen=True)
class Fault:
    """What is wrong with some rows of a table: of whole cells, or of rows that are copies."""

    column: str
    wrong: str
    rows: Sequence[int]


@cache
def schema() -> dict[str, Any]:
    """columns.json: schema_version, statuses, and tables by name. ValueError, one line, where it is damaged."""
    try:
        found: dict[str, Any] = json.loads(COLUMNS_FILE.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        remedy = "python -m bench columns --schema analysis/columns.json writes it anew"
        raise ValueError(f"{COLUMNS_FILE}: damaged, it is no JSON; {remedy}") from None
    return found


@cache
def columns(kind: str) -> tuple[Column, ...]:
    """Every column of a table, in order."""
    return tuple(Column(**column) for column in schema()["tables"][kind])


def validated(data: bytes, kind: str) -> tuple[pa.Table, list[str]]:
    """(the rows that can be used, with every column of today; a line for what was left out).

    ValueError, naming the column, where that is no table of this kind or nothing of it can be used.
    """
    stored = _parsed(data)
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
    for fault in _faults(table, kind):
        cells = [name for name in dict.fromkeys(names[list(fault.rows)]) if name not in seen]
        if cells:
            found.setdefault((fault.column, fault.wrong), []).extend(cells)
            seen.update(cells)
    lines += [f"{column}: {wrong}; left out: {_named(cells)}" for (column, wrong), cells in found.items()]
    kept = table.filter(pa.array([name not in seen for name in names], pa.bool_()))
    if len(table) and not len(kept):
        raise ValueError(f"{lines[0]}; no cell is left")
    return kept, lines


def _parsed(data: bytes) -> pa.Table:
    try:
        # read_table and its threads now and then abort the process at exit
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"damaged, it is no parquet table ({why})") from None
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]}: the column is there more than once")
    return table


def _require_version(table: pa.Table) -> None:
    """Rows of another version are of other columns, whose meaning is not known here."""
    if "schema_version" not in table.column_names:
        raise ValueError("schema_version: the column is missing; this is no table of the suite")
    ours, found = schema()["schema_version"], table["schema_version"].to_pylist()
    versions = sorted({str(version) for version in found if version not in range(1, ours + 1)})
    if versions:
        known = sorted({str(version) for version in found})
        raise ValueError(f"written with schema [{', '.join(known)}], this analysis reads schema {ours}")


def _typed(stored: pa.Table, kind: str) -> pa.Table:
    """`stored` with every column of today and no other; ValueError where one is of another type, or needed and missing."""
    arrays = {}
    for column in columns(kind):
        if column.name in stored.column_names:
            arrays[column.name] = _cast(stored[column.name], column)
        elif column.name in (*ALWAYS, *NEEDED[kind]):
            raise ValueError(f"{column.name}: the column is missing; this is no {kind} table of the suite")
        else:
            type_ = ARROW.get(column.type, pa.null())
            arrays[column.name] = pa.array([column.default] * len(stored), type_)
    return pa.table(arrays)


def _cast(stored: pa.ChunkedArray, column: Column) -> pa.ChunkedArray | pa.Array:
    """A column under its own type, where that loses nothing: other libraries write whole numbers as floats, and long strings."""
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
    raise ValueError(f"{column.name}: the column holds {_spoken(found)} where {column.type} is right")


def _spoken(type_: pa.DataType) -> str:
    return str(type_).replace("list<element: ", "list<").replace("list<item: ", "list<")


def _copies(table: pa.Table, kind: str) -> Iterator[Fault]:
    """Rows that are there already, word for word."""
    places: dict[Any, list[int]] = {}
    for place, key in enumerate(_keys(table, kind)):
        places.setdefault(key, []).append(place)
    again = []
    for several in (found for key, found in places.items() if len(found) > 1 and key[0] is not None):
        first, *others = table.take(several).to_pylist()
        again += [place for place, row in zip(several[1:], others, strict=True) if repr(row) == repr(first)]
    if again:
        yield Fault("cell_id", f"{len(again)} rows are copies of others; each is read once", again)


def _keys(table: pa.Table, kind: str) -> list[tuple[Any, ...]]:
    """What tells the rows of a table apart."""
    names = ("cell_id", "epoch") if kind == "train" else ("cell_id",)
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def _faults(table: pa.Table, kind: str) -> Iterator[Fault]:
    """Everything about a table that cannot be; the first about a cell counts."""
    yield from _missing(table, kind)
    yield from _foreign(table, kind)
    keys = _keys(table, kind)
    for key in sorted({key for key in keys if keys.count(key) > 1}, key=str) if len(set(keys)) < len(keys) else ():
        yield Fault(
            "cell_id", "several rows of one cell and epoch differ", [at for at, one in enumerate(keys) if one == key]
        )
    yield from _misidentified(table, kind)
    ok = np.array([status == "ok" for status in table["status"].to_pylist()], dtype=bool)
    for column in columns(kind):
        yield from _out_of_bounds(table[column.name], column, ok)
    if kind != "train":
        yield from _unpaired(table, ok)


def _missing(table: pa.Table, kind: str) -> Iterator[Fault]:
    ok = np.array([status == "ok" for status in table["status"].to_pylist()], dtype=bool)
    begun = ok
    if kind == "train":
        begun = ok & np.array([epoch != 0 for epoch in table["epoch"].to_pylist()], dtype=bool)
    settings = [column.name for column in columns(kind) if column.role == "setting"]
    for name in (*ALWAYS, *settings, *NEEDED[kind]):
        null = table[name].is_null().to_numpy()
        if name in NEEDED[kind]:
            null = null & (begun if name in AFTER_TRAINING else ok)
        if null.any():
            yield Fault(name, "missing", np.flatnonzero(null).tolist())
    if kind == "train":
        unplaced = ok & table["step"].is_null().to_numpy() & table["probes"].is_valid().to_numpy()
        if unplaced.any():
            yield Fault("step", "missing beside probes", np.flatnonzero(unplaced).tolist())


def _foreign(table: pa.Table, kind: str) -> Iterator[Fault]:
    for name, accepted in (("kind", (kind,)), ("status", tuple(schema()["statuses"]))):
        for place, value in enumerate(table[name].to_pylist()):
            if value not in accepted:
                yield Fault(name, f"{value!r} is none of {', '.join(accepted)}", [place])


def _misidentified(table: pa.Table, kind: str) -> Iterator[Fault]:
    """Cells whose rows disagree in a setting, or whose settings are not those that their cell_id stands for."""
    settings = [column for column in columns(kind) if column.role == "setting"]
    cells: dict[Any, list[int]] = {}
    for place, name in enumerate(table["cell_id"].to_pylist()):
        cells.setdefault(name, []).append(place)
    rows = table.select([column.name for column in settings]).to_pylist()
    for name, places in cells.items():
        first = rows[places[0]]
        for column in settings:
            if any(rows[place][column.name] != first[column.name] for place in places):
                yield Fault(column.name, "the rows of one cell disagree", places)
        own = {column.name: first[column.name] for column in settings if first[column.name] != column.default}
        text = json.dumps({"kind": kind, **own}, sort_keys=True, separators=(",", ":"))
        if not name or not hashlib.sha256(text.encode()).hexdigest().startswith(name):
            yield Fault("cell_id", "does not stand for the settings beside it", places)


def _out_of_bounds(stored: pa.ChunkedArray, column: Column, ok: np.ndarray) -> Iterator[Fault]:
    """Numbers that nothing measured: of rows that are ok, since what failed may have measured anything."""
    flat = stored.combine_chunks() if isinstance(stored, pa.ChunkedArray) else stored
    for name, leaf, rows in _leaves(flat, column.name, np.arange(len(flat))):
        gaps = leaf.is_null().to_numpy(zero_copy_only=False) & ok[rows]
        if leaf is not flat and gaps.any():
            yield Fault(column.name, "a value in it is missing", sorted(set(rows[gaps].tolist())))
        if not (pa.types.is_integer(leaf.type) or pa.types.is_floating(leaf.type)):
            continue
        values = pc.cast(leaf, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        there = leaf.is_valid().to_numpy(zero_copy_only=False) & ok[rows]
        low, high, words = _bounds(name, column)
        with np.errstate(invalid="ignore"):
            bad = there & ~((values >= low) & (values <= high))
        if bad.any():
            yield Fault(column.name, f"{values[bad][0]:g} is {words}", sorted(set(rows[bad].tolist())))


def _leaves(array: pa.Array, name: str, rows: np.ndarray) -> Iterator[tuple[str, pa.Array, np.ndarray]]:
    """(name, values, the row of each) of the innermost columns of a nested one."""
    if pa.types.is_list(array.type):
        inside = rows[pc.list_parent_indices(array).to_numpy()]
        yield from _leaves(pc.list_flatten(array), name, inside)
    elif pa.types.is_struct(array.type):
        for field in array.type:
            yield from _leaves(pc.struct_field(array, field.name), field.name, rows)
    else:
        yield name, array, rows


def _bounds(name: str, column: Column) -> tuple[float, float, str]:
    """(smallest, largest, what a number beyond them is) of a column, or of what is inside it."""
    largest = float(np.finfo(float).max)
    if column.unit == "fraction" or name.endswith("sparsity"):
        return -ROUNDING, 1.0 + ROUNDING, "no fraction from 0 to 1"
    if name.endswith("_ppl"):
        return 1.0 - ROUNDING, largest, "no perplexity: those are finite, and at least 1"
    if name == "train_seconds" or (name.endswith("_ms") and name not in ("prepare_ms", "host_ms")):
        return math.ulp(0.0), largest, "no time: those are finite, and above 0"
    if column.role == "setting" or column.unit == "degrees Celsius":
        return -largest, largest, "no number"
    return 0.0, largest, "no amount: those are finite, and not below 0"


def _unpaired(table: pa.Table, ok: np.ndarray) -> Iterator[Fault]:
    """Speedups are of samples side by side: as many of the backend as of the baseline, and at least one."""
    ours, theirs = (pc.list_value_length(table[name]).to_pylist() for name in PAIRED)
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if ok[place] and (one != other or not one):
            yield Fault(PAIRED[0], f"not as many samples as {PAIRED[1]}, or none", [place])


def _named(cells: Sequence[Any]) -> str:
    """'cell 0123, 4567 and 89ab', the first few."""
    shown = [str(name) if name else "rows without a cell_id" for name in cells[:NAMED]]
    more = f" and {len(cells) - NAMED} more" if len(cells) > NAMED else ""
    return f"cell{'s' if len(cells) > 1 else ''} {', '.join(shown)}{more}" if cells[0] else ", ".join(shown) + more
