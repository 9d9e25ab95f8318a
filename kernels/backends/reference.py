"""The oracle: obvious loops over the kept blocks in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.problem import GemmProblem, Launch


class ReferenceLaunch:
    kernel = "loops over blocks in float64"

    def __init__(self, problem: GemmProblem) -> None:
        self.weight = problem.weight
        self.bsr = BSRMatrix.from_dense(problem.weight.double(), problem.mask)
        self.x = problem.x.double()
        self.result = torch.empty(problem.m, problem.n, dtype=torch.float64, device=self.x.device)
        self.weight_bytes, self.index_bytes = self.bsr.values_nbytes, self.bsr.index_nbytes

    def __call__(self) -> None:
        self.result.zero_()
        size = self.bsr.block_size
        for block, row, col in zip(
            self.bsr.data, self.bsr.row_indices.tolist(), self.bsr.indices.tolist(), strict=True
        ):
            self.result[row * size : (row + 1) * size] += block @ self.x[col * size : (col + 1) * size]

    def output(self) -> Tensor:
        return self.result.to(self.weight.dtype)

    def poison(self) -> None:
        self.result.fill_(float("nan"))


class ReferenceBackend:
    """Solves everything, slowly."""

    def unsupported(self, problem: GemmProblem) -> str | None:
        return problem.missing_device()

    def prepare(self, problem: GemmProblem) -> Launch:
        return ReferenceLaunch(problem)


BACKEND = ReferenceBackend()
