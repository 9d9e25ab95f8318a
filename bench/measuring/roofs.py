"""Roofs: the least time that a GPU's own rates allow a problem, its arithmetic and its memory at their best.

A rate is measured in this process, once a type: that of arithmetic by cuBLAS on a large square product, that of memory
by a copy that no cache holds. The arithmetic of a problem is that of its kept elements, its bytes are operands and
results, each moved once. A kernel cannot be faster than the slower of the two, but from hot caches, where operands need
not come from memory.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from bench.cells import Row
from kernels.launches import applied, between_events, settings_of
from kernels.problem import DTYPES, GemmProblem, LstmProblem, Problem

SIDE = 8192  # of the square product
COPIED_BYTES = 2**30  # read, and as many written
ROUNDS = 5  # the best counts
BACKWARD = 3  # times the arithmetic of the forward pass, with the gradients of x and of the weights


class Rates(NamedTuple):
    """What a GPU reaches: 1e12 operations a second, a multiply-add being two; 1e9 bytes a second, read or written."""

    peak_tflops: float
    copy_gb_per_second: float


@cache
def rates(dtype: str, math: str) -> Rates:
    """Those of torch's current GPU for a type. math: of float32, 'ieee' or 'tf32'."""
    return Rates(_peak(dtype, math), _copy_rate())


def _peak(dtype: str, math: str) -> float:
    left, right = (torch.randn(SIDE, SIDE, dtype=DTYPES[dtype], device="cuda") for _ in range(2))
    out = torch.empty_like(left)
    with applied(settings_of(dtype, math)):
        best = min(between_events(lambda: torch.mm(left, right, out=out)) for _ in range(ROUNDS))
    return 2 * SIDE**3 / best / 1e9


@cache
def _copy_rate() -> float:
    source, target = (torch.zeros(COPIED_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    return 2 * COPIED_BYTES / min(between_events(lambda: target.copy_(source)) for _ in range(ROUNDS)) / 1e6


def weight_elements(problem: Problem) -> float:
    """Elements of the weights that have to be multiplied: those of kept blocks, without padding, and of dense ones."""
    stored = sum(mask.nnzb * mask.block_size**2 for mask in problem.masks.values())
    kept = stored * (1 - problem.padded_share())
    if isinstance(problem, LstmProblem) and "weight_ih" not in problem.masks:
        kept += 4 * problem.hidden_size * problem.input_size
    return kept


def operations(problem: Problem) -> float:
    """Multiplications and additions of the kept elements."""
    if isinstance(problem, GemmProblem):
        return 2 * weight_elements(problem) * problem.n
    passes = BACKWARD if problem.passes == "forward_backward" else 1
    return 2 * passes * weight_elements(problem) * problem.batch_size * problem.steps


def moved_bytes(problem: Problem) -> float:
    """Operands and results, each once: of a product W, X and Y or their gradients; of a layer x, y, states, weights.

    A backward pass reads grad_y and writes the gradients of x and of the weights besides.
    """
    size, weights = problem.torch_dtype.itemsize, weight_elements(problem)
    if isinstance(problem, GemmProblem):
        return size * (weights + (problem.k + problem.m) * problem.n)
    tokens = problem.batch_size * problem.steps
    elements = weights + tokens * (problem.input_size + problem.hidden_size)
    if problem.passes == "forward_backward":
        elements *= 2
    return size * (elements + 4 * problem.batch_size * problem.hidden_size)


def roof_ms(problem: Problem, reached: Rates) -> float:
    """Milliseconds: the longer one of the arithmetic and of the bytes."""
    return max(operations(problem) / reached.peak_tflops / 1e9, moved_bytes(problem) / reached.copy_gb_per_second / 1e6)


def roof(problem: Problem) -> Row:
    """The columns roof_ms, peak_tflops and copy_gb_per_second; null on a CPU, and where memory does not suffice."""
    nothing: Row = {"roof_ms": None, "peak_tflops": None, "copy_gb_per_second": None}
    if problem.device != "cuda":
        return nothing
    try:
        reached = rates(problem.dtype, problem.math)
    except torch.OutOfMemoryError:
        return nothing
    return {"roof_ms": roof_ms(problem, reached), **reached._asdict()}
