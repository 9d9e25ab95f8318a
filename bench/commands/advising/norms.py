"""What pruning by magnitude takes away of a weight: the share of its squared norm in the blocks that go."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from bench.cells import number
from bench.commands.advising.layers import GATES, Layer, Timing
from bench.commands.advising.weights import Weights
from kernels.sparsify import CRITERIA
from kernels.tensors.padding import in_blocks, padded
from kernels.tensors.rounding import blocks_to_empty

DRAWS = 5  # of blocks at random, whose mean is the control


class Lost(NamedTuple):
    """Shares of the squared norm of a layer's weights that go: by magnitude, and of as many blocks at random."""

    by_magnitude: float
    at_random: float


def lost_shares(
    layer: Layer, weights: Weights, found: Timing, block_size: int, sparsities: Sequence[float]
) -> list[Lost | None]:
    """A share for each sparsity, each weight pruned by itself as `sparsify` does; None without values, or finite ones.

    A weight that stays dense is not in it.
    """
    if not weights or found.reason:
        return [None] * len(sparsities)
    generator = torch.Generator().manual_seed(0)
    totals, losses = 0.0, [[0.0, 0.0] for _ in sparsities]
    for name, weight in weights.items():
        if found.scope == "weight_hh" and "_hh" not in name:
            continue
        norms = _block_norms(weight, GATES.get(layer.kind, 1), block_size).flatten()
        totals += float(norms.sum())
        ordered = norms.sort().values.cumsum(0)
        orders = [norms[torch.randperm(len(norms), generator=generator)].cumsum(0) for _ in range(DRAWS)]
        for loss, sparsity in zip(losses, sparsities, strict=True):
            empty = blocks_to_empty(sparsity, len(norms))
            if empty:
                loss[0] += float(ordered[empty - 1])
                loss[1] += fmean(float(order[empty - 1]) for order in orders)
    return [Lost(by / totals, at / totals) if totals and isfinite(totals) else None for by, at in losses]


def not_finite(name: str, weights: Weights) -> str:
    """A line where values of the weights of that layer are NaN or infinite; nothing where none is."""
    count = sum(int((~weight.detach().isfinite()).sum()) for weight in weights.values())
    return f"{number(count, 'value')} of {name} not finite: what pruning takes away of it is not known" if count else ""


def _block_norms(weight: Tensor, gates: int, block_size: int) -> Tensor:
    """Squared norm of every block, [grid_rows, grid_cols], of a weight filled up to whole blocks."""
    rows, cols = weight.shape
    whole = padded(weight.detach().float(), gates, in_blocks((rows, cols), gates, block_size))
    return CRITERIA["l2"](whole, block_size).double().cpu()


def stored_bytes(layer: Layer, found: Timing, block_size: int, sparsity: float) -> int:
    """Bytes of a layer's weights in float32: kept blocks and int32 indices, of all layers alike; biases not counted."""
    gates, total = GATES.get(layer.kind, 1), 0
    for place, side in enumerate(layer.sides):
        if found.reason or (found.scope == "weight_hh" and place == 0):
            total += 4 * side[0] * side[1]
            continue
        rows, cols = in_blocks(side, gates, block_size)
        blocks = (rows // block_size) * (cols // block_size)
        kept = blocks - blocks_to_empty(sparsity, blocks)
        total += kept * (4 * block_size**2 + 4) + 4 * (rows // block_size + 1)
    return layer.count * total
