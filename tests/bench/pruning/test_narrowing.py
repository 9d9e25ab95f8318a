"""Dead neurons: which they are, by hand and by what happens when they change; without them nothing is different."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.pruning.classifier import FinalClassifier
from bench.pruning.exported import live, load, narrowed
from bench.pruning.narrowing import live_neurons, without_dead_neurons
from bench.pruning.removal import counts
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix

FEATURES, UNITS, CLASSES = 16, 24, 5


def drawn(
    density: float, seed: int, size: int, *, blocks: bool = True, layers: int = 3, planted: bool = True
) -> FinalClassifier:
    """A random classifier in float64, pruned in random blocks.

    planted: in one layer a third of the rows of blocks is empty, in the next of the columns. blocks: its weights are
    block-sparse; else dense with the same zeros.
    """
    generator, found = torch.Generator().manual_seed(seed), []
    for number in range(layers):
        into = UNITS if number else FEATURES
        kept = BlockMask.random(UNITS, into, size, 1.0 - density, generator).kept.clone()
        if planted and number == 1:
            kept[: len(kept) // 3] = False
        if planted and number == 2:
            kept[:, -(kept.shape[1] // 3) :] = False
        mask = BlockMask(kept, size)
        weight = torch.randn(UNITS, into, generator=generator, dtype=torch.float64) * mask.expand()
        bias = torch.randn(UNITS, generator=generator, dtype=torch.float64)  # constants are not zero
        found.append({"weight": BSRMatrix.from_dense(weight, mask) if blocks else weight, "bias": bias})
    output = torch.randn(CLASSES, UNITS, generator=generator, dtype=torch.float64)
    return FinalClassifier(found, {"weight": output, "bias": torch.randn(CLASSES, generator=generator).double()})


def outputs(model: FinalClassifier) -> torch.Tensor:
    return model(torch.rand(9, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]


def test_by_hand() -> None:
    """Two inputs; of the first layer 0 changes and is read, 1 is constant 3, 2 is unread, 3 is read by a dead one."""
    first = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    second = torch.tensor([
        [1.0, 1.0, 0.0, 0.0],  # reads 0, and the constant 3 of 1
        [0.0, 2.0, 0.0, 0.0],  # reads the constant alone: relu(2 * 3 - 1) = 5
        [0.0, 0.0, 0.0, 1.0],  # is read by nobody
    ])  # fmt: skip
    output = torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    model = FinalClassifier(
        [
            {"weight": first, "bias": torch.tensor([0.5, 3.0, 0.0, 0.0])},
            {"weight": second, "bias": torch.tensor([0.25, -1.0, 0.0])},
        ],
        {"weight": output, "bias": torch.tensor([0.0, 1.0])},
    )
    assert [each.tolist() for each in live_neurons(model)] == [[True, False, False, False], [True, False, False]]
    assert counts(live(model)) == [1, 1]
    narrow = without_dead_neurons(model)
    assert narrow.widths == [1, 1]
    assert narrow.layers[0].weight.tolist() == [[1.0, 2.0]] and narrow.layers[0].bias.tolist() == [0.5]
    assert narrow.layers[1].weight.tolist() == [[1.0]] and narrow.layers[1].bias.tolist() == [3.25]
    assert narrow.output.weight.tolist() == [[1.0], [2.0]] and narrow.output.bias.tolist() == [5.0, 1.0]
    x = torch.randn(7, 2)
    torch.testing.assert_close(narrow(x)[0], model(x)[0])
    assert narrow.sparsity is None and narrow.nbytes == 12  # of all weights in the layers, where none is pruned


def test_a_negative_constant_is_none() -> None:
    """relu makes 0 of it, and nothing goes into the bias above."""
    model = FinalClassifier(
        [{"weight": torch.tensor([[1.0], [0.0]]), "bias": torch.tensor([0.0, -2.0])}],
        {"weight": torch.tensor([[1.0, 7.0]]), "bias": torch.tensor([0.5])},
    )
    narrow = without_dead_neurons(model)
    assert narrow.widths == [1] and narrow.output.bias.tolist() == [0.5]


@pytest.mark.parametrize("blocks", [True, False], ids=["blocks", "dense"])
@pytest.mark.parametrize("size", [1, 4, 8])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 1.0])
def test_a_model_without_its_dead_neurons_computes_the_same(density: float, size: int, blocks: bool) -> None:
    found = []
    for seed in range(4):
        model = drawn(density, seed, size, blocks=blocks, layers=4)
        narrow = without_dead_neurons(model)
        torch.testing.assert_close(outputs(narrow), outputs(model), rtol=0.0, atol=1e-12)
        assert narrow.nbytes <= model.nbytes and narrowed(model).widths == narrow.widths
        alive, unit = counts(live_neurons(model)), size if blocks else 1
        assert all(each % unit == 0 for each in narrow.widths)
        assert all(max(count, 1) <= width for count, width in zip(alive, narrow.widths, strict=True))
        assert counts(live_neurons(narrow)) == alive
        if unit == 1:
            assert narrow.widths == [max(count, 1) for count in alive]
        if blocks:
            assert {weight.block_size for weight in narrow.sparse_weights} == {size}
        found.append(narrow.widths)
    assert all(widths[1] <= UNITS // 3 for widths in found), "what was planted is gone"
    assert density < 1.0 or found == [[UNITS, UNITS // 3, UNITS, UNITS]] * 4


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_called_dead_changes_nothing_and_what_is_called_live_does(seed: int, size: int) -> None:
    """A unit of its own value for each input: seen from outside if and only if somebody reads it.

    All numbers are positive, so that no ReLU hides what is read.
    """
    model = drawn(0.2, seed, size, blocks=False)
    with torch.no_grad():
        for each in model.parameters():
            each.abs_()
    wanted = outputs(model)
    for number, alive in enumerate(live_neurons(model)):
        changing = _changing(model, number)
        layer = model.layers[number]
        before = {name: each.clone() for name, each in layer.state_dict().items()}
        for unit in range(UNITS):
            with torch.no_grad():
                layer.weight[unit] += 1.0
                layer.bias[unit] += 20.0
            seen = not torch.allclose(outputs(model), wanted, rtol=0.0, atol=1e-9)
            layer.load_state_dict(before)
            assert (seen if changing[unit] else False) == bool(alive[unit]), (number, unit)


def _changing(model: FinalClassifier, number: int) -> torch.Tensor:
    """Which units of a layer differ from input to input, where all are positive."""
    x = torch.rand(50, FEATURES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for layer in list(model.layers)[:number]:
        x = layer(x)
    return (model.layers[number](x).std(dim=0) > 1e-9).detach()


def test_nothing_kept_leaves_a_block_and_the_constant_that_is_left() -> None:
    empty = BSRMatrix.from_dense(torch.zeros(16, 16), BlockMask(torch.zeros(4, 4, dtype=torch.bool), 4))
    bias = torch.linspace(-1.0, 2.0, 16)
    model = FinalClassifier(
        [{"weight": empty, "bias": bias}, {"weight": empty, "bias": bias.clone()}],
        {"weight": torch.randn(3, 16), "bias": torch.zeros(3)},
    )
    assert counts(live_neurons(model)) == [0, 0]
    narrow = without_dead_neurons(model)
    assert narrow.widths == [4, 4] and narrow.sparsity == 1.0
    x = torch.randn(5, 16)
    torch.testing.assert_close(narrow(x)[0], model(x)[0])


def test_a_first_layer_that_is_dense_is_narrowed_by_the_blocks_above() -> None:
    """As of scope = weight_hh."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.ones(4, 4, dtype=torch.bool)
    kept[:, 1] = kept[2] = False
    mask = BlockMask(kept, 4)
    above = torch.randn(16, 16, generator=generator) * mask.expand()
    model = FinalClassifier(
        [
            {"weight": torch.randn(16, 6, generator=generator), "bias": torch.randn(16, generator=generator)},
            {"weight": BSRMatrix.from_dense(above, mask), "bias": torch.randn(16, generator=generator)},
        ],
        {"weight": torch.randn(3, 16, generator=generator), "bias": torch.zeros(3)},
    )
    narrow = without_dead_neurons(model)
    assert narrow.widths == [12, 12] and narrow.layers[0].weight.shape == (12, 6) and narrow.sparsity == 0.0
    x = torch.randn(5, 6, generator=generator)
    torch.testing.assert_close(narrow(x)[0], model(x)[0])


def test_a_narrowed_model_is_one_like_others_and_shares_nothing(tmp_path: Path) -> None:
    model = drawn(0.3, 1, 4)
    narrow = without_dead_neurons(model)
    wanted = outputs(narrow)
    narrow.save(tmp_path / "narrow.pt")
    assert torch.equal(outputs(load(tmp_path / "narrow.pt")), wanted)
    assert not any(each.requires_grad for each in narrow.parameters())
    whole = drawn(1.0, 1, 4, planted=False)
    same = without_dead_neurons(whole)
    memory = {each.data_ptr() for each in whole.parameters()}
    assert same.widths == whole.widths and not memory & {each.data_ptr() for each in same.parameters()}
