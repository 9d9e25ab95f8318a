"""Accuracy against speed: the perplexity of each variant beside the measured speedup of a product at its sparsity."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from analysis.compare import SHAPE, block_sparse, leading_backend, relative_time_at, shape_name
from analysis.load import records
from analysis.variants import is_dense


class Product(NamedTuple):
    """The backend and shape whose timings stand for the network's products."""

    backend: str
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.backend}, {shape_name(self.shape)}"


def chosen_product(points: pd.DataFrame) -> Product | None:
    """The leading backend on the largest weight it was measured on (the smallest batch where several tie); None without one."""
    backend = leading_backend(points)
    if backend is None:
        return None
    measured = points[points["backend"] == backend]
    shapes = sorted(tuple(int(side) for side in shape) for shape in measured[SHAPE].drop_duplicates().to_numpy())
    m, k, n = max(shapes, key=lambda shape: (shape[0] * shape[1], -shape[2]))
    return Product(backend, (m, k, n))


def with_speedup(replicates: pd.DataFrame, points: pd.DataFrame, product: Product | None) -> pd.DataFrame:
    """`replicates` with `product_speedup`: measured at the same block size and sparsity, NaN where nothing was measured.

    Dense and unpruned runs multiply with the dense baseline: 1x by definition.
    """
    speedups = []
    here = block_sparse(points)
    if product is not None:
        here = here[(here["backend"] == product.backend) & (here[SHAPE] == list(product.shape)).all(axis=1)]
    for row in records(replicates):
        if row["stored_sparsity"] == 0.0:
            speedups.append(1.0)
        else:
            same = here[here["block_size"] == row["block_size"]] if product is not None else here.iloc[:0]
            speedups.append(1.0 / relative_time_at(same, row["stored_sparsity"]))
    return replicates.assign(product_speedup=speedups)


def on_front(speedups: pd.Series, perplexities: pd.Series) -> list[bool]:
    """Which points no other point beats in speed without losing perplexity; a NaN is never on the front."""
    pairs = list(zip(speedups, perplexities, strict=True))
    return [
        speed == speed and not any(s >= speed and p <= ppl and (s > speed or p < ppl) for s, p in pairs)
        for speed, ppl in pairs
    ]


def tradeoff(replicates: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """Variants with both a perplexity and a measured product speedup, with `front`: not beaten in both by another one."""
    joined = with_speedup(replicates, points, chosen_product(points))
    joined = joined[joined["product_speedup"].notna()]
    perplexity = joined["test_ppl"].map(lambda estimate: estimate.value)
    return joined.assign(front=on_front(joined["product_speedup"], perplexity), dense=joined["variant"].map(is_dense))
