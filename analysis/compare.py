"""Product and LSTM-layer timings beside theory: measured and predicted speedup, efficiency, break-even, what was not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import theory
from analysis.load import UNLIKE, one_of, records
from analysis.stats import median_interval

SHAPE = ["m", "k", "n"]
LAYER_SIDES = ["input_size", "hidden_size", "bptt"]
LAYER = [*LAYER_SIDES, "batch_size"]
FUSED = "torch_lstm"  # the baseline of a layer that a user of torch has
GEMM_SETTINGS = (
    "backend",
    "baseline",
    "op",
    *SHAPE,
    "block_size",
    "target_sparsity",
    "dtype",
    "device",
    "cache",
    "threads",
)
LSTM_SETTINGS = (
    "backend",
    "baseline",
    "passes",
    *LAYER,
    "block_size",
    "target_sparsity",
    "scope",
    "dtype",
    "device",
    "threads",
)
SETTINGS = {"gemm": GEMM_SETTINGS, "lstm": LSTM_SETTINGS}
RESULTS = (
    "sparsity", "measured_speedup", "low", "high", "predicted_speedup", "efficiency",
    "time_ms", "baseline_ms", "seeds", "noisy",
)  # fmt: skip
POINTS = [*GEMM_SETTINGS, *RESULTS]
BREAKEVEN = (
    "breakeven_sparsity",
    "breakeven_noisy",
    "fastest",
    "at_sparsity",
    "noisy",
    "passed_over",
    "efficiency",
)


def shape_name(shape: tuple[int, int, int]) -> str:
    """'W 1024 × 1024, n = 32', from (m, k, n)."""
    m, k, n = (int(side) for side in shape)
    return f"W {m} × {k}, n = {n}"


def layer_name(layer: Sequence[int]) -> str:
    """'LSTM 1152 → 1152, 35 steps', from input and hidden size and time steps."""
    into, out, steps = (int(side) for side in layer)
    return f"LSTM {into} → {out}, {steps} steps"


def predicted_speedup(row: Mapping[str, Any], table: str, sparsity: float) -> float:
    """What theory promises at a sparsity achieved: of a product, or of an LSTM layer with the weights its scope names."""
    if table == "gemm":
        return theory.speedup(sparsity)
    return theory.layer_speedup(row["input_size"], row["hidden_size"], sparsity, row["scope"])


def measured_speedup(frame: pd.DataFrame, over: str | None = None, table: str = "gemm") -> pd.DataFrame:
    """One row per measured cell, with `measured_speedup`, its 95 % interval `low`..`high` and theory beside it.

    measured_speedup is the median of the pairwise ratios baseline / backend; predicted_speedup is theory's at the
    achieved sparsity; efficiency is measured / predicted. `over` is one more column to keep.
    """
    kept = [*_keys(over, table), "seed", "sparsity", "time_ms", "baseline_ms", "noisy"]
    rows = []
    for row in records(frame[frame["status"] == "ok"]):
        pairs = zip(row["baseline_samples_ms"], row["samples_ms"], strict=True)
        found = median_interval([baseline / backend for baseline, backend in pairs])
        predicted = predicted_speedup(row, table, row["sparsity"])
        rows.append(
            {
                **{name: row[name] for name in kept},
                "measured_speedup": found.value,
                "low": found.low,
                "high": found.high,
                "predicted_speedup": predicted,
                "efficiency": theory.efficiency(found.value, predicted),
            }
        )
    names = [*kept, "measured_speedup", "low", "high", "predicted_speedup", "efficiency"]
    return pd.DataFrame(rows, columns=names)


def _keys(over: str | None, table: str) -> list[str]:
    """The columns that tell points apart: every setting, and the column compared over."""
    return [*SETTINGS[table], *([over] if over and over not in SETTINGS[table] else [])]


def gemm_points(frame: pd.DataFrame, over: str | None = None) -> pd.DataFrame:
    """`timed_points` of the gemm table."""
    return timed_points(frame, "gemm", over)


def lstm_points(frame: pd.DataFrame, over: str | None = None) -> pd.DataFrame:
    """`timed_points` of the lstm table."""
    return timed_points(frame, "lstm", over)


def timed_points(frame: pd.DataFrame, table: str, over: str | None = None) -> pd.DataFrame:
    """One row per setting of a timed table: the geometric mean over seeds, and the envelope of the seeds' intervals.

    ValueError where rows that cannot be compared are mixed and `over` does not name the column compared; its values then
    have points of their own.
    """
    one_of(frame, UNLIKE[table], over)
    cells, keys = measured_speedup(frame, over, table), _keys(over, table)
    rows = []
    for key, part in cells.groupby(keys, sort=True):
        settings = dict(zip(keys, key, strict=True))
        measured = math.exp(part["measured_speedup"].map(math.log).mean())
        sparsity = part["sparsity"].mean()
        predicted = predicted_speedup(settings, table, sparsity)
        rows.append(
            {
                **settings,
                "sparsity": sparsity,
                "measured_speedup": measured,
                "low": part["low"].min(),
                "high": part["high"].max(),
                "predicted_speedup": predicted,
                "efficiency": theory.efficiency(measured, predicted),
                "time_ms": part["time_ms"].median(),
                "baseline_ms": part["baseline_ms"].median(),
                "seeds": len(part),
                "noisy": bool(part["noisy"].fillna(False).any()),
            }
        )
    return pd.DataFrame(rows, columns=[*keys, *RESULTS])


def breakeven_sparsity(points: pd.DataFrame, by: Sequence[str] = SHAPE) -> pd.DataFrame:
    """The sparsity where the measured speedup crosses 1x, per `by`, block size and backend, with the fastest point.

    breakeven_noisy: a point that it rests on is noisy. noisy: the fastest point is. passed_over: a noisy point is faster.
    A point without a kept block is passed over, but the fastest is one where there is no other.
    """
    keys = [*by, "backend", "block_size"]
    rows = []
    for key, part in points.groupby(keys, sort=True):
        working = kept(part)
        candidates = quiet(part if working.empty else working)
        best = candidates.iloc[int(candidates["measured_speedup"].to_numpy().argmax())]
        crossing = theory.breakeven(working["sparsity"].tolist(), working["measured_speedup"].tolist())
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "breakeven_sparsity": crossing,
                "breakeven_noisy": bool(_deciding(working, crossing)["noisy"].any()),
                "fastest": best["measured_speedup"],
                "at_sparsity": best["sparsity"],
                "noisy": bool(best["noisy"]),
                "passed_over": bool((working["measured_speedup"] > best["measured_speedup"]).any()),
                "efficiency": candidates["efficiency"].median(),
            }
        )
    return pd.DataFrame(rows, columns=[*keys, *BREAKEVEN])


def _deciding(part: pd.DataFrame, crossing: theory.Breakeven) -> pd.DataFrame:
    """The points that a break-even rests on: both sides of the crossing, the slowest of 'always', the sparsest of 'never'."""
    ordered = part.sort_values(["sparsity", "measured_speedup"])
    if crossing.kind == "crosses":
        last = int(np.flatnonzero(ordered["measured_speedup"].to_numpy() < 1.0)[-1])
        return ordered.iloc[last : last + 2]
    return ordered.tail(1) if crossing.kind == "never" else ordered.nsmallest(1, "measured_speedup")


def block_sparse(points: pd.DataFrame) -> pd.DataFrame:
    """The points of backends that use the sparsity: all but the baseline timed against itself."""
    return points[points["backend"] != points["baseline"]]


def kept(points: pd.DataFrame) -> pd.DataFrame:
    """The points for which theory has a bound: where no block is kept, nothing is multiplied, and any speed says nothing."""
    return points[np.isfinite(points["predicted_speedup"].astype(float))]


def nothing_kept(points: pd.DataFrame) -> pd.DataFrame:
    """The other points than `kept`."""
    return points.drop(kept(points).index)


def quiet(points: pd.DataFrame) -> pd.DataFrame:
    """The points that are not noisy, or all of them where every one is: no noisy point is quoted while a quiet one exists."""
    still = points[~points["noisy"].astype(bool)]
    return points if still.empty else still


def best_product(points: pd.DataFrame) -> pd.Series | None:
    """The fastest block-sparse point that keeps a block, a noisy one only where all are; None where none was measured."""
    candidates = quiet(kept(block_sparse(points)))
    return None if candidates.empty else candidates.iloc[int(candidates["measured_speedup"].to_numpy().argmax())]


def leading_backend(points: pd.DataFrame) -> str | None:
    """The block-sparse backend with the highest geometric-mean speedup over what was measured with a block kept."""
    candidates = block_sparse(points)
    candidates = candidates if kept(candidates).empty else kept(candidates)
    if candidates.empty:
        return None
    return str(candidates["measured_speedup"].map(math.log).groupby(candidates["backend"]).mean().idxmax())


def failures(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell that is not ok, once, with its settings, status and reason (a cell with several rows: its last bad one)."""
    return frame[frame["status"] != "ok"].drop_duplicates("cell_id", keep="last")


def failure_groups(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Cells that are not ok counted by column `name`, status and reason: columns name, status, reason, cells."""
    bad = failures(frame).fillna({"reason": "no reason stored"})
    groups = bad.groupby([name, "status", "reason"], sort=True)["cell_id"].count()
    return groups.reset_index(name="cells")


def speedup_at(
    points: pd.DataFrame, sparsity: float, column: str = "measured_speedup", tolerance: float = 0.02
) -> float:
    """The measured speedup at `sparsity`, between the measured points of one backend, shape and block size.

    Time is linear in density, so the relative time 1 / speedup is what is interpolated. column: or 'low' or 'high'.
    NaN outside the measured sparsities (beyond `tolerance`, room for rounding to whole blocks): nothing is extrapolated.
    """
    around = _around(points, sparsity, tolerance)
    return float(1.0 / sum(share * (1.0 / row[column]) for row, share in around)) if around else math.nan


def noisy_at(points: pd.DataFrame, sparsity: float, tolerance: float = 0.02) -> bool:
    """Whether a point that `speedup_at` rests on, for more than a hundredth, is noisy."""
    return any(row["noisy"] for row, share in _around(points, sparsity, tolerance) if share > 0.01)


def _around(points: pd.DataFrame, sparsity: float, tolerance: float) -> list[tuple[dict[str, Any], float]]:
    """The points next to a sparsity, each with its share of the relative time there; none outside the measured sparsities."""
    ordered = records(points.sort_values("sparsity"))
    at = [row["sparsity"] for row in ordered]
    if not at or not at[0] - tolerance <= sparsity <= at[-1] + tolerance:
        return []
    left = max((index for index, value in enumerate(at) if value <= sparsity), default=0)
    right = min(left + 1, len(at) - 1)
    if at[right] == at[left] or sparsity <= at[0]:
        return [(ordered[left], 1.0)]
    share = (sparsity - at[left]) / (at[right] - at[left])
    return [(ordered[left], 1.0 - share), (ordered[right], share)]
