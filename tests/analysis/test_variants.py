"""Training runs side by side: names, replicates over seeds, and costs, against numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import made
import pandas as pd
import pytest

from analysis import findings
from analysis import runs as variants
from analysis.awd import published
from analysis.figures.training import curves_figure, integral_figure
from analysis.runs import counted_once, runs, without_path
from analysis.tables import main_table
from bench.cells import TrainCell

LINEAR = {"lasso": "subgradient", "schedule": "linear", "target_sparsity": 0.8}
MLP = {"model": "mlp", "dataset": "digits"}
SCALED = {**MLP, "batch_norm": True, "scale_penalty": 0.003, "scale_threshold": 0.1}
PRE = {"lasso": "subgradient", "schedule": "pre", "target_sparsity": 0.8}


def frame(*runs: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row for run in runs for row in run])


def run(
    ppl: float, seed: int = 0, rhos: tuple[float, ...] = (0.0, 0.0), seconds: float = 10.0, **settings: Any
) -> list[dict[str, Any]]:
    return made.run_rows(TrainCell(seed=seed, **settings), ppl, rhos, seconds)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "dense"),
        ({"schedule": "linear", "target_sparsity": 0.0}, "dense"),
        ({"lasso": "hinge"}, "block lasso"),
        (LINEAR, "block lasso + gradual (linear)"),
        (LINEAR | {"schedule": "cubic", "lasso": "none"}, "gradual (cubic)"),
        (LINEAR | {"criterion": "random"}, "block lasso + gradual (linear, random)"),
        (LINEAR | {"initial_sparsity": 0.25}, "block lasso + gradual (linear from 0.25)"),
        (LINEAR | {"allocation": "global"}, "block lasso + gradual (linear), all matrices in one order"),
        (LINEAR | {"schedule": "one_shot"}, "block lasso + one-shot"),
        (LINEAR | {"allocation": "erk"}, "block lasso + gradual (linear), ERK"),
        (LINEAR | {"allocation": "erk", "path": "auto"}, "block lasso + gradual (linear), ERK, auto path"),
        ({"schedule": "linear", "threshold": 0.5, "criterion": "max"}, "gradual (linear, max, threshold 0.5)"),
        ({"schedule": "one_shot", "threshold": 2.0}, "one-shot, threshold 2"),
        ({"schedule": "iterative", "target_sparsity": 0.8, "stop_rise": 0.05}, "iterative, stopping at +5 %"),
        ({"schedule": "iterative", "target_sparsity": 0.8, "rewind": "weights"}, "iterative, rewound"),
        ({"schedule": "iterative", "threshold": 0.5, "criterion": "max"}, "iterative, max, threshold 0.5"),
        (PRE, "block lasso + random pre-pruning"),
        (PRE | {"criterion": "random"}, "block lasso + random pre-pruning"),
        (PRE | {"criterion": "l1"}, "block lasso + random pre-pruning"),
        (PRE | {"regrow": "rigl"}, "block lasso + random pre-pruning, RigL"),
        (PRE | {"scaled_start": True}, "block lasso + random pre-pruning, scaled start"),
        (SCALED, "batch-norm scale penalty 0.003 + scales under 0.1"),
        ({**MLP, "batch_norm": True, "scale_penalty": 0.5}, "batch-norm scale penalty 0.5"),
    ],
)
def test_variant_names(settings: dict[str, Any], name: str) -> None:
    assert variants.variant_name(TrainCell(**settings).model_dump()) == name


def test_switches_are_told_by_their_names_and_scales_are_nothing_of_a_dense_network() -> None:
    cells = [TrainCell(**MLP), TrainCell(**MLP, batch_norm=True), TrainCell(**SCALED)]
    rows = pd.DataFrame([cell.model_dump() for cell in cells])
    names = variants.variant_names(rows)
    assert names == ["dense", "dense, batch_norm", "batch-norm scale penalty 0.003 + scales under 0.1"]
    assert [variants.is_dense(name) for name in names] == [True, True, False]
    assert variants.wanted({"variant": names[2], "target_sparsity": 0.0}) == "by scales"
    assert variants.wanted({"variant": names[2], "target_sparsity": 0.9}) == "0.9"
    assert not variants.by_threshold(names[2]) and variants.without_target(names[2])
    found = pd.DataFrame({"variant": [*names, "batch-norm scale penalty 0.5"], "target_sparsity": 0.0})
    assert variants.is_pruned(found).tolist() == [False, False, True, False]


def test_the_slides_variants_are_named_as_ours() -> None:
    cells = [TrainCell(), TrainCell(lasso="proximal"), TrainCell(**LINEAR), TrainCell(**PRE)]
    assert [variants.variant_name(cell.model_dump()) for cell in cells] == published.SLIDES["variant"].tolist()


def test_only_what_tells_runs_apart_is_added_to_their_names() -> None:
    cells = [TrainCell(), TrainCell(hidden_size=64), TrainCell(**LINEAR), TrainCell(**LINEAR | {"block_size": 8})]
    names = variants.variant_names(pd.DataFrame([cell.model_dump() for cell in cells]))
    assert names == ["dense, hidden_size 128", "dense, hidden_size 64", *["block lasso + gradual (linear)"] * 2]
    assert variants.is_dense(names[1]) and not variants.is_dense(names[2])


def test_pre_pruning_keeps_one_name_whatever_its_criterion_says_and_forms_of_lasso_are_told_apart() -> None:
    cells = [TrainCell(**PRE), TrainCell(**PRE | {"criterion": "random", "seed": 1}), TrainCell(lasso="proximal")]
    names = variants.variant_names(pd.DataFrame([cell.model_dump() for cell in cells]))
    assert names == [*["block lasso (subgradient) + random pre-pruning"] * 2, "block lasso (proximal)"]


def test_only_the_last_epoch_of_finished_runs_is_selected() -> None:
    done, short, bad = run(100.0), run(90.0, seed=1)[:1], run(80.0, seed=2)
    bad[0] = bad[0] | {"status": "diverged", "reason": made.DIVERGED}
    table = frame(done, short, bad, [made.diverged_row()])
    final = variants.final_epochs(table)
    assert final[["epoch", "test_ppl"]].to_numpy().tolist() == [[2, 100.0]]
    assert variants.failed_runs(table).to_numpy().tolist() == [["diverged", made.DIVERGED, 2]]


def test_the_reported_epoch_stands_for_the_last_one() -> None:
    rows = run(100.0)
    rows[-1] |= {"reported_epoch": 1, "reported_val_ppl": 95.0, "reported_test_ppl": 90.0}
    final = variants.final_epochs(frame(rows, run(80.0, seed=1)))
    assert final["test_ppl"].tolist() == [90.0, 80.0] and final["val_ppl"].tolist() == [95.0, pytest.approx(88.0)]


def test_mean_and_interval_over_three_seeds() -> None:
    table = frame(run(100.0, 0), run(104.0, 1), run(108.0, 2))
    [found] = variants.replicates(variants.runs(table)).to_dict("records")
    # logarithms less that of 100: 0, 0.0392207, 0.0769610; standard deviation 0.0384829, t(2, 97.5 %) = 4.302653:
    # half width 4.302653 x 0.0384829 / sqrt(3) = 0.0955968
    assert found["test_ppl"].value == pytest.approx(104.0)
    assert math.log(found["test_ppl"].high / 104.0) == pytest.approx(0.0955968, abs=1e-6)
    assert math.log(104.0 / found["test_ppl"].low) == pytest.approx(0.0955968, abs=1e-6)
    assert (found["seeds"], found["test_ppl"].n) == (3, 3)
    assert pd.isna(found["block_size"])


def test_one_seed_has_no_interval() -> None:
    [found] = variants.replicates(variants.runs(frame(run(100.0)))).to_dict("records")
    assert found["test_ppl"].value == 100.0 and math.isnan(found["test_ppl"].low) and math.isnan(found["test_ppl"].high)
    assert found["ppl_ratio"].n == 0  # dense has no cost against itself


def test_the_cost_pairs_each_run_with_the_dense_run_of_its_seed() -> None:
    dense = [run(100.0, 0), run(200.0, 1)]
    sparse = [run(ppl, seed, (0.8, 0.8), **LINEAR) for seed, ppl in enumerate((110.0, 220.0, 999.0))]
    final = variants.runs(frame(*dense, *sparse))
    found = variants.replicates(final).set_index("variant").loc["block lasso + gradual (linear)"]
    # +10 % in both seeds, so the interval is a point; seed 2 has no dense partner and does not count
    assert found["ppl_ratio"][:4] == pytest.approx((1.1, 1.1, 1.1, 2)) and found["ppl_ratio"].verdict == "higher"
    assert found["ppl_difference"].value == pytest.approx(15.0)
    assert (found["ppl_difference"].n, found["test_ppl"].n) == (2, 3)


def test_ratios_are_averaged_geometrically() -> None:
    sparse = [run(ppl, seed, (0.8, 0.8), **LINEAR) for seed, ppl in enumerate((100.0, 121.0))]
    final = variants.runs(frame(run(100.0, 0), run(100.0, 1), *sparse))
    found = variants.replicates(final).set_index("variant").loc["block lasso + gradual (linear)"]
    # logarithms 0 and ln 1.21: mean ln 1.1; of two settings the residual is that of their differences,
    # half width t(1, 97.5 %) x sd / sqrt(2) = 12.706205 x ln(1.21) / 2
    assert found["ppl_ratio"].value == pytest.approx(1.1)
    assert found["ppl_ratio"].high == pytest.approx(1.1 * math.exp(12.706205 * math.log(1.21) / 2))


def test_a_setting_with_one_seed_has_the_scatter_of_the_others() -> None:
    others = [run(ppl, seed, block_size=8, **LINEAR) for seed, ppl in enumerate((110.0, 112.0))]
    single = run(120.0, rhos=(0.8, 0.8), **LINEAR)
    final = variants.runs(frame(run(100.0, 0), run(100.0, 1), *others, single))
    found = variants.replicates(final).set_index("block_size").loc[16]
    # of dense and block 8 the residual has one degree: variance ln(112 / 110)² / 4; a pair has twice that
    half = 12.706205 * math.log(112 / 110) / math.sqrt(2)
    assert found["ppl_ratio"][:4] == pytest.approx((1.2, 1.2 * math.exp(-half), 1.2 * math.exp(half), 1))


def test_a_run_made_again_on_another_path_is_no_replicate() -> None:
    masked = [run(ppl, seed, **LINEAR) for seed, ppl in enumerate((110.0, 112.0))]
    again = [run(ppl, seed, path="auto", **LINEAR) for seed, ppl in enumerate((110.0, 112.0))]
    dense = [run(100.0, 0), run(100.0, 1)]
    both, one = (variants.pooled(variants.runs(frame(*dense, *runs))) for runs in ([*masked, *again], masked))
    assert both == one and one.residual.dof == 1.0


def test_what_did_not_train_is_not_pooled_and_has_no_interval() -> None:
    dead = [run(ppl, seed, **PRE) for seed, ppl in enumerate((900.0, 1100.0))]
    alive = [run(ppl, seed, **LINEAR) for seed, ppl in enumerate((110.0, 112.0))]
    final = variants.runs(frame(run(100.0, 0), run(101.0, 1), *alive, *dead))
    final = final.assign(trained=final["schedule"] != "pre")
    found = variants.replicates(final).set_index("variant")
    assert variants.pooled(final) == variants.pooled(final[final["trained"]])
    for name in ("ppl_ratio", "test_ppl"):
        said = found[name].map(lambda one: (one.n, math.isnan(one.low)))
        assert said["block lasso + random pre-pruning"] == (2, True)
        assert said["block lasso + gradual (linear)"] == (2, False)
    assert found["ppl_ratio"]["block lasso + gradual (linear)"].p == pytest.approx(
        variants.replicates(final[final["trained"]])["ppl_ratio"].iloc[-1].p
    )


def test_where_dense_did_not_train_no_cost_has_an_interval() -> None:
    table = [run(ppl, seed) for seed, ppl in enumerate((900.0, 950.0))]
    pruned = [run(ppl, seed, **LINEAR) for seed, ppl in enumerate((110.0, 112.0))]
    final = variants.runs(frame(*table, *pruned))
    assert final["dense_trained"].all()
    final = final.assign(dense_trained=[name == "dense" for name in final["variant"]])
    found = variants.replicates(final).set_index("variant")["ppl_ratio"]["block lasso + gradual (linear)"]
    assert found.n == 2 and math.isnan(found.low) and found.verdict == ""


@pytest.mark.parametrize("other", [{"learning_rate": 0.01}, {"hidden_size": 64}, {"dropout": 0.1}])
def test_a_dense_run_of_another_model_is_no_partner(other: dict[str, Any]) -> None:
    final = variants.runs(frame(run(100.0, **other), run(120.0, rhos=(0.8, 0.8), **LINEAR)))
    assert final["ppl_ratio"].isna().all()


def test_training_integral_and_measured_training_speedup() -> None:
    dense = run(100.0, rhos=(0.0,) * 4, seconds=10.0)
    sparse = run(110.0, rhos=(0.0, 0.4, 0.8, 0.8), seconds=12.5, **LINEAR)
    final = variants.runs(frame(dense, sparse)).set_index("variant").loc["block lasso + gradual (linear)"]
    assert final["predicted_training"] == pytest.approx(2.0)  # 4 epochs against 4 - 2.0
    assert final["measured_training"] == pytest.approx(0.8)  # 40 s against 50 s
    other = [row | {"source_hash": "another"} for row in sparse]  # seconds of other sources are not divided
    final = variants.runs(frame(dense, other)).set_index("variant").loc["block lasso + gradual (linear)"]
    assert math.isnan(final["measured_training"]) and final["ppl_ratio"] == pytest.approx(1.1)


def test_predictions_follow_the_blocks_that_are_exactly_zero() -> None:
    [row] = run(100.0, rhos=(0.5,), **LINEAR)
    final = variants.runs(pd.DataFrame([row | {"zero_block_share": 0.75}]))
    assert final["stored_sparsity"].tolist() == [0.75]
    assert final["predicted_speedup"].tolist() == [4.0]


@pytest.mark.parametrize(("scope", "ceiling"), [("all", 4600 / 1720), ("weight_hh", 4600 / 3000)])
def test_amdahl_ceiling_of_a_run(scope: str, ceiling: float) -> None:
    # per token: weight_ih 4 (20 x 10 + 10 x 20) = 1600, weight_hh 4 (400 + 100) = 2000, decoder 10 x 100 = 1000
    row = {
        "embedding_size": 10,
        "hidden_size": 20,
        "num_layers": 2,
        "vocabulary": 100,
        "stored_sparsity": 0.8,
        "decoder": "tied",
        "decoder_multiply_adds": None,
    }
    assert variants.amdahl(row | {"scope": scope}) == pytest.approx(ceiling)


def test_the_sparsity_and_block_size_that_most_variants_share() -> None:
    pruned = [run(100.0, rhos=(rho, rho), **LINEAR | {"target_sparsity": rho, "block_size": 8}) for rho in (0.8, 0.9)]
    pre = [run(100.0, rhos=(0.8, 0.8), **PRE | {"block_size": size}) for size in (8, 32)]
    found = variants.replicates(variants.runs(frame(run(90.0), *pruned, *pre)))
    assert variants.common_sparsity(found) == 0.8
    assert variants.common_block_size(found, 0.8) == 8
    dense = variants.replicates(variants.runs(frame(run(90.0))))
    assert variants.common_sparsity(dense) is None and variants.common_block_size(dense, None) is None


def test_what_keeps_no_block_stands_for_the_others_only_where_there_is_nothing_else() -> None:
    kept = run(130.0, rhos=(0.5, 0.5), **LINEAR | {"target_sparsity": 0.5})
    empty = [run(120.0, rhos=(1.0, 1.0), **LINEAR | {"target_sparsity": 1.0, "seed": seed}) for seed in (0, 1)]
    coarse = run(110.0, rhos=(1.0, 1.0), **LINEAR | {"target_sparsity": 0.5, "block_size": 32})
    found = variants.replicates(variants.runs(frame(run(90.0), kept, *empty, coarse)))
    assert variants.common_sparsity(found) == 0.5, "whatever the seeds"
    best = variants.best_replicated(found[found["target_sparsity"] == 0.5].to_dict("records"))
    assert best["block_size"] == 16, "whatever the perplexity"
    nothing = variants.replicates(variants.runs(frame(run(90.0), *empty)))
    assert variants.common_sparsity(nothing) == 1.0


def test_dense_comes_first_and_no_run_gives_no_row() -> None:
    found = variants.replicates(variants.runs(made.train_frame(seeds=1)))
    assert found["variant"].iloc[0] == "dense" and found["variant"].iloc[1] == "block lasso"
    nothing = variants.runs(pd.DataFrame([made.diverged_row()]))
    assert nothing.empty and variants.replicates(nothing).empty


def test_the_path_is_part_of_the_name_and_its_masked_run_shares_the_rest() -> None:
    found = runs(made.sparse_frame(1))
    names = set(found["variant"])
    assert names == {"dense", "gradual (cubic)", "gradual (cubic), auto path"}
    assert {without_path(name) for name in names} == {"dense", "gradual (cubic)"}
    # both are compared with the dense run: 40 s over 42 s, and over 32 s
    assert sorted(found["measured_training"].dropna().round(3).unique()) == [0.952, 1.25]


def test_a_network_pruned_by_a_threshold_is_neither_dense_nor_gone() -> None:
    """It has no target sparsity; dense runs have none either."""
    held = {"schedule": "linear", "criterion": "max", "epochs": 2}
    every = [
        each
        for seed in range(2)
        for each in (
            run(100.0 + seed, seed),
            run(110.0 + seed, seed, (0.2, 0.4), threshold=0.5, **held),
            run(130.0 + seed, seed, (0.4, 0.7), threshold=0.8, **held),
        )
    ]
    part = made.part(frame(*every))
    low, high = "gradual (linear, max, threshold 0.5)", "gradual (linear, max, threshold 0.8)"
    found = part.replicates.set_index("variant")
    assert found.index.tolist() == ["dense", low, high] and found["seeds"].tolist() == [2, 2, 2]
    assert found["stored_sparsity"].tolist() == pytest.approx([0.0, 0.4, 0.7])
    assert found.loc[low, "ppl_ratio"].value == pytest.approx(1.1, abs=0.01) and pd.notna(found.loc[low, "block_size"])
    assert variants.is_pruned(part.replicates).tolist() == [False, True, True]
    gemm = made.part(made.gemm_frame())
    table = main_table(part, gemm).set_index("variant")
    assert table.loc[[low, high], "target sparsity"].tolist() == ["by threshold"] * 2
    assert table.loc[low, "predicted product speedup"] == "1.67×" and table.loc["dense", "target sparsity"] == "–"
    told = findings.findings(part)
    assert "at the 40 % sparsity that its threshold gives, the best pruned variant, gradual (linear, max" in str(told)
    words = [text.get_text() for ax in integral_figure(part).axes for text in ax.get_yticklabels()]
    assert any(low in each and "ρ by threshold" in each for each in words)
    assert len(curves_figure(part).axes[0].lines) >= 3


def test_without_a_threshold_nothing_is_named() -> None:
    row = TrainCell(**LINEAR).model_dump()
    del row["threshold"]
    assert variants.variant_name(row) == "block lasso + gradual (linear)" and variants.prunes(row)
    assert variants.threshold(row | {"threshold": math.nan}) == 0.0


def test_a_pruning_that_stopped_early_is_not_said_to_have_reached_its_target() -> None:
    rounds = {"schedule": "iterative", "target_sparsity": 0.8, "stop_rise": 0.05}
    part = made.part(frame(run(100.0), run(110.0, rhos=(0.2, 0.5), **rounds)))
    assert "iterative, stopping at +5 % at block 16 (which stopped at 50 %)" in str(findings.findings(part))


def test_a_run_made_again_on_another_path_or_compiled_is_counted_once_as_it_is_written() -> None:
    made_again = pd.DataFrame(
        {
            "path": ["sparse", "dense", "dense", "sparse"],
            "compile": ["none", "default", "none", "none"],
            "seed": [0, 0, 0, 1],
        },
        index=[7, 3, 9, 4],
    )
    assert counted_once(made_again).index.tolist() == [9, 4]
    assert counted_once(made_again.drop(columns="compile")).index.tolist() == [3, 4], "of an older table"
