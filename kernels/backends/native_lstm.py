"""One LSTM layer over all time steps by our CPU kernel (native/lstm.cpp), as a differentiable torch operator.

The gates lie as torch's: i, f, g, o, stacked on the rows of the weight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.backends import native_library, native_products
from kernels.backends.native_library import Matrix, Pool, launch, pool_for, structure
from kernels.backends.native_products import pointer
from kernels.bsr import BSRIndex

WIDEST_CHUNK = 96  # of the batch
SPAN = 32  # of lstm.cpp

Forward = structure(
    "Forward",
    "projected bias h0 c0 y cells gates columns scratch",
    "steps batch hidden chunk",
    matrix=Matrix,
    pool=Pool,
)
Backward = structure(
    "Backward",
    "grad_y grad_h grad_c gates cells c0 grad_gates grad_h0 grad_c0 grad_bias columns scratch",
    "steps batch hidden chunk",
    matrix=Matrix,
    pool=Pool,
)


class Gradients(NamedTuple):
    """With respect to the operands of `lstm` that have one."""

    projected: Tensor
    bias: Tensor
    h0: Tensor
    c0: Tensor
    data: Tensor


def chunk_of(batch: int) -> int:
    """Samples that an item computes at a time."""
    return -(-batch // -(-batch // WIDEST_CHUNK))


def work_of_a_step(data: Tensor, batch: int) -> int:
    """Multiplications, each gate counted as about a dozen."""
    return data.numel() * batch + data.shape[1] * batch * 50


def forward(
    projected: Tensor, bias: Tensor, h0: Tensor, c0: Tensor, data: Tensor, index: BSRIndex
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, cells, gates) of all steps: [steps, batch, hidden], the same, [steps, batch, 4 hidden]."""
    projected, bias, h0, c0 = (each.contiguous() for each in (projected, bias, h0, c0))
    steps, batch, hidden, dtype = *projected.shape[:2], h0.shape[1], h0.dtype
    chunk = chunk_of(batch)
    packed = native_products.pack(data, index, chunk)
    pool = pool_for(work_of_a_step(data, batch))
    y, cells = (native_library.empty((steps, batch, hidden), dtype=dtype) for _ in range(2))
    gates = native_library.empty((steps, batch, 4 * hidden), dtype=dtype)
    columns = native_library.empty((2, hidden, batch), dtype=dtype)
    scratch = native_library.empty((pool.threads, 4, chunk, SPAN), dtype=dtype)
    buffers = [pointer(each) for each in (projected, bias, h0, c0, y, cells, gates, columns, scratch)]
    launch("lstm", dtype, "lstm_forward", Forward(packed.matrix, *buffers, steps, batch, hidden, chunk, pool))
    return y, cells, gates


def backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    states: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    data: Tensor,
    index: BSRIndex,
) -> Gradients:
    """Gradients from those of all outputs and of the last states. states: y, cells, gates, h0, c0."""
    y, cells, gates, h0, c0 = (each.contiguous() for each in states)
    given = [None if each is None else each.contiguous() for each in (grad_y, grad_h, grad_c)]
    (steps, batch, hidden), dtype, chunk = y.shape, y.dtype, chunk_of(y.shape[1])
    packed = native_products.pack(data, index, chunk, turned=True)
    pool = pool_for(work_of_a_step(data, batch))
    grad_gates = native_library.empty((steps, batch, 4 * hidden), dtype=dtype)
    grad_h0, grad_c0 = (native_library.empty((batch, hidden), dtype=dtype) for _ in range(2))
    grad_bias = native_library.empty((-(-batch // chunk), 4 * hidden), dtype=dtype)
    columns = native_library.empty((2, 4 * hidden, batch), dtype=dtype)
    scratch = native_library.empty((pool.threads, 4, chunk, SPAN), dtype=dtype)
    made = (grad_gates, grad_h0, grad_c0, grad_bias, columns, scratch)
    buffers = [each if each is None else pointer(each) for each in (*given, gates, cells, c0, *made)]
    launch("lstm", dtype, "lstm_backward", Backward(packed.matrix, *buffers, steps, batch, hidden, chunk, pool))
    previous = torch.cat([h0[None], y[:-1]]).flatten(0, 1)
    grad_data = native_products.sdd(grad_gates.flatten(0, 1).T, previous.T, index, data.shape[1])
    return Gradients(grad_gates, grad_bias.sum(dim=0), grad_h0, grad_c0, grad_data)


@torch.library.custom_op("block_sparse_bench::lstm", mutates_args=())
def lstm(
    projected: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    data: Tensor,
    indptr: Tensor,
    indices: Tensor,
    rows: Tensor,
    column_indptr: Tensor,
    column_rows: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, h, c, cells, gates): outputs, last states, and what the backward pass needs.

    projected: [steps, batch, 4 hidden], the weighted inputs; h0, c0: [batch, hidden]; data: [nnzb, b, b] and a `BSRIndex`
    of the recurrent weight.
    """
    index = BSRIndex(indptr, indices, rows, column_indptr, column_rows, positions)
    y, cells, gates = forward(projected, bias, h0, c0, data, index)
    return y, y[-1].clone(), cells[-1].clone(), cells, gates


@lstm.register_fake
def _(projected: Tensor, bias: Tensor, h0: Tensor, *_: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG001
    shape = (*projected.shape[:2], h0.shape[1])
    made = [h0.new_empty(each) for each in (shape, h0.shape, h0.shape, shape, projected.shape)]
    return tuple(made)


@torch.library.custom_op("block_sparse_bench::lstm_backward", mutates_args=())
def lstm_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    y: Tensor,
    cells: Tensor,
    gates: Tensor,
    h0: Tensor,
    c0: Tensor,
    data: Tensor,
    indptr: Tensor,
    indices: Tensor,
    rows: Tensor,
    column_indptr: Tensor,
    column_rows: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of projected, bias, h0, c0 and data."""
    index = BSRIndex(indptr, indices, rows, column_indptr, column_rows, positions)
    return backward(grad_y, grad_h, grad_c, (y, cells, gates, h0, c0), data, index)


@lstm_backward.register_fake
def _(
    grad_y: Tensor | None,  # noqa: ARG001
    grad_h: Tensor | None,  # noqa: ARG001
    grad_c: Tensor | None,  # noqa: ARG001
    y: Tensor,  # noqa: ARG001
    cells: Tensor,  # noqa: ARG001
    gates: Tensor,
    h0: Tensor,
    c0: Tensor,
    data: Tensor,
    *_: Tensor,
) -> tuple[Tensor, ...]:
    shapes = (gates.shape, gates.shape[2:], h0.shape, c0.shape, data.shape)
    return tuple(gates.new_empty(shape) for shape in shapes)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    _, _, h0, c0, data, *index = inputs
    y, _, _, cells, gates = output
    ctx.mark_non_differentiable(cells, gates)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(y, cells, gates, h0, c0, data, *index)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    projected, bias, h0, c0, data = lstm_backward(*grads[:3], *ctx.saved_tensors)
    return projected, bias, h0, c0, data, *[None] * 6


lstm.register_autograd(_backward, setup_context=_save)
