"""Rival: scipy.sparse.bsr_matrix, one thread whatever is asked for; it allocates its output at every product."""

from __future__ import annotations

from typing import Any

import torch
from scipy import sparse
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.problem import GemmProblem, Launch, Problem


class ScipyBsrLaunch:
    dense = False

    def __init__(self, problem: GemmProblem) -> None:
        transposed = problem.op == "dsd_t"
        self.kernel = f"scipy.sparse.bsr_matrix{'.T' if transposed else ''} @ dense, single-threaded"
        bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
        parts = (bsr.data.numpy(), bsr.indices.numpy(), bsr.indptr.numpy())
        matrix = sparse.bsr_matrix(parts, shape=bsr.shape)
        self.sparse = matrix.T if transposed else matrix  # scipy copies the values here, not in the product
        self.x = problem.factors(dense=False)[1].numpy()
        self.result: Any = None
        self.weight_bytes = self.sparse.data.nbytes
        self.index_bytes = self.sparse.indices.nbytes + self.sparse.indptr.nbytes

    def __call__(self) -> None:
        self.result = self.sparse @ self.x

    def outputs(self) -> dict[str, Tensor]:
        return {"output": torch.from_numpy(self.result)}

    def poison(self) -> None:
        self.result = None


class ScipyBsrBackend:
    """float32 and float64 on a CPU."""

    def unsupported(self, problem: Problem) -> str | None:
        if not isinstance(problem, GemmProblem):
            return "scipy_bsr has no LSTM layer"
        if problem.op == "sdd":
            return "scipy has no product sampled at blocks"
        if problem.device != "cpu":
            return "scipy runs on the CPU only"
        if problem.dtype not in ("float32", "float64"):
            return f"scipy has no {problem.dtype}"
        return problem.missing_device()

    def prepare(self, problem: Problem) -> Launch:
        assert isinstance(problem, GemmProblem)
        return ScipyBsrLaunch(problem)


BACKEND = ScipyBsrBackend()
