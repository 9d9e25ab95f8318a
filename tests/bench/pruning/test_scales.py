"""Whole neurons by the scales of batch normalisation, and biases of rows without a block: what goes stays gone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rows import silent
from torch import nn

from bench.cells import TrainCell
from bench.models.registry import MODELS
from bench.pruning.pruner import Pruner
from bench.pruning.scales import Scales
from bench.train import train_cell

pytestmark = pytest.mark.usefixtures("few_words")

MLP = {
    "model": "mlp", "dataset": "digits", "hidden_size": 32, "block_size": 8, "batch_size": 100, "epochs": 2,
    "learning_rate": 0.01, "threads": 1,
}  # fmt: skip
LSTM = {
    "train_tokens": 2000, "eval_tokens": 500, "embedding_size": 16, "hidden_size": 32, "block_size": 8, "bptt": 20,
    "batch_size": 10, "epochs": 2, "learning_rate": 0.01, "threads": 1,
}  # fmt: skip
PRUNED = {"schedule": "pre", "target_sparsity": 0.9, "prune_biases": True}


def normed(scales: list[float]) -> nn.Sequential:
    """One batch-normalised layer with these scales, and shifts of 1."""
    norm = nn.BatchNorm1d(len(scales))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(scales))
        norm.bias.fill_(1.0)
    return nn.Sequential(norm)


def cell(**settings: Any) -> TrainCell:
    return TrainCell(**{**MLP, "batch_norm": True, **settings})


def test_the_penalty_by_hand():
    scales = Scales(normed([0.5, -2.0, 0.0]), cell(scale_penalty=0.1), 10)
    assert scales.in_loss and scales.penalty().item() == pytest.approx(0.25)
    assert not Scales(normed([1.0]), cell(), 10).in_loss


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_neurons_under_the_threshold_go_at_their_step_and_stay_gone(optimizer: str):
    model = normed([0.5, -0.05, 0.01, 2.0])
    scales = Scales(model, cell(scale_threshold=0.1, scale_at=0.5), 4)
    steps = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9) if optimizer == "sgd" else torch.optim.Adam(
        model.parameters(), 0.1
    )  # fmt: skip
    for step in range(1, 5):
        steps.zero_grad()
        model(torch.randn(8, 4, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        steps.step()
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([0.5, -0.05, 0.01, 2.0]))
        scales.after_step(step, steps)
        gone = step >= 2
        assert scales.kept == ([2] if gone else [4])
        for parameter in model.parameters():
            assert (parameter[1:3] == 0.0).all() == gone
            state = [each for each in steps.state[parameter].values() if getattr(each, "shape", ()) == (4,)]
            assert state and all((each[1:3] == 0.0).all() == gone for each in state)


def test_one_neuron_of_a_layer_always_stays():
    model = normed([0.01, 0.03, 0.02])
    scales = Scales(model, cell(scale_threshold=0.1, scale_at=0.0), 4)
    scales.after_step(0, torch.optim.SGD(model.parameters(), 0.1))
    assert scales.kept == [1] and model[0].weight.tolist() == pytest.approx([0.0, 0.03, 0.0])


@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_a_run_lets_neurons_go_and_its_finished_model_is_narrower(path: str):
    pruned = {} if path == "dense" else {"schedule": "cubic", "target_sparsity": 0.5, "path": path}
    settings = cell(scale_penalty=0.003, scale_threshold=0.95, scale_at=0.4, epochs=4, **pruned)
    rows = train_cell(settings, silent)
    first, last = rows[1], rows[-1]
    assert first["kept_neurons"] == [32, 32] and 0 < last["kept_neurons"][0] < 32
    assert all(live <= kept for live, kept in zip(last["live_units"], last["kept_neurons"], strict=True))
    assert sum(last["narrowed_units"]) < 64 and last["narrowed_bytes"] < last["final_bytes"]
    assert last["narrowed_ppl"] == pytest.approx(last["test_ppl"], rel=1e-4)
    assert last["test_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"scale_threshold": 0.1, "batch_norm": False}, "scale_threshold: there are no scales without batch_norm"),
        ({"scale_penalty": 0.1, "batch_norm": False}, "scale_penalty: there are no scales without batch_norm"),
        ({"scale_penalty": 0.1, "model": "lstm", "dataset": "pydoc"}, "scale_penalty: there are no scales"),
    ],
)
def test_scales_need_batch_norm(settings: dict[str, Any], line: str):
    with pytest.raises(ValueError, match=line):
        cell(**settings)


def test_what_cannot_matter_is_idle():
    assert cell(scale_at=0.3).cell_id == cell().cell_id
    assert cell(scale_threshold=0.1, scale_at=0.3).cell_id != cell(scale_threshold=0.1).cell_id
    assert cell(prune_biases=True).cell_id == cell().cell_id
    assert cell(**PRUNED).cell_id != cell(**{**PRUNED, "prune_biases": False}).cell_id


@pytest.mark.parametrize("model", ["lstm", "mlp"])
def test_biases_of_bare_rows_by_hand(model: str):
    settings = TrainCell(**{**(MLP if model == "mlp" else LSTM), **PRUNED})
    built = MODELS[model](settings, 10)
    pruner = Pruner(built.prunable(), settings, 10, biases=built.biases())
    weights, seen = built.prunable(), 0
    for bias, names in built.biases().values():
        bare = torch.stack([(weights[name] == 0.0).all(dim=1) for name in names]).all(dim=0)
        assert (bias[bare] == 0.0).all() and (bias[~bare] != 0.0).any()
        seen += int(bare.sum())
    sizes = sum(bias.numel() for bias, _ in built.biases().values())
    assert 0 < seen < sizes and pruner.bias_sparsity == pytest.approx(seen / sizes)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "asgd"])
@pytest.mark.parametrize("model", ["lstm", "mlp"])
def test_masked_biases_stay_zero_through_every_optimizer(model: str, optimizer: str, monkeypatch: pytest.MonkeyPatch):
    rates = {"adam": {}, "sgd": {"momentum": 0.9}, "asgd": {}}[optimizer]
    pruned = {"schedule": "linear", "target_sparsity": 0.9, "prune_end": 0.5, "prune_every": 2, "prune_biases": True}
    settings = TrainCell(**{**(MLP if model == "mlp" else LSTM), **pruned, "optimizer": optimizer, **rates})
    looked, after = [], Pruner.after_step

    def spied(self: Pruner, step: int, optimizer: Any = None) -> None:
        after(self, step, optimizer)
        for name, bare in self._bare.items():
            looked.append(int(bare.sum()))
            for tensor in self._tensors(self.biases[name][0], optimizer):
                assert (tensor[bare] == 0.0).all()

    monkeypatch.setattr(Pruner, "after_step", spied)
    rows = train_cell(settings, silent)
    assert max(looked) > 0 and 0.0 < rows[-1]["bias_sparsity"] < 1.0
    assert rows[0]["bias_sparsity"] == 0.0


def test_without_masks_of_biases_the_column_is_null():
    rows = train_cell(TrainCell(**{**MLP, **PRUNED, "prune_biases": False, "epochs": 1}), silent)
    assert all(row["bias_sparsity"] is None and row["kept_neurons"] is None for row in rows)
