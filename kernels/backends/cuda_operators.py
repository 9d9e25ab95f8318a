"""Products of torch tensors by our CUDA kernels, prepared once for each pattern: what `kernels.ops` calls.

X and Y are [k, n] and [m, n]; the kernels read and write them column by column, as activations of a network lie.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch
from torch import Tensor

from kernels.backends.cuda_rungs import Prepared, Task, aligned, element_of, prepare, the_gpu
from kernels.bsr import BSRIndex

MOST_PATTERNS, MOST_PREPARED = 128, 64  # kept; of patterns the last used


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
one_at_a_time = threading.Lock()  # autograd has threads of its own, and a prepared launch one set of arguments


def _run(task: Task, index: BSRIndex, left: Tensor, right: Tensor, out: Tensor) -> None:
    with one_at_a_time:
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
