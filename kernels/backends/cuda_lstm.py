"""One LSTM layer by our CUDA kernels with the products it is given: what the backend `cuda` launches.

The inputs are weighted for all steps at once, and the gradients of inputs and weights are taken for all steps at once; between
them run the steps (`kernels.backends.cuda_recurrence`), forward or backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.backends import cuda_kernel, cuda_recurrence
from kernels.backends.cuda_kernel import Kernel, Variant
from kernels.backends.cuda_lstm_pass import Sizes
from kernels.backends.cuda_lstm_tiles import Device, Tiles
from kernels.backends.cuda_recurrence import Kept, Recurrence, plans_for, tiles_for
from kernels.bsr import BSRIndex, BSRMatrix
from kernels.lstm_problem import LstmProblem

ELEMENTS = {torch.float32: "Float32", torch.bfloat16: "Bfloat16", torch.float16: "Float16"}
BLOCKS = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Products:
    """The products over all steps at once, each writing into its last argument; n = steps * batch.

    weigh: values of the input weight, x[n, in] -> [n, 4 hidden]; weigh_back: values, grads[n, 4 hidden] -> [n, in];
    sample_input: grads, x -> gradient of the input weight's values; sample_recurrent: grads, states[n, hidden] -> gradient
    of the recurrent weight's kept values.
    """

    weigh: Callable[[Tensor, Tensor, Tensor], object]
    weigh_back: Callable[[Tensor, Tensor, Tensor], object]
    sample_input: Callable[[Tensor, Tensor, Tensor], object]
    sample_recurrent: Callable[[Tensor, Tensor, Tensor], object]


class Operands(NamedTuple):
    """Of one layer, contiguous: x[steps, batch, in], values of both weights, both biases [4 hidden], h0, c0 [batch, hidden]."""

    x: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    h0: Tensor
    c0: Tensor


class Gradients(NamedTuple):
    """With respect to the operands; `bias`: of either; those of the states where they are wanted."""

    x: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor
    h0: Tensor | None
    c0: Tensor | None


class Lstm:
    """A layer prepared for one pattern, shape and dtype, with its products.

    recurrent: pattern of the recurrent weight [4 hidden, hidden]. keep: a backward pass may follow each forward pass.
    together: one cooperative launch, else a launch a step. tf32: products of float32 by tensor cores, with 10 bits of
    fraction. tiles: forward and backward, chosen here if None. ValueError, one line, where the layer does not fit.
    """

    def __init__(
        self,
        sizes: Sizes,
        dtype: torch.dtype,
        recurrent: BSRIndex,
        products: Products,
        keep: bool = True,
        together: bool = True,
        tf32: bool = False,
        tiles: tuple[Tiles, Tiles] | None = None,
        load: Callable[[Variant], Kernel] = cuda_kernel.load,
    ) -> None:
        exact = dtype == torch.float32 and not tf32
        plans = plans_for(recurrent, sizes.block, dtype)
        chosen = tiles or tiles_for(plans, sizes, exact, Device.of(recurrent.indptr.device), together)
        if isinstance(chosen, str):
            raise ValueError(chosen)
        element = "Tf32" if tf32 and dtype == torch.float32 else ELEMENTS[dtype]
        self.products, self.keep = products, keep
        self.recurrence = Recurrence(sizes, element, plans, chosen, together, load)
        self.last: tuple[Operands, Kept] | None = None

    def forward(self, operands: Operands) -> tuple[Tensor, Tensor]:
        """(y[steps, batch, hidden], last cells [batch, hidden]); the last state is y[-1]."""
        x, into, values, *others = operands
        projected = cuda_recurrence.empty(x.device, x.dtype, *x.shape[:2], operands.bias_hh.numel())
        self.products.weigh(into, x.flatten(0, 1), projected.flatten(0, 1))
        last_cell, kept = self.recurrence.forward(projected, cuda_recurrence.Operands(values, *others), self.keep)
        self.last = operands, kept
        return kept.states[1:], last_cell

    def backward(
        self,
        grad_y: Tensor | None,
        grad_h: Tensor | None = None,
        grad_c: Tensor | None = None,
        wants_states: bool = False,
    ) -> Gradients:
        """Gradients through the last forward pass, from those of y, of the last state and of the last cells."""
        assert self.last is not None and self.keep
        operands, kept = self.last
        found = self.recurrence.backward(kept, operands.weight_hh, operands.c0, grad_y, grad_h, grad_c, wants_states)
        x, grads = operands.x, found.sums.flatten(0, 1)
        grad_x, grad_into, grad_recurrent = (
            cuda_recurrence.empty(x.device, x.dtype, *each.shape) for each in operands[:3]
        )
        self.products.weigh_back(operands.weight_ih, grads, grad_x.flatten(0, 1))
        self.products.sample_input(grads, x.flatten(0, 1), grad_into)
        self.products.sample_recurrent(grads, kept.states[:-1].flatten(0, 1), grad_recurrent)
        return Gradients(grad_x, grad_into, grad_recurrent, found.bias, found.h0, found.c0)


def unsupported(problem: LstmProblem, device: Device, together: bool = True, tf32: bool = False) -> str | None:
    """Why the kernels cannot compute `problem` on such a GPU, or None."""
    dtype, block = problem.torch_dtype, problem.block_size
    if dtype not in ELEMENTS:
        return f"dtype {problem.dtype}: the CUDA kernels compute {', '.join(str(each)[6:] for each in ELEMENTS)}"
    if block not in BLOCKS:
        return f"block_size {block}: the CUDA kernels take {', '.join(map(str, BLOCKS))}"
    mask = problem.masks["weight_hh"]
    index = BSRMatrix.from_dense(torch.zeros(mask.shape, dtype=torch.bool, device="cpu"), mask).index
    sizes = Sizes(problem.batch_size, problem.hidden_size, block)
    tiles = tiles_for(plans_for(index, block, dtype), sizes, dtype == torch.float32 and not tf32, device, together)
    return tiles if isinstance(tiles, str) else None
