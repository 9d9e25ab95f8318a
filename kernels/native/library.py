"""What all our CPU kernels share: compiled libraries, structures of arguments, the thread pool, and large buffers.

The pool is torch's own. A second OpenMP runtime in the process would spin against torch's and halve the speed of both,
so our libraries link none: they are handed the entry points of the one that torch has already loaded.

Large buffers are used again: the first touch of a fresh one costs a page fault every 4 KB, as long as computing on it.
A buffer is an ordinary storage of torch's, which tensors own, resize, share and outlive the pool with as they do any
other; the pool only holds one reference more, and lends it again once that is the last. Linux is asked to back them by
huge pages: kernels that jump from block to block wait for the address of every new page.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, UntypedStorage

from kernels.system.compiler import CompileError, Library, compile_library
from kernels.system.resources import UnsupportedError
from kernels.system.threads import in_force

RUNTIMES = ("libgomp", "libiomp5", "libomp")


class TorchPool(NamedTuple):
    """Addresses of `GOMP_parallel(function, data, num_threads, flags)` and `omp_get_thread_num()`, and who has them."""

    parallel: int
    thread_number: int
    name: str


def _loaded_runtimes() -> list[str]:
    """Paths of the OpenMP runtimes of this process, torch's own first."""
    try:
        maps = os.fsdecode(Path("/proc/self/maps").read_bytes()).splitlines()
    except OSError:
        folder = Path(torch.__file__).parent / "lib"
        return [str(path) for runtime in RUNTIMES for path in sorted(folder.glob(f"{runtime}*"))]
    paths = {line.split(maxsplit=5)[5] for line in maps if len(line.split(maxsplit=5)) == 6}
    found = [path for path in paths if Path(path).name.startswith(RUNTIMES)]
    return sorted(found, key=lambda path: (not path.startswith(str(Path(torch.__file__).parent)), path))


@functools.cache
def torch_pool() -> TorchPool | None:
    """The pool torch computes on, or None where it has no GNU entry points (then kernels run on one thread)."""
    for path in _loaded_runtimes():
        try:
            library = ctypes.CDLL(path)
            parallel, number = library.GOMP_parallel, library.omp_get_thread_num
        except (OSError, AttributeError):
            continue
        addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in (parallel, number)]
        if addresses[0] and addresses[1]:
            return TorchPool(addresses[0], addresses[1], Path(path).name.split(".")[0])
    return None


CPU = torch.device("cpu")  # a name takes as long to read as a tenth of an allocation
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
        """Whether no tensor has the memory and no one else a name for it; it may be taken, if nobody else looks."""
        return _use_count(self.handle) == self.alone and sys.getrefcount(self.storage) == self.named

    def is_whole(self) -> bool:
        """Whether the storage still is that memory: a tensor on it may have been resized, or moved to be shared."""
        return self.storage.data_ptr() == self.where and self.storage.nbytes() == self.size + GRAIN


class Buffers:
    """Buffers that are known, longest lent first. No lock: what is taken out of the list is one thread's alone."""

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
            return torch.empty(shape, dtype=dtype, device=CPU)
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


FOLDER = Path(__file__).parent / "src"
ELEMENTS = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16"}
LAYER_ELEMENTS = (torch.float32, torch.float64)
NO_PAIRS = "this CPU has no bfloat16 instructions (AVX512_BF16)"  # unless BENCH_KERNEL_FLAGS has -DEMULATE_BF16
MOST_THREADS = 128  # of pool.h
WORK_OF_A_THREAD = 1 << 16  # multiplications, about what waking it costs
PATIENCE = 2048  # some 20 to 100 us by processor: longer than most items of a time step

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

    _fields_ = (
        ("threads", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("parallel", "thread_number")),
        ("patience", ctypes.c_int64),
    )


class Matrix(ctypes.Structure):
    """A packed matrix; mirrors `struct Matrix` in tiles.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "indices", "indptr")),
        *((name, ctypes.c_int64) for name in ("block_size", "grid_rows", "lying", "abreast")),
    )


def threads_worth(work: int) -> int:
    """Threads that `work` multiplications are worth; one where torch's pool was not found."""
    return 1 if torch_pool() is None else min(MOST_THREADS, 1 + work // WORK_OF_A_THREAD)


@functools.cache  # OpenMP reads it once, too
def patience() -> int:
    """Pauses for which a thread waits for others before it leaves its processor to them.

    None where OpenMP's own threads leave theirs at once, as they do by OMP_WAIT_POLICY=passive.
    """
    return 0 if os.environ.get("OMP_WAIT_POLICY", "").strip().lower() == "passive" else PATIENCE


def pool_for(work: int) -> Pool:
    """Torch's pool, with as many of its threads as `work` multiplications are worth; one where it was not found."""
    pool = torch_pool()
    if pool is None:
        return Pool(1, None, None, 0)
    return Pool(min(in_force(), threads_worth(work)), pool.parallel, pool.thread_number, patience())


def library(source: str, dtype: torch.dtype) -> Library:
    """native/`source`.cpp compiled for `dtype`; CompileError where it cannot be had."""
    return compile_library(*_named(source, dtype))


@functools.cache  # a path takes as long as a small product
def _named(source: str, dtype: torch.dtype) -> tuple[Path, tuple[str, ...]]:
    return FOLDER / f"{source}.cpp", (f"ELEMENT={ELEMENTS[dtype]}",)


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


def require_kernel(dtype: torch.dtype, device: torch.device, layer: bool = False) -> None:
    """UnsupportedError where the CPU kernels cannot compute products, or an LSTM `layer`. The first call compiles dsd.

    ResourceError where the machine lacks something today, so that nobody can know.
    """
    if device.type != "cpu":
        raise UnsupportedError("native runs on the CPU only")
    accepted = LAYER_ELEMENTS if layer else tuple(ELEMENTS)
    if dtype not in accepted:
        *others, last = (str(each).removeprefix("torch.") for each in accepted)
        kernel = "LSTM layer" if layer else "kernel"
        wanted = f"{', '.join(others)} and {last}"
        raise UnsupportedError(f"native has no {str(dtype).removeprefix('torch.')} {kernel}, only {wanted}")
    try:
        if dtype == torch.bfloat16 and not text_of(library("dsd", torch.float32), "pair_products"):
            raise UnsupportedError(NO_PAIRS)
        library("dsd", dtype)
    except CompileError as error:
        raise UnsupportedError(str(error)) from error


def describe(compiled: Library, threads: int) -> str:
    """'native avx512, g++ 12.2.0, 2 threads', and the flags that were added to ours."""
    isa = text_of(compiled, "isa")
    version = re.search(r"\d+\.\d+(\.\d+)?", compiled.compiler)
    compiler = f"{compiled.compiler.split()[0]} {version.group() if version else ''}".strip()
    pool = "1 thread" if threads == 1 else f"{threads} threads"
    added = "".join(f" {flag}" for flag in compiled.added_flags)
    return f"native {isa}, {compiler}{added}, {pool}" + ("" if torch_pool() else " (torch's OpenMP pool was not found)")
