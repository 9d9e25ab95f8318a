"""Figures of what sparsity costs: perplexity by sparsity, with dense controls, and networks wider by what they save."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures import style
from analysis.figures.panels import did_not_train, not_finished, nothing_finished, nothing_trained, yardstick_lines
from analysis.load import records
from analysis.runs import EQUAL, is_dense, without_path
from analysis.stats import NOTHING, Estimate
from analysis.study import Part

BESIDE = 0.016  # share of the sparsity axis
CONTROL = "smaller dense network, as many stored LSTM weights"


def cost_figure(train: Part) -> Figure:
    """`wide_figure` where pruned networks spend a dense one's weights on wider layers, else `perplexity_figure`."""
    return wide_figure(train) if _is_wide(train.replicates) else perplexity_figure(train)


def _is_wide(found: pd.DataFrame) -> bool:
    """Whether a dense network of `replicates` is what wider pruned ones are compared with, no control of their weights.

    A control is there for pruned networks of one width, beside a dense one of that width; nothing is pruned at its own.
    """
    narrow, wider = narrow_network(found)
    if narrow is None:
        return False
    dense = found["variant"].map(is_dense).astype(bool)
    beside = set(wider["hidden_size"]) & set(found.loc[dense, "hidden_size"])
    pruned_too = (found.loc[~dense, "hidden_size"] == narrow["hidden_size"]).any()
    return bool(wider["hidden_size"].nunique() > 1 or not beside or pruned_too)


def narrow_network(found: pd.DataFrame) -> tuple[dict[str, Any] | None, pd.DataFrame]:
    """(the dense network of `replicates` whose weights wider pruned ones store, those): that which most widths share.

    None where no wider pruned network stores as many weights as a dense one, within EQUAL.
    """
    dense = found["variant"].map(is_dense).astype(bool)
    pruned = found[~dense]
    wider = {
        at: pruned[
            (pruned["hidden_size"] > row["hidden_size"])
            & ((pruned["stored_weights"] - row["stored_weights"]).abs() <= EQUAL * row["stored_weights"])
        ]
        for at, row in zip(found.index[dense], records(found[dense]), strict=True)
    }
    best = max(wider, key=lambda at: (wider[at]["hidden_size"].nunique(), len(wider[at])), default=None)
    if best is None or wider[best].empty:
        return None, pruned.head(0)
    return records(found.loc[[best]])[0], wider[best]


def perplexity_figure(train: Part) -> Figure:
    """Test perplexity against achieved sparsity: a colour per variant, a marker per block size, dense as a band.

    Where dense networks of several sizes were trained, the largest is the band; the others stand as controls at the
    sparsity at which the largest would store as many LSTM weights.
    """
    title = f"What sparsity costs in {train.unit.name}"
    if train.replicates.empty:
        return nothing_finished(title, train.rows)
    found = _whole_lines(train.replicates)
    trained = found[found["trained"].astype(bool)]
    if trained.empty:
        return nothing_trained(title, train)
    dense = found["variant"].map(is_dense).astype(bool)
    band = found[dense].sort_values("stored_weights").tail(1)
    smaller = found[dense].sort_values("stored_weights").iloc[:-1]
    sparse = found[~dense]
    drawn, [[ax]] = style.figure(5.2)
    for row in records(band[band["trained"].astype(bool)]):
        _band(ax, row["test_ppl"], horizontal=True)
    top = style.ceiling([one.value for one in trained["test_ppl"]])
    colours = style.variant_colours(sparse["variant"])
    groups = list(sparse.groupby(["variant", "block_size"], sort=False))
    for shift, ((variant, size), line) in zip(_side_by_side(len(groups)), groups, strict=True):
        at = line["stored_sparsity"] + shift
        _line(ax, at, line, top, color=colours[str(variant)], marker=style.block_marker(size))
    if not smaller.empty:
        at = 1.0 - smaller["stored_weights"] / band["stored_weights"].iloc[0]
        _line(ax, at, smaller, top, color=style.BLACK, marker="*", markersize=10, linestyle=":")
    ax.set(xlabel="sparsity ρ stored (share of empty blocks)", ylabel=f"test {train.unit.name}", xlim=(-0.03, 1.03))
    if top < math.inf:
        ax.set_ylim(top=top)
    lines = yardstick_lines(ax, train, "test_ppl")
    drawn.legend(handles=_handles(sparse, colours, not smaller.empty, not band.empty), loc="outside right upper")
    drawn.suptitle(title, fontsize=12)
    edge = style.beyond(trained["variant"].tolist(), [one.value for one in trained["test_ppl"]])
    beside = (
        f"Lines are drawn up to {BESIDE:g} beside their sparsity, so that points of one sparsity stand side by side."
    )
    notes = [*lines, *([beside] if len(groups) > 1 else []), *edge, *_edged(train), *not_finished(train.rows)]
    style.margin(drawn, [_intervals(found), *notes])
    return drawn


def _edged(train: Part) -> list[str]:
    """`did_not_train`, and that it is what stands at the edge."""
    return [f"{line[:-1]}; hollow under arrows at the upper edge." for line in did_not_train(train)]


def _side_by_side(lines: int) -> list[float]:
    """How far each of some lines is drawn beside its sparsity."""
    return [0.0] if lines == 1 else [BESIDE * (2.0 * at / (lines - 1) - 1.0) for at in range(lines)]


def _whole_lines(found: pd.DataFrame) -> pd.DataFrame:
    """`replicates` with the path left out of the names of variants that no setting has on two paths: their line is one.

    Paths compute the same up to rounding, and a sweep may take the sparse one at some of its sparsities only.
    """
    plain = found["variant"].map(without_path)
    twice = plain.isin(plain[found.assign(plain=plain).duplicated(["plain", "block_size", "target_sparsity"])])
    return found.assign(variant=found["variant"].where(twice, plain))


def _band(ax: Axes, dense: Estimate, horizontal: bool) -> None:
    """The dense network's perplexity as a line with its interval."""
    line, span = (ax.axhline, ax.axhspan) if horizontal else (ax.axvline, ax.axvspan)
    line(dense.value, color=style.BLACK, linewidth=1.2)
    span(*([dense.value] * 2 if math.isnan(dense.low) else [dense.low, dense.high]), color="#dddddd", zorder=0)


def _line(ax: Axes, at: pd.Series, line: pd.DataFrame, top: float, **looks: Any) -> None:
    """One variant at one block size by its sparsity.

    What lies beyond `top`, or did not train, is pinned to the edge, without a line.
    """
    ordered = at.sort_values()
    found = line.loc[ordered.index, "test_ppl"]
    within = np.array([one.value <= top for one in found]) & line.loc[ordered.index, "trained"].to_numpy(dtype=bool)
    values = [one if inside else NOTHING for one, inside in zip(found, within, strict=True)]
    style.pinned(ax, ordered[~within], looks["color"], looks["marker"])
    looks = {"linewidth": 1.1, "alpha": 0.9, "capsize": 2.5} | looks
    ax.errorbar(ordered, [one.value for one in values], yerr=style.spread(values), **looks)


def _handles(sparse: pd.DataFrame, colours: dict[str, str], controls: bool, dense: bool) -> list[Line2D]:
    star = style.entry(_broken(CONTROL), style.BLACK, "*", markersize=10, linestyle=":")
    return [
        *([style.entry("dense", style.BLACK, linewidth=1.2)] if dense else []),
        *([star] if controls else []),
        *(style.entry(_broken(variant), colour, linewidth=4) for variant, colour in colours.items()),
        *style.block_entries(sparse["block_size"], style.GREY),
    ]


def _broken(words: str) -> str:
    """Long words of a legend in two lines, so that they leave room for the panel."""
    return words.replace(", ", ",\n", 1) if len(words) > 32 else words


def _intervals(found: pd.DataFrame) -> str:
    """What the bars are."""
    seeds = " or ".join(map(str, sorted({one.n for one in found["test_ppl"]})))
    if all(math.isnan(one.low) for one in found["test_ppl"]):
        return f"No intervals: no setting has a second seed ({seeds} per point)."
    return f"Bars and band: 95 % t-intervals over seeds ({seeds} per point), their scatter pooled over all settings."


def wide_figure(train: Part) -> Figure:
    """Wider for sparser: test perplexity of each network by stored LSTM weights; the narrow dense one as a band."""
    title = f"Wider for sparser: test {train.unit.name} beside the stored LSTM weights"
    if train.replicates.empty:
        return nothing_finished(title, train.rows)
    trained = train.replicates[train.replicates["trained"].astype(bool)]
    if trained.empty:
        return nothing_trained(title, train)
    found = trained.sort_values(["stored_weights", "hidden_size", "block_size"], ignore_index=True)
    narrow = narrow_network(found)[0] or next(iter(_dense_by_width(found)), None)
    base = math.nan if narrow is None else narrow["stored_weights"]
    drawn, [[ax]] = style.figure(1.6 + 0.34 * len(found))
    if narrow is not None:
        _band(ax, narrow["test_ppl"], horizontal=False)
    for height, row in enumerate(records(found)):
        one = row["test_ppl"]
        colour = style.BLACK if is_dense(row["variant"]) else style.RED if "random" in row["variant"] else style.GREEN
        ax.errorbar(one.value, height, xerr=style.spread([one]), fmt=style.block_marker(row["block_size"]) if
                    not is_dense(row["variant"]) else "*", color=colour, capsize=2.5, markersize=7)  # fmt: skip
    ax.set_yticks(range(len(found)), [_network(row, base) for row in records(found)], fontsize=8.5)
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.set(xlabel=f"test {train.unit.name}")
    lines = yardstick_lines(ax, train, "test_ppl", vertical=True)
    drawn.suptitle(title, fontsize=12)
    style.margin(drawn, [_intervals(found), *lines, *did_not_train(train), *not_finished(train.rows)])
    return drawn


def _dense_by_width(found: pd.DataFrame) -> list[dict[str, Any]]:
    """The dense networks of `replicates`, the narrowest first."""
    return records(found[found["variant"].map(is_dense).astype(bool)].sort_values("hidden_size"))


def _network(row: dict[str, Any], base: float) -> str:
    """'gradual (cubic), 640 units, ρ 0.80, block 16: 0.97× the weights'."""
    words = [without_path(row["variant"].split(", hidden_size")[0]), f"{row['hidden_size']:.0f} units"]
    if not is_dense(row["variant"]):
        words += [f"ρ {row['stored_sparsity']:.2f}, block {row['block_size']}"]
    share = "" if math.isnan(base) else f"\n{row['stored_weights'] / base:.2f}× the narrow dense network's weights"
    return ", ".join(words) + share
