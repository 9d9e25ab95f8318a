"""Matrices whose sizes their blocks do not divide, against the dense product of the same values."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.native import library as native_library
from kernels.ops import block_sparse_linear, block_sparse_lstm, block_sparse_matmul
from kernels.system.resources import refusal

NO_NATIVE = refusal(native_library.require_kernel, torch.float64, torch.device("cpu"))
KERNELS = ["torch"] if NO_NATIVE else ["torch", "native"]


def padded_matrix(rows: int, cols: int, size: int, seed: int = 0) -> tuple[BSRMatrix, Tensor]:
    """A padded matrix of half its blocks, and its values as a dense one."""
    generator = torch.Generator().manual_seed(seed)
    mask = BlockMask.random(rows, cols, size, 0.5, generator, pad=True)
    weight = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    weight = weight * mask.expand()[:rows, :cols]
    return BSRMatrix.from_dense(weight, mask, pad=True), weight


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 20), cols=st.integers(1, 20), size=st.integers(1, 8), n=st.integers(0, 5),
    column=st.booleans(), kernel=st.sampled_from(KERNELS), seed=st.integers(0, 99),
)  # fmt: skip
def test_products_and_gradients_are_those_of_the_dense_matrix(
    rows: int, cols: int, size: int, n: int, column: bool, kernel: str, seed: int
) -> None:
    matrix, weight = padded_matrix(rows, cols, size, seed)
    assert matrix.unpadded == (rows, cols) and torch.equal(matrix.to_dense(), weight)
    x = torch.randn(cols, n, dtype=torch.float64)
    x = (x.mT.contiguous().mT if column else x).requires_grad_()
    data, dense = matrix.data.clone().requires_grad_(), weight.requires_grad_()
    y = block_sparse_matmul(matrix.with_data(data), x, kernel)
    grad = torch.randn(rows, n, dtype=torch.float64)
    wanted = dense @ x
    torch.testing.assert_close(y, wanted)
    assert y.is_contiguous() if x.is_contiguous() else y.mT.is_contiguous()
    if n:
        found = torch.autograd.grad(y, [data, x], grad)
        expected = torch.autograd.grad(wanted, [dense, x], grad)
        torch.testing.assert_close(found[0], BSRMatrix.from_dense(expected[0], matrix.mask, pad=True).data)
        torch.testing.assert_close(found[1], expected[1])
    frozen = matrix.freeze()
    for _ in range(3):  # the second call is by what the first has kept
        torch.testing.assert_close(block_sparse_matmul(frozen, x.detach(), kernel), wanted.detach())
        torch.testing.assert_close(block_sparse_linear(x.detach().mT, frozen, None, kernel), wanted.detach().mT)
    with pytest.raises(ValueError, match="so x must be"):
        block_sparse_matmul(frozen, torch.zeros(cols + size, n + 1, dtype=torch.float64), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_linear_is_torchs(kernel: str, leading: tuple[int, ...]) -> None:
    matrix, weight = padded_matrix(10, 7, 4)
    bias = torch.randn(10, dtype=torch.float64, requires_grad=True)
    x = torch.randn(*leading, 7, dtype=torch.float64, requires_grad=True)
    ways = block_sparse_linear(x, matrix, bias, kernel), F.linear(x, weight, bias)
    found = [[y, *torch.autograd.grad(y.square().sum(), [x, bias])] for y in ways]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    y = block_sparse_linear(x, matrix, None, kernel)
    assert y.is_contiguous()
    y.mul_(2.0)  # as a result of torch's own


@pytest.mark.parametrize("kernel", KERNELS)
def test_derivatives_of_the_second_order(kernel: str) -> None:
    matrix, _ = padded_matrix(5, 6, 4)
    operands = matrix.data.clone().requires_grad_(), torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda data, x: block_sparse_matmul(matrix.with_data(data), x, kernel), operands
    )
    wanted = torch.func.vmap(lambda x: matrix.to_dense() @ x)(operands[1].mT)
    torch.testing.assert_close(
        torch.func.vmap(lambda x: block_sparse_matmul(matrix, x[:, None], kernel)[:, 0])(operands[1].mT), wanted
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_copies_and_pickles_keep_the_sizes(frozen: bool) -> None:
    matrix, weight = padded_matrix(10, 7, 4)
    matrix = matrix.freeze() if frozen else matrix
    for each in (copy.copy(matrix), copy.deepcopy(matrix), pickle.loads(pickle.dumps(matrix)), matrix.unfreeze()):
        assert each.unpadded == (10, 7) and each.shape == (12, 8) and torch.equal(each.to_dense(), weight)
    assert matrix.whole.unpadded == matrix.shape and matrix.whole.frozen == frozen
    assert matrix.to_torch().shape == (12, 8)


def test_without_pad_sizes_are_refused_and_named() -> None:
    mask = BlockMask.full(10, 7, 4, pad=True)
    assert mask.shape == (12, 8) and BlockMask.from_dense(torch.eye(10, 7), 4, pad=True).nnzb == 2
    with pytest.raises(ValueError, match=r"the weight is \(10, 7\); pad=True pads it to \(12, 8\)"):
        BSRMatrix.from_dense(torch.zeros(10, 7), mask)
    with pytest.raises(ValueError, match=r"the weight is \(10, 9\), padded to \(12, 12\)"):
        BSRMatrix.from_dense(torch.zeros(10, 9), mask, pad=True)
    with pytest.raises(ValueError, match="does not divide the weight's 10 rows; nearest sizes that work: 8 or 12"):
        BlockMask.full(10, 7, 4)
    made = BSRMatrix.from_dense(torch.zeros(10, 7), mask, pad=True)
    with pytest.raises(ValueError, match=r"\(8, 7\) in whole blocks of 4 is not \(12, 8\)"):
        BSRMatrix(made.data, made.indices, made.indptr, made.shape, (8, 7))


def test_a_layer_has_padding_gate_by_gate() -> None:
    weight, _ = padded_matrix(24, 6, 4)
    with pytest.raises(ValueError, match="weight_ih is padded, and its gates are not by themselves; accepted: Block"):
        block_sparse_lstm(torch.zeros(1, 1, 6, dtype=torch.float64), None, weight, weight)
