"""One LSTM layer over all time steps by our CUDA kernels, a differentiable torch operator, prepared once a pattern.

A weight goes in and out of the operators as a list, as in kernels.native.lstm: its kept values [nnzb, b, b] and the six
tensors of its `BSRIndex`. The input weight may have other blocks than the recurrent one; where it is dense the
operators get the weighted inputs, and an empty list. Nothing here waits for the GPU but the first call of a pattern,
batch and type, so that all later ones can be captured in a CUDA graph.

`record` does the same past torch's dispatcher, which takes longer with its lists of tensors than a layer of few steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.cuda import products as cuda_products
from kernels.cuda import recurrence as cuda_recurrence
from kernels.cuda.choose import Gpu, aligned
from kernels.cuda.device import arch_of
from kernels.cuda.lstm_plan import CTA_OVERHEAD, Device, Plan, Tiles
from kernels.cuda.mma_plan import MOST_NUMBERS
from kernels.cuda.products import Pattern, pattern_of
from kernels.cuda.recurrence import Kept, Recurrence, Sizes, plans_for, tiles_for
from kernels.system.resources import UnsupportedError
from kernels.tensors.index import BSRIndex
from kernels.tensors.operands import require
from kernels.tensors.tracing import refuse_second, refuse_transforms, watched

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


def recurrence_of(pattern: Pattern, dtype: torch.dtype, batch: int) -> Recurrence:
    """The time steps of a layer with this recurrent pattern; UnsupportedError where our kernels cannot compute them.

    One cooperative launch where it fits, else a launch a step. float32 is multiplied as torch does: by TF32 where
    torch.backends.cuda.matmul says so, else exactly.
    """
    element, kept = pattern.element(dtype), pattern.recurrences
    with cuda_products.one_at_a_time:
        found: Recurrence | None = kept.get((element, batch))
        if found is not None:
            cuda_products.pin_captured(found, pattern.device)
            return found
        refusals = pattern.refusals
        if reason := refusals.get((element, batch)):
            raise UnsupportedError(reason)
        cuda_products.require_no_capture(pattern.device)
        if len(kept) + len(refusals) == MOST_PREPARED:
            kept.clear()
            refusals.clear()
        try:
            found = _prepare(pattern, Sizes(batch, pattern.shape[1], pattern.block_size), element, dtype)
        except UnsupportedError as error:
            refusals[element, batch] = str(error)
            raise
        kept[element, batch] = found
        return found


class Steps(NamedTuple):
    """How time steps are computed: plans and tiles of both passes; together: in one launch, else in a launch a step."""

    plans: tuple[Plan, Plan]
    tiles: tuple[Tiles, Tiles]
    together: bool


def steps_for(index: BSRIndex, sizes: Sizes, dtype: torch.dtype, exact: bool, gpu: Gpu, together: bool = True) -> Steps:
    """The time steps of a layer as they are best computed on `gpu`; UnsupportedError where our kernels cannot.

    index: of the recurrent weight; exact: without tensor cores; together: in one launch if that fits.
    """
    if index.indices.numel() * sizes.block**2 > MOST_NUMBERS:  # where a piece lies is an int
        raise UnsupportedError(f"cuda goes through the steps of weights of at most {MOST_NUMBERS} kept values")
    plans, device = plans_for(index, sizes.block, dtype), device_of(gpu)
    if together:
        with suppress(UnsupportedError):
            return Steps(plans, tiles_for(plans, sizes, exact, device, True), together=True)
    return Steps(plans, tiles_for(plans, sizes, exact, device, False), together=False)


def _prepare(pattern: Pattern, sizes: Sizes, element: str, dtype: torch.dtype) -> Recurrence:
    """In one launch where its CTAs are together on the GPU by the driver's count as well as by ours."""
    given = pattern.own, sizes, dtype, element == "Float32", pattern.gpu
    found = Recurrence(sizes, element, *steps_for(*given), pattern.gpu.load)
    if not found.together or all(each.fits(pattern.gpu.multiprocessors) for each in (found.ahead, found.back)):
        return found
    return Recurrence(sizes, element, *steps_for(*given, together=False), pattern.gpu.load)


def describe(pattern: Pattern, dtype: torch.dtype, batch: int) -> str:
    """'cuda lstm sm_90a Bfloat16, all steps in one cooperative launch'; UnsupportedError as `recurrence_of`."""
    together = recurrence_of(pattern, dtype, batch).together
    how = "all steps in one cooperative launch" if together else "a launch a step"
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


def _check_kept(grads: Sequence[Tensor | None], kept: Kept, c0: Tensor, pattern: Pattern, dtype: torch.dtype) -> None:
    """ValueError where they are not what a forward pass of this layer has left."""
    (steps, batch, _), (rows, hidden) = kept.cells.shape, pattern.shape
    sample = (batch, hidden)
    wanted = [(steps, *sample), sample, sample, (steps + 1, *sample), sample]
    names = ("grad_y", "grad_h", "grad_c", "states", "c0")
    for name, each, shape in zip(names, (*grads, kept.states, c0), wanted, strict=True):
        if each is not None and (each.shape != shape or each.dtype is not dtype or each.device != pattern.device):
            require(name, each, shape, dtype, pattern.device)
    assert kept.gates is not None
    for name, each, width in (("cells", kept.cells, hidden), ("gates", kept.gates, rows)):
        require(name, each, (steps, batch, width), torch.float32, pattern.device)


def backward(
    grads: Sequence[Tensor | None],
    kept: Kept,
    c0: Tensor,
    inputs: Tensor | None,
    weight: Weight,
    into: Weight | None,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """As `lstm_backward`, which see. grads: of y, h and c; inputs: where `into` is."""
    (data, pattern), (steps, batch, _) = weight, kept.cells.shape
    recurrence = recurrence_of(pattern, data.dtype, batch)
    of_y, of_h, of_c = (None if each is None else aligned(each) for each in grads)
    assert kept.gates is not None
    kept = Kept(kept.states, aligned(kept.cells), aligned(kept.gates))
    sums, bias, *firsts = recurrence.backward(kept, aligned(data), aligned(c0), of_y, of_h, of_c, wanted[1])
    columns, found = sums.flatten(0, 1).mT, [bias]
    if wanted[0]:
        back = into.pattern.dsd(into.data, columns, transposed=True).mT if into is not None else sums
        found.append(back.view(steps, batch, -1))
    found += [each for each in firsts if each is not None]
    if wanted[2]:
        before = kept.states.narrow(0, 0, steps)  # of each step: h0, then the outputs but the last
        found.append(pattern.sdd(columns, before.flatten(0, 1).mT))
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
    """(states, h, c, cells, gates): h0 and the outputs, last states, and what the backward pass needs besides.

    states: [steps + 1, batch, hidden]; an operator may return no view of them, so whoever calls it takes the outputs
    alone. inputs: [steps, batch, in], or weighted already, [steps, batch, 4 hidden], if `into` is empty; h0, c0:
    [batch, hidden]; weight, into: recurrent and input weight.
    """
    own, other = weight_of(weight), weight_of(into)
    assert own is not None
    _check(inputs, (bias_ih, bias_hh), (h0, c0), own, other)
    y, c, kept = forward(inputs, (bias_ih, bias_hh), (h0, c0), own, other, keep=True)
    assert kept.gates is not None
    return kept.states, y[-1].clone(), c, kept.cells, kept.gates


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
    states = h0.new_empty(steps + 1, batch, hidden)
    cells, gates = (h0.new_empty(steps, batch, width, dtype=torch.float32) for width in (hidden, 4 * hidden))
    return states, h0.new_empty(batch, hidden), h0.new_empty(batch, hidden), cells, gates


@torch.library.custom_op("block_sparse_bench::cuda_lstm_backward", mutates_args=())
def lstm_backward(
    grad_y: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    kept: Sequence[Tensor],
    weight: Sequence[Tensor],
    into: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the bias, then of what is wanted of inputs, h0 and c0, kept values of recurrent and input weight.

    kept: states, cells and gates of the forward pass, c0 and, where the input weight is given, the inputs.
    """
    states, cells, gates, c0, *given = kept
    own = weight_of(weight)
    assert own is not None
    inputs, grads, left = given[0] if given else None, (grad_y, grad_h, grad_c), Kept(states, cells, gates)
    _check_kept(grads, left, c0, own.pattern, own.data.dtype)
    return backward(grads, left, c0, inputs, own, weight_of(into), wanted)


@lstm_backward.register_fake
def _(
    grad_y: Tensor | None,  # noqa: ARG001
    grad_h: Tensor | None,  # noqa: ARG001
    grad_c: Tensor | None,  # noqa: ARG001
    kept: Sequence[Tensor],
    weight: Sequence[Tensor],
    into: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor]:
    _, cells, _, c0, *given = kept
    steps, batch, hidden = cells.shape
    found = [c0.new_empty(4 * hidden)]
    if wanted[0]:
        found.append(c0.new_empty(steps, batch, given[0].shape[2] if given else 4 * hidden))
    shaped = ([c0, c0] if wanted[1] else []) + [
        each[0] for want, each in zip(wanted[2:], (weight, into), strict=True) if want
    ]
    return found + [torch.empty_like(each, memory_format=torch.contiguous_format) for each in shaped]


def _spread(found: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """What `backward` has found, in its order, with None where nothing was wanted: h0 and c0 are so together."""
    bias, *rest = found
    each = iter(rest)
    return [bias, *(next(each) if want else None for want in (wanted[0], wanted[1], *wanted[1:]))]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given, _, _, _, c0, weight, into = inputs
    states, _, _, cells, gates = output
    ctx.mark_non_differentiable(cells, gates)
    ctx.set_materialize_grads(False)
    ctx.parts = len(weight), len(into)
    ctx.save_for_backward(*weight, *into, states, cells, gates, c0, *([given] if into else []))


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    refuse_transforms(*grads)
    saved, (own, others), needs = list(ctx.saved_tensors), ctx.parts, ctx.needs_input_grad
    weight, into, kept = saved[:own], saved[own : own + others], saved[own + others :]
    of_states, of_h, of_c = grads[:3]
    of_y = None if of_states is None else of_states.narrow(0, 1, of_states.shape[0] - 1)
    wants_states = bool(needs[3] or needs[4])
    wanted = [bool(needs[0]), wants_states, bool(needs[5][0]), bool(into) and bool(needs[6][0])]
    found = lstm_backward(of_y, of_h, of_c, kept, weight, into, wanted)
    bias, inputs, h0, c0, *values = _spread(found, wanted)
    if h0 is not None and of_states is not None:
        h0 = h0 + of_states.select(0, 0)  # whose first row is a copy of h0
    lists = [[value, *[None] * 6] if each else [] for value, each in zip(values, (weight, into), strict=True)]
    return inputs, bias, bias, h0, c0, *lists


lstm.register_autograd(_backward, setup_context=_save)
lstm_backward.register_autograd(refuse_second)


class RecordedLstm(torch.autograd.Function):
    """(y, h, c) of `lstm`, where nothing but autograd looks on."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
        h0: Tensor,
        c0: Tensor,
        data: Tensor,
        into_data: Tensor | None,
        pattern: Pattern,
        into_pattern: Pattern | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        into = None if into_data is None or into_pattern is None else Weight(into_data, into_pattern)
        weight = Weight(data, pattern)
        y, c, kept = forward(inputs, (bias_ih, bias_hh), (h0, c0), weight, into, keep=True)
        ctx.set_materialize_grads(False)
        ctx.patterns = pattern, into_pattern
        given = None if into is None else inputs
        ctx.save_for_backward(y, *kept, c0, data, given, into_data)
        return y, y.select(0, -1).clone(), c

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_transforms(*grads)
        y, states, cells, gates, c0, data, inputs, into_data = ctx.saved_tensors
        if torch.is_grad_enabled():  # only y knows what it depends on: a second derivative is refused, not forgotten
            states = torch.cat([states[:1], y])
        (pattern, into_pattern), needs = ctx.patterns, ctx.needs_input_grad
        wanted = [needs[0], needs[3] or needs[4], needs[5], needs[6]]
        kept, given = [states, cells, gates, c0], [] if inputs is None else [inputs]
        came = [each for each in grads if each is not None]
        if torch.is_grad_enabled() or watched(*kept, data, *came):
            listed = [into_data, *into_pattern.index] if given else []
            found = lstm_backward(
                *grads, kept + given, [data, *pattern.index], listed, wanted
            )  # fmt: skip
        else:
            left, into = Kept(states, cells, gates), Weight(into_data, into_pattern) if given else None
            found = backward(grads, left, c0, inputs, Weight(data, pattern), into, wanted)
        bias, of_inputs, *others = _spread(found, wanted)
        return of_inputs, bias, bias, *others, None, None


# What Function.apply ends with; before, it looks for transforms, which `watched` has done
record: Any = super(torch.autograd.Function, RecordedLstm).apply
