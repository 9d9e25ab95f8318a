"""Large buffers, used again: the first touch of a fresh one costs a page fault every 4 KB, as long as computing on it.

A buffer comes back when the last tensor that shares its memory is gone, as torch's allocator on a GPU has it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1 << 20  # bytes; the C library keeps smaller ones itself
GRAIN = 1 << 20  # sizes are rounded up to it, so that buffers of about one size replace each other
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
            return torch.empty(shape, dtype=dtype)
        buffer = self._take(-(-size // GRAIN) * GRAIN)
        array: np.ndarray[tuple[int], np.dtype[np.uint8]] = buffer.numpy()[:size]
        weakref.finalize(array, self._give_back, buffer).atexit = False
        return torch.from_numpy(array).view(dtype).view(tuple(shape))  # holds `array` as long as the memory is in use

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
        return torch.empty(size, dtype=torch.uint8)

    def _give_back(self, buffer: Tensor) -> None:
        self.idle.append(buffer)
        while sum(len(each) for each in list(self.idle)) > self.most_kept and self.idle:
            self.idle.pop(0)  # the one idle for longest


POOL = Buffers()
