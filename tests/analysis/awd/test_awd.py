"""The AWD-LSTM sweeps: which runs answer which line, and what the tables say of them and of runs missing or damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import made
import made_awd
import pandas as pd
import pytest

from analysis import tables
from analysis.awd import answers as awd
from analysis.awd import equal
from analysis.awd import tables as awd_tables
from analysis.awd.answers import Sweep, Sweeps, answer, order, read_sweeps, sweep_role
from analysis.awd.lines import BEST, DENSE, FOUR, GRADUAL, LASSO, LINES, PRE, SMALLER, WIDE
from analysis.awd.published import PUBLISHED, SLIDES, published_table
from analysis.figures import accuracy as accuracy_figures
from analysis.report import write_figures, write_report
from bench import sweep as sweeps_of_bench
from bench.cells import TrainCell

ROOT = Path(__file__).parents[3]
LASSO_80 = {"lasso": "subgradient", "target_sparsity": 0.8}
SETTINGS: dict[str, dict[str, Any]] = {
    DENSE.name: {},
    LASSO.name: {"lasso": "subgradient"},
    GRADUAL.name: LASSO_80 | {"schedule": "linear"},
    PRE.name: LASSO_80 | {"schedule": "pre"},
}


def runs(name: str, ppls: tuple[float, ...], **settings: Any) -> list[dict[str, Any]]:
    """One run a seed of one of the slides' lines; lasting two epochs, at its target sparsity from the second on."""
    rows = []
    for seed, ppl in enumerate(ppls):
        cell = TrainCell(seed=seed, **SETTINGS[name] | settings)
        rows += made.run_rows(cell, ppl, [0.0, cell.target_sparsity])
    return rows


def paper(*tables: list[dict[str, Any]]) -> Sweep:
    return awd.sweep(made.study(train=pd.DataFrame([row for rows in tables for row in rows])), "paper")


@cache
def small() -> Sweeps:
    return Sweeps(
        True,
        {
            role: awd.sweep(made.study(train=made_awd.table(name)), role)
            for role, name in zip(awd.SWEEPS, (made_awd.PAPER, made_awd.BEST, made_awd.WIDE), strict=True)
        },
        [],
    )


NOTHING = Sweeps(False, {}, [])


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("wikitext2_paper", ("paper", False)),
        ("wikitext2_best_small", ("best", True)),
        ("wikitext2_small", None),
        ("paper", None),
        ("gemm", None),
    ],
)
def test_a_sweep_is_known_by_its_name(name: str, role: tuple[str, bool] | None) -> None:
    assert sweep_role(name) == role


@pytest.mark.parametrize("size", ["", "_small"])
def test_every_line_is_answered_by_the_cells_of_the_sweep_files(size: str) -> None:
    """What the sweeps run is what the table looks for: no line stays 'not run' once they have."""
    for line in LINES:
        for role in filter(None, (line.same, line.best)):
            cells = [cell for cell in sweeps_of_bench.load(f"wikitext2_{role}{size}").cells if cell.kind == "train"]
            table = pd.DataFrame([made.row(cell, "failed", "made up") for cell in cells])
            assert len(answer(awd.cells(made.part(table), role), line).failed) >= 3, (line.name, role)


def test_the_lines_are_the_slides_and_their_order() -> None:
    assert [line.slide for line in FOUR] == SLIDES["variant"].tolist()
    assert SLIDES["test_ppl"].is_monotonic_increasing


def test_the_setting_with_the_best_validation_answers_of_those_with_the_most_seeds() -> None:
    one_seed = runs(GRADUAL.name, (50.0,), block_size=8)
    worse, better = (runs(GRADUAL.name, (90.0 + add, 92.0 + add), block_size=size) for add, size in ((5, 16), (0, 32)))
    for row in better:
        row["test_ppl"] += 20.0  # the test perplexity has no say
    chosen = answer(paper(one_seed, worse, better).cells, GRADUAL)
    assert chosen.setting["block_size"] == 32 and chosen.runs["seed"].tolist() == [0, 1]
    assert answer(paper(one_seed, worse, better).cells, GRADUAL, (16,)).setting["block_size"] == 16


def test_a_seed_counts_once_whatever_its_path() -> None:
    masked, sparse = (runs(GRADUAL.name, (90.0, 91.0), path=path) for path in ("dense", "auto"))
    assert len(answer(paper(masked, sparse).cells, GRADUAL).runs) == 2
    assert set(answer(paper(sparse).cells, GRADUAL).runs["path"]) == {"auto"}


def test_masked_runs_stand_for_their_setting_where_there_are_any() -> None:
    both = [runs(GRADUAL.name, (90.0, 91.0), path=path, block_size=16) for path in ("dense", "auto")]
    sparse = runs(GRADUAL.name, (80.0, 81.0), path="auto", block_size=32)
    found = awd.one_path(paper(*both, sparse).cells)
    assert set(zip(found["path"], found["block_size"], strict=True)) == {("dense", 16), ("auto", 32)}
    assert answer(paper(*both, sparse).cells, GRADUAL).setting["block_size"] == 32


def test_a_variant_that_changes_its_path_is_one_line_of_the_figure() -> None:
    train = small().by_role["paper"].train
    names = [text.get_text() for text in accuracy_figures.perplexity_figure(train).legends[0].get_texts()]
    assert not [name for name in names if "path" in name] and names.count("block lasso + gradual (linear)") == 1
    twice = accuracy_figures.perplexity_figure(made.part(made.sparse_frame(1))).legends[0].get_texts()
    assert {"gradual (cubic)", "gradual (cubic), auto path"} <= {text.get_text() for text in twice}


def test_equal_stored_weights_are_found_by_counting() -> None:
    found = small().by_role
    assert set(answer(found["best"].cells, SMALLER).runs["hidden_size"]) == {79}
    assert [set(answer(found["wide"].cells, line).runs["hidden_size"]) for line in WIDE] == [{640}, {944}]
    assert set(answer(found["wide"].cells, DENSE).runs["hidden_size"]) == {256}
    assert not {640, 944} & set(answer(found["wide"].cells, BEST).runs.get("hidden_size", ()))


def test_the_order_is_judged_by_paired_intervals() -> None:
    dense, lasso = runs(DENSE.name, (100.0, 110.0, 120.0)), runs(LASSO.name, (105.0, 116.0, 125.0))
    gradual, pre = runs(GRADUAL.name, (104.0, 117.0, 125.0)), runs(PRE.name, (90.0, 101.0, 111.0))
    found = order(paper(dense, lasso, gradual, pre))
    assert [pair.verdict for pair in found] == ["reproduced", "undecided", "refuted"]
    assert [pair.block_size for pair in found] == [16] * 3
    # seeds scatter by 10 %, but each setting by about 1 % around them: only pairing shows the difference
    assert found[0].ratio.value == pytest.approx((1.05 * 116 / 110 * 125 / 120) ** (1 / 3))
    assert found[0].ratio.low > 1.02 and found[2].ratio.high < 0.93


def test_one_seed_decides_nothing_and_a_missing_line_is_not_run() -> None:
    found = order(paper(runs(DENSE.name, (100.0,)), runs(LASSO.name, (200.0,)), runs(GRADUAL.name, (300.0,))))
    assert [pair.verdict for pair in found] == ["undecided", "undecided", "not run"]
    assert order(None) == []


def test_a_line_that_diverged_says_so() -> None:
    bad = [row | {"status": "diverged", "reason": made.DIVERGED} for row in runs(PRE.name, (900.0, 901.0))]
    some = [row | {"status": "diverged", "reason": made.DIVERGED} for row in runs(LASSO.name, (900.0,))]
    found = paper(
        runs(DENSE.name, (100.0, 101.0)),
        some,
        runs(LASSO.name, (0.0, 120.0))[2:],
        runs(GRADUAL.name, (300.0, 310.0)),
        bad,
    )
    table = awd_tables.beside_table(Sweeps(False, {"paper": found}, [])).set_index("line")["ours, same epochs"]
    assert table[PRE.name] == "2 × diverged"
    value, rest = table[LASSO.name].split(" ± ")
    assert value == "120.0" and rest.endswith(" (1 seed), block 16; besides 1 × diverged")
    assert order(found)[-1].verdict == "failed"


def test_the_table_of_the_small_version() -> None:
    table = awd_tables.beside_table(small())
    assert table["line"].tolist() == [line.name for line in LINES]
    slides, same, best, published = table.columns[1:]
    assert "full size" in slides and "full size" in published and "small version" in same and "small version" in best
    assert table[slides].tolist()[:4] == ["81.76", "108.06", "140.87", "148.37"]
    assert "65.5" in table[published][0] and "83.64" in table[published][4]
    shown = table[best][LINES.index(BEST)]
    assert "(3 seeds), gradual (cubic), block 16, ρ 0.80" in shown
    for line in LINES:
        for column, role in ((same, line.same), (best, line.best)):
            assert ("(3 seeds)" in table.set_index("line")[column][line.name]) == (role is not None)
    assert "another experiment" in " ".join(awd_tables.notes(small()))


def test_what_was_measured_stands_beside_what_was_predicted() -> None:
    table = awd_tables.buys_table(small())
    gradual = table[(table["line"] == GRADUAL.name) & (table["recipe"] == "best")].iloc[0]
    # the ramp lies at 0, 0.4, 0.8, 0.8: theory 2, and `made.sparse_run` reaches 0.8 of it wherever a block is empty
    assert gradual["training, predicted"] == "2.00×"
    assert gradual["training, LSTM layers measured"].startswith(f"{200 / 112.5:.2f}×")
    assert gradual["inference, LSTM layers"].startswith("4.00×") and gradual["inference, whole"].startswith("1.60×")
    assert table[table["line"] == PRE.name]["slides' speedup"].tolist() == ["5.0×"]
    masked = runs(DENSE.name, (100.0, 101.0)), runs(GRADUAL.name, (104.0, 105.0), path="dense")
    table_of_masked = awd_tables.buys_table(Sweeps(False, {"paper": paper(*masked)}, []))
    row = table_of_masked[table_of_masked["line"] == GRADUAL.name].iloc[0]
    assert set(row[list(awd_tables.SPEEDS)]) == {"not measured"}
    wide = table[table["line"] == WIDE[1].name].iloc[0]
    assert wide["training, predicted"] == "2.29×" and float(wide["cost against dense"].split()[0]) < 0.0


def test_allocations_are_not_taken_for_seeds_of_one_setting() -> None:
    best = small().by_role["best"]
    times = tables.training_time_table(best.train)
    assert not times.duplicated(["variant", "block size", "target sparsity"]).any()
    seeds = times.groupby("block size")["seeds"].unique().map(list).to_dict()
    assert {size: found for size, found in seeds.items() if found != ["3"]} == {"8": ["1"], "64": ["1"]}
    assert times["variant"].str.contains("ERK").sum() == 2


def test_what_was_not_run_says_so_everywhere() -> None:
    tables = awd_tables.beside_table, awd_tables.order_table, awd_tables.buys_table
    for function in (*tables, equal.wide_table, equal.smaller_table):
        assert "not run" in function(NOTHING).to_string()
    buys = awd_tables.buys_table(NOTHING)
    assert set(buys["cost against dense"]) == {"not run"}
    ours = awd_tables.beside_table(NOTHING)[["ours, same epochs", "ours, best"]]
    assert set(ours.to_numpy().ravel()) == {"not run", "–"}
    assert awd_tables.notes(NOTHING) == ["Not run: wikitext2_paper, wikitext2_best, wikitext2_wide."]
    assert awd.four_lines(None).rows.empty and NOTHING.train("paper").rows.empty


def test_nothing_of_one_size_gets_into_the_other(tmp_path: Path) -> None:
    made_awd.write(tmp_path, made_awd.PAPER, seeds=1)
    assert read_sweeps(parent=tmp_path).names == []
    assert read_sweeps(True, tmp_path).names == [made_awd.PAPER]


def test_a_damaged_sweep_is_noted_and_hides_no_other(tmp_path: Path) -> None:
    made_awd.write(tmp_path, made_awd.PAPER, made_awd.WIDE, seeds=1)
    table = tmp_path / made_awd.PAPER / "train.parquet"
    table.write_bytes(table.read_bytes()[:-10])
    found = read_sweeps(True, tmp_path)
    assert found.names == [made_awd.WIDE]
    assert "damaged" in found.notes[0] and str(tmp_path) not in found.notes[0]
    assert "damaged" in " ".join(awd_tables.notes(found))
    assert "not run" in awd_tables.order_table(found).to_string()


def test_bench_results_names_one_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_awd.write(tmp_path, made_awd.WIDE, seeds=1)
    monkeypatch.setenv("BENCH_RESULTS", str(tmp_path / made_awd.WIDE))
    assert read_sweeps(True).names == [made_awd.WIDE] and read_sweeps().names == []


def test_the_four_rows_are_only_the_slides() -> None:
    table = awd.four_lines(small().by_role["paper"]).rows
    assert set(table["hidden_size"]) == {256}
    assert set(table["target_sparsity"]) == {0.0, 0.8} and set(table["schedule"]) == {"none", "linear", "pre"}


def test_published_figures_name_their_source() -> None:
    table = published_table()
    assert len(table) == len(SLIDES) + len(PUBLISHED)
    assert all(table["source"].str.len() > 5) and not table["source"].str.contains("memory").any()


SWEEP = """
description = "wikitext2_paper in a nutshell"
kind = "train"
[base]
dataset = "pydoc"
model = "awd_lstm"
train_tokens = 1000
eval_tokens = 400
embedding_size = 16
hidden_size = 32
epochs = 2
selection = "best"
weight_drop = 0.2
optimizer = "nt_asgd"
learning_rate = 1.0
lasso_strength = 1e-4
[[grids]]
[grids.axes]
seed = [0, 1]
[[grids]]
[grids.base]
lasso = "subgradient"
[[grids]]
[grids.base]
lasso = "subgradient"
target_sparsity = 0.8
prune_end = 0.5
prune_every = 2
[grids.axes]
schedule = ["linear", "pre"]
path = ["dense", "auto"]
"""


@pytest.mark.examples
@pytest.mark.slow(30)
@pytest.mark.timeout(900)
def test_a_real_run_fills_the_table(tmp_path: Path, blank_pictures: None) -> None:
    """From the sweep file over training on both paths to the table, the figures and the report, nothing made up."""
    file = tmp_path / f"{made_awd.PAPER}.toml"
    file.write_text(SWEEP)
    command = [sys.executable, "-m", "bench", "run", str(file), "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    sweeps = read_sweeps(True, tmp_path)
    assert sweeps.names == [made_awd.PAPER] and len(sweeps.by_role["paper"].cells) == 7
    ours = awd_tables.beside_table(sweeps).set_index("line")["ours, slides' recipe, small version"]
    assert "(2 seeds)" in ours[DENSE.name] and "(1 seed), block 16, ρ 0." in ours[GRADUAL.name]
    assert "ρ 0." in ours[PRE.name] and ours[SMALLER.name] == "not run"
    bought = awd_tables.buys_table(sweeps).set_index("line").loc[GRADUAL.name].iloc[0]
    assert float(bought["training, predicted"].rstrip("×")) > 1.0
    for column in ("training, LSTM layers measured", "inference, LSTM layers", "inference, whole"):
        assert "×" in bought[column], column
    assert [pair.verdict for pair in order(sweeps.by_role["paper"])] == ["undecided"] * 3
    written = [path.name for path in write_figures(tmp_path / made_awd.PAPER, tmp_path / "drawn")]
    assert {"perplexity.png", "norm_maps.png", "table.md", "awd.md"} <= set(written)
    assert "AWD-LSTM beside the slides, small version" in write_report(tmp_path / made_awd.PAPER).read_text("utf-8")
