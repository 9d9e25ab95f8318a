"""The baseline: torch's dense product (the CPU's BLAS, cuBLAS on a GPU) with the weight that has no block emptied.

Normal data everywhere, since GEMM libraries are faster on zeros. How fast they are depends on the memory order of the
matrices, so every order is tried; the fastest is the baseline. On a CPU torch has two libraries: torch.mm calls MKL,
which on processors other than Intel's leaves half of AVX-512 unused, and torch's compiler calls oneDNN, which does not.
Both are tried, or a product of ours that uses the whole processor would be called faster for that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor

from kernels.launches import ProductLaunch, fastest, under
from kernels.problem import CALLS, LAYOUTS, Backend, GemmProblem, laid
from kernels.tensors.dense import has_onednn, onednn_linear

Way = Callable[[], Tensor]  # a launch that answers where its result is


def _multiply(left: Tensor, right: Tensor, result: Tensor) -> Tensor:
    return torch.mm(left, right, out=result)


def _columns(left: Tensor, right: Tensor) -> Tensor:
    """The product, allocated column by column."""
    return torch.mm(right.mT, left.mT).mT


ALLOCATED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"row": torch.mm, "column": _columns}


def ways(problem: GemmProblem) -> dict[str, Way]:
    """Every way to multiply, by name: the memory orders of the two factors and of the result."""
    left, right = problem.factors(dense=True)
    factors = {layout: (laid(left, layout), laid(right, layout)) for layout in LAYOUTS}
    if problem.call == "operator":
        into = ALLOCATED
    else:
        result = left.new_empty(left.shape[0], right.shape[1])
        into = {layout: partial(_multiply, result=laid(result, layout)) for layout in LAYOUTS}
    found: dict[str, Way] = {
        f"torch.mm, {a}s x {b}s -> {c}s": partial(into[c], factors[a][0], factors[b][1])
        for a, b, c in product(LAYOUTS, repeat=3)
    }
    if has_onednn(left):
        first, second = factors["row"][0], factors["column"][1].mT  # both with rows of what is summed over
        found["oneDNN, rows x columns -> rows"] = partial(onednn_linear, first, second)
        found["oneDNN, rows x columns -> columns"] = lambda: onednn_linear(second, first).mT
    return {name: under(problem, way) for name, way in found.items()}


class DenseLaunch(ProductLaunch):
    dense = True

    def __init__(self, problem: GemmProblem) -> None:
        candidates = ways(problem)
        self.kernel = fastest(candidates, problem.device)
        self.run, self.problem = candidates[self.kernel], problem
        self.result = self.run()
        self.weight_bytes = problem.m * problem.k * self.result.element_size()

    def __call__(self) -> None:
        self.result = self.run()

    def outputs(self) -> dict[str, Tensor]:
        return {"output": self.problem.wanted(self.result)}


BACKEND = Backend(
    name="dense",
    blocks=(),
    product=DenseLaunch,
    instead="; the baselines of a layer are torch_lstm and loop_lstm",
    layouts=LAYOUTS,
    calls=CALLS,
)
