"""Our CPU kernel (native/dsd.cpp), compiled at first use for the CPU at hand."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.compiler import CompileError, Library, compile_library
from kernels.openmp import torch_pool
from kernels.problem import GemmProblem, Launch

SOURCE = Path(__file__).parent / "native" / "dsd.cpp"
SCALARS = {"float32": "float", "float64": "double"}
CHUNK_BYTES = 512 * 1024  # of X beside one chunk of columns: about half a core's second-level cache
NARROWEST_CHUNK = 96


class Product(ctypes.Structure):
    """The arguments of one launch; mirrors `struct Product` in dsd.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "indices", "indptr", "x", "y")),
        *(
            (name, ctypes.c_int64)
            for name in ("n", "block_size", "grid_rows", "panel_rows", "panels", "chunk", "tall", "threads")
        ),
        *((name, ctypes.c_void_p) for name in ("starts", "next", "parallel", "thread_number")),
    )


def load(dtype: str) -> Library:
    """The library for `dtype`; CompileError where it cannot be had."""
    return compile_library(SOURCE, (f"SCALAR={SCALARS[dtype]}",))


def pack(bsr: BSRMatrix, panel_rows: int) -> Tensor:
    """Values in the order the kernel reads them: block row, panel, block, column, row of the panel (padded with zeros)."""
    size = bsr.block_size
    panels = -(-size // panel_rows)
    padded = torch.nn.functional.pad(bsr.data, (0, 0, 0, panels * panel_rows - size))
    pieces = padded.view(bsr.nnzb, panels, panel_rows, size).mT.reshape(-1, size, panel_rows)
    key = bsr.row_indices.long()[:, None] * panels + torch.arange(panels)
    return pieces[torch.argsort(key.flatten(), stable=True)].contiguous()


def shape_of_tiles(library: Library, block_size: int, n: int) -> tuple[int, int]:
    """(vectors of a tall tile or 0 for wide ones, rows of a panel)."""
    answers = (library.handle.tall_vectors, library.handle.panel_rows)
    for answer in answers:
        answer.restype, answer.argtypes = ctypes.c_int64, (ctypes.c_int64, ctypes.c_int64)
    tall: int = answers[0](block_size, n)
    return tall, answers[1](block_size, tall)


def split(costs: Tensor, parts: int) -> Tensor:
    """Boundaries int64[parts + 1] of contiguous ranges of about equal cost."""
    total = costs.cumsum(0)
    wanted = total[-1] * torch.arange(1, parts, dtype=torch.float64) / parts
    inner = torch.searchsorted(total, wanted)
    return torch.cat([torch.tensor([0]), inner, torch.tensor([len(costs)])]).to(torch.int64).contiguous()


class NativeLaunch:
    """One product, prepared for the number of threads torch has now. Not to be launched by two threads at once."""

    def __init__(self, problem: GemmProblem) -> None:
        library = load(problem.dtype)
        self.weight, self.x = problem.weight, problem.x
        self.result = torch.empty(problem.m, problem.n, dtype=problem.torch_dtype)
        bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
        size, pool = bsr.block_size, torch_pool()
        threads = torch.get_num_threads() if pool else 1
        tall, panel_rows = shape_of_tiles(library, size, problem.n)
        panels = -(-size // panel_rows)
        widest = CHUNK_BYTES // (problem.k * self.x.element_size())
        chunks = -(-problem.n // max(NARROWEST_CHUNK, widest))
        chunk = -(-problem.n // chunks // 16) * 16
        costs = (bsr.indptr.diff().double() + 1).repeat_interleave(panels).repeat(-(-problem.n // chunk))
        self.starts = split(costs, threads)
        self.next = torch.zeros(threads * 8, dtype=torch.int64)
        self.values, self.indices, self.indptr = pack(bsr, panel_rows), bsr.indices, bsr.indptr
        buffers = (self.values, self.indices, self.indptr, self.x, self.result)
        shape = (problem.n, size, bsr.grid[0], panel_rows, panels, chunk, tall, threads)
        entries = (pool.parallel, pool.thread_number) if pool else (None, None)
        pointers = [buffer.data_ptr() or None for buffer in (*buffers, self.starts, self.next)]
        self.product = Product(*pointers[:5], *shape, *pointers[5:], *entries)
        self.argument = ctypes.byref(self.product)
        self.run = library.handle.dsd
        self.run.restype, self.run.argtypes = None, (ctypes.c_void_p,)
        self.kernel = describe(library, threads, pool is None)
        self.weight_bytes = self.values.numel() * self.values.element_size()
        self.index_bytes = bsr.index_nbytes

    def __call__(self) -> None:
        self.run(self.argument)

    def output(self) -> Tensor:
        return self.result

    def poison(self) -> None:
        self.result.fill_(float("nan"))


def describe(library: Library, threads: int, poolless: bool) -> str:
    """'native avx512, g++ 12.2.0, 2 threads'."""
    library.handle.isa.restype = ctypes.c_char_p
    isa = library.handle.isa().decode()
    version = re.search(r"\d+\.\d+(\.\d+)?", library.compiler)
    compiler = f"{library.compiler.split()[0]} {version.group() if version else ''}".strip()
    pool = "1 thread" if threads == 1 else f"{threads} threads"
    return f"native {isa}, {compiler}, {pool}" + (" (torch's OpenMP pool was not found)" if poolless else "")


class NativeBackend:
    """float32 and float64 on a CPU, every block size, where a C++ compiler is at hand."""

    def unsupported(self, problem: GemmProblem) -> str | None:
        if problem.device != "cpu":
            return "native runs on the CPU only"
        if problem.dtype not in SCALARS:
            return f"native has no {problem.dtype} kernel, only {' and '.join(SCALARS)}"
        try:
            load(problem.dtype)
        except CompileError as error:
            return str(error)
        return None

    def prepare(self, problem: GemmProblem) -> Launch:
        return NativeLaunch(problem)


BACKEND = NativeBackend()
