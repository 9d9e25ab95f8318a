"""The lines of the AWD-LSTM table: the slides' four rows and ours beside them, and which cells answer each.

A cell is a row of settings with kept and width, as `awd.cells` adds them: both over the dense model its sweep is about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from analysis.runs import ALLOCATED, EQUAL, prunes, variant_name

TARGET = 0.8  # the slides'
NOTHING, NOT_RUN = "–", "not run"

Row = dict[str, Any]


def is_plain(row: Row) -> bool:
    """Neither pruned nor penalised."""
    return row["lasso"] == "none" and not prunes(row)


def _chosen(row: Row) -> bool:
    """Pruned by the size of blocks along a ramp."""
    return prunes(row) and row["schedule"] not in ("pre", "one_shot", "iterative") and row["criterion"] != "random"


def _at(row: Row, target: float) -> bool:
    return prunes(row) and row["target_sparsity"] == target


def _wider(target: float) -> Callable[[Row], bool]:
    return lambda row: _chosen(row) and _at(row, target) and row["width"] > 1.0 and abs(row["kept"] - 1.0) <= EQUAL


class Line(NamedTuple):
    """One line of the table: `same` and `best` name the sweep that answers it in each column of ours, if any.

    test: which cells belong to it. slide: the line of the slides' table. full: whether its settings are named in full.
    """

    name: str
    test: Callable[[Row], bool]
    same: str | None = None
    best: str | None = None
    slide: str | None = None
    full: bool = False


DENSE = Line("dense", lambda row: is_plain(row) and row["width"] == 1.0, "paper", "best", "dense")
LASSO = Line(
    "block lasso",
    lambda row: row["lasso"] != "none" and not prunes(row) and row["width"] == 1.0,
    "paper",
    slide="block lasso",
)
GRADUAL = Line(
    "block lasso + gradual pruning, 80 %",
    lambda row: row["lasso"] != "none" and _chosen(row) and _at(row, TARGET) and row["width"] == 1.0,
    "paper",
    "best",
    "block lasso + gradual (linear)",
)
PRE = Line(
    "block lasso + random pre-pruning, 80 %",
    lambda row: row["lasso"] != "none" and row["schedule"] == "pre" and _at(row, TARGET) and row["width"] == 1.0,
    "paper",
    slide="block lasso + random pre-pruning",
)
BEST = Line("our best at 80 %", lambda row: _at(row, TARGET) and row["width"] == 1.0, best="best", full=True)
WIDE = tuple(
    Line(f"wider, {100 * target:g} %, as many stored weights as dense", _wider(target), best="wide", full=True)
    for target in (TARGET, 0.9)
)
SMALLER = Line(
    "smaller dense, as many stored weights as at 80 %",
    lambda row: is_plain(row) and row["width"] < 1.0 and abs(row["kept"] / (1.0 - TARGET) - 1.0) <= EQUAL,
    "paper",
    "best",
    full=True,
)
FOUR = (DENSE, LASSO, GRADUAL, PRE)
LINES = (*FOUR, BEST, *WIDE, SMALLER)


def place(row: Row, full: bool) -> str:
    """What a setting is beyond its line: 'block 16, ERK', with the variant and the width in `full`."""
    if is_plain(row):
        return f"{row['hidden_size']} units" if full else ""
    words = [variant_name(row | {"path": "dense"})] if full else []
    words += [f"{row['hidden_size']} units"] if full and row["width"] != 1.0 else []
    words += [f"block {row['block_size']}"]
    words += [ALLOCATED[row["allocation"]]] if row["allocation"] in ALLOCATED and not full else []
    return ", ".join(words)
