"""Calls of planted.cpp and of our kernels, right and wrong ones: plant.py prints 'name: exit status' of each.

Each runs in a forked process, because sanitizers end the process that they stop.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path

os.environ.pop("LD_PRELOAD", None)  # the compiler needs no sanitizer

import torch
from layer import Case
from products import kept_blocks, operands, products
from torch import Tensor

from kernels.native import library as native_library
from kernels.native.products import dsd, pack
from kernels.system.compiler import compile_library

BYTES = 40
CASE = Case(5, 2, 1, 3, 7, dtype=torch.float32)
BSR, X, GRAD = operands(kept_blocks("full", 2, 3), 5, 7, torch.float32)
LIBC = ctypes.CDLL(None)
LIBC.malloc.restype = ctypes.c_void_p


def planted(name: str, *arguments: int) -> None:
    """Call a function of planted.cpp with int64s or addresses."""
    function = getattr(compile_library(Path(__file__).with_name("planted.cpp")).handle, name)
    function.argtypes = (ctypes.c_int64,) * len(arguments)
    function(*arguments)


def buffer() -> int:
    """The address of BYTES bytes."""
    address: int = LIBC.malloc(ctypes.c_size_t(BYTES))
    return address


def short(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor whose last element lies outside its memory."""
    size = prod(shape) * dtype.itemsize
    address = LIBC.malloc(ctypes.c_size_t(size - dtype.itemsize))
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)


def with_short(shape: tuple[int, ...], work: Callable[[], object]) -> None:
    """Do `work` with the first buffer of that shape, of those that a kernel writes, too short."""
    left = [shape]

    def allocated(wanted: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if wanted not in left:
            return torch.empty(wanted, dtype=dtype)
        left.remove(wanted)
        return short(wanted, dtype)

    native_library.empty = allocated
    work()
    assert not left, "no kernel has such a buffer"


CALLS: dict[str, Callable[[], object]] = {
    "right: planted": lambda: (
        planted("fill", buffer(), BYTES),
        planted("next", 41),
        planted("number_at", buffer()),
        planted("shifted", 62),
    ),
    "right: kernels": lambda: (products(BSR, X, GRAD), CASE.computed("native")),
    "wrong: write past the end": lambda: planted("fill", buffer(), BYTES + 1),
    "wrong: read past the end": lambda: planted("last", buffer(), BYTES + 1),
    "wrong: overflow": lambda: planted("next", 2**63 - 1),
    "wrong: odd address": lambda: planted("number_at", buffer() + 1),
    "wrong: shift": lambda: planted("shifted", 64),
    "wrong: dsd, output too short": lambda: with_short((10, 7), lambda: products(BSR, X, GRAD)),
    "wrong: dsd, X too short": lambda: dsd(pack(BSR.data, BSR.index, 7), short((15, 7), torch.float32)),
    "wrong: sdd, output too short": lambda: with_short((6, 5, 5), lambda: products(BSR, X, GRAD)),
    "wrong: lstm, outputs too short": lambda: with_short((3, 7, 10), lambda: CASE.computed("native")),
    "wrong: lstm, gradient of the biases too short": lambda: with_short((1, 40), lambda: CASE.computed("native")),
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    products(BSR, X, GRAD), CASE.computed("native"), planted("next", 1)  # compiled before the processes part
    for name, work in CALLS.items():
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            work()
            os._exit(0)
        print(f"{name}: {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")
