"""Schedules, criteria, the block lasso and the pruner, over everything that is registered."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from bench.cells import TrainCell
from bench.pruning.allocation import allocate
from bench.pruning.criteria import CRITERIA, Evidence
from bench.pruning.lasso import Lasso, ball_threshold, block_norms
from bench.pruning.pruner import Pruner
from bench.pruning.ranking import ranked
from bench.pruning.schedules import SCHEDULES, is_ramp, sparsity_at
from kernels.blockmask import BlockMask

CELL = TrainCell(block_size=4, schedule="linear", target_sparsity=0.75, prune_end=0.8, prune_every=1, threads=1)


def seen_of(weight: torch.Tensor) -> list[torch.Tensor]:
    """A gradient, its square, a movement and a curvature for a weight."""
    generator = torch.Generator().manual_seed(2)
    gradient = torch.randn(weight.shape, generator=generator)
    return [gradient, gradient.square(), -weight * gradient, gradient.abs()]


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
    assert [SCHEDULES["narang"](step, 10, 0.5, 0.0, 1.0) for step in (0, 4, 5, 6, 10)] == pytest.approx(
        [0.0, 0.16, 0.2, 0.26, 0.5]
    )


@given(
    name=st.sampled_from([name for name in SCHEDULES if is_ramp(name)]),
    steps=st.integers(1, 300),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_ramp_from_a_sparsity_above_zero(name: str, steps: int, shares: tuple, ends: tuple):
    (initial, target), (begin, end) = sorted(shares), sorted(ends)
    values = [sparsity_at(name, step, steps, target, begin, end, initial) for step in range(steps + 1)]
    assert all(early <= late + 1e-12 for early, late in pairwise(values))
    assert all(value == 0.0 for step, value in enumerate(values) if step < begin * steps)
    assert all(value >= initial - 1e-12 for step, value in enumerate(values) if step >= begin * steps)
    assert all(value == target for step, value in enumerate(values) if step >= end * steps)


def test_the_slides_ramp_begins_at_b():
    """rho_t = a (t - 1) + b: here b = 0.2, and 0.8 after 10 steps."""
    values = [sparsity_at("linear", step, 10, 0.8, 0.0, 1.0, 0.2) for step in range(11)]
    assert values == pytest.approx([0.2 + 0.06 * step for step in range(11)])
    cell = CELL.model_copy(update={"initial_sparsity": 0.25, "prune_begin": 0.5})
    pruner, found = Pruner(weights(), cell, steps=20), []
    for step in range(1, 21):
        pruner.after_step(step)
        found.append(pruner.sparsity)
    assert found[8:10] == [0.0, 0.25] and found[-1] == 0.75
    with pytest.raises(ValueError, match=r"initial_sparsity: 0.9; accepted: up to target_sparsity, 0.5"):
        TrainCell(schedule="cubic", target_sparsity=0.5, initial_sparsity=0.9)
    plain = TrainCell(schedule="one_shot", target_sparsity=0.5)
    assert plain.model_copy(update={"initial_sparsity": 0.9}).cell_id == plain.cell_id


@pytest.mark.parametrize("name", list(CRITERIA))
@pytest.mark.parametrize(("rows", "cols", "block_size"), [(8, 12, 4), (6, 2, 1), (5, 5, 5)])
def test_a_criterion_scores_every_block(name: str, rows: int, cols: int, block_size: int):
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(1))
    before = weight.clone()
    first, again = (
        CRITERIA[name](Evidence(weight, block_size, torch.Generator().manual_seed(3), *seen_of(weight)))
        for _ in range(2)
    )
    assert first.shape == (rows // block_size, cols // block_size)
    assert torch.isfinite(first).all() and torch.equal(first, again) and torch.equal(weight, before)


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "random"])
def test_a_criterion_ranks_smaller_blocks_lower(name: str):
    """Smaller weights, or gradients, or both."""
    weight = torch.ones(8, 8)
    weight[4:, :4] *= 0.1
    scores = CRITERIA[name](Evidence(weight, 4, torch.Generator(), *[weight] * 4))
    assert scores.flatten().argmin() == 2


def test_criteria_by_hand():
    weight = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
    evidence = Evidence(
        weight,
        2,
        torch.Generator(),
        gradient=torch.tensor([[1.0, 2.0], [2.0, 4.0]]),
        square=torch.tensor([[2.0, 9.0], [9.0, 3.0]]),
        movement=torch.tensor([[1.0, 2.0], [-4.0, -8.0]]),
        curvature=torch.tensor([[18.0, 0.0], [0.0, -48.0]]),  # of a diagonal of 2 and -3
    )
    scores = {name: CRITERIA[name](evidence).item() for name in CRITERIA if name != "random"}
    assert scores == {
        "l2": 5.0,
        "l1": 7.0,
        "max": 4.0,
        "rms": 2.5,
        "taylor": 13.0,  # |3 - 16|
        "gradient": 5.0,  # the root of 1 + 4 + 4 + 16
        "obd": 33.0,  # half of 9 * 2 + 16 * 3
        "movement": -9.0,
        "hessian": -15.0,  # half of 9 * 2 - 16 * 3
    }


def test_what_criteria_look_at_is_summed_over_steps():
    """Means since the masks changed last; of movement everything, and nothing once all is pruned."""
    parameters = {"weight": nn.Parameter(torch.tensor([[2.0, 2.0], [1.0, 4.0]]))}  # four blocks of one element
    gradients = torch.tensor([[[1.0, -4.0], [3.0, 1.0]], [[3.0, 0.0], [1.0, 1.0]]])
    settings = {"block_size": 1, "prune_every": 2, "prune_end": 1.0, "target_sparsity": 0.5}
    wanted = {  # after steps 1 and 2, and after steps 3 and 4
        "taylor": ([[4.0, 4.0], [2.0, 4.0]], [[1.0, 1.0], [0.5, 2.0]]),
        "obd": ([[10.0, 16.0], [2.5, 8.0]], [[0.5, 0.5], [0.125, 2.0]]),
        "movement": ([[-8.0, 8.0], [-4.0, -8.0]], [[-9.0, 7.0], [-4.5, -10.0]]),
        "gradient": ([[2.0, 2.0], [2.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]),
    }
    for criterion, (first, second) in wanted.items():
        pruner = Pruner(parameters, CELL.model_copy(update={**settings, "criterion": criterion}), steps=4)
        for gradient in gradients:
            parameters["weight"].grad = gradient.clone()
            pruner.look(1)
        assert torch.equal(pruner.criterion(pruner._evidence("weight")), torch.tensor(first)), criterion
        held = pruner.state_dict()
        pruner._asked, pruner.masks = 0.25, dict(pruner.masks)  # as if a block were pruned, and none is
        pruner._tighten(0.0)
        other = Pruner(parameters, CELL.model_copy(update={**settings, "criterion": criterion}), steps=4)
        other.load_state_dict(held)
        other._tighten(0.0)
        for one in (pruner, other):
            parameters["weight"].grad = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
            one.look(3)
            one.look(4) if criterion != "movement" else None
            assert torch.equal(one.criterion(one._evidence("weight")), torch.tensor(second)), criterion
            one._tighten(0.5)
            assert one.is_done and not one.state_dict()["sums"]
            one.look(5)
            assert not one.state_dict()["sums"]
        parameters["weight"].data.copy_(torch.tensor([[2.0, 2.0], [1.0, 4.0]]))


def test_a_cut_before_any_gradient_is_refused():
    settings = {"target_sparsity": 0.5, "criterion": "taylor"}
    with pytest.raises(ValueError, match="prune_begin: 0 cuts before any gradient was seen, which taylor goes by; acc"):
        TrainCell(**settings, schedule="one_shot")
    with pytest.raises(ValueError, match="prune_end: 0 cuts before any gradient"):
        TrainCell(**settings, schedule="cubic", prune_end=0.0)
    for other in ({"schedule": "pre"}, {"schedule": "linear"}, {"schedule": "one_shot", "prune_begin": 0.1}):
        TrainCell(**settings, **other)


def test_ranking_by_hand():
    first = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])  # a gate a row of blocks
    scores = {"first": first, "second": 10.0 * first}
    kept = {allocation: ranked(scores, 4, 0.5, allocation) for allocation in ("uniform", "gate", "global")}
    assert kept["uniform"]["first"].kept.tolist() == [[False] * 2] * 2 + [[True] * 2] * 2
    assert kept["gate"]["second"].kept.tolist() == [[False, True]] * 4
    assert not kept["global"]["first"].kept.any() and kept["global"]["second"].kept.all()
    assert [mask.shape for mask in kept["global"].values()] == [(16, 8)] * 2


@pytest.mark.parametrize("allocation", ["gate", "global"])
def test_masks_shrink_to_the_target_of_each_gate_or_of_all_together(allocation: str):
    cell = CELL.model_copy(update={"allocation": allocation, "target_sparsity": 0.5})
    parameters = {
        name: nn.Parameter(scale * torch.randn(16, 8, generator=torch.Generator().manual_seed(0)))
        for name, scale in (("small", 0.01), ("large", 1.0))
    }
    pruner = Pruner(parameters, cell, steps=20)
    for step in range(1, 21):
        pruner.after_step(step)
    assert pruner.sparsity == 0.5
    shares = [mask.kept.view(4, -1).sum(dim=1).tolist() for mask in pruner.masks.values()]
    assert shares == ([[1] * 4] * 2 if allocation == "gate" else [[0] * 4, [2] * 4])


def test_scores_tell_what_the_loss_rises_by_when_a_block_goes():
    """Spearman's rank correlation on a small trained network: of obd and hessian high, of random none."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 16, generator=generator)
    y = torch.tanh(x @ torch.randn(16, 8, generator=generator) / 4) @ torch.randn(8, 3, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    weight = model[0].weight
    pruners = {
        name: Pruner({"weight": weight}, CELL.model_copy(update={"criterion": name, "prune_begin": 0.9}), steps=1000)
        for name in CRITERIA
    }
    pruners["hessian"].cell = CELL.model_copy(update={"criterion": "hessian", "curvature_probes": 16})
    for step in range(300):
        batch = torch.randint(512, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[batch]), y[batch]).backward()
        for pruner in pruners.values():
            if step >= 200 or pruner.looks_at == ("movement",):
                pruner.look(step)
        optimizer.step()
    pruners["hessian"].see_curvature(nn.functional.mse_loss(model(x), y))

    @torch.no_grad()
    def rise(row: int, col: int) -> float:
        before = weight.clone()
        weight[4 * row : 4 * row + 4, 4 * col : 4 * col + 4] = 0.0
        risen = nn.functional.mse_loss(model(x), y).item()
        weight.copy_(before)
        return risen - nn.functional.mse_loss(model(x), y).item()

    rises = [rise(row, col) for row in range(8) for col in range(4)]
    found = {
        name: float(spearmanr(pruner.criterion(pruner._evidence("weight")).flatten().numpy(), rises).statistic)
        for name, pruner in pruners.items()
    }
    print(found)
    assert min(found[name] for name in ("obd", "hessian", "l2")) > 0.7 and abs(found["random"]) < 0.5, found


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


def test_the_dual_variable_by_hand():
    """It rises while the sum of norms is above k and falls below it, never under zero."""
    weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]], requires_grad=True)  # norm 5
    lasso = Lasso("dual", 0.1, 2, scaled=False, budget=4.0, rate=0.5)
    penalty = lasso.penalty([weight])
    penalty.backward()
    assert penalty.item() == pytest.approx(0.5) and torch.allclose(weight.grad, 0.1 * weight.detach() / 5)
    lasso.shrink_([weight], learning_rate=9.0)
    assert float(lasso.multiplier) == pytest.approx(0.1 + 0.5 * 1.0) and weight[0, 0].item() == 3.0
    lasso.budget = 6.5
    lasso.shrink_([weight], learning_rate=9.0)
    assert float(lasso.multiplier) == 0.0


def test_dual_ascent_meets_the_budget():
    """min |w - 2|^2 / 2 with ||w|| <= 1, for each of four blocks of one element: all at 0.25 with lambda 1.75."""
    weight = nn.Parameter(torch.full((4, 1), 2.0).view(2, 2))
    lasso, optimizer = Lasso("dual", 0.0, 1, budget=1.0, rate=0.02), torch.optim.SGD([weight], 0.2)
    for _ in range(2000):
        optimizer.zero_grad()
        (0.5 * (weight - 2.0).square().sum() + lasso.penalty([weight])).backward()
        optimizer.step()
        lasso.shrink_([weight], 0.2)
    assert weight.detach().flatten().tolist() == pytest.approx([0.25] * 4, abs=1e-3)
    assert float(lasso.multiplier) == pytest.approx(1.75, abs=1e-2)


@given(
    norms=st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=12),
    most=st.floats(1e-3, 1e4),
)
def test_the_threshold_of_an_l1_ball_is_the_one_at_which_the_sum_fits(norms: list[float], most: float):
    given_ = torch.tensor(norms, dtype=torch.float64)
    threshold = ball_threshold(given_, most)
    left = (given_ - threshold).clamp(min=0.0).sum().item()
    if sum(norms) <= most:
        assert threshold == 0.0
    else:
        assert left == pytest.approx(most, rel=1e-9)


@pytest.mark.parametrize(("scaled", "budget"), [(False, 4.0), (True, 8.0)])
def test_the_projection_by_hand(scaled: bool, budget: float):
    """Norms 5 and 1 over two matrices, to a sum of 4: 1 goes to nothing, 5 to 4."""
    first, second = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.6, 0.0], [0.8, 0.0]])
    lasso = Lasso("projection", 0.0, 2, scaled=scaled, budget=budget)
    assert not lasso.in_loss and lasso.penalty([first]).item() == 0.0
    lasso.shrink_([first, second], learning_rate=1.0)
    assert torch.allclose(first, torch.tensor([[2.4, 0.0], [0.0, 3.2]])) and not second.any()
    before = first.clone()
    lasso.shrink_([first, second], learning_rate=1.0)
    assert torch.allclose(first, before, atol=1e-6)


def test_a_budget_of_nothing_is_refused():
    for form in ("dual", "projection"):
        with pytest.raises(ValueError, match=f"lasso_budget: 0 allows {form} no block; accepted: more than 0"):
            TrainCell(lasso=form)
    assert TrainCell(lasso="projection", lasso_budget=5.0, lasso_strength=3.0).cell_id == (
        TrainCell(lasso="projection", lasso_budget=5.0).cell_id
    )


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
            parameter.grad = torch.randn(16, 8, generator=torch.Generator().manual_seed(99 + step))
        pruner.look(step)
        if pruner.wants_curvature(step):
            pruner.see_curvature(sum(parameter.pow(4).sum() for parameter in parameters.values()))
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


REGROWN = {"schedule": "pre", "target_sparsity": 0.5, "prune_every": 2, "prune_end": 1.0, "regrow_share": 0.5}


@pytest.mark.parametrize("regrow", ["set", "rigl"])
def test_blocks_are_exchanged_at_equal_sparsity(regrow: str):
    """The least ones for empty ones that begin at zero: half of those kept at first, none in the end."""
    parameters = weights()
    pruner = Pruner(parameters, CELL.model_copy(update={**REGROWN, "regrow": regrow}), steps=20)
    optimizer = torch.optim.Adam(parameters.values(), 1e-3)
    counts = []
    for step in range(1, 21):
        before = {name: (mask.kept, parameters[name].detach().clone()) for name, mask in pruner.masks.items()}
        gradients = {
            name: torch.randn(16, 8, generator=torch.Generator().manual_seed(step + 50 * number))
            for number, name in enumerate(parameters)
        }
        for name, parameter in parameters.items():
            parameter.grad = gradients[name].clone()
        pruner.look(step)
        pruner.mask_gradients()
        optimizer.step()
        updated = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        pruner.after_step(step, optimizer)
        for name, mask in pruner.masks.items():
            kept, _ = before[name]
            gone, come = kept & ~mask.kept, ~kept & mask.kept
            assert gone.sum() == come.sum() and mask.sparsity == 0.5
            norms = block_norms(updated[name], 4)
            if gone.any():
                assert norms[gone].max() <= norms[kept & mask.kept].min()
            new = BlockMask(come, 4).expand() if come.any() else torch.zeros(16, 8, dtype=torch.bool)
            assert not parameters[name][new].any() and not optimizer.state[parameters[name]]["exp_avg"][new].any()
            if regrow == "rigl" and come.any():
                seen = block_norms(gradients[name], 4)
                assert seen[come].min() >= seen[~kept & ~come].max()
            counts.append(int(come.sum()))
    assert counts[2] == 1 or counts[2] == 2, counts  # after step 2: of four blocks nearly half
    assert sum(counts[0::4]) + sum(counts[1::4]) == 0 and counts[-2:] == [0, 0]
    assert not pruner._growing


def test_what_cannot_regrow_is_refused():
    with pytest.raises(ValueError, match="regrow: set with schedule one_shot; accepted: none, or schedule = pre"):
        TrainCell(schedule="one_shot", target_sparsity=0.5, regrow="set")
    with pytest.raises(ValueError, match="path: sparse computes no gradients of empty blocks, which rigl reads; accep"):
        TrainCell(schedule="pre", target_sparsity=0.5, regrow="rigl", path="sparse")
    TrainCell(schedule="pre", target_sparsity=0.5, regrow="set", path="sparse")
    plain = TrainCell(schedule="pre", target_sparsity=0.5)
    assert plain.model_copy(update={"regrow_share": 0.5, "prune_end": 0.3}).cell_id == plain.cell_id
    assert TrainCell(regrow="rigl").cell_id == TrainCell().cell_id


HELD = {"block_size": 1, "prune_every": 1, "target_sparsity": 0.0, "criterion": "max", "threshold": 2.0}


def held(schedule: str, steps: int, **settings: object) -> list[list[float]]:
    """The weights 0.5, 1, 2, 3 after each step."""
    weight = nn.Parameter(torch.tensor([[0.5, 1.0], [2.0, 3.0]]))
    pruner = Pruner({"weight": weight}, CELL.model_copy(update={**HELD, "schedule": schedule, **settings}), steps)
    found = []
    for step in range(1, steps + 1):
        pruner.after_step(step)
        found.append(weight.detach().flatten().tolist())
        assert pruner.scheduled(step) is None
        assert pruner.is_final(step) == (pruner._asked == 1.0)
    assert pruner.is_done and pruner.sparsity == sum(each == 0.0 for each in found[-1]) / 4
    return found


def test_blocks_whose_score_is_below_a_threshold_go():
    """M = 0 where |W| < λ, and a weight of just λ stays; a ramp raises λ from 0."""
    whole, cut = [0.5, 1.0, 2.0, 3.0], [0.0, 0.0, 2.0, 3.0]
    assert held("one_shot", 4, prune_begin=0.5) == [whole, cut, cut, cut]
    half = [0.0, 1.0, 2.0, 3.0]  # λ = 0.5, 1, 1.5, 2
    assert held("linear", 5, prune_end=0.8) == [whole, half, cut, cut, cut]
    assert held("linear", 5, prune_end=0.8, prune_every=3) == [whole, whole, cut, cut, cut]
    assert held("cubic", 4, prune_end=1.0, threshold=9.0)[-1] == [0.0] * 4


def test_a_threshold_holds_for_every_criterion_that_scores_and_goes_on_from_its_state():
    for criterion in CRITERIA:
        if criterion == "random":
            continue
        update = {"schedule": "linear", "threshold": 1.0, "target_sparsity": 0.0, "criterion": criterion}
        cell, parameters = CELL.model_copy(update=update), weights()
        pruner = Pruner(parameters, cell, steps=10)
        kept = {name: mask.kept for name, mask in pruner.masks.items()}
        for step in range(1, 11):
            for parameter in parameters.values():
                parameter.grad = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
            pruner.look(step)
            if pruner.wants_curvature(step):
                pruner.see_curvature(sum(parameter.pow(4).sum() for parameter in parameters.values()))
            pruner.after_step(step)
            assert not any((mask.kept & ~kept[name]).any() for name, mask in pruner.masks.items())
            kept = {name: mask.kept for name, mask in pruner.masks.items()}
        other = Pruner(parameters, cell, steps=10)
        other.load_state_dict(pruner.state_dict())
        assert other.is_done and other.sparsity == pruner.sparsity


def test_what_a_threshold_does_not_go_with_is_refused():
    for settings, said in (
        (
            {"schedule": "linear", "target_sparsity": 0.5},
            "target_sparsity: 0.5 with a threshold; accepted: 0.0, or thr",
        ),
        ({"schedule": "linear", "allocation": "erk"}, "allocation: erk with a threshold; accepted: uniform, or thresh"),
        ({"schedule": "linear", "initial_sparsity": 0.1}, "initial_sparsity: 0.1 with a threshold; accepted: 0.0, or"),
        ({"schedule": "one_shot", "regrow": "set"}, "regrow: set with a threshold; accepted: none, or threshold = 0"),
        ({"schedule": "pre"}, "threshold: 0.3 with schedule pre, whose scores are noise; accepted: 0"),
        ({"schedule": "linear", "criterion": "random"}, "threshold: 0.3 with criterion random, whose scores are noise"),
    ):
        with pytest.raises(ValueError, match=said):
            TrainCell(threshold=0.3, **settings)
    assert TrainCell(threshold=0.3).cell_id == TrainCell().cell_id  # schedule none
    cell = TrainCell(schedule="linear", threshold=0.3)
    assert cell.prunes and cell.canonical().schedule == "linear"
    assert cell.cell_id != TrainCell(schedule="linear", threshold=0.4).cell_id
    assert cell.cell_id != TrainCell(schedule="linear", threshold=0.3, criterion="rms").cell_id  # of another scale
    both = (TrainCell(schedule="linear", target_sparsity=0.5, criterion=name).cell_id for name in ("l2", "rms"))
    assert len(set(both)) == 1
