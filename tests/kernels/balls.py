"""Ball arithmetic: values in float64, each with a bound of the error that a kernel of lower precision may have made.

The bounds hold for any order of summation, with or without fused multiply-adds (Higham, Accuracy and Stability of
Numerical Algorithms, sections 2.2 and 3.1), and for nonlinearities within a few units in the last place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NONLINEARITY_ULPS = 8


@dataclass(frozen=True)
class Ball:
    """Whatever lies within `error` of `value`; roundoff: u of the kernel's type, and of float64 beside it."""

    value: Tensor
    error: Tensor
    roundoff: float

    @classmethod
    def exact(cls, value: Tensor) -> Ball:
        """An operand of the kernel."""
        return cls(
            value.double(), torch.zeros_like(value, dtype=torch.float64), torch.finfo(value.dtype).eps / 2 + 2**-53
        )

    @property
    def largest(self) -> Tensor:
        return self.value.abs() + self.error

    def map(self, change: Callable[[Tensor], Tensor]) -> Ball:
        """The same elements at other places."""
        return Ball(change(self.value), change(self.error), self.roundoff)

    @property
    def T(self) -> Ball:
        return self.map(lambda each: each.T)

    def chunk(self, parts: int) -> list[Ball]:
        """Equal parts of the last dimension."""
        halves = (each.chunk(parts, dim=-1) for each in (self.value, self.error))
        return [Ball(value, error, self.roundoff) for value, error in zip(*halves, strict=True)]

    def __mul__(self, other: Ball) -> Ball:
        value = self.value * other.value
        error = self.largest * other.largest - value.abs()
        return Ball(value, error + self.roundoff * self.largest * other.largest, self.roundoff)

    def __matmul__(self, other: Ball) -> Ball:
        value, largest = self.value @ other.value, self.largest @ other.largest
        error = largest - self.value.abs() @ other.value.abs() + _gamma(self.value.shape[-1], self.roundoff) * largest
        return Ball(value, error, self.roundoff)

    def sum(self, dim: int) -> Ball:
        gamma = _gamma(self.value.shape[dim], self.roundoff)
        return Ball(self.value.sum(dim), self.error.sum(dim) + gamma * self.largest.sum(dim), self.roundoff)

    def monotone(self, function: Callable[[Tensor], Tensor]) -> Ball:
        """A rising function, evaluated within a few units in the last place."""
        value = function(self.value)
        low, high = function(self.value - self.error), function(self.value + self.error)
        spread = torch.maximum(high - value, value - low)
        ulps = 2 * NONLINEARITY_ULPS * self.roundoff * torch.maximum(low.abs(), high.abs())
        return Ball(value, spread + ulps, self.roundoff)

    def contains(self, computed: Tensor) -> bool:
        """Whether the kernel's result is possible: finite, and nowhere further off than twice the bound."""
        smallest = torch.finfo(computed.dtype).tiny
        within = (computed.double() - self.value).abs() <= 2 * self.error + smallest
        return computed.shape == self.value.shape and bool(within.all())


def _gamma(terms: int, roundoff: float) -> float:
    return terms * roundoff / (1 - terms * roundoff)


def join(balls: list[Ball], function: Callable[..., Tensor] = torch.stack) -> Ball:
    """Stacked along a new first dimension, or put end to end along the last one by torch.cat."""
    dim = 0 if function is torch.stack else -1
    values, errors = ([getattr(ball, name) for ball in balls] for name in ("value", "error"))
    return Ball(function(values, dim=dim), function(errors, dim=dim), balls[0].roundoff)


def total(*balls: Ball) -> Ball:
    """Their sum, in any order."""
    shape = torch.broadcast_shapes(*(ball.value.shape for ball in balls))
    return join([ball.map(lambda each: each.expand(shape)) for ball in balls]).sum(0)


def complement(ball: Ball) -> Ball:
    """One minus it."""
    value = 1 - ball.value
    return Ball(value, ball.error + ball.roundoff * (value.abs() + ball.error), ball.roundoff)
