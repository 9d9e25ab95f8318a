"""One direction of an LSTM layer on a GPU: its compiled kernel and what the kernel is given."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.cuda.device import Kernel, Variant
from kernels.cuda.lstm_plan import GATES, Plan, PlanPointers
from kernels.cuda.lstm_tiles import Tiles


def _arguments(name: str, pointers: str) -> type[ctypes.Structure]:
    sizes = "begin end steps batch hidden most_items"
    fields: list[Any] = [("plan", PlanPointers), *((each, ctypes.c_void_p) for each in pointers.split())]
    return type(name, (ctypes.Structure,), {"_fields_": [*fields, *((each, ctypes.c_int) for each in sizes.split())]})


Forward = _arguments("Forward", "values projected bias_ih bias_hh h0 c0 states last_cell kept cells flags")
Backward = _arguments("Backward", "values grad_y grad_h grad_c c0 kept cells grads grad_h0 carry grad_bias flags")


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
    macros: dict[str, str | int] = {name.upper(): int(value) for name, value in tiles._asdict().items()}
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
        self.plan, self.tiles, self.together = plan, tiles, together
        self.grid = tiles.grid(sizes.hidden, sizes.batch)
        self.same: Any = kind(plan=plan.pointers, most_items=plan.most_items, batch=sizes.batch, hidden=sizes.hidden)
        name = "lstm_backward" if kind is Backward else "lstm_forward"
        self.variant = variant_of(name, plan, sizes, tiles, element)
        self.kernel = load(self.variant)

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
        if self.together:  # else nobody waits
            flags = torch.zeros(self.grid[0] * self.grid[1], dtype=torch.int32, device=self.plan.items.device)
            given.flags = pointer(flags)
        self.kernel(self.grid, given, self.together)
