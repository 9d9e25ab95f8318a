"""In what the accuracy of a text is told: perplexity of words, bits a character of characters."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd


class Unit(NamedTuple):
    """name: 'perplexity'. short: of a column. digits: after the point. bits: log2 of the stored perplexity."""

    name: str
    short: str
    digits: int
    bits: bool

    def of(self, perplexities: Any) -> Any:
        """Stored perplexities, a number or a column, in this unit."""
        return np.log2(perplexities) if self.bits else perplexities


PERPLEXITY = Unit("perplexity", "ppl", 1, False)
BITS = Unit("bits a character", "bits", 3, True)


def unit_of(rows: pd.DataFrame) -> Unit:
    """Of rows of training runs: they are of one text. Tables from before there was a column token are of words."""
    return BITS if "token" in rows and rows["token"].eq("character").any() else PERPLEXITY
