"""BlockedEll: a block-sparse matrix whose block rows all store as many blocks as the fullest, the rest being padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix

LAYOUTS = ("rows", "blocks")


@dataclass(frozen=True, eq=False)
class BlockedEll:
    """Blocked-ELL as cuSPARSE has it.

    data: [rows, cols], where cols = width * block_size and width is the number of kept blocks in the fullest block row (1
    where every block is empty); what is padding is zero. Layout 'rows': one matrix in row order; 'blocks': block after
    block, each in row order. indices: int32[grid_rows, width], the block column of each block, -1 for padding.
    """

    data: Tensor
    indices: Tensor
    shape: tuple[int, int]
    block_size: int

    @classmethod
    def from_bsr(cls, matrix: BSRMatrix, layout: str = "rows") -> BlockedEll:
        """The blocks of `matrix`, copied, in each block row ascending and then padded."""
        size, grid_rows = matrix.block_size, matrix.grid[0]
        counts = matrix.indptr.diff().long()
        width = max(int(counts.max()), 1)
        rows = matrix.row_indices.long()
        places = torch.arange(matrix.nnzb, device=rows.device) - matrix.indptr[:-1].long()[rows]
        indices = torch.full((grid_rows, width), -1, dtype=torch.int32, device=rows.device)
        indices[rows, places] = matrix.indices
        blocks = matrix.data.new_zeros(grid_rows, width, size, size)
        blocks[rows, places] = matrix.data
        lying = blocks.permute(0, 2, 1, 3) if layout == "rows" else blocks
        return cls(lying.reshape(grid_rows * size, width * size).contiguous(), indices, matrix.shape, size)

    @property
    def cols(self) -> int:
        """Columns of `data`: ellCols in cuSPARSE's words."""
        return self.data.shape[1]

    @property
    def values_nbytes(self) -> int:
        """Bytes of the stored values, padding included."""
        return self.data.numel() * self.data.element_size()

    @property
    def index_nbytes(self) -> int:
        return 4 * self.indices.numel()

    def to_dense(self) -> Tensor:
        """[rows, columns]; of layout 'rows'."""
        size, (grid_rows, width) = self.block_size, self.indices.shape
        dense = self.data.new_zeros(grid_rows, self.shape[1] // size, size, size)
        blocks = self.data.view(grid_rows, size, width, size).permute(0, 2, 1, 3)
        rows, places = (self.indices >= 0).nonzero(as_tuple=True)
        dense[rows, self.indices[rows, places].long()] = blocks[rows, places]
        return dense.permute(0, 2, 1, 3).reshape(self.shape)
