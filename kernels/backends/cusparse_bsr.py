"""Rival: cuSPARSE's product with a BSR matrix, cusparseSpMM with CUSPARSE_SPMM_BSR_ALG1 (its successor of bsrmm)."""

from __future__ import annotations

from functools import cache

from kernels.cusparse import CusparseError, SpmmLaunch, backend, products
from kernels.launches import left_factor
from kernels.problem import GemmProblem
from kernels.system.resources import UnsupportedError


@cache
def _trial(dtype: str, block_size: int) -> None:
    """UnsupportedError, in its words, where cuSPARSE has no such product: its documentation leaves that open."""
    problem = GemmProblem(2 * block_size, 2 * block_size, 16, block_size, 0.5, dtype=dtype, device="cuda")
    try:
        products(left_factor(problem)[0], problem.x)
    except CusparseError as error:
        raise UnsupportedError(f"cuSPARSE refuses BSR of {dtype} in blocks of {block_size}: {error}") from error


def _launch(problem: GemmProblem) -> SpmmLaunch:
    bsr, transposed = left_factor(problem)
    return SpmmLaunch(problem, bsr, f"BSR{transposed}")


BACKEND = backend("cusparse_bsr", _launch, _trial)
