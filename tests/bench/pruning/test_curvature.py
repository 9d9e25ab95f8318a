"""The Hessian's diagonal: exact where it can be, near it where it is estimated, and what a run does with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rows import results, silent
from torch import Tensor, nn

from bench.cells import TrainCell
from bench.models.layers import LSTMLayer
from bench.pruning.curvature import curvature
from bench.pruning.pruner import Pruner
from bench.train import Run, train_cell
from kernels.blockmask import BlockMask

pytestmark = pytest.mark.usefixtures("few_words")

TINY: dict[str, Any] = {
    "train_tokens": 2000, "eval_tokens": 500, "embedding_size": 16, "hidden_size": 32, "block_size": 8,
    "batch_size": 10, "bptt": 20, "epochs": 2, "prune_every": 4, "learning_rate": 0.01, "threads": 1,
    "schedule": "cubic", "target_sparsity": 0.8, "criterion": "hessian", "curvature_probes": 2,
}  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_probe_is_exact_where_the_hessian_is_diagonal():
    """f = Σ a w^3 has the Hessian diag(6 a w): found is 6 a w^3."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    factors = torch.tensor([[1.0, 2.0], [-4.0, 0.5]])
    found = curvature((factors * weight.pow(3)).sum(), {"weight": weight}, generator(), probes=1)
    assert found["weight"].tolist() == [[6.0, -96.0], [-3.0, 81.0]] and weight.grad is None


def test_the_estimate_by_hand():
    """f = w1² + 3 w1 w2 + 5 w2² at (1, 2): H = [[2, 3], [3, 10]], so one product gives (2 ± 6, 40 ± 6)."""
    weight = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    matrix = torch.tensor([[2.0, 3.0], [3.0, 10.0]])

    def estimate(seed: int, probes: int = 1, kept: Tensor | None = None) -> list[float]:
        loss = 0.5 * weight.flatten() @ matrix @ weight.flatten()
        masks = None if kept is None else {"weight": kept}
        return curvature(loss, {"weight": weight}, generator(seed), probes, masks)["weight"].flatten().tolist()

    assert {tuple(round(each, 5) for each in estimate(seed)) for seed in range(9)} == {(8.0, 46.0), (-4.0, 34.0)}
    assert estimate(0, 2000) == pytest.approx([2.0, 40.0], abs=0.4)
    assert estimate(3, 7) == estimate(3, 7)
    assert estimate(0, kept=torch.tensor([[True, False]])) == [2.0, 0.0]  # the other is no variable: exact


class Network(nn.Module):
    """An LSTM layer and what reads it, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.out = LSTMLayer(3, 4), nn.Linear(4, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layer(x)
        return self.out(y).square().mean()


def test_the_mean_over_probes_is_the_diagonal_of_an_lstm_layers_hessian():
    model, x = Network(), torch.randn(5, 2, 3, generator=generator(), dtype=torch.float64)
    weights = {name: getattr(model.layer, name) for name in ("weight_ih_l0", "weight_hh_l0")}

    def loss_of(*values: Tensor) -> Tensor:
        given = {f"layer.{name}": value for name, value in zip(weights, values, strict=True)}
        return torch.func.functional_call(model, given, (x,))

    every = torch.autograd.functional.hessian(loss_of, tuple(weight.detach() for weight in weights.values()))
    wanted = torch.cat(
        [
            weight.detach().flatten().square() * every[n][n].reshape(weight.numel(), -1).diagonal()
            for n, weight in enumerate(weights.values())
        ]
    )
    found = curvature(model(x), weights, generator(), 1000)
    flat = torch.cat([each.flatten() for each in found.values()])
    assert wanted.abs().max() > 1e-4
    assert (flat - wanted).norm() < 0.15 * wanted.norm()
    assert all(weight.grad is None for weight in weights.values())


def test_the_pruner_scores_by_the_second_order_rise():
    """A quadratic loss around its minimum: ½ Σ h w² is exactly what it rises by, and that need not follow w."""
    weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    diagonal = torch.tensor([[8.0, 1.0], [1.0, 0.25]])  # rises: 4, 2, 4.5, 2
    cell = TrainCell(block_size=1, schedule="one_shot", criterion="hessian", target_sparsity=0.5, prune_begin=0.5)
    pruner = Pruner({"weight": weight}, cell, steps=4)
    assert [step for step in range(1, 5) if pruner.wants_curvature(step)] == [2, 3, 4]
    pruner.see_curvature((0.5 * diagonal * (weight - weight.detach()).square()).sum())
    pruner.after_step(2)
    assert weight.tolist() == [[1.0, 0.0], [3.0, 0.0]] and not pruner.wants_curvature(3)
    assert not pruner._curvature


def test_empty_blocks_are_no_variables():
    weight = nn.Parameter(torch.randn(2, 2, generator=generator()))
    cell = TrainCell(block_size=1, schedule="linear", criterion="hessian", target_sparsity=1.0, prune_every=1)
    pruner = Pruner({"weight": weight}, cell, steps=4)
    pruner._take("weight", BlockMask(torch.tensor([[True, False], [True, True]]), 1))
    pruner.see_curvature(weight.sum().pow(2))
    assert pruner._curvature["weight"][0, 1] == 0.0 and pruner._curvature["weight"][0, 0] != 0.0


@pytest.mark.parametrize("settings", [
    {"path": "sparse"},
    {"model": "awd_lstm", "weight_drop": 0.3, "hidden_dropout": 0.2, "activation_penalty": 2.0},
    {"decoder": "adaptive", "cutoff": 50, "second_cutoff": 200, "embedding_gradient": "sparse"},
    {"precision": "bfloat16"},
    {"optimizer": "nt_asgd", "learning_rate": 5.0, "schedule": "one_shot", "prune_begin": 0.3},
])  # fmt: skip
def test_a_run_prunes_by_curvature(settings: dict[str, Any]):
    cell = TrainCell(**{**TINY, **settings})
    rows = train_cell(cell, silent)
    assert rows[-1]["sparsity"] == pytest.approx(0.8, abs=0.02)
    assert results(rows) == results(train_cell(cell, silent))
    assert results(rows) != results(train_cell(cell.model_copy(update={"seed": 1}), silent))


def test_looking_at_the_curvature_leaves_the_run_alone(monkeypatch: pytest.MonkeyPatch):
    """Dropout goes on as if nobody had looked: with a criterion that wants it, and with the same scores unseen."""
    settings = {**TINY, "dropout": 0.3, "criterion": "l2"}
    plain = results(train_cell(TrainCell(**settings), silent))
    monkeypatch.setattr(Pruner, "wants_curvature", lambda self, step: self._tightens(step))
    assert results(train_cell(TrainCell(**settings), silent)) == plain


def test_the_curvature_is_that_of_the_network_as_it_is_evaluated(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[bool, bool]] = []
    see = Pruner.see_curvature

    def spy(self: Pruner, loss: Tensor) -> None:
        run = runs[-1]
        seen.append((run.model.training, any(layer.sparse for layer in run.paths.layers)))
        see(self, loss)

    runs: list[Run] = []
    of = Run.of
    monkeypatch.setattr(Run, "of", lambda *given: runs.append(of(*given)) or runs[-1])
    monkeypatch.setattr(Pruner, "see_curvature", spy)
    train_cell(TrainCell(**{**TINY, "path": "sparse"}), silent)
    assert len(seen) > 2 and set(seen) == {(False, False)}
    assert runs[-1].paths.sparse_layers == 2


def test_settings_of_the_curvature():
    plain = TrainCell(schedule="cubic", target_sparsity=0.5)
    assert plain.model_copy(update={"curvature_probes": 3}).cell_id == plain.cell_id
    with pytest.raises(ValueError, match="prune_begin: 0 cuts before any gradient was seen, which hessian goes by"):
        TrainCell(schedule="one_shot", target_sparsity=0.5, criterion="hessian")
