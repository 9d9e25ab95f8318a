"""BSRMatrix: a block-sparse matrix that stores only its kept blocks (block compressed sparse row)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.blockmask import BlockMask, grid_shape
from kernels.tracing import lasting


class TransposedIndex(NamedTuple):
    """The same blocks by block column: an index into `BSRMatrix.data`, which stays where it is.

    Block column j holds the blocks `positions[indptr[j]:indptr[j + 1]]` of `data`, in the block rows `indices[...]`,
    ascending. All int32.
    """

    indptr: Tensor
    indices: Tensor
    positions: Tensor


class BSRIndex(NamedTuple):
    """Where the blocks lie, by block row (`rows` beside `indices`) and by block column (a `TransposedIndex`). All int32."""

    indptr: Tensor
    indices: Tensor
    rows: Tensor
    column_indptr: Tensor
    column_rows: Tensor
    positions: Tensor


@dataclass(frozen=True, eq=False)
class BSRMatrix:
    """Kept blocks of a matrix, block row by block row, columns ascending.

    data: [nnzb, b, b]; indices: int32[nnzb], block column of each block; indptr: int32[grid_rows + 1], where each block
    row begins; shape: (rows, cols) in elements. The pattern is never changed in place: `plans` holds what kernels have prepared
    for it, whatever the values.
    """

    data: Tensor
    indices: Tensor
    indptr: Tensor
    shape: tuple[int, int]
    plans: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or self.data.shape[1] != self.data.shape[2]:
            raise ValueError(f"data must be [nnzb, b, b] with square blocks, got {tuple(self.data.shape)}")
        grid_rows, _ = grid_shape(*self.shape, self.block_size)
        if self.indices.dtype != torch.int32 or self.indptr.dtype != torch.int32:
            raise ValueError(f"indices and indptr must be int32, got {self.indices.dtype} and {self.indptr.dtype}")
        if self.indptr.shape != (grid_rows + 1,) or self.indices.shape != (self.nnzb,):
            raise ValueError(
                f"{self.nnzb} blocks in {grid_rows} block rows need indices[{self.nnzb}] and indptr[{grid_rows + 1}], "
                f"got {tuple(self.indices.shape)} and {tuple(self.indptr.shape)}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: the fields, not what was derived from them or packed by a kernel."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"plans": {}}

    @classmethod
    def from_dense(cls, weight: Tensor, mask: BlockMask) -> BSRMatrix:
        """The blocks of `weight` that `mask` keeps, copied; what lies outside them is dropped. weight: [rows, cols]."""
        if tuple(weight.shape) != mask.shape:
            raise ValueError(f"the mask covers {mask.shape}, the weight is {tuple(weight.shape)}")
        kept, size = mask.kept.to(weight.device), mask.block_size
        rows, cols = kept.nonzero(as_tuple=True)
        blocks = weight.reshape(kept.shape[0], size, kept.shape[1], size).permute(0, 2, 1, 3)
        indptr = torch.zeros(kept.shape[0] + 1, dtype=torch.int32, device=weight.device)
        indptr[1:] = kept.sum(dim=1).cumsum(0)
        return cls(blocks[rows, cols].contiguous(), cols.to(torch.int32), indptr, mask.shape)

    @property
    def block_size(self) -> int:
        return self.data.shape[1]

    @property
    def nnzb(self) -> int:
        """Number of stored blocks."""
        return self.data.shape[0]

    @property
    def grid(self) -> tuple[int, int]:
        return self.shape[0] // self.block_size, self.shape[1] // self.block_size

    @property
    def values_nbytes(self) -> int:
        """Bytes of the stored values."""
        return self.data.numel() * self.data.element_size()

    @property
    def index_nbytes(self) -> int:
        """Bytes of `indices` and `indptr`."""
        return 4 * (self.indices.numel() + self.indptr.numel())

    def _check_pattern(self) -> None:
        """Kernels neither look where `indptr` and `indices` point nor sort them."""
        if self.indptr[[0, -1]].tolist() != [0, self.nnzb] or bool((self.indptr.diff() < 0).any()):
            raise ValueError(f"indptr must rise from 0 to {self.nnzb}, the number of blocks in data")
        if bool(((self.indices < 0) | (self.indices >= self.grid[1])).any()):
            raise ValueError(f"indices must lie in [0, {self.grid[1]}), the number of block columns")
        if bool((self.indices.diff() <= 0)[self.row_indices.diff() == 0].any()):
            raise ValueError("indices must ascend within each block row")

    @cached_property
    @lasting
    def row_indices(self) -> Tensor:
        """Block row of each block: int32[nnzb]."""
        rows = torch.arange(self.grid[0], dtype=torch.int32, device=self.indptr.device)
        return rows.repeat_interleave(self.indptr.diff(), output_size=self.nnzb)

    @cached_property
    @lasting
    def index(self) -> BSRIndex:
        """Everything products need to know of the pattern; ValueError where it points outside the matrix or `data`."""
        self._check_pattern()
        indptr, indices = (each.clone() if each.is_inference() else each for each in (self.indptr, self.indices))
        return BSRIndex(indptr, indices, self.row_indices, *self.transposed_index)

    def with_data(self, data: Tensor) -> BSRMatrix:
        """The same pattern with other values, sharing what was derived from the pattern. data: [nnzb, b, b]."""
        other = BSRMatrix(data, self.indices, self.indptr, self.shape)
        shared = {name: getattr(self, name) for name in ("row_indices", "transposed_index", "index", "plans")}
        other.__dict__.update(shared)
        return other

    @property
    def mask(self) -> BlockMask:
        kept = torch.zeros(self.grid, dtype=torch.bool)
        kept[self.row_indices.cpu(), self.indices.cpu()] = True
        return BlockMask(kept, self.block_size)

    def to_dense(self) -> Tensor:
        """[rows, cols], zero outside the stored blocks; differentiable in `data`."""
        grid_rows, grid_cols = self.grid
        blocks = self.data.new_zeros(grid_rows, grid_cols, self.block_size, self.block_size)
        blocks = blocks.index_put((self.row_indices.long(), self.indices.long()), self.data)
        return blocks.permute(0, 2, 1, 3).reshape(self.shape)

    @cached_property
    @lasting
    def transposed_index(self) -> TransposedIndex:
        """The blocks by block column, for products with the transpose; no value is copied."""
        positions = torch.argsort(self.indices, stable=True)
        indptr = torch.zeros(self.grid[1] + 1, dtype=torch.int32, device=self.indices.device)
        indptr[1:] = torch.bincount(self.indices, minlength=self.grid[1]).cumsum(0)
        return TransposedIndex(indptr, self.row_indices[positions], positions.to(torch.int32))
