"""Whether the sweeps show that the kernels reach the figures that they were meant to: the one judge of all goals.

Each goal names the cells it is about; each cell is judged by its interval, as the speed regression checks do. A goal is
missed as soon as the interval of one cell lies below it, and reached only when those of all its cells do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from analysis import compare
from analysis.load import records
from analysis.stats import median_interval
from analysis.study import Part, Study

HOST_MS = 0.01  # that a launch on a GPU may take of the processor
Grid = Mapping[str, tuple[Any, ...]]
TABLE = ("what", "where", "reach", "worst", "median", "cells", "verdict", "worst cell", "what bounds it")


@dataclass(frozen=True)
class Goal:
    """One figure to reach: `reach` or more in every cell of `grids`.

    kind: what is compared, 'efficiency' or 'speedup' of `backend`, 'rival' (another one's time over its own),
    'relative' (efficiency of an op over that of dsd), 'host' (HOST_MS over the processor's time of a launch), 'roof'
    (the least time that the device's own rates allow over the time taken); of runs
    that prune gradually 'integral' (of the LSTM layers, measured over theory), 'whole' (speedup of the whole run over
    that theory) or 'inference' (speedup of the whole finished model). threads: judged in so many, None: in any. bound:
    what holds it back where it was not reached, said in one sentence by who measured it.
    """

    what: str
    where: str
    kind: str
    reach: float
    grids: tuple[Grid, ...]
    table: str = "gemm"
    backend: str = "native"
    rival: str = ""
    threads: int | None = None
    bound: str = ""


def points(studies: Sequence[Study], goal: Goal) -> pd.DataFrame:
    """Every measured cell of a goal over all sweeps, with the columns of its grids and value, low, high, noisy."""
    over = "op" if goal.table == "gemm" else None
    found = [_measured(part, goal) for study in studies for part in study.parts(goal.table, over)]
    kept = [part for part in found if not part.empty]
    if not kept:
        return pd.DataFrame(columns=[*goal.grids[0], "value", "low", "high", "noisy"])
    every = pd.concat(kept, ignore_index=True)
    return every[np.any([_inside(every, grid) for grid in goal.grids], axis=0)]


def _measured(part: Part, goal: Goal) -> pd.DataFrame:
    if goal.table == "train":
        return _runs(part, goal.kind)
    if goal.kind in ("host", "roof"):
        return {"host": _host_times, "roof": _under_the_roof}[goal.kind](part.rows, goal.backend)
    if goal.threads is not None:
        part = part.on_threads(goal.threads)
    found = part.points.assign(math=next(iter(part.rows["math"].dropna()), "ieee"))
    found = found.assign(value=found["measured_speedup"])
    ours = found[found["backend"] == goal.backend]
    if goal.kind == "rival":  # pairs of the two where they were timed, else through dense
        paired = ours[ours["baseline"] == goal.rival]
        through = _over(ours, found[found["backend"] == goal.rival], "backend")
        return pd.concat([paired, through], ignore_index=True)
    ours = compare.kept(ours[ours["baseline"].isin(("dense", compare.FUSED))])
    if goal.kind == "speedup":
        return ours
    ours = ours.assign(**{name: ours[name] / ours["predicted_speedup"] for name in ("value", "low", "high")})
    is_dsd = ours["op"] == "dsd"
    return _over(ours[~is_dsd], ours[is_dsd], "op") if goal.kind == "relative" else ours


def _over(ours: pd.DataFrame, theirs: pd.DataFrame, but: str) -> pd.DataFrame:
    """Ratios of two values on the same cells `but` for one setting; the widest bounds that both intervals allow."""
    keys = [name for name in (*compare.GEMM_SETTINGS, "math") if name != but]
    both = ours.merge(theirs, on=keys, suffixes=("", "_other"))
    return both.assign(
        value=both["value"] / both["value_other"],
        low=both["low"] / both["high_other"],
        high=both["high"] / both["low_other"],
        noisy=both["noisy"].astype(bool) | both["noisy_other"].astype(bool),
    )


def _runs(part: Part, kind: str) -> pd.DataFrame:
    """Runs of the plain LSTM that prune by the cubic ramp; seconds of whole runs have no interval."""
    told = part.rows.drop_duplicates("cell_id").loc[lambda rows: rows["model"] == "lstm", ["cell_id", "dataset"]]
    found = part.realised.merge(told, on="cell_id")
    found = found[found["variant"].str.contains("gradual (cubic", regex=False).astype(bool)]
    if kind == "whole":
        found = found[found["whole"].notna()]
        return found.assign(value=found["whole"] / found["predicted"], low=math.nan, high=math.nan, noisy=False)
    name = {"integral": "efficiency", "inference": "inference"}[kind]
    found = found[np.array([one.n > 0 for one in found[name]], dtype=bool)]
    bounds = {bound: [getattr(one, bound) for one in found[name]] for bound in ("value", "low", "high")}
    return found.assign(**bounds, noisy=False)


def _host_times(timed: pd.DataFrame, backend: str) -> pd.DataFrame:
    rows = timed[(timed["status"] == "ok") & (timed["backend"] == backend) & timed["host_ms"].notna()]
    return rows.assign(value=HOST_MS / rows["host_ms"], low=math.nan, high=math.nan)


def _under_the_roof(timed: pd.DataFrame, backend: str) -> pd.DataFrame:
    """Share of the roof that was reached; the bounds are those of the median of the samples."""
    rows = timed[(timed["status"] == "ok") & (timed["backend"] == backend) & timed["roof_ms"].notna()]
    rows = rows[rows["baseline"] == "dense"]  # a cell stands beside each of its baselines
    shares = [median_interval([row["roof_ms"] / sample for sample in row["samples_ms"]]) for row in records(rows)]
    return rows.assign(**{name: [getattr(one, name) for one in shares] for name in ("value", "low", "high")})


def _inside(found: pd.DataFrame, grid: Grid) -> np.ndarray:
    """Which rows are cells of a grid."""
    inside: np.ndarray = np.logical_and.reduce([found[name].isin(values).to_numpy() for name, values in grid.items()])
    return inside


def missing(found: pd.DataFrame, goal: Goal) -> tuple[int, int]:
    """(cells measured, cells wanted) of a goal."""
    measured = wanted = 0
    for grid in goal.grids:
        there = set(zip(*(found[name] for name in grid), strict=True))
        cells = list(product(*grid.values()))
        measured, wanted = measured + sum(cell in there for cell in cells), wanted + len(cells)
    return measured, wanted


def verdict(found: pd.DataFrame, goal: Goal) -> str:
    """'reached', 'missed', 'undecided', 'incomplete' (as `decided`) or 'not run'.

    Noise widens a cell's interval and excuses nothing else.
    """
    if found.empty:
        return "not run"
    measured, wanted = missing(found, goal)
    lows, highs = (found[name].fillna(found["value"]) for name in ("low", "high"))
    return decided(lows, highs, goal.reach, measured == wanted)


def decided(lows: Iterable[float], highs: Iterable[float], reach: float, whole: bool) -> str:
    """Of intervals that should lie at `reach` or above: 'missed' where one lies below, 'undecided' where one holds it.

    Else 'reached', or 'incomplete' where that is not the `whole` of what was asked for.
    """
    if any(high < reach for high in highs):
        return "missed"
    if any(low < reach for low in lows):
        return "undecided"
    return "reached" if whole else "incomplete"


def goals_table(studies: Sequence[Study], goals: Sequence[Goal]) -> pd.DataFrame:
    """Every goal with its worst and median cell, the worst with its interval, and the verdict, as text."""
    return pd.DataFrame([_judged(points(studies, goal), goal) for goal in goals], columns=list(TABLE))


def _judged(found: pd.DataFrame, goal: Goal) -> dict[str, str]:
    unit = "×" if goal.kind in ("speedup", "rival", "host", "inference") else ""
    measured, wanted = missing(found, goal)
    said = verdict(found, goal)
    row = {"what": goal.what, "where": goal.where, "reach": f"≥ {goal.reach:.2f}{unit}", "worst": "–", "median": "–",
           "cells": f"{measured} of {wanted}" + _noisy(found), "verdict": said, "worst cell": "–",
           "what bounds it": goal.bound if said in ("missed", "undecided") and goal.bound else "–"}  # fmt: skip
    if found.empty:
        return row
    worst = records(found.loc[[found["value"].idxmin()]])[0]
    interval = "" if math.isnan(worst["low"]) else f" [{worst['low']:.2f}, {worst['high']:.2f}]"
    noisy = ", noisy" if worst["noisy"] else ""
    return row | {
        "worst": f"{worst['value']:.2f}{unit}{interval}",
        "median": f"{found['value'].median():.2f}{unit}",
        "worst cell": _cell(worst, goal) + noisy,
    }


def _noisy(found: pd.DataFrame) -> str:
    """', 3 noisy', or nothing where no cell is."""
    noisy = int(found["noisy"].eq(True).sum())
    return f", {noisy} noisy" if noisy else ""


def _cell(row: dict[str, Any], goal: Goal) -> str:
    """The settings of a cell in which those of its goal differ."""
    if goal.table == "train":
        return f"{row['variant']}, block {int(row['block_size'])}, seed {int(row['seed'])}"
    axes = {name: {value for grid in goal.grids for value in grid[name]} for name in goal.grids[0]}
    names = {"block_size": "block", "batch_size": "batch", "target_sparsity": "ρ"}
    varied = [name for name, values in axes.items() if len(values) > 1]
    said = {name: row[name] if isinstance(row[name], str) else f"{row[name]:g}" for name in varied}
    return ", ".join(text if name == "dtype" else f"{names.get(name, name)} {text}" for name, text in said.items())
