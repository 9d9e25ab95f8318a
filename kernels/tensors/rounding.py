"""Sizes and shares to whole blocks. Imports no torch, so that a plan can ask."""

from __future__ import annotations


def nearest_multiples(size: int, block_size: int) -> str:
    """'640 or 672': the sizes around `size` that `block_size` divides, for error messages."""
    below, above = size // block_size * block_size, -(-size // block_size) * block_size
    return f"{below} or {above}" if below else f"{above}"


def blocks_to_empty(sparsity: float, num_blocks: int) -> int:
    """How many of `num_blocks` blocks are empty at `sparsity` in [0, 1] (to the nearest block, halves up)."""
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must be a fraction in [0, 1], got {sparsity}")
    return int(sparsity * num_blocks + 0.5)


def in_blocks(shape: tuple[int, int], gates: int, block_size: int) -> tuple[int, int]:
    """`shape` in whole blocks, the rows of each gate by themselves."""
    rows, cols = shape
    return gates * block_size * -(-rows // gates // block_size), block_size * -(-cols // block_size)
