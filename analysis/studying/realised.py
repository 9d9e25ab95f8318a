"""What training on the sparse path realised of theory: the time integral, end to end, and the finished model.

The integral comes from probes: interleaved pairs of the LSTM layers, dense path against the path in use, on batches
along the run. Whole runs are compared by their seconds; they ran one after another, not interleaved, so that is rough.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import theory
from analysis.load import UNLIKE, one_of, records
from analysis.runs import (
    MODEL_SETTINGS,
    PRUNING_SETTINGS,
    SETTING,
    Pool,
    final_epochs,
    multiply_adds,
    prunes,
    variant_name,
    variant_names,
)
from analysis.stats import (
    NOTHING,
    Estimate,
    difference,
    integral_ratio,
    level,
    median_interval,
    ratio_interval,
    scaled,
    step_weights,
)

COLUMNS = (
    "cell_id", "variant", "hidden_size", "block_size", "target_sparsity", "seed", "path", "lstm_kernel",
    "mean_sparsity", "final_sparsity", "sparse_share", "predicted", "predicted_at_probes", "measured", "efficiency",
    "steps", "sparse_seconds", "masked_seconds", "dense_seconds", "lstm_share", "ceiling", "allowed", "against_masked",
    "against_dense", "whole", "inference_kernel", "inference", "inference_lstm", "inference_promise",
    "inference_ceiling", "dense_bytes", "final_bytes", "test_ppl", "masked_ppl", "final_ppl",
)  # fmt: skip
MEANS = (  # over seeds
    "predicted", "sparse_seconds", "masked_seconds", "dense_seconds", "lstm_share", "ceiling", "allowed",
    "inference_promise", "inference_ceiling", "dense_bytes", "final_bytes",
)  # fmt: skip
RATIOS = ("measured", "efficiency", "against_masked", "whole", "inference", "inference_lstm")
PERPLEXITIES = ("test_ppl", "masked_ppl", "final_ppl")


class Probe(NamedTuple):
    """Samples of one step of a run, in ms: LSTM layers forward and backward, pair by pair."""

    step: int
    sparsity: float
    sparse_layers: int
    dense_ms: list[float]
    lstm_ms: list[float]


def probes(run: pd.DataFrame) -> list[Probe]:
    """The probes of one run in the order of their steps; none where its table or its rows hold none."""
    found = []
    for stored in run.get("probes", ()):
        for one in stored if isinstance(stored, list | np.ndarray) else ():
            samples = (np.asarray(one[name], dtype=float).tolist() for name in ("dense_ms", "lstm_ms"))
            found.append(Probe(int(one["step"]), float(one["sparsity"]), int(one["sparse_layers"]), *samples))
    return sorted(probe for probe in found if probe.dense_ms)


def layers_speedup(row: dict[str, Any], sparsity: float) -> float:
    """What theory promises the LSTM layers of a run's model at one sparsity of its prunable weights."""
    return theory.amdahl_ceiling(*multiply_adds(row), sparsity)


def realised(train: pd.DataFrame) -> pd.DataFrame:
    """One row per finished pruned run on a path other than dense (columns: COLUMNS).

    predicted: theory of the LSTM layers at the sparsity achieved, averaged over every step; predicted_at_probes: the
    same by the probes' quadrature, which shows its error. measured, efficiency: `Estimate`s from the probes. masked:
    the run with the same settings and seed on the dense path; dense: the unpruned one; whole: speedup over the masked
    run, or over the dense one. lstm_share: of the masked run's training time (of the dense run's without one, else of
    this run's with its LSTM time exchanged for the dense probes'). ceiling, allowed: Amdahl's with that share at the
    predicted and at the measured speedup. inference, inference_lstm: pairs of the whole finished model and of its LSTM
    layers; inference_promise, inference_ceiling: theory and Amdahl's ceiling of those.
    """
    one_of(train, UNLIKE["train"])
    one_of(train[train["train_seconds"].notna()], ("device_name",))
    final = final_epochs(train).copy()
    epochs = train[train["epoch"] >= 1].groupby("cell_id")
    for name, column in (("seconds", "train_seconds"), ("lstm_total", "lstm_seconds")):
        final[name] = final["cell_id"].map(epochs[column].sum(min_count=1)).astype(float)
    final["unpruned"] = [variant_name(row) == "dense" for row in records(final)]
    final["variant"] = _shorter(variant_names(final))
    final["alike"], final["pruned_alike"] = _alike(final, ()), _alike(final, PRUNING_SETTINGS)
    rows = [
        _row(row, train[(train["cell_id"] == row["cell_id"]) & (train["epoch"] >= 1)], final)
        for row in records(final)
        if row["path"] != "dense" and prunes(row)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _shorter(variants: list[str]) -> list[str]:
    """Sizes of models by their units, where that tells the same ones apart."""
    units = [re.sub(r", hidden_size (\d+)", r", \1 units", name) for name in variants]
    short = [re.sub(r", embedding_size \d+(?=.* units)", "", name) for name in units]
    return short if len(set(short)) == len(set(variants)) else units


def _row(row: dict[str, Any], epochs: pd.DataFrame, final: pd.DataFrame) -> dict[str, Any]:
    names = (
        "cell_id", "hidden_size", "block_size", "target_sparsity", "seed", "path", "lstm_kernel", "inference_kernel",
        "dense_bytes", "final_bytes", "test_ppl", "final_ppl",
    )  # fmt: skip
    masked, dense = _partner(final, row, pruned=True), _partner(final, row, pruned=False)
    found = {
        **{name: row[name] for name in names},
        "variant": row["variant"],
        "final_sparsity": row["sparsity"],
        "mean_sparsity": _mean_over_steps(epochs, "mean_sparsity"),
        "sparse_share": _mean_over_steps(epochs, "sparse_share"),
        "sparse_seconds": row["seconds"],
        "masked_seconds": _value(masked, "seconds"),
        "dense_seconds": _value(dense, "seconds"),
        "masked_ppl": _value(masked, "test_ppl"),
        "steps": row["step"],
        "lstm_share": _lstm_share(masked, dense),
        "inference": _pairs(row["inference_dense_ms"], row["inference_ms"]),
        "inference_lstm": _pairs(row["inference_lstm_dense_ms"], row["inference_lstm_ms"]),
        "inference_promise": layers_speedup(row, row["sparsity"]),
    }
    share = _share(row["inference_lstm_dense_ms"], row["inference_dense_ms"])
    found["inference_ceiling"] = amdahl(share, found["inference_promise"])
    found["against_masked"] = found["masked_seconds"] / found["sparse_seconds"]
    found["against_dense"] = found["dense_seconds"] / found["sparse_seconds"]
    found["whole"] = found["against_dense"] if math.isnan(found["against_masked"]) else found["against_masked"]
    return found | _integral(row, epochs, found)


def _integral(row: dict[str, Any], epochs: pd.DataFrame, found: dict[str, Any]) -> dict[str, Any]:
    """What the probes say: the integral measured beside theory's, the LSTM layers' share, and Amdahl's ceilings."""
    predicted = layers_speedup(row, found["mean_sparsity"])
    taken = probes(epochs)
    if not taken:
        nothing = dict.fromkeys(("predicted_at_probes", "ceiling", "allowed"), math.nan)
        return {"predicted": predicted, "measured": NOTHING, "efficiency": NOTHING, **nothing}
    weights = step_weights([probe.step for probe in taken], row["step"])
    measured = integral_ratio([probe.dense_ms for probe in taken], [probe.lstm_ms for probe in taken], weights.tolist())
    at_probes = min(float(weights @ np.array([probe.sparsity for probe in taken]) / weights.sum()), 1.0)  # rounding
    dense_lstm = float(weights @ np.array([np.median(probe.dense_ms) for probe in taken])) / 1e3
    exchanged = row["seconds"] - row["lstm_total"] + dense_lstm
    share = next((one for one in (found["lstm_share"], dense_lstm / exchanged) if not math.isnan(one)), math.nan)
    return {
        "predicted": predicted,
        "predicted_at_probes": layers_speedup(row, at_probes),
        "measured": measured,
        "efficiency": scaled(measured, predicted),
        "lstm_share": share,
        "ceiling": amdahl(share, predicted),
        "allowed": amdahl(share, measured.value),
    }


def amdahl(share: float, speedup: float) -> float:
    """Speedup of the whole when `share` of its time becomes `speedup` times as fast; NaN where the share is none."""
    if not 0.0 <= share <= 1.0:  # NaN, or seconds of two runs that do not fit together
        return math.nan
    remaining = 1.0 - share + share / speedup
    return 1.0 / remaining if remaining > 0.0 else math.inf


def over_seeds(found: pd.Series) -> Estimate:
    """Geometric mean over seeds of estimates or plain ratios; of a single seed its own interval.

    What is no number, or has no bound, is left out.
    """
    every = [one if isinstance(one, Estimate) else Estimate(float(one), math.nan, math.nan, 1) for one in found]
    kept = [one for one in every if math.isfinite(one.value)]
    return kept[0] if len(kept) == 1 else ratio_interval([one.value for one in kept])


def gains(found: pd.DataFrame, pool: Pool) -> pd.DataFrame:
    """One row per variant, block size and target sparsity of `realised`, over its seeds.

    RATIOS are `over_seeds`, PERPLEXITIES means with the interval of `Pool.level`, in its unit, MEANS plain. ppl_ratio:
    `Comparison` of the test perplexity with that of the masked run of the same seed, all settings one question;
    ppl_difference: the same as a difference; seed_noise: standard deviation of the masked ones over their seeds, NaN
    where it is unknown.
    """
    groups = list(found.groupby([*SETTING], sort=False))
    told = [pool.unit.of(part[[*PERPLEXITIES]].astype(float)) for _, part in groups]
    paired = [one[["test_ppl", "masked_ppl"]].dropna() for one in told]
    ratios = pool.compared([(one["test_ppl"] / one["masked_ppl"]).tolist() for one in paired], [True] * len(paired))
    rows = [
        {
            **dict(zip(SETTING, key, strict=True)),
            "seeds": len(part),
            **{name: float(part[name].astype(float).mean()) for name in MEANS},
            **{name: over_seeds(part[name]) for name in RATIOS},
            **{name: level(ppls[name].dropna().tolist(), pool.levels["test_ppl"]) for name in PERPLEXITIES},
            "ppl_ratio": ratio,
            "ppl_difference": difference(ratio, float(one["masked_ppl"].mean())),
            "seed_noise": float(one["masked_ppl"].std(ddof=1)) if len(one) > 1 else math.nan,
        }
        for (key, part), ppls, one, ratio in zip(groups, told, paired, ratios, strict=True)
    ]
    names = [*SETTING, "seeds", *MEANS, *RATIOS, *PERPLEXITIES, "ppl_ratio", "ppl_difference", "seed_noise"]
    return pd.DataFrame(rows, columns=names)


def _alike(final: pd.DataFrame, pruning: Sequence[str]) -> list[tuple[Any, ...]]:
    """Model, data, machine and seed of each run, and its `pruning`: partners have the same."""
    names = (*MODEL_SETTINGS, *pruning, "seed", "device_name", "corpus_sha256")
    return list(zip(*(final[name] for name in names if name != "path" and name in final), strict=True))


def _partner(final: pd.DataFrame, row: dict[str, Any], pruned: bool) -> pd.DataFrame:
    """Runs on the dense path with a run's model, data, machine and seed: equally pruned, or unpruned."""
    column = "pruned_alike" if pruned else "alike"
    alike = np.array([one == row[column] for one in final[column]])
    return final[(final["path"] == "dense") & alike & (pruned | final["unpruned"])]


def _value(partner: pd.DataFrame, column: str) -> float:
    return math.nan if partner.empty else float(partner[column].iloc[0])


def _lstm_share(*partners: pd.DataFrame) -> float:
    """The LSTM layers' share of the training time of the first partner that tells; NaN where none does."""
    shares = [_value(partner, "lstm_total") / _value(partner, "seconds") for partner in partners]
    return next((share for share in shares if not math.isnan(share)), math.nan)


def _mean_over_steps(epochs: pd.DataFrame, column: str) -> float:
    """The mean of a column over the steps of a run; epochs count by the steps they took."""
    ordered = epochs.sort_values("epoch")
    steps = ordered["step"].astype(float).diff().fillna(ordered["step"].astype(float)).fillna(1.0).to_numpy()
    return float(np.average(ordered[column].astype(float), weights=steps))


def _pairs(above: Any, below: Any) -> Estimate:
    """The median of paired ratios with its interval; n = 0 where nothing was stored."""
    if not isinstance(above, list | np.ndarray) or not isinstance(below, list | np.ndarray):
        return NOTHING
    return median_interval([over / under for over, under in zip(above, below, strict=True)])


def _share(part: Any, whole: Any) -> float:
    """Median of one list of times over the median of another; NaN where nothing was stored."""
    if not isinstance(part, list | np.ndarray) or not isinstance(whole, list | np.ndarray):
        return math.nan
    return float(np.median(part) / np.median(whole))
