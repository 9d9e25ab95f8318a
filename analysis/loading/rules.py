"""What the rows of a table can say: a value where one counts, within its bounds, samples in pairs, each epoch of a run.

`bench.storing.rules` holds the same of what a cell measured, on its side of the parquet wall: the same cases test both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.loading.schema import Column, columns, schema

# Without these columns a table says nothing; a row that is ok has a value in each.
TIMED = ("sparsity", "time_ms", "baseline_ms", "samples_ms", "baseline_samples_ms", "timer")
AFTER_TRAINING = ("mean_sparsity", "train_seconds", "train_ppl", "val_ppl", "test_ppl")  # null in epoch 0, before it
STORED = ("zero_share", "nnz", "nnzb", "index_width", "value_bytes", "index_bytes", "file_bytes")
NEEDED = {
    "gemm": TIMED,
    "lstm": TIMED,
    "train": ("epoch", "sparsity", "vocabulary", *AFTER_TRAINING),
    "storage": (*TIMED, *STORED),
}
ALWAYS = ("cell_id", "kind", "status", "schema_version", "device_name")  # a value in every row
SAMPLES = (("samples_ms", "baseline_samples_ms"),)
IN_PAIRS = (
    ("loss_compiled_ms", "loss_eager_ms"),
    *((f"inference_{name}ms", f"inference_{name}dense_ms") for name in ("", "lstm_", "narrowed_", "equal_")),
)
PAIRS = {"gemm": SAMPLES, "lstm": SAMPLES, "train": IN_PAIRS, "storage": SAMPLES}  # lists of samples side by side
EVERYWHERE = ("cell_seconds",)  # a number that counts in rows that are not ok too

# What is beyond was not measured, and a ratio of two, or the square of one, would be no number any more.
SHORTEST, LONGEST = 1e-9, 1e9  # ms or s
LARGEST = 1e100
ROUNDING = 1e-9


@dataclass(frozen=True)
class Fault:
    """What is wrong with some rows of a table: of whole cells, or of rows that are copies."""

    column: str
    wrong: str
    rows: Sequence[int]


def keys(table: pa.Table, kind: str) -> list[tuple[Any, ...]]:
    """What tells the rows of a table apart."""
    names = ("cell_id", "epoch") if kind == "train" else ("cell_id",)
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def faults(table: pa.Table, kind: str) -> Iterator[Fault]:
    """Everything about a table, under today's columns, that cannot be; the first about a cell counts."""
    ok = np.array([status == "ok" for status in table["status"].to_pylist()], dtype=bool)
    yield from _missing(table, kind, ok)
    yield from _foreign(table, kind)
    yield from _differing(table, kind)
    yield from _misidentified(table, kind)
    for column in columns(kind):
        yield from _out_of_bounds(table[column.name], column, ok)
    for one, other in PAIRS[kind]:
        yield from _unpaired(table, one, other, ok)
    if kind == "train":
        yield from _uneven_norms(table, ok)
        yield from _uneven_probes(table, ok)
        yield from _epochs(table)
    if kind == "storage":
        yield from _unheld(table, ok)


def _missing(table: pa.Table, kind: str, ok: np.ndarray) -> Iterator[Fault]:
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


def _foreign(table: pa.Table, kind: str) -> Iterator[Fault]:
    for name, accepted in (("kind", (kind,)), ("status", tuple(schema()["statuses"]))):
        for place, value in enumerate(table[name].to_pylist()):
            if value not in accepted:
                yield Fault(name, f"{value!r} is none of {', '.join(accepted)}", [place])


def _differing(table: pa.Table, kind: str) -> Iterator[Fault]:
    found = keys(table, kind)
    for key in sorted({key for key in found if found.count(key) > 1}, key=str) if len(set(found)) < len(found) else ():
        places = [place for place, one in enumerate(found) if one == key]
        yield Fault("cell_id", "several rows of one cell and epoch differ", places)


def _cells(table: pa.Table) -> dict[Any, list[int]]:
    """Where the rows of each cell are."""
    cells: dict[Any, list[int]] = {}
    for place, name in enumerate(table["cell_id"].to_pylist()):
        cells.setdefault(name, []).append(place)
    return cells


def _misidentified(table: pa.Table, kind: str) -> Iterator[Fault]:
    """Cells whose rows disagree in a setting, or whose settings are not those that their cell_id stands for."""
    settings = [column for column in columns(kind) if column.role == "setting"]
    rows = table.select([column.name for column in settings]).to_pylist()
    for name, places in _cells(table).items():
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
    flat = _whole(stored)
    counted = np.ones_like(ok) if column.name in EVERYWHERE else ok
    for name, leaf, rows in _leaves(flat, column.name, np.arange(len(flat))):
        if leaf is not flat and (gaps := leaf.is_null().to_numpy(zero_copy_only=False) & counted[rows]).any():
            yield Fault(column.name, "a value in it is missing", sorted(set(rows[gaps].tolist())))
        if leaf.null_count == len(leaf) or not (pa.types.is_integer(leaf.type) or pa.types.is_floating(leaf.type)):
            continue
        values = pc.cast(leaf, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        there = leaf.is_valid().to_numpy(zero_copy_only=False) & counted[rows]
        low, high, words = _bounds(name, column)
        with np.errstate(invalid="ignore"):
            bad = there & ~((values >= low) & (values <= high))
        if bad.any():
            yield Fault(column.name, f"{values[bad][0]:g} is {words}", sorted(set(rows[bad].tolist())))


def _whole(stored: pa.ChunkedArray | pa.Array) -> pa.Array:
    return stored.combine_chunks() if isinstance(stored, pa.ChunkedArray) else stored


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
    if column.unit == "fraction" or name.endswith("sparsity"):
        return 0.0, 1.0, "no fraction from 0 to 1"
    if name.endswith("_ppl"):
        return 1.0 - ROUNDING, LARGEST, f"no perplexity: those are from 1 to {LARGEST:g}"
    if name == "train_seconds" or (name.endswith("_ms") and name not in ("prepare_ms", "host_ms")):
        return SHORTEST, LONGEST, f"no time: those are from {SHORTEST:g} to {LONGEST:g}"
    if column.unit in ("s", "ms") and column.type == "double":
        return 0.0, LONGEST, f"no time: those are from 0 to {LONGEST:g}"
    if column.role == "setting":
        largest = float(np.finfo(float).max)
        return -largest, largest, "no number"
    if name.endswith("_change"):
        return -LARGEST, LARGEST, "no change of an amount"
    if column.unit == "degrees Celsius":
        return -LARGEST, LARGEST, "no temperature"
    return 0.0, LARGEST, f"no amount: those are from 0 to {LARGEST:g}"


def _unpaired(table: pa.Table, one: str, other: str, ok: np.ndarray) -> Iterator[Fault]:
    """Speedups are of samples side by side: as many of the one as of the other, and at least one if any."""
    lengths = (_lengths(table[name]) for name in (one, other))
    for place, (here, there) in enumerate(zip(*lengths, strict=True)):
        if ok[place] and (here != there or here == 0):
            yield Fault(one, f"not as many samples as {other}, or none", [place])


def _lengths(stored: pa.ChunkedArray | pa.Array) -> list[int | None]:
    """Of each list how long it is; None where there is none, as in a column that an older table lacked."""
    if pa.types.is_null(stored.type):
        return [None] * len(stored)
    lengths: list[int | None] = pc.list_value_length(stored).to_pylist()
    return lengths


def _inside(table: pa.Table, name: str, ok: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, what stands there) of each entry of a column of lists, a list in it by its length; of rows that are ok."""
    array = _whole(table[name])
    if not pa.types.is_list(array.type):
        return
    found = pc.list_flatten(array)
    fields = {field.name: pc.struct_field(found, field.name) for field in found.type}
    values = {name: _lengths(one) if pa.types.is_list(one.type) else one.to_pylist() for name, one in fields.items()}
    for place, row in enumerate(pc.list_parent_indices(array).to_pylist()):
        if ok[row]:
            yield row, {name: column[place] for name, column in values.items()}


def _unheld(table: pa.Table, ok: np.ndarray) -> Iterator[Fault]:
    """A file holds what memory does, and the elements that are zero are those that the others leave."""
    names = ("m", "k", "nnz", "zero_share", "value_bytes", "index_bytes", "file_bytes")
    for place, row in enumerate(table.select(names).to_pylist()):
        if not ok[place] or any(row[name] is None for name in names):
            continue
        if row["file_bytes"] < row["value_bytes"] + row["index_bytes"]:
            held = f"{row['value_bytes']} bytes of values and {row['index_bytes']} of indices"
            yield Fault("file_bytes", f"{row['file_bytes']} are fewer than {held}", [place])
        elements = row["m"] * row["k"]
        if abs((1.0 - row["zero_share"]) * elements - row["nnz"]) > 0.5:
            wrong = f"{row['nnz']} elements that are not zero, of {elements} at zero_share {row['zero_share']:g}"
            yield Fault("nnz", wrong, [place])


def _uneven_norms(table: pa.Table, ok: np.ndarray) -> Iterator[Fault]:
    """Norms fill the grid of their weight."""
    for row, one in _inside(table, "block_norms", ok):
        sides = one["grid_rows"] or 0, one["grid_cols"] or 0
        if min(sides) < 1 or sides[0] * sides[1] != one["norms"]:
            wrong = f"{one['norms'] or 0} norms where a grid of {sides[0]} by {sides[1]} blocks is told"
            yield Fault("block_norms", wrong, [row])


def _uneven_probes(table: pa.Table, ok: np.ndarray) -> Iterator[Fault]:
    """Probes are pairs of samples, taken at a step of the run so far."""
    steps = table["step"].to_pylist()
    for row, one in _inside(table, "probes", ok):
        if steps[row] is None:
            yield Fault("step", "missing beside probes", [row])
        elif one["step"] is None or one["step"] > steps[row]:
            yield Fault("probes", f"one was taken at step {one['step']}, after {steps[row]} steps", [row])
        if one["dense_ms"] != one["lstm_ms"] or not one["dense_ms"]:
            yield Fault("probes", "not as many samples in dense_ms as in lstm_ms, or none", [row])


def _epochs(table: pa.Table) -> Iterator[Fault]:
    """A run that is ok has every epoch that its settings name, and takes steps in each."""
    rows = table.select(["status", "epoch", "step", "epochs"]).to_pylist()
    for places in _cells(table).values():
        run = [rows[place] for place in places]
        there = [row for row in run if row["status"] == "ok" and row["epoch"] is not None]
        epochs, last = {row["epoch"] for row in there} - {0}, run[0]["epochs"] or 0
        unfinished = len(epochs) < last and all(row["status"] == "ok" for row in run)
        if unfinished or any(not 0 < epoch <= last for epoch in epochs):
            yield Fault("epoch", f"the run has {_spoken(epochs)} where 1 to {last} are right", places)
        steps = [row["step"] for row in sorted(there, key=lambda row: row["epoch"]) if row["step"] is not None]
        if any(after <= before for before, after in pairwise(steps)):
            yield Fault("step", "does not grow from epoch to epoch", places)


def _spoken(epochs: set[int]) -> str:
    """'epoch 1', 'epochs 1 to 4, not all of them', 'no epoch': what is there of a run."""
    if len(epochs) < 2:
        return f"epoch {min(epochs)}" if epochs else "no epoch"
    some = "" if len(epochs) > max(epochs) - min(epochs) else ", not all of them"
    return f"epochs {min(epochs)} to {max(epochs)}{some}"
