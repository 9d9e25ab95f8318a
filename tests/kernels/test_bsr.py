"""BSRMatrix: there and back, the transposed index, and sizes."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy import sparse

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


@pytest.mark.filterwarnings("ignore:Sparse")  # torch's, that its BSR is in beta state
@settings(deadline=None)
@given(mask=masks(), wide=st.booleans())
def test_torchs_there_and_back(mask: BlockMask, wide: bool) -> None:
    bsr = BSRMatrix.from_dense(torch.randn(mask.shape), mask)
    theirs = bsr.to_torch()
    assert theirs.layout is torch.sparse_bsr and torch.equal(theirs.to_dense(), bsr.to_dense())
    if wide:  # as torch itself makes them
        indptr, indices = theirs.crow_indices().long(), theirs.col_indices().long()
        theirs = torch.sparse_bsr_tensor(indptr, indices, theirs.values(), size=theirs.shape)
    back = BSRMatrix.from_torch(theirs)
    assert back.data.data_ptr() == bsr.data.data_ptr() and back.indices.dtype == back.indptr.dtype == torch.int32
    assert torch.equal(back.to_dense(), bsr.to_dense()) and torch.equal(back.mask.kept, mask.kept)
    frozen = bsr.freeze().to_torch()
    frozen.values().zero_()
    assert torch.equal(bsr.freeze().to_dense(), bsr.to_dense())


@settings(deadline=None)
@given(mask=masks(), dtype=st.sampled_from([torch.float32, torch.float64, torch.complex64]), wide=st.booleans())
def test_scipys_there_and_back(mask: BlockMask, dtype: torch.dtype, wide: bool) -> None:
    bsr = BSRMatrix.from_dense(torch.randn(mask.shape, dtype=dtype), mask)
    theirs = bsr.to_scipy()
    assert isinstance(theirs, sparse.bsr_array) and theirs.blocksize == (mask.block_size, mask.block_size)
    assert np.array_equal(theirs.toarray(), bsr.to_dense().numpy())
    if wide:
        theirs.indices, theirs.indptr = theirs.indices.astype(np.int64), theirs.indptr.astype(np.int64)
    for given_ in (theirs, sparse.bsr_matrix(theirs)):
        back = BSRMatrix.from_scipy(given_)
        assert torch.equal(back.to_dense(), bsr.to_dense()) and torch.equal(back.mask.kept, mask.kept)
        back.data.zero_()
    assert np.array_equal(theirs.toarray(), bsr.to_dense().numpy())


@pytest.mark.filterwarnings("ignore:Sparse")
def test_gradients_go_through_torchs_bsr_and_not_through_scipys() -> None:
    bsr = BSRMatrix.from_dense(torch.randn(4, 8), BlockMask.full(4, 8, 2))
    leaf = bsr.data.clone().requires_grad_()
    back = BSRMatrix.from_torch(bsr.with_data(leaf).to_torch())
    block_sparse_matmul(back, torch.ones(8, 3)).sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(leaf, 3.0))
    assert not BSRMatrix.from_scipy(bsr.with_data(leaf).to_scipy()).data.requires_grad


def test_scipys_blocks_are_put_in_order_and_added_up() -> None:
    data = np.arange(12.0).reshape(3, 2, 2)
    theirs = sparse.bsr_array((data, np.array([1, 0, 0]), np.array([0, 3, 3])), shape=(4, 4))
    bsr = BSRMatrix.from_scipy(theirs)
    assert bsr.indices.tolist() == [0, 1] and np.array_equal(bsr.to_dense().numpy(), theirs.toarray())
    assert theirs.nnz == 12  # the one that was given is as it was


def bsr_tensor(indptr: object, indices: object, data: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    given_ = (torch.tensor(part, dtype=torch.int64) for part in (indptr, indices))
    return torch.sparse_bsr_tensor(*given_, data, size=shape, check_invariants=False)


TWO = torch.ones(2, 2, 2)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: torch.ones(4, 6).to_sparse_bsr((2, 3)), r"blocks must be square, got 2 x 3; .*to_sparse_bsr\(\(b, b"),
        (lambda: torch.ones(3, 4, 4).to_sparse_bsr((2, 2)), r"matrix must be one matrix, got \[3, 4, 4\]: of a batch"),
        (lambda: torch.ones(4, 4, 5).to_sparse_bsr((2, 2), dense_dim=1), "or with dense dimensions"),
        (
            lambda: torch.ones(4, 4).to_sparse_csr(),
            r"got one of torch.sparse_csr; its to_sparse_bsr\(\(b, b\)\) is one",
        ),
        (lambda: torch.ones(4, 4).to_sparse_coo(), "got one of torch.sparse_coo; its to_sparse_bsr"),
        (lambda: torch.ones(4, 4), "got one of torch.strided; BSRMatrix.from_dense takes"),
        (lambda: sparse.bsr_array(np.eye(4)), "got bsr_array; BSRMatrix.from_scipy takes"),
        (lambda: None, "matrix must be a tensor of torch.sparse_bsr, got NoneType"),
        (lambda: bsr_tensor([0, 1, 2], [0, 2**40], TWO, (4, 4)), "indices must be at most 2147483647, got 0 to 109951"),
        (lambda: bsr_tensor([0, 1, 2**33], [0, 1], TWO, (4, 4)), "indptr must be at most 2147483647"),
        (lambda: bsr_tensor([0, 1, 2], [0, 2], TWO, (4, 4)), r"indices must lie in \[0, 2\)"),
        (lambda: bsr_tensor([0, 2, 2], [1, 0], TWO, (4, 4)), "indices must ascend"),
        (lambda: bsr_tensor([0, 1, 1], [1, 0], TWO, (4, 4)), "indptr must rise from 0 to 2"),
    ],
)
def test_what_is_no_such_matrix_of_torchs_is_refused(made: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"\A[^\n]*{message}[^\n]*\Z"):
        BSRMatrix.from_torch(made())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: sparse.bsr_array(np.ones((4, 6)), blocksize=(2, 3)),
            r"blocks must be square, got 2 x 3; .*tobsr\(\(b",
        ),
        (lambda: sparse.csr_array(np.eye(4)), r"got csr_array; its tobsr\(\(b, b\)\) is one"),
        (lambda: np.eye(4), "matrix must be a scipy.sparse.bsr_array or bsr_matrix, got ndarray"),
        pytest.param(
            lambda: sparse.bsr_array(np.eye(4, dtype=np.longdouble)),
            "matrix must have a type that torch has, got float",
            marks=pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="a long double is a double here"),
        ),
    ],
)
def test_what_is_no_such_matrix_of_scipys_is_refused(made: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"\A[^\n]*{message}[^\n]*\Z"):
        BSRMatrix.from_scipy(made())
    bsr = BSRMatrix.from_dense(torch.ones(4, 4, dtype=torch.bfloat16), BlockMask.full(4, 4, 2))
    with pytest.raises(ValueError, match=r"scipy has no products of torch.bfloat16; accepted: .*data.float"):
        bsr.to_scipy()
