"""Layers of torch.nn with block-sparse weights, to put in the place of dense ones.

Each computes what the layer of torch's does with the same weights, zero outside the kept blocks, and has its arguments,
shapes and states. Only kept values are parameters: they are trained, the pattern is not. torch.compile goes through
them, with fullgraph too; at a packed sequence its graph breaks, and the layer runs as it is. torch.export keeps the
pattern as constants.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.layers.recurrent import Recurrent
from kernels.layers.sequences import State
from kernels.layers.weight import (
    BlockSparseWeight,
    copied,
    kept_blocks,
    require_kernel,
    require_kind,
    require_mask,
    sparse_from,
)
from kernels.ops import block_sparse_linear, block_sparse_lstm
from kernels.tensors.dense import linear
from kernels.tensors.padding import widened


class BlockSparseLinear(nn.Module):
    """torch.nn.Linear with a block-sparse weight: y = x W^T + b, x [..., in_features] -> [..., out_features].

    mask: which blocks of the weight [out_features, in_features] are kept. `weight` is a `BlockSparseWeight`, `bias` a
    parameter or None; kept values begin as those of torch.nn.Linear do. kernel: as of `block_sparse_matmul`.
    pad: sizes that the block size does not divide are filled up with zeros inside, at the price of a copy of x and one
    of y; the mask then covers the weight in whole blocks. ValueError where the mask is not of the weight's shape.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        mask: BlockMask,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kernel: str = "auto",
        pad: bool = False,
    ) -> None:
        super().__init__()
        mask = require_mask("weight", mask, (out_features, in_features), pad)
        self.in_features, self.out_features, self.kernel = in_features, out_features, require_kernel(kernel)
        self.weight = BlockSparseWeight(kept_blocks(mask, device, dtype), (out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @classmethod
    def from_dense(cls, module: nn.Linear, mask: BlockMask, *, kernel: str = "auto", pad: bool = False) -> Self:
        """The layer with the blocks of `module` that `mask` keeps: copies, of its types, on its device, in its mode.

        ValueError where the mask is of another shape, or the weights of `module` are parametrized.
        """
        require_kind(module, nn.Linear)
        sizes, biased = (module.in_features, module.out_features), module.bias is not None
        made = cls(*sizes, mask, biased, device="meta", kernel=kernel, pad=pad)
        made.weight = sparse_from(module.weight, mask)
        made.bias = copied(module.bias) if biased else None
        return made.train(module.training)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Kept values and bias drawn anew, uniform as those of torch.nn.Linear are."""
        bound = 1 / math.sqrt(self.in_features)
        self.weight.draw(bound)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if weight.padded == weight.shape:
            return block_sparse_linear(input, weight.matrix, bias, self.kernel)
        (rows, cols), (outside, inside) = weight.padded, weight.shape
        if not isinstance(input, Tensor) or input.shape[-1:] != (inside,):
            given = list(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"input must be [..., {inside}], got {given}")
        whole = bias if bias is None else widened(bias, rows)
        return block_sparse_linear(widened(input, cols), weight.matrix, whole, self.kernel)[..., :outside].contiguous()

    def extra_repr(self) -> str:
        weight = self.weight
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, block_size={weight.block_size}, sparsity={weight.sparsity:.4g}"


def freeze(model: nn.Module) -> nn.Module:
    """`model`, each of its block-sparse weights frozen for inference (`BlockSparseWeight.freeze`).

    On a CPU a product packs the values of its weight, which takes about as long as a product with 20 columns: of a
    frozen one once, at the price of the memory for copies.
    """
    for module in model.modules():
        if isinstance(module, BlockSparseWeight):
            module.freeze()
    return model


def _as_blocks(weight: Tensor | BSRMatrix) -> BSRMatrix:
    """A dense recurrent weight as one block a gate, its values where they are."""
    if isinstance(weight, BSRMatrix):
        return weight
    rows, size = weight.shape
    gates = rows // size
    indices = torch.zeros(gates, dtype=torch.int32, device=weight.device)
    indptr = torch.arange(gates + 1, dtype=torch.int32, device=weight.device)
    return BSRMatrix(weight.view(gates, size, size), indices, indptr, (rows, size))


class BlockSparseLSTM(Recurrent):
    """torch.nn.LSTM with block-sparse weights, each layer by `block_sparse_lstm`.

    masks: of weights by torch's names, as weight_ih_l0 and weight_hh_l0_reverse; a weight without one is a dense
    parameter. A block-sparse one is a `BlockSparseWeight`: its values are `layer.weight_hh_l0.values`. The other
    arguments are those of torch.nn.LSTM, proj_size must be 0; kernel: as of `block_sparse_matmul`. Kept values begin
    as those of torch.nn.LSTM do. pad: sizes that the block size does not divide are filled up with zeros inside, inputs
    and units; masks, all of one block size, then cover the weights in whole blocks, each of the four gates by itself.
    ValueError where masks are not of the weights.
    """

    KIND, GATES, STATES, BY_STEPS = nn.LSTM, 4, ("h0", "c0"), False

    def _listed(self, hx: Any) -> State:
        if not isinstance(hx, tuple | list) or len(hx) != 2:
            raise ValueError(f"hx must be (h0, c0) or None, got {type(hx).__name__}")
        return tuple(hx)

    def _state(self, states: State) -> Any:
        return states

    def _by_torch(self, x: Tensor, state: State, flat: list[Tensor]) -> tuple[Tensor, State]:
        before = [each.unsqueeze(0) for each in state]
        y, h, c = torch.lstm(x, before, flat, len(flat) > 2, 1, 0.0, self.training, False, False)
        return y, (h.squeeze(0), c.squeeze(0))

    def _by_blocks(
        self, x: Tensor, state: State, weights: list[Tensor | BSRMatrix], biases: list[Tensor | None]
    ) -> tuple[Tensor, State]:
        before = state[0].unsqueeze(0), state[1].unsqueeze(0)
        into, recurrent = weights[0], _as_blocks(weights[1])
        y, (h, c) = block_sparse_lstm(x, before, into, recurrent, biases[0], biases[1], self.kernel)
        return y, (h.squeeze(0), c.squeeze(0))


class BlockSparseGRU(Recurrent):
    """torch.nn.GRU with block-sparse weights, step by step: products by `block_sparse_linear`, gates by torch.

    Arguments and weights: as of `BlockSparseLSTM`. No kernel of ours goes through all steps of a GRU yet.
    """

    KIND, GATES, STATES, BY_STEPS = nn.GRU, 3, ("h0",), True

    def _listed(self, hx: Any) -> State:
        return (hx,)

    def _state(self, states: State) -> Any:
        return states[0]

    def _by_torch(self, x: Tensor, state: State, flat: list[Tensor]) -> tuple[Tensor, State]:
        y, h = torch.gru(x, state[0].unsqueeze(0), flat, len(flat) > 2, 1, 0.0, self.training, False, False)
        return y, (h.squeeze(0),)

    def _by_blocks(
        self, x: Tensor, state: State, weights: list[Tensor | BSRMatrix], biases: list[Tensor | None]
    ) -> tuple[Tensor, State]:
        outputs, h = [], state[0]
        for step in self._product(x, weights[0], biases[0]):
            reset, update, new = self._product(h, weights[1], biases[1]).chunk(3, dim=1)
            to_reset, to_update, to_new = step.chunk(3, dim=1)
            new = (to_new + (to_reset + reset).sigmoid() * new).tanh()
            h = (h - new) * (to_update + update).sigmoid() + new
            outputs.append(h)
        return torch.stack(outputs), (h,)

    def _product(self, x: Tensor, weight: Tensor | BSRMatrix, bias: Tensor | None) -> Tensor:
        if isinstance(weight, BSRMatrix):
            return block_sparse_linear(x, weight, bias, self.kernel)
        return linear(x, weight, bias)
