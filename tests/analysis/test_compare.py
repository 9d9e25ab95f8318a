"""Product timings beside theory, against numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import made
import pandas as pd
import pytest

from analysis import compare
from bench.cells import GemmCell


def points(*rows: dict[str, Any]) -> pd.DataFrame:
    return made.part(pd.DataFrame(rows)).points


def point(speedup: float, sparsity: float = 0.8, noisy: bool = False, **settings: Any) -> dict[str, Any]:
    """A cell whose every pair has the ratio `speedup`."""
    return made.ratio_row([speedup] * 3, sparsity, settings, noisy=noisy)


def test_measured_speedup_is_the_median_of_pairwise_ratios() -> None:
    row = made.ratio_row([1.0], 0.8, baseline_samples_ms=[2.0, 4.0, 6.0, 8.0], samples_ms=[1.0, 1.0, 2.0, 2.0])
    [cell] = compare.measured_speedup(pd.DataFrame([row]), "gemm").to_dict("records")
    # ratios 2, 4, 3, 4; theory at 0.8 is 5
    assert cell["measured_speedup"] == pytest.approx(3.5)
    assert cell["predicted_speedup"] == pytest.approx(5.0)
    assert cell["efficiency"] == pytest.approx(0.7)


def test_interval_of_the_median_of_seven_ratios() -> None:
    # A resample's middle is the smallest with P(Bin(7, 1/7) >= 4) = 8359 / 7^7 = 1.0 % < 2.5 %, and at most the second
    # with P(Bin(7, 2/7) >= 4) = 10.0 % > 2.5 %: the interval runs from the second to the second largest
    [cell] = compare.measured_speedup(pd.DataFrame([made.ratio_row([7, 1, 6, 2, 5, 3, 4])]), "gemm").to_dict("records")
    assert (cell["measured_speedup"], cell["low"], cell["high"]) == (4.0, 2.0, 6.0)


def test_one_pair_has_no_interval() -> None:
    [cell] = compare.measured_speedup(pd.DataFrame([made.ratio_row([3.0])]), "gemm").to_dict("records")
    assert cell["measured_speedup"] == 3.0 and math.isnan(cell["low"]) and math.isnan(cell["high"])


def test_a_point_is_the_geometric_mean_over_seeds_and_the_envelope_of_their_intervals() -> None:
    first = made.ratio_row([1.0, 2.0, 4.0], settings={"seed": 0})
    second = made.ratio_row([8.0] * 3, settings={"seed": 1}, noisy=True, time_ms=3.0)
    [found] = points(first, second).to_dict("records")
    assert found["measured_speedup"] == pytest.approx(4.0)  # sqrt(2 x 8)
    assert (found["low"], found["high"]) == (1.0, 8.0)
    assert found["efficiency"] == pytest.approx(0.8)
    assert (found["seeds"], found["noisy"], found["time_ms"]) == (2, True, 2.0)


def test_cells_that_are_not_ok_are_no_points_and_are_counted_with_their_reason() -> None:
    bad = [GemmCell(backend="scipy_bsr", target_sparsity=rho) for rho in (0.5, 0.9)]
    rows = [made.row(cell, "unsupported", made.NO_SCIPY) for cell in bad]
    frame = pd.DataFrame([point(2.0), *rows, made.row(GemmCell(n=8), "crashed")])
    assert len(made.part(frame).points) == 1
    assert len(compare.failures(frame)) == 3
    assert compare.failure_groups(frame, "backend").to_numpy().tolist() == [
        ["native", "crashed", "no reason stored", 1],
        ["scipy_bsr", "unsupported", made.NO_SCIPY, 2],
    ]


def test_breakeven_of_each_block_size() -> None:
    speeds = {8: (0.5, 0.8), 16: (0.5, 2.0), 32: (1.5, 3.0)}
    rows = [
        point(speed, rho, block_size=size)
        for size, two in speeds.items()
        for rho, speed in zip((0.5, 0.9), two, strict=True)
    ]
    found = compare.breakeven_sparsity(points(*rows)).set_index("block_size")
    assert [found["breakeven_sparsity"][size].kind for size in (8, 16, 32)] == ["never", "crosses", "always"]
    # relative times 2 and 1/2: 1 is reached after two thirds of the way from 0.5 to 0.9
    assert found["breakeven_sparsity"][16].sparsity == pytest.approx(0.5 + 0.4 * 2 / 3)
    assert found["fastest"][16] == pytest.approx(2.0) and found["at_sparsity"][16] == 0.9
    assert found["efficiency"][16] == pytest.approx(0.225)  # between 0.5 / 2 and 2 / 10


def test_speedup_between_measured_points_interpolates_time_and_extrapolates_nothing() -> None:
    found = points(point(1.0, 0.5), point(5.0, 0.9))
    assert compare.speedup_at(found, 0.7) == pytest.approx(1 / 0.6)  # relative time between 1 and 0.2
    assert compare.speedup_at(found, 0.9) == pytest.approx(5.0)
    assert compare.speedup_at(found, 0.91) == pytest.approx(5.0)  # rounding to whole blocks
    assert math.isnan(compare.speedup_at(found, 0.4))
    assert math.isnan(compare.speedup_at(found, 0.95))
    assert math.isnan(compare.speedup_at(found.head(0), 0.5))


def test_a_noisy_point_is_not_the_best_while_a_quiet_one_exists() -> None:
    fast, slow = point(85.74, 0.9, noisy=True, block_size=8), point(3.0, 0.9)
    best = compare.best_product(points(fast, slow))
    assert best is not None and best["measured_speedup"] == pytest.approx(3.0) and not best["noisy"]
    alone = compare.best_product(points(fast))
    assert alone is not None and alone["measured_speedup"] == pytest.approx(85.74) and alone["noisy"]


def test_a_quiet_baseline_against_itself_does_not_hide_noisy_products() -> None:
    best = compare.best_product(points(point(1.0, backend="dense"), point(2.0, noisy=True)))
    assert best is not None and best["backend"] == "native"


def test_the_baseline_is_neither_the_best_product_nor_the_leading_backend() -> None:
    only_dense = points(point(9.0, backend="dense"))
    assert compare.best_product(only_dense) is None and compare.leading_backend(only_dense) is None
    found = points(point(9.0, backend="dense"), point(2.0), point(3.0, backend="torch_bsr"))
    best = compare.best_product(found)
    assert best is not None and best["backend"] == "torch_bsr"
    assert compare.leading_backend(found) == "torch_bsr"


def test_the_leading_backend_has_the_highest_geometric_mean() -> None:
    rows = [
        point(1.0, 0.5),
        point(9.0, 0.9),
        point(2.0, 0.5, backend="torch_bsr"),
        point(4.0, 0.9, backend="torch_bsr"),
    ]
    assert compare.leading_backend(points(*rows)) == "native"  # 3 against sqrt(8)


def test_without_a_point_every_answer_is_empty() -> None:
    none = points(made.row(GemmCell(), "unsupported", made.NO_COMPILER))
    assert none.empty and list(none.columns) == [*compare.GEMM_SETTINGS, *compare.RESULTS]
    assert compare.quiet(none).empty and compare.best_product(none) is None and compare.leading_backend(none) is None
    assert compare.breakeven_sparsity(none).empty


def test_a_column_compared_over_is_never_averaged() -> None:
    here, there = made.gemm_frame(), made.gemm_frame()
    there["device_name"] = "Other CPU"
    frame = pd.concat([here, there], ignore_index=True)
    points = made.part(frame, over="device_name").points
    assert len(points) == 2 * len(made.part(here).points)
    assert set(points["device_name"]) == {"Test CPU", "Other CPU"}


def layers(*rows: dict[str, Any]) -> pd.DataFrame:
    return made.part(pd.DataFrame(rows)).points


def test_a_layer_is_set_beside_the_theory_of_its_scope() -> None:
    settings = {"input_size": 128, "hidden_size": 128}
    [both] = layers(made.layer_row([2.0] * 3, 0.8, settings)).to_dict("records")
    [one] = layers(made.layer_row([1.0] * 3, 0.8, settings | {"scope": "weight_hh"})).to_dict("records")
    assert both["predicted_speedup"] == pytest.approx(5.0) and both["efficiency"] == pytest.approx(0.4)
    assert one["predicted_speedup"] == pytest.approx(1 / 0.6) and one["efficiency"] == pytest.approx(0.6)


def test_layers_over_two_baselines_have_points_and_break_evens_of_their_own() -> None:
    rows = [
        made.layer_row([speed] * 3, rho, {"baseline": baseline})
        for baseline, speeds in (("torch_lstm", (0.5, 2.0)), ("loop_lstm", (1.5, 3.0)))
        for rho, speed in zip((0.5, 0.9), speeds, strict=True)
    ]
    found = compare.breakeven_sparsity(layers(*rows), [*compare.LAYER, "baseline"]).set_index("baseline")
    assert found["breakeven_sparsity"]["torch_lstm"].sparsity == pytest.approx(0.5 + 0.4 * 2 / 3)
    assert found["breakeven_sparsity"]["loop_lstm"].kind == "always"
