"""Rival: the Triton kernels behind torch's block-sparse tensors on a GPU, called directly, with the least overhead.

dsd and dsd_t: torch.sparse._triton_ops.bsr_dense_addmm. sdd: sampled_addmm of the same module. Torch has tuned the
first for a few shapes on A100s only, and takes one pipeline stage elsewhere, so it is tuned here, before it is timed:
the width of a tile, stages, warps, and block rows that follow each other, over both memory orders of X. The second
takes no such choice. Both add up float32 in float64, and `kernel` says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.launches import ProductLaunch, fastest, left_factor
from kernels.problem import LAYOUTS, Backend, GemmProblem, laid
from kernels.system.resources import UnsupportedError, is_lack

LEAST = 16  # block sizes and numbers of columns that Triton's dot takes
WIDEST = 256  # columns of a tile
STAGES = (3, 4, 2, 5, 1)  # the likeliest first, should time be up
WARPS = (4, 8)
ROWS_TOGETHER = (1, 4, 8)  # GROUP_SIZE_ROW
TUNING_SECONDS = 15.0  # for a product: then no further variant is compiled

Meta = dict[str, int]


def _operations() -> Any:
    return importlib.import_module("torch.sparse._triton_ops")


def _sparse(bsr: BSRMatrix) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (.* tensor support is in beta|invariant checks are)")
        parts = (bsr.indptr.long(), bsr.indices.long(), bsr.data)  # the kernels were written for 64-bit indices
        return torch.sparse_bsr_tensor(*parts, size=bsr.shape, device=bsr.data.device)


def widths(n: int) -> list[int]:
    """Columns of a tile that cut n evenly, a power of two each, as Triton's dot takes them."""
    found = [LEAST << step for step in range(5) if LEAST << step <= min(n, WIDEST)]
    return [width for width in found if n % width == 0]


def default(problem: GemmProblem) -> Meta:
    """What torch takes where its table has nothing, the tile as near to a square as n allows."""
    width = min(widths(problem.n), key=lambda each: abs(each - problem.block_size))
    return {"SPLIT_N": problem.n // width, "num_stages": 1, "num_warps": 4, "GROUP_SIZE_ROW": 4}


def axes(problem: GemmProblem) -> list[list[Meta]]:
    """The axes of the grid: stages, width of a tile, warps, block rows together."""
    splits = [problem.n // width for width in widths(problem.n)[::-1]]
    names = {"num_stages": STAGES, "SPLIT_N": splits, "num_warps": WARPS, "GROUP_SIZE_ROW": ROWS_TOGETHER}
    return [[{name: each} for each in values] for name, values in names.items()]


class Tuned:
    """The fastest variant of a product that was found: along one axis of the grid after the other, then once more.

    run: what launches a variant, with X in a memory order. found: the variants that compiled, by name; tried: how many
    of `of` were compiled or refused, as for want of shared memory.
    """

    def __init__(self, problem: GemmProblem, run: Callable[[str, Meta], object]) -> None:
        self.problem, self.run = problem, run
        self.ways: dict[str, Callable[[], object]] = {}
        self.chosen: dict[str, tuple[str, Meta]] = {}
        self.tried: set[str] = set()
        begin, grid = time.perf_counter(), axes(problem)
        self.of = len(LAYOUTS)
        for axis in grid:
            self.of *= len(axis)
        best = "row", default(problem)
        self._offer(*best)
        for axis in [*grid, *grid]:
            for layout, change in product(LAYOUTS, axis):
                if self.ways and time.perf_counter() - begin > TUNING_SECONDS:
                    break
                self._offer(layout, {**best[1], **change})
            if self.ways:
                best = self.chosen[fastest(self.ways, problem.device)]
        if not self.ways:
            raise UnsupportedError("torch's Triton kernel compiles in no variant here")
        self.layout, self.meta = best

    def _offer(self, layout: str, meta: Meta) -> None:
        name = f"x by {layout}s, " + ", ".join(f"{key} {value}" for key, value in meta.items())
        if name in self.tried:
            return
        self.tried.add(name)
        way = partial(self.run, layout, meta)
        try:
            way()
        except Exception as error:  # Triton's own classes: too little shared memory, a tile that it cannot lower
            if is_lack(error):
                raise
            return
        self.ways[name], self.chosen[name] = way, (layout, meta)

    def __str__(self) -> str:
        said = ", ".join(f"{key} {value}" for key, value in self.meta.items())
        return f"x by {self.layout}s, {said} (best of {len(self.tried)} tried of {self.of})"


class TritonLaunch(ProductLaunch):
    """operations: the module that has the kernels; by default torch's, else another called `origin`."""

    def __init__(self, problem: GemmProblem, operations: Any = None, origin: str = "torch.sparse._triton_ops") -> None:
        self.operations = operations or _operations()
        triton = importlib.import_module("triton").__version__
        summed = ", summed in float64" if problem.dtype == "float32" else ""
        if problem.op == "sdd":
            bsr = BSRMatrix.from_dense(problem.weight, problem.mask)
            self.run, what = self._sampled(problem, bsr), f"sampled_addmm, triton {triton}{summed}"
        else:
            bsr, transposed = left_factor(problem)
            self.run, tuned = self._tuned(problem, bsr)
            what = f"bsr_dense_addmm, triton {triton}, {tuned}{summed}{transposed}"
        self.kernel = f"{origin}.{what}"
        self.weight_bytes = bsr.values_nbytes
        self.index_bytes = 2 * bsr.index_nbytes
        self()  # compiles

    def _sampled(self, problem: GemmProblem, bsr: BSRMatrix) -> Callable[[], object]:
        left, x = problem.factors(dense=False)
        sparse, out = _sparse(bsr), _sparse(bsr.with_data(torch.zeros_like(bsr.data)))
        self.result = out.values()
        return partial(self.operations.sampled_addmm, sparse, left, x, beta=0.0, out=out, skip_checks=True)

    def _tuned(self, problem: GemmProblem, bsr: BSRMatrix) -> tuple[Callable[[], object], Tuned]:
        """The product in its fastest variant. It is told its `meta`, which bsr_dense_mm would drop."""
        sparse, x = _sparse(bsr), problem.factors(dense=False)[1]
        by = {layout: laid(x, layout) for layout in LAYOUTS}
        out = self.result = x.new_empty(bsr.shape[0], problem.n)

        def run(layout: str, meta: Meta) -> object:
            given = {"alpha": 1, "beta": 0, "out": out, "skip_checks": True, "meta": meta}
            return self.operations.bsr_dense_addmm(out, sparse, by[layout], **given)

        tuned = Tuned(problem, run)
        return partial(run, tuned.layout, tuned.meta), tuned

    def __call__(self) -> None:
        self.run()


def _is_power_of_two(size: int) -> bool:
    return size & (size - 1) == 0


def require_shape(problem: GemmProblem) -> None:
    """UnsupportedError where there is no such product."""
    size, n = problem.block_size, problem.n
    if problem.dtype == "float64":
        raise UnsupportedError("torch's Triton kernels have no float64")
    if problem.math == "tf32":
        raise UnsupportedError("torch's Triton kernels multiply float32 without TF32")
    if size < LEAST or not _is_power_of_two(size):
        raise UnsupportedError(f"torch's Triton kernels need blocks of a power of two from {LEAST} on, not {size}")
    if problem.op == "sdd":
        return
    if n % LEAST:
        raise UnsupportedError(f"torch's Triton kernel needs n divisible by {LEAST}, got {n}")


def _require(problem: GemmProblem) -> None:
    if importlib.util.find_spec("triton") is None:
        raise UnsupportedError("the package triton is missing")
    if getattr(_operations(), "bsr_dense_addmm", None) is None:
        raise UnsupportedError("this torch has no Triton kernels for block-sparse tensors")
    require_shape(problem)


BACKEND = Backend(
    name="triton_bsr",
    product=TritonLaunch,
    devices=("cuda",),
    elsewhere="torch's Triton kernels run on a GPU only",
    needs=_require,
)
