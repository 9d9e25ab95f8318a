"""Tables for reading: what their cells say, and that no missing or failed result breaks them."""

from __future__ import annotations

import made
import pandas as pd
import pytest

from analysis import tables
from analysis.awd.tables import slides_table
from analysis.study import not_run
from bench.cells import GemmCell, TrainCell

LINEAR = {"lasso": "subgradient", "schedule": "linear", "target_sparsity": 0.8}
PRE = {"lasso": "subgradient", "schedule": "pre", "target_sparsity": 0.8}
NOTHING = tables.NOTHING


def two_runs() -> pd.DataFrame:
    """Dense and gradually pruned, four epochs, one seed."""
    dense = made.run_rows(TrainCell(), 100.0, [0.0] * 4, seconds=10.0)
    sparse = made.run_rows(TrainCell(**LINEAR), 110.0, [0.0, 0.4, 0.8, 0.8], seconds=12.5)
    return pd.DataFrame([*dense, *sparse])


def products() -> pd.DataFrame:
    """The recurrent product of `two_runs` at 0.8 (4×) and at 0.9, where it is noisy."""
    network = {"m": 512, "k": 128, "n": 20}
    return pd.DataFrame([made.ratio_row([4.0] * 3, 0.8, network), made.ratio_row([5.0] * 3, 0.9, network, noisy=True)])


def test_main_table_against_hand_worked_numbers() -> None:
    dense, sparse = tables.main_table(made.part(two_runs()), made.part(products())).to_dict("records")
    assert dense["variant"] == "dense" and dense["block size"] == NOTHING and dense["cost against dense"] == NOTHING
    assert sparse["variant"] == "block lasso + gradual (linear)" and sparse["block size"] == "16"
    assert (sparse["target sparsity"], sparse["sparsity stored"]) == ("0.8", "0.800")
    assert sparse["test ppl"] == "110.0 (1 seed)" and sparse["cost against dense"] == "+10.0 % (1 seed)"
    assert sparse["predicted product speedup"] == "5.00×"
    assert sparse["measured product speedup"] == "4.00× [4.00, 4.00]"
    assert sparse["predicted training speedup"] == "2.00×" and sparse["measured training speedup"] == "0.80×"
    # per token: weight_ih 4 (128 x 64 + 64 x 128), weight_hh 4 (128^2 + 64^2), decoder 64 x 100
    pruned, decoder = 4 * 2 * 128 * 64 + 4 * (128**2 + 64**2), 6400
    assert sparse["Amdahl ceiling"] == f"{(pruned + decoder) / (0.2 * pruned + decoder):.2f}×"


def test_slides_table_sets_our_runs_beside_the_four() -> None:
    pre = made.run_rows(TrainCell(**PRE), 130.0, [0.8] * 4)
    found = slides_table(made.part(pd.concat([two_runs(), pd.DataFrame(pre)])), made.part(products())).set_index(
        "slides"
    )
    assert found["ours"].tolist() == [
        "dense", NOTHING, "block lasso + gradual (linear), block 16", "block lasso + random pre-pruning, block 16",
    ]  # fmt: skip
    assert found["slides' speedup"].tolist() == ["1.0×", "1.0×", "1.9×", "5.0×"]
    assert found["slides' train / val / test ppl"].iloc[0] == "79.13 / 86.81 / 81.76"
    assert (
        found["our test ppl"].iloc[3] == "130.0 (1 seed)"
        and found["our cost against dense"].iloc[3] == "+30.0 % (1 seed)"
    )
    assert found["our predicted training speedup"].iloc[2:].tolist() == ["2.00×", "5.00×"]


def test_breakeven_table_says_crosses_always_or_never() -> None:
    speeds = {8: (0.5, 0.8), 16: (0.5, 2.0), 32: (1.5, 3.0)}
    rows = [
        made.ratio_row([speed] * 3, rho, {"block_size": size})
        for size, two in speeds.items()
        for rho, speed in zip((0.5, 0.9), two, strict=True)
    ]
    found = tables.breakeven_table(made.part(pd.DataFrame(rows))).set_index("block size")
    assert found["break-even sparsity"].to_dict() == {"8": "never", "16": "0.77", "32": "always"}
    assert found.loc["16", ["fastest", "at sparsity", "median efficiency"]].tolist() == ["2.00×", "0.90", "22%"]
    assert set(found["product"]) == {"W 1024 × 1024, n = 32"}


@pytest.mark.parametrize("seeds", [1, 2])
def test_every_variant_block_size_and_sparsity_has_a_row(seeds: int) -> None:
    found = tables.main_table(made.part(made.train_frame(seeds)), made.part(made.gemm_frame()))
    assert len(found) == 1 + 2 + 4 + 4
    assert found["test ppl"].str.contains("1 seed" if seeds == 1 else "2 seeds").all()
    assert len(slides_table(made.part(made.train_frame(seeds)), not_run("gemm"))) == 4


def test_tables_of_what_was_not_run_have_no_rows_or_dashes() -> None:
    train, gemm, lstm = not_run("train"), not_run("gemm"), not_run("lstm")
    assert tables.main_table(train, gemm).empty and tables.layer_table(lstm).empty
    assert tables.breakeven_table(gemm).empty
    assert (slides_table(train, gemm)["ours"] == NOTHING).all()
    assert (tables.main_table(made.part(two_runs()), gemm)["measured product speedup"] == [NOTHING, NOTHING]).all()


def test_where_everything_failed_the_tables_are_empty() -> None:
    train = made.part(pd.DataFrame([made.diverged_row()]))
    gemm = made.part(pd.DataFrame([made.row(GemmCell(), "unsupported", made.NO_COMPILER)]))
    assert tables.main_table(train, gemm).empty and tables.breakeven_table(gemm).empty
    assert (slides_table(train, gemm)["ours"] == NOTHING).all()


def test_without_a_compiler_another_backend_stands_for_the_network() -> None:
    gemm = made.part(made.gemm_frame(unsupported={"native": made.NO_COMPILER}))
    assert set(tables.breakeven_table(gemm)["backend"]) == {"torch_bsr"}
    pruned = tables.main_table(made.part(made.train_frame(1)), gemm).query("`target sparsity` == '0.8'")
    assert pruned["measured product speedup"].str.contains("×").all()


def test_markdown_and_html_escape_what_would_break_them() -> None:
    table = pd.DataFrame({"a|b": ["1 < 2", "x|y"]})
    assert tables.to_markdown(table) == "| a\\|b |\n| --- |\n| 1 < 2 |\n| x\\|y |"
    page = tables.to_html(table)
    assert ">1 &lt; 2</td>" in page and ">a|b</th>" in page
    assert tables.to_markdown(table.head(0)) == "| a\\|b |\n| --- |"


def test_layer_table_has_a_row_for_each_baseline_and_sets_theory_beside_the_fastest() -> None:
    settings = {"input_size": 128, "hidden_size": 128, "scope": "weight_hh"}
    rows = [
        made.layer_row([speed] * 3, rho, settings | {"baseline": baseline})
        for baseline, speeds in (("torch_lstm", (0.5, 1.2)), ("loop_lstm", (1.1, 1.5)))
        for rho, speed in zip((0.5, 0.8), speeds, strict=True)
    ]
    loop, fused = tables.layer_table(made.part(pd.DataFrame(rows))).to_dict("records")
    assert (loop["layer"], loop["over"], loop["break-even sparsity"]) == (
        "LSTM 128 → 128, 35 steps",
        "loop_lstm",
        "always",
    )
    assert (fused["fastest"], fused["at sparsity"], fused["theory there"]) == ("1.20×", "0.80", "1.67×")


def test_short_cells_keep_to_a_line_and_a_wide_table_scrolls() -> None:
    page = tables.to_html(pd.DataFrame({"what": ["4.21× [4.10, 4.33]", "word " * 30]}))
    assert page.startswith("<div style='overflow-x:auto'><table style='table-layout:auto")
    short, long = [line for line in page.splitlines() if "<td" in line]
    assert (
        "4.21×\N{SPACE}[4.10,\N{NO-BREAK SPACE}4.33]" in short
    )  # on a narrow page broken before the interval, never in it
    assert "white-space:nowrap" in short and "white-space:normal;min-width" in long


def test_noisy_timings_are_marked_wherever_they_are_quoted() -> None:
    shape = {"m": 512, "k": 128, "n": 20}
    noisy = pd.DataFrame(
        [made.ratio_row([speed] * 3, rho, shape, noisy=True) for rho, speed in ((0.5, 0.8), (0.8, 4.0))]
    )
    [row] = tables.breakeven_table(made.part(noisy)).to_dict("records")
    assert (row["break-even sparsity"], row["fastest"], row["median efficiency"]) == (
        "0.57 (noisy)", "4.00× (noisy)", "60% (noisy)",
    )  # fmt: skip
    quiet = made.ratio_row([2.0] * 3, 0.7, shape)
    [row] = tables.breakeven_table(made.part(pd.concat([noisy, pd.DataFrame([quiet])]))).to_dict("records")
    assert (row["break-even sparsity"], row["fastest"], row["median efficiency"]) == (
        "0.57 (noisy)",
        "2.00× (quiet)",
        "60%",
    )
    assert tables.main_table(made.part(two_runs()), made.part(noisy))["measured product speedup"].tolist() == [
        NOTHING,
        "4.00× [4.00, 4.00] (noisy)",
    ]
    assert tables.main_table(made.part(two_runs()), made.part(products()))["measured product speedup"].tolist() == [
        NOTHING,
        "4.00× [4.00, 4.00]",
    ]
    assert (
        slides_table(made.part(two_runs()), made.part(noisy))["our measured product speedup"].iloc[2]
        == "4.00× [4.00, 4.00] (noisy)"
    )
    layer = made.layer_row([2.0] * 3, noisy=True)
    assert tables.layer_table(made.part(pd.DataFrame([layer])))["fastest"].tolist() == ["2.00× (noisy)"]
