"""The figures that the AWD-LSTM sweeps were meant to reach, and whether they did, by the intervals of perplexities.

The goals are about the full size. The small version can answer two of the questions for itself, as another experiment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from analysis.awd.answers import UNTRAINED, Answer, Sweeps, answer, order, paired_ratios, perplexity
from analysis.awd.equal import settings
from analysis.awd.lines import BEST, DENSE, WIDE, Line
from analysis.goals.judge import decided
from analysis.stats import NOTHING, Estimate, change, median_interval, words

SEEDS = 3
BLOCKS = (16, 32)
TABLE = ("what", "where", "reach", "measured", "verdict")
ANY_WIDE = Line("wider", lambda row: any(line.test(row) for line in WIDE), best="wide")
GPU = "H200"

Judged = tuple[str, str]  # what was measured, and the verdict


@dataclass(frozen=True)
class Goal:
    """One figure to reach. small: whether the small version answers it too, for itself."""

    what: str
    where: str
    reach: str
    judge: Callable[[Sweeps], Judged]
    small: bool = False


def verdict(found: Estimate, reach: float, seeds: int = SEEDS, failed: bool = False) -> str:
    """Of a value that should be at most `reach`: as `decided`, 'incomplete' of few seeds, 'failed' or 'not run'."""
    if found.n == 0:
        return "failed" if failed else "not run"
    low, high = (found.value if math.isnan(bound) else bound for bound in (found.low, found.high))
    return decided([-high], [-low], -reach, found.n >= seeds)


def _answer(sweeps: Sweeps, role: str, line: Line, blocks: tuple[int, ...] = ()) -> Answer:
    found = sweeps.by_role.get(role)
    return Answer(pd.DataFrame(), []) if found is None else answer(found.cells, line, blocks)


def _at_most(role: str, line: Line, reach: float, blocks: tuple[int, ...] = ()) -> Callable[[Sweeps], Judged]:
    """Test perplexity of a line of one sweep."""

    def judge(sweeps: Sweeps) -> Judged:
        one = _answer(sweeps, role, line, blocks)
        sweep = sweeps.by_role.get(role)
        found = NOTHING if sweep is None else perplexity(sweep, one.runs)
        return words(found), verdict(found, reach, failed=bool(one.failed))

    return judge


def _wider(sweeps: Sweeps) -> Judged:
    """The wide network with the best validation perplexity against the narrow dense one, decided as in its table."""
    wide, dense = _answer(sweeps, "wide", ANY_WIDE), _answer(sweeps, "wide", DENSE)
    if wide.runs.empty or dense.runs.empty:
        return change(NOTHING), verdict(NOTHING, 1.0, failed=bool(wide.failed or dense.failed))
    found = sweeps.by_role["wide"]
    family = [(part, dense.runs) for part in (wide.runs, *settings(found.cells))]
    ratio = paired_ratios(found, family)[0]
    said = {-1: "reached", 0: "undecided", 1: "missed"}[ratio.side] if ratio.n else "not run"
    return change(ratio), "incomplete" if said == "reached" and ratio.n < SEEDS else said


def _in_order(sweeps: Sweeps) -> Judged:
    """Every neighbouring pair at every block size: refuted by one that stands the other way, reproduced by all.

    A pair that is equal here stands in no order. A pair with a network that did not train is none: the order is then
    incomplete.
    """
    pairs = [pair for pair in order(sweeps.by_role.get("paper")) if pair.verdict != "not run"]
    if not pairs:
        return "–", "not run"
    said = [pair.verdict for pair in pairs]
    counts = ", ".join(f"{said.count(one)} {one}" for one in dict.fromkeys(said))
    for one in ("refuted", "failed", "undecided", "equal"):
        if one in said:
            return f"{len(pairs)} pairs: {counts}", one
    return f"{len(pairs)} pairs: {counts}", "incomplete" if UNTRAINED in said else "reproduced"


def _epoch(reach: float) -> Callable[[Sweeps], Judged]:
    """Median seconds of training one epoch, over every epoch of the dense runs that ran alone on the goal's GPU."""

    def judge(sweeps: Sweeps) -> Judged:
        found = sweeps.by_role.get("best")
        dense = _answer(sweeps, "best", DENSE).runs
        if found is None or dense.empty:
            return "–", "not run"
        train = found.train.rows
        rows = train[train["cell_id"].isin(dense["cell_id"]) & (train["epoch"] >= 1)]
        rows = rows[rows["device_name"].str.contains(GPU) & (rows["workers"] == 1)]
        seconds = median_interval(rows["train_seconds"].astype(float).tolist())
        return words(seconds) if seconds.n else "–", verdict(seconds, reach, seeds=1)

    return judge


CHOSEN = Line("pruned", lambda row: BEST.test(row) and row["scope"] == "all", best="best")
GOALS = (
    Goal("dense AWD-LSTM, 90 epochs, test perplexity", "wikitext2_best", "≤ 66.5", _at_most("best", DENSE, 66.5)),
    Goal(
        "block 16 or 32, ρ 0.8 on every LSTM matrix, 90 epochs, test perplexity",
        "wikitext2_best",
        "≤ 72",
        _at_most("best", CHOSEN, 72.0, BLOCKS),
    ),
    Goal("wider, as many stored weights, test perplexity against dense", "wikitext2_wide", "below dense", _wider, True),
    Goal("order of the slides' four rows, same epochs", "wikitext2_paper", "reproduced or refuted", _in_order, True),
    Goal(f"one dense epoch on an {GPU}, seconds", "wikitext2_best", "≤ 6", _epoch(6.0)),
)


def goals_table(full: Sweeps, small: Sweeps) -> pd.DataFrame:
    """Every goal with what was measured and the verdict, as text; then what the small version says of its own."""
    rows = [(goal.what, goal.where, goal.reach, *goal.judge(full)) for goal in GOALS]
    rows += [
        (goal.what, f"{goal.where}_small, another experiment", goal.reach, *goal.judge(small))
        for goal in GOALS
        if goal.small
    ]
    return pd.DataFrame(rows, columns=list(TABLE))


def statements(sweeps: Sweeps) -> list[str]:
    """The order as sentences, one for each block size that has pairs: which stand as on the slides, which do not."""
    pairs = [pair for pair in order(sweeps.by_role.get("paper")) if pair.ratio.n]
    lines = []
    for size in dict.fromkeys(pair.block_size for pair in pairs):
        said = [
            f"{pair.worse.name} against {pair.better.name} {change(pair.ratio)}: {pair.verdict}"
            for pair in pairs
            if pair.block_size == size
        ]
        lines.append(f"Order of the slides' rows at block {size}: {'; '.join(said)}.")
    return lines
