"""Rows of cells: made up of one that ended ok, and of training runs for tests that compare them."""

from __future__ import annotations

from typing import Any

from bench.cells import Cell, StorageCell, TrainCell
from bench.schema import TRAIN

DIGITS: dict[str, Any] = {  # of a cell that trains a small classifier, 12 steps an epoch
    "model": "mlp", "dataset": "digits", "hidden_size": 32, "block_size": 8, "batch_size": 100, "threads": 1,
}  # fmt: skip

MEASURED = [column.name for column in TRAIN if column.role == "measured"]


EPOCH = {
    "status": "ok", "sparsity": 0.0, "mean_sparsity": 0.0, "train_seconds": 1.0, "train_ppl": 90.0, "val_ppl": 110.0,
    "test_ppl": 100.0, "vocabulary": 100,
}  # fmt: skip


def timed(time_ms: float = 0.5, **more: Any) -> list[dict[str, Any]]:
    """The row of a product or a layer that was timed, with nothing but what each of them has."""
    measured = {"time_ms": time_ms, "baseline_ms": 1.0, "samples_ms": [time_ms], "baseline_samples_ms": [1.0]}
    return [{"status": "ok", "sparsity": 0.8, "timer": "perf_counter", **measured, **more}]


def trained(epochs: int = 4, **more: Any) -> list[dict[str, Any]]:
    """The rows of a run of so many epochs that ended ok, with nothing but what each of them has."""
    return [{**EPOCH, "epoch": epoch, **more} for epoch in range(1, epochs + 1)]


def stored(cell: StorageCell) -> dict[str, Any]:
    """Bytes of a matrix, a quarter of whose elements is kept, in compressed rows with indices of 4 bytes."""
    nnz = cell.m * cell.k // 4
    held = {"value_bytes": 4 * nnz, "index_bytes": 4 * (nnz + cell.m + 1)}
    size = {"file_bytes": held["value_bytes"] + held["index_bytes"] + 800, "index_width": 4, "packed_bytes": 0}
    return {"sparsity": 0.75, "zero_share": 1.0 - nnz / (cell.m * cell.k), "nnz": nnz, "nnzb": nnz, **held, **size}


def ended_ok(cell: Cell, **more: Any) -> list[dict[str, Any]]:
    """The rows of any cell that ended ok, with nothing but what each of its kind has."""
    if isinstance(cell, TrainCell):
        return trained(cell.epochs, **more)
    if isinstance(cell, StorageCell):
        return timed(**stored(cell) | more)
    return timed(**more) if cell.kind in ("gemm", "lstm") else [{"status": "ok", **more}]


def silent(news: dict[str, Any]) -> None:
    """Nobody listens to the run."""


def results(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the columns that differ from run to run."""
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]
