"""dsd and sdd as torch operators, each the derivative of the other: the products that `kernels.ops` is made of.

Three kernels compute them: 'cuda' and 'native', our own on GPUs and on the CPU, and 'torch', plain arithmetic everywhere: batched
products of gathered blocks, added up by block row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.backends import cuda_operators, native_products
from kernels.bsr import BSRIndex


def _torch_dsd(data: Tensor, to_rows: Tensor, from_rows: Tensor, num_block_rows: int, x: Tensor) -> Tensor:
    """Add data[p] @ x[block from_rows[p]] to output block to_rows[p]. data: [nnzb, b, b], x: [k, n]."""
    size, n = data.shape[1], x.shape[1]
    products = torch.bmm(data, x.reshape(x.shape[0] // size, size, n)[from_rows])
    return x.new_zeros(num_block_rows, size, n).index_add(0, to_rows, products).view(num_block_rows * size, n)


def _torch_sdd(grad: Tensor, x: Tensor, rows: Tensor, cols: Tensor, size: int) -> Tensor:
    """The blocks (rows[p], cols[p]) of grad @ x^T, and no others: [nnzb, b, b]."""
    left, right = (each.reshape(each.shape[0] // size, size, each.shape[1]) for each in (grad, x))
    return torch.bmm(left[rows], right[cols].mT)


def _ordered_as(x: Tensor, rows: int) -> Tensor:
    """[rows, n], uninitialised, in the memory order and on the device of `x`: [k, n]."""
    n = x.shape[1]
    return x.new_empty(rows, n) if native_products.by_rows(x) else x.new_empty(n, rows).mT


def in_order(x: Tensor, product: Tensor) -> Tensor:
    """`product`, which lies column by column, in the memory order of `x`."""
    return product.contiguous() if native_products.by_rows(x) else product


@torch.library.custom_op("block_sparse_bench::dsd", mutates_args=())
def dsd(
    data: Tensor,
    indptr: Tensor,
    indices: Tensor,
    rows: Tensor,
    column_indptr: Tensor,
    column_rows: Tensor,
    positions: Tensor,
    x: Tensor,
    turned: bool,
    kernel: str,
) -> Tensor:
    """Y = W X, or W^T X if `turned`, in the memory order of X. data: [nnzb, b, b]; then a `BSRIndex`."""
    index = BSRIndex(indptr, indices, rows, column_indptr, column_rows, positions)
    if kernel == "native":
        return native_products.dsd(native_products.pack(data, index, x.shape[1], turned), x)
    if kernel == "cuda":
        return in_order(x, cuda_operators.dsd(data, index, x, turned))
    to_rows, from_rows = (indices, rows) if turned else (rows, indices)
    num_block_rows = (column_indptr if turned else indptr).numel() - 1
    product = _torch_dsd(data.mT if turned else data, to_rows, from_rows, num_block_rows, x)
    return _ordered_as(x, product.shape[0]).copy_(product)


@dsd.register_fake
def _(
    data: Tensor,
    indptr: Tensor,
    indices: Tensor,  # noqa: ARG001
    rows: Tensor,  # noqa: ARG001
    column_indptr: Tensor,
    column_rows: Tensor,  # noqa: ARG001
    positions: Tensor,  # noqa: ARG001
    x: Tensor,
    turned: bool,
    kernel: str,  # noqa: ARG001
) -> Tensor:
    return _ordered_as(x, ((column_indptr if turned else indptr).shape[0] - 1) * data.shape[1])


@torch.library.custom_op("block_sparse_bench::sdd", mutates_args=())
def sdd(
    grad: Tensor,
    x: Tensor,
    indptr: Tensor,
    indices: Tensor,
    rows: Tensor,
    column_indptr: Tensor,
    column_rows: Tensor,
    positions: Tensor,
    kernel: str,
) -> Tensor:
    """The kept blocks of grad @ x^T: [nnzb, b, b]. grad: [m, n], x: [k, n]; then a `BSRIndex`."""
    size = grad.shape[0] // (indptr.numel() - 1)
    index = BSRIndex(indptr, indices, rows, column_indptr, column_rows, positions)
    if kernel == "native":
        return native_products.sdd(grad, x, index, size)
    if kernel == "cuda":
        return cuda_operators.sdd(grad, x, index, size)
    return _torch_sdd(grad, x, rows, indices, size)


@sdd.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    indptr: Tensor,
    indices: Tensor,
    rows: Tensor,  # noqa: ARG001
    column_indptr: Tensor,  # noqa: ARG001
    column_rows: Tensor,  # noqa: ARG001
    positions: Tensor,  # noqa: ARG001
    kernel: str,  # noqa: ARG001
) -> Tensor:
    size = grad.shape[0] // (indptr.shape[0] - 1)
    return x.new_empty(indices.shape[0], size, size)


def _save_dsd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:8])
    ctx.turned, ctx.kernel = inputs[8:]


def _dsd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    data, *index, x = ctx.saved_tensors
    left, right = (x, grad) if ctx.turned else (grad, x)
    grad_data = sdd(left, right, *index, ctx.kernel) if ctx.needs_input_grad[0] else None
    grad_x = dsd(data, *index, grad, not ctx.turned, ctx.kernel) if ctx.needs_input_grad[7] else None
    return grad_data, *[None] * 6, grad_x, None, None


def _save_sdd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:8])
    ctx.kernel = inputs[8]


def _sdd_backward(ctx: Any, grad_data: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, *index = ctx.saved_tensors
    grad_grad = dsd(grad_data, *index, x, False, ctx.kernel) if ctx.needs_input_grad[0] else None
    grad_x = dsd(grad_data, *index, grad, True, ctx.kernel) if ctx.needs_input_grad[1] else None
    return grad_grad, grad_x, *[None] * 7


dsd.register_autograd(_dsd_backward, setup_context=_save_dsd)
sdd.register_autograd(_sdd_backward, setup_context=_save_sdd)
