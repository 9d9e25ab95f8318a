"""Products of torch tensors by our CUDA kernels, prepared once for each pattern: what `kernels.ops` calls.

X and Y are [k, n] and [m, n]; the kernels read and write them column by column, as activations of a network lie.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.cuda import choose
from kernels.cuda.choose import ELEMENTS, Prepared, Task, aligned, prepare
from kernels.tensors.index import BSRIndex, adopted, checked, own_copy
from kernels.tensors.operands import require, settled

MOST_PATTERNS, MOST_PREPARED = 128, 64  # kept; of patterns the last used


class Pattern:
    """A pattern that products were asked of, and what was prepared for it.

    index: derived by us, which operators are given; own: the copy that everything is prepared from.

    Its products are of tensors [k, n] and [m, n] that are read and written column by column; others are copied first.
    float32 is multiplied as torch does: by TF32 where torch.backends.cuda.matmul says so, else exactly.
    """

    kernel = "cuda"

    def __init__(self, index: BSRIndex, block_size: int) -> None:
        self.index, self.own, self.block_size, self.device = index, checked(index), block_size, index.indices.device
        self.gpu = choose.gpu(self.device)
        self.shape = (index.indptr.numel() - 1) * block_size, (index.column_indptr.numel() - 1) * block_size
        self.blocks = index.indices.numel(), block_size, block_size
        self.prepared: dict[Task, Prepared] = {}
        self.at_once: dict[tuple[str, torch.dtype, bool, int], Prepared] = {}  # the same, by what a call knows
        self.recurrences: dict[tuple[str, int], Any] = {}  # by element and batch
        self.refusals: dict[tuple[str, int], str] = {}  # why there is none

    def __call__(self, task: Task) -> Prepared:
        found = self.prepared.get(task)
        if found is None:
            require_no_capture(self.device)
            if len(self.prepared) == MOST_PREPARED:
                self.prepared.clear()
                self.at_once.clear()
            found = self.prepared[task] = prepare(task, self.own, self.shape, self.gpu)
        return found

    def element(self, dtype: torch.dtype) -> str:
        """What values of `dtype` are multiplied as now."""
        return "Tf32" if dtype is torch.float32 and allows_tf32() else ELEMENTS[dtype]

    def _run(self, op: str, dtype: torch.dtype, n: int, left: Tensor, right: Tensor, out: Tensor) -> None:
        key = op, dtype, dtype is torch.float32 and allows_tf32(), n
        with one_at_a_time:
            found = self.at_once.get(key)
            if found is None:
                found = self(Task(op, self.element(dtype), self.block_size, n))
                self.at_once[key] = found
            pin_captured(found, self.device)
            found.run(left, right, out)

    def dsd(self, data: Tensor, x: Tensor, transposed: bool = False) -> Tensor:
        """W x, or W^T x if `transposed`: [m, n] in the memory order of x. data: [nnzb, b, b]; x: [k, n]."""
        x = settled(x)
        self._check(data, x, self.shape[not transposed])
        (k, n), rows = x.shape, self.shape[transposed]
        if n > 1 and x.stride() != (1, k):
            return self.dsd(data, x.new_empty_strided((k, n), (1, k)).copy_(x), transposed).contiguous()
        out = x.new_empty_strided((rows, n), (1, rows))
        if n:
            columns = aligned(x.mT).mT if n == 1 or x.data_ptr() % 16 else x
            self._run("dsd_t" if transposed else "dsd", x.dtype, n, aligned(data), columns, out)
        return out

    def sdd(self, grad: Tensor, x: Tensor) -> Tensor:
        """The kept blocks of grad @ x^T: [nnzb, b, b]. grad: [m, n], x: [k, n]."""
        self._check(grad, x, self.shape[1], (self.shape[0], x.shape[-1]))
        n, blocks = x.shape[1], x.new_empty(self.blocks)
        if not n:
            return blocks.zero_()
        if self.blocks[0]:
            self._run("sdd", x.dtype, n, by_columns(grad), by_columns(x), blocks)
        return blocks

    def _check(self, left: Tensor, x: Tensor, lines: int, wanted: tuple[int, ...] | None = None) -> None:
        """ValueError where these are no operands: values, or a gradient of shape `wanted`, and x: [lines, n]."""
        shape, dtype, device, given = wanted or self.blocks, x.dtype, self.device, x.shape
        if left.shape != shape or left.dtype is not dtype or left.device != device:
            require("grad" if wanted else "data", left, shape, dtype, device)
        if len(given) != 2 or given[0] != lines or x.device != device or dtype not in ELEMENTS:
            raise ValueError(f"x must be [{lines}, n] on {device}, got {dtype} {list(given)} on {x.device}")


KEPT = "cuda"  # what weights keep their pattern as; another name for an emulated GPU

_patterns: OrderedDict[tuple[int, ...], Pattern] = OrderedDict()
_pinned: dict[int, object] = {}  # what CUDA graphs may replay, which tell nobody when they end
one_at_a_time = threading.Lock()  # autograd has threads of its own, and a prepared launch one set of arguments


def is_captured(device: torch.device) -> bool:
    """Whether what is launched on the current stream goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def require_no_capture(device: torch.device) -> None:
    """RuntimeError, one line, where a first call is being captured: it waits for the GPU, which no graph can hold."""
    if is_captured(device):
        raise RuntimeError(
            "the first call of a pattern, type and batch prepares kernels: call it once before capturing"
        )


def pin_captured(prepared: object, device: torch.device) -> None:
    """Keep for good what a CUDA graph is capturing the addresses of: patterns and products are forgotten when many."""
    if is_captured(device):
        _pinned[id(prepared)] = prepared


def allows_tf32() -> bool:
    """Whether torch multiplies float32 by TF32 on a GPU now, by whichever of its names that was set.

    The older name refuses to answer where only the newer was set; torch.backends asks the same and takes a microsecond.
    """
    return bool(torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32")


def by_columns(x: Tensor) -> Tensor:
    """`x` [k, n], column by column and at a multiple of 16 bytes, copied only where it is not."""
    x = settled(x)
    return x if x.stride() == (1, x.shape[0]) and not x.data_ptr() % 16 else aligned(x.mT).mT


def pattern_of(index: BSRIndex, block_size: int) -> Pattern:
    """What is kept for a pattern, made at its first product.

    It is found by where its index lies, of which we have a copy. One that comes from elsewhere, as from an exported
    program, is compared at each call with the pattern that lay there before; the GPU must be waited for then.
    """
    parts = (index.indptr, index.indices, index.column_indptr)
    key = block_size, *(each.data_ptr() for each in parts), *(each.numel() for each in parts)
    own = own_copy(index)
    with one_at_a_time:
        found = _patterns.get(key)
        if own is None or found is None:
            require_no_capture(index.indices.device)
        if found is None or not (_alike(found.own, index) if own is None else found.own is own):
            found = _patterns[key] = Pattern(adopted(index), block_size)
            if len(_patterns) > MOST_PATTERNS:
                _patterns.popitem(last=False)
        _patterns.move_to_end(key)
        return found


def _alike(kept: BSRIndex, index: BSRIndex) -> bool:
    """Whether the same numbers lie on the same device."""
    return all(
        one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
        for one, other in zip(kept, index, strict=True)
    )


def kept_pattern(weight: BSRMatrix, dtype: torch.dtype, device: torch.device) -> Pattern | None:
    """What `pattern_for` has kept, if it can multiply values of `dtype` on `device`."""
    found: Pattern | None = weight.plans.get(KEPT)
    return found if found is not None and device == found.device and dtype in ELEMENTS else None


def pattern_for(weight: BSRMatrix) -> Pattern:
    """As `pattern_of`, kept with the weight and all that share its pattern: found sooner, and never forgotten."""
    found: Pattern | None = weight.plans.get(KEPT)
    if found is None:
        found = weight.plans[KEPT] = pattern_of(weight.index, weight.block_size)
    return found
