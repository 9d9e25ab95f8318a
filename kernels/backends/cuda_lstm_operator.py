"""One LSTM layer over all time steps by our CUDA kernels, as a differentiable torch operator; prepared once for each pattern.

A weight goes in and out of the operators as a list, as in `native_lstm`: its kept values [nnzb, b, b] and the six tensors of its
`BSRIndex`. The input weight may have other blocks than the recurrent one; where it is dense the operators get the weighted
inputs, and an empty list. Nothing here waits for the GPU but the first call of a pattern, batch and type, so that all later
ones can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.backends import cuda_operators, cuda_recurrence
from kernels.backends.cuda_kernel import arch_of
from kernels.backends.cuda_lstm_pass import Sizes
from kernels.backends.cuda_lstm_tiles import CTA_OVERHEAD, Device
from kernels.backends.cuda_operators import Pattern, pattern_of
from kernels.backends.cuda_plan import MOST_NUMBERS
from kernels.backends.cuda_recurrence import Kept, Recurrence, plans_for, tiles_for
from kernels.backends.cuda_rungs import Gpu, aligned
from kernels.index import BSRIndex
from kernels.operands import require
from kernels.tracing import refuse_second, refuse_transforms

MOST_PREPARED = 16  # of a pattern


class Weight(NamedTuple):
    """The kept values of a weight, [nnzb, b, b], and what is prepared for its pattern."""

    data: Tensor
    pattern: Pattern


def weight_of(listed: Sequence[Tensor]) -> Weight | None:
    """A weight as the operators get it."""
    return Weight(listed[0], pattern_of(BSRIndex(*listed[1:]), listed[0].shape[1])) if listed else None


def device_of(gpu: Gpu) -> Device:
    """What the tiles of the time steps are chosen by."""
    return Device(gpu.multiprocessors, gpu.shared_bytes + CTA_OVERHEAD, gpu.shared_bytes)


def recurrence_of(pattern: Pattern, dtype: torch.dtype, batch: int) -> Recurrence | str:
    """The time steps of a layer with this recurrent pattern, or why our kernels cannot compute them on this GPU.

    One cooperative launch where it fits, else a launch a step. float32 is multiplied as torch does: by TF32 where
    torch.backends.cuda.matmul.allow_tf32 is set, else exactly.
    """
    element, kept = pattern.element(dtype), pattern.recurrences
    with cuda_operators.one_at_a_time:
        found: Recurrence | str | None = kept.get((element, batch))
        if found is None:
            if len(kept) == MOST_PREPARED:
                kept.clear()
            found = _prepare(pattern, Sizes(batch, pattern.shape[1], pattern.block_size), element, dtype)
            kept[element, batch] = found
        return found


def _prepare(pattern: Pattern, sizes: Sizes, element: str, dtype: torch.dtype) -> Recurrence | str:
    if pattern.blocks[0] * sizes.block**2 > MOST_NUMBERS:  # where a piece lies is an int
        return f"cuda goes through the steps of weights of at most {MOST_NUMBERS} kept values"
    plans, reason = plans_for(pattern.own, sizes.block, dtype), ""
    for together in (True, False):
        tiles = tiles_for(plans, sizes, element == "Float32", device_of(pattern.gpu), together)
        if not isinstance(tiles, str):
            return Recurrence(sizes, element, plans, tiles, together, pattern.gpu.load)
        reason = tiles
    return reason


def describe(pattern: Pattern, dtype: torch.dtype, batch: int) -> str:
    """'cuda lstm sm_90a Bfloat16, all steps in one cooperative launch', or why there is no such kernel."""
    found = recurrence_of(pattern, dtype, batch)
    if isinstance(found, str):
        return found
    how = "all steps in one cooperative launch" if found.together else "a launch a step"
    return f"cuda lstm {arch_of(pattern.gpu.capability)} {pattern.element(dtype)}, {how}"


def forward(
    inputs: Tensor,
    biases: tuple[Tensor, Tensor],
    states: tuple[Tensor, Tensor],
    weight: Weight,
    into: Weight | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Kept]:
    """(y, last cells, what is kept): [steps, batch, hidden], [batch, hidden]; the backward pass may follow if `keep`.

    inputs: [steps, batch, in] where the input weight is given, else already weighted, [steps, batch, 4 hidden].
    """
    data, pattern = weight
    steps, batch, _ = inputs.shape
    recurrence = recurrence_of(pattern, data.dtype, batch)
    if isinstance(recurrence, str):
        raise ValueError(recurrence)
    if into is not None:
        weighted = into.pattern.dsd(into.data, inputs.flatten(0, 1).mT)
        inputs = weighted.mT.view(steps, batch, weighted.shape[0])
    given = cuda_recurrence.Operands(*map(aligned, (data, *biases, *states)))
    cells, kept = recurrence.forward(aligned(inputs), given, keep)
    return kept.states.narrow(0, 1, steps), cells, kept  # an index takes microseconds


def _check(
    inputs: Tensor, biases: Sequence[Tensor], states: Sequence[Tensor], weight: Weight, into: Weight | None
) -> None:
    """ValueError where they are no operands of one layer."""
    (data, pattern), (steps, batch, _) = weight, inputs.shape
    rows, hidden = pattern.shape
    if rows != 4 * hidden or (into is not None and into.pattern.shape[0] != rows):
        raise ValueError(f"both weights must have 4 x {hidden} rows")
    width = rows if into is None else into.pattern.shape[1]
    operands = [inputs, *biases, *states, data]
    names = ("inputs", "bias_ih", "bias_hh", "h0", "c0", "weight")
    shapes = ((steps, batch, width), (rows,), (rows,), (batch, hidden), (batch, hidden), pattern.blocks)
    for name, each, shape in zip(names, operands, shapes, strict=True):
        if each.shape != shape or each.dtype is not data.dtype or each.device != pattern.device:
            require(name, each, shape, data.dtype, pattern.device)


def _check_kept(
    grads: Sequence[Tensor | None], kept: Kept, states: Sequence[Tensor], pattern: Pattern, dtype: torch.dtype
) -> None:
    """ValueError where they are not what a forward pass of this layer has left."""
    (steps, batch, _), (rows, hidden) = kept.states.shape, pattern.shape
    state, sample = (steps, batch, hidden), (batch, hidden)
    wanted = [state, sample, sample, state, sample, sample]
    names = ("grad_y", "grad_h", "grad_c", "y", "h0", "c0")
    for name, each, shape in zip(names, (*grads, kept.states, *states), wanted, strict=True):
        if each is not None and (each.shape != shape or each.dtype is not dtype or each.device != pattern.device):
            require(name, each, shape, dtype, pattern.device)
    assert kept.gates is not None
    for name, each, width in (("cells", kept.cells, hidden), ("gates", kept.gates, rows)):
        require(name, each, (steps, batch, width), torch.float32, pattern.device)


def backward(
    grads: Sequence[Tensor | None],
    kept: Kept,
    states: tuple[Tensor, Tensor],
    inputs: Tensor | None,
    weight: Weight,
    into: Weight | None,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """As `lstm_backward`, which see. grads: of y, h and c; kept: its `states` are y; states: h0, c0; inputs: with `into`."""
    (data, pattern), (h0, c0), y = weight, states, kept.states
    recurrence = recurrence_of(pattern, data.dtype, y.shape[1])
    assert isinstance(recurrence, Recurrence), recurrence
    of_y, of_h, of_c = (None if each is None else aligned(each) for each in grads)
    assert kept.gates is not None
    kept = Kept(y, aligned(kept.cells), aligned(kept.gates))
    sums, bias, *firsts = recurrence.backward(kept, aligned(data), aligned(c0), of_y, of_h, of_c, wanted[1])
    columns, found = sums.flatten(0, 1).mT, [bias]
    if wanted[0]:
        back = into.pattern.dsd(into.data, columns, turned=True).mT if into is not None else sums
        found.append(back.view(*y.shape[:2], -1))
    found += [each for each in firsts if each is not None]
    if wanted[2]:
        before = torch.cat([aligned(h0)[None], y[:-1]]).flatten(0, 1)
        found.append(pattern.sdd(columns, before.mT))
    if wanted[3]:
        assert into is not None and inputs is not None
        found.append(into.pattern.sdd(columns, inputs.flatten(0, 1).mT))
    return found


@torch.library.custom_op("block_sparse_bench::cuda_lstm", mutates_args=())
def lstm(
    inputs: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight: Sequence[Tensor],
    into: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, h, c, cells, gates): outputs, last states, and what the backward pass needs.

    inputs: [steps, batch, in], or weighted already, [steps, batch, 4 hidden], if `into` is empty; h0, c0: [batch, hidden];
    weight, into: recurrent and input weight.
    """
    own, other = weight_of(weight), weight_of(into)
    assert own is not None
    _check(inputs, (bias_ih, bias_hh), (h0, c0), own, other)
    y, c, kept = forward(inputs, (bias_ih, bias_hh), (h0, c0), own, other, keep=True)
    assert kept.gates is not None
    return y, y[-1].clone(), c, kept.cells, kept.gates


@lstm.register_fake
def _(
    inputs: Tensor,
    bias_ih: Tensor,  # noqa: ARG001
    bias_hh: Tensor,  # noqa: ARG001
    h0: Tensor,
    c0: Tensor,  # noqa: ARG001
    weight: Sequence[Tensor],  # noqa: ARG001
    into: Sequence[Tensor],  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (steps, batch), hidden = inputs.shape[:2], h0.shape[1]
    y = h0.new_empty(steps + 1, batch, hidden)[1:]
    cells, gates = (h0.new_empty(steps, batch, width, dtype=torch.float32) for width in (hidden, 4 * hidden))
    return y, h0.new_empty(batch, hidden), h0.new_empty(batch, hidden), cells, gates


@torch.library.custom_op("block_sparse_bench::cuda_lstm_backward", mutates_args=())
def lstm_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    states: Sequence[Tensor],
    weight: Sequence[Tensor],
    into: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the bias, then of those wanted: inputs, h0 and c0, kept values of the recurrent and of the input weight.

    states: y, cells, gates, h0, c0 and, where the input weight is given, the inputs.
    """
    y, cells, gates, h0, c0, *given = states
    own = weight_of(weight)
    assert own is not None
    inputs, grads, kept = given[0] if given else None, (grad_y, grad_h, grad_c), Kept(y, cells, gates)
    _check_kept(grads, kept, (h0, c0), own.pattern, own.data.dtype)
    return backward(grads, kept, (h0, c0), inputs, own, weight_of(into), wanted)


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
    y, _, _, h0, c0, *given = states
    (steps, batch), hidden = y.shape[:2], h0.shape[1]
    found = [h0.new_empty(4 * hidden)]
    if wanted[0]:
        found.append(h0.new_empty(steps, batch, given[0].shape[2] if given else 4 * hidden))
    shaped = ([h0, c0] if wanted[1] else []) + [
        each[0] for want, each in zip(wanted[2:], (weight, into), strict=True) if want
    ]
    return found + [torch.empty_like(each, memory_format=torch.contiguous_format) for each in shaped]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given, _, _, h0, c0, weight, into = inputs
    y, _, _, cells, gates = output
    ctx.mark_non_differentiable(cells, gates)
    ctx.set_materialize_grads(False)
    ctx.parts = len(weight), len(into)
    ctx.save_for_backward(*weight, *into, y, cells, gates, h0, c0, *([given] if into else []))


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    refuse_transforms(*grads)
    saved, (own, others), needs = list(ctx.saved_tensors), ctx.parts, ctx.needs_input_grad
    weight, into, states = saved[:own], saved[own : own + others], saved[own + others :]
    wants_states = bool(needs[3] or needs[4])
    wanted = [bool(needs[0]), wants_states, bool(needs[5][0]), bool(into) and bool(needs[6][0])]
    bias, *rest = lstm_backward(*grads[:3], states, weight, into, wanted)
    found = iter(rest)
    inputs = next(found) if wanted[0] else None
    h0, c0 = (next(found), next(found)) if wants_states else (None, None)
    values = [next(found) if want else None for want in wanted[2:]]
    lists = [[value, *[None] * 6] if each else [] for value, each in zip(values, (weight, into), strict=True)]
    return inputs, bias, bias, h0, c0, *lists


lstm.register_autograd(_backward, setup_context=_save)
lstm_backward.register_autograd(refuse_second)
