"""What a sweep found, in three plain sentences computed from its tables."""

from __future__ import annotations

import math

import pandas as pd

from analysis import compare
from analysis.load import PART, records, split
from analysis.realised import over_seeds, realised
from analysis.runs import best_replicated, common_sparsity, is_dense, replicates, runs, without_path
from analysis.stats import Estimate, change, factor, median_interval, times

OURS = "native"
SETTINGS_SAID = 2  # of those whose LSTM layers were timed in training


def findings(train: pd.DataFrame | None, gemm: pd.DataFrame | None, lstm: pd.DataFrame | None = None) -> list[str]:
    """Three sentences: the fastest product, the cost in perplexity, and what was not measured or bought nothing.

    Where LSTM layers were timed, a fourth about the fastest of them; without products it comes first instead.
    """
    train, gemm, lstm = (None if frame is None or frame.empty else frame for frame in (train, gemm, lstm))
    others = [_cost(train), _limits(train, gemm, lstm)]
    if lstm is None:
        return [_trained_layers(train) or _speed(gemm) if gemm is None else _speed(gemm), *others]
    return [_layer(lstm), *others] if gemm is None else [_speed(gemm), *others, _layer(lstm)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _points(frame: pd.DataFrame, table: str = "gemm") -> pd.DataFrame:
    """The points of every comparable part of a table, with the `part` they are of; each speedup is within its own part."""
    parts = [compare.timed_points(rows, table).assign(part=label) for label, rows in _parts(frame, table)]
    return pd.concat(parts, ignore_index=True)


def _parts(frame: pd.DataFrame, table: str) -> list[tuple[str, pd.DataFrame]]:
    """`split`; a frame that is itself one part of a table keeps the label by which that part is told from the others."""
    return [(label or frame.attrs.get(PART, ""), rows) for label, rows in split(frame, table)]


def _about(what: str, label: str) -> str:
    """'Speed (op dsd, dtype float32)': what a sentence is about, and the comparable part of the table that it speaks of."""
    return f"{what} ({label})" if label else what


def _most_common_reason(frame: pd.DataFrame) -> str:
    bad = frame[frame["status"] != "ok"]
    words = bad["status"] + " (" + bad["reason"].fillna("no reason stored") + ")"
    return str(words.value_counts().index[0])


def _speed(gemm: pd.DataFrame | None) -> str:
    """The fastest block-sparse product against dense and theory."""
    if gemm is None:
        return "Speed: this sweep timed no products."
    points = _points(gemm)
    best = compare.best_product(points)
    if best is None:
        count = _count(gemm["cell_id"].nunique(), "product cell")
        return f"{_about('Speed', gemm.attrs.get(PART, ''))}: {_nothing_timed(gemm, points, 'block-sparse product', f' in {count}')}"
    found = Estimate(best["measured_speedup"], best["low"], best["high"], int(best["seeds"]))
    shape = compare.shape_name((best["m"], best["k"], best["n"])) + ("" if best["op"] == "dsd" else f", {best['op']}")
    product = f"{_quietly(compare.kept(compare.block_sparse(points)))}block-sparse product"
    verdict = f"the fastest {product}" if found.value >= 1.0 else f"no {product} beat dense; the nearest"
    doubt = " (noisy)" if best["noisy"] else ""
    where = f"{best['backend']} at block {best['block_size']} and sparsity {best['sparsity']:.2f}, {shape}"
    sentence = f"{_about('Speed', best['part'])}: {verdict} is {where}, at {times(found)} of dense{doubt}, where 1/(1−ρ) promises {best['predicted_speedup']:.2f}×"
    ours = points[points["backend"] == OURS]
    if ours.empty:
        reasons = gemm[(gemm["backend"] == OURS) & (gemm["status"] != "ok")]
        return sentence + (
            f"; {OURS}, our own, was not timed: {_most_common_reason(reasons)}." if len(reasons) else "."
        )
    return f"{sentence}; {OURS} {_efficiency(ours)}."


def _trained_layers(train: pd.DataFrame | None) -> str:
    """What the LSTM layers gained in training runs on the sparse path, by setting; empty where none was measured."""
    gains = []
    for label, rows in _parts(train, "train") if train is not None else []:
        found = realised(rows)
        for (variant, size, target), part in found.groupby(["variant", "block_size", "target_sparsity"], sort=False):
            gain = over_seeds(part["measured"])
            if gain.n:
                at = f" at block {size:g} and sparsity {target:g}" + (f", {label}" if label else "")
                gains.append((gain, f"{variant}{at}", factor(part["predicted"].mean())))
    if not gains:
        return ""
    fastest = sorted(gains, key=lambda gain: -gain[0].value)[:SETTINGS_SAID]
    said = " and ".join(f"{times(gain)} with {where} (theory: {promise})" for gain, where, promise in fastest)
    which = "in training" if len(gains) <= SETTINGS_SAID else f"in the {SETTINGS_SAID} fastest of {len(gains)} settings"
    return f"Speed: this sweep timed no products alone; {which} the LSTM layers were, against the dense path, {said}."


def _nothing_timed(frame: pd.DataFrame, points: pd.DataFrame, what: str, where: str = "") -> str:
    """'no ... was timed in 12 product cells; most often: ...', or that what was timed keeps no block."""
    empty = compare.block_sparse(compare.nothing_kept(points))
    if len(empty):
        settings = _count(len(empty), "setting")
        return f"no {what} that keeps a block was timed{where}: the target of {settings} empties the whole weight."
    why = _most_common_reason(frame) if (frame["status"] != "ok").any() else "only the dense baseline was timed"
    return f"no {what} was timed{where}; most often: {why}."


def _layer(lstm: pd.DataFrame) -> str:
    """The fastest block-sparse LSTM layer against the fused one, where that was timed, and theory."""
    points = _points(lstm, "lstm")
    points = points[points["baseline"] == compare.FUSED] if compare.FUSED in set(points["baseline"]) else points
    best = compare.best_product(points)
    if best is None:
        return f"{_about('Layer', lstm.attrs.get(PART, ''))}: {_nothing_timed(lstm, points, 'block-sparse LSTM layer')}"
    found = Estimate(best["measured_speedup"], best["low"], best["high"], int(best["seeds"]))
    name = compare.layer_name([best[side] for side in compare.LAYER_SIDES])
    passes = best["passes"].replace("_", " + ")
    doubt = " (noisy)" if best["noisy"] else ""
    quietly = _quietly(compare.kept(compare.block_sparse(points)))
    return (
        f"{_about('Layer', best['part'])}: the fastest {quietly}block-sparse LSTM layer is {best['backend']} at block "
        f"{best['block_size']} and sparsity {best['sparsity']:.2f}, {name}, batch {best['batch_size']}, {passes}, at "
        f"{times(found)} of {best['baseline']}{doubt}, where theory promises {best['predicted_speedup']:.2f}×."
    )


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


def _cost(train: pd.DataFrame | None) -> str:
    """What sparsity cost in perplexity, the best pruned variant chosen by validation perplexity among those with most seeds."""
    if train is None:
        return "Accuracy: this sweep trained no network."
    parts = [(label, runs(part)) for label, part in _parts(train, "train")]
    label, final = max(parts, key=lambda part: len(part[1]))
    about = _about("Accuracy", label)
    if final.empty:
        return f"{_about('Accuracy', train.attrs.get(PART, ''))}: none of {_count(train['cell_id'].nunique(), 'training run')} finished; most often: {_most_common_reason(train)}."
    found = replicates(final)
    target = common_sparsity(found)
    dense = found[found["variant"].map(is_dense)]
    if target is None:
        return f"{about}: no pruned run has finished, so the cost of sparsity is not known."
    best = best_replicated(records(found[found["target_sparsity"] == target]))
    emptied = " (which empties every one of its blocks)" if best["stored_sparsity"] == 1.0 else ""
    rule = _chosen_by(found[(found["target_sparsity"] == target) & ~found["variant"].map(is_dense).astype(bool)])
    sentence = (
        f"{about}: at {100 * target:g} % sparsity the best pruned variant, {best['variant']} at block {best['block_size']}"
        f"{emptied} ({rule}), has test perplexity {best['test_ppl'].value:.1f}"
    )
    if dense.empty or best["ppl_ratio"].n == 0:
        return sentence + "; no dense run with its settings and seed has finished, so the cost is not known."
    ratio = best["ppl_ratio"]
    cost = change(ratio).replace("(1 seed)", "(one seed, so without an interval)")
    partner = (
        best["test_ppl"].value - best["ppl_difference"].value
    )  # the dense runs of its size, where there are several
    return sentence + f" against {partner:.1f} dense, a cost of {cost}."


def _chosen_by(pruned: pd.DataFrame) -> str:
    """The rule of `best_replicated` among some rows of `replicates`, in words: the table may hold a lower test perplexity."""
    if len(pruned) == 1:
        return "the only one"
    most = int(pruned["seeds"].max())
    among = "" if (pruned["seeds"] == most).all() else f" of those run with the most seeds, {most}"
    return f"the one with the lowest validation perplexity{among}"


def _limits(train: pd.DataFrame | None, gemm: pd.DataFrame | None, lstm: pd.DataFrame | None) -> str:
    """What failed or was noisy, what keeps no block, and what masks alone buy in training time."""
    return f"Limits: {'; '.join([*_gaps(train, gemm, lstm), *_emptied(train, gemm, lstm), _masks(train)])}."


def _emptied(train: pd.DataFrame | None, gemm: pd.DataFrame | None, lstm: pd.DataFrame | None) -> list[str]:
    """How many cells keep no block, whose speed no theory bounds."""
    words = []
    for frame, noun in ((gemm, "product cell"), (lstm, "layer cell"), (train, "training run")):
        if frame is None:
            continue
        ok = frame[frame["status"] == "ok"]
        bounded = ok["scope"].eq("weight_hh") if noun == "layer cell" else pd.Series(False, index=ok.index)  # Amdahl
        cells = ok.loc[(ok["sparsity"] == 1.0) & ~bounded, "cell_id"].nunique()
        if cells:
            words.append(f"{_count(cells, noun)} kept no block")
    return [f"{' and '.join(words)}: 1/(1−ρ) has no bound there, so they stand beside no theory"] if words else []


def _gaps(train: pd.DataFrame | None, gemm: pd.DataFrame | None, lstm: pd.DataFrame | None) -> list[str]:
    words = []
    for frame, noun in ((gemm, "product cell"), (lstm, "layer cell"), (train, "training run")):
        if frame is None:
            continue
        cells, bad = frame["cell_id"].nunique(), frame.loc[frame["status"] != "ok", "cell_id"].nunique()
        if bad:
            words.append(f"{bad} of {_count(cells, noun)} gave no result, most often {_most_common_reason(frame)}")
    timed = [frame for frame in (gemm, lstm) if frame is not None]
    if ok := sum(int((frame["status"] == "ok").sum()) for frame in timed):
        noisy = sum(int(frame["noisy"].fillna(False).sum()) for frame in timed)
        words.append(f"{noisy} of {_count(ok, 'timing')} were noisy")
    return words or ["nothing was measured" if train is None and not timed else "every cell gave a result"]


def _masks(train: pd.DataFrame | None) -> str:
    """What masks alone bought in training time, and what the sparse path did where it was used."""
    parts = [runs(part) for _, part in split(train, "train")] if train is not None else []
    pruned = pd.concat([part[part["target_sparsity"] > 0.0] for part in parts], ignore_index=True) if parts else None
    pruned = pruned[pruned["measured_training"].notna()] if pruned is not None else None
    if pruned is None or pruned.empty:
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
    """What the runs on the dense path gained, and why: it can be nothing, unless the machine was not the same for both."""
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
