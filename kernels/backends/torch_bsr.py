"""Rival: torch's own block-sparse tensor (on a CPU its product is MKL's), with the output allocated beforehand."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.problem import GemmProblem, Launch


class TorchBsrLaunch:
    kernel = "torch.sparse_bsr_tensor @ dense, int32 indices"

    def __init__(self, problem: GemmProblem) -> None:
        self.weight, self.x = problem.weight, problem.x
        bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse .* tensor support is in beta")
            parts = (bsr.indptr, bsr.indices, bsr.data)
            self.sparse = torch.sparse_bsr_tensor(*parts, size=bsr.shape, check_invariants=True)
        self.result = torch.empty(problem.m, problem.n, dtype=self.x.dtype, device=self.x.device)
        indices = (self.sparse.crow_indices(), self.sparse.col_indices())  # what it stores, not what it was given
        self.weight_bytes = self.sparse.values().numel() * self.sparse.values().element_size()
        self.index_bytes = sum(index.numel() * index.element_size() for index in indices)

    def __call__(self) -> None:
        torch.mm(self.sparse, self.x, out=self.result)

    def output(self) -> Tensor:
        return self.result

    def poison(self) -> None:
        self.result.fill_(float("nan"))


class TorchBsrBackend:
    """float32 and float64 on a CPU whose torch was built with MKL."""

    def unsupported(self, problem: GemmProblem) -> str | None:
        if problem.device != "cpu":
            return "torch_bsr is measured on the CPU only"
        if problem.dtype not in ("float32", "float64"):
            return f"torch has no block-sparse CPU product in {problem.dtype}"
        if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
            return "torch's block-sparse CPU product needs a torch built with MKL"
        return None

    def prepare(self, problem: GemmProblem) -> Launch:
        return TorchBsrLaunch(problem)


BACKEND = TorchBsrBackend()
