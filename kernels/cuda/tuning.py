"""Every kernel of ours that can compute one product on the GPU at hand: what a tuner times, each under a name of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from kernels.backends.cuda import ProductLaunch
from kernels.bsr import BSRIndex
from kernels.cuda import choose
from kernels.cuda.choose import Choice, Gpu, Prepared, Task, element_of, offered, prepare_by
from kernels.problem import GemmProblem, Launch


def _prepared(name: str, choice: Choice, task: Task, index: BSRIndex, shape: tuple[int, int], gpu: Gpu) -> Prepared:
    return prepare_by(choice, task, index, shape, gpu)._replace(kernel=f"cuda {name}")


def variants(problem: GemmProblem) -> dict[str, Callable[[], Launch]]:
    """What prepares each choice for `problem`, by its name; only for a problem that the backend `cuda` supports."""
    gpu = choose.the_gpu(torch.device(problem.device))
    element = element_of(problem.torch_dtype, problem.math == "tf32")
    task = Task(problem.op, element, problem.block_size, problem.n)
    return {
        name: partial(ProductLaunch, problem, partial(_prepared, name, choice))
        for name, choice in offered(task, gpu).items()
    }
