"""The baseline: torch's dense product (the CPU's BLAS, cuBLAS on a GPU) with the weight that has no block emptied.

Normal data everywhere, since GEMM libraries are faster on zeros. How fast they are depends on the memory order of the
matrices, so every order is tried; the fastest is the baseline. On a CPU torch has two libraries: torch.mm calls MKL,
which on processors other than Intel's leaves half of AVX-512 unused, and torch's compiler calls oneDNN, which does not.
Both are tried, or a product of ours that uses the whole processor would be called faster for that. On a GPU they are
cuBLAS and cuBLASLt, and torch's own default, sums of parts in 16 bits, is tried too: it counts where it passes the
check.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor

from kernels.check import check
from kernels.launches import (
    BY_CUBLASLT,
    ProductLaunch,
    Setting,
    has_cublaslt,
    ranked,
    settings_of_partial_sums,
    under,
)
from kernels.problem import CALLS, LAYOUTS, Backend, GemmProblem, laid
from kernels.tensors.dense import has_onednn, onednn_linear

Way = Callable[[], Tensor]  # a launch that answers where its result is
LOOSE = ", parts summed in 16 bits"


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
    how = _settings_on_gpu(problem) if problem.device == "cuda" else {"": []}
    return {f"{name}{words}": under(problem, way, also) for words, also in how.items() for name, way in found.items()}


def _settings_on_gpu(problem: GemmProblem) -> dict[str, list[Setting]]:
    """Torch's libraries of dense products and ways to sum, in words: what is to be set for each."""
    if torch.version.hip is not None:  # torch calls AMD's GPUs cuda too
        return {" by ROCm's library": []}
    libraries: dict[str, list[Setting]] = {"": [], **({" by cuBLASLt": [BY_CUBLASLT]} if has_cublaslt() else {})}
    loose = settings_of_partial_sums(problem.dtype)
    sums = {"": [], **({LOOSE: loose} if loose else {})}
    return {f"{library}{words}": [*one, *other] for library, one in libraries.items() for words, other in sums.items()}


class DenseLaunch(ProductLaunch):
    dense = True

    def __init__(self, problem: GemmProblem) -> None:
        candidates, self.problem = ways(problem), problem
        for self.kernel in ranked(candidates, problem.device):
            self.run = candidates[self.kernel]
            self.result = self.run()
            if not self.kernel.endswith(LOOSE) or check(self, problem)[1] is None:
                break
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
