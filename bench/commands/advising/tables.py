"""What advice is computed from, beside the cells: layers.parquet and model.parquet, with their checksums.

layers.parquet: a row for each layer, passes, block size and sparsity, and which cells stand for its time; of what is no
candidate one row. model.parquet: the whole model, dense and sparsified, timed in pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.commands.advising.layers import Layer, Setting, timing
from bench.commands.advising.norms import lost_shares, not_finite, stored_bytes
from bench.commands.advising.weights import Weights
from bench.schema import SCHEMA_VERSION, Column, documented
from bench.storing.parquet import DamagedError, from_parquet, publish_pair, read_table, to_parquet

LAYERS, MODEL = "layers.parquet", "model.parquet"
WORDS, NUMBER, WHOLE, YES = pa.string(), pa.float64(), pa.int64(), pa.bool_()

# fmt: off
_SETTING = (
    Column("schema_version", WHOLE, "provenance", "", "version of these columns"),
    Column("source", WORDS, "setting", "", "what was asked about: a file, a factory, or shapes"),
    Column("passes", WORDS, "setting", "", "forward, as in inference, or training: forward and backward"),
    Column("block_size", WHOLE, "setting", "elements", "side of a square block; null of what is no candidate"),
    Column("target_sparsity", NUMBER, "setting", "fraction", "share of blocks wanted empty"),
    Column("device", WORDS, "setting", "", "where it was timed"),
)
LAYER_COLUMNS = (
    *_SETTING,
    Column("name", WORDS, "identity", "", "of the weight, or of the layer that has it"),
    Column("kind", WORDS, "result", "", "linear, lstm, gru or other"),
    Column("sizes", WORDS, "result", "", "in words"),
    Column("rows", WHOLE, "result", "elements", "outputs, or hidden units"),
    Column("cols", WHOLE, "result", "elements", "inputs"),
    Column("count", WHOLE, "result", "", "layers alike"),
    Column("calls", NUMBER, "result", "", "times it runs in a pass"),
    Column("tokens", WHOLE, "result", "", "columns of X of a linear layer"),
    Column("batch_size", WHOLE, "result", "", "sequences side by side of an LSTM or GRU"),
    Column("steps", WHOLE, "result", "", "time steps of an LSTM or GRU"),
    Column("candidate", YES, "result", "", "it can be block-sparse in this block size"),
    Column("reason", WORDS, "result", "", "why it is none"),
    Column("note", WORDS, "result", "", "what was assumed or padded"),
    Column("weights", WHOLE, "result", "elements", "of all layers alike, biases not counted"),
    Column("dense_bytes", WHOLE, "result", "bytes", "their values in float32"),
    Column("sparse_bytes", WHOLE, "result", "bytes", "kept blocks and their indices"),
    Column("lost", NUMBER, "result", "fraction", "share of the squared norm in the blocks that magnitude empties"),
    Column("lost_at_random", NUMBER, "result", "fraction", "the same of as many blocks at random, mean of five draws"),
    Column("cells", pa.list_(WORDS), "result", "", "cell_id in gemm.parquet or lstm.parquet of what it is made of"),
    Column("times", pa.list_(NUMBER), "result", "", "how often the work of each is done in a pass, of all alike"),
)
MODEL_COLUMNS = (
    *_SETTING,
    Column("threads", WHOLE, "setting", "", "CPU threads; 0 means all physical cores"),
    Column("weights_sha256", WORDS, "identity", "", "of the parameters and the example inputs, 16 hex digits"),
    Column("status", WORDS, "result", "", "ok, wrong, unsupported or failed"),
    Column("reason", WORDS, "result", "", "why it is not ok"),
    Column("replaced", WHOLE, "result", "", "weights that are block-sparse"),
    Column("error", NUMBER, "result", "", "largest |sparse - masked dense| of an output, as a share of its largest"),
    Column("cosine", NUMBER, "result", "", "of the outputs with those of the unpruned model"),
    Column("dense_bytes", WHOLE, "result", "bytes", "all parameters and buffers of the model"),
    Column("sparse_bytes", WHOLE, "result", "bytes", "the same once sparsified"),
    Column("noisy", YES, "measured", "", "as of a timed cell"),
    Column("dense_ms", pa.list_(NUMBER), "measured", "ms", "every sample of the unpruned model"),
    Column("sparse_ms", pa.list_(NUMBER), "measured", "ms", "every sample of the sparsified one, paired by position"),
    Column("machine", WORDS, "provenance", "", "as of a timed cell"),
    Column("device_name", WORDS, "provenance", "", "processor or GPU model"),
    Column("source_hash", WORDS, "provenance", "", "as of a timed cell"),
    Column("started_at", WORDS, "provenance", "", "UTC, ISO 8601"),
)
# fmt: on

Row = Mapping[str, Any]


def layer_rows(
    source: str, layers: Sequence[Layer], held: Mapping[str, Weights], settings: Sequence[Setting]
) -> list[Row]:
    """The rows of layers.parquet."""
    shared = {"schema_version": SCHEMA_VERSION, "source": source}
    rows: list[Row] = []
    for layer in layers:
        own = {
            **shared, "name": layer.name, "kind": layer.kind, "sizes": layer.sizes, "rows": layer.rows,
            "cols": layer.cols, "count": layer.count, "calls": layer.calls, "tokens": layer.tokens,
            "batch_size": layer.batch, "steps": layer.steps, "weights": layer.count * layer.weights,
            "dense_bytes": 4 * layer.count * layer.weights,
        }  # fmt: skip
        if layer.reason:
            rows.append({**own, "candidate": False, "reason": layer.reason, "cells": [], "times": []})
            continue
        for size in dict.fromkeys(each.block_size for each in settings):
            rows += _rows_of(
                layer, held.get(layer.name, {}), [each for each in settings if each.block_size == size], own
            )
    return rows


def _rows_of(layer: Layer, weights: Weights, settings: Sequence[Setting], own: Row) -> list[Row]:
    """Of one layer in one block size."""
    size, sparsities = settings[0].block_size, [each.sparsity for each in settings]
    lost = lost_shares(layer, weights, timing(layer, settings[0]), size, sparsities)
    unknown, rows = not_finite(layer.name, weights), list[Row]()
    for setting, loss in zip(settings, lost, strict=True):
        found = timing(layer, setting)
        rows.append(
            {
                **own,
                "passes": setting.passes,
                "block_size": size,
                "target_sparsity": setting.sparsity,
                "device": setting.device,
                "candidate": not found.reason,
                "reason": found.reason,
                "note": "; ".join(filter(None, (layer.assumed, found.note, unknown))),
                "sparse_bytes": stored_bytes(layer, found, size, setting.sparsity),
                "lost": None if loss is None else loss.by_magnitude,
                "lost_at_random": None if loss is None else loss.at_random,
                "cells": [cell.cell_id for cell, _ in found.parts],
                "times": [often for _, often in found.parts],
            }
        )
    return rows


def write(path: Path, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Publish a table of these columns, in place of an earlier one."""
    before: bytes | None = None
    with suppress(DamagedError):
        before = read_table(path)
    data = to_parquet(pa.Table.from_pylist([dict(row) for row in rows], schema=documented(columns)))
    publish_pair(path, data, before)


def stored(path: Path) -> list[Row]:
    """The rows of a table that is intact and of today's columns; none otherwise."""
    with suppress(DamagedError):
        table = from_parquet(read_table(path))
        if set(table.column_names) == {column.name for column in MODEL_COLUMNS}:
            return list(table.to_pylist())
    return []
