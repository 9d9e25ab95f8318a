"""Our CUDA products by the first rung alone, mma.sync, so that a GPU with wgmma can say what the second is worth."""

from __future__ import annotations

from kernels.backends import cuda
from kernels.cuda.choose import prepare_by_warps
from kernels.problem import GemmProblem, Launch, LstmProblem, Problem


class FirstRungBackend:
    """As `cuda`, but for its choice of the kernel."""

    def unsupported(self, problem: Problem) -> str | None:
        if isinstance(problem, LstmProblem):
            return "cuda_mma has no LSTM layer; cuda has"
        return cuda.BACKEND.unsupported(problem)

    def prepare(self, problem: Problem) -> Launch:
        assert isinstance(problem, GemmProblem)
        return cuda.ProductLaunch(problem, prepare_by_warps)


BACKEND = FirstRungBackend()
