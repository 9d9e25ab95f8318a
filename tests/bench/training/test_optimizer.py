"""Optimizers and rates.

The averages of NT-ASGD and what starts them, phases of the rate, rates by a window's length.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from rows import silent
from torch import nn

from bench.cells import TrainCell
from bench.data.corpus import SHORTEST_WINDOW, batchify, cut, window_lengths
from bench.train import train_cell
from bench.training import tasks
from bench.training.examiner import Selection
from bench.training.optimizer import (
    NTASGD,
    FourPhases,
    NonMonotone,
    averaged_weights,
    four_phases,
    make_optimizer,
    make_rates,
    scaled_rate,
)

pytestmark = pytest.mark.usefixtures("few_words")

TINY: dict[str, Any] = {
    "model": "awd_lstm", "train_tokens": 600, "eval_tokens": 300, "embedding_size": 8, "hidden_size": 16,
    "block_size": 8, "batch_size": 5, "bptt": 10, "prune_every": 1, "schedule": "linear", "target_sparsity": 0.5,
    "weight_drop": 0.3,
}  # fmt: skip


def moved(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradients: list[float]) -> list[float]:
    """The parameter after each step."""
    path = []
    for gradient in gradients:
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        path.append(parameter.item())
    return path


def test_nt_asgd_is_sgd_and_averages_from_where_it_is_told_to():
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = NTASGD([parameter], lr=0.5, weight_decay=0.1)
    twin = nn.Parameter(torch.tensor([1.0]))
    before = moved(optimizer, parameter, [1.0, 2.0])
    assert before == moved(torch.optim.SGD([twin], lr=0.5, weight_decay=0.1), twin, [1.0, 2.0])
    assert not optimizer.averaging and not optimizer.state[parameter]
    optimizer.average_from_now()
    after = moved(optimizer, parameter, [3.0, -1.0, 2.0, 5.0])
    with averaged_weights(optimizer):
        assert parameter.item() == pytest.approx(sum(after) / 4)
    assert parameter.item() == after[-1]


def test_the_averages_go_on_from_a_saved_state():
    ends = []
    for interrupted in (False, True):
        parameter = nn.Parameter(torch.tensor([1.0]))
        optimizer = NTASGD([parameter], lr=0.5)
        optimizer.average_from_now()
        moved(optimizer, parameter, [1.0, 2.0])
        if interrupted:
            state, parameter = optimizer.state_dict(), nn.Parameter(parameter.detach().clone())
            optimizer = NTASGD([parameter], lr=0.5)
            optimizer.load_state_dict(state)
        moved(optimizer, parameter, [-1.0, 3.0])
        ends.append((parameter.item(), optimizer.state[parameter]["ax"].item(), optimizer.averaging))
    assert ends[0] == ends[1]


def test_the_averages_start_when_the_perplexity_stalls():
    """Each epoch is compared with the best of those more than `patience` epochs before it."""
    trigger = NonMonotone(2)
    falling = [9.0, 8.0, 7.0, 6.0]
    assert not any(trigger.sees(ppl) for ppl in falling)
    assert [trigger.sees(ppl) for ppl in (6.5, 7.5)] == [False, True]  # the best two or more epochs ago: 7, then 6
    assert not any(map(NonMonotone(5).sees, [1.0, 2.0, 3.0, 4.0, 5.0]))


def test_the_trigger_and_the_selection_see_epochs_at_final_sparsity_only(monkeypatch: pytest.MonkeyPatch):
    seen: list[float] = []
    monkeypatch.setattr(NonMonotone, "sees", lambda _self, ppl: seen.append(ppl) or True)
    considered: list[int] = []
    consider = Selection.consider
    monkeypatch.setattr(
        Selection, "consider", lambda self, epoch, *rest: considered.append(epoch) or consider(self, epoch, *rest)
    )
    settings = {**TINY, "optimizer": "nt_asgd", "learning_rate": 1.0, "epochs": 4, "prune_end": 0.6}
    rows = train_cell(TrainCell(**settings), silent)
    assert [row["scheduled_sparsity"] == 0.5 for row in rows] == [False, False, False, True, True]
    assert considered == [3, 4] and seen == [row["val_ppl"] for row in rows[3:]]
    assert [row["averaging"] for row in rows[1:]] == [False, False, False, True]
    seen.clear()
    train_cell(TrainCell(**{**settings, "schedule": "none"}), silent)
    assert len(seen) == 4  # a dense run is at its final sparsity all along


def test_the_best_epoch_is_reported_with_its_own_weights(monkeypatch: pytest.MonkeyPatch):
    """After the first epoch the text is one word again and again, which ruins the model.

    The best epoch is not the last.
    """
    monkeypatch.setattr(
        tasks, "epoch_slice", lambda tokens, size, epoch: tokens[:size] if epoch == 1 else tokens[:1].repeat(size)
    )
    settings = {**TINY, "schedule": "none", "optimizer": "sgd", "epochs": 3, "train_tokens": 3000, "learning_rate": 1.0}
    rows = train_cell(TrainCell(**settings, selection="best"), silent)
    best = min(rows[1:], key=lambda row: row["val_ppl"])
    assert best["epoch"] < 3
    last = rows[-1]
    assert (last["reported_epoch"], last["reported_val_ppl"]) == (best["epoch"], best["val_ppl"])
    assert last["reported_test_ppl"] == best["test_ppl"] != last["test_ppl"]
    assert all(row["reported_epoch"] is None for row in rows[:-1])
    plain = train_cell(TrainCell(**settings), silent)[-1]
    assert plain["reported_epoch"] == 3 and plain["reported_test_ppl"] == plain["test_ppl"] == last["test_ppl"]
    single = train_cell(TrainCell(**settings, test_batch_size=1), silent)[-1]
    assert single["test_ppl"] == last["test_ppl"] != single["reported_test_ppl"]


def test_selected_weights_are_restored_and_put_back():
    model = nn.Linear(1, 1, bias=False)
    selection = Selection(TrainCell(selection="best"))
    for epoch, (weight, ppl) in enumerate([(1.0, 30.0), (2.0, 20.0), (3.0, 25.0)], start=1):
        model.weight.data.fill_(weight)
        selection.consider(epoch, ppl, model)
    with selection.restored(model):
        assert model.weight.item() == 2.0
    assert model.weight.item() == 3.0 and (selection.epoch, selection.val_ppl) == (2, 20.0)


def test_the_four_phases_are_those_of_the_90_epoch_recipe():
    """Epochs 7.5, 37.5, 37.5, 7.5: rate 5e-4 to 5e-3, held, back, to 0; beta1 0.8 to 0.7, held, back, held."""
    cell = TrainCell(lr_schedule="four_phases", learning_rate=5e-3, beta1=0.8, beta1_dip=0.1, beta2=0.99)
    optimizer = make_optimizer(cell, nn.Linear(1, 1), 900)
    rates = make_rates(cell, optimizer, 900)
    assert isinstance(rates, FourPhases)
    found = []
    for _ in range(900):
        group = optimizer.param_groups[0]
        found.append((group["lr"], *group["betas"]))
        optimizer.step()
        rates.step()
    at = {step: tuple(round(value, 7) for value in found[step]) for step in (0, 75, 449, 450, 825, 862)}
    assert at[0] == (5e-4, 0.8, 0.99) and at[75] == at[449] == at[450] == (5e-3, 0.7, 0.99)
    assert at[825] == (5e-4, 0.8, 0.99) and at[862][1:] == (0.8, 0.99)
    assert found[862][0] == pytest.approx(2.5e-4, rel=0.05) and 0 < found[899][0] < 1e-6
    assert four_phases(637, 900)[0] == pytest.approx(0.55, abs=0.01)
    assert all(abs(one[0] - other[0]) < 1e-4 for one, other in pairwise(found))
    assert "cell" not in rates.state_dict()


def test_a_rate_is_scaled_for_one_step():
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = NTASGD([parameter], lr=2.0)
    with scaled_rate(optimizer, 0.25) as rate:
        assert rate == 0.5 and moved(optimizer, parameter, [1.0]) == [0.5]
    assert optimizer.param_groups[0]["lr"] == 2.0


def test_windows_of_drawn_lengths_cover_the_text_and_are_the_same_everywhere():
    streams = batchify(torch.arange(40_000), 4)
    lengths = window_lengths(len(streams), 70, jitter=5.0, halved=0.05, seed="0 1")
    assert lengths[:6] == [74, 79, 63, 73, 81, 79]
    assert sum(lengths) == len(streams) - 1 and min(lengths[:-1]) >= SHORTEST_WINDOW
    full = [length for length in lengths[:-1] if length > 52]
    assert sum(full) / len(full) == pytest.approx(70, abs=2) and 0 < len(lengths) - 1 - len(full) < 0.15 * len(lengths)
    pieces = list(cut(streams, lengths))
    assert torch.equal(torch.cat([targets for _, targets in pieces]), streams[1:])
    assert torch.equal(torch.cat([inputs for inputs, _ in pieces]), streams[:-1])
    assert window_lengths(len(streams), 70, jitter=5.0, seed="0 2") != window_lengths(
        len(streams), 70, jitter=5.0, seed="0 1"
    )
    assert window_lengths(10, 2) == [2, 2, 2, 2, 1] and window_lengths(100, 2, jitter=50.0)[0] >= SHORTEST_WINDOW


def test_drawn_windows_are_counted_so_that_the_ramp_ends_where_it_should():
    settings = {**TINY, "bptt_jitter": 5.0, "bptt_halved": 0.2, "epochs": 3, "prune_end": 1.0}
    rows = train_cell(TrainCell(**settings), silent)
    assert rows[-1]["scheduled_sparsity"] == 0.5 > rows[-2]["scheduled_sparsity"]
    assert [row["train_tokens_seen"] for row in rows[1:]] == [595] * 3
    assert len({after["step"] - before["step"] for before, after in pairwise(rows)}) > 1
