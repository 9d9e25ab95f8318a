"""One direction of an LSTM layer on a GPU: its compiled kernel and what the kernel is given."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.backends.cuda_kernel import Kernel, Variant
from kernels.backends.cuda_lstm_plan import GATES, Plan, PlanPointers
from kernels.backends.cuda_lstm_tiles import Tiles


def _arguments(name: str, pointers: str) -> type[ctypes.Structure]:
    sizes = "begin end steps batch hidden most_items"
    fields: list[Any] = [("plan", PlanPointers), *((each, ctypes.c_void_p) for each in pointers.split())]
    return type(name, (ctypes.Structure,), {"_fields_": [*fields, *((each, ctypes.c_int) for each in sizes.split())]})


Forward = _arguments("Forward", "values projected bias_ih bias_hh h0 c0 states last_cell kept cells flags")
Backward = _arguments("Backward", "values grad_y grad_h grad_c c0 kept cells grads grad_h0 carry grad_bias flags")


class Sizes(NamedTuple):
    """A layer's shape; `block`: side of a weight block in elements."""

    steps: int
    batch: int
    hidden: int
    block: int


def pointer(tensor: Tensor | None) -> int | None:
    """Its address, for a kernel that reads it row by row, 16 bytes at a time; None: null."""
    assert tensor is None or (tensor.is_contiguous() and tensor.data_ptr() % 16 == 0)
    return None if tensor is None else tensor.data_ptr()


def variant_of(name: str, plan: Plan, sizes: Sizes, tiles: Tiles, element: str) -> Variant:
    """Kernel `name`, lstm_forward or lstm_backward, for one element type of cuda/device.h."""
    macros: dict[str, str | int] = {name.upper(): int(value) for name, value in tiles._asdict().items()}
    macros |= {"ELEMENT": element, "BLOCK": sizes.block}
    shared = tiles.shared_bytes(plan, GATES if name == "lstm_forward" else 1)
    return Variant("lstm.cu", name, tuple(sorted(macros.items())), tiles.threads, shared)


class Pass:
    """One direction: its plan, tiles, compiled kernel and arguments, of which `sizes` are set."""

    def __init__(
        self,
        plan: Plan,
        arguments: ctypes.Structure,
        sizes: Sizes,
        tiles: Tiles,
        element: str,
        load: Callable[[Variant], Kernel],
        together: bool,
    ) -> None:
        self.plan, self.arguments, self.steps, self.tiles, self.together = plan, arguments, sizes.steps, tiles, together
        arguments.plan, arguments.most_items = plan.pointers, plan.most_items
        arguments.steps, arguments.batch, arguments.hidden = sizes[:3]
        self.grid = tiles.grid(sizes.hidden, sizes.batch)
        self.flags = torch.zeros(self.grid[0] * self.grid[1], dtype=torch.int32, device=plan.items.device)
        arguments.flags = pointer(self.flags)
        self.variant = variant_of(
            "lstm_backward" if isinstance(arguments, Backward) else "lstm_forward", plan, sizes, tiles, element
        )
        self.kernel = load(self.variant)

    def run(self, begin: int, end: int) -> None:
        """Launch for the steps from `begin` to `end`."""
        self.arguments.begin, self.arguments.end = begin, end
        self.kernel(self.grid, self.arguments, self.together)
