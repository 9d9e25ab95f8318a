"""Dead units: which they are, by hand and by what happens when they change; a model without them computes the same."""

from __future__ import annotations

import pytest
import torch

from bench.cells import TrainCell
from bench.models.registry import MODELS
from bench.pruning.finalize import FinalModel, Weights, finalize
from bench.pruning.removal import counts, live_units, without_dead_units
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix

VOCABULARY = 40


def built(masked: bool, density: float, seed: int, size: int = 4, layers: int = 3) -> FinalModel:
    """A random model in float64, its weights pruned in random blocks."""
    settings = {
        "embedding_size": 16,
        "hidden_size": 24,
        "num_layers": layers,
        "block_size": size,
        "decoder_bias": "zeros",
    }
    cell = TrainCell(**settings, schedule="pre", target_sparsity=0.5)
    torch.manual_seed(seed)
    model = MODELS["lstm"](cell, VOCABULARY).double()
    generator = torch.Generator().manual_seed(seed)
    masks = {
        name: BlockMask.random(*weight.shape, size, 1.0 - density, generator)
        for name, weight in model.prunable().items()
    }
    if not masked:  # dense weights with the same zeros
        with torch.no_grad():
            for name, weight in model.prunable().items():
                weight.mul_(masks[name].expand())
        masks = {}
    return finalize(model, masks)


def outputs(model: FinalModel) -> torch.Tensor:
    words = torch.randint(VOCABULARY, (2, 7, 3), generator=torch.Generator().manual_seed(1))
    first, states = model(words[0])
    return torch.cat([first, model(words[1], states)[0]])


def test_by_hand() -> None:
    """Three units below one: 0 is read by it, 1 only by 0, 2 by itself alone; 3 feeds it and stays zero."""
    recurrent = torch.zeros(16, 4)
    recurrent[0, 1] = 1.0  # the gate i of 0 reads 1
    recurrent[2, 2] = 1.0
    into = torch.ones(16, 1)
    into[8 + 3] = 0.0  # the candidate of 3 sees nothing
    above = torch.zeros(4, 4)
    above[0, 0] = above[1, 3] = 1.0
    bias = torch.ones(16)
    bias[8 + 3] = 0.0
    first: Weights = {"weight_ih": into, "weight_hh": recurrent, "bias_ih": bias, "bias_hh": bias}
    second: Weights = {
        "weight_ih": above,
        "weight_hh": torch.ones(4, 1),
        "bias_ih": torch.ones(4),
        "bias_hh": torch.ones(4),
    }
    model = FinalModel(torch.randn(5, 1), torch.zeros(5), [first, second])
    live = live_units(model)
    assert [each.tolist() for each in live] == [[True, True, False, False], [True]]
    assert counts(live) == [2, 1]
    narrow = without_dead_units(model)
    assert [layer.hidden_size for layer in narrow.layers] == [2, 1]
    words = torch.randint(5, (6, 2))
    torch.testing.assert_close(narrow(words)[0], model(words)[0])


@pytest.mark.parametrize("masked", [True, False], ids=["blocks", "dense"])
@pytest.mark.parametrize("density", [0.05, 0.1, 0.3, 1.0])
def test_a_model_without_its_dead_units_computes_the_same(density: float, masked: bool) -> None:
    found = []
    for seed in range(6):
        model = built(masked, density, seed)
        narrow = without_dead_units(model)
        torch.testing.assert_close(outputs(narrow), outputs(model), rtol=0.0, atol=1e-12)
        found.append([layer.hidden_size for layer in narrow.layers])
        assert all(live.all() for live in live_units(narrow)) or masked or found[-1][0] == 1
        assert narrow.nbytes <= model.nbytes
    assert all(sizes[-1] == 16 for sizes in found)
    if density < 0.1:
        assert min(sizes[0] for sizes in found) < 24
    if density == 1.0:
        assert all(sizes[:2] == [24, 24] for sizes in found)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_called_dead_changes_nothing_and_what_is_called_live_does(seed: int) -> None:
    """Noise in all weights that lead into a unit: seen from outside if and only if it is live."""
    model = built(False, 0.15, seed)
    wanted = outputs(model)
    for number, live in enumerate(live_units(model)[:-1]):
        for unit in range(len(live)):
            other = built(False, 0.15, seed)
            layer = other.layers[number]
            rows = unit + torch.arange(4) * len(live)
            with torch.no_grad():
                layer.bias_ih_l0[rows] += 0.5
            changed = not torch.allclose(outputs(other), wanted, rtol=0.0, atol=1e-12)
            assert changed == bool(live[unit]), (number, unit)


def test_units_that_hold_each_other_at_zero_are_dead() -> None:
    size = 3
    recurrent = torch.zeros(4 * size, size)
    recurrent[2 * size, 1] = recurrent[2 * size + 1, 0] = 1.0  # the candidates of 0 and 1 read each other alone
    recurrent[:, 2] = 1.0
    recurrent[2 * size : 2 * size + 2, 2] = 0.0
    into, bias = torch.ones(4 * size, 2), torch.zeros(4 * size)
    into[2 * size : 2 * size + 2] = 0.0
    weights: Weights = {"weight_ih": into, "weight_hh": recurrent, "bias_ih": bias, "bias_hh": bias}
    top: Weights = {
        "weight_ih": torch.randn(8, size),
        "weight_hh": torch.randn(8, 2),
        "bias_ih": torch.randn(8),
        "bias_hh": torch.randn(8),
    }
    model = FinalModel(torch.randn(6, 2), torch.randn(6), [weights, top])
    assert [each.tolist() for each in live_units(model)] == [[False, False, True], [True, True]]
    words = torch.randint(6, (9, 2))
    narrow = without_dead_units(model)
    torch.testing.assert_close(narrow(words)[0], model(words)[0])


def test_nothing_kept_leaves_a_block() -> None:
    empty = BSRMatrix.from_dense(torch.zeros(64, 16), BlockMask(torch.zeros(16, 4, dtype=torch.bool), 4))
    weights: Weights = {"weight_ih": empty, "weight_hh": empty, "bias_ih": torch.zeros(64), "bias_hh": torch.zeros(64)}
    model = FinalModel(torch.randn(6, 16), torch.zeros(6), [weights, dict(weights)])
    assert counts(live_units(model)) == [0, 0]
    narrow = without_dead_units(model)
    assert [layer.hidden_size for layer in narrow.layers] == [4, 16]
    words = torch.randint(6, (3, 2))
    torch.testing.assert_close(narrow(words)[0], model(words)[0])
