"""Rival: torch's own block-sparse tensor (on a CPU its product is MKL's), with the output allocated beforehand."""

from __future__ import annotations

import warnings

import torch

from kernels.launches import ProductLaunch, left_factor
from kernels.problem import LAYOUTS, Backend, GemmProblem, laid
from kernels.system.resources import UnsupportedError


class TorchBsrLaunch(ProductLaunch):
    def __init__(self, problem: GemmProblem) -> None:
        (bsr, transposed), self.x = left_factor(problem), problem.factors(dense=False)[1]
        self.kernel = f"torch.sparse_bsr_tensor @ dense, int32 indices{transposed}"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse .* tensor support is in beta")
            parts = (bsr.indptr, bsr.indices, bsr.data)
            self.sparse = torch.sparse_bsr_tensor(*parts, size=bsr.shape, device=bsr.data.device, check_invariants=True)
        self.result = laid(self.x.new_empty(bsr.shape[0], problem.n), problem.layout)
        indices = (self.sparse.crow_indices(), self.sparse.col_indices())  # what it stores, not what it was given
        self.weight_bytes = self.sparse.values().numel() * self.sparse.values().element_size()
        self.index_bytes = sum(index.numel() * index.element_size() for index in indices)

    def __call__(self) -> None:
        torch.mm(self.sparse, self.x, out=self.result)


def _require_mkl(_: GemmProblem) -> None:
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        raise UnsupportedError("torch's block-sparse CPU product needs a torch built with MKL")


BACKEND = Backend(
    name="torch_bsr",
    product=TorchBsrLaunch,
    layouts=LAYOUTS,
    no_sdd="torch has no product sampled at blocks (sampled_addmm answers single elements)",
    devices=("cpu",),
    elsewhere="torch_bsr is measured on the CPU only",
    dtypes=("float32", "float64"),
    no_dtype="torch has no block-sparse CPU product in {dtype}",
    needs=_require_mkl,
)
