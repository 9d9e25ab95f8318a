"""Figures of training runs: curves, block norms, and the training-time integral beside what was measured."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from analysis.figures import style
from analysis.figures.panels import no_bound, nothing_finished, yardstick_lines
from analysis.load import records
from analysis.runs import common_block_size, common_sparsity, is_dense, is_pruned, wanted
from analysis.study import Part

GATES = ("i input", "f forget", "g cell", "o output")


def chosen_runs(final: pd.DataFrame, found: pd.DataFrame) -> tuple[pd.DataFrame, int | None, float | None]:
    """(runs, block size, target sparsity): every variant at the block size and sparsity that most of them share.

    final, found: `runs`, and their `replicates`.
    """
    target = common_sparsity(found)
    size = common_block_size(found, target)
    at_target = (final["target_sparsity"] == 0.0) | (final["target_sparsity"] == target)
    return final[at_target & (final["variant"].map(is_dense) | (final["block_size"] == size))], size, target


def _place(size: int | None, target: float | None) -> str:
    return ", ".join(
        words
        for words in (f"block {size}" if size else "", f"target sparsity {target:g}" if target is not None else "")
        if words
    )


def curves_figure(train: Part) -> Figure:
    """Validation perplexity and sparsity by epoch, a line per variant: the mean over seeds, and their range."""
    title = "How the variants train"
    if train.runs.empty:
        return nothing_finished(title, train.rows)
    chosen, size, target = chosen_runs(train.runs, train.replicates)
    drawn, [[left, right]] = style.figure(4.4 + style.rows_below(chosen["variant"].nunique()), 1, 2)
    every = style.variant_colours(train.runs["variant"])  # as in the other figures of the sweep
    colours = {variant: every[variant] for variant in dict.fromkeys(chosen["variant"])}
    epochs = train.rows.merge(chosen[["cell_id", "variant"]], on="cell_id")
    told = epochs[epochs["epoch"] >= 1].assign(val_ppl=lambda rows: train.unit.of(rows["val_ppl"].astype(float)))
    _curves(left, told, "val_ppl", colours)
    _curves(right, epochs, "sparsity", colours)
    left.set(ylabel=f"validation {train.unit.name}" + (" (log)" if train.unit.base is None else ""), xlabel="epoch")
    if train.unit.base is None:
        left.set(yscale="log")
        left.yaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
        left.yaxis.set_minor_formatter(mpl.ticker.ScalarFormatter())
    lines = yardstick_lines(left, train, "val_ppl")
    right.set(ylabel="sparsity ρ at the end of the epoch", xlabel="epoch", ylim=(-0.03, 1.0))
    handles = [style.entry(variant, colour, linewidth=3) for variant, colour in colours.items()]
    drawn.legend(handles=handles, loc="outside lower center", ncols=2)
    drawn.suptitle(f"{title} ({_place(size, target)})", fontsize=12)
    style.margin(drawn, lines)
    return drawn


def _curves(ax: Axes, epochs: pd.DataFrame, column: str, colours: dict[str, str]) -> None:
    """A line per variant: the mean over seeds, and their range as a band."""
    seaborn.lineplot(epochs, x="epoch", y=column, hue="variant", hue_order=list(colours), palette=colours, legend=False,
                     errorbar=lambda seeds: (seeds.min(), seeds.max()), err_kws={"alpha": 0.15, "linewidth": 0},
                     marker="o", markersize=3.5, markeredgecolor="auto", ax=ax)  # fmt: skip
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))


def norm_maps_figure(train: Part, weight: str | None = None) -> Figure:
    """The slides' heat maps: L2 norms of the blocks of one weight, a row per variant, first, middle and last epoch.

    weight: None is that from the states of the first LSTM layer to its gates; of a classifier, the last hidden layer's.
    Drawn transposed, so that the four gates lie side by side. One log scale for all panels, so that a colour means the
    same norm in each of them; empty blocks are white, the smallest of the others dark.
    """
    if train.runs.empty:
        return nothing_finished("Block norms", train.rows)
    weight = weight or _shown(train.rows)
    title = f"Block norms of {weight}"
    chosen, size, target = chosen_runs(train.runs, train.replicates)
    chosen = chosen.sort_values("seed").drop_duplicates("variant").sort_index()
    stored = train.rows
    maps = {row["variant"]: norm_maps(stored[stored["cell_id"] == row["cell_id"]], weight) for row in records(chosen)}
    maps = {variant: grids for variant, grids in maps.items() if grids}
    if not maps:
        return style.empty_figure(title, f"no norms of {weight} were stored")
    rows, cols = len(maps), max(len(grids) for grids in maps.values())
    drawn, axes = style.figure(1.25 * rows + 1.0, rows, cols)
    scale = _scale([grid for grids in maps.values() for grid in grids.values()])
    for line, (variant, grids) in zip(axes, maps.items(), strict=True):
        for ax in line[len(grids) :]:
            ax.remove()
        for ax, (epoch, grid) in zip(line, grids.items(), strict=False):
            style.heat_map(ax, grid.T, mask=grid.T <= 0.0, cmap="viridis", norm=scale, vmin=scale.vmin, vmax=scale.vmax,
                           xticklabels=False, yticklabels=False)  # fmt: skip
            ax.set_title(f"epoch {epoch}", fontsize=10)
            if weight.startswith("weight_"):
                _gates(ax, grid.shape[0])
        line[0].set_ylabel(variant.replace(" + ", "\n+ ").replace(", ", ",\n"), rotation=0, ha="right", va="center")
    image = axes[0][0].collections[0]
    drawn.colorbar(image, ax=[ax for line in axes for ax in line], label="L2 norm of a block (log)", pad=0.01)
    drawn.suptitle(f"{title} ({_place(size, target)}; white: empty; one scale for all panels)", fontsize=12)
    return drawn


def _shown(rows: pd.DataFrame) -> str:
    """The weight whose blocks are drawn, of those that a sweep has stored norms of."""
    names = {stored["weight"] for norms in rows["block_norms"].dropna() for stored in norms}
    return "weight_hh_l0" if "weight_hh_l0" in names or not names else max(names)


def norm_maps(run: pd.DataFrame, weight: str) -> dict[int, np.ndarray]:
    """The stored norms of `weight`, [grid_rows, grid_cols], by epoch: the first, a middle and the last one stored."""
    found = {}
    for row in records(run.sort_values("epoch")):
        for stored in row["block_norms"] if row["block_norms"] is not None else ():
            if stored["weight"] == weight:
                shape = (stored["grid_rows"], stored["grid_cols"])
                found[int(row["epoch"])] = np.asarray(stored["norms"], dtype=float).reshape(shape)
    kept = sorted(found)
    return {epoch: found[epoch] for epoch in sorted({kept[0], kept[len(kept) // 2], kept[-1]})} if kept else {}


def _scale(grids: list[np.ndarray]) -> LogNorm:
    """One log scale for all grids; the smallest hundredth of the norms shares the darkest colour."""
    norms = np.concatenate([grid[grid > 0.0] for grid in grids])
    if not len(norms):
        return LogNorm(0.1, 1.0)
    low, high = float(np.quantile(norms, 0.01)), float(norms.max())
    return LogNorm(min(low, high / 2), high)


def _gates(ax: Axes, blocks: int) -> None:
    """Name the four gates under their quarter of the block rows."""
    quarter = blocks / 4
    ax.set_xticks([quarter * (gate + 0.5) for gate in range(4)], GATES)
    for gate in (1, 2, 3):
        ax.axvline(quarter * gate, color=style.GREY, linewidth=0.6)


UNPAIRED = (
    "Predicted: T_D / (T_S − Σ mean ρ_t) over the pruned matrices, were empty blocks free. Measured: seconds of the "
    "dense run of the same seed over seconds of this run; the runs were not interleaved, so it is rough. Runs on the "
    "dense path multiply masked weights at dense speed: about 1× is what masks alone buy."
)


def integral_figure(train: Part) -> Figure:
    """The training-time integral: what skipping empty blocks would gain at the sparsity achieved, and was measured."""
    title = "Training time: what the integral promises and what whole runs gained"
    final, found = (each[is_pruned(each)] for each in (train.runs, train.replicates))
    if final.empty:
        return style.empty_figure(title, "no pruned run has finished")
    chosen, size, target = chosen_runs(final, found)
    drawn, [[left, right]] = style.figure(max(4.6, 1.8 + 0.34 * len(found)), 1, 2)
    colours = style.variant_colours(final["variant"])
    epochs = train.rows[train.rows["epoch"] >= 1].merge(chosen[["cell_id", "variant"]], on="cell_id")
    _curves(left, epochs.assign(cost=1.0 - epochs["mean_sparsity"]), "cost", colours)
    left.axhline(1.0, color=style.GREY, linewidth=1.0)
    left.set(
        xlabel="epoch", ylabel="share of blocks to multiply, 1 − mean ρ", ylim=(0, 1.05), title=_place(size, target)
    )
    _training_speedups(right, found, colours)
    drawn.legend(handles=[
        *(style.entry(variant, colour, linewidth=3) for variant, colour in colours.items()),
        style.entry("predicted", marker="D", markerfacecolor="white", linestyle="--"),
        style.entry("measured, whole runs", marker="o"),
    ], loc="outside lower center", ncols=2)  # fmt: skip
    drawn.suptitle(title, fontsize=12)
    unbounded = found[np.isinf(found["predicted_training"])]
    style.margin(drawn, [UNPAIRED, *no_bound("No prediction, for no block is ever kept", unbounded)])
    return drawn


def _training_speedups(ax: Axes, found: pd.DataFrame, colours: dict[str, str]) -> None:
    """Predicted (hollow) and measured (filled, with interval) training speedup, a line of the axis per setting."""
    found = found.sort_values(["target_sparsity", "variant", "block_size"], ascending=False, ignore_index=True)
    measured = list(found["measured_training"])
    values = [bound for one in measured for bound in one[:3]] + found["predicted_training"].tolist()
    bounded = [value for value in values if math.isfinite(value)]
    low, high = min([0.7, *bounded]) / 1.1, max([2.0, *bounded]) * 1.15
    style.speedup_axis(ax.xaxis, low, high)
    for height, row in enumerate(records(found)):
        colour, one = colours[row["variant"]], row["measured_training"]
        if math.isfinite(row["predicted_training"]):
            ax.plot([1.0, row["predicted_training"]], [height] * 2, "--", color=colour, linewidth=1.0)
            ax.plot(row["predicted_training"], height, "D", color=colour, markerfacecolor="white")
        if one.n:
            ax.errorbar(one.value, height, xerr=style.spread([one]), fmt="o", color=colour, capsize=2)
    labels = [f"{row['variant']}\nρ {wanted(row)}, block {row['block_size']}" for row in records(found)]
    ax.set_yticks(range(len(found)), labels, fontsize=8)
    ax.set_ylim(-0.7, len(found) - 0.3)
    ax.set(xlabel="training speedup over dense (log₂)", title="every pruned setting")
