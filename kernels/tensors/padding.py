"""Padding: zeros behind a tensor's rows and columns, so that blocks divide it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from kernels.tensors.rounding import in_blocks as in_blocks


def padded(x: Tensor, gates: int, shape: Sequence[int]) -> Tensor:
    """`x` with zeros at the end of each of its gates' rows, and of its columns, where it has any, up to `shape`."""
    if x.shape == tuple(shape):
        return x
    below = (shape[0] - x.shape[0]) // gates
    sides = (0, shape[1] - x.shape[1], 0, below) if x.ndim > 1 else (0, below)
    return F.pad(x.reshape(gates, -1, *x.shape[1:]), sides).flatten(0, 1)


def unpadded(x: Tensor, gates: int, shape: Sequence[int]) -> Tensor:
    """What `padded` was given: `shape` of `x`, the first rows of each gate and the first columns."""
    if x.shape == tuple(shape):
        return x
    inside = x.reshape(gates, -1, x.shape[1])[:, : shape[0] // gates, : shape[1]]
    return inside.reshape(*shape)


def widened(x: Tensor, features: int) -> Tensor:
    """`x` [..., features or less] with zeros behind."""
    return x if x.shape[-1] == features else F.pad(x, (0, features - x.shape[-1]))


def heightened(x: Tensor, rows: int) -> Tensor:
    """`x` [rows or less, n] with zeros below, in its memory order: row by row, or column by column."""
    if x.shape[0] == rows:
        return x
    if x.mT.is_contiguous() and not x.is_contiguous():
        return widened(x.mT, rows).mT
    return F.pad(x, (0, 0, 0, rows - x.shape[0]))


def shortened(y: Tensor, rows: int) -> Tensor:
    """The first `rows` of `y`, in its memory order; copied where they are no stretch of memory."""
    if y.is_contiguous() or not y.mT.is_contiguous():
        return y[:rows]
    return y.mT[:, :rows].contiguous().mT
