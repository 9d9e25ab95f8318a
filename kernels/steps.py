"""An LSTM layer one step after the other, by products and torch's gates: slower than a kernel, with every derivative.

So the operators of whole layers have derivatives in forward mode, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kernels.cuda import lstm as cuda_lstm
from kernels.native import lstm as native_lstm
from kernels.products import dsd
from kernels.tensors.forward import refuse_forward, register_forward

Steps = tuple[Tensor, Tensor, Tensor]


def in_steps(projected: Tensor, h: Tensor, c: Tensor, multiply: Callable[[Tensor], Tensor]) -> Steps:
    """(y, h, c) of the layer. projected: weighted inputs and biases, [steps, batch, 4 hidden]; multiply: W h^T."""
    outputs = []
    for step in projected:
        i, f, g, o = (step + multiply(h.T).T).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs), h, c


def _steps_of(
    inputs: Tensor, bias: Tensor, state: tuple[Tensor, Tensor], weights: Sequence[Sequence[Tensor]], kernel: str
) -> Steps:
    """Of the operands of an operator. weights: recurrent and input weight, each values and index, or empty."""

    def multiplied(weight: Sequence[Tensor], x: Tensor) -> Tensor:
        found: Tensor = dsd(*weight, x, False, kernel)
        return found

    weight, into = weights
    if into:
        columns = inputs.flatten(0, 1).T
        inputs = multiplied(into, columns).T.reshape(*inputs.shape[:2], bias.shape[0])
    return in_steps(inputs + bias, *state, lambda x: multiplied(weight, x))


def _unknown(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """In the place of what a kernel leaves for its way back, which nobody may go now."""
    return like.new_full(shape, float("nan"), dtype=dtype)


def _native(
    inputs: Tensor, bias: Tensor, h0: Tensor, c0: Tensor, weight: Sequence[Tensor], into: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    (steps, batch), hidden = inputs.shape[:2], h0.shape[1]
    saved = _unknown(h0, steps, batch * hidden * native_lstm.KEPT)
    return *_steps_of(inputs, bias, (h0, c0), (weight, into), "native"), saved


def _cuda(
    inputs: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight: Sequence[Tensor],
    into: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    (steps, batch), hidden = inputs.shape[:2], h0.shape[1]
    y, h, c = _steps_of(inputs, bias_ih + bias_hh, (h0, c0), (weight, into), "cuda")
    kept = (_unknown(h0, steps, batch, width, dtype=torch.float32) for width in (hidden, 4 * hidden))
    return torch.cat([h0.unsqueeze(0), y]), h, c, *kept


for _operators, _formula in ((native_lstm, _native), (cuda_lstm, _cuda)):
    register_forward(_operators.lstm, _formula)
    register_forward(_operators.lstm_backward, refuse_forward)
