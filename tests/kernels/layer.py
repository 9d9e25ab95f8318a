"""One LSTM layer with random block-sparse weights: by torch.nn.LSTM, by block_sparse_lstm, and in ball arithmetic."""

from __future__ import annotations

import functools

import torch
from balls import Ball, complement, join, total
from torch import Tensor

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.ops import block_sparse_lstm

Step = tuple[tuple[Ball, Ball], tuple[Ball, ...], Ball]  # h and c before it, its gates, tanh(c) after it


@functools.cache
def has_bfloat16_layers() -> bool:
    """Whether torch's own LSTM layer runs under torch.autocast: oneDNN has none for CPUs without the instructions."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.LSTM(2, 2)(torch.zeros(1, 1, 2))
    except RuntimeError as error:
        if "primitive descriptor" not in str(error):
            raise
        return False
    return True


class Case:
    """A layer with random block-sparse weights, its operands, and the gradients of its outputs."""

    def __init__(
        self,
        size: int,
        units: int,
        inputs: int,
        steps: int,
        batch: int,
        density: float = 0.5,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        hidden, into = size * units, size * inputs
        masks = [
            BlockMask(torch.rand(4 * units, side, generator=generator) < density, size) for side in (inputs, units)
        ]
        self.weights = [BSRMatrix.from_dense(normal(*mask.shape) / hidden**0.5, mask) for mask in masks]
        self.x, self.biases = normal(steps, batch, into), [normal(4 * hidden) for _ in range(2)]
        self.states = [normal(1, batch, hidden) for _ in range(2)]
        self.grads = [normal(steps, batch, hidden), *(normal(1, batch, hidden) for _ in range(2))]

    def expected(self) -> list[Tensor]:
        """y, h, c, then gradients of x, h0, c0, the kept values of both weights, and the biases; by torch.nn.LSTM."""
        dense = [weight.to_dense() for weight in self.weights]
        layer = torch.nn.LSTM(dense[0].shape[1], dense[1].shape[1], dtype=self.x.dtype)
        weights = list(layer.parameters())  # weight_ih, weight_hh, bias_ih, bias_hh
        for parameter, value in zip(weights, [*dense, *self.biases], strict=True):
            parameter.data.copy_(value)
        leaves = [each.clone().requires_grad_() for each in (self.x, *self.states)]
        y, (h, c) = layer(leaves[0], (leaves[1], leaves[2]))
        grads = list(torch.autograd.grad([y, h, c], [*leaves, *weights], self.grads))
        for place, weight in zip((3, 4), self.weights, strict=True):
            grads[place] = BSRMatrix.from_dense(grads[place], weight.mask).data
        return [y, h, c, *grads]

    def computed(self, kernel: str, dense_input: bool = False) -> list[Tensor]:
        """The same by block_sparse_lstm; the input weight dense or block-sparse."""
        data = [weight.data.clone().requires_grad_() for weight in self.weights]
        dense = self.weights[0].to_dense().requires_grad_()
        leaves = [each.clone().requires_grad_() for each in (self.x, *self.states)]
        biases = [bias.clone().requires_grad_() for bias in self.biases]
        into = dense if dense_input else self.weights[0].with_data(data[0])
        recurrent = self.weights[1].with_data(data[1])
        y, (h, c) = block_sparse_lstm(leaves[0], (leaves[1], leaves[2]), into, recurrent, *biases, kernel)
        wanted = [*leaves, dense if dense_input else data[0], data[1], *biases]
        grads = list(torch.autograd.grad([y, h, c], wanted, self.grads))
        if dense_input:
            grads[3] = BSRMatrix.from_dense(grads[3], self.weights[0].mask).data
        return [y, h, c, *grads]

    def inferred(self, dense_input: bool = False) -> list[Tensor]:
        """y, h and c where no gradient is wanted."""
        into = self.weights[0].to_dense() if dense_input else self.weights[0]
        with torch.no_grad():
            y, (h, c) = block_sparse_lstm(
                self.x, (self.states[0], self.states[1]), into, self.weights[1], *self.biases, "native"
            )
        return [y, h, c]

    def balls(self) -> list[Ball]:
        """The same by the equations, each element with a bound of its rounding errors."""
        into, recurrent = (Ball.exact(weight.to_dense()) for weight in self.weights)
        bias = total(*map(Ball.exact, self.biases))
        h, c = (Ball.exact(state[0]) for state in self.states)
        steps, y = [], []
        for x in map(Ball.exact, self.x):
            i, f, g, o = total(x @ into.T, h @ recurrent.T, bias).chunk(4)
            i, f, o = (gate.monotone(torch.sigmoid) for gate in (i, f, o))
            g, before = g.monotone(torch.tanh), (h, c)
            c = total(f * c, i * g)
            squashed = c.monotone(torch.tanh)
            h = o * squashed
            steps.append((before, (i, f, g, o), squashed))
            y.append(h)
        grads = self._grads_of_sums(recurrent, steps)
        return [
            join(y),
            join([h]),
            join([c]),
            *self._gradients(into, grads, join([before[0] for before, _, _ in steps])),
        ]

    def _grads_of_sums(self, recurrent: Ball, steps: list[Step]) -> tuple[Ball, Ball, Ball]:
        """Gradients of what goes into the gates, [steps, batch, 4 hidden], of h0 and of c0."""
        grad_y, (grad_h,), (grad_c,) = (list(map(Ball.exact, grad)) for grad in self.grads)
        found = []
        for (_, c), (i, f, g, o), squashed in reversed(steps):
            grad_h = total(grad_h, grad_y.pop())
            grad_c = total(grad_c, grad_h * o * complement(squashed * squashed))
            logistic = (grad_c * g, grad_c * c, grad_h * squashed)
            first, second, last = (
                grad * gate * complement(gate) for grad, gate in zip(logistic, (i, f, o), strict=True)
            )
            found.append(join([first, second, grad_c * i * complement(g * g), last], torch.cat))
            grad_h, grad_c = found[-1] @ recurrent, grad_c * f
        return join(found[::-1]), join([grad_h]), join([grad_c])

    def _gradients(self, into: Ball, grads: tuple[Ball, Ball, Ball], before: Ball) -> list[Ball]:
        """Gradients of x, h0, c0, both weights at their kept blocks, and both biases. before: h of the steps before."""
        of_sums, inputs, h = (
            each.map(lambda part: part.flatten(0, 1)) for each in (grads[0], Ball.exact(self.x), before)
        )
        products = (of_sums.T @ right for right in (inputs, h))
        weights = [
            product.map(lambda each, mask=weight.mask: BSRMatrix.from_dense(each, mask).data)
            for product, weight in zip(products, self.weights, strict=True)
        ]
        bias = of_sums.sum(0)
        return [grads[0] @ into, *grads[1:], *weights, bias, bias]
