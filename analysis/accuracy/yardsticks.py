"""The n-grams of a text beside the networks trained on it: how far counting gets, and which networks did not train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.accuracy.units import Unit
from analysis.load import records

NAMES = {1: "word frequencies", 2: "bigram", 3: "trigram"}
SMOOTHINGS = {"kneser_ney": "Kneser–Ney", "witten_bell": "Witten–Bell"}

# Of the perplexity of frequencies: the same frequencies smoothed otherwise lie up to 5 % apart on the texts of the
# small sweeps, and a perplexity of 10,000 tokens has a standard error of 3.7 %.
NO_BETTER = 0.9
# Root mean square of the weights of the median kept block. Layers start at 1/√(3 · hidden), 0.04 at 256 units. Of 1,000
# inputs that are at most 1 in size, weights of 0.001 move a gate by about 0.032 before its sigmoid and 0.008 behind it:
# it is as good as constant.
NO_WEIGHT = 1e-3


class Yardstick(NamedTuple):
    """What n-grams of `order` tokens reach on the text of a part: perplexities of validation and of test."""

    order: int
    smoothing: str
    token: str
    val_ppl: float
    test_ppl: float

    @property
    def name(self) -> str:
        """'word frequencies', 'trigram', '6-gram'."""
        return f"{self.token} frequencies" if self.order == 1 else NAMES.get(self.order, f"{self.order}-gram")


def of_text(known: pd.DataFrame, run: dict[str, Any]) -> list[Yardstick]:
    """The yardsticks of the text that a run was trained and evaluated on, the shortest n-grams first.

    None where none is known. known: `load.load_yardsticks`. Epochs that each read the whole text read it once.
    """
    if known.empty:
        return []
    epochs = run["epochs"] if run["train_tokens"] else 1
    same = (known["corpus_sha256"] == run["corpus_sha256"]) & (known["train_tokens"] == run["train_tokens"])
    same &= (known["eval_tokens"] == run["eval_tokens"]) & (known["epochs"] == epochs)
    names = list(Yardstick._fields)
    return [Yardstick(*(row[name] for name in names)) for row in records(known[same].sort_values("order"))]


def of_part(known: pd.DataFrame, final: pd.DataFrame) -> list[Yardstick]:
    """The same of most of the finished runs of a part: they may differ in their epochs."""
    if final.empty:
        return []
    epochs = final["epochs"].mode().max()
    return of_text(known, records(final[final["epochs"] == epochs].head(1))[0])


def why_untrained(run: dict[str, Any], ladder: Sequence[Yardstick]) -> str:
    """Why a finished run counts as one that did not train, in words; empty where it trained.

    It learned nothing but frequencies (NO_BETTER) on the validation text, at the epoch it reports, or the kept blocks
    of its LSTM are all but zero (NO_WEIGHT). Without a yardstick, or without stored norms, only the other is asked.
    """
    if ladder and ladder[0].order == 1 and run["val_ppl"] >= NO_BETTER * ladder[0].val_ppl:
        return f"within {1.0 - NO_BETTER:.0%} of {ladder[0].name}".replace("%", " %")
    size = kept_size(run["block_norms"], run["block_size"])
    return "its kept blocks are all but zero" if size is not None and size < NO_WEIGHT else ""


def standing(value: float, ladder: Sequence[Yardstick], unit: Unit) -> str:
    """'between the bigram (426.4) and word frequencies (1058.7)': where a test perplexity, in the text's unit, stands.

    Between the nearest yardsticks below and above; of equal n-grams the shortest. ladder: not empty.
    """
    rungs = [(unit.of(one.test_ppl), f"{'the ' * (one.order > 1)}{one.name}") for one in ladder]
    below = max((rung for rung in rungs if rung[0] <= value), key=lambda rung: rung[0], default=None)
    above = min((rung for rung in rungs if rung[0] > value), key=lambda rung: rung[0], default=None)
    said = [f"{rung[1]} ({rung[0]:.{unit.digits}f})" for rung in (below, above) if rung]
    return f"between {said[0]} and {said[1]}" if below and above else f"{'above' if below else 'below'} {said[0]}"


def kept_size(norms: Any, block_size: int) -> float | None:
    """Root mean square of the weights of the median block that is not empty; None where there is none.

    norms: column block_norms of a row, L2 norms of block_size² weights each.
    """
    stored = [np.asarray(one["norms"], dtype=float) for one in (norms if norms is not None else ())]
    every = np.concatenate(stored) if stored else np.zeros(0)
    kept = every[every > 0.0]
    return float(np.median(kept)) / block_size if len(kept) else None
