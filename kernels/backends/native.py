"""Our CPU kernel (native/dsd.cpp), compiled at first use for the CPU at hand."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels.backends.native_library import describe, entry, library, unsupported
from kernels.backends.native_products import pack, product
from kernels.bsr import BSRMatrix
from kernels.problem import GemmProblem, Launch


class NativeLaunch:
    """One product, prepared for the number of threads torch has now (or fewer: as many as it is worth)."""

    def __init__(self, problem: GemmProblem) -> None:
        self.weight, self.x = problem.weight, problem.x
        self.result = torch.empty(problem.m, problem.n, dtype=problem.torch_dtype)
        bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
        self.packed = pack(bsr.data, bsr.index, problem.n)
        arguments, self.scratch = product(self.packed, self.x, self.result)
        self.argument = ctypes.byref(arguments)
        self.run = entry("dsd", problem.torch_dtype, "dsd")
        self.kernel = describe(library("dsd", problem.torch_dtype), arguments.pool.threads)
        self.weight_bytes = self.packed.values.numel() * self.packed.values.element_size()
        self.index_bytes = bsr.index_nbytes

    def __call__(self) -> None:
        self.run(self.argument)

    def output(self) -> Tensor:
        return self.result

    def poison(self) -> None:
        self.result.fill_(float("nan"))


class NativeBackend:
    """float32 and float64 on a CPU, every block size, where a C++ compiler is at hand."""

    def unsupported(self, problem: GemmProblem) -> str | None:
        return unsupported(problem.torch_dtype, torch.device(problem.device))

    def prepare(self, problem: GemmProblem) -> Launch:
        return NativeLaunch(problem)


BACKEND = NativeBackend()
