"""Our CUDA kernels (kernels/cuda/src), compiled by NVRTC at first use; `launch.kernel` says which one ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.bsr import BSRIndex, BSRMatrix
from kernels.cuda import choose
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
    require_kernel,
)  # fmt: skip
from kernels.cuda.lstm import recurrence_of, steps_for
from kernels.cuda.products import pattern_for
from kernels.cuda.recurrence import Sizes
from kernels.launches import (
    LstmLaunch,
    ProductLaunch,
    block_sparse_launch,
    block_sparse_weights,
    fastest,
    under,
    with_replays,
)
from kernels.ops import lstm_kernel
from kernels.problem import OPS, Backend, GemmProblem, Launch, LstmProblem, Problem, Variants

Prepare = Callable[[Task, BSRIndex, tuple[int, int], Gpu], Prepared]


class CudaProduct(ProductLaunch):
    """One product. Its operands lie token by token, as torch.nn.Linear has them: X as [n, k], the gradient as [n, m].

    prepare: what compiles and plans it; by default the best choice known.
    """

    def __init__(self, problem: GemmProblem, prepare: Prepare = prepare) -> None:
        bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
        self.op, size = problem.op, problem.block_size
        x = aligned((problem.grad if self.op == "dsd_t" else problem.x).mT)
        self.left = aligned(problem.grad.mT) if self.op == "sdd" else bsr.data
        rows = bsr.shape[1] if self.op == "dsd_t" else bsr.shape[0]
        self.result = torch.empty_like(bsr.data) if self.op == "sdd" else x.new_empty(problem.n, rows)
        self.right = x
        task = Task(self.op, element_of(x.dtype, problem.math == "tf32"), size, problem.n)
        self.run, self.kernel, self.index_bytes = prepare(
            task, bsr.index, bsr.shape, choose.gpu(torch.device(problem.device))
        )
        self.weight_bytes = bsr.values_nbytes
        self()  # what is allocated at the first call is there before a graph is captured

    def __call__(self) -> None:
        self.run(self.left, self.right, self.result)

    def outputs(self) -> dict[str, Tensor]:
        return {"output": self.result if self.op == "sdd" else self.result.mT}


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
    kernel = f"{lstm_kernel(bsr['weight_hh'], batch, 'cuda')}; inputs by {into[0].kernel if into else 'torch.mm'}"
    return Layer(kernel, listed, steps.together)


def lstm_launch(problem: LstmProblem) -> tuple[LstmLaunch, bool]:
    """One layer, prepared but not launched yet; and whether all its steps are one launch."""
    bsr = block_sparse_weights(problem)
    layer = under(problem, partial(_prepared, problem, bsr))()
    return block_sparse_launch(problem, bsr, "cuda", layer.kernel, layer.index_bytes), layer.together


def _chosen(name: str, choice: Choice, task: Task, index: BSRIndex, shape: tuple[int, int], gpu: Gpu) -> Prepared:
    return prepare_by(choice, task, index, shape, gpu)._replace(kernel=f"cuda {name}")


def _layer(problem: LstmProblem) -> Launch:
    """The layer, on a GPU or its replay: cuDNN's is offered as one too."""
    launch, _ = lstm_launch(problem)
    launch()  # what is allocated at the first call is there before a graph is captured
    if problem.device != "cuda":
        return launch
    ways = with_replays({launch.kernel: launch}, lambda _: lstm_launch(problem)[0])
    return ways[fastest(ways, problem.device, captured=False)]


def _variants(problem: GemmProblem) -> Variants:
    """What prepares each kernel that can compute a supported product."""
    task = Task(problem.op, element_of(problem.torch_dtype, problem.math == "tf32"), problem.block_size, problem.n)
    return {
        name: partial(CudaProduct, problem, partial(_chosen, name, choice))
        for name, choice in offered(task, choose.gpu(torch.device(problem.device))).items()
    }


class CudaBackend(Backend):
    """float32 (exact or tf32), bfloat16 and float16, blocks of 8 to 128, on GPUs of compute capability 8.0 and later.

    The steps of a layer are one cooperative launch where all of its CTAs fit on the GPU at once, else a launch each;
    a layer is replayed as a CUDA graph where that is faster.
    """

    def require(self, problem: Problem) -> None:
        self.require_declared(problem)
        device, dtype, size = torch.device(problem.device), problem.torch_dtype, problem.block_size
        require_kernel(dtype, size, max(mask.nnzb for mask in problem.masks.values()), device)
        if isinstance(problem, LstmProblem):
            mask = problem.masks["weight_hh"]
            index = BSRMatrix.from_dense(torch.zeros(mask.shape, dtype=torch.bool, device="cpu"), mask).index
            exact = element_of(dtype, problem.math == "tf32") == "Float32"
            steps_for(index, Sizes(problem.batch_size, mask.shape[1], size), dtype, exact, choose.gpu(device))


BACKEND = CudaBackend(name="cuda", product=CudaProduct, layer=_layer, variants=_variants)
