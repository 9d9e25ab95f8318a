"""Results of the AWD-LSTM sweeps made up from their own files: every cell finished, at a perplexity by its settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import made
import numpy as np
import pandas as pd

from bench import sweep
from bench.cells import TrainCell

PAPER, BEST, WIDE = (f"wikitext2_{role}_small" for role in ("paper", "best", "wide"))


def cells(name: str) -> list[TrainCell]:
    return [cell for cell in sweep.load(name).cells if isinstance(cell, TrainCell)]


def perplexity(cell: TrainCell) -> float:
    """More weights are better, random blocks worse than chosen; the lasso costs 5 %; seeds scatter by up to 2 %."""
    kept = (1.0 - cell.target_sparsity) * cell.hidden_size**2
    random = cell.prunes and (cell.schedule == "pre" or cell.criterion == "random")
    chosen = cell.prunes and not random
    worth = kept * (4.0 if chosen else 0.5 if random else 1.0)
    noise = np.random.default_rng(int(cell.cell_id[:8], 16)).normal(0, 0.002)
    return 400.0 * math.exp(-0.05 * math.log(worth / 256**2)) * (1.05 if cell.lasso != "none" else 1.0) * (
        1.0 + 0.01 * cell.seed + noise
    )  # fmt: skip


def sparsities(cell: TrainCell) -> list[float]:
    """Mean sparsity of each epoch: a straight ramp to the target over the first half, or the target from the start."""
    if not cell.prunes:
        return [0.0] * cell.epochs
    begun = [1.0 if cell.schedule == "pre" else min(2.0 * epoch / cell.epochs, 1.0) for epoch in range(cell.epochs)]
    return [cell.target_sparsity * share for share in begun]


def with_norms(cell: TrainCell, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` with the block norms of epochs 0, middle and last, where the block size divides the layers."""
    if cell.hidden_size % cell.block_size:
        return rows
    first = rows[0] | {
        "epoch": 0,
        "step": 0,
        "test_ppl": None,
        "val_ppl": None,
        "train_ppl": None,
        "mean_sparsity": None,
        "probes": None,
    }
    rows = [first | {"sparsity": cell.target_sparsity if cell.schedule == "pre" else 0.0}, *rows]
    return [
        one | {"block_norms": made.norm_map(cell, one["epoch"], one["sparsity"])}
        if one["epoch"] in (0, cell.epochs // 2, cell.epochs)
        else one
        for one in rows
    ]


def run(cell: TrainCell, **values: Any) -> list[dict[str, Any]]:
    rhos = sparsities(cell)
    if cell.path == "dense":
        return with_norms(cell, made.run_rows(cell, perplexity(cell), rhos, **values))
    masked = perplexity(cell.model_copy(update={"path": "dense"}))
    return with_norms(cell, made.sparse_run(cell, rhos, test_ppl=masked, **values))


def table(name: str, seeds: int = 3) -> pd.DataFrame:
    """Every cell of a sweep with the first `seeds` seeds."""
    return pd.DataFrame([row for cell in cells(name) if cell.seed < seeds for row in run(cell)])


def write(parent: Path, *names: str, **options: Any) -> None:
    """Each sweep in a folder of its name below `parent`, as a run of it would store it."""
    for name in names:
        made.write(parent / name, "train", table(name, **options))
