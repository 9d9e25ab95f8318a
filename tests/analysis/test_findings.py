"""The three sentences: what they quote, what they leave out, and what they say where nothing was measured."""

from __future__ import annotations

from typing import Any

import made
import pandas as pd
import pytest

from analysis.findings import findings
from analysis.load import TABLES
from analysis.stats import times
from analysis.studying.realised import realised
from bench.cells import GemmCell, LstmCell, TrainCell

LINEAR = {"lasso": "subgradient", "schedule": "linear", "target_sparsity": 0.8}


def point(speedup: float, sparsity: float = 0.9, noisy: bool = False, **settings: Any) -> dict[str, Any]:
    return made.ratio_row([speedup] * 3, sparsity, settings, noisy=noisy)


def said(**tables: pd.DataFrame) -> list[str]:
    """The findings of a sweep, which are about the main part of each table."""
    return findings(*map(made.study(**tables).main, TABLES))


def speed(*rows: dict[str, Any]) -> str:
    return said(gemm=pd.DataFrame(rows))[0]


def cost(*runs: list[dict[str, Any]]) -> str:
    return said(train=pd.DataFrame([row for run in runs for row in run]))[1]


def limits(**tables: pd.DataFrame) -> str:
    return said(**tables)[2]


def test_the_fastest_product_is_quoted_beside_theory() -> None:
    words = speed(point(4.0), point(2.0, 0.5), point(1.0, backend="dense"))
    assert "the fastest block-sparse product is native at block 16 and sparsity 0.90, W 1024 × 1024, n = 32" in words
    assert "at 4.00× [4.00, 4.00] of dense, where 1/(1−ρ) promises 10.00×" in words
    assert words.endswith("native reaches 70% of theory in the median of 2 settings.")  # between 4 / 10 and 2 / 2
    assert "noisy" not in words


def test_an_op_other_than_dsd_is_named() -> None:
    assert "W 1024 × 1024, n = 32, sdd, at 4.00×" in speed(point(2.0, 0.5, op="sdd"), point(4.0, op="sdd"))


def test_a_noisy_timing_is_not_quoted_while_a_quiet_one_exists() -> None:
    words = speed(point(85.74, noisy=True, block_size=8), point(3.0))
    assert "85.74" not in words and "noisy" not in words
    assert "the fastest quietly timed block-sparse product is native at block 16" in words
    assert "at 3.00× [3.00, 3.00] of dense" in words
    assert words.endswith("native reaches 30% of theory in the median of 1 quietly timed setting.")


def test_where_every_timing_was_noisy_the_sentence_says_so_twice() -> None:
    words = speed(point(85.74, noisy=True, block_size=8), point(3.0, noisy=True))
    assert "at 85.74× [85.74, 85.74] of dense (noisy)" in words
    assert words.endswith("of theory in the median of 2 settings (noisy).")


def test_a_noisy_win_does_not_turn_a_quiet_defeat_into_one_for_all() -> None:
    words = speed(point(2.0, noisy=True, block_size=8), point(0.7))
    assert "no quietly timed block-sparse product beat dense; the nearest is native at block 16" in words


def test_a_rival_that_is_quiet_leaves_ours_noisy() -> None:
    words = speed(point(9.0, noisy=True), point(2.0, backend="torch_bsr"))
    assert "the fastest quietly timed block-sparse product is torch_bsr" in words
    assert words.endswith("native reaches 90% of theory in the median of 1 setting (noisy).")


def test_without_a_compiler_the_reason_is_given() -> None:
    missing = [made.row(GemmCell(target_sparsity=rho), "unsupported", made.NO_COMPILER) for rho in (0.5, 0.9)]
    assert f"native, our own, was not timed: unsupported ({made.NO_COMPILER})." in speed(
        *missing, point(2.0, backend="torch_bsr")
    )
    assert speed(*missing) == (
        f"Speed: no block-sparse product was timed in 2 product cells; most often: unsupported ({made.NO_COMPILER})."
    )
    only_dense = speed(point(1.0, backend="dense"))
    assert only_dense.endswith("in 1 product cell; most often: only the dense baseline was timed.")


def test_the_cost_of_the_best_pruned_variant_by_validation_perplexity() -> None:
    dense = [made.run_rows(TrainCell(seed=seed), ppl, [0.0, 0.0]) for seed, ppl in enumerate((100.0, 200.0))]
    sparse = [made.run_rows(TrainCell(seed=seed, **LINEAR), ppl, [0.8, 0.8]) for seed, ppl in enumerate((110.0, 220.0))]
    worse = made.run_rows(TrainCell(**LINEAR | {"schedule": "pre"}), 90.0, [0.8, 0.8], val_ppl=500.0)
    words = cost(*dense, *sparse, worse)
    assert "at 80 % sparsity the best pruned variant, block lasso + gradual (linear) at block 16" in words
    assert (
        "test perplexity 165.0 against 150.0 dense, a cost of +10.0 % [+10.0, +10.0] (2 seeds), higher (95 % of t, the"
        in words
    )


def test_one_seed_and_no_partner_are_told() -> None:
    dense, sparse = made.run_rows(TrainCell(), 100.0, [0.0]), made.run_rows(TrainCell(**LINEAR), 112.0, [0.8])
    assert "+12.0 % (one seed, so without an interval)" in cost(dense, sparse)
    assert "no dense run with its settings and seed has finished" in cost(sparse)
    assert "no pruned run has finished" in cost(dense)
    assert f"none of 1 training run finished; most often: diverged ({made.DIVERGED})" in cost([made.diverged_row()])


def test_masks_and_gaps_are_limits() -> None:
    dense = made.run_rows(TrainCell(), 100.0, [0.0] * 4, seconds=10.0)
    sparse = made.run_rows(TrainCell(**LINEAR), 110.0, [0.0, 0.4, 0.8, 0.8], seconds=12.5)
    train = pd.DataFrame([*dense, *sparse, made.diverged_row()])
    gemm = pd.DataFrame([point(2.0), point(2.0, 0.5, noisy=True)])
    words = limits(train=train, gemm=gemm)
    assert "1 of 3 training runs gave no result, most often diverged" in words
    assert "1 of 2 timings were noisy" in words
    assert (
        "masks alone made training 0.80× as fast as dense (one run), which is rough: the runs were one after another"
        in words
    )
    assert "would allow 2.00× in the pruned products" in words


def test_what_was_not_run_is_said_to_be() -> None:
    nothing = [
        "Speed: this sweep timed no products.",
        "Accuracy: this sweep trained no network.",
        "Limits: nothing was measured; what masks alone buy in training time was not measured.",
    ]
    assert said() == findings() == nothing


def test_parts_that_cannot_be_compared_are_kept_apart() -> None:
    words = speed(point(2.0), point(3.0, 0.5), point(30.0, cache="cold"), point(40.0, threads=2))
    assert "Speed (threads 1, cache hot): " in words and "at 3.00×" in words and "median of 2 settings" in words


@pytest.mark.parametrize(("seconds", "cause"), [
    ((9.0, 10.2), "because the dense path multiplies masked weights at dense speed"),
    ((7.0, 7.4), "which is rough: the runs were one after another, on a machine whose load changes"),
    ((13.0, 14.0), "which is rough: the runs were one after another, on a machine whose load changes"),
])  # fmt: skip
def test_a_cause_is_given_only_for_what_it_explains(seconds: tuple[float, float], cause: str) -> None:
    rows = [row for seed in (0, 1) for row in made.run_rows(TrainCell(seed=seed), 100.0, [0.0] * 4, seconds=10.0)]
    for seed, each in enumerate(seconds):
        rows += made.run_rows(TrainCell(seed=seed, **LINEAR), 110.0, [0.8] * 4, seconds=each)
    words = limits(train=pd.DataFrame(rows))
    assert f"as fast as dense (median of 2 runs), {cause}; skipping" in words


def test_the_best_variant_is_said_to_be_chosen_by_seeds_and_validation() -> None:
    dense = [made.run_rows(TrainCell(seed=seed), 100.0, [0.0, 0.0]) for seed in (0, 1)]
    two = [made.run_rows(TrainCell(seed=seed, **LINEAR), 110.0, [0.8, 0.8]) for seed in (0, 1)]
    alone = made.run_rows(TrainCell(block_size=8, **LINEAR), 101.0, [0.8, 0.8])
    assert "block 16 (the only one), has test perplexity 110.0" in cost(*dense, *two)
    rule = "the one with the lowest validation perplexity"
    assert f"block 16 ({rule} of those run with the most seeds, 2), has test" in cost(*dense, *two, alone)
    assert f"block 8 ({rule}), has test perplexity 101.0" in cost(dense[0], two[0], alone)


def test_layers_timed_in_training_are_the_speed_of_a_sweep_without_products() -> None:
    train = made.sparse_frame(1)
    words = said(train=train)[0]
    predicted, measured = (realised(train)[name].iloc[0] for name in ("predicted", "measured"))
    assert words.startswith(
        "Speed: this sweep timed no products alone; in training the LSTM layers were, against the dense path"
    )
    assert f"{times(measured)} with gradual (cubic), auto path at block 16 and sparsity 0.8" in words
    assert f"(theory: {predicted:.2f}×)" in words and "at block 32" in words
    assert said(train=made.train_frame(1))[0] == "Speed: this sweep timed no products."


def test_the_sentence_names_the_part_it_speaks_of() -> None:
    types = [point(4.0, dtype=dtype, op=op) for dtype in ("bfloat16", "float32") for op in ("dsd", "sdd")]
    assert speed(*types).startswith("Speed (dtype float32, op dsd): the fastest block-sparse product is native")
    assert speed(*types, point(5.0, 0.5, dtype="float32", op="sdd")).startswith("Speed (dtype float32, op sdd): the")
    failed = made.row(GemmCell(dtype="float16"), "unsupported", made.NO_COMPILER)
    assert speed(failed, failed | {"dtype": "float32"}).startswith(
        "Speed (dtype float32): no block-sparse product was timed"
    )
    layers = [made.layer_row([3.5] * 3, settings={"passes": passes}) for passes in ("forward", "forward_backward")]
    assert said(lstm=pd.DataFrame(layers))[0].startswith("Layer (passes forward_backward): the fastest")
    runs = [[*made.run_rows(TrainCell(), 100.0, [0.0]), *made.run_rows(TrainCell(**LINEAR), 112.0, [0.8])]] * 2
    threads = [one | {"threads": number} for rows, number in zip(runs, (1, 2), strict=True) for one in rows]
    assert said(train=pd.DataFrame(threads))[1].startswith("Accuracy (threads 1): at 80 % sparsity")


def test_layers_have_a_sentence_of_their_own() -> None:
    over_loop = made.layer_row([8.0] * 3, settings={"baseline": "loop_lstm"})
    layers = pd.DataFrame([made.layer_row([3.5] * 3), made.layer_row([9.0] * 3, 0.9, noisy=True), over_loop])
    alone, _, limits = said(lstm=layers)
    assert alone.startswith(
        "Layer (baseline torch_lstm): the fastest quietly timed block-sparse LSTM layer is native at block 16 "
        "and sparsity 0.80"
    )
    assert "LSTM 512 → 512, 35 steps, batch 20, forward + backward, at 3.50× [3.50, 3.50] of torch_lstm" in alone
    assert alone.endswith("where theory promises 5.00×.") and "1 of 2 timings were noisy" in limits
    speed, *_, last = said(gemm=pd.DataFrame([point(4.0)]), lstm=layers)
    assert speed.startswith("Speed: ") and last == alone
    failed = pd.DataFrame([made.row(LstmCell(), "unsupported", made.NO_COMPILER)])
    assert said(lstm=failed)[0].endswith(f"most often: unsupported ({made.NO_COMPILER}).")


def test_the_sparse_path_is_not_counted_as_masks_alone() -> None:
    words = limits(train=made.sparse_frame(1))
    assert (
        "masks alone made training 0.95× [0.95, 0.95] as fast as dense (median of 2 runs), "
        "which is rough: the runs were" in words
    )
    assert words.endswith(
        "with the sparse path training was 1.25× [1.25, 1.25] as fast as dense (median of 2 runs, not interleaved)."
    )


def test_the_headline_is_about_the_sparsity_and_variant_with_the_most_seeds() -> None:
    dense = [made.run_rows(TrainCell(seed=seed), 100.0, [0.0, 0.0]) for seed in (0, 1, 2)]
    three = [made.run_rows(TrainCell(seed=seed, **LINEAR), 110.0, [0.8, 0.8]) for seed in (0, 1, 2)]
    alone = made.run_rows(TrainCell(**LINEAR | {"schedule": "cubic"}), 101.0, [0.8, 0.8])
    sparser = [
        made.run_rows(TrainCell(**LINEAR | {"target_sparsity": 0.9, "schedule": one}), 120.0, [0.9, 0.9])
        for one in ("linear", "cubic", "pre", "one_shot")
    ]
    words = cost(*dense, *three, alone, *sparser)
    assert "at 80 % sparsity the best pruned variant, block lasso + gradual (linear) at block 16" in words
    assert "(3 seeds)" in words
