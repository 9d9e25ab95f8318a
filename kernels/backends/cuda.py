"""Our CUDA kernels (kernels/cuda/src), compiled by NVRTC at first use for the GPU at hand. `launch.kernel` says which one ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.bsr import BSRIndex, BSRMatrix
from kernels.cuda.choose import (
    Choice,
    Gpu,
    Prepared,
    Task,
    aligned,
    element_of,
    offered,
    prepare,
    prepare_by,
    the_gpu,
    unsupported,
)  # fmt: skip
from kernels.cuda.lstm import recurrence_of, steps_for
from kernels.cuda.products import pattern_for
from kernels.cuda.recurrence import Recurrence, Sizes
from kernels.launches import LstmLaunch, Replayed, block_sparse_launch, block_sparse_weights, under
from kernels.ops import lstm_kernel
from kernels.problem import OPS, GemmProblem, Launch, LstmProblem, Problem

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


class Layer(NamedTuple):
    """What computes a layer, in words; bytes in which its products are listed; whether all steps are one launch."""

    kernel: str
    index_bytes: int
    together: bool


def _prepared(problem: LstmProblem, bsr: Mapping[str, BSRMatrix]) -> Layer:
    """What `block_sparse_lstm` will find prepared under the arithmetic of now."""
    batch, dtype = problem.batch_size, problem.torch_dtype

    def product(op: str, name: str) -> Prepared:
        pattern = pattern_for(bsr[name])
        return pattern(Task(op, pattern.element(dtype), problem.block_size, batch * problem.steps))

    into = [product(op, "weight_ih") for op in OPS if "weight_ih" in bsr]
    listed = sum(each.index_bytes for each in (*into, product("sdd", "weight_hh")))
    steps = recurrence_of(pattern_for(bsr["weight_hh"]), dtype, batch)
    assert isinstance(steps, Recurrence), steps
    kernel = f"{lstm_kernel(bsr['weight_hh'], batch, 'cuda')}; inputs by {into[0].kernel if into else 'torch.mm'}"
    return Layer(kernel, listed, steps.together)


def lstm_launch(problem: LstmProblem) -> tuple[LstmLaunch, bool]:
    """One layer, prepared but not launched yet; and whether all its steps are one launch."""
    bsr = block_sparse_weights(problem)
    layer = under(problem, partial(_prepared, problem, bsr))()
    return block_sparse_launch(problem, bsr, "cuda", layer.kernel, layer.index_bytes), layer.together


def _chosen(name: str, choice: Choice, task: Task, index: BSRIndex, shape: tuple[int, int], gpu: Gpu) -> Prepared:
    return prepare_by(choice, task, index, shape, gpu)._replace(kernel=f"cuda {name}")


class CudaBackend:
    """float32 (exact or tf32), bfloat16 and float16, blocks of 8 to 128, on GPUs of compute capability 8.0 and later.

    The steps of a layer are one cooperative launch where all of its CTAs fit on the GPU at once, else a launch each,
    replayed as a CUDA graph.
    """

    def unsupported(self, problem: Problem) -> str | None:
        device, size = torch.device(problem.device), problem.block_size
        nnzb = max(mask.nnzb for mask in problem.masks.values())
        reason = unsupported(problem.torch_dtype, size, nnzb, device)
        if reason is not None or isinstance(problem, GemmProblem):
            return reason
        assert isinstance(problem, LstmProblem)
        mask, dtype = problem.masks["weight_hh"], problem.torch_dtype
        index = BSRMatrix.from_dense(torch.zeros(mask.shape, dtype=torch.bool, device="cpu"), mask).index
        exact = element_of(dtype, problem.math == "tf32") == "Float32"
        found = steps_for(index, Sizes(problem.batch_size, problem.hidden_size, size), dtype, exact, the_gpu(device))
        return found if isinstance(found, str) else None

    def prepare(self, problem: Problem) -> Launch:
        if isinstance(problem, GemmProblem):
            return ProductLaunch(problem)
        assert isinstance(problem, LstmProblem)
        launch, together = lstm_launch(problem)
        launch()  # what is allocated at the first call is there before a graph is captured
        if together or problem.device != "cuda":
            return launch
        return Replayed(launch, kernel=f"{launch.kernel}, replayed as a CUDA graph")

    def variants(self, problem: GemmProblem) -> dict[str, Callable[[], Launch]]:
        """What prepares each kernel that can compute a supported product, by its name: what a tuner times."""
        gpu = the_gpu(torch.device(problem.device))
        task = Task(problem.op, element_of(problem.torch_dtype, problem.math == "tf32"), problem.block_size, problem.n)
        return {
            name: partial(ProductLaunch, problem, partial(_chosen, name, choice))
            for name, choice in offered(task, gpu).items()
        }


BACKEND = CudaBackend()
