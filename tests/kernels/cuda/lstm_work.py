"""A layer for the differentiable operator: its operands, what it computes with gradients, and the same in float64."""

from __future__ import annotations

import torch
from lstm_case import DTYPES, Layer, assert_near, tolerance
from torch import Tensor

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.ops import block_sparse_lstm

NAMES = ("x", "h0", "c0", "into", "recurrent", "bias_ih", "bias_hh")
Results = dict[str, Tensor]


class Work:
    """A layer 32 -> 48 of blocks of 16 with its operands and the gradients of its outputs, all of one dtype."""

    def __init__(
        self, element: str, inputs: str = "same blocks", batch: int = 5, steps: int = 3, seed: int = 0
    ) -> None:
        self.layer = Layer(32, 48, batch, steps, 16, 0.5, dtype=DTYPES[element], seed=seed)
        self.element, generator = element, torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.layer.torch_dtype)

        weights, masks = self.layer.weights, self.layer.masks
        self.recurrent = BSRMatrix.from_dense(weights["weight_hh"], masks["weight_hh"])
        size = 8 if inputs == "other blocks" else 16
        mask = BlockMask.random(4 * 48, 32, size, 0.5, generator)
        self.into = BSRMatrix.from_dense(normal(4 * 48, 32) / 6, mask)
        self.dense = self.into.to_dense() if inputs == "dense" else None
        values = self.into.data if self.dense is None else self.dense
        states = [normal(1, batch, 48) for _ in range(2)]
        operands = [normal(steps, batch, 32), *states, values, self.recurrent.data, *self.layer.biases.values()]
        self.operands = dict(zip(NAMES, operands, strict=True))
        self.grads = [normal(steps, batch, 48), normal(1, batch, 48), normal(1, batch, 48)]

    def run(self, leaves: Results, kernel: str = "cuda") -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x, h0, c0, into, recurrent, *biases = leaves.values()
        weight_ih = into if self.dense is not None else self.into.with_data(into)
        return block_sparse_lstm(x, (h0, c0), weight_ih, self.recurrent.with_data(recurrent), *biases, kernel)

    def leaves(self, dtype: torch.dtype | None = None) -> Results:
        return {name: each.to(dtype, copy=True).requires_grad_() for name, each in self.operands.items()}

    def computed(self, kernel: str = "cuda", dtype: torch.dtype | None = None) -> Results:
        leaves = self.leaves(dtype)
        y, (h, c) = self.run(leaves, kernel)
        return {"y": y, "h": h, "c": c} | self.backward((y, h, c), leaves)

    def backward(self, outputs: tuple[Tensor, Tensor, Tensor], leaves: Results) -> Results:
        given = [grad.to(outputs[0].dtype) for grad in self.grads]
        found = torch.autograd.grad(outputs, list(leaves.values()), given)
        return {f"grad_{name}": grad for name, grad in zip(leaves, found, strict=True)}

    def expected(self) -> Results:
        """By torch.nn.LSTM in float64."""
        leaves = self.leaves(torch.float64)
        x, h0, c0, into, recurrent, *biases = leaves.values()
        dense = into if self.dense is not None else self.into.with_data(into).to_dense()
        weights = [dense, self.recurrent.with_data(recurrent).to_dense(), *biases]
        y, h, c = torch.lstm(x, (h0, c0), weights, True, 1, 0.0, False, False, False)
        return {"y": y, "h": h, "c": c} | self.backward((y, h, c), leaves)

    def check(self, found: Results) -> None:
        expected = self.expected()
        for name in expected:
            assert found[name].dtype == self.layer.torch_dtype and found[name].shape == expected[name].shape
            assert_near(found[name], expected[name], tolerance(self.layer, self.element), name)


def assert_close(found: Results, wanted: Results) -> None:
    for name, each in wanted.items():
        torch.testing.assert_close(found[name], each, rtol=1e-4, atol=1e-5)


def same(one: Results, other: Results) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
