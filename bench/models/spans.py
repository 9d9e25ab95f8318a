"""Spans: the time that autograd spends between two marks round a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.measuring.clocks import Moment, Stopwatch, moment


class Backward:
    """When the backward pass of one call began, until its end is known."""

    def __init__(self, stopwatch: Stopwatch, device: str) -> None:
        self.stopwatch, self.device = stopwatch, device
        self.began: Moment | None = None

    def begin(self) -> None:
        self.began = moment(self.device)

    def end(self) -> None:
        if self.began is not None:
            self.stopwatch.add(self.began, moment(self.device))
        self.began = None


class BackwardBegins(torch.autograd.Function):
    """The identity, behind a layer: its backward pass comes first, whichever of its outputs it comes by."""

    @staticmethod
    def forward(ctx: Any, backward: Backward, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.span = backward
        ctx.set_materialize_grads(False)
        return tuple(each.detach() for each in outputs)  # no views: users may write to what torch's layer gives

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.span.begin()
        return None, *grads


class BackwardEnds(torch.autograd.Function):
    """The identity, before a layer: autograd comes to it when all younger nodes, the layer's, are done."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backward: Backward) -> Tensor:
        ctx.span = backward
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.span.end()
        return grad, None
