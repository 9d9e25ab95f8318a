"""Which of our CUDA kernels computes a product, prepared for a pattern and a number of tokens; and products of torch tensors by it.

The rungs: wgmma on Hopper from WIDE tokens on (fewer leave its wide tiles half empty), mma.sync everywhere else, FFMA for
exact float32. Operands lie token by token: x [n, k], out [n, m], grad [n, m].
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.backends import cuda_kernel, cuda_wgmma
from kernels.backends.cuda_kernel import Kernel, Variant, arch_of
from kernels.backends.cuda_plan import MOST_NUMBERS, product_plan, sampled_plan
from kernels.backends.cuda_products import ProductLaunch, SampledLaunch, parts_for
from kernels.backends.cuda_variants import BLOCKS, ProductChoice, SampledChoice, default, is_exact
from kernels.bsr import BSRIndex

WIDE = 128
MOST_PATTERNS, MOST_PREPARED = 128, 64  # kept; of patterns the last used
ELEMENTS = {torch.float32: "Float32", torch.bfloat16: "Bfloat16", torch.float16: "Float16"}


class Gpu(NamedTuple):
    """What kernels are chosen by; shared_bytes: the most of one CTA; load: makes kernels of variants."""

    capability: int  # 90 for 9.0
    multiprocessors: int
    shared_bytes: int
    load: Callable[[Variant], Kernel]


@functools.cache
def gpu(device: torch.device) -> Gpu | str:
    """The GPU `device`, or why our kernels cannot run there. Tests put an emulated one in its place."""
    reason = "cuda runs on a GPU only" if device.type != "cuda" else cuda_kernel.unavailable()
    if reason is not None:
        return reason
    found = torch.cuda.get_device_properties(device)
    capability = 10 * found.major + found.minor
    shared_bytes = found.shared_memory_per_multiprocessor - 1024  # which the driver takes of each CTA
    return Gpu(capability, found.multi_processor_count, shared_bytes, cuda_kernel.load)


def the_gpu(device: torch.device) -> Gpu:
    """`gpu`, where it is known to be one."""
    found = gpu(device)
    assert not isinstance(found, str), found
    return found


def unsupported(dtype: torch.dtype, block_size: int, nnzb: int, device: torch.device) -> str | None:
    """Why our CUDA kernels cannot multiply such a matrix, or None."""
    found = gpu(device)
    if isinstance(found, str):
        return found
    if dtype not in ELEMENTS:
        wanted = ", ".join(str(each).removeprefix("torch.") for each in ELEMENTS)
        return f"cuda has no {str(dtype).removeprefix('torch.')} kernel, only {wanted}"
    if block_size not in BLOCKS:
        return f"cuda has kernels for blocks of {', '.join(map(str, BLOCKS))}, not {block_size}"
    if nnzb * block_size**2 > MOST_NUMBERS:
        return f"cuda multiplies matrices of at most {MOST_NUMBERS} kept values"
    return None


def element_of(dtype: torch.dtype, tf32: bool) -> str:
    """The element type of the kernels, as cuda/device.h calls it."""
    return "Tf32" if tf32 and dtype == torch.float32 else ELEMENTS[dtype]


class Task(NamedTuple):
    """A product of a pattern: op, element, side of a block, and tokens."""

    op: str
    element: str
    block_size: int
    n: int


class Prepared(NamedTuple):
    """run(values, x, out) of dsd and dsd_t, run(grad, x, blocks) of sdd: all contiguous, at multiples of 16 bytes."""

    run: Callable[[Tensor, Tensor, Tensor], None]
    kernel: str  # 'cuda mma.sync sm_90a Bfloat16 128x256x64x4': rows, tokens, depth and number of the stages
    index_bytes: int


class Wide:
    """A product by wgmma whose operands are given at each call."""

    def __init__(self, task: Task, index: BSRIndex, gpu: Gpu) -> None:
        self.task, self.index, self.gpu = task, index, gpu
        self.tile = cuda_wgmma.default_tile(task.element, task.block_size, task.n)
        gpu.load(cuda_wgmma.variant(task.op, task.element, task.block_size, self.tile))
        listed = cuda_wgmma.list_columns(index, task.block_size, self.tile.rows, task.op == "dsd_t")
        self.index_bytes = sum(each.numel() * each.element_size() for each in listed)
        self.product: cuda_wgmma.Product | None = None

    def __call__(self, values: Tensor, x: Tensor, out: Tensor) -> None:
        if self.product is None:
            op, element = self.task[:2]
            ctas, load = self.gpu.multiprocessors, self.gpu.load
            self.product = cuda_wgmma.Product(op, element, values, self.index, x, out, self.tile, ctas, load)
            del self.product.keeps  # the caller keeps them
        else:
            given: Any = self.product.arguments
            given.values, given.x, given.y = values.data_ptr(), x.data_ptr(), out.data_ptr()
        self.product()


def is_wide(task: Task, gpu: Gpu) -> bool:
    """Whether wgmma is taken."""
    reason = cuda_wgmma.unsupported(task.op, task.element, task.block_size)
    return reason is None and gpu.capability == cuda_kernel.HOPPER and task.n >= WIDE


def prepare(task: Task, index: BSRIndex, shape: tuple[int, int], gpu: Gpu) -> Prepared:
    """The product of a matrix of `shape` (m, k) with pattern `index`, compiled and planned."""
    if is_wide(task, gpu):
        wide = Wide(task, index, gpu)
        tile = f"{wide.tile.rows}x{wide.tile.tokens}x{cuda_wgmma.LINE * wide.tile.panels}Bx{wide.tile.stages}"
        return Prepared(wide, _describe("wgmma", task, tile, 1, gpu), wide.index_bytes)
    return _sampled(task, index, shape, gpu) if task.op == "sdd" else _product(task, index, shape, gpu)


def _describe(name: str, task: Task, tile: str, parts: int, gpu: Gpu) -> str:
    shared = f" in {parts} parts" if parts > 1 else ""
    return f"cuda {name} {arch_of(gpu.capability)} {task.element} {tile}{shared}"


def _threads(task: Task) -> str:
    return "FFMA" if is_exact(task.element) else "mma.sync"


def _product(task: Task, index: BSRIndex, shape: tuple[int, int], gpu: Gpu) -> Prepared:
    def planned(parts: bool) -> tuple[ProductLaunch, int]:
        choice = default(*task, parts=parts, shared_bytes=gpu.shared_bytes)
        assert isinstance(choice, ProductChoice)
        plan = product_plan(index, choice.tile)
        ctas, stages = len(plan.groups) * -(-task.n // choice.tokens), int(plan.groups[:, 2].max())
        count = parts_for(ctas, stages, gpu.multiprocessors)
        x_line, out_line = shape if task.op == "dsd_t" else shape[::-1]
        return ProductLaunch(choice, plan, x_line, out_line, gpu.load, count if parts else 1), count

    run, parts = planned(parts=False)
    if parts > 1:  # too few CTAs for the GPU
        run, parts = planned(parts=True)
    defines = dict(run.choice.variant.defines)
    tile = "x".join(str(defines[name]) for name in ("ROWS", "TOKENS", "DEPTH", "STAGES"))
    return Prepared(run, _describe(_threads(task), task, tile, run.parts, gpu), run.plan.nbytes)


def _sampled(task: Task, index: BSRIndex, shape: tuple[int, int], gpu: Gpu) -> Prepared:
    def planned(parts: bool) -> tuple[SampledLaunch, int]:
        choice = default(*task, parts=parts, shared_bytes=gpu.shared_bytes)
        assert isinstance(choice, SampledChoice)
        plan = sampled_plan(index, choice.tile)
        count = parts_for(len(plan.jobs), -(-task.n // choice.depth), gpu.multiprocessors)
        return SampledLaunch(choice, plan, *shape, gpu.load, count if parts else 1), count

    run, parts = planned(parts=False)
    if parts > 1:
        run, parts = planned(parts=True)
    defines = dict(run.choice.variant.defines)
    tile = "x".join(str(defines[name]) for name in ("ROWS", "COLS", "DEPTH", "STAGES"))
    return Prepared(run, _describe(_threads(task), task, tile, run.parts, gpu), run.plan.nbytes)


class Pattern:
    """A pattern that products were asked of, and what was prepared for it; holds its index, so that no other gets its place."""

    def __init__(self, index: BSRIndex, shape: tuple[int, int]) -> None:
        self.index, self.shape, self.gpu = index, shape, the_gpu(index.indices.device)
        self.prepared: dict[Task, Prepared] = {}

    def __call__(self, task: Task) -> Prepared:
        found = self.prepared.get(task)
        if found is None:
            if len(self.prepared) == MOST_PREPARED:
                self.prepared.clear()
            found = self.prepared[task] = prepare(task, self.index, self.shape, self.gpu)
        return found


_patterns: OrderedDict[tuple[int, ...], Pattern] = OrderedDict()
_one_at_a_time = threading.Lock()  # autograd has threads of its own, and a prepared launch one set of arguments


def _run(task: Task, index: BSRIndex, left: Tensor, right: Tensor, out: Tensor) -> None:
    with _one_at_a_time:
        pattern_of(index, task.block_size)(task).run(left, right, out)


def pattern_of(index: BSRIndex, block_size: int) -> Pattern:
    """What is kept for a pattern, made at its first product. Torch's counts of changes in place tell when it is another."""
    parts = (index.indptr, index.indices)
    key = (
        block_size,
        *(each.data_ptr() for each in parts),
        *(0 if each.is_inference() else each._version for each in parts),
    )
    found = _patterns.get(key)
    if found is None:
        shape = (index.indptr.numel() - 1) * block_size, (index.column_indptr.numel() - 1) * block_size
        found = _patterns[key] = Pattern(index, shape)
        if len(_patterns) > MOST_PATTERNS:
            _patterns.popitem(last=False)
    else:
        _patterns.move_to_end(key)
    return found


def aligned(x: Tensor) -> Tensor:
    """`x` contiguous and at a multiple of 16 bytes, copied only where it is not."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


def dsd(data: Tensor, index: BSRIndex, x: Tensor, turned: bool) -> Tensor:
    """W x, or W^T x if `turned`: [m, n], column by column. data: [nnzb, b, b]; x: [k, n], not copied if it lies so too.

    float32 is multiplied as torch does: by TF32 where torch.backends.cuda.matmul.allow_tf32 is set, else exactly.
    """
    tokens, size = aligned(x.mT), data.shape[1]
    out = x.new_empty(tokens.shape[0], ((index.column_indptr if turned else index.indptr).numel() - 1) * size)
    if out.numel():
        element = element_of(x.dtype, torch.backends.cuda.matmul.allow_tf32)
        task = Task("dsd_t" if turned else "dsd", element, size, tokens.shape[0])
        _run(task, index, aligned(data), tokens, out)
    return out.mT


def sdd(grad: Tensor, x: Tensor, index: BSRIndex, size: int) -> Tensor:
    """The kept blocks of grad @ x^T: [nnzb, b, b]. grad: [m, n], x: [k, n]; float32 as in `dsd`."""
    blocks = x.new_empty(index.indices.numel(), size, size)
    if not x.shape[1]:
        return blocks.zero_()
    if blocks.numel():
        element = element_of(x.dtype, torch.backends.cuda.matmul.allow_tf32)
        _run(Task("sdd", element, size, x.shape[1]), index, aligned(grad.mT), aligned(x.mT), blocks)
    return blocks
