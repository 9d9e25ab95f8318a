"""Figures of training on the sparse path: the time of a step over the run, and whole runs under Amdahl's ceiling."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.figures import style
from analysis.figures.panels import panels
from analysis.load import records
from analysis.runs import SETTING, wanted
from analysis.stats import Estimate, factor, times
from analysis.study import Part
from analysis.studying.realised import layers_speedup, probes

MAX_RUNS = 3
TICK = {"markersize": 12, "markeredgewidth": 2.5}
NOT_RUN = "no finished run on the sparse path: not run"
UNPAIRED = (
    "Whole training runs ran one after another, not interleaved, so their bars are rough; the expected mark takes the "
    "{}' share within one run and their interleaved pairs, and is the surer figure. Inference is interleaved pairs."
)


def integral_steps_figure(train: Part) -> Figure:
    """Time of the LSTM layers in a training step over the run: dense, theory and measured; its area is the integral.

    One panel per setting, at most MAX_RUNS: the first seed of those nearest to 80 % sparsity.
    """
    title = f"The training-time integral of the {train.layer_noun}"
    found = train.realised[[one.n > 0 for one in train.realised["measured"]]]
    if found.empty:
        return style.empty_figure(title, NOT_RUN)
    order = (found["target_sparsity"] - 0.8).abs()
    chosen = found.assign(order=order).sort_values(["order", "variant", "block_size", "seed"])
    chosen = chosen.drop_duplicates([*SETTING]).head(MAX_RUNS)
    drawn, axes = panels(len(chosen), 3.9, sharey=True)
    highest = [
        _steps_panel(ax, row, train.rows[train.rows["cell_id"] == row["cell_id"]])
        for ax, row in zip(axes, records(chosen), strict=True)
    ]
    axes[0].set_ylim(0.0, 1.05 * max(highest))
    axes[0].set_ylabel(f"{train.layer_noun}, forward + backward (ms a step)")
    drawn.legend(handles=[
        style.entry("dense path, measured", style.BLACK, "o", linestyle="-"),
        style.entry("path in use, measured", style.BLUE, "s", linestyle="-"),
        style.entry("theory", style.GREEN, linestyle="--"),
        Patch(color=style.BLUE, alpha=0.15, label="time saved"),
        Patch(color=style.RED, alpha=0.2, label="promised, not reached"),
    ], loc="outside lower center", ncols=5)  # fmt: skip
    drawn.suptitle(title, fontsize=12)
    return drawn


def _steps_panel(ax: Axes, row: dict[str, Any], run: pd.DataFrame) -> float:
    """One run: medians of each probe's pairs at its step, held to the ends of the run; the highest value drawn."""
    taken, settings = probes(run), records(run)[0]
    steps = np.array([0, *(probe.step for probe in taken), row["steps"]], dtype=float)
    held = [taken[0], *taken, taken[-1]]
    dense = np.array([np.median(probe.dense_ms) for probe in held])
    used = np.array([np.median(probe.lstm_ms) for probe in held])
    theory = dense / np.array([layers_speedup(settings, probe.sparsity) for probe in held])
    ax.fill_between(
        steps, used, dense, where=(used <= dense).tolist(), interpolate=True, color=style.BLUE, alpha=0.15, linewidth=0
    )
    ax.fill_between(
        steps, theory, used, where=(theory <= used).tolist(), interpolate=True, color=style.RED, alpha=0.2, linewidth=0
    )
    for values, colour, dashes in ((dense, style.BLACK, "-"), (used, style.BLUE, "-"), (theory, style.GREEN, "--")):
        ax.plot(steps, values, dashes, color=colour)
    for values, colour, marker in ((dense, style.BLACK, "o"), (used, style.BLUE, "s")):
        ax.plot(steps[1:-1], values[1:-1], marker, color=colour, markersize=3.5)
    ax.set(xlabel="optimizer step")
    ax.locator_params(axis="x", nbins=4)
    ax.set_title(f"{_setting(row)}\n{_reached(row)}", fontsize=9.5)
    return float(max(dense.max(), used.max()))


def _reached(row: dict[str, Any]) -> str:
    """'measured 2.41× [2.23, 2.53]\nof theory's 2.58×: 94%'."""
    measured = f"measured {times(row['measured'])}"
    if math.isinf(row["predicted"]):
        return f"{measured}\ntheory: {factor(row['predicted'])}"
    return f"{measured}\nof theory's {factor(row['predicted'])}: {row['efficiency'].value:.0%}"


def _setting(row: dict[str, Any]) -> str:
    """'block lasso + gradual (cubic),\nsparse path, ρ 0.8, block 16'."""
    variant, *path = re.split(r", (?![^(]*\))", row["variant"], maxsplit=1)  # not at a comma inside brackets
    place = [*path, f"ρ {wanted(row)}", f"block {int(row['block_size'])}"]
    return f"{variant},\n{', '.join(place)}"


def end_to_end_figure(train: Part) -> Figure:
    """Speedups over dense, LSTM layers and whole, theory and measured, with Amdahl's ceiling: training, and inference.

    One group of bars per setting: geometric means over its seeds.
    """
    short = train.layer_noun.removesuffix(" layers").replace("hidden", "layers")
    title = f"End to end: what the speed of the {train.layer_noun} is worth"
    groups = records(train.gains)
    if not groups:
        return style.empty_figure(title, NOT_RUN)
    drawn, [[left, right]] = style.figure(1.9 + 1.15 * len(groups), 1, 2, sharey=True)
    highest = max(_bars(ax, groups, training) for ax, training in ((left, True), (right, False)))
    for ax, words in ((left, "training"), (right, "inference of the finished model")):
        ax.axvline(1.0, color=style.GREY, linewidth=1.0)
        ax.set_axisbelow(True)
        ax.set(xlabel="speedup over dense", title=words, xlim=(0.0, 1.3 * highest))
    left.set_yticks(range(len(groups)), [_setting(row) for row in groups], fontsize=8.5)
    left.set_ylim(len(groups) - 0.4, -0.6)
    drawn.legend(handles=[
        Patch(facecolor="white", edgecolor=style.GREEN, hatch="//", label=f"{train.layer_noun}, theory"),
        Patch(color=style.BLUE, label=f"{train.layer_noun}, measured"),
        Patch(color=style.ORANGE, label="whole, measured"),
        style.entry(f"whole, expected (Amdahl, {short} as measured)", style.BLUE, "|", **TICK),
        style.entry(f"whole, ceiling (Amdahl, {short} as in theory)", style.RED, "|", **TICK),
    ], loc="outside lower center", ncols=3)  # fmt: skip
    drawn.suptitle(title, fontsize=12)
    style.margin(drawn, [UNPAIRED.format(train.layer_noun)])
    return drawn


def _bars(ax: Axes, groups: list[dict[str, Any]], training: bool) -> float:
    """Draw the three bars and the ceiling of every group; the highest value drawn."""
    highest = 1.0
    looks = (("white", style.GREEN, "//"), (style.BLUE, style.BLUE, ""), (style.ORANGE, style.ORANGE, ""))
    for height, row in enumerate(groups):
        bars, ceiling = training_bars(row) if training else inference_bars(row)
        expected = row["allowed"] if training else math.nan
        marks = [(at, colour) for at, colour in ((expected, style.BLUE), (ceiling, style.RED)) if math.isfinite(at)]
        for offset, one, (face, edge, hatch) in zip((-0.27, 0.0, 0.27), bars, looks, strict=True):
            beside = [1.0, *(at for at, _ in marks if offset > 0.0)]  # the marks stand at the height of the last bar
            if one.n == 0 or math.isinf(one.value):
                _say(ax, "not run" if one.n == 0 else factor(one.value), max(beside), height + offset, style.GREY)
                continue
            ax.barh(height + offset, one.value, 0.24, color=face, edgecolor=edge, hatch=hatch, xerr=None)
            ax.errorbar(one.value, height + offset, xerr=style.spread([one]), color=style.BLACK, capsize=2)
            beside.append(one.value if math.isnan(one.high) else one.high)
            _say(ax, factor(one.value), max(beside), height + offset, style.BLACK)
            highest = max(highest, *beside)
        for at, colour in marks:
            ax.plot([at] * 2, [height + 0.13, height + 0.41], color=colour, linewidth=2.5, zorder=5)
    return highest


def _say(ax: Axes, words: str, at: float, height: float, colour: str) -> None:
    """Words to the right of everything that a bar has drawn."""
    ax.annotate(words, (at, height), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5, color=colour)


def training_bars(row: dict[str, Any]) -> tuple[list[Estimate], float]:
    """([LSTM layers in theory, measured, whole measured], Amdahl's ceiling) of training, of a row of `gains`."""
    return [_promise(row, "predicted"), row["measured"], row["whole"]], row["ceiling"]


def inference_bars(row: dict[str, Any]) -> tuple[list[Estimate], float]:
    """The same of inference by the finished models, theory and ceiling at their final sparsity."""
    return [_promise(row, "inference_promise"), row["inference_lstm"], row["inference"]], row["inference_ceiling"]


def _promise(row: dict[str, Any], name: str) -> Estimate:
    return Estimate(row[name], math.nan, math.nan, row["seeds"])
