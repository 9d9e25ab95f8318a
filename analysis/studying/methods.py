"""Classifiers side by side: accuracy of each setting, what it costs against dense, and which method is the best.

The scale is that of logarithms of error rates, as perplexities are compared: errors of a method are so many per cent
more or fewer. An error rate of nothing counts as half an example, so that it has a logarithm.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from analysis import stats
from analysis.runs import MODEL_SETTINGS, SETTING, counted_once, dense_partners, is_dense, without_path
from analysis.stats import Comparison, Estimate, compared, level

MEANS = ("stored_sparsity", "stored_weights", "sparsity", "test_accuracy", "dense_accuracy")
Setting = tuple[str, int, float]
FLOAT_BYTES = 4
NAN = math.nan
COLUMNS = (
    *SETTING, "seeds", "stored_sparsity", "stored_weights", "sparsity", "reached", "accuracy", "dense_accuracy",
    "network", "hidden_size", "error", "against_dense", "against_best",
)  # fmt: skip


def has_classes(final: pd.DataFrame) -> bool:
    """Whether finished runs are of classifiers."""
    return "test_accuracy" in final and bool(final["test_accuracy"].notna().any())


def with_errors(final: pd.DataFrame) -> pd.DataFrame:
    """Finished runs of classifiers with the share of the test examples that each gets wrong.

    test_error: that share; error_ratio: it beside that of the dense run of the same model, data and seed. A run that
    was made again on the sparse path is no other method, and counts once.
    """
    mine = counted_once(final[final["test_accuracy"].notna()])
    mine = mine.assign(variant=mine["variant"].map(without_path), test_error=_errors(mine))
    return mine.assign(error_ratio=mine["test_error"] / dense_partners(mine, ["test_error"])["test_error"])


def _errors(runs: pd.DataFrame) -> pd.Series:
    """The share of the test examples that each run gets wrong, half of one where it gets all right."""
    return (1.0 - runs["test_accuracy"].astype(float)).clip(lower=0.5 / runs["eval_tokens_seen"].astype(float))


def _networks(runs: pd.DataFrame) -> pd.Series:
    """What is equal for runs of networks, on data, that differ in their width alone."""
    same = [name for name in (*MODEL_SETTINGS, "corpus_sha256") if name in runs and name != "hidden_size"]
    return runs[same].astype(str).agg("|".join, axis=1)


def _labelled(mine: pd.DataFrame) -> tuple[list[Any], list[Any], list[float]]:
    """Setting, seed and error rate of each run of `with_errors`: what `stats.residual` and `stats.scatter` take."""
    settings = list(mine[[*SETTING]].itertuples(index=False, name=None))
    return settings, mine["seed"].tolist(), mine["test_error"].tolist()


def _by_setting(mine: pd.DataFrame) -> dict[Any, pd.Series]:
    """Error rates by seed, of each setting."""
    return {key: part.set_index("seed")["test_error"] for key, part in mine.groupby([*SETTING], sort=False)}


def methods(final: pd.DataFrame) -> pd.DataFrame:
    """One row per variant, block size and target sparsity of `runs.runs`, the best first within its place.

    accuracy: mean test accuracy over seeds; error: mean error rate with its interval, the scatter pooled over settings.
    dense_accuracy: that of the dense runs of the same network. network: equal where all but the width of it is.
    against_dense: the ratio of error rates to the dense run of the same seed, all settings one question. against_best:
    to the setting of the fewest errors of the same block size and target, paired by seed; those are one question each.
    reached: whether the sparsity is that of the target; a run that stopped before is compared to none.
    """
    if not has_classes(final):
        return pd.DataFrame(columns=list(COLUMNS))
    mine = with_errors(final)
    mine["dense_accuracy"] = dense_partners(mine, ["test_accuracy"])["test_accuracy"]
    mine["network"] = _networks(mine)
    residual, scatter = stats.residual(*_labelled(mine)), stats.scatter(*_labelled(mine))
    grouped, groups = mine.groupby([*SETTING], sort=False), _by_setting(mine)
    pruned = [not is_dense(str(key[0])) for key in groups]
    ratios = [
        part["error_ratio"].dropna().tolist() if sparse else []
        for (_, part), sparse in zip(grouped, pruned, strict=True)
    ]
    costs = compared(ratios, residual)
    places = zip(groups, grouped.groups.values(), strict=True)
    reached = {key: _reached(mine.loc[at, "sparsity"], key[2]) for key, at in places}
    beaten = _against_best({key: errors for key, errors in groups.items() if reached[key]}, residual)
    rows = [
        {
            **dict(zip(SETTING, key, strict=True)),
            "seeds": len(errors),
            **{name: float(mine.loc[at, name].astype(float).mean()) for name in MEANS},
            **{name: mine.loc[at, name].iloc[0] for name in ("network", "hidden_size")},
            "error": level(errors.tolist(), scatter),
            "against_dense": cost,
            "reached": reached[key],
            "against_best": beaten.get(key, Comparison(NAN, NAN, NAN, 0)),
        }
        for (key, errors), cost, at in zip(groups.items(), costs, grouped.groups.values(), strict=True)
    ]
    found = pd.DataFrame(rows).rename(columns={"test_accuracy": "accuracy"})[list(COLUMNS)]
    order = found.assign(value=[one.value for one in found["error"]])
    return found.loc[order.sort_values(["target_sparsity", "block_size", "value"], kind="stable").index].reset_index(
        drop=True
    )


SHORT = 0.02  # whole blocks do not come nearer


def _reached(sparsities: pd.Series, target: float) -> bool:
    """Whether runs have emptied as many blocks as they were to."""
    return bool(target == 0.0 or sparsities.astype(float).mean() >= target - SHORT)


def at_a_target(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of `methods` or `narrowings` that are pruned to their target: not by a threshold, nor stopped before."""
    return found[(found["target_sparsity"] > 0.0) & found["reached"].astype(bool)]


def between(final: pd.DataFrame, one: Setting, other: Setting) -> Comparison:
    """Errors of one setting (variant, block size, target sparsity) over those of another, paired by seed: one question.

    The residual is pooled over all settings of `runs.runs`.
    """
    mine = with_errors(final)
    errors = _by_setting(mine)
    return compared([_ratios(errors[one], errors[other])], stats.residual(*_labelled(mine)))[0]


def _ratios(errors: pd.Series, others: pd.Series) -> list[float]:
    """Of the seeds that both have."""
    both = errors.index.intersection(others.index)
    return (errors[both] / others[both]).tolist()


def _against_best(groups: dict[Any, pd.Series], residual: stats.Scatter) -> dict[Any, Comparison]:
    """Of each setting, by its key: its errors over those of the best of its block size and target; 1 of that itself."""
    found: dict[Any, Comparison] = {}
    for place in dict.fromkeys(key[1:] for key in groups):
        keys = [key for key in groups if key[1:] == place]
        best = min(keys, key=lambda key: float(groups[key].mean()))
        others = [key for key in keys if key != best]
        answers = compared([_ratios(groups[key], groups[best]) for key in others], residual)
        found |= dict(zip(others, answers, strict=True))
        found[best] = Comparison(*Estimate(1.0, float("nan"), float("nan"), len(groups[best])))
    return found


def narrowings(final: pd.DataFrame) -> pd.DataFrame:
    """One row per setting of `runs.runs` whose finished models were measured, with and without their dead units.

    live_share: units that are live, of all in the layers; units: as live_units, of the first seed. inference, narrowed:
    speedup over the dense model as pruned and with the dead units removed, medians of pairs, over seeds; equal: that of
    a dense network of equal_units, which stores as many weights, where it was measured. Bytes are means; final_bytes
    and narrowed_bytes are of the pruned weights. Of language models and classifiers alike; these have their error rate
    too, as `methods` has it, and layer_bytes, narrowed_layer_bytes of all hidden weights.
    """
    names = ("live_units", "inference_ms", "inference_narrowed_ms")
    nothing = pd.DataFrame(columns=[*SETTING, "reached"])
    if any(name not in final for name in names):
        return nothing
    mine = final[final["live_units"].notna() & final["inference_narrowed_ms"].notna()]
    scatter = stats.scatter(*_labelled(with_errors(final))) if has_classes(mine) else None
    rows = []
    for key, part in mine.groupby([*SETTING], sort=False):
        units = sum(sum(each) for each in part["live_units"])
        speedups = {
            name: [_speedup(dense, own) for dense, own in zip(part[above], part[below], strict=True)]
            for name, above, below in (
                ("inference", "inference_dense_ms", "inference_ms"),
                ("narrowed", "inference_narrowed_dense_ms", "inference_narrowed_ms"),
            )
        } | {"equal": _of_equal_weights(part)["speedup"].tolist()}
        rows.append(
            {
                **dict(zip(SETTING, key, strict=True)),
                "seeds": len(part),
                "units": list(part["live_units"].iloc[0]),
                "narrowed_units": list(part["narrowed_units"].iloc[0]),
                "equal_units": float(part["equal_units"].astype(float).mean()) if "equal_units" in part else NAN,
                "live_share": units / float((part["num_layers"] * part["hidden_size"]).sum()),
                **{name: stats.ratio_interval(found) for name, found in speedups.items()},
                **{name: float(part[name].mean()) for name in ("dense_bytes", "final_bytes", "narrowed_bytes")},
                **{name: float(part[name].mean()) for name in ("stored_sparsity", "sparsity")},
                "reached": _reached(part["sparsity"], part["target_sparsity"].iloc[0]),
                "narrowed_sparsity": float(part["narrowed_sparsity"].astype(float).mean()),
                "network": _networks(part).iloc[0],
                "hidden_size": part["hidden_size"].iloc[0],
                "error": None if scatter is None else level(_errors(part).tolist(), scatter),
                **_with_the_others(part),
            }
        )
    if not rows:
        return nothing
    return pd.DataFrame(rows).sort_values([*SETTING[1:], "variant"], ignore_index=True)


def _of_equal_weights(final: pd.DataFrame) -> pd.DataFrame:
    """network, hidden_size (of the pruned one), equal_units, speedup: of each run that timed such a dense network."""
    if "inference_equal_ms" not in final or final["inference_equal_ms"].isna().all():
        return pd.DataFrame(columns=["network", "hidden_size", "equal_units", "speedup"])
    timed = final[final["inference_equal_ms"].notna()]
    pairs = zip(timed["inference_equal_dense_ms"], timed["inference_equal_ms"], strict=True)
    speedups = [_speedup(dense, own) for dense, own in pairs]
    return timed.assign(network=_networks(timed), speedup=speedups)[
        ["network", "hidden_size", "equal_units", "speedup"]
    ]


def smaller(final: pd.DataFrame) -> pd.DataFrame:
    """One row per width of a dense network that was timed beside pruned ones which store as many weights.

    network, as `methods` has it; beside: units of the large network; hidden_size: its own; speedup: over the large one
    dense, medians of pairs, over the runs that it was timed in.
    """
    timed = _of_equal_weights(final)
    rows = [
        {"network": network, "beside": beside, "hidden_size": width, "speedup": stats.ratio_interval(list(part))}
        for (network, beside, width), part in timed.groupby(["network", "hidden_size", "equal_units"])["speedup"]
    ]
    return pd.DataFrame(rows, columns=["network", "beside", "hidden_size", "speedup"])


def _with_the_others(runs: pd.DataFrame) -> dict[str, float]:
    """Bytes of all weights of the hidden layers of a classifier, pruned or not: what dense ones are compared by.

    Where the first layer is not pruned, it is a dense matrix of as many rows as that layer has units.
    """
    nothing = {"layer_bytes": math.nan, "narrowed_layer_bytes": math.nan}
    if "features" not in runs or runs["features"].isna().any():
        return nothing
    beside = runs["features"].astype(float) * FLOAT_BYTES * (runs["scope"] == "weight_hh")
    units = runs["hidden_size"], runs["narrowed_units"].map(lambda each: each[0])
    own = runs["final_bytes"], runs["narrowed_bytes"]
    return {
        name: float((bytes_ + beside * count).mean()) for name, bytes_, count in zip(nothing, own, units, strict=True)
    }


def _speedup(dense: Any, own: Any) -> float:
    return float(np.median(np.asarray(dense, dtype=float) / np.asarray(own, dtype=float)))
