"""Differentiable products with a block-sparse weight, as torch custom operators.

Y = W X (dsd), dX = W^T dY (dsd with block rows and columns exchanged; no value is copied) and dW = dY X^T at the kept
blocks only (sdd). Plain torch arithmetic: batched products of gathered blocks, added up by block row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix


def _dsd(blocks: Tensor, to_rows: Tensor, from_rows: Tensor, num_block_rows: int, x: Tensor) -> Tensor:
    """Add blocks[p] @ x[block from_rows[p]] to output block to_rows[p]. blocks: [nnzb, b, b], x: [k, n]."""
    size, n = blocks.shape[1], x.shape[1]
    products = torch.bmm(blocks, x.reshape(-1, size, n)[from_rows])
    return x.new_zeros(num_block_rows, size, n).index_add(0, to_rows, products).view(num_block_rows * size, n)


def _sdd(grad: Tensor, x: Tensor, rows: Tensor, cols: Tensor, size: int) -> Tensor:
    """The blocks (rows[p], cols[p]) of grad @ x^T, and no others: [nnzb, b, b]."""
    n = x.shape[1]
    return torch.bmm(grad.reshape(-1, size, n)[rows], x.reshape(-1, size, n)[cols].mT)


@torch.library.custom_op("block_sparse_bench::dsd", mutates_args=())
def dsd(data: Tensor, rows: Tensor, cols: Tensor, num_block_rows: int, x: Tensor) -> Tensor:
    """Y[m, n] = W X, where W holds block data[p] at block row rows[p] and block column cols[p]. x: [k, n]."""
    return _dsd(data, rows, cols, num_block_rows, x)


@dsd.register_fake
def _(data: Tensor, rows: Tensor, cols: Tensor, num_block_rows: int, x: Tensor) -> Tensor:  # noqa: ARG001
    return x.new_empty(num_block_rows * data.shape[1], x.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    data, rows, cols, _, x = inputs
    ctx.save_for_backward(data, rows, cols, x)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, Tensor | None]:
    data, rows, cols, x = ctx.saved_tensors
    size = data.shape[1]
    grad_data = _sdd(grad, x, rows, cols, size) if ctx.needs_input_grad[0] else None
    grad_x = _dsd(data.mT, cols, rows, x.shape[0] // size, grad) if ctx.needs_input_grad[4] else None
    return grad_data, None, None, None, grad_x


dsd.register_autograd(_backward, setup_context=_save)


def block_sparse_matmul(weight: BSRMatrix, x: Tensor) -> Tensor:
    """Y[m, n] = W[m, k] @ X[k, n]; differentiable in `weight.data` and `x`, so no gradient exists at empty blocks."""
    if x.ndim != 2 or x.shape[0] != weight.shape[1]:
        raise ValueError(f"the weight is {weight.shape}, so x must be [{weight.shape[1]}, n], got {tuple(x.shape)}")
    if x.dtype != weight.data.dtype:
        raise ValueError(f"the weight is {weight.data.dtype} and x is {x.dtype}; they must be of one type")
    result: Tensor = dsd(weight.data, weight.row_indices, weight.indices, weight.grid[0], x)
    return result
