"""Accuracy against speed: the perplexity of each variant beside the measured speedup of a product at its sparsity."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from analysis.compare import SHAPE, block_sparse, kept, leading_backend, noisy_at, shape_name, speedup_at
from analysis.load import records
from analysis.runs import is_dense
from analysis.stats import Estimate


class Product(NamedTuple):
    """The backend and shape whose timings stand for the network's products."""

    backend: str
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.backend}, {shape_name(self.shape)}"


def recurrent_shape(runs: pd.DataFrame) -> tuple[int, int, int] | None:
    """(m, k, n) of weight_hh_l0 in one step of training, of the first run; None without runs."""
    if runs.empty:
        return None
    hidden, batch = int(runs["hidden_size"].iloc[0]), int(runs["batch_size"].iloc[0])
    return 4 * hidden, hidden, batch


def chosen_product(points: pd.DataFrame, network: tuple[int, int, int] | None = None) -> Product | None:
    """The leading backend on the network's own product where that was timed, else on the largest weight; None without one.

    Where several batches were timed: the network's, else the smallest.
    """
    backend = leading_backend(points)
    if backend is None:
        return None
    measured = points[points["backend"] == backend]
    shapes = [(int(m), int(k), int(n)) for m, k, n in measured[SHAPE].drop_duplicates().to_numpy()]
    wanted = network or (0, 0, 0)
    best = max(
        shapes, key=lambda shape: (shape[:2] == wanted[:2], shape[0] * shape[1], shape[2] == wanted[2], -shape[2])
    )
    return Product(backend, best)


def product_speedups(points: pd.DataFrame, product: Product | None, block_size: object, sparsity: float) -> Estimate:
    """The measured speedup of `product` at one block size and sparsity with its interval; NaN where nothing was measured."""
    here = _timed(points, product, block_size)
    value, low, high = (speedup_at(here, sparsity, column) for column in ("measured_speedup", "low", "high"))
    return Estimate(value, low, high, 0 if math.isnan(value) else len(here))


def _timed(points: pd.DataFrame, product: Product | None, block_size: object) -> pd.DataFrame:
    """The points of `product` at one block size."""
    here = block_sparse(points)
    if product is None:
        return here.head(0)
    here = here[(here["backend"] == product.backend) & (here["block_size"] == block_size)]
    return here[(here[SHAPE] == list(product.shape)).all(axis=1)]


def with_speedup(replicates: pd.DataFrame, points: pd.DataFrame, product: Product | None) -> pd.DataFrame:
    """`replicates` with `product_speedup`, an `Estimate`: measured at the same block size and sparsity, and whether it is noisy.

    Runs that prune nothing multiply with the dense baseline: 1x by definition, without an interval.
    """
    speedups, noisy = [], []
    for row in records(replicates):
        if row["target_sparsity"] == 0.0:
            speedups.append(Estimate(1.0, math.nan, math.nan, 0))
            noisy.append(False)
        else:
            speedups.append(product_speedups(points, product, row["block_size"], row["stored_sparsity"]))
            noisy.append(noisy_at(_timed(points, product, row["block_size"]), row["stored_sparsity"]))
    return replicates.assign(
        product_speedup=pd.Series(speedups, index=replicates.index, dtype=object), product_noisy=noisy
    )


def on_front(speedups: pd.Series, perplexities: pd.Series) -> list[bool]:
    """Which points no other point beats in speed without losing perplexity; a NaN is never on the front."""
    pairs = list(zip(speedups, perplexities, strict=True))
    return [
        speed == speed and not any(s >= speed and p <= ppl and (s > speed or p < ppl) for s, p in pairs)
        for speed, ppl in pairs
    ]


def tradeoff(replicates: pd.DataFrame, points: pd.DataFrame, product: Product | None) -> pd.DataFrame:
    """Variants with both a perplexity and a product speedup, with `speed`, `ppl` and `front`: not beaten in both by another.

    A network that keeps no block is no trade, and left out.
    """
    joined = with_speedup(kept(replicates), points, product)
    joined = joined.assign(
        speed=[found.value for found in joined["product_speedup"]], ppl=[found.value for found in joined["test_ppl"]]
    )
    joined = joined[joined["speed"].notna()]
    return joined.assign(front=on_front(joined["speed"], joined["ppl"]), dense=joined["variant"].map(is_dense))
