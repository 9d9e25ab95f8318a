"""Figures of classifiers: methods ranked within a block size and sparsity, and accuracy beside what is stored."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from analysis.figures import style
from analysis.load import records
from analysis.runs import by_scales, by_threshold, is_dense
from analysis.stats import Estimate
from analysis.study import Part
from analysis.studying.methods import FLOAT_BYTES, at_a_target, has_classes

UNSTRUCTURED = "block 1: unstructured"


def methods_figure(train: Part) -> Figure:
    """Test accuracy of every method, a row each, by target sparsity and block size; the best of each column framed.

    The colour is the share of test examples that a method gets wrong beside the best of its column. A dot stands where
    the two are not decided to differ.
    """
    title = "Ways to prune, ranked: test accuracy in per cent"
    found = train.methods
    pruned = at_a_target(found)
    if pruned.empty:
        return style.empty_figure(title, "no pruned classifier has finished")
    columns = list(dict.fromkeys(pruned[["target_sparsity", "block_size"]].itertuples(index=False, name=None)))
    order = _by_rank(pruned)
    worse, words = np.full((len(order), len(columns)), np.nan), np.full((len(order), len(columns)), "", dtype=object)
    for row in records(pruned):
        at = order.index(row["variant"]), columns.index((row["target_sparsity"], row["block_size"]))
        ratio = row["against_best"]
        worse[at] = math.log2(max(ratio.value, 1.0))
        open_ = ratio.value > 1.0 and ratio.side == 0
        words[at] = f"{100 * row['accuracy']:.1f}" + ("·" if open_ else "")
    largest = min(max(0.5, float(np.nanmax(worse))), 3.0)
    drawn, [[ax]] = style.figure(1.5 + 0.33 * len(order))
    style.heat_map(ax, worse, annot=words, fmt="", cmap="Blues_r", vmin=0.0, vmax=largest, annot_kws={"fontsize": 8.5},
                   mask=np.isnan(worse), linewidths=1.0)  # fmt: skip
    for across in range(len(columns)):
        best = int(np.nanargmin(worse[:, across]))
        frame = Rectangle((across, best), 1, 1, fill=False, edgecolor=style.BLACK, linewidth=1.6, zorder=5)
        ax.add_patch(frame)
    ax.set_xticks(np.arange(len(columns)) + 0.5, [f"ρ {target:g}\n{size}" for target, size in columns], fontsize=8.5)
    ax.set(xlabel="target sparsity, and block size in elements")
    ax.set_yticks(np.arange(len(order)) + 0.5, order, fontsize=9)
    bar = drawn.colorbar(ax.collections[0], ax=ax, fraction=0.03, pad=0.01)
    ticks = [each for each in (0.0, math.log2(1.25), math.log2(1.5), 1.0, 2.0, 3.0) if each <= largest]
    bar.set_ticks(ticks, labels=[f"{2.0**each:.3g}×" for each in ticks])
    bar.set_label("errors beside the best of the column")
    drawn.suptitle(title, fontsize=12)
    dense = sorted(set(pruned["dense_accuracy"].dropna().round(3)))
    said = [f"The same network dense: {' or '.join(f'{100 * each:.1f}' for each in dense)}."] if dense else []
    seeds = " or ".join(map(str, sorted(set(pruned["seeds"]))))
    style.margin(drawn, [
        f"Means over seeds ({seeds} a cell). Framed: the best of a column. A dot: not decided to be worse than that, "
        "at 5 % over the column (paired by seed, the scatter pooled over all settings, Holm).", *said,
        *([UNSTRUCTURED[0].upper() + UNSTRUCTURED[1:] + " pruning."] if 1 in set(pruned["block_size"]) else []),
    ])  # fmt: skip
    return drawn


def _by_rank(pruned: pd.DataFrame) -> list[str]:
    """Variants, those first that have the fewest errors beside the best of their columns on average."""
    logs = pruned.assign(worse=[math.log(max(one.value, 1.0)) for one in pruned["against_best"]])
    return [str(name) for name in logs.groupby("variant", sort=False)["worse"].mean().sort_values(kind="stable").index]


def stored_figure(train: Part) -> Figure:
    """Test accuracy beside stored weights: a colour per block size, dense networks of several widths as a line.

    Drawn is the one way to prune that most settings have, so that block sizes are compared by the same method.
    """
    title = "What a block costs: test accuracy beside stored weights"
    found = train.methods
    pruned = at_a_target(found)
    if pruned.empty:
        return style.empty_figure(title, "no pruned classifier has finished")
    variant = str(pruned.groupby("variant", sort=False).size().idxmax())
    same = pruned[pruned["variant"] == variant]
    dense = _dense_by_width(found, same)
    drawn, [[ax]] = style.figure(4.6)
    for size, line in same.groupby("block_size"):
        line = line.sort_values("stored_weights")
        ax.errorbar(line["stored_weights"], **_accuracies(line),
                    marker=style.block_marker(size), color=style.block_colour(size), capsize=2.5)  # fmt: skip
    free = found[found["variant"].map(by_threshold).astype(bool)]
    for size, points in free.groupby("block_size"):
        ax.errorbar(points["stored_weights"], **_accuracies(points),
                    marker=style.block_marker(size), color=style.block_colour(size), fillstyle="none", linestyle="",
                    capsize=2.5)  # fmt: skip
    if not dense.empty:
        ax.errorbar(dense["stored_weights"], **_accuracies(dense),
                    marker="*", markersize=10, color=style.GREY, linestyle=":", capsize=2.5)  # fmt: skip
    ax.set(xscale="log", xlabel="weights stored in the hidden layers (log)", ylabel="test accuracy, per cent")
    sizes = sorted(same["block_size"].unique())
    drawn.legend(handles=[
        style.entry("dense networks by width", style.GREY, "*", markersize=10, linestyle=":"),
        *(style.entry(UNSTRUCTURED if size == 1 else f"block {size}", style.block_colour(size),
                      style.block_marker(size), linestyle="-") for size in sizes),
        *(style.entry(f"block {size}, by a threshold", style.block_colour(size), style.block_marker(size),
                      fillstyle="none") for size in sorted(free["block_size"].unique())),
    ], loc="outside right upper")  # fmt: skip
    drawn.suptitle(title, fontsize=12)
    style.margin(
        drawn, [f"Pruned: {variant}. Bars: 95 % t-intervals over seeds, their scatter pooled over all settings."]
    )
    return drawn


FORMS = (("", "inference", "o", "as pruned"), ("narrowed_", "narrowed", "D", "dead units removed"))


def worth_figure(train: Part) -> Figure:
    """Test accuracy beside measured bytes and inference time of the finished models: what a block size is worth.

    A colour per block size, a model as pruned and without its dead units, of the way to prune that most settings have;
    dense networks by width are a line, timed where one of that width stood beside pruned ones in one process.
    """
    title = "What pruning is worth: test accuracy beside measured bytes and inference"
    found = _of_one_way(at_a_target(train.narrowings))
    if found.empty:
        return style.empty_figure(title, "no finished classifier was measured")
    dense = _dense_by_width(train.methods, found)
    drawn, [[left, right]] = style.figure(4.6, cols=2, sharey=True)
    for size, line in found.groupby("block_size"):
        for form, speedup, marker, _ in FORMS:
            line = line.sort_values(f"{form}layer_bytes")
            looks: dict[str, Any] = {
                "color": style.block_colour(size), "marker": marker, "fillstyle": "none" if form else "full",
                "linestyle": ":" if form else "-", "capsize": 2,
            }  # fmt: skip
            y = _accuracies(line)
            left.errorbar(line[f"{form}layer_bytes"] / 1e3, **y, **looks)
            right.errorbar([one.value for one in line[speedup]], **y, xerr=style.spread(list(line[speedup])), **looks)
    stars: dict[str, Any] = {"marker": "*", "markersize": 10, "color": style.GREY, "capsize": 2}
    if not dense.empty:
        left.errorbar(dense["stored_weights"] * FLOAT_BYTES / 1e3, **_accuracies(dense), linestyle=":", **stars)
        timed, speedups = _timed(dense, train.smaller, found)
        right.errorbar([one.value for one in speedups], **_accuracies(timed), xerr=style.spread(speedups),
                       linestyle=":", **stars)  # fmt: skip
    left.set(xscale="log", xlabel="bytes of the hidden weights, kB (log)", ylabel="test accuracy, per cent")
    left.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    measured = [one for _, speedup, *_ in FORMS for one in found[speedup]]
    style.speedup_axis(right.xaxis, *_limits([*measured, *([] if dense.empty else speedups)]))
    right.set(xlabel="inference over the dense network (log₂)")
    drawn.legend(handles=[
        style.entry("dense networks by width", style.GREY, "*", markersize=10, linestyle=":"),
        *(style.entry(f"block {size}", style.block_colour(size), linestyle="-")
          for size in sorted(found["block_size"].unique())),
        *(style.entry(words, style.GREY, marker, fillstyle="none" if form else "full")
          for form, _, marker, words in FORMS),
    ], loc="outside lower center", ncols=4)  # fmt: skip
    drawn.suptitle(title, fontsize=12)
    style.margin(drawn, [
        f"Pruned: {', '.join(dict.fromkeys(found['variant']))}; indices of blocks counted. Bars: 95 % t-intervals over "
        "seeds; of times, of medians of interleaved pairs on one batch. Of the dense networks those are timed that "
        "store as many weights as a pruned one.",
    ])  # fmt: skip
    return drawn


def _of_one_way(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of the network and the variant that most of them have."""
    if found.empty:  # nothing has a most frequent member
        return found
    way = ["network", "hidden_size", "variant"]
    most = found.groupby(way, sort=False).size().idxmax()
    return found[(found[way] == pd.Series(most, way)).all(axis=1)]


def _dense_by_width(found: pd.DataFrame, pruned: pd.DataFrame) -> pd.DataFrame:
    """Dense networks that are those of `pruned` but for their width, the narrowest first."""
    dense = found["variant"].map(is_dense).astype(bool) & found["network"].isin(set(pruned["network"]))
    return found[dense].sort_values("stored_weights")


def _timed(dense: pd.DataFrame, smaller: pd.DataFrame, found: pd.DataFrame) -> tuple[pd.DataFrame, list[Estimate]]:
    """Those of the dense networks whose inference is known, and their speedups over that of the width of `found`."""
    own = int(found["hidden_size"].iloc[0])
    beside = smaller[smaller["network"].isin(set(found["network"])) & (smaller["beside"] == own)]
    known = {own: Estimate(1.0, math.nan, math.nan, 0)} | {
        int(row["hidden_size"]): row["speedup"] for row in records(beside)
    }
    timed = dense[dense["hidden_size"].isin(known)]
    return timed, [known[int(width)] for width in timed["hidden_size"]]


def _limits(found: list[Estimate]) -> tuple[float, float]:
    """Of an axis of speedups that has all of them, with their intervals."""
    ends = [each for one in found for each in (one.low, one.value, one.high) if not math.isnan(each)]
    return min([0.5, *ends]) / 1.1, max([2.0, *ends]) * 1.15


def _accuracies(line: pd.DataFrame) -> dict[str, Any]:
    """y and yerr of error bars: accuracies in per cent, from the error rates and their intervals."""
    low, high = ([100 * each for each in side] for side in style.spread(list(line["error"])))
    return {"y": [100 * (1 - one.value) for one in line["error"]], "yerr": [high, low]}


def removal_figure(train: Part) -> Figure:
    """What finishing a pruned classifier leaves: units that are live, and inference before and after the others go."""
    title = "Dead neurons: units that are left, and inference without the others"
    found = train.narrowings
    if found.empty:
        return style.empty_figure(title, "no finished model was measured")
    drawn, [[left, right]] = style.figure(1.6 + 0.36 * len(found), cols=2, sharey=True)
    heights = np.arange(len(found))
    left.barh(heights, found["live_share"] * 100, color=style.BLUE, height=0.6)
    left.set(xlabel="live units, per cent", xlim=(0, 100))
    left.set_yticks(heights, [_named(row) for row in records(found)], fontsize=8.5)
    left.invert_yaxis()
    style.speedup_axis(right.xaxis, *_limits([*found["inference"], *found["narrowed"]]))
    for name, shift, looks in (("inference", -0.12, {"marker": "o", "color": style.GREY}),
                               ("narrowed", 0.12, {"marker": "D", "color": style.BLUE})):  # fmt: skip
        ones = list(found[name])
        right.errorbar([one.value for one in ones], heights + shift, xerr=style.spread(ones), linestyle="",
                       capsize=2, **looks)  # fmt: skip
    right.set(xlabel="inference over dense (log₂)")
    drawn.legend(handles=[
        style.entry("as pruned", style.GREY, "o"), style.entry("dead units removed", style.BLUE, "D"),
    ], loc="outside lower center", ncols=2)  # fmt: skip
    drawn.suptitle(title, fontsize=12)
    style.margin(drawn, ["Medians of interleaved pairs on one batch, means over seeds; bars 95 %."])
    return drawn


def _named(row: dict[str, Any]) -> str:
    if by_scales(row["variant"]) and row["target_sparsity"] == 0.0:
        return str(row["variant"]).replace(" + ", "\n+ ", 1)  # it empties no blocks
    return f"{row['variant']}\nρ {row['target_sparsity']:g}, block {row['block_size']}"


def shown(train: Part) -> bool:
    """Whether a part has classifiers to draw."""
    return has_classes(train.runs)
