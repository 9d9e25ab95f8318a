"""Every kernel of ours that can compute one product on the GPU at hand: what a tuner times, each under a name of its own.

This is the only place that knows both the tuned table's names and the kernels' parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from kernels.backends import cuda_rungs, cuda_variants, cuda_wgmma
from kernels.backends.cuda_plan import product_plan, sampled_plan
from kernels.backends.cuda_products import ProductLaunch, SampledLaunch, parts_for
from kernels.backends.cuda_rungs import Gpu, Task, aligned, element_of
from kernels.backends.cuda_variants import ProductChoice, SampledChoice
from kernels.backends.cuda_wgmma import Tile
from kernels.bsr import BSRIndex, BSRMatrix
from kernels.problem import GemmProblem, Launch

Choice = ProductChoice | SampledChoice | Tile
Run = Callable[[Tensor, Tensor, Tensor], None]  # values, x, out; of sdd: grad, x, blocks
NAMED = ("ROWS", "COLS", "TOKENS", "DEPTH", "STAGES", "WARPS_ROWS", "WARPS_TOKENS", "WARPS_DEPTH", "UNITS", "CTAS")


def offered(task: Task, gpu: Gpu) -> dict[str, Choice]:
    """Every choice that `gpu` has room for, by its parameters as JSON: rung and tile."""
    found: dict[str, Choice] = {}
    for parts in (False, True):
        for choice in cuda_variants.variants(*task, parts=parts):
            if choice.variant.shared_bytes <= gpu.shared_bytes and choice.variant.runs_on(gpu.capability):
                rung = "FFMA" if cuda_variants.is_exact(task.element) else "mma.sync"
                defines = dict(choice.variant.defines)
                named = {name.lower(): defines[name] for name in NAMED if name in defines}
                found[json.dumps({"rung": rung, "parts": choice.parts, **named}, sort_keys=True)] = choice
    if gpu.capability == 90 and cuda_wgmma.unsupported(task.op, task.element, task.block_size) is None:
        for tile in cuda_wgmma.tiles(task.element, task.block_size):
            found[json.dumps({"rung": "wgmma", **asdict(tile)}, sort_keys=True)] = tile
    return found


def run_of(choice: Choice, task: Task, index: BSRIndex, shape: tuple[int, int], gpu: Gpu) -> tuple[Run, int]:
    """The product of a matrix of `shape` (m, k) by one choice, compiled and planned; and the bytes of its index."""
    if isinstance(choice, Tile):
        listed = cuda_wgmma.list_columns(index, task.block_size, choice.rows, task.op == "dsd_t")
        return Wide(choice, task, index, gpu), sum(each.numel() * each.element_size() for each in listed)
    if isinstance(choice, SampledChoice):
        plan = sampled_plan(index, choice.tile)
        parts = parts_for(len(plan.jobs), -(-task.n // choice.depth), gpu.multiprocessors) if choice.parts else 1
        return SampledLaunch(choice, plan, *shape, gpu.load, parts), plan.nbytes
    grouped = product_plan(index, choice.tile)
    ctas, stages = len(grouped.groups) * -(-task.n // choice.tokens), int(grouped.groups[:, 2].max())
    parts = parts_for(ctas, stages, gpu.multiprocessors) if choice.parts else 1
    lines = shape if task.op == "dsd_t" else shape[::-1]
    return ProductLaunch(choice, grouped, *lines, gpu.load, parts), grouped.nbytes


class Wide:
    """A product by wgmma with one tile; for the operands of its first call."""

    def __init__(self, tile: Tile, task: Task, index: BSRIndex, gpu: Gpu) -> None:
        self.tile, self.task, self.index, self.gpu = tile, task, index, gpu
        self.product: cuda_wgmma.Product | None = None

    def __call__(self, values: Tensor, x: Tensor, out: Tensor) -> None:
        if self.product is None:
            op, element = self.task[:2]
            ctas, load = self.gpu.multiprocessors, self.gpu.load
            self.product = cuda_wgmma.Product(op, element, values, self.index, x, out, self.tile, ctas, load)
        self.product()


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
        self.run, self.index_bytes = run_of(choice, task, bsr.index, bsr.shape, gpu)
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
