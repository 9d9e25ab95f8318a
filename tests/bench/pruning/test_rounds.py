"""Pruning in rounds: equal shares of what is left, parameters set back, and an end where the loss has risen too far."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rows import silent
from torch import nn

from bench.cells import TrainCell
from bench.pruning.pruner import Pruner
from bench.pruning.schedules import sparsity_at
from bench.train import Run, train_cell

pytestmark = pytest.mark.usefixtures("few_words")

CELL = TrainCell(block_size=4, schedule="iterative", target_sparsity=0.9375, prune_rounds=4, prune_end=0.8)
TINY: dict[str, Any] = {
    "train_tokens": 2000, "eval_tokens": 500, "embedding_size": 16, "hidden_size": 32, "block_size": 8,
    "batch_size": 10, "bptt": 20, "epochs": 3, "learning_rate": 0.01, "threads": 1,
    "schedule": "iterative", "target_sparsity": 0.8, "prune_rounds": 4,
}  # fmt: skip


@given(
    steps=st.integers(1, 500), rounds=st.integers(1, 20),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)  # fmt: skip
def test_rounds_never_fall_and_end_on_the_target(steps: int, rounds: int, shares: tuple, ends: tuple):
    (initial, target), (begin, end) = sorted(shares), sorted(ends)
    values = [sparsity_at("iterative", step, steps, target, begin, end, initial, rounds) for step in range(steps + 1)]
    assert all(0.0 <= early <= late <= target for early, late in pairwise(values))
    assert all(value == target for step, value in enumerate(values) if step >= end * steps)
    assert len(set(values)) <= rounds + 2


def test_each_round_takes_the_same_share_of_what_is_left():
    """To 15/16 in four rounds, half of the rest in each; the first after a round of training, the last at the end."""
    values = [sparsity_at("iterative", step, 10, 0.9375, 0.0, 0.8, rounds=4) for step in range(11)]
    assert values == pytest.approx([0, 0, 0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 0.9375, 0.9375, 0.9375])
    begun = [sparsity_at("iterative", step, 4, 0.875, 0.5, 1.0, 0.5, 2) for step in range(5)]
    assert begun == pytest.approx([0.0, 0.0, 0.5, 0.75, 0.875])
    assert [sparsity_at("iterative", step, 4, 1.0, 0.0, 1.0, rounds=2) for step in (1, 2, 4)] == [0.0, 1.0, 1.0]


def test_cuts_are_made_at_their_step_whatever_prune_every_is():
    weights = {"weight": nn.Parameter(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))}
    pruner, found = Pruner(weights, CELL, steps=20), []
    for step in range(1, 21):
        pruner.after_step(step)
        found.append(pruner.sparsity)
    assert [step + 1 for step, (old, new) in enumerate(pairwise([0.0, *found])) if new != old] == [4, 8, 12, 16]
    assert [found[step - 1] for step in (4, 8, 12, 16)] == [0.5, 0.75, 0.875, 0.9375]
    assert CELL.model_copy(update={"prune_every": 3}).cell_id == CELL.cell_id


def test_a_threshold_is_applied_anew_in_every_round():
    weight = nn.Parameter(torch.tensor([[0.5, 1.5], [2.0, 3.0]]))
    cell = CELL.model_copy(
        update={"block_size": 1, "target_sparsity": 0.0, "threshold": 1.0, "prune_rounds": 2, "prune_end": 1.0}
    )
    pruner, found = Pruner({"weight": weight}, cell, steps=4), []
    for step in range(1, 5):
        pruner.after_step(step)
        found.append(weight.detach().flatten().tolist())
        if step == 2:
            weight.data[0, 1] = 0.9  # below it after the first cut
    assert found[0] == [0.5, 1.5, 2.0, 3.0] and found[1] == [0.0, 1.5, 2.0, 3.0]
    assert found[2] == [0.0, pytest.approx(0.9), 2.0, 3.0]
    assert found[3] == [0.0, 0.0, 2.0, 3.0] and pruner.is_done and pruner.sparsity == 0.5


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_what_is_kept_goes_back_to_where_it_was_and_averages_are_forgotten(optimizer: str):
    parameters = {name: nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))) for name in "ab"}
    cell = CELL.model_copy(update={"target_sparsity": 0.75, "prune_rounds": 2, "prune_end": 0.6, "rewind": "weights"})
    cell = cell.model_copy(update={"rewind_to": 0.1})
    pruner = Pruner({"a": parameters["a"]}, cell, 10, parameters)
    momenta = (
        torch.optim.Adam(parameters.values(), 0.1)
        if optimizer == "adam"
        else torch.optim.SGD(parameters.values(), 0.1, momentum=0.9)
    )
    early: dict[str, torch.Tensor] = {}
    for step in range(1, 11):
        for number, parameter in enumerate(parameters.values()):
            parameter.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(10 * step + number))
        pruner.mask_gradients()
        momenta.step()
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        pruner.after_step(step, momenta)
        if step == 1:
            early = before
        kept = pruner.masks["a"].expand()
        assert not parameters["a"][~kept].any()
        if step in (3, 6):
            assert torch.equal(parameters["a"][kept], early["a"][kept]) and torch.equal(parameters["b"], early["b"])
            assert not any(momenta.state[parameter] for parameter in parameters.values())
        else:
            assert torch.equal(parameters["b"], before["b"]) and momenta.state[parameters["b"]]
    assert pruner.sparsity == 0.75


def test_a_run_is_rewound_to_its_first_weights(monkeypatch: pytest.MonkeyPatch):
    """rewind_to = 0: after the last cut at the end of the run it has those, where they are kept."""
    runs: list[Run] = []
    of = Run.of

    def spy(*given: Any) -> Run:
        run = of(*given)
        runs.append(run)
        first.update({name: parameter.detach().clone() for name, parameter in run.model.named_parameters()})
        return run

    first: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(Run, "of", spy)
    rows = train_cell(TrainCell(**TINY, rewind="weights", prune_end=1.0), silent)
    assert rows[-1]["sparsity"] == pytest.approx(0.8, abs=0.01)
    masks = {id(runs[0].weights[name]): mask.expand() for name, mask in runs[0].pruner.masks.items()}
    assert len(first) > 8
    for name, parameter in runs[0].model.named_parameters():
        kept = masks.get(id(parameter), torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter.detach(), first[name] * kept), name


def test_rounds_end_where_the_perplexity_has_risen(monkeypatch: pytest.MonkeyPatch):
    heard = iter([100.0, 90.0, 98.0, 101.0, 80.0])
    pruner = Pruner({"weight": nn.Parameter(torch.randn(16, 16))}, CELL.model_copy(update={"stop_rise": 0.1}), steps=20)
    told = []
    for step in range(1, 21):
        pruner.after_step(step)
        if step % 4 == 0:
            pruner.hear(next(heard))
            told.append((pruner.stopped, pruner.is_final(step), pruner.sparsity))
    # 98 is less than a tenth above 90, 101 is more, but the last cut was made by then
    assert [stopped for stopped, _, _ in told] == [False] * 5
    assert [final for _, final, _ in told] == [False, False, False, True, True]
    assert [sparsity for _, _, sparsity in told] == [0.5, 0.75, 0.875, 0.9375, 0.9375]
    seen: list[bool] = []
    hear = Pruner.hear

    def risen(self: Pruner, val_ppl: float) -> None:
        hear(self, val_ppl * (2.0 if len(seen) == 1 else 1.0))
        seen.append(self.stopped)

    monkeypatch.setattr(Pruner, "hear", risen)
    rows = train_cell(TrainCell(**TINY, stop_rise=0.1, prune_end=1.0, selection="best"), silent)
    assert seen == [False, True, True]
    reached = [row["sparsity"] for row in rows]
    assert 0.0 < reached[1] < reached[2] == reached[3] < 0.8 == rows[3]["scheduled_sparsity"]
    assert rows[3]["reported_epoch"] in (2, 3)  # at the sparsity that is final since


def test_what_does_not_go_with_rounds_is_refused():
    pruned = {"target_sparsity": 0.5}
    for settings, said in (
        (
            {"schedule": "cubic", "rewind": "weights"},
            "rewind: weights with schedule cubic; accepted: none, or schedule = ",
        ),
        (
            {"schedule": "linear", "stop_rise": 0.1},
            "stop_rise: 0.1 with schedule linear; accepted: 0.0, or schedule = it",
        ),
        (
            {"schedule": "iterative", "rewind": "weights", "rewind_to": 0.5},
            "rewind_to: 0.5 lies behind the first cut; accepted: fractions up to 0.16",
        ),
        (
            {"schedule": "iterative", "rewind": "weights", "stop_rise": 0.1},
            "stop_rise: 0.1 would stop at what rewind sets",
        ),
        ({"schedule": "iterative", "prune_begin": 0.9}, "prune_end: 0.8 lies before prune_begin 0.9"),
    ):
        with pytest.raises(ValueError, match=said):
            TrainCell(**pruned, **settings)
    cubic = TrainCell(**pruned, schedule="cubic")
    assert cubic.model_copy(update={"prune_rounds": 9, "rewind_to": 0.1}).cell_id == cubic.cell_id
    rounds = TrainCell(**pruned, schedule="iterative")
    assert rounds.model_copy(update={"prune_rounds": 9}).cell_id != rounds.cell_id
    assert rounds.model_copy(update={"rewind_to": 0.1}).cell_id == rounds.cell_id
