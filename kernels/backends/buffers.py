"""Large buffers, used again: the first touch of a fresh one costs a page fault every 4 KB, as long as computing on it.

A buffer comes back when the last tensor that shares its memory is gone, as torch's allocator on a GPU has it. Linux is
asked to back them by huge pages: kernels that jump from block to block wait for the address of every new page.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1 << 20  # bytes; the C library keeps smaller ones itself
GRAIN = 1 << 21  # a huge page; sizes are rounded up to it, so that buffers of about one size replace each other
MADV_HUGEPAGE = 14
MOST_KEPT = 1 << 30  # bytes of idle buffers


class Buffers:
    """Idle buffers by size. No lock: a buffer may come back in any thread, even while another is being taken."""

    def __init__(self, most_kept: int = MOST_KEPT) -> None:
        self.most_kept = most_kept
        self.idle: list[Tensor] = []

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As torch.empty on a CPU."""
        size = math.prod(shape) * dtype.itemsize
        if size < SMALLEST:
            return torch.empty(shape, dtype=dtype, device="cpu")
        buffer = self._take(-(-size // GRAIN) * GRAIN)
        array: np.ndarray[tuple[int], np.dtype[np.uint8]] = buffer.numpy()[:size]
        weakref.finalize(array, self._give_back, buffer).atexit = False
        found = torch.from_numpy(array).view(dtype).view(tuple(shape))  # holds `array` as long as the memory is in use
        return found.detach()  # to torch nobody's view, so that autograd lets it be written to

    def _take(self, size: int) -> Tensor:
        for place, buffer in enumerate(list(self.idle)):
            if len(buffer) == size:
                try:
                    taken = self.idle.pop(place)
                except IndexError:
                    break
                if len(taken) == size:
                    return taken
                self.idle.append(taken)  # another thread was faster
                break
        return _fresh(size)

    def _give_back(self, buffer: Tensor) -> None:
        self.idle.append(buffer)
        while sum(len(each) for each in list(self.idle)) > self.most_kept and self.idle:
            self.idle.pop(0)  # the one idle for longest


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system call by which memory is given huge pages, None where there is none."""
    if sys.platform != "linux":
        return None
    found: Callable[[int, int, int], int] = ctypes.CDLL(None).madvise
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)  # type: ignore[attr-defined]
    return found


def _fresh(size: int) -> Tensor:
    """`size` bytes that begin where a huge page does."""
    memory = torch.empty(size + GRAIN, dtype=torch.uint8, device="cpu")
    skipped = -memory.data_ptr() % GRAIN
    buffer = memory[skipped : skipped + size]
    if advise := _madvise():
        advise(buffer.data_ptr(), size, MADV_HUGEPAGE)  # a refusal changes nothing but the time
    return buffer


POOL = Buffers()
