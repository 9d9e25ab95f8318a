"""One LSTM layer over all time steps by our CPU kernel (native/lstm.cpp), as a differentiable torch operator.

The gates lie as torch's: i, f, g, o, stacked on the rows of the weights. A weight goes in and out of the operators as a
list: its kept values [nnzb, b, b] and the six tensors of its `BSRIndex`; an input weight that is not block-sparse, or
has other blocks than the recurrent one, is no part of the operators: they get the weighted inputs then, and an empty
list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.native import library as native_library
from kernels.native import products as native_products
from kernels.native.library import Matrix, Pool, launch, pool_for, structure
from kernels.native.products import Packed, Panels
from kernels.tensors.index import BSRIndex
from kernels.tensors.operands import address, contiguous, require
from kernels.tensors.tracing import refuse_second, refuse_transforms

WIDEST_CHUNK = 96  # of the batch
SPAN = 32  # of parts.h
KEPT = 5  # of parts.h
STEPS_TOGETHER = 96  # samples of whole steps whose inputs are weighted together

SIZES = "steps batch hidden into chunk together"
Forward = structure(
    "Forward",
    "x projected bias h0 c0 y last_cell saved states inputs scratch",
    f"{SIZES} slots state_stride state_size input_stride",
    recurrent=Matrix,
    input=Matrix,
    pool=Pool,
)
Backward = structure(
    "Backward",
    "grad_y grad_h grad_c saved c0 grad_x grad_projected panels grad_h0 grad_c0 grad_bias columns scratch",
    f"{SIZES} panel_stride column_stride column_size",
    recurrent=Matrix,
    input=Matrix,
    pool=Pool,
)


class Sizes(NamedTuple):
    """Shape of the layer's work: `chunk` samples at a time, the inputs of `together` steps weighted at a time."""

    steps: int
    batch: int
    hidden: int
    into: int
    chunk: int
    together: int

    @classmethod
    def of(cls, inputs: Tensor, hidden: int) -> Sizes:
        steps, batch, into = inputs.shape
        chunk = -(-batch // -(-batch // WIDEST_CHUNK))
        return cls(steps, batch, hidden, into, chunk, min(steps, max(1, STEPS_TOGETHER // batch)))

    def pool(self, data: Tensor) -> Pool:
        """Threads worth a step of this many multiplications, each gate counted as about a dozen."""
        return pool_for(data.numel() * self.batch + self.hidden * self.batch * 50)

    def scratch(self, threads: int, dtype: torch.dtype) -> Tensor:
        return native_library.empty((threads, 4, self.chunk, SPAN), dtype=dtype)


class Room(NamedTuple):
    """Of columns that are multiplied: from one to the next as they lie, or from row to row; all elements of them."""

    stride: int
    size: int

    @classmethod
    def of(cls, packed: Packed, count: int, dtype: torch.dtype) -> Room:
        """For `count` columns of the right factor of `packed`."""
        if packed.matrix.lying:
            stride = native_products.lying_stride(packed.cols, dtype)
            return cls(stride, stride * count)
        return cls(count, packed.cols * count)

    def empty(self, dtype: torch.dtype, copies: int = 1) -> Tensor:
        return native_library.empty((copies * self.size + native_products.READ_BEYOND,), dtype=dtype)


def packed_for(weight: Sequence[Tensor], chunk: int, transposed: bool = False) -> Packed:
    data, *index = weight
    return native_products.pack(data, BSRIndex(*index), chunk, transposed, lies=True, in_layer=True)


def forward(
    inputs: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    recurrent: Packed,
    into: Packed | None,
    pool_data: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, last cell state, saved): [steps, batch, hidden], [batch, hidden], and what the backward pass needs if `keep`.

    inputs: [steps, batch, into] where the input weight is given, else already weighted, [steps, batch, 4 hidden].
    """
    _check_operands(inputs, bias, h0, c0, recurrent, into)
    inputs, bias, h0, c0 = (contiguous(each) for each in (inputs, bias, h0, c0))
    hidden, dtype = h0.shape[1], h0.dtype
    sizes = Sizes.of(inputs, hidden)
    pool = sizes.pool(pool_data)
    slots = sizes.steps if keep else min(sizes.steps, 2 * sizes.together if into else 2)
    y = native_library.empty((sizes.steps, sizes.batch, hidden), dtype=dtype)
    last_cell = native_library.empty((sizes.batch, hidden), dtype=dtype)
    saved = native_library.empty((slots, sizes.batch * hidden * KEPT), dtype=dtype)
    of_states = Room.of(recurrent, sizes.batch, dtype)
    of_inputs = Room.of(into, sizes.together * sizes.batch, dtype) if into else Room(0, 0)
    in_place = into is not None and into.matrix.lying and of_inputs.stride == sizes.into
    states, columns = of_states.empty(dtype, 2), of_inputs.empty(dtype) if into and not in_place else None
    scratch = sizes.scratch(pool.threads, dtype)
    given = (inputs, None) if into else (None, inputs)
    buffers = [address(each) for each in (*given, bias, h0, c0, y, last_cell, saved, states, columns, scratch)]
    matrices = recurrent.matrix, into.matrix if into else Matrix()
    counts = (*sizes, slots, *of_states, of_inputs.stride)
    launch("lstm", dtype, "lstm_forward", Forward(matrices[0], *buffers, *counts, matrices[1], pool))
    return y, last_cell, saved


def _check_operands(
    inputs: Tensor, bias: Tensor, h0: Tensor, c0: Tensor, recurrent: Packed, into: Packed | None
) -> None:
    """ValueError where they are no operands of one layer."""
    hidden, size = recurrent.cols, recurrent.matrix.block_size
    if recurrent.rows != 4 * hidden or (into is not None and (into.rows, into.matrix.block_size) != (4 * hidden, size)):
        raise ValueError(f"both weights must have 4 x {hidden} rows in blocks of {size}")
    if inputs.ndim != 3 or 0 in inputs.shape[:2]:
        raise ValueError(f"inputs must be [steps, batch, features] with a step and a sample, got {list(inputs.shape)}")
    (steps, batch), width = inputs.shape[:2], into.cols if into is not None else 4 * hidden
    wanted = {"inputs": (steps, batch, width), "bias": (4 * hidden,), "h0": (batch, hidden), "c0": (batch, hidden)}
    for (name, shape), each in zip(wanted.items(), (inputs, bias, h0, c0), strict=True):
        require(name, each, shape, recurrent.values.dtype, recurrent.values.device)


def _check_kept(
    grads: Sequence[Tensor | None], states: Sequence[Tensor], data: Tensor, into: Sequence[Tensor], hidden: int
) -> None:
    """ValueError where they are not what a forward pass of this layer has left. grads, states: as of `backward`."""
    inputs, y, saved, h0, c0 = states
    (steps, batch), width = y.shape[:2], inputs.shape[2] if into else 4 * hidden
    sample, state = (batch, hidden), (steps, batch, hidden)
    wanted = {"inputs": (steps, batch, width), "y": state, "saved": (steps, batch * hidden * KEPT), "h0": sample}
    wanted |= {"c0": sample, "grad_y": state, "grad_h": sample, "grad_c": sample}
    for (name, shape), each in zip(wanted.items(), (inputs, y, saved, h0, c0, *grads), strict=True):
        if each is not None:
            require(name, each, shape, data.dtype, data.device)


def infer(
    inputs: Tensor, bias: Tensor, h0: Tensor, c0: Tensor, weight: BSRMatrix, into: BSRMatrix | None
) -> tuple[Tensor, Tensor]:
    """(y, last cell state) without what a backward pass needs; of frozen weights the packed values are kept."""
    chunk = Sizes.of(inputs, h0.shape[1]).chunk
    recurrent = native_products.packed(weight, chunk, lies=True, in_layer=True)
    across = native_products.packed(into, chunk, lies=True, in_layer=True) if into else None
    y, cell, _ = forward(inputs, bias, h0, c0, recurrent, across, weight.data, keep=False)
    return y, cell


class LayerGradients(NamedTuple):
    """With respect to the operands of `lstm` that have one; None where it was not wanted."""

    inputs: Tensor | None
    bias: Tensor
    h0: Tensor
    c0: Tensor
    recurrent: Tensor | None
    into: Tensor | None


class Wanted(NamedTuple):
    """Which gradients are to be computed, besides those that cost nothing."""

    inputs: bool
    recurrent: bool
    into: bool


def backward(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    states: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    weight: Sequence[Tensor],
    into: Sequence[Tensor],
    wanted: Wanted,
) -> LayerGradients:
    """Gradients from those of all outputs and of the last states. states: inputs, y, saved, h0, c0."""
    dtype, data = weight[0].dtype, weight[0]
    _check_kept(grads, states, data, into, states[3].shape[-1])
    inputs, *others = states
    inputs = contiguous(inputs) if wanted.into else inputs  # else their shape alone matters
    y, saved, h0, c0 = map(contiguous, others)
    given = [None if each is None else contiguous(each) for each in grads]
    sizes = Sizes.of(inputs, y.shape[2])
    steps, batch, hidden = sizes[:3]
    pool = sizes.pool(data)
    grad_inputs = native_library.empty(inputs.shape, dtype=dtype) if wanted.inputs else None
    panels = None
    if wanted.recurrent or wanted.into:
        panels = native_products.empty_panels(4 * hidden, steps * batch, data.shape[1], dtype)
    grad_h0, grad_c0 = (native_library.empty((batch, hidden), dtype=dtype) for _ in range(2))
    grad_bias = native_library.empty((-(-batch // sizes.chunk), 4 * hidden), dtype=dtype)
    recurrent = packed_for(weight, sizes.chunk, transposed=True)
    room = Room.of(recurrent, sizes.together * batch, dtype)
    made = (grad_inputs, None) if into else (None, grad_inputs)
    own = room.empty(dtype, 2), sizes.scratch(pool.threads, dtype)
    places = (*made, panels and panels.values, grad_h0, grad_c0, grad_bias, *own)
    across = packed_for(into, sizes.chunk, transposed=True) if into and wanted.inputs else None
    for each, rows in ((recurrent, hidden), (across, inputs.shape[2])):
        if each is not None and (each.rows, each.cols) != (rows, 4 * hidden):
            raise ValueError(f"a weight must be [{4 * hidden}, {rows}], got {[each.cols, each.rows]}")
    buffers, stride = [address(each) for each in (*given, saved, c0, *places)], panels.stride if panels else 0
    matrices = recurrent.matrix, across.matrix if across else Matrix()
    launch("lstm", dtype, "lstm_backward", Backward(matrices[0], *buffers, *sizes, stride, *room, matrices[1], pool))
    grad_recurrent = sampled(panels, y, h0, weight) if panels and wanted.recurrent else None
    grad_into = sampled(panels, inputs, None, into) if panels and wanted.into else None
    return LayerGradients(grad_inputs, grad_bias.sum(dim=0), grad_h0, grad_c0, grad_recurrent, grad_into)


def sampled(panels: Panels, x: Tensor, first: Tensor | None, weight: Sequence[Tensor]) -> Tensor:
    """Gradient of a weight's kept values. x: [steps, batch, features]; first: [batch, features] that come before."""
    head = None if first is None else first.T
    return native_products.sdd(panels, x.flatten(0, 1).T, BSRIndex(*weight[1:]), weight[0].shape[1], head)


@torch.library.custom_op("block_sparse_bench::lstm", mutates_args=())
def lstm(
    inputs: Tensor, bias: Tensor, h0: Tensor, c0: Tensor, weight: Sequence[Tensor], into: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, h, c, saved): outputs, last states, and what the backward pass needs.

    inputs: [steps, batch, in], or weighted already, [steps, batch, 4 hidden], if `into` is empty; h0, c0: [batch,
    hidden]; weight, into: recurrent and input weight.
    """
    chunk = Sizes.of(inputs, h0.shape[1]).chunk
    packed = packed_for(weight, chunk), packed_for(into, chunk) if into else None
    y, cell, saved = forward(inputs, bias, h0, c0, *packed, weight[0], keep=True)
    return y, y[-1].clone(), cell, saved


@lstm.register_fake
def _(
    inputs: Tensor,
    bias: Tensor,  # noqa: ARG001
    h0: Tensor,
    c0: Tensor,  # noqa: ARG001
    weight: Sequence[Tensor],  # noqa: ARG001
    into: Sequence[Tensor],  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (steps, batch), hidden = inputs.shape[:2], h0.shape[1]
    shapes = (steps, batch, hidden), h0.shape, h0.shape, (steps, batch * hidden * KEPT)
    y, h, c, saved = (h0.new_empty(shape) for shape in shapes)
    return y, h, c, saved


@torch.library.custom_op("block_sparse_bench::lstm_backward", mutates_args=())
def lstm_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    states: Sequence[Tensor],
    weight: Sequence[Tensor],
    into: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of inputs, bias, h0, c0, kept values of recurrent and input weight, none for those not wanted."""
    inputs, y, saved, h0, c0 = states
    found = backward((grad_y, grad_h, grad_c), (inputs, y, saved, h0, c0), weight, into, Wanted(*wanted))
    return [each for each in found if each is not None]


@lstm_backward.register_fake
def _(
    grad_y: Tensor | None,  # noqa: ARG001
    grad_h: Tensor | None,  # noqa: ARG001
    grad_c: Tensor | None,  # noqa: ARG001
    states: Sequence[Tensor],
    weight: Sequence[Tensor],
    into: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor]:
    inputs, _, _, h0, c0 = states
    bias = h0.new_empty(4 * h0.shape[1])
    values = [(wanted[1], weight), (wanted[2], into)]
    shaped = ([inputs] if wanted[0] else []) + [bias, h0, c0, *(each[0] for want, each in values if want)]
    return [torch.empty_like(each, memory_format=torch.contiguous_format) for each in shaped]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given, _, h0, c0, weight, into = inputs
    y, _, _, saved = output
    ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)
    ctx.parts, ctx.shapes = (len(weight), len(into)), (given.shape, into[0].shape if into else None)
    needs, last = ctx.needs_input_grad, 4 + len(weight)  # one by one here, in lists on the way back
    kept = given if into and needs[last] else None  # each for the gradient of the other, as of a product
    of_into = [into[0] if needs[0] else None, *into[1:]] if into else []
    ctx.save_for_backward(kept, y, saved, h0, c0, *weight, *of_into)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    refuse_transforms(*grads)
    saved, own = list(ctx.saved_tensors), 5 + ctx.parts[0]  # torch.utils.checkpoint gives them only once
    states, weight, into = saved[:5], saved[5:own], saved[own:]
    for place, shape in zip((states, into), ctx.shapes, strict=True):
        if place and place[0] is None:  # nobody reads its values
            place[0] = weight[0].new_empty(1).expand(shape)
    needs = ctx.needs_input_grad
    wanted = [bool(needs[0]), bool(needs[4][0]), bool(into) and bool(needs[5][0])]
    found = iter(lstm_backward(*grads[:3], states, weight, into, wanted))
    inputs = next(found) if wanted[0] else None
    bias, h0, c0 = next(found), next(found), next(found)
    values = [next(found) if want else None for want in wanted[1:]]
    lists = [[value, *[None] * 6] if each else [] for value, each in zip(values, (weight, into), strict=True)]
    return inputs, bias, h0, c0, *lists


lstm.register_autograd(_backward, setup_context=_save)
lstm_backward.register_autograd(refuse_second)
