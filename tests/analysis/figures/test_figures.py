"""Every figure is drawn from made-up tables, whatever failed or is missing, and says what it does not show."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import made
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from analysis import study
from analysis.figures import accuracy as accuracy_figures
from analysis.figures import products as product_figures
from analysis.figures import realised as realised_figures
from analysis.figures import style
from analysis.figures import theory as theory_figures
from analysis.figures import training as training_figures
from analysis.stats import Estimate
from analysis.study import Part
from bench.cells import GemmCell, TrainCell

TRAINING = {
    "perplexity": accuracy_figures.perplexity_figure,
    "curves": training_figures.curves_figure,
    "norms": training_figures.norm_maps_figure,
    "integral": training_figures.integral_figure,
}
PRODUCTS = {
    "speedup": product_figures.speedup_figure,
    "efficiency": product_figures.efficiency_figure,
    "roofline": theory_figures.roofline_figure,
}
ONE_SEED = made.train_frame(seeds=1)
TWO_SEEDS = made.train_frame(seeds=2)
GEMM = made.gemm_frame(backends=("native",))
NO_COMPILER = made.gemm_frame(unsupported={"native": made.NO_COMPILER})
NOTHING_TIMED = made.gemm_frame(unsupported={"native": made.NO_COMPILER, "torch_bsr": "needs CUDA"})
ALL_DIVERGED = pd.DataFrame([made.diverged_row()])
PARTS: dict[int, Part] = {}


def of(frame: pd.DataFrame) -> Part:
    """The part of one of the tables above: what follows from it is computed once for all figures."""
    if id(frame) not in PARTS:
        PARTS[id(frame)] = made.part(frame)
    return PARTS[id(frame)]


def draw(figure: Figure) -> None:
    """Draw `figure` small: what cannot be laid out or rendered raises."""
    figure.savefig(io.BytesIO(), format="png", dpi=30)


def texts(figure: Figure) -> str:
    """The words of a figure outside its tick labels, line breaks as spaces."""
    return " ".join(" ".join(found.get_text().split()) for found in figure.findobj(mpl.text.Text))


def panels(figure: Figure) -> dict[str, Axes]:
    """The panels of a figure by the first line of their title."""
    return {ax.get_title().strip(): ax for ax in figure.axes}


def heat_maps(ax: Axes) -> list[QuadMesh]:
    """What is drawn as a heat map in a panel."""
    return [found for found in ax.collections if isinstance(found, QuadMesh)]


def has_line_at_one(ax: Axes, which: str) -> bool:
    """Whether a straight line marks 1× on the axis `which`."""
    lines = [np.asarray(line.get_ydata() if which == "y" else line.get_xdata(), dtype=float) for line in ax.lines]
    return any(len(line) == 2 and (line == 1.0).all() for line in lines)


def assert_speedup_axis(ax: Axes, which: str) -> None:
    """A log axis whose ticks are powers of two, 1× among them, with a line at 1×."""
    axis = ax.yaxis if which == "y" else ax.xaxis
    ticks = axis.get_majorticklocs()
    assert axis.get_scale() == "log"
    assert np.array_equal(np.log2(ticks), np.round(np.log2(ticks)))
    low, high = axis.get_view_interval()
    assert 1.0 in ticks and low < 1.0 < high
    assert axis.get_major_formatter()(1.0, 0) == "1×"
    assert has_line_at_one(ax, which)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize(
    "frame", [GEMM, NO_COMPILER, NOTHING_TIMED], ids=["one unsupported", "no compiler", "nothing timed"]
)
def test_product_figures_are_drawn(name: str, frame: pd.DataFrame) -> None:
    draw(PRODUCTS[name](of(frame)))


@pytest.mark.parametrize("figure", [product_figures.speedup_figure, product_figures.efficiency_figure])
def test_a_title_tells_how_x_lies_and_what_was_called(figure: Callable[..., Figure]) -> None:
    for asked, wanted in (
        ({}, "n = 32"),
        ({"layout": "column"}, "n = 32, X as activations lie"),
        ({"call": "operator"}, "n = 32, public operator"),
        ({"layout": "column", "call": "operator"}, "n = 32, X as activations lie, public operator"),
    ):
        drawn = figure(made.part(pd.DataFrame([made.ratio_row([3.0] * 3, 0.8, asked)])))
        assert drawn.get_suptitle().endswith(wanted)


@pytest.mark.parametrize("figure", [product_figures.speedup_figure, product_figures.efficiency_figure])
def test_product_figures_list_what_was_not_measured(figure: Callable[[Part], Figure]) -> None:
    assert f"Not measured: scipy_bsr: unsupported (6 cells): {made.NO_SCIPY}" in texts(figure(of(GEMM)))
    missing = texts(figure(of(NO_COMPILER)))
    assert f"native: unsupported (6 cells): {made.NO_COMPILER}" in missing
    assert "native" not in panels(figure(of(NO_COMPILER)))
    words = texts(figure(of(NOTHING_TIMED)))
    assert "no cell of this shape was measured" in words and "torch_bsr: unsupported (6 cells): needs CUDA" in words
    assert "Not measured" not in texts(figure(made.part(made.gemm_frame(unsupported={}))))


def test_speedup_axes_have_a_tick_and_a_line_at_1x_however_fast_or_slow_all_are() -> None:
    slow = pd.DataFrame([made.ratio_row([0.01] * 3, rho) for rho in (0.5, 0.9)])
    fast = pd.DataFrame([made.ratio_row([80.0] * 3, rho) for rho in (0.9, 0.99)])
    for frame in (GEMM, slow, fast):
        for ax in product_figures.speedup_figure(made.part(frame)).axes:
            assert_speedup_axis(ax, "y")
    [ax] = product_figures.tradeoff_figure(of(ONE_SEED), of(GEMM)).axes
    assert_speedup_axis(ax, "x")
    assert_speedup_axis(training_figures.integral_figure(of(ONE_SEED)).axes[1], "x")
    [ax] = theory_figures.amdahl_figure(of(ONE_SEED)).axes
    assert_speedup_axis(ax, "y")


def test_speedup_panels_put_ours_first_and_say_where_each_block_size_breaks_even() -> None:
    speeds = {8: (0.5, 0.8), 16: (0.5, 2.0), 32: (1.5, 3.0)}
    rows = [
        made.ratio_row([speed] * 3, rho, {"block_size": size, "backend": backend})
        for backend in ("native", "another")
        for size, two in speeds.items()
        for rho, speed in zip((0.5, 0.9), two, strict=True)
    ]
    found = panels(product_figures.speedup_figure(made.part(pd.DataFrame(rows))))
    assert list(found) == ["native", "another"]
    assert "8: never · 16: 0.77 · 32: always" in found["native"].texts[0].get_text()


def test_noisy_points_are_hollow_and_in_the_legend() -> None:
    noisy = product_figures.speedup_figure(made.part(pd.DataFrame([made.ratio_row([2.0] * 3, 0.8, noisy=True)])))
    quiet = product_figures.speedup_figure(made.part(pd.DataFrame([made.ratio_row([2.0] * 3, 0.8)])))
    assert "noisy" in texts(noisy).split() and "noisy" not in texts(quiet).split()
    faces = [line.get_markerfacecolor() for line in noisy.axes[0].lines if line.get_marker() == "s"]
    assert "white" in faces


def test_a_seed_mean_that_rounds_past_its_interval_is_drawn() -> None:
    # exp(log 3) is a little more than 3, the upper bound of three equal ratios
    product_figures.speedup_figure(made.part(pd.DataFrame([made.ratio_row([3.0] * 3, 0.8)])))
    assert style.spread([Estimate(2.9, 3.0, 3.0, 3), Estimate(3.1, 3.0, 3.0, 3)]) == [
        [0.0, pytest.approx(0.1)],
        [pytest.approx(0.1), 0.0],
    ]


def test_full_sparsity_and_one_pair_are_drawn() -> None:
    draw(
        product_figures.speedup_figure(
            made.part(pd.DataFrame([made.ratio_row([3.0], 1.0), made.ratio_row([2.0], 0.8)]))
        )
    )


@pytest.mark.parametrize("figure", PRODUCTS.values())
def test_product_figures_refuse_unlike_rows_in_one_line(figure: Callable[[Part], Figure]) -> None:
    for other in ({"cache": "cold"}, {"n": 64}):
        frame = pd.DataFrame([made.ratio_row([2.0] * 3), made.ratio_row([2.0] * 3, settings=other)])
        with pytest.raises(ValueError, match=f"mix {next(iter(other))} "):
            figure(made.part(frame))


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("frame", [ONE_SEED, ALL_DIVERGED], ids=["one seed", "all diverged"])
def test_training_figures_are_drawn(name: str, frame: pd.DataFrame) -> None:
    draw(TRAINING[name](of(frame)))


@pytest.mark.parametrize("name", TRAINING)
def test_training_figures_of_what_was_not_run_say_so(name: str) -> None:
    assert "Nothing to draw: no" in texts(TRAINING[name](study.not_run("train")))


@pytest.mark.parametrize("name", ["perplexity", "curves", "norms"])
def test_training_figures_without_a_finished_run_say_why(name: str) -> None:
    words = texts(TRAINING[name](of(ALL_DIVERGED)))
    assert "no training run has finished" in words
    assert f"Not finished: 1 × diverged: {made.DIVERGED}" in words


def test_the_perplexity_figure_lists_failed_runs_variants_and_seeds() -> None:
    words = texts(accuracy_figures.perplexity_figure(of(TWO_SEEDS)))
    assert f"Not finished: 1 × diverged: {made.DIVERGED}" in words
    assert "block lasso + random pre-pruning" in words and "95 % t-intervals over seeds (2 per point" in words


def test_a_long_reason_is_wrapped_and_gets_room() -> None:
    frame = pd.DataFrame([*ONE_SEED.to_dict("records"), made.diverged_row() | {"cell_id": "x", "reason": "long " * 80}])
    short, tall = (
        accuracy_figures.perplexity_figure(of(ONE_SEED)),
        accuracy_figures.perplexity_figure(made.part(frame)),
    )
    assert tall.get_figheight() > short.get_figheight()
    assert max(map(len, tall.texts[-1].get_text().splitlines())) <= 135


@pytest.mark.parametrize("variants", [("dense",), ("pre",), ("dense", "block lasso")])
def test_training_figures_are_made_of_few_variants(variants: tuple[str, ...]) -> None:
    train = made.part(made.train_frame(1, variants))
    for figure in TRAINING.values():
        assert figure(train).axes


def test_norm_maps_show_three_epochs_and_leave_empty_blocks_white() -> None:
    figure = training_figures.norm_maps_figure(of(ONE_SEED))
    shown = [ax for ax in figure.axes if heat_maps(ax) and ax.get_title()]
    assert [ax.get_title() for ax in shown] == ["epoch 0", "epoch 2", "epoch 4"] * 4
    assert [label.get_text() for label in shown[0].get_xticklabels()] == list(training_figures.GATES)
    last = heat_maps(shown[-1])[0].get_array()
    assert np.ma.getmaskarray(last).mean() == pytest.approx(0.8, abs=0.01)
    assert "no norms of nothing_l9 were stored" in texts(training_figures.norm_maps_figure(of(ONE_SEED), "nothing_l9"))


def test_a_map_without_a_kept_block_is_white_in_a_frame_and_drawn_without_a_warning() -> None:
    frame = ONE_SEED.copy()
    frame["block_norms"] = [
        [one | {"norms": np.zeros_like(one["norms"])} for one in stored] if epoch and stored is not None else stored
        for epoch, stored in zip(frame["epoch"], frame["block_norms"], strict=True)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = training_figures.norm_maps_figure(made.part(frame))
    last = [ax for ax in figure.axes if heat_maps(ax) and ax.get_title()][-1]
    assert np.ma.getmaskarray(heat_maps(last)[0].get_array()).all()
    assert [last.spines[side].get_visible() for side in ("left", "bottom", "right")] == [True, True, False]


def test_curves_are_means_over_seeds_in_the_range_of_all_of_them() -> None:
    """Not in an interval that was resampled: what is drawn is the same every time."""
    perplexities = (100.0, 130.0, 109.0)
    rows = [row for seed, ppl in enumerate(perplexities) for row in made.run_rows(TrainCell(seed=seed), ppl, [0.0] * 3)]
    stored = pd.DataFrame(rows).query("epoch >= 1").groupby("epoch")["val_ppl"].agg(["mean", "min", "max"])
    left = training_figures.curves_figure(made.part(pd.DataFrame(rows))).axes[0]
    [line], [band] = left.lines, left.collections
    assert line.get_ydata() == pytest.approx(stored["mean"].to_numpy())
    corners = pd.DataFrame(band.get_paths()[0].vertices).groupby(0)[1].agg(["min", "max"])
    assert corners.to_numpy() == pytest.approx(stored[["min", "max"]].to_numpy())


def test_the_integral_figure_shows_prediction_and_measurement() -> None:
    linear = {"lasso": "subgradient", "schedule": "linear", "target_sparsity": 0.8}
    dense = made.run_rows(TrainCell(), 100.0, [0.0] * 4, seconds=10.0)
    sparse = made.run_rows(TrainCell(**linear), 110.0, [0.0, 0.4, 0.8, 0.8], seconds=12.5)
    left, right = training_figures.integral_figure(made.part(pd.DataFrame([*dense, *sparse]))).axes
    shares = [line.get_ydata().tolist() for line in left.lines if len(line.get_ydata()) == 4]
    assert shares == [pytest.approx([1.0, 0.6, 0.2, 0.2])]
    shown = {line.get_marker(): float(line.get_xdata()[0]) for line in right.lines if line.get_marker() in ("D", "o")}
    assert shown == pytest.approx({"D": 2.0, "o": 0.8})
    labels = [label.get_text() for label in right.get_yticklabels()]
    assert labels == ["block lasso + gradual (linear)\nρ 0.8, block 16"]


@pytest.mark.parametrize(
    ("train", "gemm"),
    [(TWO_SEEDS, GEMM), (ONE_SEED, NOTHING_TIMED), (ALL_DIVERGED, GEMM)],
    ids=["two seeds", "nothing timed", "all diverged"],
)  # fmt: skip
def test_tradeoff_figure_is_drawn(train: pd.DataFrame, gemm: pd.DataFrame) -> None:
    draw(product_figures.tradeoff_figure(made.part(train), made.part(gemm)))


def test_tradeoff_figure_without_a_table_says_what_it_needs() -> None:
    for parts in (
        (study.not_run("train"), of(GEMM)),
        (of(ONE_SEED), study.not_run("gemm")),
    ):
        assert "needs finished runs and timed products" in texts(product_figures.tradeoff_figure(*parts))


def test_tradeoff_axis_names_the_product_it_is_about() -> None:
    [ax] = product_figures.tradeoff_figure(of(ONE_SEED), of(NO_COMPILER)).axes
    assert "torch_bsr, W 512 × 128, n = 20" in ax.get_xlabel()


@pytest.mark.parametrize("train", [ONE_SEED, ALL_DIVERGED], ids=["one seed", "all diverged"])
def test_amdahl_figure_is_drawn(train: pd.DataFrame) -> None:
    draw(theory_figures.amdahl_figure(made.part(train)))


def test_storage_figure_marks_the_crossing_of_each_layout() -> None:
    figure = theory_figures.storage_figure(8, 8, (2,))
    draw(figure)
    # 8 x 8 float32 are 256 bytes; COO 8 + 12 a value, CSR 36 + 8 a value, BSR 20 + 20 a block of four
    words = texts(figure)
    for label, crossing in (("COO", 1 - 248 / 768), ("CSR", 1 - 220 / 512), ("BSR, block 2", 1 - 236 / 320)):
        assert f"{label}: smaller from ρ = {crossing:.3f}" in words


def test_roofline_is_made_of_the_best_that_was_reached() -> None:
    # a dense product of 8 x 8 by 8 x 8 is 1024 FLOP over 256 + 512 bytes; in 1 ms that is 1.024 MFLOP/s
    cell = {"m": 8, "k": 8, "n": 8, "block_size": 2}
    row = made.ratio_row([1.0] * 3, 0.5, cell, time_ms=1.0, baseline_ms=1.0)
    [ax] = theory_figures.roofline_figure(made.part(pd.DataFrame([row]))).axes
    points = {line.get_label(): line for line in ax.lines}
    dense = points["dense (baseline)"]
    assert float(dense.get_xdata()[0]) == pytest.approx(1024 / 768)
    assert float(dense.get_ydata()[0]) == pytest.approx(1.024e-3)
    assert float(points["native, block 2"].get_ydata()[0]) == pytest.approx(0.512e-3)
    assert max(points["best of this sweep"].get_ydata()) == pytest.approx(1.024e-3)


def test_noisy_points_are_told_where_they_are_not_drawn_apart() -> None:
    rows = [made.ratio_row([2.0] * 3, 0.8, noisy=True), made.ratio_row([1.5] * 3, 0.5)]
    efficiency = texts(product_figures.efficiency_figure(made.part(pd.DataFrame(rows))))
    assert "(40%)" in efficiency and "(75%)" not in efficiency and "In brackets: noisy." in efficiency
    assert "1 of the 2 points are noisy." in texts(theory_figures.roofline_figure(made.part(pd.DataFrame(rows))))
    layer = texts(
        product_figures.layer_efficiency_figure(made.part(pd.DataFrame([made.layer_row([2.0] * 3, noisy=True)])))
    )
    assert "1 of the 1 points are noisy." in layer


def test_the_heat_map_of_efficiency_says_each_cell_and_where_none_was_measured() -> None:
    rows = [
        made.ratio_row([speed] * 3, rho, {"block_size": size})
        for size, rho, speed in ((8, 0.5, 1.0), (16, 0.5, 1.5), (16, 0.8, 4.0))
    ]
    ax = product_figures.efficiency_figure(made.part(pd.DataFrame(rows))).axes[0]
    said = {(found.get_position()[1], found.get_position()[0]): found.get_text() for found in ax.texts}
    assert said == {(0.5, 0.5): "50%", (0.5, 1.5): "–", (1.5, 0.5): "75%", (1.5, 1.5): "80%"}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["8", "16"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.5", "0.8"]
    assert ax.get_ylim() == (2.0, 0.0)  # the first block size on top


def test_a_variant_has_one_colour_in_all_figures_of_a_sweep() -> None:
    frame = pd.concat([made.sparse_frame(1), made.train_frame(1, ("gradual",), lasso="none")], ignore_index=True)
    labels = [
        {handle.get_label(): handle.get_color() for legend in figure.legends for handle in legend.get_lines()}
        for figure in (
            accuracy_figures.perplexity_figure(made.part(frame)),
            training_figures.curves_figure(made.part(frame)),
            training_figures.integral_figure(made.part(frame)),
        )
    ]
    for variant in ("gradual (cubic)", "gradual (cubic), auto path"):
        assert len({label[variant] for label in labels if variant in label}) == 1


def test_every_colour_of_a_variant_is_its_own() -> None:
    names: list[Any] = [*style.VARIANT_COLOURS, "gradual (cubic)", "one-shot"]
    colours = style.variant_colours(names)
    assert list(colours) == names and len(set(colours.values())) == len(names)
    beside = style.variant_colours(
        ["gradual", "one-shot", "random pre-pruning", "scaled", "block lasso + gradual (cubic)"]
    )
    assert len(set(beside.values())) == len(beside)
    assert style.BLACK not in style.variant_colours([f"variant {at}" for at in range(20)]).values()
    every = style.variant_colours([*names, *(f"variant {at}" for at in range(20))])
    assert style.GREY not in every.values()  # that of words, and of the keys of block sizes
    assert style.block_marker(7) == "X" and style.block_colour(7) == style.GREY


def test_one_failed_cell_alone_gives_a_figure_with_its_reason() -> None:
    frame = pd.DataFrame([made.row(GemmCell(), "wrong", "error 3.1 times the bound")])
    assert "native: wrong (1 cells): error 3.1 times the bound" in texts(
        product_figures.speedup_figure(made.part(frame))
    )


def wide(*runs: tuple[int, float]) -> pd.DataFrame:
    """Training runs of a hidden size at a target sparsity each; dense at 0."""
    rows = []
    for hidden, target in runs:
        pruned = {"schedule": "cubic", "target_sparsity": target} if target else {}
        cell = TrainCell(hidden_size=hidden, embedding_size=64, block_size=8, **pruned)
        rows += made.run_rows(cell, 100.0 + hidden / 100, [target] * 2)
    return pd.DataFrame(rows)


# with 64 in, n hidden and 64 out a network stores 8 n (n / 2 + 96) + const weights: 256 at 0.8 as many as 80 dense
CONTROLS = [(256, 0.8), (256, 0.0), (80, 0.0)]


@pytest.mark.parametrize(
    ("runs", "narrow"),
    [
        (CONTROLS, None),  # 80 units are there for their weights only
        ([(256, 0.8), (80, 0.0)], 80),  # nothing dense of the pruned network's width: 80 is what it is compared with
        ([*CONTROLS, (80, 0.5)], 80),  # pruned at 80 too
        ([(640, 0.8), (944, 0.9), (256, 0.0), (640, 0.0), (944, 0.0)], 256),
        ([(128, 0.8), (64, 0.0), (128, 0.0)], None),  # two sizes whose weights have nothing to do with each other
    ],
)
def test_the_narrow_network_is_what_wider_ones_are_compared_with(
    runs: list[tuple[int, float]], narrow: int | None
) -> None:
    figure = accuracy_figures.cost_figure(made.part(wide(*runs)))
    words = texts(figure)
    if narrow is None:
        assert "What sparsity costs in perplexity" in words and "narrow" not in words
    else:
        assert "Wider for sparser" in words
        assert f"dense, {narrow} units 1.00× the narrow dense network's weights" in words
        [line] = [line for line in figure.axes[0].lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2]
        assert line.get_xdata()[0] == pytest.approx(100.0 + narrow / 100)


@pytest.mark.parametrize(
    ("speeds", "labels"),
    [
        ((4.0, 4.3, 4.6, 4.9), ["dense", "ρ 0.8", "ρ 0.81", "ρ 0.82", "ρ 0.83"]),
        ((4.0, 4.01, 4.02, 6.0), ["dense", "ρ 0.8, 0.81, 0.82", "ρ 0.83"]),
    ],
    ids=["close", "on each other"],
)
def test_labels_of_the_front_cover_neither_each_other_nor_a_point(speeds: tuple[float, ...], labels: list[str]) -> None:
    train = made.run_rows(TrainCell(), 100.0, [0.0])
    timed = []
    for at, speed in enumerate(speeds):
        rho = 0.8 + 0.01 * at
        train += made.run_rows(TrainCell(schedule="cubic", target_sparsity=rho), 110.0 + 0.02 * at, [rho])
        timed.append(made.ratio_row([speed] * 3, rho, {"m": 512, "k": 128, "n": 20}))
    figure = product_figures.tradeoff_figure(made.part(pd.DataFrame(train)), made.part(pd.DataFrame(timed)))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    [ax] = figure.axes
    assert [text.get_text() for text in ax.texts] == labels
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in ax.texts]
    points = ax.transData.transform([(1.0, 100.0), *((speed, 110.0 + 0.02 * at) for at, speed in enumerate(speeds))])
    assert not [1 for at, one in enumerate(boxes) for other in boxes[:at] if one.overlaps(other)]
    assert not [1 for box in boxes for point in points if box.contains(*point)]
    if len(labels) == len(points):  # no label looks like the words of another point
        for box, point in zip(boxes, points, strict=True):
            middle = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
            nearest = min(np.hypot(*(middle - one)) for one in points)
            assert np.hypot(*(middle - point)) == pytest.approx(nearest)


def test_every_panel_of_the_integral_holds_its_lines() -> None:
    slow = made.sparse_frame(1)
    first = slow["block_size"] == 16
    slow.loc[first, "probes"] = slow.loc[first, "probes"].map(
        lambda stored: (
            [one | {"dense_ms": [9.0 * ms for ms in one["dense_ms"]]} for one in stored] if stored else stored
        )
    )
    figure = realised_figures.integral_steps_figure(made.part(slow))
    for ax in figure.axes:
        low, high = ax.get_ylim()
        assert all(low <= value <= high for line in ax.lines for value in line.get_ydata())


def test_no_bar_is_drawn_where_there_is_no_interval() -> None:
    below, above = style.spread([Estimate(2.0, float("nan"), float("nan"), 1), Estimate(2.0, 1.5, 3.0, 3)])
    assert np.isnan([below[0], above[0]]).all() and (below[1], above[1]) == (0.5, 1.0)


def test_what_lies_beyond_the_scale_is_said_once() -> None:
    assert style.beyond(["a", "b", "b"], [100.0, 950.1, 950.4]) == [
        "Arrows at the upper edge, beyond the scale: b: 950."
    ]


def collapsed() -> pd.DataFrame:
    """A variant that is near dense at one sparsity and collapsed at two others, and dense."""
    rows = made.run_rows(TrainCell(), 100.0, [0.0])
    for target, ppl in ((0.5, 900.0), (0.8, 110.0), (0.9, 950.0)):
        rows += made.run_rows(TrainCell(schedule="cubic", target_sparsity=target), ppl, [target])
    return pd.DataFrame(rows)


def test_what_lies_beyond_the_scale_has_an_arrow_and_no_line_to_it() -> None:
    timed = [made.ratio_row([2.0 * rho] * 3, rho, {"m": 512, "k": 128, "n": 20}) for rho in (0.5, 0.8, 0.9)]
    for figure, where in (
        (accuracy_figures.perplexity_figure(made.part(collapsed())), [0.5, 0.9]),
        (product_figures.tradeoff_figure(made.part(collapsed()), made.part(pd.DataFrame(timed))), [1.0, 1.8]),
    ):
        figure.draw_without_rendering()
        [ax] = figure.axes
        arrows = [one for one in ax.texts if isinstance(one, Annotation) and one.arrow_patch is not None]
        assert [one.xy[0] for one in arrows] == pytest.approx(where, abs=0.01)
        hollow = [
            one for one in ax.lines if one.get_transform() == ax.get_xaxis_transform() and one.get_marker() == "s"
        ]
        assert [float(line.get_xdata()[0]) for line in hollow] == pytest.approx(where, abs=0.01)
        assert {line.get_markerfacecolor() for line in hollow} == {"white"}
        assert {line.get_color() for line in hollow} == {style.variant_colours(["gradual (cubic)"])["gradual (cubic)"]}
        for line in (
            one for one in ax.lines if one not in hollow and one.get_linestyle() == "-" and len(one.get_xdata()) == 3
        ):
            assert np.isfinite(np.asarray(line.get_ydata(), dtype=float)).sum() == 1  # the point between them, alone


def test_a_notebook_shows_the_margin_though_it_cuts_pictures_to_what_is_in_the_layout() -> None:
    figure = accuracy_figures.perplexity_figure(of(TWO_SEEDS))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    [note] = figure.texts[-1:]
    assert note.get_text().startswith("Bars and band")
    below = note.get_window_extent(canvas.get_renderer()).y0 / figure.dpi
    assert figure.get_tightbbox(canvas.get_renderer()).y0 <= below
