"""One matrix stored in one form: its bytes in memory and in a file, and the time of its product against the dense one.

Order of a cell: stored, written, read again and compared; the product of what was read checked against float64 (else no
time is stored); then samples, as of any timed cell.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cells import Row, StorageCell, Tell
from bench.measuring.forms import FORMS, VALUES, Arrays, Form, alike, nbytes, read, write
from bench.measuring.memory import require_operands
from bench.measuring.modes import initial_modes
from bench.timing import compared, pinned_threads, prepare
from kernels.blockmask import BlockMask
from kernels.launches import ProductLaunch, under
from kernels.problem import GemmProblem
from kernels.system.resources import UnsupportedError
from kernels.tensors.rounding import blocks_to_empty


@dataclass(frozen=True)
class ActivationProblem(GemmProblem):
    """A product with activations in place of the weight: what a ReLU leaves of normal values lowered by a quantile.

    sparsity: share of them that is zero, to the nearest element. The dense side multiplies them as they are.
    """

    @cached_property
    def full_weight(self) -> Tensor:
        before = torch.randn(self.m, self.k, generator=self._generator(1), dtype=torch.float32, device="cpu")
        empty = blocks_to_empty(self.sparsity, before.numel())
        if not empty:
            return self._placed(before - before.min() + 1.0)
        return self._placed(torch.relu(before - before.flatten().sort().values[empty - 1]))

    def _placed(self, values: Tensor) -> Tensor:
        return values.to(device=self.device, dtype=self.torch_dtype).contiguous()

    @cached_property
    def weight(self) -> Tensor:
        return self.full_weight

    @cached_property
    def mask(self) -> BlockMask:
        return BlockMask.from_dense(self.weight.cpu(), self.block_size)


def problem_of(cell: StorageCell) -> GemmProblem:
    """The product that a stored matrix is timed in; the output is allocated in each call, on both sides."""
    kind = ActivationProblem if cell.what == "activation" else GemmProblem
    size = cell.block_size if cell.has_blocks else 1
    same: dict[str, Any] = {name: getattr(cell, name) for name in ("m", "k", "n", "dtype", "device", "seed")}
    return kind(block_size=size, sparsity=cell.target_sparsity, call="operator", **same)


class StoredLaunch(ProductLaunch):
    """The product of a stored matrix with the problem's X. UnsupportedError where its form has none here."""

    def __init__(self, problem: GemmProblem, form: Form, matrix: Any) -> None:
        call, self.kernel = form.product(matrix, problem.x)
        arrays = form.held(matrix)
        self.weight_bytes, self.index_bytes = nbytes(arrays[VALUES]), index_bytes(arrays)
        self.run = under(problem, call)
        self.result = self.run()

    def __call__(self) -> None:
        self.result = self.run()


def index_bytes(arrays: Arrays) -> int:
    """Bytes of all but the values."""
    return sum(nbytes(array) for name, array in arrays.items() if name != VALUES)


@initial_modes()
def store_cell(cell: StorageCell, tell: Tell) -> list[Row]:
    """One row: unsupported or wrong (then without times), or ok."""
    problem = problem_of(cell)
    reason = problem.missing_device()
    if reason:
        return [{"status": "unsupported", "reason": reason}]
    with pinned_threads(cell.threads):
        require_operands(cell)
        return [_measure(cell, problem, tell)]


def _measure(cell: StorageCell, problem: GemmProblem, tell: Tell) -> Row:
    form, weight, mask = FORMS[cell.form], problem.weight, problem.mask
    begin = time.perf_counter_ns()
    matrix = form.built(form.taken(weight, mask, getattr(torch, cell.indices)), mask.shape)
    prepare_ms = (time.perf_counter_ns() - begin) / 1e6
    row = _stored(weight, mask, form.held(matrix))
    row["file_bytes"], again = through_file(form, matrix, mask.shape)
    if again is None or not torch.equal(form.dense(again), weight):
        return {"status": "wrong", "reason": "what was read from the file is another matrix", **row}
    try:
        launch = StoredLaunch(problem, form, again)
    except UnsupportedError as reason:
        return {"status": "unsupported", "reason": str(reason), **row}
    baseline, _ = prepare(cell.baseline, problem)
    row |= {"kernel": launch.kernel, "baseline_kernel": baseline.kernel, "packed_bytes": form.packed(again)}
    return {"prepare_ms": prepare_ms, **row, **compared(cell, problem, launch, baseline, tell)}


def _stored(weight: Tensor, mask: BlockMask, arrays: Arrays) -> Row:
    """What of the matrix is zero, and the bytes of the arrays that hold it."""
    nnz = int((weight != 0).sum())
    return {
        "sparsity": mask.sparsity,
        "zero_share": 1.0 - nnz / weight.numel(),
        "nnz": nnz,
        "nnzb": mask.nnzb,
        "index_width": max((array.element_size() for name, array in arrays.items() if name != VALUES), default=0),
        "value_bytes": nbytes(arrays[VALUES]),
        "index_bytes": index_bytes(arrays),
    }


def through_file(form: Form, matrix: Any, shape: tuple[int, int]) -> tuple[int, Any]:
    """(bytes of a file of the matrix, the matrix that it gives again); None in its place where a bit differs."""
    arrays = form.held(matrix)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrix.npz"
        size = write(path, arrays, shape)
        found, sides = read(path, arrays[VALUES].dtype)
    if sides != shape or not alike(found, arrays):
        return size, None
    device = arrays[VALUES].device
    return size, form.built({name: array.to(device) for name, array in found.items()}, sides)
