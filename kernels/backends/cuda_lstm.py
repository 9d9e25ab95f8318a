"""One LSTM layer by our CUDA kernels (cuda/lstm.cu): all time steps in one cooperative launch, or one launch a step.

The inputs are weighted for all steps at once, and the gradients of inputs and weights are taken for all steps at once, by the
products that are given; between them runs the kernel, forward or backward. The cooperative launch needs all its CTAs on the
GPU at once; the launches of the step loop do not, and are meant to be captured in a CUDA graph. Both run the same code.

Gates and cells are kept for the backward pass as floats: near 1 a bfloat16 gate s is known to 2^-9, and the derivative
s (1 - s) would be lost. That is 20 bytes a unit, sample and step, of which 1.8 MB a step are written at hidden 1152, batch 80.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.backends import cuda_kernel
from kernels.backends.cuda_kernel import Kernel, Variant
from kernels.backends.cuda_lstm_pass import Backward, Forward, Pass, pointer
from kernels.backends.cuda_lstm_pass import Sizes as Sizes
from kernels.backends.cuda_lstm_plan import GATES, Plan, backward_plan, forward_plan
from kernels.backends.cuda_lstm_tiles import Device, Tiles, choose
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


def empty(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """Every buffer that a kernel writes comes from here, so that tests can lay guards around it."""
    return torch.empty(shape, device=device, dtype=dtype)


class Lstm:
    """A layer prepared for one pattern, shape and dtype: plans, tiles, compiled kernels and workspaces.

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
        device, exact = recurrent.indptr.device, dtype == torch.float32 and not tf32
        self.sizes, self.products, self.keep, self.together = sizes, products, keep, together
        plans = plans_for(recurrent, sizes.block, dtype)
        chosen = tiles or tiles_for(plans, sizes, exact, Device.of(device), together)
        if isinstance(chosen, str):
            raise ValueError(chosen)
        element = "Tf32" if tf32 and dtype == torch.float32 else ELEMENTS[dtype]
        arguments: tuple[Any, Any] = Forward(), Backward()
        self.ahead, self.back = (
            Pass(plan, given, sizes, tile, element, load, together)
            for plan, given, tile in zip(plans, arguments, chosen, strict=True)
        )
        steps, batch, hidden, _ = sizes
        single = torch.float32
        self.columns = empty(device, dtype, steps, batch, 4 * hidden)  # weighted inputs, then their gradients
        self.cells = empty(device, single, steps if keep else 1, batch, hidden)
        self.kept = empty(device, single, steps, batch, hidden * GATES) if keep else None
        self.carry = empty(device, single, batch, hidden)
        self.grad_bias = empty(device, single, self.back.grid[1], 4 * hidden)
        self.last: tuple[Operands, Tensor] | None = None
        forward, backward = arguments
        forward.projected = backward.grads = pointer(self.columns)
        forward.cells = backward.cells = pointer(self.cells)
        forward.kept = backward.kept = pointer(self.kept)
        backward.carry, backward.grad_bias = pointer(self.carry), pointer(self.grad_bias)

    def forward(self, operands: Operands) -> tuple[Tensor, Tensor]:
        """(y[steps, batch, hidden], last cells [batch, hidden]); the last state is y[-1]."""
        steps, batch, hidden, _ = self.sizes
        x, into, values, bias_ih, bias_hh, h0, c0 = operands
        states = empty(x.device, x.dtype, steps + 1, batch, hidden)
        last_cell = empty(x.device, x.dtype, batch, hidden)
        self.products.weigh(into, x.flatten(0, 1), self.columns.flatten(0, 1))
        given: Any = self.ahead.arguments
        given.values, given.bias_ih, given.bias_hh = pointer(values), pointer(bias_ih), pointer(bias_hh)
        given.h0, given.c0, given.states, given.last_cell = (
            pointer(h0),
            pointer(c0),
            pointer(states),
            pointer(last_cell),
        )
        if self.together:
            self.ahead.flags.zero_()
            self.ahead.run(0, steps)
        else:
            for step in range(steps):
                self.ahead.run(step, step + 1)
        self.last = operands, states
        return states[1:], last_cell

    def backward(
        self,
        grad_y: Tensor | None,
        grad_h: Tensor | None = None,
        grad_c: Tensor | None = None,
        wants_states: bool = False,
    ) -> Gradients:
        """Gradients through the last forward pass, from those of y, of the last state and of the last cells."""
        assert self.last is not None and self.keep
        operands, states = self.last
        x = operands.x
        given: Any = self.back.arguments
        given.values, given.c0 = pointer(operands.weight_hh), pointer(operands.c0)
        given.grad_y, given.grad_h, given.grad_c = pointer(grad_y), pointer(grad_h), pointer(grad_c)
        grad_h0 = empty(x.device, x.dtype, *operands.h0.shape) if wants_states else None
        self._run_back(grad_h0)
        grads = self.columns.flatten(0, 1)
        grad_x, grad_into, grad_recurrent = (empty(x.device, x.dtype, *each.shape) for each in operands[:3])
        self.products.weigh_back(operands.weight_ih, grads, grad_x.flatten(0, 1))
        self.products.sample_input(grads, x.flatten(0, 1), grad_into)
        self.products.sample_recurrent(grads, states[:-1].flatten(0, 1), grad_recurrent)
        bias = self.grad_bias.sum(dim=0).to(x.dtype)
        grad_c0 = self.carry.to(x.dtype, copy=True) if wants_states else None
        return Gradients(grad_x, grad_into, grad_recurrent, bias, grad_h0, grad_c0)

    def _run_back(self, grad_h0: Tensor | None) -> None:
        given: Any = self.back.arguments
        given.grad_h0 = pointer(grad_h0) if self.together else None
        if self.together:
            self.back.flags.zero_()
            self.back.run(0, self.sizes.steps)
            return
        for step in reversed(range(self.sizes.steps)):
            self.back.run(step, step + 1)
        if grad_h0 is not None:
            given.grad_h0 = pointer(grad_h0)
            self.back.run(0, 0)


def plans_for(recurrent: BSRIndex, block: int, dtype: torch.dtype) -> tuple[Plan, Plan]:
    return forward_plan(recurrent, block, dtype.itemsize), backward_plan(recurrent, block, dtype.itemsize)


def tiles_for(
    plans: tuple[Plan, Plan], sizes: Sizes, exact: bool, device: Device, together: bool
) -> tuple[Tiles, Tiles] | str:
    """Of both passes, or why one cannot be launched."""
    shape = sizes.hidden, sizes.batch, sizes.block
    forward, backward = (
        choose(plan, gates, shape, exact, device, together) for plan, gates in zip(plans, (GATES, 1), strict=True)
    )
    if isinstance(forward, str):
        return forward
    return backward if isinstance(backward, str) else (forward, backward)


def unsupported(problem: LstmProblem, device: Device, together: bool = True, tf32: bool = False) -> str | None:
    """Why the kernels cannot compute `problem` on such a GPU, or None."""
    dtype, block = problem.torch_dtype, problem.block_size
    if dtype not in ELEMENTS:
        return f"dtype {problem.dtype}: the CUDA kernels compute {', '.join(str(each)[6:] for each in ELEMENTS)}"
    if block not in BLOCKS:
        return f"block_size {block}: the CUDA kernels take {', '.join(map(str, BLOCKS))}"
    mask = problem.masks["weight_hh"]
    index = BSRMatrix.from_dense(torch.zeros(mask.shape, dtype=torch.bool), mask).index
    sizes = Sizes(problem.steps, problem.batch_size, problem.hidden_size, block)
    tiles = tiles_for(plans_for(index, block, dtype), sizes, dtype == torch.float32 and not tf32, device, together)
    return tiles if isinstance(tiles, str) else None
