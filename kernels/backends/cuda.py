"""Our CUDA kernels (cuda/*.cu), compiled by NVRTC at first use for the GPU at hand. `launch.kernel` says which one ran."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.backends import cuda_layer
from kernels.backends.cuda_rungs import Gpu, Prepared, Task, aligned, element_of, prepare, the_gpu, unsupported
from kernels.bsr import BSRIndex, BSRMatrix
from kernels.lstm_problem import LstmProblem
from kernels.problem import GemmProblem, Launch, Problem

Prepare = Callable[[Task, BSRIndex, tuple[int, int], Gpu], Prepared]


class ProductLaunch:
    """One product. Its operands lie token by token, as torch.nn.Linear has them: X as [n, k], the gradient as [n, m].

    prepare: what compiles and plans it; by default the best choice known.
    """

    dense = False

    def __init__(self, problem: GemmProblem, prepare: Prepare = prepare) -> None:
        gpu = the_gpu(torch.device(problem.device))
        bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
        self.op, size = problem.op, problem.block_size
        x = aligned((problem.grad if self.op == "dsd_t" else problem.x).mT)
        self.left = aligned(problem.grad.mT) if self.op == "sdd" else bsr.data
        rows = bsr.shape[1] if self.op == "dsd_t" else bsr.shape[0]
        self.result = torch.empty_like(bsr.data) if self.op == "sdd" else x.new_empty(problem.n, rows)
        self.right = x
        task = Task(self.op, element_of(x.dtype, problem.math == "tf32"), size, problem.n)
        self.run, self.kernel, self.index_bytes = prepare(task, bsr.index, bsr.shape, gpu)
        self.weight_bytes = bsr.values_nbytes
        self()  # what is allocated at the first call is there before a graph is captured

    def __call__(self) -> None:
        self.run(self.left, self.right, self.result)

    def outputs(self) -> dict[str, Tensor]:
        return {"output": self.result if self.op == "sdd" else self.result.mT}

    def poison(self) -> None:
        self.result.fill_(float("nan"))


class CudaBackend:
    """float32 (exact or tf32), bfloat16 and float16, blocks of 8 to 128, on GPUs of compute capability 8.0 and later."""

    def unsupported(self, problem: Problem) -> str | None:
        device = torch.device(problem.device)
        nnzb = max(mask.nnzb for mask in problem.masks.values())
        reason = unsupported(problem.torch_dtype, problem.block_size, nnzb, device)
        if reason is not None or isinstance(problem, GemmProblem):
            return reason
        assert isinstance(problem, LstmProblem)
        return cuda_layer.unsupported(problem)

    def prepare(self, problem: Problem) -> Launch:
        if isinstance(problem, LstmProblem):
            return cuda_layer.prepare(problem)
        assert isinstance(problem, GemmProblem)
        return ProductLaunch(problem)


BACKEND = CudaBackend()
