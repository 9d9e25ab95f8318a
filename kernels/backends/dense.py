"""The baseline: torch's dense product (the CPU's BLAS, cuBLAS on a GPU) of the weight with no block emptied.

Normal data everywhere, since GEMM libraries are faster on zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.problem import GemmProblem, Launch


class DenseLaunch:
    kernel = "torch.matmul"
    index_bytes = 0

    def __init__(self, problem: GemmProblem) -> None:
        self.weight, self.x = problem.full_weight, problem.x
        self.result = torch.empty(problem.m, problem.n, dtype=self.x.dtype, device=self.x.device)
        self.weight_bytes = self.weight.numel() * self.weight.element_size()

    def __call__(self) -> None:
        torch.matmul(self.weight, self.x, out=self.result)

    def output(self) -> Tensor:
        return self.result

    def poison(self) -> None:
        self.result.fill_(float("nan"))


class DenseBackend:
    """Every dtype, on cpu and cuda."""

    def unsupported(self, problem: GemmProblem) -> str | None:
        return problem.missing_device()

    def prepare(self, problem: GemmProblem) -> Launch:
        return DenseLaunch(problem)


BACKEND = DenseBackend()
