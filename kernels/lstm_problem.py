"""LstmProblem: an LSTM layer that backends are asked to compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from kernels.blockmask import BlockMask, grid_shape
from kernels.problem import DTYPES, Problem, require, require_math

PASSES = ("forward", "forward_backward")
SCOPES = ("all", "weight_hh")
BIASES = ("bias_ih", "bias_hh")


@dataclass(frozen=True)
class LstmProblem(Problem):
    """One layer of `torch.nn.LSTM` (gates i, f, g, o) over all time steps, with block-sparse weights.

    passes 'forward': y, h and c, as in inference; 'forward_backward': also the gradients of x, the weights (at the kept
    blocks) and the biases, from grad_y alone. scope 'all': both weights are block-sparse; 'weight_hh': the recurrent one.
    math: of float32, 'ieee' or 'tf32'.
    """

    input_size: int
    hidden_size: int
    batch_size: int
    steps: int
    block_size: int
    sparsity: float
    passes: str = "forward_backward"
    scope: str = "all"
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    math: str = "ieee"

    def __post_init__(self) -> None:
        grid_shape(self.hidden_size, self.hidden_size, self.block_size)  # so that no gates share a block row
        if self.scope == "all":
            grid_shape(self.hidden_size, self.input_size, self.block_size)
        if min(self.batch_size, self.steps, self.input_size) < 1:
            raise ValueError("input_size, batch_size and steps must be at least 1")
        require("dtype", self.dtype, list(DTYPES))
        require_math(self.math, self.dtype)
        require("passes", self.passes, PASSES)
        require("scope", self.scope, SCOPES)

    @property
    def masks(self) -> Mapping[str, BlockMask]:
        return self._masks

    @cached_property
    def _masks(self) -> dict[str, BlockMask]:
        masks = {"weight_hh": self._random_mask(1, 4 * self.hidden_size, self.hidden_size)}
        if self.scope == "all":
            masks["weight_ih"] = self._random_mask(0, 4 * self.hidden_size, self.input_size)
        return masks

    @cached_property
    def full_weights(self) -> dict[str, Tensor]:
        """weight_ih [4 hidden, in] and weight_hh [4 hidden, hidden], of scale 1 / sqrt(hidden) as torch initialises them."""
        rows, scale = 4 * self.hidden_size, self.hidden_size**-0.5
        return {
            "weight_ih": self._normal(2, rows, self.input_size, scale=scale),
            "weight_hh": self._normal(3, rows, self.hidden_size, scale=scale),
        }

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The same, zero outside the kept blocks."""
        masks = self.masks
        return {n: self._pruned(w, masks[n]) if n in masks else w for n, w in self.full_weights.items()}

    @cached_property
    def biases(self) -> dict[str, Tensor]:
        """bias_ih and bias_hh: [4 hidden]."""
        scale = self.hidden_size**-0.5
        return {name: self._normal(4 + i, 4 * self.hidden_size, scale=scale) for i, name in enumerate(BIASES)}

    @cached_property
    def x(self) -> Tensor:
        """[steps, batch, in]."""
        return self._normal(6, self.steps, self.batch_size, self.input_size)

    @cached_property
    def state(self) -> tuple[Tensor, Tensor]:
        """h0 and c0: [1, batch, hidden]."""
        shape = (1, self.batch_size, self.hidden_size)
        return self._normal(7, *shape), self._normal(8, *shape)

    @cached_property
    def grad_y(self) -> Tensor:
        """[steps, batch, hidden]."""
        return self._normal(9, self.steps, self.batch_size, self.hidden_size)

    def draw(self) -> None:
        _ = self.weights, self.biases, self.x, self.state, self.grad_y

    @property
    def dense_flops(self) -> int:
        """2 operations a weight, sample and step; the gradients of x and of the weights cost as much each."""
        weights = 4 * self.hidden_size * (self.input_size + self.hidden_size)
        return self._flops(weights)

    @property
    def flops(self) -> int:
        """The same of the kept blocks alone."""
        return self._flops(
            sum(
                self.masks[name].nnzb * self.block_size**2 if name in self.masks else weight.numel()
                for name, weight in self.full_weights.items()
            )
        )

    def _flops(self, weights: int) -> int:
        return (3 if self.passes == "forward_backward" else 1) * 2 * weights * self.batch_size * self.steps
