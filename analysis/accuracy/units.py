"""In what the accuracy of a network is told: perplexity of words, bits a character of characters, loss of examples."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd


class Unit(NamedTuple):
    """name: 'perplexity'. short: of a column. digits: after the point.

    base: of the logarithm of the stored perplexity that it is; None of the perplexity itself.
    """

    name: str
    short: str
    digits: int
    base: float | None

    def of(self, perplexities: Any) -> Any:
        """Stored perplexities, a number or a column, in this unit."""
        return perplexities if self.base is None else np.log(perplexities) / math.log(self.base)


PERPLEXITY = Unit("perplexity", "ppl", 1, None)
BITS = Unit("bits a character", "bits", 3, 2.0)
LOSS = Unit("loss in nats", "loss", 3, math.e)
OF_TOKENS = {"character": BITS, "example": LOSS}


def unit_of(rows: pd.DataFrame) -> Unit:
    """Of rows of training runs: they are of one data set. Tables from before there was a column token are of words."""
    tokens = rows["token"].dropna().unique() if "token" in rows else ()
    return next((OF_TOKENS[token] for token in tokens if token in OF_TOKENS), PERPLEXITY)
