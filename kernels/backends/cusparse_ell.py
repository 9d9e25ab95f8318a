"""Rival: cuSPARSE's product with a Blocked-ELL matrix, cusparseSpMM with CUSPARSE_SPMM_BLOCKED_ELL_ALG1.

Every block row is padded to the fullest one; the padding is in `weight_bytes`.
"""

from __future__ import annotations

from functools import cache

import torch

from kernels.backends.cusparse_bsr import bsr_of
from kernels.cusparse import LAYOUTS, NO_SDD, BlockedEll, CusparseError, SpmmLaunch, products, refusal
from kernels.problem import Domain, GemmProblem, Launch, Problem


@cache
def _layout(dtype: str, block_size: int) -> tuple[str | None, str]:
    """(the memory layout of the values with which cuSPARSE gives the right product, '') or (None, why there is none)."""
    problem = GemmProblem(2 * block_size, 4 * block_size, 16, block_size, 0.5, dtype=dtype, device="cuda", seed=1)
    wanted = problem.weight.double() @ problem.x.double()
    why = "its product is wrong"
    for layout in LAYOUTS:
        try:
            ways = products(BlockedEll.from_bsr(bsr_of(problem), layout), problem.x)
        except CusparseError as error:
            why = str(error)
            continue
        result = next(iter(ways.values()))().double()
        if bool(((result - wanted).abs() <= 0.05 * wanted.abs().max()).all()):
            return layout, ""
        torch.cuda.synchronize()
    return None, f"cuSPARSE refuses Blocked-ELL of {dtype} in blocks of {block_size}: {why}"


class CusparseEllBackend(Domain):
    """dsd and dsd_t on a GPU, where cuSPARSE takes the type and the block size."""

    no_layer = "cusparse_ell has no LSTM layer"
    no_sdd = NO_SDD
    devices = ("cuda",)
    elsewhere = "cuSPARSE runs on a GPU only"

    def lacking(self, problem: Problem) -> str | None:
        assert isinstance(problem, GemmProblem)
        return refusal() or _layout(problem.dtype, problem.block_size)[1] or None

    def prepare(self, problem: Problem) -> Launch:
        assert isinstance(problem, GemmProblem)
        layout, _ = _layout(problem.dtype, problem.block_size)
        assert layout is not None
        matrix = BlockedEll.from_bsr(bsr_of(problem), layout)
        transposed = ", values turned beforehand" if problem.op == "dsd_t" else ""
        return SpmmLaunch(problem, matrix, f"Blocked-ELL, padding included{transposed}")


BACKEND = CusparseEllBackend()
