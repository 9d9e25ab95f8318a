"""Training runs side by side: variants by name, final epochs, replicates over seeds, and the cost of sparsity.

Selection is at final sparsity only: an earlier epoch of a gradually pruned run is a less sparse model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import stats, theory
from analysis.accuracy.endings import falling
from analysis.accuracy.units import Unit, unit_of
from analysis.accuracy.yardsticks import of_text, why_untrained
from analysis.load import UNLIKE, load_yardsticks, one_of, records
from analysis.stats import UNKNOWN, Comparison, Estimate, Scatter, compared, difference, level, ratio_interval

MODEL_SETTINGS = (
    "threads", "dataset", "tokens", "min_count", "valid_share", "test_share",
    "train_tokens", "eval_tokens", "model", "embedding_size", "hidden_size", "num_layers",
    "dropout", "batch_norm", "decoder_bias", "decoder", "cutoff", "second_cutoff", "embedding_gradient", "precision",
    "compile", "optimizer", "learning_rate", "lr_schedule", "momentum", "weight_decay", "clip",
    "epochs", "batch_size", "bptt", "input_dropout", "hidden_dropout", "output_dropout", "embedding_dropout",
    "weight_drop", "activation_penalty", "temporal_penalty", "nonmonotone", "beta1", "beta1_dip", "beta2",
    "rate_by_length", "bptt_jitter", "bptt_halved", "selection", "test_batch_size",
)  # fmt: skip
PRUNING_SETTINGS = (
    "block_size", "scope", "pad", "lasso", "lasso_strength", "lasso_budget", "lasso_scaled", "lasso_rate",
    "schedule", "criterion", "curvature_probes", "allocation", "target_sparsity", "prune_begin", "prune_end",
    "prune_every", "threshold", "scaled_start", "initial_sparsity", "regrow", "regrow_share", "path",
    "prune_rounds", "rewind", "rewind_to", "stop_rise",
    "prune_biases", "scale_penalty", "scale_threshold", "scale_at",
)  # fmt: skip
PPL = ("train_ppl", "val_ppl", "test_ppl")
SETTING = ("variant", "block_size", "target_sparsity")
MEANS = ("hidden_size", "stored_weights", "stored_sparsity", "predicted_speedup", "ceiling", "predicted_training")
EQUAL = 0.05  # stored weights that differ by less, as a share, are called equal


def prunes(row: dict[str, Any]) -> bool:
    """Whether the settings of a run prune at all."""
    return bool(row["schedule"] != "none" and (row["target_sparsity"] > 0.0 or threshold(row) > 0.0))


def threshold(row: dict[str, Any]) -> float:
    """The score below which a run empties blocks, in place of a target; 0 where it has a target, or prunes nothing."""
    return _number(row, "threshold")


def _number(row: dict[str, Any], name: str) -> float:
    """A setting that older tables lack, or have null, which means 0."""
    value = row.get(name)
    return 0.0 if value is None or math.isnan(value) else float(value)


BY_THRESHOLD = "threshold "  # in the names of variants whose sparsity no target tells


def by_threshold(variant: str) -> bool:
    """Whether a threshold decides how many blocks a variant empties: its target sparsity, 0, says nothing."""
    return BY_THRESHOLD in variant


BY_SCALES = "scales under "  # in the names of variants that let whole neurons go by them


def by_scales(variant: str) -> bool:
    """Whether scales of batch normalisation decide which neurons a variant lets go: these need no target."""
    return BY_SCALES in variant


def without_target(variant: str) -> bool:
    """Whether a variant prunes by a threshold, of scores or of scales, so that its target sparsity, 0, says nothing."""
    return by_threshold(variant) or by_scales(variant)


def is_pruned(found: pd.DataFrame) -> pd.Series:
    """Which rows of `runs` or `replicates` are of pruned networks."""
    return (found["target_sparsity"] > 0.0) | found["variant"].map(without_target).astype(bool)


def wanted(row: dict[str, Any]) -> str:
    """The target sparsity of a row of `runs` or `replicates`: '0.8', or that there is none."""
    if by_scales(row["variant"]) and row["target_sparsity"] == 0.0:
        return "by scales"
    return "by threshold" if by_threshold(row["variant"]) else f"{row['target_sparsity']:g}"


REGROWN = {"set": ", SET", "rigl": ", RigL"}
ALLOCATED = {"erk": "ERK", "gate": "gate by gate", "global": "all matrices in one order"}


def variant_name(row: dict[str, Any], name_form: bool = False) -> str:
    """'block lasso + gradual (linear)' and the like, from a run's settings; `name_form` adds the form of the lasso."""
    parts = []
    if row["lasso"] != "none":
        parts.append(f"block lasso ({row['lasso']})" if name_form else "block lasso")
    if prunes(row):
        schedule, criterion = row["schedule"], row["criterion"]
        suffix = "" if criterion == "l2" else f", {criterion}"
        suffix += f", {BY_THRESHOLD}{threshold(row):g}" if threshold(row) else ""
        start = ", scaled start" if row.get("scaled_start") in (True,) else ""
        start += REGROWN.get(row.get("regrow") or "none", "")
        names = {
            "pre": f"random pre-pruning{start}",
            "one_shot": f"one-shot{suffix}",
            "iterative": f"iterative{suffix}{_in_rounds(row)}",
        }
        initial = row.get("initial_sparsity") or 0.0
        onwards = f" from {initial:g}" if initial > 0.0 else ""
        parts.append(names.get(schedule, f"gradual ({schedule}{onwards}{suffix})") + _allocated(row))
    penalty, least = (_number(row, f"scale_{name}") for name in ("penalty", "threshold"))
    if penalty:
        parts.append(f"batch-norm scale penalty {penalty:g}")
    if least:
        parts.append(f"{BY_SCALES}{least:g}")
    path = row.get("path") or "dense"  # tables from before there was a choice have no such column
    return (" + ".join(parts) or "dense") + ("" if path == "dense" else f", {path} path")


def _in_rounds(row: dict[str, Any]) -> str:
    """How a pruning in rounds goes on: ', rewound', and when it stops."""
    rise = row.get("stop_rise") or 0.0
    rewound = ", rewound" if row.get("rewind") == "weights" else ""
    return rewound + (f", stopping at +{100 * rise:g} %" if rise > 0.0 else "")


def _allocated(row: dict[str, Any]) -> str:
    """', ERK' where the sparsity of all is spread by the Erdős–Rényi rule, and other ways to rank blocks."""
    words = ALLOCATED.get(row.get("allocation") or "uniform", "")
    return f", {words}" if words else ""


def without_path(variant: str) -> str:
    """The name of a variant whatever multiplied its weights: the masked run and the sparse one share it."""
    return variant.removesuffix(", sparse path").removesuffix(", auto path")


def is_dense(variant: str) -> bool:
    """Whether a variant is the unpruned, unpenalised network (of whatever size)."""
    return variant.split(",")[0] == "dense"


def variant_names(runs: pd.DataFrame) -> list[str]:
    """`variant_name` of each run, with the settings that tell apart runs which would share one name.

    The form of the lasso is named only where two forms occur; the criterion of pre-pruning says nothing, its pattern is
    random whatever the column says.
    """
    several = runs.loc[runs["lasso"] != "none", "lasso"].nunique() > 1
    plain = pd.Series([variant_name(row, several) for row in records(runs)], index=runs.index, dtype=object)
    names = plain.copy()
    runs = runs.assign(criterion=runs["criterion"].where(runs["schedule"] != "pre", "random"))
    said = ("block_size", "target_sparsity", "threshold", "scale_penalty", "scale_threshold")
    told = [name for name in (*MODEL_SETTINGS, *PRUNING_SETTINGS) if name not in said]
    differing = [name for name in told if name in runs and runs[name].nunique() > 1]
    for _, part in runs.groupby(plain):
        for column in differing:
            if part[column].nunique() > 1:
                names[part.index] += part[column].map(lambda value, column=column: _told(column, value))
    return names.tolist()


def _told(column: str, value: Any) -> str:
    """', hidden_size 256'; of a switch its name where it is on, and nothing where it is off."""
    if isinstance(value, bool | np.bool_):
        return f", {column}" if value else ""
    return f", {column} {value}"


def final_epochs(frame: pd.DataFrame) -> pd.DataFrame:
    """The last-epoch row of every run that finished: all its rows are ok, the last is of the epoch its settings name.

    Where another epoch is the one to report (setting `selection`), perplexities and accuracies are that epoch's.
    """
    if frame.empty:
        return frame
    ok = frame.groupby("cell_id")["status"].transform(lambda status: (status == "ok").all())
    final = frame[ok & (frame["epoch"] == frame["epochs"])].drop_duplicates("cell_id", keep="last")
    names = ("val_ppl", "test_ppl", "val_accuracy", "test_accuracy")
    reported = [name for name in names if f"reported_{name}" in final]
    return final.assign(
        **{name: final[f"reported_{name}"].astype(float).fillna(final[name].astype(float)) for name in reported}
    )


def failed_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Cells that did not end ok, counted: columns status, reason, runs."""
    bad = frame[frame["status"] != "ok"].drop_duplicates("cell_id", keep="last").fillna({"reason": "no reason stored"})
    return bad.groupby(["status", "reason"], sort=True)["cell_id"].count().reset_index(name="runs")


def multiply_adds(row: dict[str, Any]) -> tuple[float, float]:
    """(of the prunable weights, of the other ones) of a run's layers, per token or example."""
    features = row.get("features")
    if features is None or pd.isna(features):
        weight_ih, weight_hh = theory.lstm_multiply_adds(
            row["embedding_size"], row["hidden_size"], row["num_layers"], row["decoder"]
        )
    else:
        weight_ih, weight_hh = theory.mlp_multiply_adds(int(features), row["hidden_size"], row["num_layers"])
    return (weight_hh, weight_ih) if row["scope"] == "weight_hh" else (weight_hh + weight_ih, 0)


def lstm_weights(row: dict[str, Any], sparsity: float) -> float:
    """Weights of a run's layers that are stored at one sparsity of its prunable ones, biases aside.

    One weight a multiply-add and token, so theory counts them. Sizes of networks are compared by it.
    """
    pruned, other = multiply_adds(row)
    return pruned * (1.0 - sparsity) + other


def amdahl(row: dict[str, Any]) -> float:
    """Ceiling of the whole forward pass at a run's sparsity, from its LSTM and decoder multiply-adds per token."""
    pruned, other = multiply_adds(row)
    stored = row["decoder_multiply_adds"]  # older tables have it not: all their decoders are tied
    decoder = row["embedding_size"] * row["vocabulary"] if pd.isna(stored) else stored
    return theory.amdahl_ceiling(pruned, other + decoder, row["stored_sparsity"])


def runs(frame: pd.DataFrame, over: str | None = None, yardsticks: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per finished run: its final epoch, variant, predictions, its ratio to the seed's dense run of its size.

    Adds variant, stored_sparsity (blocks that are exactly zero), stored_weights (`lstm_weights` there),
    predicted_speedup (of the pruned products), ceiling (of the forward pass, Amdahl), predicted_training and
    measured_training (speedup of the whole training run; NaN where the two ran from different sources or on different
    machines), ppl_ratio and ppl_difference (test perplexity against dense, in the unit of the text; NaN for dense
    itself and where it has no partner), dense_trained (whether that partner did), and trained, with why_untrained where
    that is false.
    yardsticks: `load.load_yardsticks`.
    """
    one_of(frame, UNLIKE["train"], over)
    final = final_epochs(frame).copy()
    final["variant"] = variant_names(final)
    known = load_yardsticks() if yardsticks is None else yardsticks
    final["why_untrained"] = [why_untrained(row, of_text(known, row)) for row in records(final)]
    final["trained"] = final["why_untrained"].eq("")
    final["stored_sparsity"] = final["zero_block_share"].fillna(final["sparsity"]).fillna(0.0).astype(float)
    final["stored_weights"] = [lstm_weights(row, row["stored_sparsity"]) for row in records(final)]
    final["predicted_speedup"] = final["stored_sparsity"].map(theory.speedup)
    final["ceiling"] = [amdahl(row) for row in records(final)]
    epochs = frame[frame["epoch"] >= 1].sort_values("epoch").groupby("cell_id")
    sparsities = epochs["mean_sparsity"].agg(list)
    final["predicted_training"] = [
        theory.training_speedup(len(sparsities[cell_id]), sparsities[cell_id]) for cell_id in final["cell_id"]
    ]
    final["train_seconds_total"] = final["cell_id"].map(epochs["train_seconds"].sum()).astype(float)
    return _against_dense(final)


def dense_partners(final: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Of each run, `values` of the dense run of the same model, data and seed; null where there is none."""
    same = [name for name in (*MODEL_SETTINGS, "seed", "corpus_sha256") if name in final]
    dense = final.loc[final["variant"].map(is_dense).astype(bool), [*same, *values]].drop_duplicates(same)
    return final[same].merge(dense, on=same, how="left").set_index(final.index)


def counted_once(final: pd.DataFrame) -> pd.DataFrame:
    """The runs, without those that were made again on another path or compiled: these are replicates of nothing."""
    first = {name: usual for name, usual in (("path", "dense"), ("compile", "none")) if name in final}
    same = [name for name in (*MODEL_SETTINGS, *PRUNING_SETTINGS, "seed") if name not in first and name in final]
    unusual = sum(((final[name] != usual).astype(int) for name, usual in first.items()), pd.Series(0, final.index))
    ordered = final.loc[unusual.sort_values(kind="stable").index]
    return ordered[~ordered.duplicated(same)]


def _against_dense(final: pd.DataFrame) -> pd.DataFrame:
    """`final` with the columns that compare each run with the dense run of the same model, data and seed."""
    values = ["test_ppl", "train_seconds_total", "source_hash", "device_name"]
    paired = dense_partners(final, [*values, "trained"])
    paired.loc[final["variant"].map(is_dense).astype(bool), values] = math.nan
    # Seconds of other sources or of another machine say nothing about these.
    comparable = (paired[["source_hash", "device_name"]] == final[["source_hash", "device_name"]]).all(axis=1)
    ours, theirs = (unit_of(final).of(each["test_ppl"].astype(float)) for each in (final, paired))
    return final.assign(
        ppl_ratio=ours / theirs,
        ppl_difference=ours - theirs,
        dense_trained=paired["trained"].ne(False),
        measured_training=(paired["train_seconds_total"].astype(float) / final["train_seconds_total"]).where(
            comparable
        ),
    )


class Pool(NamedTuple):
    """What the runs of a sweep tell together of how perplexities scatter, on the scale of logarithms.

    residual: of comparisons paired by seed; levels: of the mean of one setting, by PPL. unit: what has that scatter.
    """

    residual: Scatter
    levels: dict[str, Scatter]
    unit: Unit

    def compared(self, family: Sequence[Sequence[float]], trained: Sequence[bool]) -> list[Comparison]:
        """`stats.compared` of ratios of test perplexities that answer one question.

        trained: of which both sides did. The others scatter otherwise than what is pooled: they have no interval.
        """
        known = iter(compared([ratios for ratios, fit in zip(family, trained, strict=True) if fit], self.residual))
        return [
            next(known) if fit else compared([ratios], UNKNOWN)[0] for ratios, fit in zip(family, trained, strict=True)
        ]

    def level(self, runs_of_one: pd.DataFrame, name: str = "test_ppl") -> Estimate:
        """`stats.level` of the perplexities of the runs of one setting; without an interval where one did not train."""
        known = self.levels[name] if trained(runs_of_one) else UNKNOWN
        return level([] if runs_of_one.empty else self.unit.of(runs_of_one[name].dropna()).tolist(), known)


def trained(final: pd.DataFrame) -> bool:
    """Whether all of some `runs` trained."""
    return final.empty or bool(final["trained"].all())


def pooled(final: pd.DataFrame) -> Pool:
    """The scatter of all `runs` of a sweep, by variant, block size, target sparsity and seed.

    A run that was made again on another path is no replicate of anything, and counts once; one that did not train does
    not scatter like the others, and does not count.
    """
    counted = counted_once(final)
    counted = counted[counted["trained"].astype(bool)]
    labels = list(counted[[*SETTING]].itertuples(index=False, name=None)), counted["seed"].tolist()
    unit = unit_of(final)
    told = {name: unit.of(counted[name]).tolist() for name in PPL}
    levels = {name: stats.scatter(*labels, values) for name, values in told.items()}
    return Pool(stats.residual(*labels, told["test_ppl"]), levels, unit)


def replicates(final: pd.DataFrame) -> pd.DataFrame:
    """One row per variant, block size and target sparsity of `runs`, over its seeds.

    train_ppl, val_ppl and test_ppl are means with the interval of `Pool.level`. ppl_ratio is the `Comparison` of the
    test perplexity with dense, over the seeds with a dense partner, all settings that trained one question;
    ppl_difference the same as a difference. All are in the unit of the text (`unit_of`): bits a character of
    characters. measured_training: geometric mean of ratios with a t-interval over its own seeds. The other columns are
    means. block_size is <NA> for dense. trained: whether every run of the setting did.
    falling: `endings.falling`, as text.
    """
    one_of(final, UNLIKE["train"])
    one_of(final[final["measured_training"].notna()], ("device_name",))
    keys, pool = [*SETTING], pooled(final)
    groups = list(final.groupby(keys, sort=False))
    rows = [
        {
            "variant": variant,
            "block_size": pd.NA if is_dense(str(variant)) else block_size,
            "target_sparsity": target,
            "seeds": len(part),
            "trained": bool(part["trained"].all()),
            "falling": falling(part, pool.unit),
            **{name: part[name].mean() for name in MEANS},
            **{name: pool.level(part, name) for name in PPL},
            "measured_training": ratio_interval(part["measured_training"].dropna().tolist()),
        }
        for (variant, block_size, target), part in groups
    ]
    fit = [trained(part) and bool(part["dense_trained"].all()) for _, part in groups]
    ratios = pool.compared([part["ppl_ratio"].dropna().tolist() for _, part in groups], fit)
    dense = [float((pool.unit.of(part["test_ppl"]) / part["ppl_ratio"]).mean()) for _, part in groups]
    changes = [difference(ratio, ppl) for ratio, ppl in zip(ratios, dense, strict=True)]
    costs: dict[str, Sequence[Any]] = {"ppl_ratio": ratios, "ppl_difference": changes}
    names = [*keys, "seeds", "trained", "falling", *MEANS, *PPL, "measured_training"]
    found = pd.DataFrame(rows, columns=names).assign(
        **{name: pd.Series(each, range(len(rows)), dtype=object) for name, each in costs.items()}
    )
    return found.sort_values(keys, key=_order, ignore_index=True)


def common_sparsity(found: pd.DataFrame) -> float | None:
    """The target sparsity that stands for the pruned variants of `replicates`; None without one.

    One at which a run keeps a block, where there is any; of those that with the most seeds, of equal ones that at which
    most variants were run, of those the highest.
    """
    if found.empty or not (found["target_sparsity"] > 0).any():
        return None
    pruned = found[found["target_sparsity"] > 0]
    pruned = pruned if kept_nothing(pruned).all() else pruned[~kept_nothing(pruned)]
    by_target = pruned.groupby("target_sparsity")
    seeds, variants = by_target["seeds"].max(), by_target["variant"].nunique()
    return float(max(seeds.index, key=lambda target: (seeds[target], variants[target], target)))


def kept_nothing(found: pd.DataFrame) -> pd.Series:
    """Which rows of `replicates` keep no block in any of their runs: nothing is left of them to be worth having."""
    return found["stored_sparsity"] == 1.0


def best_replicated(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of rows of `replicates`, among those with the most seeds the one with the best validation perplexity.

    One that keeps no block only where there is no other.
    """
    return min(settings, key=lambda row: (row["stored_sparsity"] == 1.0, -row["seeds"], float(row["val_ppl"].value)))


def common_block_size(found: pd.DataFrame, target: float | None) -> int | None:
    """The block size at which most variants of `replicates` were run at `target`, of several that nearest to 16."""
    here = found[(found["target_sparsity"] == target) | (found["target_sparsity"] == 0)] if not found.empty else found
    if here.empty or here["block_size"].dropna().empty:
        return None
    variants = here.groupby("block_size")["variant"].nunique()
    return int(min(variants.index[variants == variants.max()], key=lambda size: (abs(math.log2(size / 16)), size)))


def _order(column: pd.Series) -> pd.Series:
    """Dense first, plain block lasso next, then by name; other columns by value."""
    if column.name != "variant":
        return column.fillna(0).astype(float)
    return column.map(lambda name: (not is_dense(name), "+" in name or "one-shot" in name, name))
