"""The dense product with the pruned weight, its zeros multiplied too: what masked training pays.

GEMM libraries draw less power on zeros, and are faster on them where clocks follow power, so `dense`, the baseline, has no
zeros; this one beside it says how much that matters.
"""

from __future__ import annotations

from dataclasses import replace

from kernels.backends.dense import BACKEND as DENSE
from kernels.backends.dense import DenseLaunch
from kernels.problem import GemmProblem, Launch, Problem


class MaskedLaunch(DenseLaunch):
    dense = False

    def __init__(self, problem: GemmProblem) -> None:
        masked = replace(problem)
        vars(masked)["full_weight"] = problem.weight  # in place of one that would be drawn at its first use
        super().__init__(masked)


class MaskedBackend:
    """What `dense` does, where there is a weight."""

    def unsupported(self, problem: Problem) -> str | None:
        if not isinstance(problem, GemmProblem):
            return "dense_masked has no LSTM layer"
        if problem.op == "sdd":
            return "sdd has no weight to mask"
        return DENSE.unsupported(problem)

    def prepare(self, problem: Problem) -> Launch:
        assert isinstance(problem, GemmProblem)
        return MaskedLaunch(problem)


BACKEND = MaskedBackend()
