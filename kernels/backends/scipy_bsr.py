"""Rival: scipy.sparse.bsr_matrix, one thread whatever is asked for; it allocates its output at every product."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.problem import GemmProblem, Launch


class ScipyBsrLaunch:
    kernel = "scipy.sparse.bsr_matrix @ dense, single-threaded"

    def __init__(self, problem: GemmProblem) -> None:
        self.weight = problem.weight
        bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
        parts = (bsr.data.numpy(), bsr.indices.numpy(), bsr.indptr.numpy())
        self.sparse = sparse.bsr_matrix(parts, shape=bsr.shape)
        self.x = problem.x.numpy()
        self.result: Any = None
        self.shape = (problem.m, problem.n)
        self.weight_bytes = self.sparse.data.nbytes
        self.index_bytes = self.sparse.indices.nbytes + self.sparse.indptr.nbytes

    def __call__(self) -> None:
        self.result = self.sparse @ self.x

    def output(self) -> Tensor:
        return torch.from_numpy(self.result)

    def poison(self) -> None:
        self.result = np.full(self.shape, np.nan, dtype=self.x.dtype)


class ScipyBsrBackend:
    """float32 and float64 on a CPU."""

    def unsupported(self, problem: GemmProblem) -> str | None:
        if problem.device != "cpu":
            return "scipy runs on the CPU only"
        if problem.dtype not in ("float32", "float64"):
            return f"scipy has no {problem.dtype}"
        return None

    def prepare(self, problem: GemmProblem) -> Launch:
        return ScipyBsrLaunch(problem)


BACKEND = ScipyBsrBackend()
