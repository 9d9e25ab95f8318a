"""Ranking: which blocks stay, by the scores of all of them and the sparsity wanted.

uniform, erk: each matrix by itself (`bench.pruning.allocation`). gate: each of the four gates of an LSTM matrix by
itself, all with the same share. global: the blocks of all matrices in one order, so that scores must be comparable
between matrices; a matrix may be emptied whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.pruning.allocation import GATES, allocate
from kernels.blockmask import BlockMask


def above(scores: Mapping[str, Tensor], block_size: int, threshold: float) -> dict[str, BlockMask]:
    """The mask of each matrix: every score below the threshold is emptied. scores: [grid_rows, grid_cols] by name."""
    return {name: BlockMask(each >= threshold, block_size) for name, each in scores.items()}


def ranked(scores: Mapping[str, Tensor], block_size: int, sparsity: float, allocation: str) -> dict[str, BlockMask]:
    """The mask of each matrix: the lowest scores are emptied. scores: [grid_rows, grid_cols] by name."""
    if allocation == "global":
        together = torch.cat([each.flatten() for each in scores.values()])
        kept = BlockMask.from_scores(together[None], sparsity, block_size).kept[0]
        parts = torch.split(kept, [each.numel() for each in scores.values()])
        return {
            name: BlockMask(part.view(each.shape), block_size)
            for (name, each), part in zip(scores.items(), parts, strict=True)
        }
    if allocation == "gate":
        return {
            name: BlockMask(
                torch.cat([BlockMask.from_scores(gate, sparsity, block_size).kept for gate in each.chunk(GATES)]),
                block_size,
            )
            for name, each in scores.items()
        }
    shapes = {name: (each.shape[0] * block_size, each.shape[1] * block_size) for name, each in scores.items()}
    shares = allocate(shapes, sparsity, allocation)
    return {name: BlockMask.from_scores(each, shares[name], block_size) for name, each in scores.items()}
