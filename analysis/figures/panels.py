"""Panels that several figures share: measured speedup against sparsity, its legend, and what was not measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import compare, theory
from analysis.accuracy.yardsticks import SMOOTHINGS
from analysis.figures import style
from analysis.load import records
from analysis.runs import failed_runs, wanted, without_path
from analysis.study import Part

MAX_COLS = 3


class Limits(NamedTuple):
    """What the axes of a speedup panel show: sparsities, and speedups."""

    sparsities: tuple[float, float]
    speedups: tuple[float, float]


def panels(count: int, height: float, columns: int = MAX_COLS, **options: bool) -> tuple[Figure, list[Axes]]:
    """`count` panels in rows of at most `columns`, each `height` inches high; the unused ones are removed."""
    cols = max(1, min(count, columns))
    rows = max(1, -(-count // cols))
    drawn, axes = style.figure(height * rows + 0.5, rows, cols, **options)
    flat = [ax for row in axes for ax in row]
    for ax in flat[max(count, 1) :]:
        ax.remove()
    return drawn, flat[: max(count, 1)]


def not_measured(frame: pd.DataFrame, name: str) -> list[str]:
    """One line per backend, status and reason of the cells without a time."""
    groups = records(compare.failure_groups(frame, name))
    lines = [f"{row[name]}: {row['status']} ({row['cells']} cells): {row['reason']}" for row in groups]
    return ["Not measured:", *lines] if lines else []


def nothing_kept(points: pd.DataFrame) -> list[str]:
    """One line that names the points of `compare` without a kept block, which stand beside no theory, if any."""
    empty = compare.nothing_kept(points)
    named = dict.fromkeys(
        f"{row['backend']}, block {row['block_size']}, target {row['target_sparsity']:g}" for row in records(empty)
    )
    words = "No block is kept, so 1/(1−ρ) has no bound and there is no efficiency"
    return [f"{words}: {'; '.join(named)}."] if named else []


def noisy_points(points: pd.DataFrame) -> list[str]:
    """One line that counts the noisy points of a figure which does not draw them apart; none where all are quiet."""
    noisy = int(points["noisy"].astype(bool).sum())
    return [f"{noisy} of the {len(points)} points are noisy."] if noisy else []


def no_bound(what: str, found: pd.DataFrame) -> list[str]:
    """One line for the margin that says `what` of settings of training runs which keep no block; none without one."""
    named = dict.fromkeys(
        f"{row['variant']}, block {row['block_size']}, target {wanted(row)}" for row in records(found)
    )
    return [f"{what}: {'; '.join(named)}."] if named else []


def not_finished(train: pd.DataFrame) -> list[str]:
    """One line per status and reason of the training runs that did not finish."""
    return [f"Not finished: {row['runs']} × {row['status']}: {row['reason']}" for row in records(failed_runs(train))]


def nothing_finished(title: str, train: pd.DataFrame) -> Figure:
    """The figure of a training table without rows, or in which no run finished, with why."""
    drawn = style.empty_figure(title, "no training run has finished" + (": not run" if train.empty else ""))
    style.margin(drawn, not_finished(train))
    return drawn


def nothing_trained(title: str, train: Part) -> Figure:
    """The figure of a training table in which no setting trained with all its seeds, with why."""
    drawn = style.empty_figure(title, "no setting trained with all its seeds")
    style.margin(drawn, [*did_not_train(train), *not_finished(train.rows)])
    return drawn


def nothing_measured(ax: Axes, what: str, measured: pd.DataFrame) -> None:
    """A panel that says that no `what` was measured, or none that keeps a block."""
    words = f"no {what} was measured" + ("" if measured.empty else " that keeps a block")
    ax.text(0.5, 0.5, words, ha="center", transform=ax.transAxes)
    ax.axis("off")


REACH = 0.35  # share of an axis by which yardsticks beyond its ends may lengthen it
APART = 0.05  # share of an axis that two labels beside it need
SHOWN_ORDERS = 3  # of n-grams; of longer ones the longest alone


def yardstick_lines(ax: Axes, part: Part, column: str, vertical: bool = False) -> list[str]:
    """Dotted lines where n-grams of the part's text stand on an axis of perplexities, named at their ends.

    Drawn last: the axis is lengthened a little for those near its ends. column: val_ppl or test_ppl. Returns the line
    for the margin that says what they are, and names those far beyond the scale; none without yardsticks.
    """
    ladder = [one for one in part.ladder if one.order <= SHOWN_ORDERS or one is part.ladder[-1]]
    if not ladder:
        return []
    axis, scale, words = (ax.xaxis if vertical else ax.yaxis), "x" if vertical else "y", part.unit
    place = axis.get_transform().transform
    low, high = map(float, place(np.array(axis.get_view_interval())))
    at = {one.name: float(words.of(getattr(one, column))) for one in ladder}
    drawn = {
        name: value for name, value in at.items() if abs(_share(float(place(value)), low, high) - 0.5) <= 0.5 + REACH
    }
    ends = [*place(np.array(list(drawn.values()))), low, high]
    room = 0.02 * (max(ends) - min(ends))
    ends = [min(ends) - room * (min(ends) < low), max(ends) + room * (max(ends) > high)]
    ax.set(**{f"{scale}lim": axis.get_transform().inverted().transform(np.array(ends))})
    for value in drawn.values():
        (ax.axvline if vertical else ax.axhline)(value, color=style.GREY, linestyle=":", linewidth=1.1, zorder=1)
    _label_ends(ax, {name: _share(float(place(value)), *ends) for name, value in drawn.items()}, vertical)
    how = SMOOTHINGS.get(ladder[-1].smoothing, ladder[-1].smoothing)
    beyond = [f"{name} {value:.{words.digits}f}" for name, value in at.items() if name not in drawn]
    said = (
        f"Dotted: {how} n-grams of the same text" if drawn else f"{how} n-grams of the same text are beyond the scale"
    )
    return [said + (f" ({'beyond the scale: ' if drawn else ''}{', '.join(beyond)})" if beyond else "") + "."]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low)


def _label_ends(ax: Axes, at: dict[str, float], vertical: bool) -> None:
    """Names at the ends of lines, outside the panel; near ones share a label. at: shares of the axis."""
    groups: list[list[str]] = []
    for name in sorted(at, key=lambda name: at[name]):
        if groups and at[name] - at[groups[-1][-1]] < APART:
            groups[-1].append(name)
        else:
            groups.append([name])
    for group in groups:
        middle = sum(at[name] for name in group) / len(group)
        across, up = (middle, 1.01) if vertical else (1.01, middle)
        side = {"ha": "center", "va": "bottom", "rotation": 90} if vertical else {"ha": "left", "va": "center"}
        ax.text(across, up, ", ".join(group), transform=ax.transAxes, fontsize=8, color=style.GREY, **side)


def did_not_train(train: Part) -> list[str]:
    """One line for the margin that counts the finished runs that did not train, by variant, with why; or none."""
    final = train.runs.assign(variant=train.runs["variant"].map(without_path))
    bad = final[~final["trained"].astype(bool)]
    named = [
        f"{variant} ({len(runs)} of {(final['variant'] == variant).sum()} runs: "
        f"{' or '.join(dict.fromkeys(runs['why_untrained']))})"
        for variant, runs in bad.groupby("variant", sort=False)
    ]
    return [f"Did not train, so nothing is drawn of their {train.unit.name}: {'; '.join(named)}."] if named else []


def limits(points: pd.DataFrame) -> Limits:
    """Axis limits that hold every point of several panels, its interval and its prediction."""
    low = min(0.5, points[["low", "measured_speedup"]].min().min()) / 1.15
    highest = points[["high", "measured_speedup", "predicted_speedup"]].replace(math.inf, 0.0).max().max()
    high = max(2.0, highest) * 1.15
    span = (points["sparsity"].min() - 0.04, points["sparsity"].max() + 0.04)
    return Limits(span, (low, high))


def speedup_panel(
    ax: Axes, points: pd.DataFrame, shown: Limits, title: str, promise: Callable[[float], float] = theory.speedup
) -> None:
    """Measured speedup against sparsity, a line per block size, `promise` dashed, break-even marked and in words."""
    span, bounds = shown
    style.speedup_axis(ax.yaxis, *bounds)
    ax.set_xlim(*span)
    rhos = np.linspace(max(span[0], 0.0), min(span[1], 0.999), 200)
    ax.plot(rhos, [promise(rho) for rho in rhos], "--", color="black", linewidth=1.2, zorder=2)
    crossings = []
    for block_size, line in points.groupby("block_size", sort=True):
        colour = style.block_colour(block_size)
        line = line.sort_values("sparsity")
        spread = [
            (line["measured_speedup"] - line["low"]).clip(lower=0),  # rounding can put a mean past its bound
            (line["high"] - line["measured_speedup"]).clip(lower=0),
        ]
        ax.errorbar(line["sparsity"], line["measured_speedup"], yerr=spread, color=colour, capsize=2, zorder=3)
        for noisy, part in line.groupby("noisy"):
            face = "white" if noisy else colour
            ax.plot(part["sparsity"], part["measured_speedup"], style.block_marker(block_size), color=colour,
                    markerfacecolor=face, zorder=4)  # fmt: skip
        found = theory.breakeven(line["sparsity"].tolist(), line["measured_speedup"].tolist())
        crossings.append(f"{block_size}: {found}")
        if found.sparsity is not None:
            ax.plot(found.sparsity, 1.0, "*", color=colour, markersize=12, markeredgecolor="white", zorder=5)
    lines = ["break-even ρ by block size", *_wrapped(crossings)]
    ax.set_title(title, fontweight="bold", pad=9 + 10.5 * len(lines))
    ax.text(
        0.5, 1.01, "\n".join(lines), transform=ax.transAxes, ha="center", va="bottom", fontsize=8.5, color=style.GREY
    )
    ax.set_xlabel("sparsity ρ (share of empty blocks)")


def _wrapped(parts: list[str], limit: int = 3) -> list[str]:
    """'a · b · c' in lines of at most `limit` parts, as even as they can be."""
    lines = max(1, -(-len(parts) // limit))
    each = max(1, -(-len(parts) // lines))
    return [" · ".join(parts[at : at + each]) for at in range(0, len(parts), each)]


def block_legend(drawn: Figure, points: pd.DataFrame, promise: str = "theory 1/(1−ρ)") -> None:
    """The block sizes of `points` with their colours and markers, theory, break-even, and noisy points if any."""
    handles = [
        *style.block_entries(points["block_size"]),
        style.entry(promise, "black", linestyle="--", linewidth=1.2),
        style.entry("break-even", marker="*", markersize=10),
        *([style.entry("noisy", marker="o", markerfacecolor="white")] if points["noisy"].any() else []),
    ]
    drawn.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8))
