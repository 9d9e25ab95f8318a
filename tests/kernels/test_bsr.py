"""BSRMatrix: there and back, the transposed index, and sizes."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.ops import block_sparse_matmul


@st.composite
def masks(draw: st.DrawFn) -> BlockMask:
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    kept = draw(st.lists(st.booleans(), min_size=rows * cols, max_size=rows * cols))
    return BlockMask(torch.tensor(kept).view(rows, cols), draw(st.sampled_from([1, 2, 4, 7])))


@settings(deadline=None)
@given(mask=masks())
def test_there_and_back(mask: BlockMask) -> None:
    weight = torch.randn(mask.shape)
    bsr = BSRMatrix.from_dense(weight, mask)
    assert torch.equal(bsr.to_dense(), weight * mask.expand())
    assert torch.equal(bsr.mask.kept, mask.kept)
    assert bsr.values_nbytes == 4 * mask.nnzb * mask.block_size**2
    assert bsr.index_nbytes == 4 * (mask.nnzb + mask.grid[0] + 1)


@settings(deadline=None)
@given(mask=masks())
def test_transposed_index(mask: BlockMask) -> None:
    weight = torch.randn(mask.shape)
    bsr = BSRMatrix.from_dense(weight, mask)
    indptr, indices, positions = bsr.transposed_index
    transposed = BSRMatrix(bsr.data[positions].mT, indices, indptr, (bsr.shape[1], bsr.shape[0]))
    assert torch.equal(transposed.to_dense(), bsr.to_dense().T)
    expected = BSRMatrix.from_dense(bsr.to_dense().T.contiguous(), BlockMask(mask.kept.T.contiguous(), mask.block_size))
    assert torch.equal(transposed.indices, expected.indices) and torch.equal(transposed.indptr, expected.indptr)
    assert {index.dtype for index in bsr.transposed_index} == {torch.int32}


def test_inconsistent_parts_are_refused() -> None:
    data, indices, indptr = torch.zeros(1, 2, 2), torch.zeros(1, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    BSRMatrix(data, indices, indptr, (4, 4))
    with pytest.raises(ValueError, match="int32"):
        BSRMatrix(data, indices.long(), indptr, (4, 4))
    with pytest.raises(ValueError, match="square"):
        BSRMatrix(torch.zeros(1, 2, 3), indices, indptr, (4, 4))
    with pytest.raises(ValueError, match="need indices"):
        BSRMatrix(data, indices, indptr[:2], (4, 4))
    with pytest.raises(ValueError, match="the mask covers"):
        BSRMatrix.from_dense(torch.zeros(4, 6), BlockMask.full(4, 4, 2))


@pytest.mark.parametrize("shape", [(24,), (4, 4, 4), 4, None, (4.0, 4), ("4", 4), (4, True)])
def test_a_shape_that_is_none_is_refused(shape: Any) -> None:
    data, indices, indptr = torch.zeros(1, 2, 2), torch.zeros(1, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"\A[^\n]* must be [^\n]*\Z"):
        BSRMatrix(data, indices, indptr, shape)
    assert BSRMatrix(data, indices, indptr, [4, 4]).shape == (4, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_has_the_pattern_that_products_have(copied: Callable[[BSRMatrix], BSRMatrix], frozen: bool) -> None:
    weight, x = torch.randn(4, 8), torch.randn(8, 3)
    bsr = BSRMatrix.from_dense(weight, BlockMask.from_dense(torch.eye(2).repeat_interleave(2, 0).repeat(1, 4), 2))
    bsr = bsr.freeze() if frozen else bsr
    wanted = block_sparse_matmul(bsr, x)
    for each in (bsr.indices, bsr.index.indices):
        each.fill_(0)
    assert torch.equal(block_sparse_matmul(bsr, x), wanted)
    assert torch.equal(block_sparse_matmul(copied(bsr), x), wanted)


def test_a_frozen_matrix_may_be_replaced_as_any_dataclass() -> None:
    frozen = BSRMatrix.from_dense(torch.randn(4, 8), BlockMask.full(4, 8, 2)).freeze()
    other = dataclasses.replace(frozen, data=2 * frozen.data)
    assert other.frozen and torch.equal(other.to_dense(), 2 * frozen.to_dense())


@pytest.mark.parametrize(
    ("indices", "indptr", "message"),
    [
        ([0, 3], [0, 1, 2], r"indices must lie in \[0, 3\)"),
        ([-1, 0], [0, 1, 2], r"indices must lie in \[0, 3\)"),
        ([0, 1], [5, 6, 7], "indptr must rise from 0 to 2"),
        ([0, 1], [0, 3, 2], "indptr must rise"),
        ([0, 1], [0, 1, 1], "indptr must rise"),
        ([2, 0], [0, 2, 2], "indices must ascend"),
        ([1, 1], [0, 2, 2], "indices must ascend"),
    ],
)
def test_a_pattern_that_points_outside_reaches_no_kernel(indices: list[int], indptr: list[int], message: str) -> None:
    parts = (torch.tensor(part, dtype=torch.int32) for part in (indices, indptr))
    matrix = BSRMatrix(torch.zeros(2, 4, 4), *parts, (8, 12))
    with pytest.raises(ValueError, match=message):
        block_sparse_matmul(matrix, torch.zeros(12, 1))
