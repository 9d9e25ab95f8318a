"""The CUDA layer in torch's tape past the dispatcher, which takes longer with its lists of tensors than a layer of few steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.cuda import lstm as cuda_lstm
from kernels.cuda.lstm import Weight
from kernels.cuda.products import Pattern
from kernels.cuda.recurrence import Kept
from kernels.tracing import refuse_transforms, watched


class Lstm(torch.autograd.Function):
    """(y, h, c) of `cuda_lstm_operator.lstm`, where nothing but autograd looks on."""

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
        y, c, kept = cuda_lstm.forward(inputs, (bias_ih, bias_hh), (h0, c0), weight, into, keep=True)
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
            found = cuda_lstm.lstm_backward(
                *grads, kept + given, [data, *pattern.index], listed, wanted
            )  # fmt: skip
        else:
            left, into = Kept(states, cells, gates), Weight(into_data, into_pattern) if given else None
            found = cuda_lstm.backward(grads, left, c0, inputs, Weight(data, pattern), into, wanted)
        bias, *rest = found
        others = iter(rest)
        of_inputs = next(others) if wanted[0] else None
        of_states = (next(others), next(others)) if wanted[1] else (None, None)
        of_values = [next(others) if want else None for want in wanted[2:]]
        return of_inputs, bias, bias, *of_states, *of_values, None, None


# What Function.apply ends with; before, it looks for transforms, which `watched` has done
record: Any = super(torch.autograd.Function, Lstm).apply
