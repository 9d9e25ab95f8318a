"""What sparse training realised, against numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import made
import numpy as np
import pandas as pd
import pytest

from analysis import study, tables
from analysis.figures import realised as realised_figures
from analysis.stats import integral_ratio, step_weights
from analysis.studying.realised import COLUMNS, _shorter, amdahl, over_seeds, probes, realised
from bench.cells import TrainCell

CUBIC = {"schedule": "cubic", "target_sparsity": 0.8}
RHOS = (0.0, 0.4, 0.8, 0.8)  # mean 0.5: theory 2


def frame(*runs: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row for run in runs for row in run])


def only(train: pd.DataFrame) -> dict[str, Any]:
    [row] = realised(train).to_dict("records")
    return row


def test_probes_stand_for_the_steps_around_them() -> None:
    assert step_weights([50, 150, 350], 400).tolist() == [100.0, 150.0, 150.0]
    assert step_weights([10], 400).tolist() == [400.0]
    assert step_weights([0, 100], 100).tolist() == [50.0, 50.0]


def test_the_integral_weighs_medians_and_its_interval_draws_pairs_together() -> None:
    # medians 10 and 20 over 5 and 20; weights 1 and 3: (10 + 60) / (5 + 60)
    above, below = [[10.0, 9.0, 11.0], [20.0] * 3], [[5.0, 4.5, 5.5], [20.0] * 3]
    found = integral_ratio(above, below, [1.0, 3.0])
    assert found.value == pytest.approx(70 / 65) and found.n == 6
    assert found.low < found.value < found.high
    # the samples of a pair move together: every resample has the same ratio
    together = integral_ratio([[10.0, 30.0, 20.0]], [[5.0, 15.0, 10.0]], [1.0])
    assert together[:3] == pytest.approx((2.0, 2.0, 2.0))
    assert math.isnan(integral_ratio([[2.0]], [[1.0]], [1.0]).low)


def test_the_integral_of_a_gradual_run() -> None:
    found = only(frame(made.sparse_run(TrainCell(**CUBIC, path="auto"), RHOS, efficiency=0.8)))
    assert found["predicted"] == pytest.approx(2.0) and found["predicted_at_probes"] == pytest.approx(2.0)
    # 50 ms each on the dense path; 50, 37.5, 12.5, 12.5 on the path in use
    assert found["measured"].value == pytest.approx(200 / 112.5)
    assert found["efficiency"].value == pytest.approx(200 / 112.5 / 2.0)
    assert found["efficiency"].low == pytest.approx(found["measured"].low / 2.0)
    assert found["sparse_share"] == pytest.approx(0.75)


def test_theory_of_weight_hh_alone_is_amdahls_over_both_weights() -> None:
    cell = TrainCell(**CUBIC, path="auto", scope="weight_hh", embedding_size=128, hidden_size=128, num_layers=1)
    # one layer 128 -> 128: half of the multiply-adds shrink to a half on average
    assert only(frame(made.sparse_run(cell, RHOS)))["predicted"] == pytest.approx(1 / 0.75)


def test_epochs_count_by_the_steps_they_took() -> None:
    rows = made.sparse_run(TrainCell(**CUBIC, path="sparse"), (0.0, 0.8))
    for one, step in zip(rows, (300, 400), strict=True):
        one["step"] = step
    assert only(frame(rows))["mean_sparsity"] == pytest.approx(0.2)


def test_whole_runs_are_compared_with_the_masked_and_the_dense_run_of_the_seed() -> None:
    sparse = made.sparse_run(TrainCell(**CUBIC, path="auto"), RHOS)  # 4 epochs of 8 s
    masked = made.run_rows(TrainCell(**CUBIC), 110.0, RHOS, 12.0, lstm_seconds=5.0)
    dense = made.run_rows(TrainCell(), 100.0, RHOS, 10.0)
    other = made.run_rows(TrainCell(**CUBIC, seed=1), 90.0, RHOS, 99.0)
    found = only(frame(sparse, masked, dense, other))
    assert (found["dense_seconds"], found["masked_seconds"], found["sparse_seconds"]) == (40.0, 48.0, 32.0)
    assert found["against_masked"] == pytest.approx(1.5) and found["against_dense"] == pytest.approx(1.25)
    assert found["masked_ppl"] == 110.0
    # 20 s of the masked run's 48
    assert found["lstm_share"] == pytest.approx(20 / 48)
    assert found["ceiling"] == pytest.approx(48 / (28 + 20 / 2.0))
    assert found["allowed"] == pytest.approx(48 / (28 + 11.25))


def test_without_a_partner_the_share_comes_from_the_run_itself() -> None:
    found = only(frame(made.sparse_run(TrainCell(**CUBIC, path="auto"), RHOS)))
    assert math.isnan(found["masked_seconds"]) and math.isnan(found["against_dense"])
    # 32 s, of which 11.25 in the LSTM layers, that would take 20 s dense
    assert found["lstm_share"] == pytest.approx(20 / (32 - 11.25 + 20))


def test_the_finished_model() -> None:
    found = only(frame(made.sparse_run(TrainCell(**CUBIC, path="auto"), RHOS)))
    assert found["inference"].value == pytest.approx(1.6, abs=0.05)
    assert found["inference_promise"] == pytest.approx(5.0)
    assert found["inference_ceiling"] == pytest.approx(1 / (0.5 + 0.1))


def test_amdahl_refuses_seconds_that_do_not_fit() -> None:
    assert amdahl(0.5, 2.0) == pytest.approx(4 / 3) and amdahl(1.0, 5.0) == pytest.approx(5.0)
    assert math.isnan(amdahl(1.2, 2.0)) and math.isnan(amdahl(math.nan, 2.0))


def test_runs_on_the_dense_path_realise_nothing() -> None:
    for train in (study.not_run("train"), made.part(frame(made.run_rows(TrainCell(**CUBIC), 110.0, RHOS)))):
        assert train.realised.empty and list(train.realised.columns) == list(COLUMNS)
        assert tables.training_time_table(train).empty and tables.statements(train) == []
        for figure in (realised_figures.integral_steps_figure, realised_figures.end_to_end_figure):
            assert "not run" in figure(train).axes[0].texts[0].get_text()


def test_a_run_without_probes_or_finished_model_is_still_a_row() -> None:
    bare = {"probes": None, "inference_ms": None, "inference_lstm_ms": None}
    train = frame(made.sparse_run(TrainCell(**CUBIC, path="sparse"), RHOS, **bare))
    found = only(train)
    assert found["measured"].n == 0 and found["inference"].n == 0 and math.isnan(found["ceiling"])
    [row] = tables.training_time_table(made.part(train)).to_dict("records")
    assert row["integral measured"] == "–" and row["measured / theory"] == "–" and row["integral predicted"] == "2.00×"
    assert realised_figures.end_to_end_figure(made.part(train)).axes


def test_probes_come_back_from_parquet_in_order(sweep: Any) -> None:
    from analysis.load import load

    stored = load(sweep(train=made.sparse_frame(1)), "train")
    run = stored[(stored["path"] == "auto") & (stored["block_size"] == 16)].iloc[::-1]
    taken = probes(run)
    assert [probe.step for probe in taken] == [50, 150, 250, 350]
    assert taken[0].dense_ms == [50.0, 49.5, 50.5] and taken[1].sparse_layers == 2
    assert only(stored[stored["cell_id"].isin(run["cell_id"])])["measured"].n == 12


def test_over_seeds_keeps_the_interval_of_one_and_leaves_out_nan() -> None:
    found = realised(made.sparse_frame(2))
    one, two = found["measured"].iloc[0], found["measured"].iloc[2]
    assert over_seeds(found["measured"].iloc[:1]) == one
    assert over_seeds(pd.Series([one, two])).value == pytest.approx(math.sqrt(one.value * two.value))
    assert over_seeds(pd.Series([math.nan, 3.0])).value == 3.0 and over_seeds(pd.Series([math.nan])).n == 0


def test_the_tables_and_the_sentence_say_what_was_asked_for() -> None:
    train = made.sparse_frame(2)
    times, models = tables.training_time_table(made.part(train)), tables.finished_model_table(made.part(train))
    assert len(times) == len(models) == 2 and times["seeds"].tolist() == ["2", "2"]
    assert times["dense training"].tolist() == ["40.0 s"] * 2 and times["sparse training"].tolist() == ["32.0 s"] * 2
    assert models["bytes finished"].tolist() == ["0.21 MB"] * 2
    assert models["difference"].tolist() == ["+0.2 [+0.0, +0.4]"] * 2 and models["seed noise"].tolist() == ["0.71"] * 2
    assert set(models["sparse against masked"]) == {"higher by less than 1 %"}
    first, _ = tables.statements(made.part(train))
    assert first.startswith(
        "gradual (cubic), auto path, block 16, ρ 0.8: dense training 40.0 s, masked 42.0 s, sparse 32.0 s"
    )
    assert "predicted 2.00×" in first and "at 0.21 MB of 1.00 MB" in first
    assert (
        "test perplexity +0.2 [+0.0, +0.4] from the masked run of the same seed, "
        "higher by less than 1 % (seed noise 0.71)." in first
    )
    of_one, _ = tables.statements(made.part(made.sparse_frame(1)))
    assert of_one.endswith(
        "from the masked run of the same seed, of one seed, "
        "so it is not known whether another seed would change more than that."
    )
    [single] = tables.statements(made.part(frame(made.sparse_run(TrainCell(**CUBIC, path="auto"), RHOS))))
    assert "dense training –" in single and "no masked run of the same seed" in single


def test_the_step_figure_shades_what_was_saved_and_what_was_not_reached() -> None:
    figure = realised_figures.integral_steps_figure(made.part(made.sparse_frame(1)))
    left, right = figure.axes
    assert "measured 1.65×" in left.get_title() and "of theory's 2.00×: 82%" in left.get_title()
    dense, used, theory, *_ = left.lines
    assert np.asarray(dense.get_xdata()).tolist() == [0, 50, 150, 250, 350, 400]
    assert np.asarray(theory.get_ydata()) == pytest.approx([50, 50, 30, 10, 10, 10])
    assert np.asarray(used.get_ydata()) == pytest.approx([50, 50, 30 / 0.7, 10 / 0.7, 10 / 0.7, 10 / 0.7])
    assert theory.get_linestyle() == "--" and all(
        line.get_linestyle() in ("-", "None") for line in left.lines if line is not theory
    )
    assert len(left.collections) == 2 and "block 32" in right.get_title()


def test_the_bars_are_theory_measured_whole_and_ceiling() -> None:
    [first, _] = made.part(made.sparse_frame(1)).gains.to_dict("records")
    assert first["block_size"] == 16
    [layers, measured, whole], ceiling = realised_figures.training_bars(first)
    assert layers.value == pytest.approx(2.0) and measured.value == pytest.approx(200 / (50 + 50 / 0.7))
    assert whole.value == pytest.approx(42 / 32)
    assert ceiling == pytest.approx(42 / (22 + 10))
    [layers, *_], ceiling = realised_figures.inference_bars(first)
    assert layers.value == pytest.approx(5.0) and ceiling == pytest.approx(1 / 0.6)


def test_models_of_two_sizes_are_no_seeds_of_one_another() -> None:
    small = made.sparse_frame(2)
    large = small.assign(
        cell_id="f" + small["cell_id"].str[1:], hidden_size=512, embedding_size=128, train_seconds=100.0
    )
    found = made.study(train=pd.concat([small, large], ignore_index=True)).main("train")
    assert found.gains["seeds"].tolist() == [2] * 4
    units = int(small["hidden_size"].iloc[0])
    assert [name.split(", ")[-1] for name in found.gains["variant"]].count("512 units") == 2
    assert sum(f", {units} units" in name for name in found.gains["variant"]) == 2


def test_sizes_are_told_in_units_where_that_tells_them_apart() -> None:
    names = [f"gradual, embedding_size {size}, hidden_size {units}" for size, units in ((64, 256), (128, 512))]
    assert _shorter(names) == ["gradual, 256 units", "gradual, 512 units"]
    assert (
        _shorter([*names, "gradual, embedding_size 32, hidden_size 512"])[1] == "gradual, embedding_size 128, 512 units"
    )
