"""Weights of which pruning leaves nothing: so few blocks that the target, to the nearest block, empties them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from bench.cells import Cell, GemmCell, LstmCell, TrainCell
from bench.pruning.allocation import allocate
from kernels.rounding import blocks_to_empty

Grids = dict[str, tuple[int, int]]


def grids(cell: GemmCell | LstmCell | TrainCell) -> Grids:
    """Blocks along both sides of each weight that a cell prunes, by torch's names."""
    if isinstance(cell, GemmCell):
        return {"the weight": (cell.m // cell.block_size, cell.k // cell.block_size)}
    if isinstance(cell, LstmCell):
        return _layers(cell, [cell.input_size, cell.hidden_size])
    if not cell.prunes:
        return {}
    return _layers(cell, cell.layer_widths)


def _layers(cell: LstmCell | TrainCell, widths: Sequence[int]) -> Grids:
    found: Grids = {}
    for number, (into, out) in enumerate(pairwise(widths)):
        kinds = {"weight_ih": into, "weight_hh": out} if cell.scope == "all" else {"weight_hh": out}
        for name, columns in kinds.items():
            found[f"{name}_l{number}"] = 4 * out // cell.block_size, columns // cell.block_size
    return found


def emptied(cell: GemmCell | LstmCell | TrainCell) -> list[str]:
    """The weights of which a target below 1 leaves no block: 'weight_hh_l0 (4 blocks)'."""
    found, target = grids(cell), cell.target_sparsity
    if target == 1.0 or not found:
        return []
    sizes = {name: (rows * cell.block_size, columns * cell.block_size) for name, (rows, columns) in found.items()}
    shares = allocate(sizes, target, getattr(cell, "allocation", "uniform"))
    counts = {name: rows * columns for name, (rows, columns) in found.items()}
    return [
        f"{name} ({count} blocks)" for name, count in counts.items() if blocks_to_empty(shares[name], count) == count
    ]


def warnings(cells: Sequence[Cell]) -> list[str]:
    """Lines for a plan, one for each way in which targets leave nothing of a weight."""
    found = Counter(
        (cell.block_size, cell.target_sparsity, ", ".join(names))
        for cell in cells
        if isinstance(cell, GemmCell | LstmCell | TrainCell) and (names := emptied(cell))
    )
    return [
        f"warning: target_sparsity {target:g} at block_size {size} leaves no block of {names} in {count} "
        f"cell{'s' if count > 1 else ''}: smaller blocks or a lower target keep some"
        for (size, target, names), count in found.items()
    ]
