"""Every figure can be read: no text is cut off, covers another or is crossed by a line.

Nor does a measured line leave its panel. Of made-up tables, and of every committed sweep: labels are placed by values,
so made-up ones alone let a collision pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from io import BytesIO
from itertools import combinations, product
from pathlib import Path

import made
import made_awd
import numpy as np
import pandas as pd
import pytest
from made import gemm_frame, lstm_frame, ratio_row, sparse_frame, train_frame
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import compare, report, study
from analysis.awd import answers as awd
from analysis.figures import accuracy as accuracy_figures
from analysis.figures import products as product_figures
from analysis.figures import realised as realised_figures
from analysis.figures import storage as storage_figures
from analysis.figures import theory as theory_figures
from analysis.figures import training as training_figures
from analysis.load import REFERENCE, tables_in
from analysis.reporting import sections
from analysis.study import Part
from bench.cells import StorageCell

pytestmark = pytest.mark.examples  # they draw, or read all that is committed

SLACK = 2.0  # pixels


def undrawn_ticks(figure: Figure) -> set[Text]:
    """Tick labels beyond the ends of their axis: they exist, but are not drawn."""
    hidden: set[Text] = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                hidden |= {tick.label1, tick.label2}
    return hidden


def faults(figure: Figure) -> list[str]:
    """One line for every text that is cut off, covers another or is crossed by a line.

    And one for every line that leaves its panel.
    """
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    hidden, boxes = undrawn_ticks(figure), []
    for text in figure.findobj(Text):
        words = text.get_text().strip()
        if words and text.get_visible() and text not in hidden:
            boxes.append((words, text.get_window_extent(canvas.get_renderer())))
    found = [
        f"cut off: {words!r}"
        for words, box in boxes
        if min(box.x0, box.y0) < -SLACK or box.x1 > figure.bbox.width + SLACK or box.y1 > figure.bbox.height + SLACK
    ]
    for (words, one), (others, other) in combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        down = min(one.y1, other.y1) - max(one.y0, other.y0)
        if across > SLACK and down > SLACK:
            found.append(f"{words!r} covers {others!r}")
    for ax in figure.axes:
        found += [*crossed(ax, canvas), *leaving(ax)]
    return found


def crossed(ax: Axes, canvas: FigureCanvasAgg) -> list[str]:
    """Words inside a panel that a line, a bar of an interval or a marker in the foreground runs through."""
    paths = [line.get_path().transformed(line.get_transform()) for line in ax.lines if line.get_zorder() >= 2]
    bars = [one for one in ax.collections if isinstance(one, LineCollection) and one.get_zorder() >= 2]
    paths += [path.transformed(bar.get_transform()) for bar in bars for path in bar.get_paths()]
    found = []
    for text in ax.texts:
        box = text.get_window_extent(canvas.get_renderer()).padded(-SLACK)
        if text.get_text().strip() and any(path.intersects_bbox(box, filled=False) for path in paths):
            found.append(f"a line runs through {text.get_text()!r}")
    return found


def leaving(ax: Axes) -> list[str]:
    """Lines of what was measured, solid or of markers, that have a point outside their panel.

    Caps of intervals may lie there.
    """
    box = ax.bbox.padded(SLACK)
    found = []
    for line in ax.lines:
        measured = line.get_linestyle() == "-" or line.get_marker() not in ("None", "", None, "|", "_")
        at = line.get_transform().transform(np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float))
        inside = [box.contains(*point) for point in at[np.isfinite(at).all(axis=1)]]
        if measured and not all(inside):
            found.append(f"a line leaves the panel {ax.get_title().strip()!r}")
    return found


def one_shape() -> Part:
    return timed().shapes()[0][1]


SIZES = (8, 16, 32, 64, 128)


def many(**axes: tuple[object, ...]) -> pd.DataFrame:
    """Products in every combination of `axes`, five block sizes, of which one never reaches 1x."""
    names = [*axes, "block_size", "target_sparsity"]
    rows = []
    for values in product(*axes.values(), SIZES, (0.5, 0.9)):
        settings = dict(zip(names, values, strict=True))
        speed = 1.0 + 0.01 * settings["block_size"] - 0.9 * (settings["block_size"] == 64)
        rows.append(ratio_row([speed] * 3, settings.pop("target_sparsity"), settings))
    return pd.DataFrame(rows)


def every_op() -> pd.DataFrame:
    return many(op=("dsd", "dsd_t", "sdd"), m=(4608,), k=(1152,), n=(20, 80))


def five_block_sizes() -> pd.DataFrame:
    return many(backend=("native", "torch_bsr", "scipy_bsr"))


def large_layer() -> Part:
    return made.part(lstm_frame((1152,), batches=(1, 20, 80), blocks=SIZES)).main_layer()


@cache
def trained() -> Part:
    return made.part(train_frame())


@cache
def on_sparse_path() -> Part:
    return made.part(sparse_frame())


@cache
def timed() -> Part:
    return made.part(gemm_frame())


@cache
def awd_table(name: str) -> pd.DataFrame:
    return made_awd.table(name, seeds=2)


def four_rows() -> Part:
    return awd.four_lines(awd.sweep(made.study(train=awd_table(made_awd.PAPER)), "paper"))


def emptied() -> pd.DataFrame:
    """Runs on the sparse path that keep no block from the first step on."""
    frame = sparse_frame(1)
    frame.loc[frame["path"] == "auto", ["sparsity", "mean_sparsity"]] = 1.0
    return frame


def every_form() -> pd.DataFrame:
    """All that the sweep of stored weights has: blocks of three sizes, and compressed rows of zeros in blocks."""
    more = [StorageCell(m=128, k=256, n=16, block_size=size, target_sparsity=rho)
            for size, rho in product((16, 32), (0.0, 0.5, 0.9, 0.99))]  # fmt: skip
    more += [StorageCell(form="csr", m=128, k=256, n=16, target_sparsity=rho) for rho in (0.5, 0.9)]
    return pd.concat([made.storage_frame(), pd.DataFrame(map(made.storage_row, more))], ignore_index=True)


FIGURES: dict[str, Callable[[], Figure]] = {
    "speedup": lambda: product_figures.speedup_figure(one_shape()),
    "efficiency": lambda: product_figures.efficiency_figure(one_shape()),
    "roofline": lambda: theory_figures.roofline_figure(one_shape()),
    "storage": lambda: theory_figures.storage_figure(1024, 256),
    "perplexity": lambda: accuracy_figures.perplexity_figure(trained()),
    "perplexity, dense controls": lambda: accuracy_figures.cost_figure(made.part(awd_table(made_awd.BEST))),
    "perplexity, many block sizes": lambda: accuracy_figures.cost_figure(made.part(awd_table(made_awd.PAPER))),
    "wider for sparser": lambda: accuracy_figures.wide_figure(made.part(awd_table(made_awd.WIDE))),
    "norm maps of the slides' rows": lambda: training_figures.norm_maps_figure(four_rows()),
    "curves": lambda: training_figures.curves_figure(trained()),
    "norm maps": lambda: training_figures.norm_maps_figure(trained()),
    "integral": lambda: training_figures.integral_figure(trained()),
    "amdahl": lambda: theory_figures.amdahl_figure(trained()),
    "tradeoff": lambda: product_figures.tradeoff_figure(trained(), timed()),
    "five block sizes": lambda: product_figures.speedup_figure(made.part(five_block_sizes())),
    "ops": lambda: product_figures.op_figure(made.part(every_op(), over="op")),
    "shapes of one op": lambda: product_figures.op_figure(
        made.part(pd.concat([gemm_frame(n=n) for n in (5, 10, 20, 80)]), over="op")
    ),
    "layer": lambda: product_figures.layer_figure(made.part(lstm_frame()).main_layer()),
    "layer, three batches, five block sizes": lambda: product_figures.layer_figure(large_layer()),
    "layer, weight_hh": lambda: product_figures.layer_figure(made.part(lstm_frame(scope="weight_hh")).main_layer()),
    "layer efficiency": lambda: product_figures.layer_efficiency_figure(made.part(lstm_frame((256, 512, 1152, 2048)))),
    "integral by step": lambda: realised_figures.integral_steps_figure(on_sparse_path()),
    "end to end": lambda: realised_figures.end_to_end_figure(on_sparse_path()),
    "end to end, one seed": lambda: realised_figures.end_to_end_figure(made.part(sparse_frame(1, lasso="proximal"))),
    "end to end, no block kept": lambda: realised_figures.end_to_end_figure(made.part(emptied())),
    "stored weights": lambda: storage_figures.forms_figure(made.part(every_form())),
    "stored activations": lambda: storage_figures.forms_figure(made.part(made.storage_frame(what="activation"))),
    "stored, all zero": lambda: storage_figures.forms_figure(made.part(made.storage_frame((0.5, 1.0)))),
    "nothing stored": lambda: storage_figures.forms_figure(study.not_run("storage")),
    "nothing run": lambda: product_figures.layer_figure(study.not_run("lstm")),
}


def test_every_figure_is_one_of_these() -> None:
    modules = (
        accuracy_figures, product_figures, realised_figures, storage_figures, theory_figures, training_figures,
    )  # fmt: skip
    figures = {name for module in modules for name in vars(module) if name.endswith("_figure")}
    assert figures == {name for draw in FIGURES.values() for name in draw.__code__.co_names if name.endswith("_figure")}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_or_covered(name: str) -> None:
    assert faults(FIGURES[name]()) == []


def test_failures_in_the_margin_do_not_cover_the_legend() -> None:
    frame = gemm_frame()
    native = frame["backend"] == "native"
    frame.loc[native, "status"] = "unsupported"
    frame.loc[native, "reason"] = "no C++ compiler found; install g++ or clang++, set CXX, or pip install ziglang"
    rows = frame[(frame[compare.SHAPE] == frame[compare.SHAPE].iloc[0]).all(axis=1)]
    assert faults(product_figures.speedup_figure(made.part(rows))) == []


def test_the_check_sees_a_cut_and_a_cover() -> None:
    figure = Figure()
    figure.text(0.5, 0.5, "one")
    figure.text(0.5, 0.5, "two")
    figure.text(0.99, 0.9, "over the edge")
    assert len(faults(figure)) == 2


def test_the_check_sees_a_line_through_words_and_one_that_leaves() -> None:
    figure = Figure()
    ax = figure.subplots()
    ax.plot([0.0, 1.0], [0.0, 1.0])
    ax.text(0.5, 0.5, "words")
    assert faults(figure) == ["a line runs through 'words'"]
    ax.set(ylim=(0.0, 0.7))
    assert "a line leaves the panel ''" in faults(figure)


SWEEPS = sorted(folder.name for folder in REFERENCE.iterdir() if tables_in(folder))


@pytest.mark.parametrize("name", SWEEPS)
def test_the_figures_of_the_committed_results_can_be_read_and_are_those_beside_the_tables(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the report and of the README; pictures beside a table by name, tables word by word.

    One test, for what is computed of a sweep takes as long as its figures.
    """
    found: list[str] = []

    def check(figure: Figure, target: Path | BytesIO, **options: object) -> None:
        title = figure.get_suptitle() or figure.axes[0].get_title()
        found.extend(f"{title}: {fault}" for fault in faults(figure))

    sweep = study.read(REFERENCE / name)
    copied = replace(sweep, folder=tmp_path / name)  # what is computed of the one is the other's
    copied.folder.mkdir()
    monkeypatch.setattr(Figure, "savefig", check)
    with monkeypatch.context() as patch:
        patch.setattr(
            sections, "_beside_the_slides", lambda *_, **__: sections.Section("", "")
        )  # tables only, as below
        assert report.write_report(copied).is_file()
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    written = {path.name: path for path in report.write_figures(sweep, tmp_path / "out")}
    if name == made_awd.PAPER:
        four = awd.four_lines(awd.sweep(sweep, "paper"))
        check(training_figures.norm_maps_figure(four), tmp_path)
    committed = {path.name: path for pattern in ("*.png", "*.md") for path in (REFERENCE / name).glob(pattern)}
    found.extend(f"only one of written and committed: {each}" for each in sorted(set(written) ^ set(committed)))
    texts = sorted(each for each in set(written) & set(committed) if each.endswith(".md"))
    changed = [each for each in texts if written[each].read_text("utf-8") != committed[each].read_text("utf-8")]
    found.extend(f"not what is committed: {each}" for each in changed)
    assert found == []
