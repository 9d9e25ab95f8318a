"""Weights of which pruning leaves nothing: so few blocks that the target, to the nearest block, empties them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeGuard

from bench.cells import Cell, TimedCell, TrainCell
from bench.pruning.allocation import GATES, allocate
from kernels.tensors.rounding import blocks_to_empty


def has_grids(cell: Cell) -> TypeGuard[TimedCell | TrainCell]:
    """Whether a cell prunes weights, and so has the settings of that."""
    return bool(cell.grids())


def emptied(cell: TimedCell | TrainCell) -> list[str]:
    """The weights of which a target below 1 leaves no block: 'weight_hh_l0 (4 blocks)'."""
    found, target = cell.grids(), cell.target_sparsity
    if target == 1.0 or not found:
        return []
    sizes = {name: (rows * cell.block_size, columns * cell.block_size) for name, (rows, columns) in found.items()}
    allocation = getattr(cell, "allocation", "uniform")
    if allocation == "global":  # then the scores decide
        return []
    shares = allocate(sizes, target, allocation)
    parts = GATES if allocation == "gate" else 1
    counts = {name: rows * columns for name, (rows, columns) in found.items()}
    return [
        f"{name} ({count} blocks)"
        for name, count in counts.items()
        if parts * blocks_to_empty(shares[name], count // parts) == count
    ]


def warnings(cells: Sequence[Cell]) -> list[str]:
    """Lines for a plan, one for each way in which targets leave nothing of a weight."""
    found = Counter(
        (cell.block_size, cell.target_sparsity, ", ".join(names))
        for cell in cells
        if has_grids(cell) and (names := emptied(cell))
    )
    return [
        f"warning: target_sparsity {target:g} at block_size {size} leaves no block of {names} in {count} "
        f"cell{'s' if count > 1 else ''}: smaller blocks or a lower target keep some"
        for (size, target, names), count in found.items()
    ]
