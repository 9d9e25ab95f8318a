"""What a cell that is ok can say: a value where one counts, within its bounds, samples in pairs, every epoch of a run.

`analysis.loading.rules` holds the same on its side of the parquet wall: one table of cases tests both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench.schema import LARGEST_PPL, Column, columns

TIMED = ("sparsity", "time_ms", "baseline_ms", "samples_ms", "baseline_samples_ms", "timer")
AFTER_TRAINING = ("mean_sparsity", "train_seconds", "train_ppl", "val_ppl", "test_ppl")  # null in epoch 0, before it
STORED = ("zero_share", "nnz", "nnzb", "index_width", "value_bytes", "index_bytes", "file_bytes")
NEEDED = {
    "gemm": TIMED,
    "lstm": TIMED,
    "train": ("epoch", "sparsity", "vocabulary", *AFTER_TRAINING),
    "storage": (*TIMED, *STORED),
}
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


class Fault(NamedTuple):
    """What is wrong with a column, and the rows in which it is."""

    column: str
    wrong: str
    rows: Sequence[int]


def faults(table: pa.Table, kind: str) -> Iterator[Fault]:
    """Everything that the cells of a table say and that cannot be; the first about a cell counts."""
    ok = np.array([status == "ok" for status in table["status"].to_pylist()], dtype=bool)
    yield from _missing(table, kind, ok)
    there = dict(zip(table.column_names, table.columns, strict=True))
    for column in columns(kind):
        if column.name in there:
            yield from _out_of_bounds(there[column.name].combine_chunks(), column, ok)
    for one, other in PAIRS.get(kind, ()):
        yield from _unpaired(table, one, other, ok)
    if kind == "train":
        yield from _uneven_norms(table, ok)
        yield from _uneven_probes(table, ok)
        yield from _epochs(table)
    if kind == "storage":
        yield from _unheld(table, ok)


def _missing(table: pa.Table, kind: str, ok: np.ndarray) -> Iterator[Fault]:
    begun = ok & np.array([epoch != 0 for epoch in table["epoch"].to_pylist()], dtype=bool) if kind == "train" else ok
    for name in NEEDED.get(kind, ()):
        null = _flags(table[name].combine_chunks().is_null()) & (begun if name in AFTER_TRAINING else ok)
        if null.any():
            yield Fault(name, "missing", np.flatnonzero(null).tolist())


def _flags(array: pa.BooleanArray) -> np.ndarray:
    return _values(pc.cast(array, pa.uint8()), np.uint8).astype(bool)


def _values(array: pa.Array, dtype: type[np.generic]) -> np.ndarray:
    """The values of an array of numbers as they lie in its buffer, anything where one is null.

    Not `to_numpy`: that imports pandas, half a second in which Ctrl-C is lost.
    """
    data = array.buffers()[1]
    if data is None or len(array) == 0:
        return np.zeros(len(array), dtype)
    return np.frombuffer(data, dtype, len(array), array.offset * np.dtype(dtype).itemsize)


def _out_of_bounds(stored: pa.Array, column: Column, ok: np.ndarray) -> Iterator[Fault]:
    """Numbers that nothing measured: of rows that are ok, since what failed may have measured anything."""
    counted = np.ones_like(ok) if column.name in EVERYWHERE else ok
    for name, leaf, rows in _leaves(stored, column.name, np.arange(len(stored))):
        if leaf is not stored and (gaps := _flags(leaf.is_null()) & counted[rows]).any():
            yield Fault(column.name, "a value in it is missing", sorted(set(rows[gaps].tolist())))
        if leaf.null_count == len(leaf) or not (pa.types.is_integer(leaf.type) or pa.types.is_floating(leaf.type)):
            continue
        values = _values(pc.cast(leaf, pa.float64(), safe=False), np.float64)
        there = _flags(leaf.is_valid()) & counted[rows]
        low, high, words = _bounds(name, column)
        with np.errstate(invalid="ignore"):
            bad = there & ~((values >= low) & (values <= high))
        if bad.any():
            yield Fault(column.name, f"{values[bad][0]:g} is {words}", sorted(set(rows[bad].tolist())))


def _leaves(array: pa.Array, name: str, rows: np.ndarray) -> Iterator[tuple[str, pa.Array, np.ndarray]]:
    """(name, values, the row of each) of the innermost columns of a nested one."""
    if pa.types.is_list(array.type):
        inside = rows[_values(pc.list_parent_indices(array), np.int64)]
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
        return 1.0 - ROUNDING, LARGEST_PPL, f"no perplexity: those are from 1 to {LARGEST_PPL:g}"
    if name == "train_seconds" or (name.endswith("_ms") and name not in ("prepare_ms", "host_ms")):
        return SHORTEST, LONGEST, f"no time: those are from {SHORTEST:g} to {LONGEST:g}"
    if column.unit in ("s", "ms") and column.type == pa.float64():
        return 0.0, LONGEST, f"no time: those are from 0 to {LONGEST:g}"
    if name.endswith("_change"):
        return -LARGEST, LARGEST, "no change of an amount"
    if column.unit == "degrees Celsius":
        return -LARGEST, LARGEST, "no temperature"
    return 0.0, LARGEST, f"no amount: those are from 0 to {LARGEST:g}"


def _unpaired(table: pa.Table, one: str, other: str, ok: np.ndarray) -> Iterator[Fault]:
    """Speedups are of samples side by side: as many of the one as of the other, at least one where there are any."""
    lengths = (pc.list_value_length(table[name]).to_pylist() for name in (one, other))
    for place, (here, there) in enumerate(zip(*lengths, strict=True)):
        if ok[place] and (here != there or here == 0):
            yield Fault(one, f"not as many samples as {other}, or none", [place])


def _inside(table: pa.Table, name: str, ok: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, what stands there) of each entry of a column of lists, a list inside it by its length; of ok rows."""
    array = table[name].combine_chunks()
    found = pc.list_flatten(array)
    fields = {field.name: pc.struct_field(found, field.name) for field in found.type}
    values = {
        name: (pc.list_value_length(one) if pa.types.is_list(one.type) else one).to_pylist()
        for name, one in fields.items()
    }
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
    cells: dict[Any, list[int]] = {}
    for place, name in enumerate(table["cell_id"].to_pylist()):
        cells.setdefault(name, []).append(place)
    for places in cells.values():
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
