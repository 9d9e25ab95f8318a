"""What a cell that is ok cannot have measured, and extremes that it can.

One table of cases for both sides of the parquet wall.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from bench.cells import Cell, GemmCell, LstmCell, StorageCell, TrainCell
from bench.storing.parquet import to_table

Rows = list[dict[str, Any]]
Edit = Callable[[Rows], Rows]

NAN, INF = math.nan, math.inf
PROVENANCE = {
    "commit": "0123abcd", "dirty": False, "source_hash": "a" * 16, "device_name": "Test CPU", "cores": 2,
    "threads_used": 1, "workers": 1, "started_at": "2026-01-01T00:00:00Z", "cell_seconds": 1.0,
}  # fmt: skip
TIMED = {
    "status": "ok", "sparsity": 0.75, "time_ms": 0.5, "baseline_ms": 1.0, "samples_ms": [0.5, 0.5, 0.6],
    "baseline_samples_ms": [1.0, 1.0, 1.1], "noisy": False, "timer": "perf_counter", "error_ratio": 0.1,
    "prepare_ms": 1.0,
}  # fmt: skip
NORMS = {"weight": "weight_hh_l0", "grid_rows": 2, "grid_cols": 3, "norms": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}
PROBE = {"step": 5, "sparsity": 0.5, "sparse_layers": 2, "dense_ms": [2.0, 2.1], "lstm_ms": [1.0, 1.1]}
EPOCH = {
    "status": "ok", "sparsity": 0.8, "mean_sparsity": 0.5, "zero_block_share": 0.8, "train_ppl": 90.0, "val_ppl": 110.0,
    "test_ppl": 100.0, "train_seconds": 9.0, "eval_seconds": 1.0, "lstm_seconds": 5.0, "lasso_penalty": 0.1,
    "vocabulary": 100, "corpus_sha256": "c" * 16, "sparse_share": 0.5,
}  # fmt: skip
END = {
    "block_norms": [NORMS], "reported_epoch": 2, "reported_val_ppl": 110.0, "reported_test_ppl": 100.0,
    "final_ppl": 100.0, "dense_bytes": 1000, "final_bytes": 300,
    "inference_dense_ms": [2.0, 2.1], "inference_ms": [1.0, 1.1],
    "inference_lstm_dense_ms": [1.0, 1.1], "inference_lstm_ms": [0.5, 0.6],
}  # fmt: skip


STORED = {
    "zero_share": 0.75, "nnz": 16, "nnzb": 16, "index_width": 4, "value_bytes": 64, "index_bytes": 100,
    "file_bytes": 964, "packed_bytes": 0,
}  # fmt: skip


def cell_of(kind: str, seed: int) -> Cell:
    """A cell of each kind of table that the analysis reads."""
    if kind == "train":
        return TrainCell(epochs=2, schedule="cubic", target_sparsity=0.8, path="auto", seed=seed)
    if kind == "storage":
        return StorageCell(form="csr", m=8, k=8, block_size=1, target_sparsity=0.75, seed=seed)
    return GemmCell(seed=seed) if kind == "gemm" else LstmCell(seed=seed)


def good(kind: str) -> Rows:
    """The rows of such a cell that ended ok; of a run epoch 0, 1 and 2."""
    if kind != "train":
        return [TIMED | (STORED if kind == "storage" else {})]
    before = {"status": "ok", "epoch": 0, "step": 0, "sparsity": 0.0, "vocabulary": 100, "block_norms": [NORMS]}
    first = EPOCH | {"epoch": 1, "step": 10, "probes": [PROBE]}
    return [before, first, EPOCH | END | {"epoch": 2, "step": 20, "probes": [PROBE | {"step": 15}]}]


def table(kind: str, edit: Edit) -> tuple[pa.Table, Cell, Cell]:
    """(a table as it may lie on a disk, the cell in it that is right, the one whose rows were edited)."""
    right, other = cell_of(kind, 0), cell_of(kind, 1)
    parts = [to_table(right, good(kind), PROVENANCE), to_table(other, edit(good(kind)), PROVENANCE)]
    return pa.concat_tables(parts), right, other


def last(**values: Any) -> Edit:
    """Other values in the last row."""
    return lambda rows: [*rows[:-1], rows[-1] | values]


def every(**values: Any) -> Edit:
    """Other values in every row."""
    return lambda rows: [row | values for row in rows]


def _numbers(kind: str, columns: tuple[str, ...], values: tuple[Any, ...]) -> dict[str, tuple[str, str, Edit]]:
    return {f"{kind}: {name} {value}": (kind, name, last(**{name: value})) for name in columns for value in values}


# name: (table, the column that the line names, what is done to the rows of the second cell)
FAULTS: dict[str, tuple[str, str, Edit]] = {
    **_numbers("gemm", ("time_ms", "baseline_ms"), (0.0, -1.0, NAN, INF, None, 5e-324, 1e308)),
    **_numbers("lstm", ("time_ms", "baseline_ms"), (0.0, NAN, 5e-324, 1e308)),
    **_numbers("gemm", ("sparsity",), (-0.1, 1.0 + 1e-12, 80.0, NAN, None)),
    **_numbers("gemm", ("prepare_ms", "host_ms", "error_ratio"), (-1.0, NAN, INF, 1e308)),
    **_numbers("gemm", ("cell_seconds",), (-1.0, NAN, INF)),
    **_numbers("gemm", ("temperature_celsius", "power_watts"), (NAN, INF)),
    **_numbers("gemm", ("timer", "samples_ms", "baseline_samples_ms"), (None,)),
    **_numbers(
        "gemm",
        ("samples_ms",),
        ([], [1.0], [1.0, 1.0, NAN], [1.0, 1.0, None], [1.0, 0.0, 1.0], [1.0, 1.0, 5e-324]),
    ),
    **_numbers("lstm", ("baseline_samples_ms",), ([1.0, 1.0, 1e308], [1.0, 1.0, -1.0])),
    **_numbers("train", ("train_ppl", "val_ppl", "test_ppl"), (NAN, INF, None, 0.0, 0.5, -5.0, 1e308)),
    **_numbers("train", ("reported_val_ppl", "reported_test_ppl", "final_ppl"), (NAN, INF, 0.0, 1e308)),
    **_numbers("train", ("train_seconds",), (0.0, -1.0, NAN, None, 5e-324, 1e308)),
    **_numbers("train", ("eval_seconds", "lstm_seconds", "lasso_penalty"), (-1.0, NAN, INF, 1e308)),
    **_numbers("train", ("val_change",), (NAN, INF, -INF)),
    **_numbers("train", ("val_change_error", "decoder_multiply_adds"), (-1.0, NAN, INF)),
    **_numbers("train", ("sparsity", "mean_sparsity"), (-0.1, 1.1, NAN, None)),
    **_numbers("train", ("zero_block_share", "scheduled_sparsity", "sparse_share"), (-0.1, 1.1, NAN)),
    **_numbers("train", ("vocabulary", "epoch", "step"), (None, -1)),
    **_numbers("train", ("inference_ms",), (None, [], [1.0], [1.0, NAN], [1.0, 0.0])),
    **_numbers("train", ("inference_lstm_ms",), (None, [1.0, 1.0, 1.0])),
    **_numbers("train", ("inference_narrowed_ms", "inference_equal_ms"), ([1.0, 1.0], [])),
    **_numbers("train", ("equal_units",), (-1,)),
    **_numbers("storage", ("time_ms", "baseline_ms"), (0.0, NAN, None)),
    **_numbers("storage", ("zero_share", "sparsity"), (-0.1, 1.1, NAN, None)),
    **_numbers("storage", ("value_bytes", "index_bytes", "file_bytes", "nnz", "nnzb", "index_width"), (-1, None)),
    **_numbers("storage", ("samples_ms",), (None, [1.0])),
    "a file that lacks a byte": ("storage", "file_bytes", last(file_bytes=163)),
    "more elements than are not zero": ("storage", "nnz", last(nnz=17)),
    "only epoch 0": ("train", "epoch", lambda rows: rows[:1]),
    "the final epoch is missing": ("train", "epoch", lambda rows: rows[:-1]),
    "an epoch between is missing": ("train", "epoch", lambda rows: [rows[0], rows[2]]),
    "an epoch too many": ("train", "epoch", lambda rows: [*rows, rows[-1] | {"epoch": 3, "step": 30}]),
    "the last epoch has another number": ("train", "epoch", last(epoch=7)),
    "no step was taken": ("train", "step", every(step=0, probes=None)),
    "steps go back": ("train", "step", last(step=7, probes=None)),
    "probes at no step": ("train", "step", last(step=None)),
    "norms of another grid": ("train", "block_norms", last(block_norms=[NORMS | {"grid_cols": 4}])),
    "norms of no grid": ("train", "block_norms", last(block_norms=[NORMS | {"grid_rows": 0, "norms": []}])),
    "a grid without norms": ("train", "block_norms", last(block_norms=[NORMS | {"norms": None}])),
    "a norm below 0": ("train", "block_norms", last(block_norms=[NORMS | {"norms": [-1.0] * 6}])),
    "a norm that is none": ("train", "block_norms", last(block_norms=[NORMS | {"norms": [NAN] * 6}])),
    "norms of no weight": ("train", "block_norms", last(block_norms=[NORMS | {"weight": None}])),
    "uneven probes": ("train", "probes", last(probes=[PROBE | {"lstm_ms": [1.0]}])),
    "empty probes": ("train", "probes", last(probes=[PROBE | {"dense_ms": [], "lstm_ms": []}])),
    "a probe without samples": ("train", "probes", last(probes=[PROBE | {"dense_ms": None}])),
    "a probe of no time": ("train", "probes", last(probes=[PROBE | {"dense_ms": [1.0, 0.0]}])),
    "a probe of no sparsity": ("train", "probes", last(probes=[PROBE | {"sparsity": 1.5}])),
    "a probe after the epoch": ("train", "probes", last(probes=[PROBE | {"step": 21}])),
    "a probe at no step": ("train", "probes", last(probes=[PROBE | {"step": None}])),
}  # fmt: skip

# name: (table, what is done to the rows of the second cell); all of it is kept
FINE: dict[str, tuple[str, Edit]] = {
    "as it is": ("train", every()),
    "the shortest times": (
        "gemm",
        last(time_ms=1e-9, baseline_ms=1e9, samples_ms=[1e-9] * 3, baseline_samples_ms=[1e9] * 3),
    ),
    "a file of the bytes in memory alone": ("storage", last(file_bytes=164)),
    "nothing is stored": (
        "storage",
        last(sparsity=1.0, zero_share=1.0, nnz=0, nnzb=0, value_bytes=0, index_bytes=0, file_bytes=0),
    ),
    "nothing is zero": ("storage", last(sparsity=0.0, zero_share=0.0, nnz=64, nnzb=64)),
    "the longest times": (
        "lstm",
        last(time_ms=1e9, baseline_ms=1e-9, samples_ms=[1e9] * 3, baseline_samples_ms=[1e-9] * 3),
    ),
    "the largest perplexity": ("train", last(val_ppl=1e100, test_ppl=1e100, train_ppl=1e100, reported_test_ppl=1e100)),
    "the smallest perplexity": ("train", last(val_ppl=1.0, test_ppl=1.0, train_ppl=1.0)),
    "a run that falls": ("train", last(val_change=-0.5, val_change_error=0.0)),
    "a run that rises": ("train", last(val_change=0.5, val_change_error=0.1)),
    "the longest epoch": ("train", last(train_seconds=1e9)),
    "the shortest epoch": ("train", every(train_seconds=1e-9)),
    "all blocks are empty": ("train", every(sparsity=1.0, mean_sparsity=1.0, zero_block_share=1.0, probes=None)),
    "no block is empty": ("gemm", last(sparsity=0.0)),
    "no epoch 0": ("train", lambda rows: rows[1:]),
    "all norms are 0": ("train", last(block_norms=[NORMS | {"norms": [0.0] * 6}])),
    "nothing that may be missing": (
        "train",
        lambda rows: [{name: row.get(name) for name in ("epoch", *EPOCH)} for row in rows],
    ),
    "diverged in epoch 2": ("train", lambda rows: [row | {"status": "diverged", "val_ppl": INF} for row in rows[:2]]),
    "diverged before epoch 1": ("train", lambda rows: [rows[0] | {"status": "diverged", "epoch": None}]),
    "wrong by any amount": ("gemm", last(status="wrong", error_ratio=INF, time_ms=None, samples_ms=None)),
    "failed": ("lstm", lambda _: [{"status": "failed", "reason": "x"}]),
}  # fmt: skip
