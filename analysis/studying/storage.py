"""Stored matrices beside the formulas of their bytes, and from which share of zeros on each form is worth having."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis import compare, theory
from analysis.load import UNLIKE, one_of, records

VALUE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
LINE = ["name", "form", "blocks", "index_width", "dtype"]  # beside the shape, what a line of a figure has in common
NAMES = {"dense": "dense", "coo": "COO", "csr": "CSR", "bsr": "BSR"}
USUAL_INDEX = {"dense": 0, "coo": 8, "csr": 4, "bsr": 4}  # bytes; what differs is named
BYTES = ("memory_bytes", "file_bytes", "packed_bytes", "formula_bytes", "dense_bytes")
SIZES = ("smaller", "file_smaller", "formula_smaller")  # dense bytes over those: above 1 the form is smaller
RESULTS = ("zero_share", "sparsity", "nnz", *BYTES, *SIZES, *compare.RESULTS[1:])
CROSSOVERS = (*LINE, "smaller_from", "formula_from", "file_from", "faster_from", "faster_noisy", "fastest",
              "at_sparsity", "noisy")  # fmt: skip


def blocks_of(row: Mapping[str, Any]) -> int:
    """Side of the blocks that a form stores, or of those that are zero; 1 where single elements are, or no matter."""
    in_blocks = row["form"] == "bsr" or (
        row["form"] != "dense" and row["what"] == "weight" and row["target_sparsity"] > 0.0
    )
    return int(row["block_size"]) if in_blocks else 1


def form_name(form: str, blocks: int, index_width: int) -> str:
    """'CSR, int64 indices', 'CSR, zeros in blocks of 16', 'BSR, block 16'."""
    words = [NAMES[form]]
    if index_width != USUAL_INDEX[form]:
        words.append(f"int{8 * index_width} indices")
    if blocks > 1:
        words.append(f"block {blocks}" if form == "bsr" else f"zeros in blocks of {blocks}")
    return ", ".join(words)


def place_of(row: Mapping[str, Any]) -> tuple[int, ...]:
    """By which lines are sorted: by form, usual indices first, then by blocks."""
    return list(NAMES).index(row["form"]), int(row["index_width"] != USUAL_INDEX[row["form"]]), int(row["blocks"])


def formula_bytes(row: Mapping[str, Any]) -> int:
    """What `theory.stored_bytes` says of a row: of its form, sides, items, and the widths of a value and an index."""
    items = row["nnzb"] if row["form"] == "bsr" else row["nnz"]
    widths = VALUE_BYTES[row["dtype"]], int(row["index_width"])
    return theory.stored_bytes(row["form"], row["m"], row["k"], int(items), int(row["block_size"]), *widths)


def times_smaller(dense: float, stored: float) -> float:
    """Dense bytes over stored ones: infinite where nothing is stored."""
    return math.inf if stored == 0 else dense / stored


def points(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per setting of `compare.measured_speedup`: LINE, sides, RESULTS; means over seeds, times as of a product.

    ValueError where rows that cannot be compared are mixed.
    """
    one_of(cells, UNLIKE["storage"])
    rows = []
    for _, part in cells[cells["status"] == "ok"].groupby(list(compare.STORAGE_SETTINGS), sort=True):
        first = records(part)[0]
        settings = {name: first[name] for name in compare.STORAGE_SETTINGS}
        blocks, width = blocks_of(first), int(first["index_width"])
        dense = theory.dense_bytes(settings["m"], settings["k"], VALUE_BYTES[settings["dtype"]])
        memory, in_file = (part["value_bytes"] + part["index_bytes"]).mean(), part["file_bytes"].mean()
        formula = sum(map(formula_bytes, records(part))) / len(part)
        measured = math.exp(part["measured_speedup"].map(math.log).mean())
        predicted = part["predicted_speedup"].mean()
        rows.append({
            **settings, "name": form_name(settings["form"], blocks, width), "blocks": blocks, "index_width": width,
            "zero_share": part["zero_share"].mean(), "sparsity": part["sparsity"].mean(),
            "nnz": part["nnz"].mean(),
            **dict(zip(BYTES, (memory, in_file, part["packed_bytes"].mean(), formula, dense), strict=True)),
            **dict(zip(SIZES, (times_smaller(dense, each) for each in (memory, in_file, formula)), strict=True)),
            "measured_speedup": measured, "low": part["low"].min(), "high": part["high"].max(),
            "predicted_speedup": predicted, "efficiency": theory.efficiency(measured, predicted),
            "time_ms": part["time_ms"].median(), "baseline_ms": part["baseline_ms"].median(), "seeds": len(part),
            "noisy": bool(part["noisy"].eq(True).any()),
        })  # fmt: skip
    names = [*compare.STORAGE_SETTINGS, *LINE[:1], *LINE[2:4], *RESULTS]
    return pd.DataFrame(rows, columns=names)


def formula_at(row: Mapping[str, Any], zero_share: float) -> float:
    """Dense bytes over the formula's, of the line that a row of `points` is on, at any share of zeros.

    Zeros of a weight fill whole blocks of its form; those of activations know nothing of blocks.
    """
    m, k, size, value = int(row["m"]), int(row["k"]), int(row["blocks"]), VALUE_BYTES[row["dtype"]]
    size = size if row["form"] == "bsr" else 1
    empty = theory.empty_block_share(zero_share, size) if row["what"] == "activation" else zero_share
    items = round((1.0 - empty) * (m // size) * (k // size))
    stored = theory.stored_bytes(row["form"], m, k, items, size, value, int(row["index_width"]))
    return times_smaller(theory.dense_bytes(m, k, value), stored)


def formula_crossover(row: Mapping[str, Any]) -> float:
    """Share of zeros above which the formula is below dense, of the line that a row of `points` is on."""
    size = int(row["blocks"]) if row["form"] == "bsr" else 1
    widths = VALUE_BYTES[row["dtype"]], int(row["index_width"])
    empty = theory.storage_crossover(row["form"], int(row["m"]), int(row["k"]), size, *widths, sides=0)
    return float(empty ** (1 / size**2)) if row["what"] == "activation" else empty


def crossovers(found: pd.DataFrame) -> pd.DataFrame:
    """From which share of zeros on each sparse form is smaller than dense, by formula and measured, and faster.

    found: `points`. A row for each line of each shape: its sides and CROSSOVERS. `theory.breakeven` of bytes, which are
    linear in the items stored, and of times.
    """
    rows = []
    sparse = found[found["form"] != "dense"]
    for key, part in sparse.groupby([*compare.SHAPE, *LINE], sort=True):
        shares = part["zero_share"].tolist()
        timed = part.assign(backend=part["name"], block_size=part["blocks"], sparsity=part["zero_share"])
        (speed,) = records(compare.breakeven_sparsity(timed))
        rows.append({
            **dict(zip([*compare.SHAPE, *LINE], key, strict=True)),
            "smaller_from": theory.breakeven(shares, part["smaller"].tolist()),
            "formula_from": formula_crossover(records(part)[0]),
            "file_from": theory.breakeven(shares, part["file_smaller"].tolist()),
            "faster_from": speed["breakeven_sparsity"], "faster_noisy": speed["breakeven_noisy"],
            **{name: speed[name] for name in ("fastest", "at_sparsity", "noisy")},
        })  # fmt: skip
    rows.sort(key=lambda row: (*(int(row[side]) for side in compare.SHAPE), *place_of(row)))
    return pd.DataFrame(rows, columns=[*compare.SHAPE, *CROSSOVERS])
