"""The figures the kernels were meant to reach, and whether the sweeps show that they did.

Each goal names the cells it is about; each cell is judged by its interval, as the speed regression checks do. A goal is
missed as soon as the interval of one cell lies below it, and reached only when those of all its cells lie at or above it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from analysis import compare
from analysis.load import records, split
from analysis.realised import realised
from analysis.study import Study

THREADS = 2  # what the figures for kernels of a CPU are about
HOST_MS = 0.01  # that a launch on a GPU may take of the processor
LSTM_STEP = {"m": (4608,), "k": (1152,), "n": (20, 80)}
SQUARE = {"m": (4096,), "k": (4096,), "n": (256, 2048)}
FLOAT = {"dtype": ("float32",)}
COARSE = {"block_size": (16, 32, 64, 128)}
LAYER = {
    "passes": ("forward_backward",), "baseline": ("torch_lstm",), "scope": ("all",), "input_size": (1152,),
    "hidden_size": (1152,), "bptt": (35,), "batch_size": (20, 80), "block_size": (16, 32),
}  # fmt: skip
Grid = Mapping[str, tuple[Any, ...]]
TABLE = ("what", "where", "reach", "worst", "median", "cells", "verdict", "worst cell", "what bounds it")


@dataclass(frozen=True)
class Goal:
    """One figure to reach: `reach` or more in every cell of `grids`.

    kind: what is compared, 'efficiency' or 'speedup' of `backend`, 'rival' (another one's time over its own), 'relative'
    (efficiency of an op over that of dsd), 'host' (HOST_MS over the processor's time of a launch) or 'integral'. bound: what
    holds it back where it was not reached, said in one sentence by who measured it.
    """

    what: str
    where: str
    kind: str
    table: str
    reach: float
    grids: tuple[Grid, ...]
    rival: str = ""
    bound: str = ""
    backend: str = "native"


def _dsd(sparsity: float, reach: float) -> Goal:
    axes = {"op": ("dsd",), "block_size": (8, *COARSE["block_size"]), "target_sparsity": (sparsity,)}
    grid = {**LSTM_STEP, **FLOAT, **axes}
    where = f"W 4608 × 1152, n 20 and 80, block 8 to 128, ρ {sparsity:g}"
    return Goal("dsd, measured / theory", where, "efficiency", "gemm", reach, (grid,))


GRADIENT_BOUNDS = {
    "dsd_t": "at n 2048, packing X and writing Y take as long at every sparsity",
    "sdd": "both operands are packed in every launch; longer sums and larger stretches of columns were tried and changed nothing",
}


def _gradient(op: str) -> Goal:
    grids = tuple({**shape, **FLOAT, **COARSE, "op": (op,), "target_sparsity": (0.8,)} for shape in (LSTM_STEP, SQUARE))
    where = "W 4608 × 1152, n 20 and 80; W 4096 × 4096, n 256 and 2048; block 16 to 128, ρ 0.8"
    return Goal(f"{op}, measured / theory", where, "efficiency", "gemm", 0.75, grids, bound=GRADIENT_BOUNDS[op])


def _rival(name: str) -> Goal:
    axes = {"op": ("dsd",), "block_size": (8, *COARSE["block_size"]), "target_sparsity": (0.5, 0.8, 0.9, 0.95)}
    where = "W 4608 × 1152, n 20 and 80, block 8 to 128, ρ 0.5 to 0.95, any threads"
    bound = (
        "at block 8 and n 80 torch calls MKL's own kernel; three times its rate would be more than dense BLAS reaches"
    )
    return Goal(f"dsd, time of {name} / native", where, "rival", "gemm", 3.0, ({**LSTM_STEP, **axes},), name, bound)


def _layer(sparsity: float, reach: float) -> Goal:
    where = f"LSTM 1152 → 1152, batch 20 and 80, 35 steps, forward + backward, block 16 and 32, ρ {sparsity:g}"
    grid = {**LAYER, **FLOAT, "target_sparsity": (sparsity,)}
    bound = (
        "beside the products, a step packs the values, stores gradients block by block and computes gates: none of it is "
        "saved by a full mask, and at batch 80 the dense products run at their best"
    )
    return Goal("LSTM layer, speedup over torch.nn.LSTM", where, "speedup", "lstm", reach, (grid,), bound=bound)


def _integral(hidden: int, model: str, bound: str = "") -> Goal:
    grid = {"hidden_size": (hidden,), "target_sparsity": (0.8,), "path": ("auto",)}
    where = f"cubic pruning to ρ 0.8, path auto: {model}"
    return Goal(
        "training integral of the LSTM layers, measured / theory",
        where,
        "integral",
        "train",
        0.75,
        (grid,),
        bound=bound,
    )


GOALS = (
    _dsd(0.5, 0.95),
    _dsd(0.8, 0.90),
    _dsd(0.9, 0.80),
    _dsd(0.95, 0.65),
    Goal(
        "dsd, measured / theory", "W 4096 × 4096, n 256 and 2048, block 16 to 128, ρ 0.5 to 0.9", "efficiency", "gemm", 0.80,
        ({**SQUARE, **FLOAT, **COARSE, "op": ("dsd",), "target_sparsity": (0.5, 0.8, 0.9)},),
        bound="at n 2048, packing X and writing Y take as long at every sparsity: about a fifth of the time at ρ 0.9",
    ),
    _gradient("dsd_t"),
    _gradient("sdd"),
    _rival("torch_bsr"),
    _rival("scipy_bsr"),
    _layer(0.8, 3.5),
    _layer(0.0, 0.9),
    _integral(1152, "384 to 1152 units, batch 20"),
    _integral(
        256, "64 to 256 units, batch 5 (wikitext2_small)",
        "a product of this size takes 0.05 ms when dense: starting it, and the gates, cost as much as what is saved",
    ),
)  # fmt: skip


def points(studies: Sequence[Study], goal: Goal) -> pd.DataFrame:
    """Every measured cell of a goal over all sweeps, with the columns of its grids and value, low, high, noisy."""
    found = [_measured(part, goal) for part in _parts(studies, goal)]
    kept = [part for part in found if not part.empty]
    if not kept:
        return pd.DataFrame(columns=[*goal.grids[0], "value", "low", "high", "noisy"])
    every = pd.concat(kept, ignore_index=True)
    if goal.kind == "relative":
        every = _beside_dsd(every)
    return every[np.any([_inside(every, grid) for grid in goal.grids], axis=0)]


def _parts(studies: Sequence[Study], goal: Goal) -> Iterator[pd.DataFrame]:
    """The comparable parts of the goal's table; kernels of a CPU are judged at THREADS threads, rivals at any."""
    for study in studies:
        frame = study.tables.get(goal.table)
        if frame is not None and goal.kind in ("efficiency", "speedup") and goal.backend == "native":
            frame = frame[frame["threads_used"] == THREADS]
        if frame is not None and not frame.empty:
            yield from (part for _, part in split(frame, goal.table))


def _measured(part: pd.DataFrame, goal: Goal) -> pd.DataFrame:
    if goal.kind == "integral":
        return _integrals(part)
    if goal.kind == "host":
        return _host_times(part, goal.backend)
    maths = part["math"].dropna().unique() if "math" in part else ()
    found = compare.timed_points(part, goal.table).assign(math=next(iter(maths), "ieee"))
    if goal.kind == "rival":
        return _against_rival(found, goal.backend, goal.rival)
    baselines = ("dense",) if goal.table == "gemm" else ("torch_lstm",)
    found = compare.kept(found[(found["backend"] == goal.backend) & found["baseline"].isin(baselines)])
    scale = 1.0 if goal.kind == "speedup" else found["predicted_speedup"]
    return found.assign(value=found["measured_speedup"] / scale, low=found["low"] / scale, high=found["high"] / scale)


def _integrals(part: pd.DataFrame) -> pd.DataFrame:
    found = realised(part[part["model"] == "lstm"])
    found = found[
        found["efficiency"].map(lambda one: one.n > 0) & found["variant"].str.contains("gradual (cubic", regex=False)
    ]
    bounds = {name: [getattr(one, name) for one in found["efficiency"]] for name in ("value", "low", "high")}
    return found.assign(**bounds, noisy=False)


def _host_times(part: pd.DataFrame, backend: str) -> pd.DataFrame:
    rows = part[(part["status"] == "ok") & (part["backend"] == backend) & part["host_ms"].notna()]
    return rows.assign(value=HOST_MS / rows["host_ms"], low=math.nan, high=math.nan)


def _beside_dsd(found: pd.DataFrame) -> pd.DataFrame:
    """Efficiencies of gradients over those of dsd on the same cells; the bounds are the widest that both intervals allow."""
    keys = [name for name in (*compare.GEMM_SETTINGS, "math") if name != "op"]
    is_dsd = found["op"] == "dsd"
    both = found[~is_dsd].merge(found[is_dsd], on=keys, suffixes=("", "_dsd"))
    return both.assign(
        value=both["value"] / both["value_dsd"], low=both["low"] / both["high_dsd"], high=both["high"] / both["low_dsd"]
    )


def _against_rival(found: pd.DataFrame, backend: str, rival: str) -> pd.DataFrame:
    """A backend against a rival: pairs of the two where they were timed, else the ratio of both speedups over dense.

    The bounds of such a ratio are the widest that both intervals allow.
    """
    ours = found[found["backend"] == backend]
    paired = ours[ours["baseline"] == rival]
    keys = [name for name in compare.GEMM_SETTINGS if name != "backend"]
    both = ours.merge(found[found["backend"] == rival], on=keys, suffixes=("", "_rival"))
    indirect = both.assign(
        value=both["measured_speedup"] / both["measured_speedup_rival"],
        low=both["low"] / both["high_rival"],
        high=both["high"] / both["low_rival"],
        noisy=both["noisy"].astype(bool) | both["noisy_rival"].astype(bool),
    )
    return pd.concat([paired.assign(value=paired["measured_speedup"]), indirect], ignore_index=True)


def _inside(found: pd.DataFrame, grid: Grid) -> np.ndarray:
    """Which rows are cells of a grid."""
    inside: np.ndarray = np.logical_and.reduce([found[name].isin(values).to_numpy() for name, values in grid.items()])
    return inside


def missing(found: pd.DataFrame, goal: Goal) -> tuple[int, int]:
    """(cells measured, cells wanted) of a goal."""
    wanted = [dict(zip(grid, cell, strict=True)) for grid in goal.grids for cell in product(*grid.values())]
    measured = [cell for cell in wanted if _inside(found, {name: (value,) for name, value in cell.items()}).any()]
    return len(measured), len(wanted)


def verdict(found: pd.DataFrame, goal: Goal) -> str:
    """'reached', 'missed', 'undecided' (an interval holds the goal), 'incomplete' or 'not run'.

    Noise widens a cell's interval and excuses nothing else.
    """
    if found.empty:
        return "not run"
    low, high = found["low"].fillna(found["value"]), found["high"].fillna(found["value"])
    if (high < goal.reach).any():
        return "missed"
    if (low < goal.reach).any():
        return "undecided"
    measured, wanted = missing(found, goal)
    return "reached" if measured == wanted else "incomplete"


def goals_table(studies: Sequence[Study], goals: Sequence[Goal] = GOALS) -> pd.DataFrame:
    """Every goal with its worst and median cell, the worst with its interval, and the verdict, as text."""
    return pd.DataFrame([_judged(points(studies, goal), goal) for goal in goals], columns=list(TABLE))


def _judged(found: pd.DataFrame, goal: Goal) -> dict[str, str]:
    unit = "×" if goal.kind in ("speedup", "rival", "host") else ""
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
    if goal.kind == "integral":
        return f"{row['variant']}, block {int(row['block_size'])}, seed {int(row['seed'])}"
    axes = {name: {value for grid in goal.grids for value in grid[name]} for name in goal.grids[0]}
    names = {"block_size": "block", "batch_size": "batch", "target_sparsity": "ρ"}
    varied = [name for name, values in axes.items() if len(values) > 1]
    said = {name: row[name] if isinstance(row[name], str) else f"{row[name]:g}" for name in varied}
    return ", ".join(text if name == "dtype" else f"{names.get(name, name)} {text}" for name, text in said.items())
