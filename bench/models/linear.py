"""LinearLayer: torch's linear layer, able to multiply only the kept blocks of its weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.measuring.clocks import moment
from bench.models.patterns import OURS, Followed
from bench.models.spans import Backward, BackwardBegins, BackwardEnds
from kernels.ops import block_sparse_linear, computed_in
from kernels.tensors.autocast import as_given, multiplied_as
from kernels.tensors.tracing import transformed


class LinearLayer(Followed, nn.Linear):
    """`torch.nn.Linear`: its parameters, names, initialisation and results, on one of two paths.

    Under torch.autocast both multiply copies in its type; what comes out keeps the type of x. seconds: as of
    `bench.models.layers.LSTMLayer`.
    """

    KINDS = (frozenset({"weight"}),)

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__(inputs, size)
        self.start_dense()

    def forward(self, x: Tensor) -> Tensor:
        """y: [..., size]. x: [..., in]."""
        if not torch.is_grad_enabled() or transformed():
            return self._multiply(x)
        y: Tensor
        began, backward = moment(x.device.type), Backward(self.stopwatch, x.device.type)
        if x.requires_grad:
            x = BackwardEnds.apply(x, backward)  # type: ignore[no-untyped-call]
            (y,) = BackwardBegins.apply(backward, self._multiply(x))  # type: ignore[no-untyped-call]
        elif self.weight.requires_grad:  # of the first layer: the weight's gradient comes last
            weight = BackwardEnds.apply(self.weight, backward)  # type: ignore[no-untyped-call]
            (y,) = BackwardBegins.apply(backward, self._multiply(x, weight))  # type: ignore[no-untyped-call]
        else:
            y = self._multiply(x)
        self.stopwatch.add(began, moment(x.device.type))
        return y

    def _multiply(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """weight: the parameter, or what it is behind a mark."""
        dtype, weight = multiplied_as(x), self.weight if weight is None else weight
        if not self.sparse:
            return F.linear(x, weight, self.bias).to(x.dtype)
        kernel, pattern = OURS.get(x.device.type, "torch"), self.pattern("weight")
        sizes = {"block_size": pattern.matrix.block_size, "nnzb": pattern.matrix.nnzb}
        inside = computed_in(dtype, kernel, x.device, layer=False, **sizes)
        blocks, bias = pattern.of(weight, 0.0, dtype, inside), self.bias.to(dtype).to(inside)
        with as_given(x.device):
            y = block_sparse_linear(x.to(dtype).to(inside), blocks, bias, kernel)
        return y.to(dtype).to(x.dtype)
