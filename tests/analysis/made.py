"""Result tables made up from the real cells and columns, so that analysis is tested before anything was measured."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import compare
from analysis.study import Part, Study
from bench import schema
from bench.cells import KINDS, Cell, GemmCell, LstmCell, StorageCell, TrainCell

NO_COMPILER = "no C++ compiler found; install g++ or clang++, or the package ziglang"
NO_CSR = "torch multiplies no csr of bfloat16 on a CPU"
NO_SCIPY = "scipy multiplies in one thread only; asked for 2"
DIVERGED = "loss became NaN in epoch 1, step 12"
PROVENANCE = {
    "schema_version": schema.SCHEMA_VERSION, "commit": "0123abcd", "dirty": False, "source_hash": "f" * 16,
    "device_name": "Test CPU", "cores": 2, "threads_used": 1, "os": "Linux x86_64", "driver": "", "python": "3.11.9",
    "torch": "2.13.0", "blas": "mkl", "workers": 1, "started_at": "2026-01-01T00:00:00Z", "cell_seconds": 1.0,
}  # fmt: skip
LASSO = {"lasso": "subgradient"}
FOUR = {
    "dense": {},
    "block lasso": LASSO,
    "gradual": LASSO | {"schedule": "linear"},
    "pre": LASSO | {"schedule": "pre", "criterion": "random"},
}
PENALTY = {"dense": 1.0, "block lasso": 1.05, "gradual": 1.15, "pre": 1.3}


def row(cell: Cell, status: str = "ok", reason: str | None = None, **values: Any) -> dict[str, Any]:
    """A full row: identity, every setting, provenance, and nulls where `values` says nothing."""
    empty = {column.name: None for column in schema.columns(cell.kind)}
    identity = {"cell_id": cell.cell_id, "kind": cell.kind, "status": status, "reason": reason}
    return empty | cell.canonical().model_dump() | PROVENANCE | identity | values


def ratio_row(
    ratios: Sequence[float], sparsity: float = 0.8, settings: dict[str, Any] | None = None, **values: Any
) -> dict[str, Any]:
    """A timed product whose pairwise ratios baseline / backend are `ratios`, its sparsity exactly that asked for."""
    cell = GemmCell(**({"target_sparsity": sparsity} | (settings or {})))
    measured = {
        "sparsity": sparsity, "samples_ms": [1.0] * len(ratios), "baseline_samples_ms": list(ratios), "time_ms": 1.0,
        "baseline_ms": float(np.median(ratios)), "noisy": False, "attempts": 1, "timer": "perf_counter",
    }  # fmt: skip
    return row(cell, **(measured | values))


def gemm_row(cell: GemmCell, overhead: float = 0.1, samples: int = 10, **values: Any) -> dict[str, Any]:
    """A timed product whose relative time is overhead + 2 / block size + density, with 2 % noise; block 8 is noisy."""
    rng = np.random.default_rng(int(cell.cell_id[:8], 16))
    blocks = cell.m * cell.k // cell.block_size**2
    num_empty = int(cell.target_sparsity * blocks + 0.5)
    relative = overhead + 2.0 / cell.block_size + 1.0 - num_empty / blocks
    baseline = 0.4 * np.exp(rng.normal(0, 0.02, samples))
    ours = 0.4 * relative * np.exp(rng.normal(0, 0.02, samples))
    measured = {
        "kernel": cell.backend, "baseline_kernel": "torch.matmul", "sparsity": num_empty / blocks,
        "nnzb": blocks - num_empty, "num_empty": num_empty, "weight_bytes": 1000, "index_bytes": 10, "error_ratio": 0.1,
        "prepare_ms": 1.0, "time_ms": float(np.median(ours)), "baseline_ms": float(np.median(baseline)),
        "samples_ms": ours.tolist(), "baseline_samples_ms": baseline.tolist(), "launches_per_sample": 10,
        "noisy": cell.block_size == 8, "attempts": 3 if cell.block_size == 8 else 1, "timer": "perf_counter",
    }  # fmt: skip
    return row(cell, **(measured | values))


def gemm_frame(
    unsupported: dict[str, str] | None = None, backends: tuple[str, ...] = ("native", "torch_bsr"), **settings: Any
) -> pd.DataFrame:
    """Backends at two block sizes and three sparsities on one shape.

    unsupported: backend -> why, scipy_bsr if None.
    """
    unsupported = {"scipy_bsr": NO_SCIPY} if unsupported is None else unsupported
    rows = []
    for backend in dict.fromkeys((*backends, *unsupported)):
        for block_size in (8, 16):
            for sparsity in (0.5, 0.8, 0.95):
                choice = {"backend": backend, "block_size": block_size, "target_sparsity": sparsity}
                cell = GemmCell(**(choice | {"m": 512, "k": 128, "n": 20} | settings))
                if backend in unsupported:
                    rows.append(row(cell, "unsupported", unsupported[backend]))
                else:
                    rows.append(gemm_row(cell, overhead=0.1 if backend == "native" else 0.9))
    return pd.DataFrame(rows)


def layer_row(
    ratios: Sequence[float], sparsity: float = 0.8, settings: dict[str, Any] | None = None, **values: Any
) -> dict[str, Any]:
    """A timed LSTM layer, as `ratio_row`."""
    cell = LstmCell(**({"target_sparsity": sparsity} | (settings or {})))
    measured = {
        "sparsity": sparsity, "samples_ms": [10.0] * len(ratios), "baseline_samples_ms": [10.0 * one for one in ratios],
        "time_ms": 10.0, "baseline_ms": 10.0 * float(np.median(ratios)), "noisy": False, "attempts": 1,
        "timer": "perf_counter_ns",
    }  # fmt: skip
    return row(cell, **(measured | values))


def lstm_frame(
    sizes: Sequence[int] = (256, 512),
    batches: Sequence[int] = (1, 20),
    blocks: Sequence[int] = (16, 32),
    **settings: Any,
) -> pd.DataFrame:
    """Layers of some sizes against both baselines, by batch, block size and four sparsities; one cell failed."""
    rows = []
    axes = product(sizes, ("torch_lstm", "loop_lstm"), batches, blocks, (0.0, 0.5, 0.8, 0.9))
    for size, baseline, batch, block_size, sparsity in axes:
        cost = (1.0 - sparsity) * (1.0 + 4.0 / block_size) + 20.0 / size + 0.05
        speed = (1.2 if baseline == "loop_lstm" else 1.0) / cost
        choice = {
            "input_size": size,
            "hidden_size": size,
            "baseline": baseline,
            "batch_size": batch,
            "block_size": block_size,
        }
        spread = [0.98 * speed, speed, 1.01 * speed, speed, 1.03 * speed]
        rows.append(layer_row(spread, sparsity, choice | settings, noisy=batch == 1 and block_size == 16))
    failed = LstmCell(**({"input_size": sizes[0], "hidden_size": sizes[0], "dtype": "float32"} | settings))
    rows.append(row(failed.model_copy(update={"seed": 7}), "unsupported", NO_COMPILER))
    return pd.DataFrame(rows)


COSTS = {"dense": 1.02, "coo": 20.0, "csr": 4.0, "bsr": 0.7}  # times the dense product of what is not zero
WIDTHS = {"dense": 0, "coo": 8, "csr": 4, "bsr": 4}


def storage_row(cell: StorageCell, **values: Any) -> dict[str, Any]:
    """A stored matrix, its zeros exactly as asked for, its bytes by the definition of its form; CSR is noisy."""
    elements, size = cell.m * cell.k, cell.block_size if cell.has_blocks else 1
    zero_share = cell.target_sparsity
    empty = zero_share**size**2 if cell.what == "activation" else zero_share
    nnz, nnzb = round((1.0 - zero_share) * elements), round((1.0 - empty) * elements / size**2)
    width = 8 if cell.form == "csr" and cell.indices == "int64" else WIDTHS[cell.form]
    stored, indices = {
        "dense": (elements, 0),
        "coo": (nnz, 2 * nnz),
        "csr": (nnz, nnz + cell.m + 1),
        "bsr": (nnzb * size**2, nnzb + cell.m // size + 1),
    }[cell.form]
    kept = 1.0 if cell.form == "dense" else (1.0 - (empty if cell.form == "bsr" else zero_share))
    time = 0.01 + COSTS[cell.form] * kept
    measured = {
        "kernel": cell.form, "baseline_kernel": "torch.mm", "sparsity": empty, "zero_share": 1.0 - nnz / elements,
        "nnz": nnz, "nnzb": nnzb, "index_width": width, "value_bytes": 4 * stored, "index_bytes": width * indices,
        "packed_bytes": 4 * stored + 64 if cell.form == "bsr" else 0, "error_ratio": 0.1, "prepare_ms": 1.0,
        "file_bytes": 4 * stored + width * indices + 700, "time_ms": time, "baseline_ms": 1.0,
        "samples_ms": [time, 1.02 * time, 0.98 * time], "baseline_samples_ms": [1.0] * 3, "launches_per_sample": 1,
        "noisy": cell.form == "csr", "attempts": 1, "timer": "perf_counter_ns",
    }  # fmt: skip
    return row(cell, **(measured | values))


def storage_frame(shares: Sequence[float] = (0.0, 0.5, 0.9, 0.99), **settings: Any) -> pd.DataFrame:
    """Every form of one matrix at some shares of zeros, compressed rows with both types of indices; a cell failed."""
    forms = ({"form": "dense"}, {"form": "coo"}, {"form": "csr"}, {"form": "csr", "indices": "int64"}, {"form": "bsr"})
    rows = []
    for form, share in product(forms, shares):
        shape = {"m": 128, "k": 256, "n": 16, "block_size": 4 if form["form"] == "bsr" else 1}
        rows.append(storage_row(StorageCell(**shape | form | {"target_sparsity": share} | settings)))
    failed = StorageCell(**{"form": "csr", "m": 128, "k": 256, "n": 16, "seed": 7} | settings)
    rows.append(row(failed, "unsupported", NO_CSR))
    return pd.DataFrame(rows)


def sparse_run(
    cell: TrainCell, rhos: Sequence[float], efficiency: float = 0.8, test_ppl: float = 110.0, **values: Any
) -> list[dict[str, Any]]:
    """A pruned run off the dense path, 100 steps an epoch and a probe in the middle of each, three pairs.

    The LSTM layers take 50 ms on the dense path, and `efficiency` of theory is reached where any block is empty.
    """
    rows = run_rows(cell, test_ppl, rhos, 8.0)
    for at, (one, rho) in enumerate(zip(rows, rhos, strict=True)):
        used = 50.0 if rho == 0.0 else 50.0 * (1.0 - rho) / efficiency
        probe = {"step": 100 * at + 50, "sparsity": rho, "sparse_layers": 0 if rho == 0.0 else 2,
                 "dense_ms": [50.0, 49.5, 50.5], "lstm_ms": [used, 0.98 * used, 1.02 * used]}  # fmt: skip
        one |= {"step": 100 * (at + 1), "sparse_share": float(rho > 0.0), "lstm_seconds": 100 * used / 1e3,
                "lstm_kernel": "native avx512", "probes": [probe]}  # fmt: skip
    rows[-1] |= {
        "dense_bytes": 1_000_000, "final_bytes": 210_000, "final_ppl": test_ppl + 0.01,
        "inference_kernel": "native avx512",
        "inference_dense_ms": [20.0, 20.2, 19.8], "inference_ms": [12.5, 12.4, 12.6],
        "inference_lstm_dense_ms": [10.0, 10.1, 9.9], "inference_lstm_ms": [2.5, 2.6, 2.4],
        "equal_units": 90, "inference_equal_dense_ms": [20.0, 20.1, 19.9], "inference_equal_ms": [6.0, 6.1, 5.9],
    }  # fmt: skip
    return [one | values for one in rows]


SPARSE_RHOS = (0.0, 0.4, 0.8, 0.8)


def sparse_frame(seeds: int = 2, **settings: Any) -> pd.DataFrame:
    """Dense, masked and sparse runs of each seed, at two block sizes: as `sparse_run`, and one run that diverged."""
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        rows += run_rows(TrainCell(seed=seed), 100.0 + seed, [0.0] * 4, 10.0)
        for block_size in (16, 32):
            choice = {"schedule": "cubic", "target_sparsity": 0.8, "block_size": block_size, "seed": seed} | settings
            rows += run_rows(TrainCell(**choice), 110.0 + seed, SPARSE_RHOS, 10.5, lstm_seconds=5.0)
            rows += sparse_run(TrainCell(**choice | {"path": "auto"}), SPARSE_RHOS, 0.7 + 0.1 * seed, 110.2 + seed)
    rows.append(diverged_row())
    return pd.DataFrame(rows)


def run_rows(
    cell: TrainCell, test_ppl: float, rhos: Sequence[float], seconds: float = 10.0, **values: Any
) -> list[dict[str, Any]]:
    """A finished run: an epoch for each mean sparsity in `rhos`, `seconds` each, ending at `test_ppl`."""
    cell = cell.model_copy(update={"epochs": len(rhos)})
    measured = {
        "vocabulary": 100, "corpus_sha256": "c" * 16, "train_seconds": seconds, "eval_seconds": 1.0,
        "train_ppl": 0.9 * test_ppl, "val_ppl": 1.1 * test_ppl, "test_ppl": test_ppl,
    }  # fmt: skip
    reached = [{"epoch": at, "mean_sparsity": rho, "sparsity": rho} for at, rho in enumerate(rhos, 1)]
    return [row(cell, **(measured | epoch | {"zero_block_share": epoch["sparsity"]} | values)) for epoch in reached]


def norm_map(cell: TrainCell, epoch: int, sparsity: float) -> list[dict[str, Any]]:
    """Block norms of two layers' weight_hh, the smallest share `sparsity` of them zero."""
    rng = np.random.default_rng(cell.seed + epoch)
    maps = []
    for layer in range(2):
        grid = (4 * cell.hidden_size // cell.block_size, cell.hidden_size // cell.block_size)
        norms = rng.gamma(4.0, 0.25, grid).astype(np.float32).ravel()
        norms[np.argsort(norms)[: int(sparsity * norms.size + 0.5)]] = 0.0
        entry = {"weight": f"weight_hh_l{layer}", "grid_rows": grid[0], "grid_cols": grid[1], "norms": norms.tolist()}
        maps.append(entry)
    return maps


def train_rows(cell: TrainCell, penalty: float) -> list[dict[str, Any]]:
    """One run: perplexity falls with the epochs and rises with the sparsity."""
    rows = []
    for epoch in range(cell.epochs + 1):
        reached = 1.0 if cell.schedule == "pre" else min(epoch / (0.8 * cell.epochs), 1.0)
        sparsity = cell.target_sparsity * reached
        ppl = 300 * penalty * math.exp(-0.3 * epoch) * (1 + sparsity / 2) + 100 * penalty + 1.5 * cell.seed
        values: dict[str, Any] = {
            "epoch": epoch, "step": 100 * epoch, "sparsity": sparsity, "zero_block_share": sparsity,
            "vocabulary": 5000, "corpus_sha256": "c" * 16, "parameters": 500_000, "prunable_parameters": 200_000,
        }  # fmt: skip
        if epoch:
            values |= {
                "train_ppl": ppl * 0.9, "val_ppl": ppl * 1.02, "test_ppl": ppl, "scheduled_sparsity": sparsity,
                "mean_sparsity": sparsity * 0.9, "lasso_penalty": 0.1, "train_tokens_seen": 1000,
                "eval_tokens_seen": 500, "train_seconds": 10.0 * penalty, "eval_seconds": 1.0,
            }  # fmt: skip
        if epoch in (0, cell.epochs // 2, cell.epochs):
            values["block_norms"] = norm_map(cell, epoch, sparsity)
        rows.append(row(cell, **values))
    return rows


def train_frame(seeds: int = 2, variants: tuple[str, ...] = tuple(FOUR), **settings: Any) -> pd.DataFrame:
    """The four variants at two block sizes and two sparsities, and one run that diverged."""
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for variant in variants:
            for block_size in (8, 16) if variant != "dense" else (16,):
                for target in (0.5, 0.8) if variant in ("gradual", "pre") else (0.0,):
                    choice = {"seed": seed, "block_size": block_size, "target_sparsity": target, "epochs": 4}
                    cell = TrainCell(**(choice | FOUR[variant] | settings))
                    rows += train_rows(cell, PENALTY[variant] * (1 + target**4 + block_size / 500))
    rows.append(diverged_row())
    return pd.DataFrame(rows)


def diverged_row() -> dict[str, Any]:
    """A run that ended before its first epoch."""
    return row(TrainCell(seed=9, learning_rate=5.0, epochs=4), "diverged", DIVERGED)


def study(name: str = "made", **tables: pd.DataFrame) -> Study:
    """A sweep with some tables, as if it had been read."""
    return Study(Path(name), tables)


def part(frame: pd.DataFrame, over: str | None = None) -> Part:
    """Rows of one table as a part of a study, whether they can be compared or not; of layers over both baselines."""
    table = str(frame["kind"].iloc[0])
    over = "baseline" if table == "lstm" else over
    return Part(table, frame if table == "train" else compare.measured_speedup(frame, table), over=over)


def write(folder: Path, table: str, frame: pd.DataFrame) -> Path:
    """Store a table as the suite does: columns typed by the schema, a sha256sum beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {column.name: column.type for column in schema.columns(table)}
    assert set(frame.columns) == set(fields) | set(KINDS[table].model_fields)
    rows = [{name: _plain(value) for name, value in record.items()} for record in frame.to_dict("records")]
    typed = pa.Table.from_pylist(rows)
    names = [pa.field(field.name, fields.get(field.name, field.type)) for field in typed.schema]
    path = folder / f"{table}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(names)), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
    return path


def _plain(value: Any) -> Any:
    """A DataFrame's NaN back to a null, and a whole float to an int where pandas had to widen (pyarrow casts back)."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value
