"""Our CPU kernels (native/*.cpp), compiled at first use for the CPU at hand."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

import torch

from kernels.bsr import BSRMatrix
from kernels.launches import LstmLaunch, OperatorLaunch, ProductLaunch, block_sparse_launch, block_sparse_weights
from kernels.native.library import describe, entry, library, pool_for, require_kernel
from kernels.native.products import by_rows, empty_like_order, pack, plain, product, sampled
from kernels.problem import CALLS, LAYOUTS, Backend, GemmProblem, Launch, LstmProblem, Problem
from kernels.tensors.dense import by_onednn


class NativeProduct(ProductLaunch):
    """One product, prepared for the number of threads torch has now (or fewer: as many as it is worth).

    The values of dsd and dsd_t are packed beforehand; sdd packs its operands in every launch, since both are
    activations.
    """

    def __init__(self, problem: GemmProblem) -> None:
        bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
        self.weight_bytes, self.index_bytes = bsr.values_nbytes, bsr.index_nbytes
        self.result = torch.empty(0, dtype=torch.float32, device="cpu")
        self.run = self._sampled(problem, bsr) if problem.op == "sdd" else self._packed(problem, bsr)

    def _packed(self, problem: GemmProblem, bsr: BSRMatrix) -> Callable[[], object]:
        transposed, x = problem.op == "dsd_t", plain(problem.factors(dense=False)[1])
        self.x, self.packed = x, pack(bsr.data, bsr.index, problem.n, transposed, lies=not by_rows(x))
        self.result = empty_like_order(x, bsr.shape[1] if transposed else bsr.shape[0])
        arguments, self.buffer = product(self.packed, x, self.result)
        self.kernel = describe(library("dsd", x.dtype), arguments.pool.threads)
        self.weight_bytes = self.packed.values.numel() * self.packed.values.element_size()
        return partial(entry("dsd", x.dtype, "dsd"), ctypes.byref(arguments))

    def _sampled(self, problem: GemmProblem, bsr: BSRMatrix) -> Callable[[], object]:
        self.grad, self.x = plain(problem.grad), plain(problem.x)
        self.index, self.result = bsr.index, torch.empty_like(bsr.data)
        arguments, self.scratch = sampled(self.grad, self.x, self.index, bsr.block_size, self.result)
        self.kernel = describe(library("dsd", self.x.dtype), arguments.pool.threads)
        return partial(entry("sdd", self.x.dtype, "sdd"), ctypes.byref(arguments))

    def __call__(self) -> None:
        self.run()


def product_launch(problem: GemmProblem) -> Launch:
    """The prepared product, or the operator that people call."""
    if problem.call == "launch":
        return NativeProduct(problem)
    threads = pool_for(problem.mask.nnzb * problem.block_size**2 * problem.n).threads
    return OperatorLaunch(problem, "native", describe(library("dsd", problem.torch_dtype), threads))


def lstm_launch(problem: LstmProblem) -> LstmLaunch:
    """One layer; its values are packed in every launch, as training must."""
    bsr = block_sparse_weights(problem)
    threads = pool_for(bsr["weight_hh"].data.numel() * problem.batch_size).threads  # for one time step
    kernel = describe(library("dsd", problem.torch_dtype), threads)
    if "weight_ih" not in bsr and by_onednn(problem.x, problem.weights["weight_ih"]):
        kernel += "; inputs by oneDNN"
    index_bytes = sum(matrix.index_nbytes for matrix in bsr.values())
    return block_sparse_launch(problem, bsr, "native", kernel, index_bytes)


def _require(problem: Problem) -> None:
    require_kernel(problem.torch_dtype, torch.device(problem.device), isinstance(problem, LstmProblem))


BACKEND = Backend(
    name="native", product=product_launch, layer=lstm_launch, layouts=LAYOUTS, calls=CALLS,
    blocks=("launch",),  # the operator pads what it is given
    needs=_require,
)  # fmt: skip
