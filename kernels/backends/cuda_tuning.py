"""Every kernel of ours that can compute one product on the GPU at hand: what a tuner times, each under a name of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kernels.backends import cuda_rungs
from kernels.backends.cuda_rungs import Choice, Gpu, Task, aligned, element_of, offered, prepare_by
from kernels.bsr import BSRMatrix
from kernels.problem import GemmProblem, Launch


class VariantLaunch:
    """A product by one choice; operands as in `kernels.backends.cuda`."""

    dense = False

    def __init__(self, problem: GemmProblem, name: str, choice: Choice, task: Task, gpu: Gpu) -> None:
        bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
        self.op, self.kernel, self.weight_bytes = problem.op, f"cuda {name}", bsr.values_nbytes
        self.right = aligned((problem.grad if self.op == "dsd_t" else problem.x).mT)
        self.left = aligned(problem.grad.mT) if self.op == "sdd" else bsr.data
        rows = bsr.shape[1] if self.op == "dsd_t" else bsr.shape[0]
        self.result = torch.empty_like(bsr.data) if self.op == "sdd" else self.right.new_empty(problem.n, rows)
        self.run, _, self.index_bytes = prepare_by(choice, task, bsr.index, bsr.shape, gpu)
        self()

    def __call__(self) -> None:
        self.run(self.left, self.right, self.result)

    def outputs(self) -> dict[str, Tensor]:
        return {"output": self.result if self.op == "sdd" else self.result.mT}

    def poison(self) -> None:
        self.result.fill_(float("nan"))


def variants(problem: GemmProblem) -> dict[str, Callable[[], Launch]]:
    """What prepares each choice for `problem`, by its name; only for a problem that the backend `cuda` supports."""
    gpu = cuda_rungs.the_gpu(torch.device(problem.device))
    element = element_of(problem.torch_dtype, problem.math == "tf32")
    task = Task(problem.op, element, problem.block_size, problem.n)
    return {
        name: partial(VariantLaunch, problem, name, choice, task, gpu) for name, choice in offered(task, gpu).items()
    }
