"""The dense product with the pruned weight, its zeros multiplied too: what masked training pays.

GEMM libraries draw less power on zeros, and are faster on them where clocks follow power, so `dense`, the baseline, has
no zeros; this one beside it says how much that matters.
"""

from __future__ import annotations

from dataclasses import replace

from kernels.backends.dense import DenseLaunch
from kernels.problem import CALLS, LAYOUTS, Backend, GemmProblem


class MaskedLaunch(DenseLaunch):
    dense = False

    def __init__(self, problem: GemmProblem) -> None:
        masked = replace(problem)
        vars(masked)["full_weight"] = problem.weight  # in place of one that would be drawn at its first use
        super().__init__(masked)


BACKEND = Backend(
    name="dense_masked",
    blocks=(),
    product=MaskedLaunch,
    no_sdd="sdd has no weight to mask",
    layouts=LAYOUTS,
    calls=CALLS,
)
