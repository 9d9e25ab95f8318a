"""What block sparsity has cost networks of the reference sweeps that have learned: other models than that asked of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from analysis.load import REFERENCE, load, load_yardsticks, records, tables_in
from analysis.stats import change
from analysis.study import Part

LEARNED = {  # sweeps whose networks were trained until they had learned, and what their cost is of
    "wikitext2_words": "perplexity of a two-layer LSTM, words of WikiText-2",
    "mnist1d_methods": "test errors of a two-layer classifier, MNIST-1D",
}
GRADUAL = "gradual (cubic)"


class Cost(NamedTuple):
    """What pruning gradually by block norms costs a network of a sweep, in words."""

    sweep: str
    what: str
    block_size: int
    sparsity: float
    cost: str


def costs(block_sizes: Sequence[int]) -> list[Cost]:
    """Of those block sizes, of each sweep; of the largest that it has up to the smallest of them where it has none."""
    return [cost for sweep, what in LEARNED.items() for cost in _costs(sweep, what, block_sizes)]


def _costs(sweep: str, what: str, block_sizes: Sequence[int]) -> list[Cost]:
    folder = REFERENCE / sweep
    if "train" not in tables_in(folder):
        return []
    rows = load(folder, "train")
    known = sorted({int(size) for size in rows["block_size"].dropna()})
    sizes = [size for size in known if size in block_sizes] or known[-1:]
    dense = (rows["schedule"] == "none") & (rows["lasso"] == "none")
    part = Part("train", rows[dense | rows["block_size"].isin(sizes)], yardsticks=load_yardsticks(REFERENCE))
    classifier = bool(rows["model"].eq("mlp").any())
    found = part.methods if classifier else part.replicates
    return [
        Cost(sweep, what, int(row["block_size"]), float(row["target_sparsity"]), change(row[_ratio(classifier)]))
        for row in records(_gradual(found))
        if row["block_size"] in sizes
    ]


def _ratio(classifier: bool) -> str:
    return "against_dense" if classifier else "ppl_ratio"


def _gradual(found: pd.DataFrame) -> pd.DataFrame:
    """The settings that are pruned by block norms on a cubic ramp, on whichever path."""
    name = found["variant"].astype(str)
    return found[(name == GRADUAL) | name.str.fullmatch(r"gradual \(cubic\), \w+ path")].dropna(subset=["block_size"])
