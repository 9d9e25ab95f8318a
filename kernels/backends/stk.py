"""Rival: stk, the Triton kernels of MegaBlocks, which its authors wrote for experts and which multiply any pattern.

float16 in blocks of 128 alone, with a multiple of 128 columns; each launch allocates its output. dsd and dsd_t are its
dsd, with the transpose made beforehand; sdd is its sdd. Gale et al., MegaBlocks: Efficient Sparse Training with
Mixture-of-Experts, 2023.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from typing import Any

import torch

from kernels.bsr import BSRMatrix
from kernels.launches import ProductLaunch, left_factor
from kernels.problem import Backend, GemmProblem
from kernels.system.resources import UnsupportedError

BLOCK = 128
MOST_BLOCKS = 2**15 - 1  # rows and columns of blocks are numbered in 16 bits


def _matrix(stk: Any, bsr: BSRMatrix) -> Any:
    """The matrix as stk has it: [nnzb, 128, 128], block rows and columns as int16[nnzb], int32[grid_rows + 1]."""
    rows, columns = (each.to(torch.int16) for each in (bsr.row_indices, bsr.indices))
    return stk.Matrix(bsr.shape, bsr.data, rows, columns, bsr.indptr)


class StkLaunch(ProductLaunch):
    def __init__(self, problem: GemmProblem) -> None:
        self.stk, transposed = importlib.import_module("stk"), ""
        if problem.op == "sdd":
            bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
            self.operands = (*(each.contiguous() for each in problem.factors(dense=False)), _matrix(self.stk, bsr))
        else:
            bsr, transposed = left_factor(problem)
            self.operands = (_matrix(self.stk, bsr), problem.factors(dense=False)[1].contiguous())
        self.sampled = problem.op == "sdd"
        version = importlib.metadata.version("stanford-stk")
        self.kernel = f"stk {version}, {'sdd' if self.sampled else 'dsd'}{transposed}"
        self.weight_bytes = bsr.values_nbytes
        self.index_bytes = 2 * 2 * bsr.nnzb + 4 * bsr.indptr.numel()
        self()  # compiles

    def __call__(self) -> None:
        if self.sampled:
            self.result = self.stk.ops.sdd(*self.operands).data
        else:
            self.result = self.stk.ops.dsd(*self.operands)


def require_shape(problem: GemmProblem) -> None:
    """UnsupportedError where stk has no such product."""
    if problem.block_size != BLOCK:
        raise UnsupportedError(f"stk has blocks of {BLOCK} alone, not {problem.block_size}")
    if problem.n % BLOCK:
        raise UnsupportedError(f"stk needs n divisible by {BLOCK}, got {problem.n}")
    if max(problem.mask.kept.shape) > MOST_BLOCKS:
        raise UnsupportedError(f"stk numbers at most {MOST_BLOCKS} rows and columns of blocks")
    if not problem.mask.nnzb:
        raise UnsupportedError("stk multiplies no matrix without a block")


def _require(problem: GemmProblem) -> None:
    require_shape(problem)
    for module, package in (("triton", "triton"), ("stk", "stanford-stk")):
        if importlib.util.find_spec(module) is None:
            raise UnsupportedError(f"the package {package} is missing; the extra rivals has it")


BACKEND = Backend(
    name="stk",
    product=StkLaunch,
    devices=("cuda",),
    elsewhere="stk's Triton kernels run on a GPU only",
    dtypes=("float16",),
    no_dtype="stk has no {dtype}, only float16",
    needs=_require,
)
