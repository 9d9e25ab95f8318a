"""The AWD-LSTM sweeps: their cells are the issue's, and what they call equal in size is."""

from __future__ import annotations

from itertools import pairwise

import pytest

from bench import sweep
from bench.cells import TrainCell

TOO_NARROW = {"wikitext2_best_small": 0.95}  # its control would have 8 units, which is no network to compare with
NAMES = [f"wikitext2_{name}{size}" for name in ("paper", "best", "wide") for size in ("", "_small")]


def cells(name: str) -> list[TrainCell]:
    found = [cell for cell in sweep.load(name).cells if isinstance(cell, TrainCell)]
    assert len(found) == len(sweep.load(name).cells)
    return found


def kept_weights(cell: TrainCell) -> float:
    """LSTM weights that are kept at the end, biases aside."""
    widths = [cell.embedding_size, *[cell.hidden_size] * (cell.num_layers - 1), cell.embedding_size]
    return (1 - cell.target_sparsity) * sum(4 * out * (into + out) for into, out in pairwise(widths))


@pytest.mark.parametrize("name", NAMES)
def test_every_sparsity_has_its_dense_controls(name: str):
    """Of the same size, and of as many kept weights, within 5 %."""
    dense = [cell for cell in cells(name) if not cell.prunes and cell.lasso == "none"]
    for cell in cells(name):
        assert (
            cell.model == "awd_lstm" and cell.dataset == "wikitext2" and cell.selection == "best" and cell.weight_drop
        )
        assert any((other.hidden_size, other.seed) == (cell.hidden_size, cell.seed) for other in dense) or cell.seed
        near = min(abs(kept_weights(other) / kept_weights(cell) - 1) for other in dense)
        assert (near < 0.05) != (name in TOO_NARROW and cell.target_sparsity == TOO_NARROW[name]), (
            cell.settings(),
            near,
        )


@pytest.mark.parametrize("name", ["wikitext2_wide", "wikitext2_wide_small"])
def test_a_wide_model_keeps_no_more_weights_than_the_dense_one(name: str):
    found = cells(name)
    dense = next(cell for cell in found if not cell.prunes)
    wide = [cell for cell in found if cell.prunes]
    assert {cell.target_sparsity for cell in wide} == {0.8, 0.9}
    assert all(0.96 <= kept_weights(cell) / kept_weights(dense) <= 1 for cell in wide)


@pytest.mark.parametrize("size", ["", "_small"])
def test_the_cells_of_the_issue_are_there(size: str):
    paper, best = cells(f"wikitext2_paper{size}"), cells(f"wikitext2_best{size}")
    rows = {(cell.lasso, cell.schedule, cell.seed) for cell in paper if cell.target_sparsity in (0.0, 0.8)}
    assert rows == {
        (lasso, schedule, seed)
        for lasso, schedule in [
            ("none", "none"),
            ("subgradient", "none"),
            ("subgradient", "linear"),
            ("subgradient", "pre"),
        ]
        for seed in (0, 1, 2)
    }
    pruned = [cell for cell in best if cell.prunes and cell.lasso == "proximal"]
    assert all(cell.schedule == "cubic" for cell in pruned)
    assert {cell.target_sparsity for cell in pruned} == {0.5, 0.8, 0.9, 0.95}
    assert {cell.block_size for cell in pruned} == {8, 16, 32, 64}
    assert {cell.allocation for cell in pruned} == {"uniform", "erk"}
    assert {cell.seed for cell in pruned if cell.target_sparsity == 0.8} == {0, 1, 2}
    assert {cell.optimizer for cell in paper} == {"nt_asgd"} and {cell.lr_schedule for cell in best} == {"four_phases"}


def test_the_recipes_are_the_published_ones():
    paper, best = cells("wikitext2_paper")[0], cells("wikitext2_best")[0]
    assert (paper.learning_rate, paper.clip, paper.batch_size, paper.bptt) == (30.0, 0.25, 80, 70)
    assert (paper.bptt_halved, paper.bptt_jitter, paper.epochs) == (0.05, 5.0, 100) and paper.rate_by_length
    assert (paper.activation_penalty, paper.temporal_penalty) == (2.0, 1.0)
    assert (best.learning_rate, best.clip, best.batch_size, best.bptt) == (5e-3, 0.12, 100, 70)
    assert (best.beta1, best.beta1_dip, best.beta2, best.epochs) == (0.8, 0.1, 0.99, 90)
    for found in (best, cells("wikitext2_wide")[0]):
        # AR 3 on the output before its dropout: the dropped one's mean square is 1 / (1 - 0.4) of it
        assert found.activation_penalty / (1 - found.output_dropout) == pytest.approx(3.0)
        assert (found.temporal_penalty, found.bptt_halved, found.bptt_jitter) == (1.5, 0.05, 5.0)
    assert paper.weight_decay == best.weight_decay == 1.2e-6 and paper.weight_drop == best.weight_drop == 0.5
    assert paper.test_batch_size == best.test_batch_size == 1
