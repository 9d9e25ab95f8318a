"""BlockMask: which blocks of a weight matrix are kept.

With an r x c grid of blocks, K = `num_empty` and K_i = `num_empty_per_row`, sparsity is rho = K / (r c)
(slides, "Sparsity": rho = K / n^2 for a square grid).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.tensors.operands import contiguous, require_values, require_whole
from kernels.tensors.padding import padded, unpadded
from kernels.tensors.rounding import blocks_to_empty, nearest_multiples
from kernels.tensors.tracing import lasting


def grid_shape(rows: int, cols: int, block_size: int, pad: bool = False) -> tuple[int, int]:
    """Blocks along each side of a rows x cols matrix; ValueError naming the nearest sizes where it does not divide.

    pad: the last blocks of a side may reach beyond it.
    """
    for name, number in (("rows", rows), ("columns", cols), ("block_size", block_size)):
        require_whole(name, number)
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    for side, size in (("rows", rows), ("columns", cols)):
        if (size % block_size and not pad) or size < 1:
            raise ValueError(
                f"block_size {block_size} does not divide the weight's {size} {side}; "
                f"nearest sizes that work: {nearest_multiples(size, block_size)}"
            )
    return -(-rows // block_size), -(-cols // block_size)


@dataclass(frozen=True, eq=False)
class BlockMask:
    """A boolean grid over square blocks, True = kept.

    kept: bool[grid_rows, grid_cols]; a copy of it is kept, on the CPU. block_size: side of a block in elements.
    """

    kept: Tensor
    block_size: int

    def __post_init__(self) -> None:
        require_values("kept", self.kept)
        if self.kept.dtype != torch.bool or self.kept.ndim != 2:
            raise ValueError(
                f"a BlockMask needs a 2-d bool grid, got {self.kept.dtype} with shape {tuple(self.kept.shape)}"
            )
        if self.kept.numel() == 0:
            raise ValueError(f"a BlockMask needs at least one block, got a grid of {tuple(self.kept.shape)}")
        require_whole("block_size", self.block_size)
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}")
        with lasting():
            object.__setattr__(self, "kept", contiguous(self.kept.detach().to("cpu", copy=True)))

    @classmethod
    def full(cls, rows: int, cols: int, block_size: int, pad: bool = False) -> BlockMask:
        """Every block of a rows x cols matrix kept. pad: the last ones may reach beyond it."""
        return cls(torch.ones(grid_shape(rows, cols, block_size, pad), dtype=torch.bool, device="cpu"), block_size)

    @classmethod
    def from_scores(cls, scores: Tensor, sparsity: float, block_size: int) -> BlockMask:
        """The lowest-scoring share `sparsity` of the blocks emptied, ties by index. scores: [grid_rows, grid_cols]."""
        require_values("scores", scores)
        kept = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
        order = torch.argsort(
            scores.detach().double().flatten(), stable=True
        )  # on a GPU if they are there: in a ramp it is often
        kept[order[: blocks_to_empty(sparsity, scores.numel())]] = False
        return cls(kept.view(scores.shape), block_size)

    @classmethod
    def random(
        cls, rows: int, cols: int, block_size: int, sparsity: float, generator: torch.Generator, pad: bool = False
    ) -> BlockMask:
        """Exactly `blocks_to_empty` blocks, drawn uniformly, are empty. pad: the last ones may reach beyond the sides.

        Each of those holds elements of the matrix, so none is empty by padding alone.
        """
        grid, device = grid_shape(rows, cols, block_size, pad), generator.device
        scores = torch.rand(grid, generator=generator, dtype=torch.float64, device=device)
        return cls.from_scores(scores, sparsity, block_size)

    @classmethod
    def from_dense(cls, weight: Tensor, block_size: int, pad: bool = False) -> BlockMask:
        """Kept = any element of the block is non-zero (NaN counts as non-zero). weight: [rows, cols].

        pad: the last blocks may reach beyond it, to where there are zeros.
        """
        require_values("weight", weight)
        if weight.ndim != 2:
            raise ValueError(f"weight must be [rows, cols], got {list(weight.shape)}")
        grid = grid_shape(weight.shape[0], weight.shape[1], block_size, pad)
        there = padded(weight.detach() != 0, 1, (grid[0] * block_size, grid[1] * block_size))
        blocks = there.view(grid[0], block_size, grid[1], block_size)
        return cls(blocks.any(dim=3).any(dim=1), block_size)

    @property
    def grid(self) -> tuple[int, int]:
        return self.kept.shape[0], self.kept.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) in elements."""
        return self.grid[0] * self.block_size, self.grid[1] * self.block_size

    @property
    def nnzb(self) -> int:
        """Number of kept blocks."""
        return int(self.kept.sum())

    @property
    def num_empty(self) -> int:
        """K: number of empty blocks."""
        return self.kept.numel() - self.nnzb

    @property
    def num_empty_per_row(self) -> Tensor:
        """K_i: int64[grid_rows]."""
        return (~self.kept).sum(dim=1)

    @property
    def sparsity(self) -> float:
        """Achieved rho = K / number of blocks."""
        return self.num_empty / self.kept.numel()

    def expand(self, device: torch.device | str = "cpu") -> Tensor:
        """The element mask, bool[rows, cols]."""
        size = self.block_size
        return self.kept.to(device).repeat_interleave(size, dim=0).repeat_interleave(size, dim=1)

    def inside(self, shape: Sequence[int], gates: int = 1, device: torch.device | str = "cpu") -> Tensor:
        """Which elements of a weight of `shape` are kept, whose gates are each padded to the mask: bool[rows, cols]."""
        return unpadded(self.expand(device), gates, shape)


def padded_share(masks: Mapping[str, BlockMask], shapes: Mapping[str, Sequence[int]], gates: int = 1) -> float:
    """Share of the elements of all kept blocks that is padding; 0 where no block is kept. shapes: of the weights."""
    stored = sum(mask.nnzb * mask.block_size**2 for mask in masks.values())
    if not stored or all(mask.shape == tuple(shapes[name]) for name, mask in masks.items()):
        return 0.0
    return 1.0 - sum(int(mask.inside(shapes[name], gates).sum()) for name, mask in masks.items()) / stored
