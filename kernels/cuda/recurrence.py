"""The time steps of an LSTM layer by our CUDA kernels (lstm.cu), between the products over all steps.

One cooperative launch over all steps, which needs all its CTAs on the GPU at once, or one launch a step, which does not
and is meant to be captured in a CUDA graph. Both run the same code.

Gates and cells are kept for the backward pass as floats: near 1 a bfloat16 gate s is known to 2^-9, and the derivative
s (1 - s) would be lost. That is 20 bytes a unit, sample and step, of which 1.8 MB a step are written at hidden 1152,
batch 80.

What CTAs of one launch wait for is the data itself (lstm.h), so that a buffer of outputs, or of the gates' gradients,
is filled before: at hidden 1152, 16 bits and 70 steps 3 and 13 MB at batch 20, 13 and 52 MB at 80, by an estimate of 3
TB/s 1 to 17 us. For it every step is spared a barrier, a fence, an addition and a trip to the L2 cache, about 0.8 us,
and a launch that zeroes flags. The fill would be dearer from 2.4 MB a step on: forward at batches of 1000, backward of
260. There a step takes far longer than either, and writes or reads 20 bytes a number besides, so no second form is
kept for it.

A `Pass` is one direction of it: its compiled kernel and what the kernel is given.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.bsr import BSRIndex
from kernels.cuda.device import Kernel, Variant
from kernels.cuda.lstm_plan import GATES, Device, Plan, PlanPointers, Tiles, backward_plan, choose, forward_plan


def _arguments(name: str, pointers: str) -> type[ctypes.Structure]:
    sizes = "begin end steps batch hidden most_items rows"
    fields: list[Any] = [("plan", PlanPointers), *((each, ctypes.c_void_p) for each in pointers.split())]
    return type(name, (ctypes.Structure,), {"_fields_": [*fields, *((each, ctypes.c_int) for each in sizes.split())]})


Forward = _arguments("Forward", "values projected bias_ih bias_hh h0 c0 states last_cell kept cells")
Backward = _arguments("Backward", "values grad_y grad_h grad_c c0 kept cells grads grad_h0 carry grad_bias")


class Sizes(NamedTuple):
    """A layer's shape but for its steps; `block`: side of a weight block in elements."""

    batch: int
    hidden: int
    block: int


def pointer(tensor: Tensor | None) -> int | None:
    """Its address, for a kernel that reads it row by row, 16 bytes at a time; None: null."""
    if tensor is None:
        return None
    found = tensor.data_ptr()
    assert tensor.is_contiguous() and found % 16 == 0 and not tensor.is_neg()
    assert found or not tensor.numel(), "no memory"
    return found


def variant_of(name: str, plan: Plan, sizes: Sizes, tiles: Tiles, element: str) -> Variant:
    """Kernel `name`, lstm_forward or lstm_backward, for one element type of cuda/device.h."""
    named = {name: value for name, value in tiles._asdict().items() if name != "rows"}  # which a launch is given
    macros: dict[str, str | int] = {name.upper(): int(value) for name, value in named.items()}
    macros |= {"ELEMENT": element, "BLOCK": sizes.block}
    shared = tiles.shared_bytes(plan, GATES if name == "lstm_forward" else 1)
    return Variant("lstm.cu", name, tuple(sorted(macros.items())), tiles.threads, shared)


class Pass:
    """One direction: its plan, tiles, compiled kernel, and the arguments that are the same at every launch."""

    def __init__(
        self,
        kind: type[ctypes.Structure],
        plan: Plan,
        sizes: Sizes,
        tiles: Tiles,
        element: str,
        load: Callable[[Variant], Kernel],
        together: bool,
    ) -> None:
        self.together = together
        self.grid = tiles.grid(sizes.hidden, sizes.batch)
        shape = {"batch": sizes.batch, "hidden": sizes.hidden, "rows": tiles.samples}
        self.plan = plan  # whose tensors must live as long
        self.same: Any = kind(plan=plan.pointers, most_items=plan.most_items, **shape)
        name = "lstm_backward" if kind is Backward else "lstm_forward"
        self.variant = variant_of(name, plan, sizes, tiles, element)
        self.kernel = load(self.variant)

    def fits(self, multiprocessors: int) -> bool:
        """Whether all its CTAs can be on the GPU at once, as its driver counts them."""
        return self.grid[0] * self.grid[1] <= multiprocessors * self.kernel.resident

    def given(self, steps: int, **tensors: Tensor | None) -> Any:
        """Arguments of a call's own, by name; the caller keeps the tensors until all is launched."""
        arguments: Any = type(self.same).from_buffer_copy(self.same)
        arguments.steps = steps
        for name, tensor in tensors.items():
            setattr(arguments, name, pointer(tensor))
        return arguments

    def run(self, given: Any, begin: int, end: int) -> None:
        """Launch for the steps from `begin` to `end`."""
        given.begin, given.end = begin, end
        self.kernel(self.grid, given, self.together)


class Operands(NamedTuple):
    """Of the steps, contiguous: kept values, both biases [4 hidden], h0 and c0 [batch, hidden]."""

    values: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    h0: Tensor
    c0: Tensor


class Kept(NamedTuple):
    """What a forward pass leaves for its backward pass.

    states: [steps + 1, batch, hidden], h0 and then every step's; cells: float [steps, batch, hidden]; gates: float
    [steps, batch, 4 hidden], None where there is no way back.
    """

    states: Tensor
    cells: Tensor
    gates: Tensor | None


class StepGradients(NamedTuple):
    """Of what goes into the gates [steps, batch, 4 hidden], of either bias, and of h0 and c0 where they are wanted."""

    sums: Tensor
    bias: Tensor
    h0: Tensor | None
    c0: Tensor | None


def empty(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """Every buffer that a kernel writes comes from here, so that tests can lay guards around it."""
    return torch.empty(shape, device=device, dtype=dtype)


def absent(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """The same for what CTAs of a launch wait for: full of the NaN that says that an element is not there yet.

    One launch, which a CUDA graph captures too, of as many bytes as the kernel writes there afterwards.
    """
    found = empty(device, dtype, *shape)
    found.view(torch.int32).fill_(-1)
    return found


class Recurrence:
    """The steps prepared for one pattern, batch and element type; any number of steps.

    Every call has buffers of its own, so that passes may interleave and a CUDA graph owns what it writes. together: one
    cooperative launch, else a launch a step.
    """

    def __init__(
        self,
        sizes: Sizes,
        element: str,
        plans: tuple[Plan, Plan],
        tiles: tuple[Tiles, Tiles],
        together: bool,
        load: Callable[[Variant], Kernel],
    ) -> None:
        self.sizes, self.together = sizes, together
        self.ahead, self.back = (
            Pass(kind, plan, sizes, tile, element, load, together)
            for kind, plan, tile in zip((Forward, Backward), plans, tiles, strict=True)
        )

    def forward(self, projected: Tensor, operands: Operands, keep: bool) -> tuple[Tensor, Kept]:
        """(last cells, what is kept); outputs: `states[1:]`. projected: weighted inputs [steps, batch, 4 hidden]."""
        (batch, hidden, _), steps, device = self.sizes, projected.shape[0], projected.device
        last_cell = empty(device, projected.dtype, batch, hidden)
        outputs = absent if self.together and steps > 1 else empty
        kept = Kept(
            outputs(device, projected.dtype, steps + 1, batch, hidden),
            empty(device, torch.float32, steps if keep else 1, batch, hidden),
            empty(device, torch.float32, steps, batch, GATES * hidden) if keep else None,
        )
        states, cells, gates = kept
        given = self.ahead.given(
            steps,
            **operands._asdict(),
            projected=projected,
            states=states,
            last_cell=last_cell,
            kept=gates,
            cells=cells,
        )
        if self.together:
            self.ahead.run(given, 0, steps)
        else:
            for step in range(steps):
                self.ahead.run(given, step, step + 1)
        return last_cell, kept

    def backward(
        self,
        kept: Kept,
        values: Tensor,
        c0: Tensor,
        grad_y: Tensor | None,
        grad_h: Tensor | None = None,
        grad_c: Tensor | None = None,
        wants_states: bool = False,
    ) -> StepGradients:
        """Gradients from those of the outputs, the last state and the last cells. Of `kept`, states are not read."""
        assert kept.gates is not None
        (batch, hidden, _), steps, device, dtype = self.sizes, kept.cells.shape[0], values.device, values.dtype
        sums = (absent if self.together else empty)(device, dtype, steps, batch, GATES * hidden)
        carry = empty(device, torch.float32, batch, hidden)
        grad_bias = empty(device, torch.float32, self.back.grid[1], GATES * hidden)
        grad_h0 = empty(device, dtype, batch, hidden) if wants_states else None
        given = self.back.given(
            steps,
            values=values,
            grad_y=grad_y,
            grad_h=grad_h,
            grad_c=grad_c,
            c0=c0,
            kept=kept.gates,
            cells=kept.cells,
            grads=sums,
            carry=carry,
            grad_bias=grad_bias,
            grad_h0=grad_h0 if self.together else None,
        )
        if self.together:
            self.back.run(given, 0, steps)
        else:
            for step in reversed(range(steps)):
                self.back.run(given, step, step + 1)
            if grad_h0 is not None:
                given.grad_h0 = grad_h0.data_ptr()
                self.back.run(given, 0, 0)
        grad_c0 = carry.to(dtype) if wants_states else None
        return StepGradients(sums, grad_bias.sum(dim=0).to(dtype), grad_h0, grad_c0)


def plans_for(recurrent: BSRIndex, block: int, dtype: torch.dtype) -> tuple[Plan, Plan]:
    """Forward and backward. recurrent: pattern of the recurrent weight [4 hidden, hidden]."""
    return forward_plan(recurrent, block, dtype.itemsize), backward_plan(recurrent, block, dtype.itemsize)


def tiles_for(
    plans: tuple[Plan, Plan], sizes: Sizes, exact: bool, device: Device, together: bool
) -> tuple[Tiles, Tiles]:
    """Of both passes; UnsupportedError where one cannot be launched."""
    shape = sizes.hidden, sizes.batch, sizes.block
    forward, backward = (
        choose(plan, gates, shape, exact, device, together) for plan, gates in zip(plans, (GATES, 1), strict=True)
    )
    return forward, backward
