"""Training: rows, determinism, exact zeros after every step, divergence."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked import Forked
from rows import DIGITS, results, silent

from bench import train
from bench.cells import TrainCell
from bench.models.registry import MODELS
from bench.models.settings import models_of
from bench.pruning.lasso import block_norms
from bench.pruning.pruner import Pruner
from bench.pruning.schedules import SCHEDULES
from bench.schema import TRAIN
from bench.train import train_cell
from bench.training import examiner, tasks
from bench.training.optimizer import averaged_weights
from bench.training.paths import missing_kernel

pytestmark = pytest.mark.usefixtures("few_words")

ROOT = Path(__file__).parents[2]
TINY = {
    "train_tokens": 2000,
    "eval_tokens": 500,
    "embedding_size": 16,
    "hidden_size": 32,
    "block_size": 8,
    "batch_size": 10,
    "bptt": 20,
    "epochs": 2,
    "prune_every": 1,
    "learning_rate": 0.01,
    "threads": 1,
}
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 1.0, "weight_decay": 1e-4},
    "adam": {"optimizer": "adam", "weight_decay": 1e-2},
    "asgd": {"optimizer": "asgd", "learning_rate": 5.0, "weight_decay": 1e-4},
}
PRUNED = {"schedule": "linear", "target_sparsity": 0.8, "prune_end": 0.5}


def cell(**settings: object) -> TrainCell:
    return TrainCell(**{**TINY, **settings})


LASSOS = ("none", "subgradient", "hinge", "proximal")
IN_TURNS = [  # every two of them together
    (model, schedule, lasso)
    for first, model in enumerate(MODELS)
    for second, schedule in enumerate(SCHEDULES)
    for third, lasso in enumerate(LASSOS)
    if schedule == "linear" or (third - first - second) % len(LASSOS) < 2
]


def test_every_two_are_trained_together():
    names = {"model": list(MODELS), "schedule": list(SCHEDULES), "lasso": list(LASSOS)}
    for one, other in itertools.combinations(range(3), 2):
        every = itertools.product(*(list(names.values())[which] for which in (one, other)))
        assert {(turn[one], turn[other]) for turn in IN_TURNS} == set(every)


@pytest.mark.parametrize(("model", "schedule", "lasso"), IN_TURNS)
def test_a_few_steps_lower_the_loss(model: str, schedule: str, lasso: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "epoch_slice", lambda tokens, size, _epoch: tokens[:size])  # the same text twice
    of_data = {} if model in models_of("language") else {**DIGITS, "batch_size": 20}
    rows = train_cell(cell(**{**PRUNED, **of_data, "model": model, "schedule": schedule}, lasso=lasso), silent)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[2]["train_ppl"] < rows[1]["train_ppl"] < rows[0]["vocabulary"] / (1 if of_data else 4)
    assert rows[2]["sparsity"] == pytest.approx(0.0 if schedule == "none" else 0.8, abs=0.03)
    assert rows[2]["lasso_penalty"] > 0 or lasso == "none"


@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_a_budget_of_norms_is_kept(path: str):
    """By projection after each step; by the dual form's lambda in the end, which rows tell of each epoch."""
    settings = {**PRUNED, "path": path, "lasso_budget": 20.0, "lasso_scaled": False, "epochs": 4}
    free, projected = (
        train_cell(cell(**settings, lasso=lasso), silent)[-1]["block_norms"] for lasso in ("none", "projection")
    )
    sums = [sum(sum(each["norms"]) for each in norms) for norms in (free, projected)]
    assert sums[0] > 30.0 and 10.0 < sums[1] < 20.001  # pruning takes more
    rows = train_cell(cell(**settings, lasso="dual", lasso_strength=0.0, lasso_rate=1e-5), silent)
    multipliers = [row["lasso_multiplier"] for row in rows]
    assert multipliers[0] == 0.0 and multipliers[1] > 0.0 and rows[-1]["lasso_penalty"] > 0.0


def test_a_row_has_every_column_and_says_what_was_done():
    rows = train_cell(cell(**PRUNED, epochs=4), silent)
    columns = {"status", "reason", *(column.name for column in TRAIN)}
    assert all(set(row) == columns and row["status"] == "ok" for row in rows)
    assert [row["step"] for row in rows] == [0, 10, 20, 30, 40]
    assert [row["block_norms"] is not None for row in rows] == [True, False, True, False, True]
    assert rows[0]["train_ppl"] is None and rows[0]["val_ppl"] is None
    last = rows[-1]
    assert (last["train_tokens_seen"], last["eval_tokens_seen"]) == (1990, 490)
    assert last["prunable_parameters"] == 4 * (32 * 16 + 32 * 32 + 16 * 32 + 16 * 16)
    biases = 2 * 4 * (32 + 16)
    assert last["parameters"] == last["prunable_parameters"] + biases + last["vocabulary"] * (16 + 1)  # tied once
    assert last["scheduled_sparsity"] == 0.8 and last["mean_sparsity"] == last["sparsity"]
    assert rows[1]["mean_sparsity"] < rows[1]["sparsity"] < 0.8
    assert last["zero_block_share"] == last["sparsity"]
    json.dumps(rows)


def test_progress_is_told():
    news: list[dict] = []
    train_cell(cell(), news.append)
    assert {"epoch": 2, "epochs": 2, "step": 20, "steps": 20, "sparsity": 0.0}.items() <= news[-1].items()
    assert news[-1]["val_ppl"] > 1


@pytest.mark.parametrize(("epochs", "kept"), [(1, [0, 1]), (2, [0, 1, 2]), (5, [0, 2, 5])])
def test_block_norms_are_stored_at_the_first_middle_and_last_epoch(epochs: int, kept: list[int]):
    rows = train_cell(cell(epochs=epochs, train_tokens=400), silent)
    assert [row["epoch"] for row in rows if row["block_norms"] is not None] == kept


def test_block_norms_are_the_norms_of_the_weights(monkeypatch: pytest.MonkeyPatch):
    seen = []
    row_of = train.Run.row

    def spy(self: train.Run, epoch: int, **measured: float) -> dict:
        seen.append({name: weight.detach().clone() for name, weight in self.weights.items()})
        return row_of(self, epoch, **measured)

    monkeypatch.setattr(train.Run, "row", spy)
    rows = train_cell(cell(**PRUNED, scope="weight_hh"), silent)
    for row, weights in zip(rows, seen, strict=True):
        assert [entry["weight"] for entry in row["block_norms"]] == ["weight_hh_l0", "weight_hh_l1"]
        for entry in row["block_norms"]:
            weight = weights[entry["weight"]]
            assert (entry["grid_rows"], entry["grid_cols"]) == (weight.shape[0] // 8, weight.shape[1] // 8)
            norms = torch.tensor(entry["norms"]).view(entry["grid_rows"], entry["grid_cols"])
            by_hand = [
                [weight[i : i + 8, j : j + 8].norm() for j in range(0, weight.shape[1], 8)]
                for i in range(0, len(weight), 8)
            ]
            assert torch.allclose(norms, torch.tensor(by_hand))


def check_zeros(pruner: Pruner, optimizer: torch.optim.Optimizer | None) -> int:
    """Every tensor of a pruned weight's shape is exactly zero in its empty blocks; how many tensors were looked at."""
    looked_at = 0
    for name, mask in pruner.masks.items():
        weight = pruner.weights[name]
        empty = ~mask.expand()
        state = optimizer.state[weight] if optimizer is not None else {}
        for key, tensor in {"weight": weight, "gradient": weight.grad, **state}.items():
            if isinstance(tensor, torch.Tensor) and tensor.shape == weight.shape:
                assert (tensor[empty] == 0).all(), f"{name}: {key} leaks"
                looked_at += 1
    return looked_at


def watch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Check the zeros after every step of every training run from now on."""
    looked_at: list[int] = []
    after_step = Pruner.after_step

    def checked(self: Pruner, step: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        after_step(self, step, optimizer)
        looked_at.append(check_zeros(self, optimizer))

    monkeypatch.setattr(Pruner, "after_step", checked)
    return looked_at


@pytest.mark.parametrize("lasso", ["none", "subgradient", "proximal"])
@pytest.mark.parametrize("schedule", ["pre", "one_shot", "linear"])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_pruned_blocks_are_exactly_zero_after_every_step(optimizer: str, schedule: str, lasso: str, monkeypatch):
    looked_at = watch(monkeypatch)
    settings = {**PRUNED, **OPTIMIZERS[optimizer], "schedule": schedule, "prune_begin": 0.3}
    rows = train_cell(cell(**settings, lasso=lasso), silent)
    assert len(looked_at) == 21 and rows[-1]["sparsity"] == pytest.approx(0.8, abs=0.01)
    tensors = {"sgd": 3, "adam": 4, "asgd": 3}[optimizer]  # weight, gradient, and momentum | two moments | average
    assert looked_at[-1] == 4 * tensors


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_planted_leak_is_seen(optimizer: str, monkeypatch: pytest.MonkeyPatch):
    zero = Pruner._zero
    monkeypatch.setattr(Pruner, "_zero", lambda self, _optimizer, already: zero(self, None, already))
    watch(monkeypatch)
    with pytest.raises(AssertionError, match="leaks"):
        train_cell(cell(**PRUNED, **OPTIMIZERS[optimizer]), silent)


def test_asgd_is_evaluated_at_its_average(monkeypatch: pytest.MonkeyPatch):
    settings = {**PRUNED, **OPTIMIZERS["asgd"]}
    averaged = train_cell(cell(**settings), silent)
    monkeypatch.setattr(examiner, "averaged_weights", lambda _optimizer: torch.no_grad())
    raw = train_cell(cell(**settings), silent)
    assert averaged[1]["val_ppl"] == raw[1]["val_ppl"]  # the ramp ends with epoch 1: nothing is averaged yet
    assert averaged[2]["val_ppl"] != raw[2]["val_ppl"] and averaged[2]["train_ppl"] == raw[2]["train_ppl"]


def test_the_average_is_put_back_after_evaluation():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.ASGD([parameter], lr=1.0, lambd=0.0, t0=0)
    for gradient in (1.0, 2.0, 4.0):
        parameter.grad = torch.full((2,), gradient)
        optimizer.step()
    with averaged_weights(optimizer):
        assert parameter.tolist() == [-5.0, -5.0]  # the mean of -3 and -7
    assert parameter.tolist() == [-7.0, -7.0]


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("lr_schedule", ["constant", "one_cycle"])
def test_equal_cells_give_bit_equal_results(optimizer: str, lr_schedule: str):
    settings = {**PRUNED, **OPTIMIZERS[optimizer], "lr_schedule": lr_schedule, "criterion": "random", "dropout": 0.3}
    before = torch.random.get_rng_state()
    first, again = (results(train_cell(cell(**settings), silent)) for _ in range(2))
    assert first == again
    assert torch.equal(before, torch.random.get_rng_state())
    assert results(train_cell(cell(**settings, seed=1), silent)) != first


@pytest.mark.usefixtures("every_word")
def test_results_are_bit_equal_in_another_process(tmp_path: Path):
    """In one forked that computes in one thread; and in one of its own, which would in two."""
    network = {**TINY, **PRUNED, "lasso": "proximal", "dropout": 0.3}
    classifier = {**TINY, **PRUNED, **DIGITS, "batch_norm": True, "dropout": 0.3}
    cells = [network, classifier if missing_kernel() else {**classifier, "path": "sparse"}]
    script = (
        "import json, sys; from bench.cells import TrainCell; from bench.train import train_cell;"
        "print(json.dumps([train_cell(TrainCell(**cell), lambda news: None) for cell in json.loads(sys.argv[1])]))"
    )
    (tmp_path / "script.py").write_text(script)
    here = [results(train_cell(TrainCell(**settings), silent)) for settings in cells]
    command = [str(tmp_path / "script.py"), json.dumps(cells)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    with (
        Forked(command, environment, tmp_path / "said") as one,
        subprocess.Popen(
            [sys.executable, *command], env=environment | {"OMP_NUM_THREADS": "2"}, stdout=subprocess.PIPE, text=True
        ) as other,
    ):
        for process in (one, other):
            out, _ = process.communicate(timeout=240)
            assert process.returncode == 0
            assert [results(rows) for rows in json.loads(out)] == json.loads(json.dumps(here))


def test_the_thread_count_is_pinned_and_restored():
    before, seen = torch.get_num_threads(), []
    try:
        torch.set_num_threads(1)
        train_cell(cell(threads=2, train_tokens=200, epochs=1), lambda _: seen.append(torch.get_num_threads()))
        assert set(seen) == {2} and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_run_that_diverges_keeps_its_finished_epochs(monkeypatch: pytest.MonkeyPatch):
    shrink = train.Lasso.shrink_
    calls = []

    def poison(self, weights, learning_rate):
        calls.append(learning_rate)
        if len(calls) == 15:
            next(iter(weights)).data.fill_(math.nan)
        shrink(self, weights, learning_rate)

    monkeypatch.setattr(train.Lasso, "shrink_", poison)
    rows = train_cell(cell(**PRUNED, epochs=3), silent)
    assert [(row["epoch"], row["status"]) for row in rows] == [(0, "diverged"), (1, "diverged")]
    assert "nan in epoch 2" in rows[0]["reason"] and rows[1]["val_ppl"] > 1


def test_a_run_that_diverges_at_once_is_one_row_without_an_epoch():
    rows = train_cell(cell(**{**PRUNED, **OPTIMIZERS["sgd"], "learning_rate": 1e30}, clip=0.0), silent)
    assert len(rows) == 1
    assert rows[0]["status"] == "diverged" and rows[0]["epoch"] is None and "epoch 1" in rows[0]["reason"]


def test_an_evaluation_that_overflows_is_a_divergence(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(train.DivergedError, match="inf"):
        train.perplexity(1000.0, None)
    assert train.perplexity(0.0, 1) == 1.0


def test_a_dense_run_needs_no_size_that_a_block_divides():
    rows = train_cell(cell(hidden_size=30, embedding_size=10, block_size=16, epochs=1), silent)
    assert rows[-1]["block_norms"] == [] and rows[-1]["zero_block_share"] is None and rows[-1]["sparsity"] == 0.0


def test_gates_do_not_share_a_block_row():
    settings = cell(**PRUNED)
    built = MODELS["lstm"](settings, 50)
    for name, weight in built.prunable().items():
        assert weight.shape[0] % (4 * settings.block_size) == 0, name
    assert list(built.prunable()) == ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"]
    assert built.prunable()["weight_hh_l0"].shape == (128, 32) and built.prunable()["weight_ih_l1"].shape == (64, 32)


def test_a_model_starts_from_the_word_frequencies():
    built = MODELS["lstm"](cell(), 3)
    built.start_from_frequencies(torch.tensor([7, 2, 0]))
    torch.nn.init.zeros_(built.embedding.weight)
    assert torch.allclose(built(torch.zeros(1, 1, dtype=torch.long))[0].exp(), torch.tensor([[7.5, 2.5, 0.5]]) / 10.5)


def test_the_decoder_is_the_embedding_and_dropout_rests_in_evaluation():
    torch.manual_seed(0)
    built = MODELS["lstm"](cell(dropout=0.5, num_layers=3), 50)
    words = torch.randint(50, (7, 4))
    logits, states = built(words)
    assert logits.shape == (28, 50) and len(states) == 3
    assert not torch.equal(logits, built(words)[0])
    built.eval()
    assert torch.equal(built(words)[0], built(words)[0])
    halves, carried = built(words[:3])
    rest, _ = built(words[3:], carried)
    assert torch.allclose(torch.cat([halves, rest]), built(words)[0], atol=1e-6)
    assert block_norms(built.prunable()["weight_hh_l2"].detach(), 8).shape == (8, 2)


def test_a_threshold_empties_what_scores_below_it():
    """One-shot at the end of the first epoch, at the median of the norms there: half of the blocks, to the block."""
    later = cell(schedule="one_shot", target_sparsity=0.5, prune_begin=1.0)  # a dense run has no blocks of that size
    epoch = train_cell(later, silent)[1]
    norms = sorted(norm for each in epoch["block_norms"] for norm in each["norms"])
    settings = {"schedule": "one_shot", "prune_begin": 0.5, "threshold": norms[len(norms) // 2]}
    rows = train_cell(cell(**settings), silent)
    assert [row["sparsity"] for row in rows] == [0.0, 0.5, 0.5] and rows[-1]["zero_block_share"] == 0.5
    assert [row["scheduled_sparsity"] for row in rows] == [None] * 3
    ramp = train_cell(cell(**{**settings, "schedule": "cubic", "prune_begin": 0.0}), silent)
    assert ramp[-1]["sparsity"] == ramp[-1]["zero_block_share"] > 0.2
