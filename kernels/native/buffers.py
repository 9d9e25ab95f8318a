"""Large buffers, used again: the first touch of a fresh one costs a page fault every 4 KB, as long as computing on it.

A buffer is an ordinary storage of torch's, which tensors own, resize, share and outlive the pool with as they do any other; the pool
only holds one reference more, and lends it again once that is the last. Linux is asked to back them by huge pages: kernels
that jump from block to block wait for the address of every new page.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, UntypedStorage

SMALLEST = 1 << 20  # bytes; the C library keeps smaller ones itself
GRAIN = 1 << 21  # a huge page; sizes are rounded up to it, so that buffers of about one size replace each other
MADV_HUGEPAGE = 14
MOST_KEPT = 1 << 30  # bytes of buffers that are known, idle or not: others are freed with their last tensor

_use_count: Callable[[int], int] = torch._C._storage_Use_Count


class Buffer:
    """`size` bytes of a storage that begin where a huge page does: `offset` bytes after it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.storage = UntypedStorage(size + GRAIN, device="cpu")  # type: ignore[no-untyped-call]
        self.where, self.handle = self.storage.data_ptr(), self.storage._cdata
        self.offset = -self.where % GRAIN
        if advise := _madvise():
            advise(self.data_ptr, size, MADV_HUGEPAGE)  # a refusal changes nothing but the time
        self.alone, self.named = _use_count(self.handle), sys.getrefcount(self.storage)

    @property
    def data_ptr(self) -> int:
        return self.where + self.offset

    def is_idle(self) -> bool:
        """Whether no tensor has the memory and no one else a name for it; it may be taken then, if nobody else can look."""
        return _use_count(self.handle) == self.alone and sys.getrefcount(self.storage) == self.named

    def is_whole(self) -> bool:
        """Whether the storage still is that memory: a tensor on it may have been resized, or moved to where processes share it."""
        return self.storage.data_ptr() == self.where and self.storage.nbytes() == self.size + GRAIN


class Buffers:
    """Buffers that are known, the one lent longest ago first. No lock: what is taken out of the list is one thread's alone."""

    def __init__(self, most_kept: int = MOST_KEPT) -> None:
        self.most_kept = most_kept
        self.known: list[Buffer] = []

    @property
    def idle(self) -> list[Buffer]:
        """Those in no use."""
        return [each for each in self.known if each.is_idle()]

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As torch.empty on a CPU."""
        size = math.prod(shape) * dtype.itemsize
        if size < SMALLEST:
            return torch.empty(shape, dtype=dtype, device="cpu")
        buffer = self._take(-(-size // GRAIN) * GRAIN)
        made = torch.empty(0, dtype=dtype, device="cpu")
        made.set_(buffer.storage, buffer.offset // dtype.itemsize, tuple(shape))  # type: ignore[call-overload]
        self.known.append(buffer)
        while sum(each.size for each in list(self.known)) > self.most_kept and self.known:
            self.known.pop(0)
        return made

    def _take(self, size: int) -> Buffer:
        for buffer in list(self.known):
            if buffer.size == size and buffer.is_idle():
                try:
                    self.known.remove(buffer)
                except ValueError:
                    continue  # another thread was faster
                if not buffer.is_whole():
                    continue
                if buffer.is_idle():
                    return buffer
                self.known.append(buffer)  # and has lent it since
        return Buffer(size)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system call by which memory is given huge pages, None where there is none."""
    if sys.platform != "linux":
        return None
    found: Callable[[int, int, int], int] = ctypes.CDLL(None).madvise
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)  # type: ignore[attr-defined]
    return found


POOL = Buffers()
