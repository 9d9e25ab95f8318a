"""Allocation: how the sparsity wanted of all prunable weights together is shared out among them.

uniform: every matrix has it. erk: densities in proportion to (rows + cols) / (rows cols), the Erdős–Rényi rule (Mocanu
et al., 1707.04780; Evci et al., 1911.11134), so that small matrices keep more; a matrix that would exceed density 1 is
kept whole, and the others share what that leaves.
"""

from __future__ import annotations

from collections.abc import Mapping

GATES = 4  # of an LSTM matrix, each a quarter of its rows


def allocate(shapes: Mapping[str, tuple[int, int]], sparsity: float, allocation: str) -> dict[str, float]:
    """The sparsity of each weight; weighted by size, their mean is `sparsity`. None falls where `sparsity` rises.

    Of allocation = gate it is that of each gate; of global nobody knows it before scores are: that of all here.
    """
    if allocation != "erk":
        return dict.fromkeys(shapes, sparsity)
    sizes = {name: rows * cols for name, (rows, cols) in shapes.items()}
    wanted = (1.0 - sparsity) * sum(sizes.values())  # elements kept
    whole: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in whole]
        left = max(0.0, wanted - sum(sizes[name] for name in whole))
        scale = (
            left / sum(map(sum, (shapes[name] for name in rest))) if rest else 0.0
        )  # elements kept per row and column
        too_dense = {name for name in rest if scale * sum(shapes[name]) > sizes[name]}
        if not too_dense:
            return {name: 0.0 if name in whole else 1.0 - scale * sum(shapes[name]) / sizes[name] for name in shapes}
        whole |= too_dense
