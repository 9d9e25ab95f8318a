"""Product and LSTM-layer timings beside theory, and networks beside the products they are made of.

Measured and predicted speedup, efficiency, break-even, what was not measured; accuracy against speed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import theory
from analysis.load import UNLIKE, one_of, records
from analysis.runs import is_dense, without_target
from analysis.stats import Estimate, median_interval

SHAPE = ["m", "k", "n"]
LAYER_SIDES = ["input_size", "hidden_size", "bptt"]
LAYER = [*LAYER_SIDES, "batch_size"]
FUSED = "torch_lstm"  # the baseline of a layer that a user of torch has
GEMM_SETTINGS = (
    "backend", "baseline", "op", *SHAPE, "block_size", "target_sparsity", "dtype", "device", "cache", "layout", "call",
    "pad", "threads",
)  # fmt: skip
LSTM_SETTINGS = (
    "backend", "baseline", "passes", *LAYER, "block_size", "target_sparsity", "scope", "dtype", "device", "pad",
    "threads",
)  # fmt: skip
STORAGE_SETTINGS = (
    "form", "indices", "what", *SHAPE, "block_size", "target_sparsity", "dtype", "device", "threads",
)  # fmt: skip
SETTINGS = {"gemm": GEMM_SETTINGS, "lstm": LSTM_SETTINGS, "storage": STORAGE_SETTINGS}
SPEEDUP = ("measured_speedup", "low", "high", "predicted_speedup", "efficiency")
AVERAGED = ("measured_speedup", "sparsity", "low", "high", "time_ms", "baseline_ms")  # over seeds
RESULTS = ("sparsity", *SPEEDUP, "time_ms", "baseline_ms", "seeds", "noisy")
BREAKEVEN = (
    "breakeven_sparsity", "breakeven_noisy", "fastest", "at_sparsity", "noisy", "passed_over", "efficiency",
)  # fmt: skip


def shape_name(shape: Sequence[Any]) -> str:
    """'W 1024 × 1024, n = 32', from (m, k, n)."""
    m, k, n = (int(side) for side in shape)
    return f"W {m} × {k}, n = {n}"


def layer_name(layer: Sequence[Any]) -> str:
    """'LSTM 1152 → 1152, 35 steps', from input and hidden size and time steps."""
    into, out, steps = (int(side) for side in layer)
    return f"LSTM {into} → {out}, {steps} steps"


def predicted_speedup(row: Mapping[str, Any], table: str, sparsity: float) -> float:
    """What theory promises at a sparsity achieved: of a product, or of an LSTM layer with the weights of its scope.

    Of a stored matrix its form decides what is skipped: nothing, zero elements, or empty blocks.
    """
    if table == "gemm":
        return theory.speedup(sparsity)
    if table == "storage":
        return {"dense": 1.0, "bsr": theory.speedup(sparsity)}.get(row["form"], theory.speedup(row["zero_share"]))
    return theory.layer_speedup(row["input_size"], row["hidden_size"], sparsity, row["scope"])


def measured_speedup(frame: pd.DataFrame, table: str) -> pd.DataFrame:
    """`frame` with the columns SPEEDUP of each measured cell, NaN where nothing was measured.

    measured_speedup is the median of the pairwise ratios baseline / backend, low..high its 95 % interval;
    predicted_speedup is theory's at the achieved sparsity; efficiency is measured / predicted.
    """
    found = [_speedup(row, table) if row["status"] == "ok" else [math.nan] * len(SPEEDUP) for row in records(frame)]
    columns = np.array(found, dtype=float).reshape(-1, len(SPEEDUP)).T
    return frame.assign(**dict(zip(SPEEDUP, columns, strict=True)))


def _speedup(row: Mapping[str, Any], table: str) -> list[float]:
    pairs = zip(row["baseline_samples_ms"], row["samples_ms"], strict=True)
    found = median_interval([baseline / backend for baseline, backend in pairs])
    predicted = predicted_speedup(row, table, row["sparsity"])
    return [found.value, found.low, found.high, predicted, theory.efficiency(found.value, predicted)]


def timed_points(cells: pd.DataFrame, table: str, over: str | None = None) -> pd.DataFrame:
    """One row per setting of `measured_speedup`: the geometric mean over seeds, and the envelope of their intervals.

    ValueError where rows that cannot be compared are mixed and `over` does not name the column compared; its values
    then have points of their own.
    """
    one_of(cells, UNLIKE[table], over)
    keys = [*SETTINGS[table], *([over] if over and over not in SETTINGS[table] else [])]
    ok = cells[cells["status"] == "ok"]
    number = ok.groupby(keys, sort=True).ngroup().to_numpy()  # of its setting, -1 where a key is null
    order = np.argsort(number, kind="stable")
    order = order[number[order] >= 0]
    begins = np.flatnonzero(np.diff(number[order], prepend=-1))
    settings = records(ok[keys].iloc[order[begins]])
    values = {name: ok[name].to_numpy(dtype=float)[order] for name in AVERAGED}
    noisy = ok["noisy"].eq(True).to_numpy(dtype=bool)[order]
    rows = []
    for setting, (begin, end) in zip(settings, pairwise([*begins, len(order)]), strict=True):
        part = {name: column[begin:end] for name, column in values.items()}
        measured = math.exp(float(np.mean([math.log(speedup) for speedup in part["measured_speedup"]])))
        sparsity = float(np.mean(part["sparsity"]))
        predicted = predicted_speedup(setting, table, sparsity)
        rows.append(
            {
                **setting,
                "sparsity": sparsity,
                "measured_speedup": measured,
                "low": float(np.fmin.reduce(part["low"])),
                "high": float(np.fmax.reduce(part["high"])),
                "predicted_speedup": predicted,
                "efficiency": theory.efficiency(measured, predicted),
                "time_ms": float(np.median(part["time_ms"])),
                "baseline_ms": float(np.median(part["baseline_ms"])),
                "seeds": int(end - begin),
                "noisy": bool(noisy[begin:end].any()),
            }
        )
    return pd.DataFrame(rows, columns=[*keys, *RESULTS])


def breakeven_sparsity(points: pd.DataFrame, by: Sequence[str] = SHAPE) -> pd.DataFrame:
    """The sparsity where the measured speedup crosses 1x, per `by`, block size and backend, with the fastest point.

    breakeven_noisy: a point that it rests on is noisy. noisy: the fastest is. passed_over: a noisy point is faster.
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
    """What a break-even rests on: both sides of a crossing, the slowest point of 'always', the sparsest of 'never'."""
    ordered = part.sort_values(["sparsity", "measured_speedup"])
    if crossing.kind == "crosses":
        last = int(np.flatnonzero(ordered["measured_speedup"].to_numpy() < 1.0)[-1])
        return ordered.iloc[last : last + 2]
    return ordered.tail(1) if crossing.kind == "never" else ordered.nsmallest(1, "measured_speedup")


def block_sparse(points: pd.DataFrame) -> pd.DataFrame:
    """The points of backends that use the sparsity: all but the baseline timed against itself."""
    return points[points["backend"] != points["baseline"]]


def kept(points: pd.DataFrame) -> pd.DataFrame:
    """The points for which theory has a bound: where no block is kept, nothing is multiplied, at any speed."""
    return points[np.isfinite(points["predicted_speedup"].astype(float))]


def nothing_kept(points: pd.DataFrame) -> pd.DataFrame:
    """The other points than `kept`."""
    return points.drop(kept(points).index)


def quiet(points: pd.DataFrame) -> pd.DataFrame:
    """The points that are not noisy, or all where every one is: no noisy point is quoted while a quiet one exists."""
    still = points[~points["noisy"].astype(bool)]
    return points if still.empty else still


def best_product(points: pd.DataFrame) -> pd.Series | None:
    """The fastest block-sparse point that keeps a block, a noisy one only where all are; None where there is none."""
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
    """Every cell that is not ok, once, with its settings, status and reason (of several rows the last bad one)."""
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
    NaN outside the measured sparsities (beyond `tolerance`, room for rounding to whole blocks): none is extrapolated.
    """
    around = _around(points, sparsity, tolerance)
    return float(1.0 / sum(share * (1.0 / row[column]) for row, share in around)) if around else math.nan


def noisy_at(points: pd.DataFrame, sparsity: float, tolerance: float = 0.02) -> bool:
    """Whether a point that `speedup_at` rests on, for more than a hundredth, is noisy."""
    return any(row["noisy"] for row, share in _around(points, sparsity, tolerance) if share > 0.01)


def _around(points: pd.DataFrame, sparsity: float, tolerance: float) -> list[tuple[dict[str, Any], float]]:
    """The points next to a sparsity, each with its share of the relative time there; none outside what was measured."""
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


class Product(NamedTuple):
    """The backend and shape whose timings stand for the network's products."""

    backend: str
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.backend}, {shape_name(self.shape)}"


def recurrent_shape(runs: pd.DataFrame) -> tuple[int, int, int] | None:
    """(m, k, n) of weight_hh_l0 in one step of training, of the first run; None without runs."""
    if runs.empty:
        return None
    hidden, batch = int(runs["hidden_size"].iloc[0]), int(runs["batch_size"].iloc[0])
    return 4 * hidden, hidden, batch


def chosen_product(points: pd.DataFrame, network: tuple[int, int, int] | None = None) -> Product | None:
    """The leading backend on the network's own product where that was timed, else on the largest weight, or None.

    Where several batches were timed: the network's, else the smallest.
    """
    backend = leading_backend(points)
    if backend is None:
        return None
    measured = points[points["backend"] == backend]
    shapes = [(int(m), int(k), int(n)) for m, k, n in measured[SHAPE].drop_duplicates().to_numpy()]
    wanted = network or (0, 0, 0)
    return Product(
        backend,
        max(shapes, key=lambda shape: (shape[:2] == wanted[:2], shape[0] * shape[1], shape[2] == wanted[2], -shape[2])),
    )


def with_product(replicates: pd.DataFrame, points: pd.DataFrame, product: Product | None) -> pd.DataFrame:
    """`replicates` with `product_speedup`, measured at the same block size and sparsity, and whether it is noisy.

    An `Estimate`, NaN where nothing was measured. Runs that prune nothing multiply with the dense baseline: 1x by
    definition, without an interval.
    """
    speedups, noisy = [], []
    for row in records(replicates):
        at, here = row["stored_sparsity"], _timed(points, product, row["block_size"])
        value, low, high = (speedup_at(here, at, column) for column in SPEEDUP[:3])
        dense = row["target_sparsity"] == 0.0 and not without_target(row["variant"])
        measured = Estimate(value, low, high, 0 if math.isnan(value) else len(here))
        speedups.append(Estimate(1.0, math.nan, math.nan, 0) if dense else measured)
        noisy.append(not dense and noisy_at(here, at))
    return replicates.assign(
        product_speedup=pd.Series(speedups, index=replicates.index, dtype=object), product_noisy=noisy
    )


def _timed(points: pd.DataFrame, product: Product | None, block_size: float) -> pd.DataFrame:
    """The points of `product` at one block size."""
    here = block_sparse(points)
    if product is None or pd.isna(block_size):
        return here.head(0)
    here = here[(here["backend"] == product.backend) & (here["block_size"] == block_size)]
    return here[(here[SHAPE] == list(product.shape)).all(axis=1)]


def on_front(speedups: pd.Series, perplexities: pd.Series) -> list[bool]:
    """Which points no other point beats in speed without losing perplexity; a NaN is never on the front."""
    pairs = list(zip(speedups, perplexities, strict=True))
    return [
        speed == speed and not any(s >= speed and p <= ppl and (s > speed or p < ppl) for s, p in pairs)
        for speed, ppl in pairs
    ]


def tradeoff(joined: pd.DataFrame) -> pd.DataFrame:
    """The rows of `with_product` that have both, with `speed`, `ppl` and `front`: not beaten in both by another.

    A network that keeps no block is no trade, and left out; one that did not train is on no front.
    """
    joined = kept(joined)
    joined = joined.assign(
        speed=[found.value for found in joined["product_speedup"]], ppl=[found.value for found in joined["test_ppl"]]
    )
    joined = joined[joined["speed"].notna()]
    trained = joined["trained"].astype(bool)
    front = on_front(joined["speed"].where(trained), joined["ppl"].where(trained, math.inf))
    return joined.assign(front=front, dense=joined["variant"].map(is_dense))
