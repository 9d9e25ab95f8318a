"""LSTMLayer: torch's LSTM layer, able to multiply only the kept blocks of its weights.

The parameters are torch's and dense, so optimizers, penalties and pruning know nothing of the path: the dense path is
`nn.LSTM` itself, the sparse one gathers the kept blocks of the same parameters at each call.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from bench.measuring.clocks import moment
from bench.models.patterns import OURS, Followed, drop_bits, dropped
from bench.models.spans import Backward, BackwardBegins, BackwardEnds
from kernels.bsr import BSRMatrix
from kernels.ops import block_sparse_lstm, computed_in
from kernels.tensors.autocast import multiplied_as
from kernels.tensors.padding import padded, widened
from kernels.tensors.tracing import transformed

# Recurrent weights that are dropped anew at each call cannot lie where cuDNN would like them.
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk of memory")

State = tuple[Tensor, Tensor]  # hidden and cell state of one layer, [1, batch, size] each


class LSTMLayer(Followed, nn.LSTM):
    """One layer of `torch.nn.LSTM`: its parameters, names, initialisation and results, on one of two paths.

    weight_drop: share of the recurrent weight's elements dropped while training, one mask a call (Merity et al.,
    1708.02182). The parameter stays raw: a dropped copy of it is what the layer multiplies with, on either path, and
    the mask is one of the whole weight, the same on both.
    Under torch.autocast both paths multiply copies in its type, but for float64, which it leaves alone; what goes in
    and comes out keeps the type of x. A type that the kernels of the sparse path do not know and float32 holds, they
    compute in that: float16 and bfloat16 on a CPU.
    seconds: time spent in it with gradients, forward and backward, since it was last set to 0; a GPU's own time there.
    A backward pass of torch.autograd.grad counts where it asks for the gradient of x, or of what x was made of.
    """

    KINDS = frozenset({"weight_hh"}), frozenset({"weight_ih", "weight_hh"})
    GATES = 4
    suffix = "_l0"

    weight_ih_l0: nn.Parameter
    weight_hh_l0: nn.Parameter
    bias_ih_l0: nn.Parameter
    bias_hh_l0: nn.Parameter

    def __init__(self, inputs: int, size: int, weight_drop: float = 0.0) -> None:
        super().__init__(inputs, size)
        self.weight_drop = weight_drop
        self.start_dense()

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:  # type: ignore[override]
        """(y, (h, c)). x: [steps, batch, in]; y: [steps, batch, size]; h, c: [1, batch, size]."""
        if not torch.is_grad_enabled() or transformed():
            return self._multiply(x, state)
        began, backward = moment(x.device.type), Backward(self.stopwatch, x.device.type)
        y, (h, c) = self._multiply(*self._marked(x, state, backward))
        y, h, c = BackwardBegins.apply(backward, y, h, c)  # type: ignore[no-untyped-call]
        self.stopwatch.add(began, moment(x.device.type))
        return y, (h, c)

    def _marked(self, x: Tensor, state: State | None, backward: Backward) -> tuple[Tensor, State | None]:
        """x and the state, one of them with the mark where `backward` ends."""
        if x.requires_grad:
            return BackwardEnds.apply(x, backward), state  # type: ignore[no-untyped-call]
        if x.ndim != 3 or not any(each.requires_grad for each in (*self.parameters(), *(state or ()))):
            return x, state
        h0, c0 = state or 2 * (x.new_zeros(1, x.shape[1], self.hidden_size),)
        if not c0.requires_grad:
            c0 = c0.clone().requires_grad_()  # of all operands the one whose gradient costs least
        return x, (h0, BackwardEnds.apply(c0, backward))  # type: ignore[no-untyped-call]

    def _multiply(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        dtype = multiplied_as(x)
        if dtype == x.dtype:
            return self._multiply_as(dtype, x, state)
        state = state and (state[0].to(dtype), state[1].to(dtype))
        with torch.autocast(x.device.type, enabled=False):
            y, (h, c) = self._multiply_as(dtype, x.to(dtype), state)
        return y.to(x.dtype), (h.to(x.dtype), c.to(x.dtype))

    def _multiply_as(self, dtype: torch.dtype, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The layer with its weights as `dtype`, which x and the state have."""
        drop = self.weight_drop if self.training else 0.0
        if not self.sparse:
            as_it_is = not drop and dtype == self.weight_hh_l0.dtype
            dense: tuple[Tensor, State] = super().forward(x, state) if as_it_is else self._copied(dtype, x, state, drop)
            return dense
        return self._skipping(dtype, x, state, drop)

    def _skipping(self, dtype: torch.dtype, x: Tensor, state: State | None, drop: float) -> tuple[Tensor, State]:
        """The layer by the kernels that skip empty blocks.

        In float32, where they do not know `dtype` and it holds that.
        """
        kernel, patterns = OURS.get(x.device.type, "torch"), {kind: self.pattern(kind) for kind in self.patterns}
        recurrent = patterns["weight_hh"].matrix
        sizes = {"block_size": recurrent.block_size, "nnzb": recurrent.nnzb}
        inside = computed_in(dtype, kernel, x.device, layer=True, **sizes)
        drops = {"weight_ih": 0.0, "weight_hh": drop}
        weights = {
            kind: pattern.of(getattr(self, f"{kind}_l0"), drops[kind], dtype, inside)
            for kind, pattern in patterns.items()
        }
        size, units = self.hidden_size, recurrent.shape[1]  # with padded ones, which stay zero
        weight_ih: Tensor | BSRMatrix
        if "weight_ih" in weights:
            weight_ih = weights["weight_ih"]
        else:
            weight_ih = padded(self.weight_ih_l0.to(dtype).to(inside), self.GATES, (4 * units, self.input_size))
        bias_ih = padded(self.bias_ih_l0.to(dtype).to(inside), self.GATES, (4 * units,))
        bias_hh = padded(self.bias_hh_l0.to(dtype).to(inside), self.GATES, (4 * units,))
        state = state and (widened(state[0].to(inside), units), widened(state[1].to(inside), units))
        operands = widened(x.to(inside), weight_ih.shape[1]), state, weight_ih, weights["weight_hh"], bias_ih, bias_hh
        y, (h, c) = block_sparse_lstm(*operands, kernel=kernel, dense="torch")  # what a run computes stays to the digit
        if units > size:
            y, h, c = (each[..., :size].contiguous() for each in (y, h, c))
        return y.to(dtype), (h.to(dtype), c.to(dtype))

    def _copied(self, dtype: torch.dtype, x: Tensor, state: State | None, drop: float) -> tuple[Tensor, State]:
        """The library's layer on copies of the weights, as operands: nn.LSTM itself would multiply the raw ones."""
        zeros = x.new_zeros(1, x.shape[1], self.hidden_size)
        parameters = self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0
        weights = [parameter.to(dtype) for parameter in parameters]
        weights[1] = dropped(weights[1], drop_bits(weights[1]), drop) if drop else weights[1]
        y, h, c = torch.lstm(x, state or (zeros, zeros), weights, True, 1, 0.0, True, False, False)
        return y, (h, c)
