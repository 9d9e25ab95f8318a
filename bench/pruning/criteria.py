"""Criteria: a score for every block of a weight; the lowest are pruned first.

A criterion is `(weight, block_size, generator) -> scores`, weight [rows, cols] -> scores [grid_rows, grid_cols]. Only
`random` draws from the generator. Blocks of one matrix have one size, so l2 and rms rank alike within a matrix:
they are one cell, that of l2.
"""

# ruff: noqa: ARG001  (all members have one signature)

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kernels.registry import Registry

if TYPE_CHECKING:
    from torch import Generator, Tensor

    Criterion = Callable[[Tensor, int, Generator], Tensor]

CRITERIA: Registry[Criterion] = Registry("criterion")


def as_blocks(weight: Tensor, block_size: int) -> Tensor:
    """A view with the blocks' elements on dimensions 1 and 3. [rows, cols] -> [grid_rows, b, grid_cols, b]."""
    rows, cols = weight.shape
    return weight.view(rows // block_size, block_size, cols // block_size, block_size)


@CRITERIA.register
def l2(weight: Tensor, block_size: int, generator: Generator) -> Tensor:
    """Euclidean norm (the slides' choice)."""
    return as_blocks(weight, block_size).square().sum(dim=(1, 3)).sqrt()


@CRITERIA.register
def l1(weight: Tensor, block_size: int, generator: Generator) -> Tensor:
    """Sum of magnitudes."""
    return as_blocks(weight, block_size).abs().sum(dim=(1, 3))


@CRITERIA.register
def max(weight: Tensor, block_size: int, generator: Generator) -> Tensor:
    """Largest magnitude (Narang et al., 1711.02782)."""
    return as_blocks(weight, block_size).abs().amax(dim=(1, 3))


@CRITERIA.register
def rms(weight: Tensor, block_size: int, generator: Generator) -> Tensor:
    """Root of the mean square: l2 per element, comparable between block sizes."""
    return as_blocks(weight, block_size).square().mean(dim=(1, 3)).sqrt()


@CRITERIA.register
def random(weight: Tensor, block_size: int, generator: Generator) -> Tensor:
    """Uniform noise, drawn on the CPU: the control."""
    import torch  # here, for naming the criteria must not load it

    rows, cols = weight.shape
    drawn = torch.empty(rows // block_size, cols // block_size, dtype=weight.dtype).uniform_(generator=generator)
    return drawn.to(weight.device)
