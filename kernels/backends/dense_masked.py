"""The dense product with the pruned weight, its zeros multiplied too: what masked training pays.

GEMM libraries draw less power on zeros, and are faster on them where clocks follow power, so `dense`, the baseline, has no
zeros; this one beside it says how much that matters.
"""

from __future__ import annotations

from dataclasses import replace

from kernels.backends.dense import DenseLaunch
from kernels.problem import Domain, GemmProblem, Launch, Problem


class MaskedLaunch(DenseLaunch):
    dense = False

    def __init__(self, problem: GemmProblem) -> None:
        masked = replace(problem)
        vars(masked)["full_weight"] = problem.weight  # in place of one that would be drawn at its first use
        super().__init__(masked)


class MaskedBackend(Domain):
    """What `dense` does, where there is a weight."""

    no_layer = "dense_masked has no LSTM layer"
    no_sdd = "sdd has no weight to mask"

    def prepare(self, problem: Problem) -> Launch:
        assert isinstance(problem, GemmProblem)
        return MaskedLaunch(problem)


BACKEND = MaskedBackend()
