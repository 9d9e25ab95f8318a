"""Schedules, criteria, the block lasso and the pruner, over everything that is registered."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bench.cells import TrainCell
from bench.pruning.allocation import allocate
from bench.pruning.criteria import CRITERIA
from bench.pruning.lasso import Lasso, block_norms
from bench.pruning.pruner import Pruner
from bench.pruning.schedules import SCHEDULES

CELL = TrainCell(block_size=4, schedule="linear", target_sparsity=0.75, prune_end=0.8, prune_every=1, threads=1)


def weights(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(16, 8, generator=generator)) for name in ("first", "second")}


@given(
    name=st.sampled_from([name for name in SCHEDULES if name != "none"]),
    steps=st.integers(1, 3000),
    target=st.floats(0, 1),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_schedule_never_falls_and_ends_on_its_target(name: str, steps: int, target: float, ends: tuple):
    begin, end = sorted(ends)
    values = [SCHEDULES[name](step, steps, target, begin, end) for step in range(steps + 1)]
    assert all(0 <= early <= late <= target for early, late in pairwise(values))
    assert all(value == target for step, value in enumerate(values) if step >= end * steps)
    assert values[-1] == target


def test_schedules_by_hand():
    assert [SCHEDULES["none"](step, 10, 0.8, 0.0, 1.0) for step in (0, 10)] == [0.0, 0.0]
    assert SCHEDULES["pre"](0, 10, 0.8, 0.5, 1.0) == 0.8
    assert [SCHEDULES["one_shot"](step, 10, 0.8, 0.5, 1.0) for step in (4, 5)] == [0.0, 0.8]
    assert SCHEDULES["linear"](4, 10, 0.8, 0.2, 0.6) == pytest.approx(0.4)
    assert SCHEDULES["cubic"](4, 10, 0.8, 0.2, 0.6) == pytest.approx(0.7)  # 0.8 (1 - 0.5^3)
    assert SCHEDULES["linear"](2, 10, 0.8, 0.2, 0.6) == 0.0


@pytest.mark.parametrize("name", list(CRITERIA))
@pytest.mark.parametrize(("rows", "cols", "block_size"), [(8, 12, 4), (6, 2, 1), (5, 5, 5)])
def test_a_criterion_scores_every_block(name: str, rows: int, cols: int, block_size: int):
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(1))
    before = weight.clone()
    first, again = (CRITERIA[name](weight, block_size, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.shape == (rows // block_size, cols // block_size)
    assert torch.isfinite(first).all() and torch.equal(first, again) and torch.equal(weight, before)


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "random"])
def test_a_magnitude_criterion_ranks_smaller_blocks_lower(name: str):
    weight = torch.ones(8, 8)
    weight[4:, :4] *= 0.1
    scores = CRITERIA[name](weight, 4, torch.Generator())
    assert scores.flatten().argmin() == 2


def test_criteria_by_hand():
    weight = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
    scores = {name: CRITERIA[name](weight, 2, torch.Generator()).item() for name in ("l2", "l1", "max", "rms")}
    assert scores == {"l2": 5.0, "l1": 7.0, "max": 4.0, "rms": 2.5}


def test_the_norm_of_blocks_and_its_gradient_at_zero():
    weight = torch.zeros(4, 4, requires_grad=True)
    with torch.no_grad():
        weight[:2, 2:] = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    norms = block_norms(weight, 2)
    assert norms.tolist() == [[0.0, 5.0], [0.0, 0.0]]
    norms.sum().backward()
    assert torch.isfinite(weight.grad).all()
    assert torch.allclose(weight.grad[:2, 2:], torch.tensor([[0.6, 0.0], [0.0, 0.8]]))


def test_the_penalty_by_hand_with_and_without_the_block_size():
    weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]])  # one block of p = 4 elements, norm 5
    assert Lasso("subgradient", 0.1, 2, scaled=False).penalty([weight]).item() == pytest.approx(0.5)
    assert Lasso("subgradient", 0.1, 2, scaled=True).penalty([weight]).item() == pytest.approx(1.0)  # times sqrt(4)
    assert Lasso("proximal", 0.1, 2).penalty([weight, weight]).item() == pytest.approx(2.0)
    assert Lasso("none", 0.1, 2).penalty([weight]).item() == 0.0


def test_the_hinge_is_silent_below_its_budget():
    weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]], requires_grad=True)
    silent = Lasso("hinge", 0.1, 2, scaled=False, budget=6.0).penalty([weight])
    silent.backward()
    assert silent.item() == 0.0 and not weight.grad.any()
    weight.grad = None
    acting = Lasso("hinge", 0.1, 2, scaled=False, budget=4.0).penalty([weight])
    acting.backward()
    assert acting.item() == pytest.approx(0.1) and torch.allclose(weight.grad, 0.1 * weight.detach() / 5)


@pytest.mark.parametrize(("scaled", "left"), [(False, 4.0), (True, 3.0)])
def test_the_proximal_step_by_hand(scaled: bool, left: float):
    weight = torch.tensor([[3.0, 0.0, 0.6], [0.0, 4.0, 0.0]])
    weight = torch.cat([weight, torch.zeros(2, 1)], dim=1)  # blocks of norm 5 and 0.6
    Lasso("proximal", 10.0, 2, scaled=scaled).shrink_([weight], learning_rate=0.1)  # takes 1 (2 if scaled) off each
    assert block_norms(weight, 2)[0, 0].item() == pytest.approx(left)
    assert (weight[:, 2:] == 0).all()


def test_only_the_proximal_step_gives_exact_zeros():
    zeros = {}
    for form in ("proximal", "subgradient"):
        weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
        lasso, optimizer = Lasso(form, 1.0, 2), torch.optim.SGD([weight], 0.1)
        for _ in range(50):
            optimizer.zero_grad()
            loss = (weight * 0).sum()
            (loss + lasso.penalty([weight]) if lasso.in_loss else loss).backward()
            optimizer.step()
            lasso.shrink_([weight], 0.1)
        zeros[form] = int((block_norms(weight, 2) == 0).sum())
    assert zeros == {"proximal": 16, "subgradient": 0}


def test_a_zero_strength_shrinks_nothing():
    weight = torch.randn(4, 4)
    weight[:2, :2] = 0
    before = weight.clone()
    Lasso("proximal", 0.0, 2).shrink_([weight], 0.1)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("criterion", list(CRITERIA))
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_masks_only_shrink_and_end_on_target(schedule: str, criterion: str):
    cell = CELL.model_copy(update={"schedule": schedule, "criterion": criterion, "prune_every": 3})
    parameters = weights()
    pruner = Pruner(parameters, cell, steps=20)
    kept = {name: mask.kept for name, mask in pruner.masks.items()}
    for step in range(1, 21):
        for parameter in parameters.values():
            parameter.data += torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        pruner.after_step(step)
        for name, mask in pruner.masks.items():
            assert not (mask.kept & ~kept[name]).any()
            assert (parameters[name][~mask.expand()] == 0).all() and (parameters[name][mask.expand()] != 0).all()
        kept = {name: mask.kept for name, mask in pruner.masks.items()}
    wanted = 0.0 if schedule == "none" else 0.75
    assert pruner.sparsity == wanted and all(mask.sparsity == wanted for mask in pruner.masks.values())


def test_pre_is_random_whatever_the_criterion_and_seeded_by_the_cell():
    patterns = {}
    for criterion, seed in (("l2", 0), ("max", 0), ("l2", 1)):
        cell = CELL.model_copy(update={"schedule": "pre", "criterion": criterion, "seed": seed})
        patterns[criterion, seed] = Pruner(weights(), cell, steps=20).masks["first"].kept
    assert torch.equal(patterns["l2", 0], patterns["max", 0])
    assert not torch.equal(patterns["l2", 0], patterns["l2", 1])
    assert TrainCell(schedule="pre", target_sparsity=0.5, criterion="max").cell_id == (
        TrainCell(schedule="pre", target_sparsity=0.5).cell_id
    )


def test_pruned_gradients_are_zero_before_they_are_clipped():
    parameters = weights()
    pruner = Pruner(parameters, CELL.model_copy(update={"schedule": "pre"}), steps=20)
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, torch.nan)
    pruner.mask_gradients()
    for name, mask in pruner.masks.items():
        assert (parameters[name].grad[~mask.expand()] == 0).all()
        assert parameters[name].grad[mask.expand()].isnan().all()


def test_the_ramp_ends_on_its_last_step_even_between_updates():
    cell = CELL.model_copy(update={"prune_every": 7})
    pruner = Pruner(weights(), cell, steps=20)
    achieved = []
    for step in range(1, 21):
        pruner.after_step(step)
        achieved.append(pruner.sparsity)
    changes = [step for step in range(2, 21) if achieved[step - 1] != achieved[step - 2]]
    assert changes == [7, 14, 16] and achieved[-1] == 0.75


SHAPES = {"square": (4608, 1152), "wide": (4608, 384), "small": (1536, 384)}


@given(low=st.floats(0, 1), high=st.floats(0, 1), allocation=st.sampled_from(["uniform", "erk"]))
def test_an_allocation_adds_up_and_never_falls(low: float, high: float, allocation: str):
    low, high = sorted((low, high))
    before, after = (allocate(SHAPES, sparsity, allocation) for sparsity in (low, high))
    assert all(0 <= before[name] <= after[name] + 1e-12 <= 1 + 1e-12 for name in SHAPES)
    sizes = {name: rows * cols for name, (rows, cols) in SHAPES.items()}
    assert sum(after[name] * sizes[name] for name in SHAPES) / sum(sizes.values()) == pytest.approx(high, abs=1e-9)


def test_erk_by_hand():
    found = allocate({"large": (8, 8), "small": (4, 4)}, 0.5, "erk")  # 40 elements kept: 40 / 24 per row and column
    assert found == {"large": pytest.approx(1 - 40 / 24 * 16 / 64), "small": pytest.approx(1 - 40 / 24 * 8 / 16)}
    assert allocate({"large": (8, 8), "small": (4, 4)}, 0.1, "erk")["small"] == 0.0  # would be denser than dense


def test_erk_masks_only_shrink_and_end_on_the_whole_target():
    parameters = {"large": nn.Parameter(torch.randn(32, 32)), "small": nn.Parameter(torch.randn(16, 8))}
    pruner = Pruner(parameters, CELL.model_copy(update={"allocation": "erk", "schedule": "cubic"}), steps=20)
    for step in range(1, 21):
        pruner.after_step(step)
    assert pruner.sparsity == pytest.approx(0.75, abs=0.02)
    assert pruner.masks["small"].sparsity < pruner.masks["large"].sparsity


def test_a_scaled_start_keeps_the_variance_of_what_is_left():
    cell = CELL.model_copy(update={"schedule": "pre"})
    plain, scaled = weights(), weights()
    pruner = Pruner(plain, cell, 10)
    Pruner(scaled, cell.model_copy(update={"scaled_start": True}), 10)
    for name, mask in pruner.masks.items():
        torch.testing.assert_close(scaled[name], plain[name] / (1 - mask.sparsity) ** 0.5)
    assert any(not torch.equal(scaled[name], plain[name]) for name in plain)
    gradual = TrainCell(schedule="cubic", target_sparsity=0.5)
    assert gradual.model_copy(update={"scaled_start": True}).cell_id == gradual.cell_id
    begun = weights()
    Pruner(begun, CELL.model_copy(update={"scaled_start": True}), 10)  # a ramp begins dense
    assert all(torch.equal(begun[name], weights()[name]) for name in begun)
