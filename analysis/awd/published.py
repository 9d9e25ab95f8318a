"""What others published on word-level WikiText-2 (33,278 types), each figure with its source; no measurement of ours.

Perplexities are those of the sources; a figure they do not give is NaN. Only what was read in the source is here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

SLIDES_SOURCE = "Mao, Li, Li, Margoliash, “Learning Block-Sparse Neural Networks”, slides: AWD-LSTM, 100 epochs"
SLIDES = pd.DataFrame(
    [
        ("dense", 79.13, 86.81, 81.76, 0.0, 1.0),
        ("block lasso", 132.52, 115.43, 108.06, 0.0, 1.0),
        ("block lasso + gradual (linear)", 189.62, 151.05, 140.87, 0.8, 1.9),
        ("block lasso + random pre-pruning", 201.72, 158.71, 148.37, 0.8, 5.0),
    ],
    columns=["variant", "train_ppl", "val_ppl", "test_ppl", "sparsity", "claimed_speedup"],
)


class Published(NamedTuple):
    """One published figure: model, sparsity as the source counts it, and perplexities."""

    model: str
    sparsity: float
    val_ppl: float
    test_ppl: float
    source: str


RECIPE_90 = Published("AWD-LSTM, 90 epochs of Adam, one cycle", 0.0, 68.7, 65.5, "sgugger/Adam-experiments")
RECIPE_750 = Published("AWD-LSTM, 750 epochs of NT-ASGD", 0.0, 68.7, 65.6, "salesforce/awd-lstm-lm")
_DISTILLER = ((0.0, 83.85), (0.7, 82.93), (0.804, 83.64), (0.9, 85.67), (0.95, 92.79))
ELEMENTWISE = tuple(
    Published("2×1500 LSTM, element-wise gradual magnitude, 40 epochs", sparsity, math.nan, ppl, "Distiller tutorial")
    for sparsity, ppl in _DISTILLER
)
FROM_THE_START = Published("AWD-LSTM-MoS, element-wise, sparse from the start", 0.55, math.nan, 63.05, "Selfish-RNN")
PUBLISHED = (RECIPE_90, RECIPE_750, *ELEMENTWISE, FROM_THE_START)


def published_table() -> pd.DataFrame:
    """Every figure of this module as text, the slides' first."""
    slides = [
        Published(f"AWD-LSTM, {row['variant']}", row["sparsity"], row["val_ppl"], row["test_ppl"], SLIDES_SOURCE)
        for row in SLIDES.to_dict("records")
    ]
    rows = [
        {
            "model": one.model,
            "sparsity": f"{one.sparsity:.3g}",
            "val ppl": "–" if math.isnan(one.val_ppl) else f"{one.val_ppl:.2f}",
            "test ppl": f"{one.test_ppl:.2f}",
            "source": one.source,
        }
        for one in (*slides, *PUBLISHED)
    ]
    return pd.DataFrame(rows)
