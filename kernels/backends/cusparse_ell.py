"""Rival: cuSPARSE's product with a Blocked-ELL matrix, cusparseSpMM with CUSPARSE_SPMM_BLOCKED_ELL_ALG1.

Every block row is padded to the fullest one; the padding is in `weight_bytes`.
"""

from __future__ import annotations

from functools import cache

import torch

from kernels.cusparse import LAYOUTS, BlockedEll, CusparseError, SpmmLaunch, backend, products
from kernels.launches import left_factor
from kernels.problem import GemmProblem
from kernels.system.resources import UnsupportedError


@cache
def _layout(dtype: str, block_size: int) -> str:
    """The memory layout of the values by which cuSPARSE's product is right; UnsupportedError where there is none."""
    problem = GemmProblem(2 * block_size, 4 * block_size, 16, block_size, 0.5, dtype=dtype, device="cuda", seed=1)
    wanted = problem.weight.double() @ problem.x.double()
    why = "its product is wrong"
    for layout in LAYOUTS:
        try:
            ways = products(BlockedEll.from_bsr(left_factor(problem)[0], layout), problem.x)
        except CusparseError as error:
            why = str(error)
            continue
        result = next(iter(ways.values()))().double()
        if bool(((result - wanted).abs() <= 0.05 * wanted.abs().max()).all()):
            return layout
        torch.cuda.synchronize()
    raise UnsupportedError(f"cuSPARSE refuses Blocked-ELL of {dtype} in blocks of {block_size}: {why}")


def _launch(problem: GemmProblem) -> SpmmLaunch:
    bsr, transposed = left_factor(problem)
    matrix = BlockedEll.from_bsr(bsr, _layout(problem.dtype, problem.block_size))
    return SpmmLaunch(problem, matrix, f"Blocked-ELL, padding included{transposed}")


BACKEND = backend("cusparse_ell", _launch, _layout)
