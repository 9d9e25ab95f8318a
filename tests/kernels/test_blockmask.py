"""BlockMask: which blocks are kept, and how sparsity is counted."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from kernels.blockmask import BlockMask, grid_shape
from kernels.tensors.rounding import blocks_to_empty


def test_counts_by_hand() -> None:
    mask = BlockMask(torch.tensor([[True, False, False], [True, True, False]]), 4)
    assert (mask.grid, mask.shape) == ((2, 3), (8, 12))
    assert (mask.nnzb, mask.num_empty, mask.sparsity) == (3, 3, 0.5)
    assert mask.num_empty_per_row.tolist() == [2, 1]
    assert mask.expand().sum() == 3 * 16


@given(rows=st.integers(1, 8), cols=st.integers(1, 8), size=st.integers(1, 5), sparsity=st.floats(0, 1))
def test_random_empties_exactly_the_rounded_share(rows: int, cols: int, size: int, sparsity: float) -> None:
    mask = BlockMask.random(rows * size, cols * size, size, sparsity, torch.Generator().manual_seed(0))
    assert mask.num_empty == blocks_to_empty(sparsity, rows * cols)
    assert abs(mask.sparsity - sparsity) <= 0.5 / (rows * cols) + 1e-12


def test_random_is_reproducible() -> None:
    first, second = (BlockMask.random(64, 64, 8, 0.5, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.kept, second.kept)


def test_lowest_scores_go_first_and_ties_to_the_lower_index() -> None:
    mask = BlockMask.from_scores(torch.tensor([[3.0, 1.0], [1.0, 2.0]]), 0.25, 4)
    assert mask.kept.tolist() == [[True, False], [True, True]]


def test_from_dense_keeps_any_non_zero_and_nan() -> None:
    weight = torch.zeros(4, 6)
    weight[1, 1], weight[3, 5] = -0.5, float("nan")
    assert BlockMask.from_dense(weight, 2).kept.tolist() == [[True, False, False], [False, False, True]]


def test_a_size_that_does_not_divide_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="nearest sizes that work: 640 or 672"):
        grid_shape(650, 64, 32)
    with pytest.raises(ValueError, match=r"nearest sizes that work: 32$"):
        grid_shape(64, 20, 32)


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, 80.0, float("nan")])
def test_sparsity_is_a_fraction(sparsity: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        blocks_to_empty(sparsity, 10)


@pytest.mark.parametrize("grid", [(0, 3), (3, 0), (0, 0)])
def test_a_grid_without_blocks_is_refused(grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockMask(torch.ones(grid, dtype=torch.bool), 16)
    with pytest.raises(ValueError, match="at least one block"):
        BlockMask.from_scores(torch.ones(grid), 0.5, 16)
    with pytest.raises(ValueError, match="does not divide the weight's 0"):
        BlockMask.from_dense(torch.ones(grid[0] * 16, grid[1] * 16), 16)


def test_grids_are_bool() -> None:
    with pytest.raises(ValueError, match="2-d bool"):
        BlockMask(torch.ones(2, 2), 4)


@pytest.mark.parametrize("size", [2.0, "4", None, True, torch.tensor(2)])
def test_a_block_size_is_a_whole_number(size: Any) -> None:
    for call in (
        lambda: BlockMask(torch.ones(2, 2, dtype=torch.bool), size),
        lambda: BlockMask.full(4, 4, size),
        lambda: BlockMask.from_dense(torch.ones(4, 4), size),
        lambda: BlockMask.from_scores(torch.ones(2, 2), 0.5, size),
        lambda: grid_shape(4, 4, size),
    ):
        with pytest.raises(ValueError, match=r"\Ablock_size must be a whole number, got [^\n]*\Z"):
            call()
    assert BlockMask(torch.ones(2, 2, dtype=torch.bool), np.int64(4)).shape == (8, 8)
