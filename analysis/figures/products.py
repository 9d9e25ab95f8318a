"""Figures of product and layer timings against theory, and of what a network trades: each takes parts of a study."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from analysis import compare, theory
from analysis.figures import style
from analysis.figures.panels import (
    MAX_COLS,
    block_legend,
    did_not_train,
    limits,
    no_bound,
    noisy_points,
    not_measured,
    nothing_kept,
    nothing_measured,
    panels,
    speedup_panel,
    yardstick_lines,
)
from analysis.load import one_of, records
from analysis.study import Part, joined

TRADE = "What block sparsity costs and what it buys"
OPS = {"dsd": "dsd: Y = W X", "dsd_t": "dsd_t: dX = Wᵀ dY", "sdd": "sdd: dW = dY Xᵀ"}
BASELINES = {"torch_lstm": "torch.nn.LSTM, fused", "loop_lstm": "step loop, dense products"}
SPEEDUP = "speedup over dense (log₂)"


HOW: dict[str, dict[object, str]] = {
    "layout": {"column": "X as activations lie"},
    "call": {"operator": "public operator"},
    "pad": {True: "padded where blocks do not divide"},
}


def _shape_of(rows: pd.DataFrame) -> str:
    one_of(rows, compare.SHAPE)
    first = rows.iloc[0]
    how = [words[value] for name, words in HOW.items() for value in rows[name].unique() if value in words]
    return ", ".join([compare.shape_name(tuple(first[compare.SHAPE])), *how])


def speedup_figure(gemm: Part) -> Figure:
    """Measured speedup against sparsity for one shape: a panel per backend, a line per block size, theory dashed.

    Failed cells are listed under the panels.
    """
    title, every = f"Block-sparse product against dense: {_shape_of(gemm.rows)}", gemm.points
    points = compare.kept(every)
    backends = _ours_first(points)
    drawn, axes = panels(len(backends), 3.7, sharey=True)
    if not backends:
        nothing_measured(axes[0], "cell of this shape", every)
    else:
        for ax, backend in zip(axes, backends, strict=True):
            speedup_panel(ax, points[points["backend"] == backend], limits(points), backend)
        for ax in axes[::MAX_COLS]:
            ax.set_ylabel(SPEEDUP)
        block_legend(drawn, points)
    drawn.suptitle(title, fontsize=12)
    style.margin(drawn, [*nothing_kept(every), *not_measured(gemm.rows, "backend")])
    return drawn


def _ours_first(points: pd.DataFrame) -> list[str]:
    return sorted(points["backend"].unique(), key=lambda name: (name != "native", name))


def efficiency_figure(gemm: Part) -> Figure:
    """Measured over predicted speedup for one shape: a heat map of block size x sparsity for each backend."""
    title, points = f"Efficiency: {_shape_of(gemm.rows)}", gemm.points
    backends = _ours_first(compare.kept(points))
    sizes = sorted(gemm.rows["block_size"].unique())
    sparsities = sorted(gemm.rows["target_sparsity"].unique())
    drawn, axes = panels(len(backends), 0.8 + 0.42 * len(sizes))
    for ax, backend in zip(axes, backends, strict=False):
        mine = points[points["backend"] == backend].assign(noise=lambda mine: mine["noisy"].astype(float))
        grid, noise = (
            mine.pivot_table(index="block_size", columns="target_sparsity", values=column)
            .reindex(index=sizes, columns=sparsities)
            .to_numpy(dtype=float)
            for column in ("efficiency", "noise")
        )
        style.heat_map(ax, grid, cmap="cividis", vmin=0.0, vmax=1.0, yticklabels=sizes,
                       xticklabels=[f"{sparsity:g}" for sparsity in sparsities])  # fmt: skip
        for (row, col), value in np.ndenumerate(grid):  # seaborn's own words are white on middle tones
            words = "–" if math.isnan(value) else f"({value:.0%})" if noise[row, col] > 0.0 else f"{value:.0%}"
            ax.text(col + 0.5, row + 0.5, words, ha="center", va="center", fontsize=9.5,
                    color="white" if value <= 0.55 else "black")  # fmt: skip
        ax.set(title=backend, xlabel="target sparsity ρ", ylabel="block size (elements)")
    if backends:
        drawn.colorbar(axes[0].collections[0], ax=axes, label="measured / predicted", pad=0.01)
    else:
        nothing_measured(axes[0], "cell of this shape", points)
    drawn.suptitle(title, fontsize=12)
    brackets = ["In brackets: noisy."] if points["noisy"].any() else []
    style.margin(drawn, [*brackets, *nothing_kept(points), *not_measured(gemm.rows, "backend")])
    return drawn


def op_figure(gemm: Part, backend: str = "native") -> Figure:
    """Measured against theoretical speedup of one backend: a panel per product shape and op, a line per block size.

    gemm: a part over op; failed cells are listed.
    """
    title = f"Products of the {backend} backend against dense, measured and in theory"
    if gemm.rows.empty:
        return style.empty_figure(title, "no sweep timed products: not run")
    every = gemm.points[gemm.points["backend"] == backend]
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
    style.margin(drawn, [*nothing_kept(every), *not_measured(gemm.rows[gemm.rows["backend"] == backend], "op")])
    return drawn


def layer_figure(lstm: Part, backend: str = "native") -> Figure:
    """Speedup of an LSTM layer against sparsity: a row of panels per baseline, one per batch, a line per block size.

    lstm: one layer (input, hidden, steps) of a part over baseline; failed cells are listed.
    Theory is 1/(1-rho) with both weights sparse, Amdahl's ceiling over both with weight_hh alone.
    """
    title = "LSTM layer: measured against theory"
    if lstm.rows.empty:
        return style.empty_figure(title, "no sweep timed LSTM layers: not run")
    one_of(lstm.rows, compare.LAYER_SIDES)
    every = lstm.points[lstm.points["backend"] == backend]
    points = compare.kept(every)
    if points.empty:
        return _nothing_measured(title, "no cell was measured", every, not_measured(lstm.rows, "baseline"))
    baselines, batches = sorted(points["baseline"].unique(), reverse=True), sorted(points["batch_size"].unique())
    drawn, axes = panels(len(baselines) * len(batches), 3.6, len(batches), sharey=True)
    first = lstm.rows.iloc[0]
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
    style.margin(drawn, [*nothing_kept(every), *not_measured(lstm.rows, "baseline")])
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


def layer_efficiency_figure(lstm: Part, target: float = 0.8, backend: str = "native") -> Figure:
    """Measured over predicted speedup of LSTM layers by their hidden size, at one target sparsity: a panel per batch.

    lstm: a part over baseline. Filled: against the fused layer; hollow, dashed: against the step loop. Where several
    input sizes or step counts were measured, the median over them is drawn.
    """
    title = f"Efficiency of the LSTM layer at ρ = {target:g}: measured / theory"
    if lstm.rows.empty:
        return style.empty_figure(title, "no sweep timed LSTM layers: not run")
    every = lstm.points[(lstm.points["backend"] == backend) & (lstm.points["target_sparsity"] == target)]
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


def tradeoff_figure(train: Part, gemm: Part) -> Figure:
    """Test perplexity against the measured speedup of the product at the same block size and sparsity, front marked."""
    if train.replicates.empty or gemm.rows.empty:
        return style.empty_figure(TRADE, "needs finished runs and timed products")
    trade = compare.tradeoff(joined(train, gemm))
    lost = no_bound("Left out, for no block is kept", compare.nothing_kept(train.replicates))
    if trade.empty:
        return _no_trade(lost)
    drawn, [[ax]] = style.figure(5.4)
    colours = style.variant_colours(trade["variant"])
    low, high = min(0.8, trade["speed"].min() / 1.15), max(2.0, trade["speed"].max()) * 1.3
    style.speedup_axis(ax.xaxis, low, high)
    trained = trade[trade["trained"].astype(bool)]
    top = style.ceiling((trade if trained.empty else trained)["ppl"].tolist())
    front = trade[trade["front"] & (trade["ppl"] <= top)].sort_values("speed")
    ax.plot(front["speed"], front["ppl"], color=style.GREY, linewidth=5, alpha=0.25, zorder=1)
    for row in records(trade):
        marker = "*" if row["dense"] else style.block_marker(row["block_size"])
        if row["ppl"] > top or not row["trained"]:
            style.pinned(ax, [row["speed"]], colours[row["variant"]], marker)
            continue
        ax.errorbar(row["speed"], row["ppl"], xerr=style.spread([row["product_speedup"]]),
                    yerr=style.spread([row["test_ppl"]]),
                    color=colours[row["variant"]], marker=marker, capsize=2, markersize=13 if row["dense"] else 7.5,
                    markerfacecolor=None if row["front"] else "white", zorder=3)  # fmt: skip
    product = compare.chosen_product(gemm.points, compare.recurrent_shape(train.runs))
    what = f"measured speedup of one product over dense (log₂): {product}"
    ax.set(xlabel=what, ylabel=f"test {train.unit.name}")
    if top < math.inf:
        ax.set_ylim(top=top)
    lines = yardstick_lines(ax, train, "test_ppl")
    drawn.legend(handles=[
        *(style.entry(variant, colour, linewidth=4) for variant, colour in colours.items()),
        *style.block_entries(trade["block_size"], style.GREY),
        style.entry("front: filled,\nnone better in both", linewidth=5, alpha=0.25),
    ], loc="outside right upper")  # fmt: skip
    drawn.suptitle(TRADE, fontsize=12)
    style.margin(drawn, [
        *lines,
        *style.beyond(trained["variant"].tolist(), trained["ppl"].tolist()),
        *did_not_train(train),
        *_noisy_speeds(trade),
        *lost,
    ])  # fmt: skip
    _label_front(drawn, ax, front, trained[trained["ppl"] <= top])
    return drawn


def _no_trade(lost: list[str]) -> Figure:
    drawn = style.empty_figure(TRADE, "no finished run has a product timed at its block size and sparsity")
    style.margin(drawn, lost)
    return drawn


def _noisy_speeds(trade: pd.DataFrame) -> list[str]:
    """One line that names the settings whose product speedup rests on a noisy timing; none without one."""
    noisy = records(trade[trade["product_noisy"].astype(bool)])
    sparsities: dict[int, set[str]] = {}
    for row in noisy:
        sparsities.setdefault(int(row["block_size"]), set()).add(f"{row['stored_sparsity']:.2g}")
    named = [f"block {size} at ρ {', '.join(sorted(found))}" for size, found in sorted(sparsities.items())]
    return [f"Speedups from noisy timings: {'; '.join(named)}."] if named else []


MARKER = 11.0  # pixels across


class Place(NamedTuple):
    """Where words stand beside a point: offsets in points, and the side of them that is turned to it."""

    across: float
    down: float
    side: Literal["left", "center", "right"]


PLACES = tuple(
    Place(reach * place.across, reach * place.down, place.side)
    for reach in (1.0, 2.2, 3.4)
    for place in (
        Place(8, -12, "left"),
        Place(8, 5, "left"),
        Place(-8, -12, "right"),
        Place(-8, 5, "right"),
        Place(0, 9, "center"),
        Place(0, -17, "center"),
    )
)


def _label_front(drawn: Figure, ax: Axes, front: pd.DataFrame, shown: pd.DataFrame) -> None:
    """Name every point of the front beside it, at the nearest place where words cover no point, no bar, no other words.

    Points of the front whose markers lie on each other share their words.
    """
    canvas = FigureCanvasAgg(drawn)
    drawn.draw_without_rendering()  # places the axes
    taken = [box for row in records(shown) for box in _boxes(ax, row)]
    points = _pixels(ax, shown)
    for group in _together(ax, front):
        first = records(group)[0]
        words = "dense" if first["dense"] else f"ρ {', '.join(f'{one:.2g}' for one in group['stored_sparsity'])}"
        text = ax.annotate(words, (first["speed"], first["ppl"]), xytext=(0, 0), textcoords="offset points", fontsize=9)
        tried = [_put(text, place, canvas) for place in PLACES]
        own = _pixels(ax, group)
        faults = [
            sum(map(box.overlaps, taken)) + 4 * _nearer_another(box, own, points) + 9 * (not _within(ax, box))
            for box in tried
        ]
        taken.append(_put(text, PLACES[faults.index(min(faults))], canvas))


def _pixels(ax: Axes, points: pd.DataFrame) -> np.ndarray:
    found: np.ndarray = ax.transData.transform(points[["speed", "ppl"]].to_numpy(dtype=float))
    return found


def _together(ax: Axes, front: pd.DataFrame) -> list[pd.DataFrame]:
    """The points of the front in the order of their speed, those together that lie within a marker of each other."""
    apart = np.hypot(*np.diff(_pixels(ax, front), axis=0).T) > MARKER
    return (
        [front.iloc[part] for part in np.split(np.arange(len(front)), np.flatnonzero(apart) + 1)] if len(front) else []
    )


def _put(text: Annotation, place: Place, canvas: FigureCanvasAgg) -> Bbox:
    """Move words to a place; what they cover there, in pixels, with a little air."""
    text.xyann = (place.across, place.down)
    text.set_horizontalalignment(place.side)
    return text.get_window_extent(canvas.get_renderer()).padded(2.0)  # type: ignore[no-untyped-call]


def _nearer_another(box: Bbox, own: np.ndarray, points: np.ndarray) -> bool:
    """Whether words would be taken for those of another point: it is nearer to the middle of their box."""
    middle = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
    return bool(np.hypot(*(points - middle).T).min() < np.hypot(*(own - middle).T).min() - 1e-6)


def _within(ax: Axes, box: Bbox) -> bool:
    return ax.bbox.contains(box.x0, box.y0) and ax.bbox.contains(box.x1, box.y1)


def _boxes(ax: Axes, row: dict[str, Any]) -> list[Bbox]:
    """Where the marker of a point and its two bars lie, in pixels."""
    one, speed = row["test_ppl"], row["product_speedup"]
    ends = [(row["speed"], row["ppl"])] * 2
    bars = [ends]
    if math.isfinite(one.low):
        bars.append([(row["speed"], one.low), (row["speed"], one.high)])
    if math.isfinite(speed.low):
        bars.append([(speed.low, row["ppl"]), (speed.high, row["ppl"])])
    sizes = [6.0, *[2.0] * (len(bars) - 1)]
    return [Bbox(ax.transData.transform(bar)).padded(size) for bar, size in zip(bars, sizes, strict=True)]
