"""Figures of measured against theoretical speed: products by op, and LSTM layers by batch, baseline and size."""

from __future__ import annotations

from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import compare, theory
from analysis.figures import style
from analysis.figures.panels import (
    MAX_COLS,
    block_legend,
    limits,
    noisy_points,
    not_measured,
    nothing_kept,
    panels,
    speedup_panel,
)
from analysis.load import one_of

OPS = {"dsd": "dsd: Y = W X", "dsd_t": "dsd_t: dX = Wᵀ dY", "sdd": "sdd: dW = dY Xᵀ"}
BASELINES = {"torch_lstm": "torch.nn.LSTM, fused", "loop_lstm": "step loop, dense products"}
SPEEDUP = "speedup over dense (log₂)"


def op_figure(gemm: pd.DataFrame | None, backend: str = "native") -> Figure:
    """Measured against theoretical speedup of one backend: a panel per product shape and op, a line per block size.

    gemm: rows that differ in op at most where rows are unlike (`study.widest(..., over="op")`); failed cells are listed.
    """
    title = f"Products of the {backend} backend against dense, measured and in theory"
    if gemm is None or gemm.empty:
        return style.empty_figure(title, "no sweep timed products: not run")
    every = compare.gemm_points(gemm, over="op")
    every = every[every["backend"] == backend]
    points = compare.kept(every)
    if points.empty:
        return _nothing_measured(title, f"no product of {backend} was measured", every, [])
    parts = [part for _, part in points.groupby([*compare.SHAPE, "op"], sort=True)]
    columns = points["op"].nunique() if points["op"].nunique() > 1 else MAX_COLS
    drawn, axes = panels(len(parts), 3.9, columns, sharey=True)
    for ax, part in zip(axes, parts, strict=True):
        first = part.iloc[0]
        speedup_panel(
            ax, part, limits(points), f"{OPS[first['op']]}\n{compare.shape_name(tuple(first[compare.SHAPE]))}"
        )
    for ax in axes[::columns]:
        ax.set_ylabel(SPEEDUP)
    block_legend(drawn, points)
    drawn.suptitle(title, fontsize=12)
    style.margin(drawn, [*nothing_kept(every), *not_measured(gemm[gemm["backend"] == backend], "op")])
    return drawn


def layer_figure(lstm: pd.DataFrame | None, backend: str = "native") -> Figure:
    """Speedup of an LSTM layer against sparsity: a row of panels per baseline, one per batch, a line per block size.

    lstm: rows of one layer (input, hidden, steps) that differ in baseline at most otherwise; failed cells are listed.
    Theory is 1/(1-rho) with both weights sparse, Amdahl's ceiling over both with weight_hh alone.
    """
    title = "LSTM layer: measured against theory"
    if lstm is None or lstm.empty:
        return style.empty_figure(title, "no sweep timed LSTM layers: not run")
    one_of(lstm, compare.LAYER_SIDES)
    every = compare.lstm_points(lstm, over="baseline")
    every = every[every["backend"] == backend]
    points = compare.kept(every)
    if points.empty:
        return _nothing_measured(title, "no cell was measured", every, not_measured(lstm, "baseline"))
    baselines, batches = sorted(points["baseline"].unique(), reverse=True), sorted(points["batch_size"].unique())
    drawn, axes = panels(len(baselines) * len(batches), 3.6, len(batches), sharey=True)
    first = lstm.iloc[0]
    into, out, scope = int(first["input_size"]), int(first["hidden_size"]), str(first["scope"])
    for at, ax in enumerate(axes):
        baseline, batch = baselines[at // len(batches)], batches[at % len(batches)]
        here = points[(points["baseline"] == baseline) & (points["batch_size"] == batch)]
        _layer_panel(ax, here, points, f"batch {batch}", partial(theory.layer_speedup, into, out, scope=scope))
        if at % len(batches) == 0:
            ax.set_ylabel(f"speedup (log₂) over\n{BASELINES.get(baseline, baseline)}")
    block_legend(drawn, points, "theory 1/(1−ρ)" if scope == "all" else "theory: Amdahl, weight_hh sparse")
    passes = str(first["passes"]).replace("_", " + ")
    drawn.suptitle(
        f"{compare.layer_name(first[compare.LAYER_SIDES].tolist())}, {passes}, {_sparse(scope)}", fontsize=12
    )
    style.margin(drawn, [*nothing_kept(every), *not_measured(lstm, "baseline")])
    return drawn


def _nothing_measured(title: str, words: str, measured: pd.DataFrame, failed: list[str]) -> Figure:
    """The figure of a table without a point to draw: none measured, or none that keeps a block."""
    drawn = style.empty_figure(title, words + ("" if measured.empty else " that keeps a block"))
    style.margin(drawn, [*nothing_kept(measured), *failed])
    return drawn


def _sparse(scope: str) -> str:
    return "both weights sparse" if scope == "all" else f"{scope} sparse"


def _layer_panel(ax: Axes, here: pd.DataFrame, points: pd.DataFrame, title: str, promise: partial[float]) -> None:
    if here.empty:
        ax.set_title(title, fontweight="bold", pad=30)
        ax.text(0.5, 0.5, "not measured", ha="center", transform=ax.transAxes, color=style.GREY)
        ax.tick_params(labelbottom=False)
        return
    speedup_panel(ax, here, limits(points), title, promise)


def layer_efficiency_figure(lstm: pd.DataFrame | None, target: float = 0.8, backend: str = "native") -> Figure:
    """Measured over predicted speedup of LSTM layers against their hidden size, at one target sparsity: a panel per batch.

    lstm: rows that differ in baseline at most where rows are unlike. Filled: against the fused layer; hollow, dashed:
    against the step loop. Where several input sizes or step counts were measured, the median over them is drawn.
    """
    title = f"Efficiency of the LSTM layer at ρ = {target:g}: measured / theory"
    if lstm is None or lstm.empty:
        return style.empty_figure(title, "no sweep timed LSTM layers: not run")
    every = compare.lstm_points(lstm, over="baseline")
    every = every[(every["backend"] == backend) & (every["target_sparsity"] == target)]
    points = compare.kept(every)
    if points.empty:
        return _nothing_measured(title, f"no cell at ρ = {target:g} was measured", every, [])
    batches = sorted(points["batch_size"].unique())
    drawn, axes = panels(len(batches), 3.4, sharey=True, sharex=True)
    for ax, batch in zip(axes, batches, strict=True):
        _efficiency_panel(ax, points[points["batch_size"] == batch])
        ax.set(xlabel="hidden size", title=f"batch {batch}")
    sizes = sorted(points["hidden_size"].unique())
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks(sizes, [str(size) for size in sizes])
    axes[0].set_ylim(0.0, max(1.1, 1.1 * points["efficiency"].max()))
    axes[0].set_ylabel("measured / predicted")
    handles = style.block_entries(points["block_size"])
    if "loop_lstm" in set(points["baseline"]):
        handles.append(style.entry("over the step loop", marker="o", markerfacecolor="white", linestyle=":"))
    drawn.legend(handles=handles, loc="outside lower center", ncols=6)
    drawn.suptitle(title, fontsize=12)
    style.margin(drawn, [*nothing_kept(every), *noisy_points(points)])
    return drawn


def _efficiency_panel(ax: Axes, points: pd.DataFrame) -> None:
    ax.axhline(1.0, color=style.GREY, linewidth=1.0)
    for (baseline, size), line in points.groupby(["baseline", "block_size"], sort=True):
        by_size = line.groupby("hidden_size")["efficiency"].median()
        fused = baseline != "loop_lstm"
        colour = style.block_colour(size)
        ax.plot(by_size.index, by_size, style.block_marker(size), linestyle="-" if fused else ":", color=colour,
                markerfacecolor=colour if fused else "white")  # fmt: skip
