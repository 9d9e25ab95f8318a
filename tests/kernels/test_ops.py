"""block_sparse_matmul: values, gradients, and no gradient at empty blocks."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.ops import block_sparse_matmul, dsd


def operands(kept: torch.Tensor, size: int, n: int, seed: int = 0) -> tuple[BSRMatrix, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = BlockMask(kept, size)
    weight = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    return BSRMatrix.from_dense(weight, mask), torch.randn(mask.shape[1], n, generator=generator, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 4),
    size=st.sampled_from([1, 2, 4, 5]),
    n=st.integers(1, 5),
    data=st.data(),
)
def test_fuzz_against_dense(rows: int, cols: int, size: int, n: int, data: st.DataObject) -> None:
    picked = data.draw(st.lists(st.booleans(), min_size=rows * cols, max_size=rows * cols))
    bsr, x = operands(torch.tensor(picked).view(rows, cols), size, n)
    leaf = bsr.data.clone().requires_grad_()
    sparse = BSRMatrix(leaf, bsr.indices, bsr.indptr, bsr.shape)
    x.requires_grad_()
    output = block_sparse_matmul(sparse, x)
    grad = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(output, (leaf, x), grad)
    expected_output = sparse.to_dense() @ x
    expected = torch.autograd.grad(expected_output, (leaf, x), grad)
    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1])


@pytest.mark.parametrize(
    "kept", [torch.eye(3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 1, dtype=torch.bool)]
)
def test_gradcheck(kept: torch.Tensor) -> None:
    bsr, x = operands(kept, 2, 3)
    leaf = bsr.data.clone().requires_grad_()
    x.requires_grad_()

    def product(data: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return block_sparse_matmul(BSRMatrix(data, bsr.indices, bsr.indptr, bsr.shape), columns)

    assert torch.autograd.gradcheck(product, (leaf, x))


def test_the_operator_keeps_torchs_rules() -> None:
    bsr, x = operands(torch.eye(2, 3, dtype=torch.bool), 2, 3)
    arguments = (bsr.data.requires_grad_(), bsr.row_indices, bsr.indices, bsr.grid[0], x.requires_grad_())
    torch.library.opcheck(dsd, arguments)


def test_strided_operands() -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    turned = x.T.contiguous().T
    torch.testing.assert_close(block_sparse_matmul(bsr, turned), bsr.to_dense() @ x)


def test_operands_that_do_not_fit_are_refused() -> None:
    bsr, x = operands(torch.ones(2, 3, dtype=torch.bool), 4, 5)
    with pytest.raises(ValueError, match=r"must be \[12, n\]"):
        block_sparse_matmul(bsr, x[:8])
    with pytest.raises(ValueError, match="one type"):
        block_sparse_matmul(bsr, x.float())
