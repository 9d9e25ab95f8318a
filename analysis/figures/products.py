"""Figures of product timings and of the tradeoff: each function takes result rows and returns a Figure."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from analysis import compare
from analysis.figures import style
from analysis.figures.panels import (
    MAX_COLS,
    block_legend,
    limits,
    no_bound,
    not_measured,
    nothing_kept,
    nothing_measured,
    panels,
    speedup_panel,
)
from analysis.load import one_of, records
from analysis.runs import replicates, runs
from analysis.tradeoff import chosen_product, recurrent_shape, tradeoff

TRADE = "What block sparsity costs and what it buys"


def _shape_of(frame: pd.DataFrame) -> str:
    m, k, n = (int(frame[side].iloc[0]) for side in compare.SHAPE)
    return compare.shape_name((m, k, n))


def speedup_figure(frame: pd.DataFrame) -> Figure:
    """Measured speedup against sparsity for one shape: a panel per backend, a line per block size, theory dashed.

    frame: rows of the gemm table, failed cells included (they are listed under the panels).
    """
    one_of(frame, compare.SHAPE)
    every = compare.gemm_points(frame)
    points = compare.kept(every)
    backends = _ours_first(points)
    drawn, axes = panels(len(backends), 3.7, sharey=True)
    if not backends:
        nothing_measured(axes[0], "cell of this shape", every)
    else:
        for ax, backend in zip(axes, backends, strict=True):
            speedup_panel(ax, points[points["backend"] == backend], limits(points), backend)
        for ax in axes[::MAX_COLS]:
            ax.set_ylabel("speedup over dense (log₂)")
        block_legend(drawn, points)
    drawn.suptitle(f"Block-sparse product against dense: {_shape_of(frame)}", fontsize=12)
    style.margin(drawn, [*nothing_kept(every), *not_measured(frame, "backend")])
    return drawn


def _ours_first(points: pd.DataFrame) -> list[str]:
    return sorted(points["backend"].unique(), key=lambda name: (name != "native", name))


def efficiency_figure(frame: pd.DataFrame) -> Figure:
    """Measured over predicted speedup for one shape: a heat map of block size x sparsity for each backend."""
    one_of(frame, compare.SHAPE)
    points = compare.gemm_points(frame)
    backends = _ours_first(compare.kept(points))
    sizes = sorted(frame["block_size"].unique())
    sparsities = sorted(frame["target_sparsity"].unique())
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
    drawn.suptitle(f"Efficiency: {_shape_of(frame)}", fontsize=12)
    brackets = ["In brackets: noisy."] if points["noisy"].any() else []
    style.margin(drawn, [*brackets, *nothing_kept(points), *not_measured(frame, "backend")])
    return drawn


def tradeoff_figure(train: pd.DataFrame | None, gemm: pd.DataFrame | None) -> Figure:
    """Test perplexity against the measured speedup of the product at the same block size and sparsity, front marked."""
    if train is None or train.empty or gemm is None or gemm.empty or (final := runs(train)).empty:
        return style.empty_figure(TRADE, "needs finished runs and timed products")
    points = compare.gemm_points(gemm)
    product, found = chosen_product(points, recurrent_shape(final)), replicates(final)
    joined = tradeoff(found, points, product)
    lost = no_bound("Left out, for no block is kept", compare.nothing_kept(found))
    if joined.empty:
        return _no_trade(lost)
    drawn, [[ax]] = style.figure(5.4)
    colours = style.variant_colours(joined["variant"])
    low, high = min(0.8, joined["speed"].min() / 1.15), max(2.0, joined["speed"].max()) * 1.3
    style.speedup_axis(ax.xaxis, low, high)
    top = style.ceiling(joined["ppl"].tolist())
    front = joined[joined["front"] & (joined["ppl"] <= top)].sort_values("speed")
    ax.plot(front["speed"], front["ppl"], color=style.GREY, linewidth=5, alpha=0.25, zorder=1)
    for row in records(joined):
        marker = "*" if row["dense"] else style.block_marker(row["block_size"])
        if row["ppl"] > top:
            style.pinned(ax, [row["speed"]], colours[row["variant"]], marker)
            continue
        ax.errorbar(row["speed"], row["ppl"], xerr=style.spread([row["product_speedup"]]),
                    yerr=style.spread([row["test_ppl"]]),
                    color=colours[row["variant"]], marker=marker, capsize=2, markersize=13 if row["dense"] else 7.5,
                    markerfacecolor=None if row["front"] else "white", zorder=3)  # fmt: skip
    what = f"measured speedup of one product over dense (log₂): {product}"
    ax.set(xlabel=what, ylabel="test perplexity")
    if top < math.inf:
        ax.set_ylim(top=top)
    drawn.legend(handles=[
        *(style.entry(variant, colour, linewidth=4) for variant, colour in colours.items()),
        *style.block_entries(joined["block_size"], style.GREY),
        style.entry("front: filled,\nnone better in both", linewidth=5, alpha=0.25),
    ], loc="outside right upper")  # fmt: skip
    drawn.suptitle(TRADE, fontsize=12)
    style.margin(drawn, [
        *style.beyond(joined["variant"].tolist(), joined["ppl"].tolist()),
        *_noisy_speeds(joined),
        *lost,
    ])  # fmt: skip
    _label_front(drawn, ax, front, joined[joined["ppl"] <= top])
    return drawn


def _no_trade(lost: list[str]) -> Figure:
    drawn = style.empty_figure(TRADE, "no finished run has a product timed at its block size and sparsity")
    style.margin(drawn, lost)
    return drawn


def _noisy_speeds(joined: pd.DataFrame) -> list[str]:
    """One line that names the settings whose product speedup rests on a noisy timing; none without one."""
    noisy = records(joined[joined["product_noisy"].astype(bool)])
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
    """Name every point of the front beside it, at the nearest place where the words cover no point, no bar, no other words.

    Points of the front whose markers lie on each other share their words.
    """
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()  # type: ignore[no-untyped-call]
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
