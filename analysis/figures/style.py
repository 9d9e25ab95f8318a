"""How every figure looks: seaborn's colour-blind-safe palette, markers per block size, sizes, axes, and legends."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

WIDTH = 10.0  # inches; the report shows an inch as 100 pixels
BLUE, ORANGE, GREEN, RED, PURPLE, _, _, _, YELLOW, SKY = seaborn.color_palette("colorblind").as_hex()
BLACK, GREY, SHADE = "#000000", "#666666", "#f3eeee"

BLOCK_COLOURS: dict[int, str] = {1: SKY, 4: BLACK, 8: ORANGE, 16: BLUE, 32: GREEN, 64: RED, 128: PURPLE}
BLOCK_MARKERS = {1: "*", 4: "v", 8: "o", 16: "s", 32: "D", 64: "^", 128: "P"}
VARIANT_COLOURS: dict[str, str] = {
    "dense": BLACK,
    "block lasso": SKY,
    "block lasso + gradual (linear)": BLUE,
    "block lasso + gradual (cubic)": GREEN,
    "block lasso + random pre-pruning": RED,
    "block lasso + one-shot": ORANGE,
}
SPARE = (PURPLE, "#8c564b", ORANGE, GREEN, "#7570b3", YELLOW, "#004d40")  # not GREY, that of words and keys

RC: dict[Any, Any] = {
    "font.size": 10.0, "axes.titlesize": 11.0, "axes.labelsize": 10.0, "legend.fontsize": 9.5,
    "font.family": "DejaVu Sans", "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e2e2e2", "grid.linewidth": 0.6,
    "lines.linewidth": 1.6, "lines.markersize": 5.5, "legend.frameon": False, "savefig.facecolor": "white",
    "figure.facecolor": "white", "svg.hashsalt": "block-sparse-bench",
}  # fmt: skip
DEFAULTS = {
    name: value for name, value in dict.items(mpl.rcParamsDefault) if not name.startswith(("backend", "interactive"))
}


def use() -> None:
    """Apply the style to figures made from here on, whatever a matplotlibrc of the user's or a script before says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about settings that matplotlib will not have any more
        mpl.rcParams.update(DEFAULTS | RC)


def block_colour(block_size: Any) -> str:
    return BLOCK_COLOURS.get(int(block_size), GREY)


def block_marker(block_size: Any) -> str:
    return BLOCK_MARKERS.get(int(block_size), "X")


def variant_colours(variants: Iterable[str]) -> dict[str, str]:
    """A colour for each variant: fixed for the usual ones, spare ones by name for others, each once while they last."""
    variants = list(dict.fromkeys(variants))
    taken = {VARIANT_COLOURS[name] for name in variants if name in VARIANT_COLOURS}
    taken.add(BLACK)  # that of dense, whatever else there is
    spare = cycle([colour for colour in (*SPARE, *VARIANT_COLOURS.values()) if colour not in taken])
    others = {name: next(spare) for name in sorted(set(variants) - set(VARIANT_COLOURS))}
    return {name: VARIANT_COLOURS.get(name) or others[name] for name in variants}


def figure(height: float, rows: int = 1, cols: int = 1, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """A figure of the common width with rows x cols panels, laid out without overlaps; not registered with pyplot."""
    use()
    drawn = Figure(figsize=(WIDTH, height), layout="constrained")
    return drawn, drawn.subplots(rows, cols, squeeze=False, **options).tolist()


def rows_below(entries: int, cols: int = 2, few: int = 3) -> float:
    """Inches that a legend of more than `few` rows below the panels needs beyond those that a figure has for it."""
    return 0.23 * max(0, math.ceil(entries / cols) - few)


def empty_figure(title: str, words: str) -> Figure:
    """A small figure that says why there is nothing to draw."""
    drawn, [[ax]] = figure(1.2)
    ax.text(0.5, 0.5, f"Nothing to draw: {words}.", ha="center", va="center", transform=ax.transAxes, color=GREY)
    ax.axis("off")
    drawn.suptitle(title, fontsize=12)
    return drawn


def spread(found: Sequence[Any]) -> list[list[float]]:
    """[below, above] of estimates (value, low, high) for error bars; no bar where there is no interval."""
    low = [max(one.value - one.low, 0.0) if math.isfinite(one.low) else math.nan for one in found]
    high = [max(one.high - one.value, 0.0) if math.isfinite(one.high) else math.nan for one in found]
    return [low, high]


def speedup_axis(axis: Any, low: float, high: float) -> None:
    """A log2 axis from `low` to `high` with ticks 0.5×, 1×, 2× ...; what is slower than dense is shaded."""
    ax, name = axis.axes, axis.axis_name
    ax.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    span, line = (ax.axvspan, ax.axvline) if name == "x" else (ax.axhspan, ax.axhline)
    span(low, 1.0, color=SHADE, zorder=0)
    line(1.0, color=GREY, linewidth=1.0, zorder=1)
    axis.set_major_locator(FixedLocator([2.0**power for power in range(-12, 13) if low <= 2.0**power <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))


def entry(label: str, colour: str = GREY, marker: str = "", **looks: Any) -> Line2D:
    """What a legend shows beside `label`: a line, or a marker alone where there is one and no linestyle is named."""
    return Line2D([], [], color=colour, marker=marker, label=label, **{"linestyle": "" if marker else "-"} | looks)


def block_entries(sizes: pd.Series, colour: str = "") -> list[Line2D]:
    """What a legend shows for block sizes: a line in each one's colour with its marker, or the marker in `colour`."""
    return [
        entry(f"block {size}", colour or block_colour(size), block_marker(size), linestyle="" if colour else "-")
        for size in sorted(sizes.dropna().unique())
    ]


def heat_map(ax: Axes, grid: np.ndarray, **looks: Any) -> None:
    """A heat map, the first row on top, without a scale of its own; masked cells and those without a value stay white.

    looks: options of `seaborn.heatmap`. What a colour bar needs is `ax.collections[0]`.
    """
    seaborn.heatmap(grid, ax=ax, cbar=False, **looks)
    ax.spines[["left", "bottom"]].set_visible(True)  # where the map ends, were all of it white
    ax.grid(visible=False)
    ax.tick_params(length=0, labelrotation=0)


def ceiling(perplexities: Sequence[float]) -> float:
    """Where a perplexity axis ends: at 1.5 times the lowest where some run is above twice that, else nowhere.

    A run that collapsed would squeeze all others into a line; it is drawn at the upper edge and named in the margin.
    """
    lowest, highest = min(perplexities), max(perplexities)
    return 1.5 * lowest if highest > 2.0 * lowest else math.inf


def beyond(names: Sequence[str], perplexities: Sequence[float]) -> list[str]:
    """One line for the margin that names what lies beyond `ceiling`, with its perplexities, where anything does."""
    top = ceiling(perplexities)
    found: dict[str, list[float]] = {}
    for name, value in zip(names, perplexities, strict=True):
        if value > top:
            found.setdefault(name, []).append(value)
    words = [f"{name}: {_range(values)}" for name, values in found.items()]
    return [f"Arrows at the upper edge, beyond the scale: {'; '.join(words)}."] if words else []


def pinned(ax: Axes, at: Iterable[float], colour: str, marker: str) -> None:
    """Points that lie beyond the upper end of their axis: hollow, under an arrow, at the edge, joined with nothing."""
    edge = ax.get_xaxis_transform()
    for across in at:
        ax.plot(across, 0.94, marker, color=colour, markerfacecolor="white", transform=edge, zorder=4)
        ax.annotate("", (across, 1.0), (across, 0.945), xycoords=edge, textcoords=edge,
                    arrowprops={"arrowstyle": "->", "color": colour, "shrinkA": 3.0, "shrinkB": 0.0})  # fmt: skip


def _range(values: Sequence[float]) -> str:
    """'950', or '1058 to 1059'."""
    ends = dict.fromkeys(f"{value:.0f}" for value in (min(values), max(values)))
    return " to ".join(ends)


def margin(drawn: Figure, lines: Sequence[str]) -> None:
    """Notes under the panels, wrapped; the figure grows to make room, so that nothing is covered."""
    wrapped = [part for line in lines for part in textwrap.wrap(line, 135, subsequent_indent="    ")]
    if not wrapped:
        return
    notes = 0.19 * len(wrapped) + 0.15
    below = [legend for legend in drawn.legends if getattr(legend, "_outside_loc", None) == "lower"]
    renderer = FigureCanvasAgg(drawn).get_renderer()  # type: ignore[no-untyped-call]
    legends = sum(legend.get_window_extent(renderer).height / drawn.dpi + 0.12 for legend in below)
    height = drawn.get_figheight() + notes
    drawn.set_figheight(height)
    engine = drawn.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    low = (notes + legends) / height  # the layout would give notes and legends the same room
    engine.set(rect=(0.0, low, 1.0, 1.0 - low))
    for legend in below:
        legend.set_bbox_to_anchor((0.0, notes / height, 1.0, 1.0 - notes / height), transform=drawn.transFigure)
    drawn.text(0.01, (notes - 0.08) / height, "\n".join(wrapped), va="top", ha="left", fontsize=9, color=GREY,
               linespacing=1.35)  # fmt: skip
