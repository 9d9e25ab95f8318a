"""Rival: cuSPARSE's product with a BSR matrix, cusparseSpMM with CUSPARSE_SPMM_BSR_ALG1 (its successor of bsrmm)."""

from __future__ import annotations

from functools import cache

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.cusparse import NO_SDD, CusparseError, SpmmLaunch, products, refusal
from kernels.problem import Domain, GemmProblem, Launch, Problem


def bsr_of(problem: GemmProblem) -> BSRMatrix:
    """The matrix that is multiplied; of dsd_t the transpose, its values turned beforehand."""
    weight, _ = problem.factors(dense=False)
    mask = problem.mask
    if problem.op == "dsd_t":
        mask = BlockMask(mask.kept.T, mask.block_size)
    return BSRMatrix.from_dense(weight, mask)


@cache
def _trial(dtype: str, block_size: int) -> str | None:
    """cuSPARSE's own words where it refuses such a product; which ones it has, its documentation leaves open."""
    problem = GemmProblem(2 * block_size, 2 * block_size, 16, block_size, 0.5, dtype=dtype, device="cuda")
    try:
        products(bsr_of(problem), problem.x)
    except CusparseError as error:
        return f"cuSPARSE refuses BSR of {dtype} in blocks of {block_size}: {error}"
    return None


class CusparseBsrBackend(Domain):
    """dsd and dsd_t on a GPU, where cuSPARSE takes the type and the block size."""

    no_layer = "cusparse_bsr has no LSTM layer"
    no_sdd = NO_SDD
    devices = ("cuda",)
    elsewhere = "cuSPARSE runs on a GPU only"

    def lacking(self, problem: Problem) -> str | None:
        assert isinstance(problem, GemmProblem)
        return refusal() or _trial(problem.dtype, problem.block_size)

    def prepare(self, problem: Problem) -> Launch:
        assert isinstance(problem, GemmProblem)
        transposed = ", values turned beforehand" if problem.op == "dsd_t" else ""
        return SpmmLaunch(problem, bsr_of(problem), f"BSR{transposed}")


BACKEND = CusparseBsrBackend()
