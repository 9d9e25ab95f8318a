"""Figures of stored matrices: bytes and product time of each form against the share of zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import compare
from analysis.figures import style
from analysis.figures.panels import not_measured, nothing_measured
from analysis.load import one_of, records
from analysis.study import Part
from analysis.studying import storage

SHARES = np.linspace(0.0, 0.999, 400)
MARGIN = 1.25  # of an axis, beyond what is drawn
COLOURS = {"dense": style.GREY, "coo": style.SKY, "csr": "#8c564b"}
MARKERS = {"dense": "*", "coo": "X", "csr": "h"}
OTHERS = {"int64 indices": style.YELLOW, "blocks": "#7570b3"}  # of compressed rows
ZEROS = {"weight": "share of zeros", "activation": "share of zeros after the ReLU"}


def forms_figure(stored: Part) -> Figure:
    """How much smaller, and how much faster to multiply, than dense: a panel each, a line for each form.

    stored: a part of one shape. Left, markers: bytes of values and indices; dashed: the formula. Right: measured pairs.
    """
    title = "Stored matrices against dense"
    if stored.rows.empty:
        return style.empty_figure(title, "no sweep stored matrices: not run")
    one_of(stored.rows, compare.SHAPE)
    first, found = stored.rows.iloc[0], stored.points
    finite = found[np.isfinite(found["smaller"].astype(float))]
    drawn, [[sizes, speeds]] = style.figure(4.6, 1, 2)
    if finite.empty:
        nothing_measured(sizes, "cell of this shape", found)
        speeds.remove()
    else:
        lines = [line for _, line in finite.groupby(storage.LINE)]
        lines.sort(key=lambda line: storage.place_of(records(line)[0]))
        _sizes_panel(sizes, lines)
        _speeds_panel(speeds, lines)
        for ax in (sizes, speeds):
            ax.set(xlabel=ZEROS[first["what"]], xlim=(-0.03, 1.02))
        drawn.legend(handles=_entries(lines), loc="outside lower center", ncols=4)
    sides = compare.shape_name(first[compare.SHAPE].tolist())
    noun = {"weight": sides, "activation": sides.replace("W ", "activations ", 1)}[first["what"]]
    drawn.suptitle(f"{title}: {noun}, {first['dtype']}", fontsize=12)
    style.margin(drawn, [*_nothing_stored(found), *not_measured(stored.rows, "form")])
    return drawn


def _looks(row: dict[str, Any]) -> tuple[str, str]:
    """(colour, marker) of a line, by one of its points."""
    if row["form"] == "bsr":
        return style.block_colour(row["blocks"]), style.block_marker(row["blocks"])
    marker = MARKERS[row["form"]]
    if row["index_width"] != storage.USUAL_INDEX[row["form"]]:
        return OTHERS["int64 indices"], marker
    return (OTHERS["blocks"], "<") if row["blocks"] > 1 else (COLOURS[row["form"]], marker)


def _sizes_panel(ax: Axes, lines: list[pd.DataFrame]) -> None:
    highest = max(line["smaller"].max() for line in lines)
    lowest = min(line["smaller"].min() for line in lines)
    style.speedup_axis(ax.yaxis, min(0.5, lowest) / MARGIN, max(2.0, highest) * MARGIN)
    for line in lines:
        colour, marker = _looks(records(line)[0])
        formula = [storage.formula_at(records(line)[0], share) for share in SHARES]
        ax.plot(SHARES, formula, "--", color=colour, linewidth=1.1, zorder=2)
        ax.plot(line["zero_share"], line["smaller"], marker, color=colour, zorder=4)
    ax.set(title="bytes in memory", ylabel="times smaller than dense (log₂)")


def _speeds_panel(ax: Axes, lines: list[pd.DataFrame]) -> None:
    every = pd.concat(lines)
    low, high = every[["low", "measured_speedup"]].min().min(), every[["high", "measured_speedup"]].max().max()
    style.speedup_axis(ax.yaxis, min(0.5, low) / MARGIN, max(2.0, high) * MARGIN)
    for line in lines:
        line = line.sort_values("zero_share")
        colour, marker = _looks(records(line)[0])
        spread = [
            (line["measured_speedup"] - line["low"]).clip(lower=0),
            (line["high"] - line["measured_speedup"]).clip(lower=0),
        ]
        ax.errorbar(line["zero_share"], line["measured_speedup"], yerr=spread, color=colour, capsize=2, zorder=3)
        for noisy, part in line.groupby("noisy"):
            face = "white" if noisy else colour
            ax.plot(part["zero_share"], part["measured_speedup"], marker, color=colour, markerfacecolor=face,
                    zorder=4)  # fmt: skip
    ax.set(title="product", ylabel="times faster than dense (log₂)")


def _entries(lines: list[pd.DataFrame]) -> list[Any]:
    found = []
    for line in lines:
        row = records(line)[0]
        colour, marker = _looks(row)
        found.append(style.entry(row["name"], colour, marker, linestyle="-"))
    found.append(style.entry("bytes by formula", "black", linestyle="--", linewidth=1.1))
    if any(line["noisy"].any() for line in lines):
        found.append(style.entry("noisy", marker="o", markerfacecolor="white"))
    return found


def _nothing_stored(found: pd.DataFrame) -> list[str]:
    """One line that names the forms of which nothing is stored, so that they are on no logarithmic axis."""
    empty = found[~np.isfinite(found["smaller"].astype(float))]
    names = ", ".join(dict.fromkeys(empty["name"]))
    return [f"Everything is zero, and nothing is stored: {names}."] if names else []
