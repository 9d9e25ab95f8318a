"""Products by our CUDA kernels: prepared launches of dsd, its transpose and sdd on operands that lie token by token.

X is [n, k] and Y [n, m] in memory, values are [nnzb, b, b]. A prepared launch holds its plan and the kernel's arguments; a call
sets three pointers and launches on the current stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.cuda.device import Kernel, Variant
from kernels.cuda.mma import ProductChoice, SampledChoice, adding
from kernels.cuda.mma_plan import ProductPlan, SampledPlan

Loader = Callable[[Variant], Kernel]
MULTIPROCESSORS = 132  # of an H200, where nobody says otherwise
MOST_PARTS = 8
STAGES_OF_A_PART = 16  # at least: about what the launch that adds the parts costs


def structure(name: str, pointers: str, ints: str) -> type[ctypes.Structure]:
    """A struct of pointers, then of 4-byte ints."""
    fields = [(each, ctypes.c_void_p) for each in pointers.split()] + [(each, ctypes.c_int) for each in ints.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Product = structure("Product", "values x out groups stages", "n x_line out_line parts")
Sampled = structure("Sampled", "grad x blocks jobs", "n grad_line x_line numbers part_tokens")
Parts = structure("Parts", "parts out", "numbers count")


class AddParts:
    """The sum of `count` parts of `numbers` floats each, in a fixed order, rounded to `element`; owns the parts."""

    def __init__(self, element: str, numbers: int, count: int, device: torch.device, load: Loader) -> None:
        self.parts = torch.empty((count, numbers), dtype=torch.float32, device=device)
        self.kernel, self.grid = load(adding(element)), (-(-numbers // 1024), 1, 1)
        self.arguments = Parts(self.parts.data_ptr(), None, numbers, count)

    def __call__(self, out: Tensor) -> None:
        self.arguments.out = out.data_ptr()
        self.kernel(self.grid, self.arguments)


class ProductLaunch:
    """out[n, m] = x[n, k] W^T, or x[n, m] W of a turned plan, for one plan, one n and any values.

    x_line, out_line: k and m, or m and k of a turned plan; parts: CTAs that share the reduction of one tile, with a choice that has `parts`.
    """

    def __init__(
        self,
        choice: ProductChoice,
        plan: ProductPlan,
        n: int,
        x_line: int,
        out_line: int,
        load: Loader,
        parts: int = 1,
    ) -> None:
        assert parts == 1 or choice.parts
        self.plan, self.kernel = plan, load(choice.variant)
        pointers = (None, None, None, plan.groups.data_ptr(), plan.stages.data_ptr())
        self.arguments = Product(*pointers, n, x_line, out_line, parts)
        self.grid = (-(-n // choice.tokens), len(plan.groups), parts)
        self.add = AddParts(choice.element, n * out_line, parts, plan.groups.device, load) if choice.parts else None

    def __call__(self, values: Tensor, x: Tensor, out: Tensor) -> None:
        """All contiguous and at multiples of 16 bytes; only their addresses are read."""
        arguments = self.arguments
        arguments.values, arguments.x = values.data_ptr(), x.data_ptr()
        arguments.out = out.data_ptr() if self.add is None else self.add.parts.data_ptr()
        self.kernel(self.grid, arguments)
        if self.add is not None:
            self.add(out)


class SampledLaunch:
    """blocks[nnzb, b, b] = the kept blocks of grad[n, m]^T x[n, k], for one plan and one n.

    numbers: of the blocks; grad_line, x_line: m and k; parts: CTAs that share the tokens of one job, with a choice that has `parts`.
    """

    def __init__(
        self,
        choice: SampledChoice,
        plan: SampledPlan,
        n: int,
        numbers: int,
        grad_line: int,
        x_line: int,
        load: Loader,
        parts: int = 1,
    ) -> None:
        assert parts == 1 or choice.parts
        self.plan, self.kernel = plan, load(choice.variant)
        part_tokens = -(-n // (parts * choice.depth)) * choice.depth
        self.arguments = Sampled(
            None, None, None, plan.jobs.data_ptr(), n, grad_line, x_line, numbers, part_tokens
        )  # fmt: skip
        self.grid = (len(plan.jobs), parts, 1)
        self.add = AddParts(choice.element, numbers, parts, plan.jobs.device, load) if choice.parts else None

    def __call__(self, grad: Tensor, x: Tensor, blocks: Tensor) -> None:
        """All contiguous and at multiples of 16 bytes; only their addresses are read."""
        arguments = self.arguments
        if not self.grid[0]:
            return
        arguments.grad, arguments.x = grad.data_ptr(), x.data_ptr()
        arguments.blocks = blocks.data_ptr() if self.add is None else self.add.parts.data_ptr()
        self.kernel(self.grid, arguments)
        if self.add is not None:
            self.add(blocks)


def parts_for(ctas: int, stages: int, multiprocessors: int = MULTIPROCESSORS) -> int:
    """Into how many parts a reduction of `stages` is best divided when it is made by `ctas` CTAs of equal work.

    The parts that leave fewest multiprocessors idle in the last round; a part more must save a tenth, for sums are added
    afterwards.
    """
    best, least = 1, float("inf")
    for parts in range(1, max(1, min(MOST_PARTS, stages // STAGES_OF_A_PART)) + 1):
        rounds = -(-ctas * parts // multiprocessors) / parts
        if rounds < 0.9 * least:
            best, least = parts, rounds
    return best
