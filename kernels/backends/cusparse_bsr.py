"""Rival: cuSPARSE's product with a BSR matrix, cusparseSpMM with CUSPARSE_SPMM_BSR_ALG1 (its successor of bsrmm)."""

from __future__ import annotations

from functools import cache

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.cusparse import CusparseError, SpmmLaunch, backend, products
from kernels.problem import GemmProblem
from kernels.system.resources import UnsupportedError


def bsr_of(problem: GemmProblem) -> BSRMatrix:
    """The matrix that is multiplied; of dsd_t the transpose, its values turned beforehand."""
    weight, _ = problem.factors(dense=False)
    mask = problem.mask
    if problem.op == "dsd_t":
        mask = BlockMask(mask.kept.T, mask.block_size)
    return BSRMatrix.from_dense(weight, mask)


@cache
def _trial(dtype: str, block_size: int) -> None:
    """UnsupportedError, in cuSPARSE's words, where it refuses such a product; which it has, its documentation leaves open."""
    problem = GemmProblem(2 * block_size, 2 * block_size, 16, block_size, 0.5, dtype=dtype, device="cuda")
    try:
        products(bsr_of(problem), problem.x)
    except CusparseError as error:
        raise UnsupportedError(f"cuSPARSE refuses BSR of {dtype} in blocks of {block_size}: {error}") from error


def _launch(problem: GemmProblem) -> SpmmLaunch:
    transposed = ", values turned beforehand" if problem.op == "dsd_t" else ""
    return SpmmLaunch(problem, bsr_of(problem), f"BSR{transposed}")


BACKEND = backend("cusparse_bsr", _launch, _trial)
