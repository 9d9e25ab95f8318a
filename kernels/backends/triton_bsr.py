"""Rival: the Triton kernels behind torch's block-sparse tensors on a GPU, called directly, with the least overhead.

dsd and dsd_t: torch.sparse._triton_ops.bsr_dense_mm. sdd: sampled_addmm of the same module. Torch picks tile sizes from
a table it brings for a few shapes and GPUs, and else defaults; it warns where it uses those.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.launches import ProductLaunch, left_factor
from kernels.problem import Backend, GemmProblem
from kernels.system.resources import UnsupportedError

LEAST = 16  # block sizes and numbers of columns that Triton's dot takes


def _operations() -> Any:
    return importlib.import_module("torch.sparse._triton_ops")


def _sparse(bsr: BSRMatrix) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse .* tensor support is in beta")
        parts = (bsr.indptr.long(), bsr.indices.long(), bsr.data)  # the kernels were written for 64-bit indices
        return torch.sparse_bsr_tensor(*parts, size=bsr.shape, device=bsr.data.device)


class TritonLaunch(ProductLaunch):
    def __init__(self, problem: GemmProblem) -> None:
        self.problem, self.operations = problem, _operations()
        if problem.op == "sdd":
            self.left, self.x = problem.factors(dense=False)
            bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
            self.sparse = _sparse(bsr)
            self.out = _sparse(bsr.with_data(torch.zeros_like(bsr.data)))
            self.result, name, transposed = self.out.values(), "sampled_addmm", ""
        else:
            bsr, transposed = left_factor(problem)
            self.sparse, self.x = _sparse(bsr), problem.factors(dense=False)[1]
            self.result, name = self.x.new_empty(bsr.shape[0], problem.n), "bsr_dense_mm"
        triton = importlib.import_module("triton").__version__
        self.kernel = f"torch.sparse._triton_ops.{name}, triton {triton}{transposed}"
        self.weight_bytes = bsr.values_nbytes
        self.index_bytes = 2 * bsr.index_nbytes
        self()  # compiles

    def __call__(self) -> None:
        if self.problem.op == "sdd":
            self.operations.sampled_addmm(self.sparse, self.left, self.x, beta=0.0, out=self.out, skip_checks=True)
        else:
            self.operations.bsr_dense_mm(self.sparse, self.x, out=self.result, skip_checks=True)


def _is_power_of_two(size: int) -> bool:
    return size & (size - 1) == 0


def require_shape(problem: GemmProblem) -> None:
    """UnsupportedError where there is no such product: bsr_dense_mm cuts X's columns into n // block_size tiles."""
    size, n = problem.block_size, problem.n
    if problem.dtype == "float64":
        raise UnsupportedError("torch's Triton kernels have no float64")
    if problem.math == "tf32":
        raise UnsupportedError("torch's Triton kernels multiply float32 without TF32")
    if size < LEAST or not _is_power_of_two(size):
        raise UnsupportedError(f"torch's Triton kernels need blocks of a power of two from {LEAST} on, not {size}")
    if problem.op == "sdd":
        return
    if n % LEAST:
        raise UnsupportedError(f"torch's Triton kernel needs n divisible by {LEAST}, got {n}")
    tiles = max(n // size, 1)
    if n % tiles or not _is_power_of_two(n // tiles):
        raise UnsupportedError(
            f"torch's Triton kernel would cut n = {n} into {tiles} tiles, whose width is no power of two"
        )


def _require(problem: GemmProblem) -> None:
    if importlib.util.find_spec("triton") is None:
        raise UnsupportedError("the package triton is missing")
    if getattr(_operations(), "bsr_dense_mm", None) is None:
        raise UnsupportedError("this torch has no Triton kernels for block-sparse tensors")
    require_shape(problem)


BACKEND = Backend(
    name="triton_bsr",
    product=TritonLaunch,
    devices=("cuda",),
    elsewhere="torch's Triton kernels run on a GPU only",
    needs=_require,
)
