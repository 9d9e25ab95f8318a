"""Rival: 2:4 sparsity on a GPU's sparse tensor cores, by cuSPARSELt through torch: half of each four elements of a row.

It is no block-sparse product: its weight is the full one with the two larger of each four kept, by magnitude, so that
its density is that of our sparsity 0.5, and it is checked against the product of that weight. Compressed beforehand, as
our blocks are; of cuSPARSELt's algorithms the one that its own search finds, over the memory orders of X and Y.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor

from kernels.launches import ProductLaunch, fastest
from kernels.problem import LAYOUTS, Backend, GemmProblem, laid
from kernels.system.resources import UnsupportedError

GROUP, KEPT = 4, 2
MULTIPLE = 16  # of m, k and n


def pruned(weight: Tensor) -> Tensor:
    """[m, k] with the KEPT largest of each GROUP successive elements of a row, the others zero."""
    groups = weight.view(weight.shape[0], -1, GROUP)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    kept.scatter_(2, groups.abs().topk(KEPT, dim=2).indices, value=True)
    return torch.where(kept, groups, groups.new_zeros(())).view_as(weight)


class SemiStructuredLaunch(ProductLaunch):
    """own_weight: what it multiplies in place of the problem's weight, [m, k]."""

    def __init__(self, problem: GemmProblem) -> None:
        self.own_weight = pruned(problem.full_weight)
        packed = torch._cslt_compress(self.own_weight)
        ways: dict[str, Callable[[], Tensor]] = {}
        for order, out in product(LAYOUTS, repeat=2):
            x, turned = laid(problem.x, order), out == "column"
            algorithm = int(torch._cslt_sparse_mm_search(packed, x, transpose_result=turned))
            way = partial(torch._cslt_sparse_mm, packed, x, transpose_result=turned, alg_id=algorithm)
            ways[f"x by {order}s -> {out}s, algorithm {algorithm}"] = way
        chosen = fastest(ways, problem.device)
        self.run, self.turned = ways[chosen], " -> column" in chosen
        self.kernel = f"cuSPARSELt {torch.backends.cusparselt.version()}, 2:4 of its own, {chosen}"
        self.weight_bytes = problem.m * problem.k * KEPT // GROUP * packed.element_size()
        self.index_bytes = packed.numel() * packed.element_size() - self.weight_bytes
        self()

    def __call__(self) -> None:
        self.result = self.run()

    def outputs(self) -> dict[str, Tensor]:
        return {"output": self.result.T if self.turned else self.result}


def require_shape(problem: GemmProblem) -> None:
    """UnsupportedError where 2:4 sparsity is not what is asked for."""
    if problem.op != "dsd":
        raise UnsupportedError("cusparselt computes dsd alone: the transpose of a 2:4 weight is none")
    if problem.sparsity != 1 - KEPT / GROUP:
        raise UnsupportedError(f"2:4 sparsity empties half, not {problem.sparsity:g}")
    if any(side % MULTIPLE for side in (problem.m, problem.k, problem.n)):
        raise UnsupportedError(f"cuSPARSELt needs m, k and n divisible by {MULTIPLE}")


def _require(problem: GemmProblem) -> None:
    require_shape(problem)
    if not torch.backends.cusparselt.is_available():
        raise UnsupportedError("this torch has no cuSPARSELt")


BACKEND = Backend(
    name="cusparselt",
    product=SemiStructuredLaunch,
    blocks=(),
    devices=("cuda",),
    elsewhere="cuSPARSELt runs on a GPU only",
    dtypes=("bfloat16", "float16"),
    no_dtype="cusparselt is timed in bfloat16 and float16, not {dtype}",
    needs=_require,
)
