"""What the wgmma kernels gather: lists of kept blocks by groups of rows, made from a pattern on its own device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.bsr import BSRIndex


class Listed(NamedTuple):
    """By row group (`rows` rows of the output): the block columns that any of its block rows keeps, ascending. All int32.

    order: [groups], by falling length; first: [groups + 1], where a group's columns begin; columns: [listed];
    blocks: [listed, block rows of a group], the block's number in the values or -1.
    """

    order: Tensor
    first: Tensor
    columns: Tensor
    blocks: Tensor


def list_columns(index: BSRIndex, block_size: int, rows: int, turned: bool = False) -> Listed:
    """What a CTA of `rows` rows gathers, of the matrix with pattern `index` or of its transpose."""
    slots = rows // block_size
    if turned:
        grid_rows, grid_cols = index.column_indptr.numel() - 1, index.indptr.numel() - 1
        every = torch.arange(grid_rows, device=index.indptr.device)
        row, column, block = every.repeat_interleave(index.column_indptr.diff()), index.column_rows, index.positions
    else:
        grid_rows, grid_cols = index.indptr.numel() - 1, index.column_indptr.numel() - 1
        row, column, block = (
            index.rows.long(),
            index.indices,
            torch.arange(index.rows.numel(), device=index.rows.device),
        )
    groups = -(-grid_rows // slots)
    keys, place = torch.unique(row // slots * grid_cols + column, return_inverse=True)
    counts = torch.bincount(keys // grid_cols, minlength=groups)
    blocks = torch.full((keys.numel(), slots), -1, dtype=torch.int32, device=row.device)
    blocks[place, row % slots] = block.to(torch.int32)
    first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    order = torch.argsort(counts, descending=True, stable=True)
    return Listed(*(each.to(torch.int32) for each in (order, first, keys % grid_cols)), blocks)


def cut_columns(listed: Listed, most: int) -> Tensor:
    """Groups cut into tasks of at most `most` listed columns, about equal in a group: int32[tasks, 3].

    Of each its group, where its columns begin in the list, and how many they are.
    """
    counts = listed.first.diff().long()
    pieces = (counts + most - 1) // most
    size = (counts + pieces - 1) // pieces.clamp(min=1)
    group = torch.arange(counts.numel(), device=counts.device).repeat_interleave(pieces)
    number = torch.arange(group.numel(), device=counts.device) - (pieces.cumsum(0) - pieces)[group]
    begin = number * size[group]
    tasks = (group, listed.first.long()[group] + begin, torch.minimum(size[group], counts[group] - begin))
    return torch.stack(tasks, dim=1).to(torch.int32).contiguous()
