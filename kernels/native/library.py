"""What all our CPU kernels share: compiled libraries, the structures of their arguments, and the thread pool."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kernels.native.buffers import POOL
from kernels.native.openmp import torch_pool
from kernels.system.compiler import CompileError, Library, compile_library
from kernels.system.threads import in_force

FOLDER = Path(__file__).parent / "src"
ELEMENTS = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16"}
LAYER_ELEMENTS = (torch.float32, torch.float64)
NO_PAIRS = "this CPU has no bfloat16 instructions (AVX512_BF16)"  # unless BENCH_KERNEL_FLAGS has -DEMULATE_BF16
MOST_THREADS = 128  # of pool.h
WORK_OF_A_THREAD = 1 << 16  # multiplications, about what waking it costs

empty: Callable[..., Tensor] = POOL.empty  # every buffer that a kernel writes comes from here; tests put guards around


def structure(name: str, pointers: str, sizes: str = "", **parts: type[ctypes.Structure]) -> type[ctypes.Structure]:
    """A C structure: a matrix if there is one, pointers, int64 sizes, then the other structures inside it."""
    first = {part: kind for part, kind in parts.items() if part in ("matrix", "recurrent")}
    fields: list[tuple[str, type]] = [
        *first.items(),
        *((pointer, ctypes.c_void_p) for pointer in pointers.split()),
        *((size, ctypes.c_int64) for size in sizes.split()),
        *((part, kind) for part, kind in parts.items() if part not in first),
    ]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


class Pool(ctypes.Structure):
    """Torch's threads; mirrors `struct Pool` in pool.h."""

    _fields_ = (("threads", ctypes.c_int64), ("parallel", ctypes.c_void_p), ("thread_number", ctypes.c_void_p))


class Matrix(ctypes.Structure):
    """A packed matrix; mirrors `struct Matrix` in tiles.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "indices", "indptr")),
        *((name, ctypes.c_int64) for name in ("block_size", "grid_rows", "panel_rows", "tall_vectors", "abreast")),
    )


def pool_for(work: int) -> Pool:
    """Torch's pool, with as many of its threads as `work` multiplications are worth; one where it was not found."""
    pool = torch_pool()
    if pool is None:
        return Pool(1, None, None)
    threads = min(in_force(), MOST_THREADS, 1 + work // WORK_OF_A_THREAD)
    return Pool(threads, pool.parallel, pool.thread_number)


def library(source: str, dtype: torch.dtype) -> Library:
    """native/`source`.cpp compiled for `dtype`; CompileError where it cannot be had."""
    return compile_library(FOLDER / f"{source}.cpp", (f"ELEMENT={ELEMENTS[dtype]}",))


@functools.cache
def entry(source: str, dtype: torch.dtype, name: str, *sizes: str) -> Callable[..., int]:
    """A function of a library: of one structure, or of int64 `sizes` with an int64 answer."""
    function = getattr(library(source, dtype).handle, name)
    function.restype = ctypes.c_int64 if sizes else None
    function.argtypes = (ctypes.c_int64,) * len(sizes) if sizes else (ctypes.c_void_p,)
    found: Callable[..., int] = function
    return found


def launch(source: str, dtype: torch.dtype, name: str, arguments: ctypes.Structure) -> None:
    """Call `name` of native/`source`.cpp with `arguments`."""
    entry(source, dtype, name)(ctypes.byref(arguments))


def text_of(compiled: Library, name: str) -> str:
    """What a function without arguments answers."""
    function = getattr(compiled.handle, name)
    function.restype = ctypes.c_char_p
    answer: bytes = function()
    return answer.decode()


def unsupported(dtype: torch.dtype, device: torch.device, layer: bool = False) -> str | None:
    """Why the CPU kernels cannot compute products, or an LSTM `layer`, or None. Compiles dsd at the first call.

    ResourceError where the machine lacks something today, so that nobody can know.
    """
    if device.type != "cpu":
        return "native runs on the CPU only"
    accepted = LAYER_ELEMENTS if layer else tuple(ELEMENTS)
    if dtype not in accepted:
        *others, last = (str(each).removeprefix("torch.") for each in accepted)
        kernel = "LSTM layer" if layer else "kernel"
        return f"native has no {str(dtype).removeprefix('torch.')} {kernel}, only {', '.join(others)} and {last}"
    try:
        if dtype == torch.bfloat16 and not text_of(library("dsd", torch.float32), "pair_products"):
            return NO_PAIRS
        library("dsd", dtype)
    except CompileError as error:
        return str(error)
    return None


def describe(compiled: Library, threads: int) -> str:
    """'native avx512, g++ 12.2.0, 2 threads', and the flags that were added to ours."""
    isa = text_of(compiled, "isa")
    version = re.search(r"\d+\.\d+(\.\d+)?", compiled.compiler)
    compiler = f"{compiled.compiler.split()[0]} {version.group() if version else ''}".strip()
    pool = "1 thread" if threads == 1 else f"{threads} threads"
    added = "".join(f" {flag}" for flag in compiled.added_flags)
    return f"native {isa}, {compiler}{added}, {pool}" + ("" if torch_pool() else " (torch's OpenMP pool was not found)")
