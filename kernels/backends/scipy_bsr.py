"""Rival: scipy.sparse.bsr_matrix, one thread whatever is asked for; it allocates its output at every product."""

from __future__ import annotations

from typing import Any

import torch
from scipy import sparse
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.launches import ProductLaunch
from kernels.problem import CALLS, Backend, GemmProblem


class ScipyBsrLaunch(ProductLaunch):
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


BACKEND = Backend(
    name="scipy_bsr",
    product=ScipyBsrLaunch,
    calls=CALLS,
    no_sdd="scipy has no product sampled at blocks",
    devices=("cpu",),
    elsewhere="scipy runs on the CPU only",
    dtypes=("float32", "float64"),
    no_dtype="scipy has no {dtype}",
)
