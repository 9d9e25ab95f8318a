"""What a sweep found, in three plain sentences computed from its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis import compare
from analysis.accuracy.units import Unit
from analysis.accuracy.yardsticks import standing
from analysis.load import records
from analysis.runs import best_replicated, common_sparsity, is_dense, is_pruned, without_path
from analysis.stats import Estimate, change, factor, judged, median_interval, times
from analysis.study import Part
from analysis.studying.methods import at_a_target
from analysis.theory import Breakeven

OURS = "native"
SETTINGS_SAID = 2  # of those whose LSTM layers were timed in training
NOUNS = {"gemm": "product cell", "lstm": "layer cell", "train": "training run", "storage": "storage cell"}


def findings(*parts: Part) -> list[str]:
    """Three sentences: the fastest product, the cost in perplexity, and what was not measured or bought nothing.

    Where LSTM layers were timed, a fourth about the fastest of them, and where matrices were stored, another about when
    a form is smaller and faster than dense; without products the first of these comes first instead.
    parts: one of each table, in any order; a table that is not among them, or has no rows, was not run.
    """
    known = {part.table: part for part in parts if len(part.rows)}
    gemm, lstm, train, stored = (known.get(table) for table in NOUNS)
    others = [_cost(train), _limits({table: known[table] for table in NOUNS if table in known})]
    more = [*([_layer(lstm)] if lstm else []), *([_storage(stored)] if stored else [])]
    if gemm is None and more:
        return [more[0], *others, *more[1:]]
    return [(_trained_layers(train) if train and not gemm else "") or _speed(gemm), *others, *more]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _about(what: str, part: Part) -> str:
    """'Speed (op dsd, dtype float32)': what a sentence is about, and the comparable part of the table it speaks of."""
    return f"{what} ({part.label})" if part.label else what


def _most_common_reason(frame: pd.DataFrame) -> str:
    bad = frame[frame["status"] != "ok"]
    words = bad["status"] + " (" + bad["reason"].fillna("no reason stored") + ")"
    return str(words.value_counts().index[0])


def _speed(gemm: Part | None) -> str:
    """The fastest block-sparse product against dense and theory."""
    if gemm is None:
        return "Speed: this sweep timed no products."
    points, rows = gemm.points, gemm.rows
    best = compare.best_product(points)
    if best is None:
        count = _count(rows["cell_id"].nunique(), NOUNS["gemm"])
        return f"{_about('Speed', gemm)}: {_nothing_timed(gemm, 'block-sparse product', f' in {count}')}"
    found = Estimate(best["measured_speedup"], best["low"], best["high"], int(best["seeds"]))
    shape = compare.shape_name((best["m"], best["k"], best["n"])) + ("" if best["op"] == "dsd" else f", {best['op']}")
    product = f"{_quietly(compare.kept(compare.block_sparse(points)))}block-sparse product"
    verdict = f"the fastest {product}" if found.value >= 1.0 else f"no {product} beat dense; the nearest"
    doubt = " (noisy)" if best["noisy"] else ""
    sentence = (
        f"{_about('Speed', gemm)}: {verdict} is {best['backend']} at block {best['block_size']} and sparsity "
        f"{best['sparsity']:.2f}, {shape}, at {times(found)} of dense{doubt}, where 1/(1−ρ) promises "
        f"{best['predicted_speedup']:.2f}×"
    )
    ours = points[points["backend"] == OURS]
    if ours.empty:
        failed = rows[(rows["backend"] == OURS) & (rows["status"] != "ok")]
        why = f"; {OURS}, our own, was not timed: {_most_common_reason(failed)}" if len(failed) else ""
        return f"{sentence}{why}."
    return f"{sentence}; {OURS} {_efficiency(ours)}."


def _trained_layers(train: Part) -> str:
    """What the LSTM layers gained in training runs on the sparse path, by setting; empty where none was measured."""
    gains = [row for row in records(train.gains) if row["measured"].n]
    if not gains:
        return ""
    fastest = sorted(gains, key=lambda gain: -gain["measured"].value)[:SETTINGS_SAID]
    where = f", {train.label}" if train.label else ""
    said = " and ".join(
        f"{times(row['measured'])} with {row['variant']} at block {row['block_size']:g} and sparsity "
        f"{row['target_sparsity']:g}{where} (theory: {factor(row['predicted'])})"
        for row in fastest
    )
    which = "in training" if len(gains) <= SETTINGS_SAID else f"in the {SETTINGS_SAID} fastest of {len(gains)} settings"
    return (
        f"Speed: this sweep timed no products alone; {which} the {train.layer_noun} were, against "
        f"the dense path, {said}."
    )


def _nothing_timed(part: Part, what: str, where: str = "") -> str:
    """'no ... was timed in 12 product cells; most often: ...', or that what was timed keeps no block."""
    empty = compare.block_sparse(compare.nothing_kept(part.points))
    if len(empty):
        settings = _count(len(empty), "setting")
        return f"no {what} that keeps a block was timed{where}: the target of {settings} empties the whole weight."
    failed = (part.rows["status"] != "ok").any()
    why = _most_common_reason(part.rows) if failed else "only the dense baseline was timed"
    return f"no {what} was timed{where}; most often: {why}."


def _layer(lstm: Part) -> str:
    """The fastest block-sparse LSTM layer against the baseline of its part, and theory."""
    points = lstm.points
    best = compare.best_product(points)
    if best is None:
        return f"{_about('Layer', lstm)}: {_nothing_timed(lstm, 'block-sparse LSTM layer')}"
    found = Estimate(best["measured_speedup"], best["low"], best["high"], int(best["seeds"]))
    name = compare.layer_name([best[side] for side in compare.LAYER_SIDES])
    passes = best["passes"].replace("_", " + ")
    doubt = " (noisy)" if best["noisy"] else ""
    quietly = _quietly(compare.kept(compare.block_sparse(points)))
    return (
        f"{_about('Layer', lstm)}: the fastest {quietly}block-sparse LSTM layer is {best['backend']} at block "
        f"{best['block_size']} and sparsity {best['sparsity']:.2f}, {name}, batch {best['batch_size']}, {passes}, at "
        f"{times(found)} of {best['baseline']}{doubt}, where theory promises {best['predicted_speedup']:.2f}×."
    )


def _storage(stored: Part) -> str:
    """From which share of zeros on each form of the largest matrix is smaller than dense, and from which faster."""
    about = _about("Storage", stored)
    main = stored.main_matrix()
    found = records(main.crossovers)
    if not found:
        failed = (stored.rows["status"] != "ok").any()
        why = _most_common_reason(stored.rows) if failed else "only the dense form was stored"
        return f"{about}: no sparse form was measured; most often: {why}."
    smaller = ", ".join(f"{row['name']} {_from(row['smaller_from'])}" for row in found)
    faster = ", ".join(
        f"{row['name']} {_from(row['faster_from'])}{' (noisy)' if row['faster_noisy'] else ''}" for row in found
    )
    rows, columns, batch = (int(found[0][side]) for side in compare.SHAPE)
    return (
        f"{about}: by its share of zeros a {found[0]['dtype']} matrix of {rows} × {columns} takes fewer bytes than "
        f"dense as {smaller}; its product with {_count(batch, 'column')} is faster than dense as {faster}."
    )


def _from(crossing: Breakeven) -> str:
    """'from 0.67', 'always', 'never'."""
    return f"from {crossing}" if crossing.sparsity is not None else str(crossing)


def _quietly(points: pd.DataFrame) -> str:
    """What to call points where only the quiet ones are spoken of; empty where none is left out."""
    return "" if len(compare.quiet(points)) == len(points) else "quietly timed "


def _efficiency(ours: pd.DataFrame) -> str:
    """'reaches 62 % of theory in the median of 12 settings', without the noisy settings where there are others."""
    working = compare.kept(ours)
    if working.empty:
        return "has no setting that keeps a block"
    quiet = compare.quiet(working)
    settings = _count(len(quiet), f"{_quietly(working)}setting")
    doubt = " (noisy)" if quiet["noisy"].any() else ""
    return f"reaches {quiet['efficiency'].median():.0%} of theory in the median of {settings}{doubt}"


def _cost(train: Part | None) -> str:
    """What sparsity cost in perplexity, by the pruned variant best in validation among those with most seeds."""
    if train is None:
        return "Accuracy: this sweep trained no network."
    if not train.methods.empty:
        return _classified(train)
    about, found, unit = _about("Accuracy", train), train.replicates, train.unit
    if found.empty:
        runs = _count(train.rows["cell_id"].nunique(), NOUNS["train"])
        return f"{about}: none of {runs} finished; most often: {_most_common_reason(train.rows)}."
    target = common_sparsity(found)
    dense = found["variant"].map(is_dense).astype(bool)
    at_target = found[is_pruned(found)] if target is None else found[found["target_sparsity"] == target]
    if at_target.empty:
        return f"{about}: no pruned run has finished, so the cost of sparsity is not known."
    if not at_target["trained"].any():
        how = "by a threshold" if target is None else f"to {100 * target:g} %"
        return f"{about}: no variant pruned {how} trained, so the cost of sparsity is not known."
    at_target = at_target[at_target["trained"].astype(bool)]
    best = best_replicated(records(at_target))
    emptied = " (which empties every one of its blocks)" if best["stored_sparsity"] == 1.0 else ""
    if target is not None and best["stored_sparsity"] < target - 0.05:
        emptied = f" (which stopped at {100 * best['stored_sparsity']:.0f} %)"
    rule = _chosen_by(at_target, unit)
    reached = f"the {100 * best['stored_sparsity']:.0f}" if target is None else f"{100 * target:g}"
    ending = " that its threshold gives," if target is None else ""
    sentence = (
        f"{about}: at {reached} % sparsity{ending} the best pruned variant, {best['variant']} at block "
        f"{best['block_size']}{emptied} ({rule}), has test {unit.name} {best['test_ppl'].value:.{unit.digits}f}"
    )
    ratio = best["ppl_ratio"]
    if not dense.any() or ratio.n == 0:
        return (
            sentence
            + f"; no dense run with its settings and seed has finished, so the cost is not known.{_stand(train, best)}"
        )
    pooled = f"{judged(ratio)} (95 % of t, the residual pooled over all settings)"
    alone = change(ratio).replace("(1 seed)", "(one seed, so without an interval)")
    cost = alone if math.isnan(ratio.low) else pooled
    partner = best["test_ppl"].value - best["ppl_difference"].value  # dense of its size, where there are several
    return sentence + f" against {partner:.{unit.digits}f} dense, a cost of {cost}.{_stand(train, best)}"


def _classified(train: Part) -> str:
    """Which way to prune a classifier makes the fewest errors, where most ways were tried, and where others stand."""
    about, found = _about("Accuracy", train), train.methods
    pruned = at_a_target(found)
    if pruned.empty:
        return f"{about}: no pruned run has finished, so the cost of sparsity is not known."
    tried = pruned.groupby(["target_sparsity", "block_size"])["variant"].nunique()
    target, size = tried.index[int(tried.to_numpy().argmax())]
    here = pruned[(pruned["target_sparsity"] == target) & (pruned["block_size"] == size)]
    best, *others = records(here)
    open_ = [row["variant"] for row in others if row["against_best"].side == 0]
    decided = f"of {_count(len(others), 'other way')} " if others else ""
    worse = f"{decided}{len(others) - len(open_)} are decided to make more" if others else "no other way was tried"
    unknown = f", not so {' and '.join(open_[:SETTINGS_SAID])}" if 0 < len(open_) <= SETTINGS_SAID else ""
    dense = best["dense_accuracy"]
    against = "" if math.isnan(dense) else f", against {dense:.1%} dense ({judged(best['against_dense'])} errors)"
    words = (
        f"{about}: at {100 * target:g} % sparsity and block {size} the fewest test errors are those of "
        f"{best['variant']}, {best['accuracy']:.1%} right{against}; {worse}{unknown}"
    )
    free = pruned[(pruned["target_sparsity"] == target) & (pruned["block_size"] == 1)]
    if size != 1 and len(free):
        words += f"; unstructured, {records(free)[0]['variant']} has {records(free)[0]['accuracy']:.1%} right"
    return words.replace("%", " %").replace("  %", " %") + "."


def _stand(train: Part, best: dict[str, Any]) -> str:
    """Where the best dense network and the best pruned one stand among n-grams of their text, if any are known."""
    if not train.ladder:
        return ""
    found = train.replicates
    dense = records(found[found["variant"].map(is_dense).astype(bool) & found["trained"].astype(bool)])
    named = {"the best dense network": best_replicated(dense)} if dense else {}
    said = [
        f"{name} ({one['test_ppl'].value:.{train.unit.digits}f}) stands "
        f"{standing(one['test_ppl'].value, train.ladder, train.unit)}"
        for name, one in {**named, "this pruned one": best}.items()
    ]
    return f" Among n-grams of the same text {', '.join(said)}."


def _chosen_by(pruned: pd.DataFrame, unit: Unit) -> str:
    """The rule of `best_replicated` in words: the table may hold a lower one in test."""
    if len(pruned) == 1:
        return "the only one"
    most = int(pruned["seeds"].max())
    among = "" if (pruned["seeds"] == most).all() else f" of those run with the most seeds, {most}"
    return f"the one with the lowest validation {unit.name}{among}"


def _limits(parts: Mapping[str, Part]) -> str:
    """What failed or was noisy, what keeps no block, and what masks alone buy in training time."""
    words = [*_gaps(parts), *_emptied(parts), _masks(parts.get("train"))]
    return f"Limits: {'; '.join(words)}."


def _emptied(parts: Mapping[str, Part]) -> list[str]:
    """How many cells keep no block, whose speed no theory bounds."""
    words = []
    for table, part in parts.items():
        if table == "storage":  # their bytes are there, and the sentence on them leaves such points out
            continue
        ok = part.rows[part.rows["status"] == "ok"]
        bounded = ok["scope"].eq("weight_hh") if table == "lstm" else pd.Series(False, index=ok.index)  # Amdahl
        cells = ok.loc[(ok["sparsity"] == 1.0) & ~bounded, "cell_id"].nunique()
        if cells:
            words.append(f"{_count(cells, NOUNS[table])} kept no block")
    return [f"{' and '.join(words)}: 1/(1−ρ) has no bound there, so they stand beside no theory"] if words else []


def _gaps(parts: Mapping[str, Part]) -> list[str]:
    words = []
    for table, part in parts.items():
        rows = part.rows
        cells, bad = rows["cell_id"].nunique(), rows.loc[rows["status"] != "ok", "cell_id"].nunique()
        if bad:
            often = _most_common_reason(rows)
            words.append(f"{bad} of {_count(cells, NOUNS[table])} gave no result, most often {often}")
    timed = [part.rows for table, part in parts.items() if table != "train"]
    if ok := sum(int((rows["status"] == "ok").sum()) for rows in timed):
        noisy = sum(int(rows["noisy"].eq(True).sum()) for rows in timed)
        words.append(f"{noisy} of {_count(ok, 'timing')} were noisy")
    return words or ["every cell gave a result" if parts else "nothing was measured"]


def _masks(train: Part | None) -> str:
    """What masks alone bought in training time, and what the sparse path did where it was used."""
    final = pd.DataFrame() if train is None else train.runs
    pruned = final if train is None else final[is_pruned(final) & final["measured_training"].notna()]
    if pruned.empty:
        return "what masks alone buy in training time was not measured"
    masked = pruned[pruned["variant"].map(without_path) == pruned["variant"]]
    sparse = pruned.drop(masked.index)["measured_training"].tolist()
    words = [] if masked.empty else [_masks_alone(masked)]
    if sparse:
        words.append(
            f"with the sparse path training was {times(median_interval(sparse))} as fast as dense "
            f"({_median_of(sparse)}, not interleaved)"
        )
    return "; ".join(words)


def _masks_alone(masked: pd.DataFrame) -> str:
    """What the runs on the dense path gained, and why: nothing, unless the machine was not the same for both."""
    measured = masked["measured_training"].tolist()
    found = median_interval(measured)
    cause = (
        "because the dense path multiplies masked weights at dense speed"
        if found.low <= 1.0 <= found.high
        else "which is rough: the runs were one after another, on a machine whose load changes"
    )
    return (
        f"masks alone made training {times(found)} as fast as dense ({_median_of(measured)}), "
        f"{cause}; {_allowed(masked['predicted_training'].tolist())}"
    )


def _median_of(runs: list[float]) -> str:
    return "one run" if len(runs) == 1 else f"median of {len(runs)} runs"


def _allowed(promised: list[float]) -> str:
    """What the integral allows; runs without a block from the first step on have no bound, and are left out."""
    bounded = [one for one in promised if math.isfinite(one)]
    if not bounded:
        return "no run kept a block, so skipping the empty ones would leave nothing to multiply"
    ends = dict.fromkeys(f"{one:.2f}×" for one in (min(bounded), max(bounded)))
    return f"skipping empty blocks would allow {' to '.join(ends)} in the pruned products"
