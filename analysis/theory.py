"""What arithmetic promises: operation counts, speedups, storage and ceilings of block-sparse networks.

rho is the share of empty blocks, in [0, 1]. "Slides" are "Learning Block-Sparse Neural Networks" (Mao, Li, Li,
Margoliash); "blog" is Lei Mao's "Pruning Neural Networks". Nothing here looks at a measurement but `breakeven`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


def _fraction(rho: float) -> float:
    if not 0.0 <= rho <= 1.0:
        raise ValueError(f"sparsity must be a fraction in [0, 1], got {rho}")
    return rho


def speedup(rho: float) -> float:
    """1 / (1 - rho): what a product gains when empty blocks are free, infinite at 1 (slides, "Training Speedup")."""
    return math.inf if _fraction(rho) == 1.0 else 1.0 / (1.0 - rho)


def efficiency(measured: float, predicted: float) -> float:
    """Measured over predicted speedup; NaN where theory has no bound: no block is kept to be efficient at."""
    return measured / predicted if math.isfinite(predicted) else math.nan


def dense_multiplications(m1: int, m2: int, m3: int) -> int:
    """m1 m2 m3 multiplications, and as many additions, in W1[m1, m2] @ W2[m2, m3] (blog, "Tensor Multiplication")."""
    return m1 * m2 * m3


def training_speedup(dense_epochs: float, rhos: Sequence[float]) -> float:
    """T_D / (T_S - sum of rho_t): the gradual-pruning integral (slides, appendix).

    dense_epochs: T_D, epochs of the dense run. rhos: sparsity achieved in each of the T_S epochs of the sparse run.
    """
    cost = len(rhos) - math.fsum(_fraction(rho) for rho in rhos)
    return math.inf if cost <= 0.0 else dense_epochs / cost


RAMPS = ("from the start", "linear", "cubic")


def ramp(kind: str, target: float, at: float, end: float) -> float:
    """The sparsity at share `at` of a run that is pruned to `target` between its begin and share `end` of it.

    'linear': slides, appendix; 'cubic': Zhu and Gupta 2017, equation 1; 'from the start': a pattern before training.
    """
    position = 1.0 if kind == "from the start" else min(at / end, 1.0)
    return target * (1.0 - (1.0 - position) ** 3 if kind == "cubic" else position)


def amdahl_ceiling(pruned: float, other: float, rho: float) -> float:
    """Speedup of a whole forward pass when only `pruned` of its operations shrink by 1 - rho (Amdahl 1967).

    pruned, other: multiply-adds per token of the pruned weights and of everything else (decoder, unpruned matrices).
    """
    remaining = pruned * (1.0 - _fraction(rho)) + other
    return math.inf if remaining == 0.0 else (pruned + other) / remaining


def lstm_multiply_adds(
    embedding_size: int, hidden_size: int, num_layers: int, decoder: str = "tied"
) -> tuple[int, int]:
    """(weight_ih, weight_hh) multiply-adds per token of an LSTM stack embedding -> hidden -> ... -> its decoder.

    Every layer has hidden_size outputs, but under a tied decoder the last, which has embedding_size; four gates each
    (Hochreiter and Schmidhuber 1997 with forget gates; slides, "Block-Sparse LSTM").
    One multiply-add per weight and token.
    """
    last = embedding_size if decoder == "tied" else hidden_size
    sizes = [embedding_size, *[hidden_size] * (num_layers - 1), last]
    weight_ih = sum(4 * out * into for into, out in pairwise(sizes))
    return weight_ih, sum(4 * out * out for out in sizes[1:])


def mlp_multiply_adds(features: int, hidden_size: int, num_layers: int) -> tuple[int, int]:
    """(of the first layer, of those between hidden layers) multiply-adds of an example in an mlp's hidden layers.

    x <- W x + b, one multiply-add a weight; the output layer is not among them.
    """
    return hidden_size * features, (num_layers - 1) * hidden_size**2


def layer_speedup(input_size: int, hidden_size: int, rho: float, scope: str = "all") -> float:
    """What one LSTM layer gains: 1 / (1 - rho) with both weights sparse, Amdahl's ceiling with weight_hh alone.

    Multiply-adds per token: 4 hidden x input of weight_ih, 4 hidden x hidden of weight_hh. scope: 'all' or 'weight_hh'.
    """
    weight_ih, weight_hh = 4 * hidden_size * input_size, 4 * hidden_size * hidden_size
    if scope == "weight_hh":
        return amdahl_ceiling(weight_hh, weight_ih, rho)
    return amdahl_ceiling(weight_ih + weight_hh, 0, rho)


def dense_bytes(rows: int, cols: int, value_bytes: int = 4) -> int:
    """Bytes of a dense matrix (blog, "Dense Tensor Data Structure")."""
    return rows * cols * value_bytes


def coo_bytes(nnz: int, value_bytes: int = 4, index_bytes: int = 4, sides: int = 2) -> int:
    """Bytes of a coordinate list: the sides, then row, column, value of each non-zero (blog, "Sparse Tensor ...").

    sides: how many of them the list has; torch's tensors keep them elsewhere.
    """
    return sides * index_bytes + nnz * (2 * index_bytes + value_bytes)


def csr_bytes(rows: int, nnz: int, value_bytes: int = 4, index_bytes: int = 4) -> int:
    """Bytes of compressed sparse rows: value and column of each non-zero, rows + 1 offsets (Saad 2003, section 3.4)."""
    return nnz * (value_bytes + index_bytes) + (rows + 1) * index_bytes


def bsr_bytes(grid_rows: int, nnzb: int, block_size: int, value_bytes: int = 4, index_bytes: int = 4) -> int:
    """Bytes of block compressed sparse rows: block_size^2 values and a column for each kept block (Saad 2003, 3.4)."""
    return nnzb * (block_size**2 * value_bytes + index_bytes) + (grid_rows + 1) * index_bytes


def stored_bytes(
    form: str,
    rows: int,
    cols: int,
    items: int,
    block_size: int = 1,
    value_bytes: int = 4,
    index_bytes: int = 4,
    sides: int = 0,
) -> int:
    """Bytes of the arrays of a form ('dense', 'coo', 'csr' or 'bsr'): all that tensors hold, unless they have sides.

    items: what is stored one by one, non-zero elements, of bsr kept blocks; of a dense matrix it does not matter.
    """
    return {
        "dense": dense_bytes(rows, cols, value_bytes),
        "coo": coo_bytes(items, value_bytes, index_bytes, sides),
        "csr": csr_bytes(rows, items, value_bytes, index_bytes),
        "bsr": bsr_bytes(rows // block_size, items, block_size, value_bytes, index_bytes),
    }[form]


def storage_crossover(
    layout: str,
    rows: int,
    cols: int,
    block_size: int = 1,
    value_bytes: int = 4,
    index_bytes: int = 4,
    sides: int = 2,
) -> float:
    """Sparsity above which `layout` ('coo', 'csr' or 'bsr') takes fewer bytes than dense; 0 where it always does.

    Bytes are linear in the number of stored items, so the crossing is exact: fixed + items (1 - rho) each = dense.
    """
    size = block_size if layout == "bsr" else 1
    items = (rows // size) * (cols // size)
    fixed, full = (
        stored_bytes(layout, rows, cols, count, size, value_bytes, index_bytes, sides) for count in (0, items)
    )
    density = (dense_bytes(rows, cols, value_bytes) - fixed) / (full - fixed)
    return min(max(1.0 - density, 0.0), 1.0)


def empty_block_share(zero_share: float, block_size: int) -> float:
    """Share of blocks without a non-zero element where elements are zero each by itself: zero_share^(block_size^2)."""
    return float(_fraction(zero_share) ** block_size**2)


NPZ_BYTES = 22 + 16  # of a file: the end of its directory, and two sides of 8 bytes
NPZ_ARRAY_BYTES = 30 + 20 + 46 + 128 + 2 * 16  # of an array: its entries in both directories, header, name in both


def npz_overhead(arrays: int) -> int:
    """Bytes that an uncompressed .npz file adds at most to `arrays` arrays, its two sides and their array among them.

    A zip archive of .npy files, whose header is padded to 128 bytes (numpy.lib.format; PKWARE, APPNOTE 4.3).
    """
    return NPZ_BYTES + (arrays + 1) * NPZ_ARRAY_BYTES


def roofline(peak_flops: float, bandwidth: float, intensity: float) -> float:
    """Attainable FLOP/s: min(peak, bandwidth x intensity) (Williams, Waterman and Patterson 2009).

    peak_flops: FLOP/s. bandwidth: bytes/s. intensity: FLOP per byte moved.
    """
    return min(peak_flops, bandwidth * intensity)


def dsd_intensity(
    m: int, k: int, n: int, block_size: int, nnzb: int, value_bytes: int = 4, index_bytes: int = 4
) -> float:
    """FLOP per byte of Y[m, n] = W[m, k] @ X[k, n] with a BSR weight, every operand moved once (compulsory traffic)."""
    moved = bsr_bytes(m // block_size, nnzb, block_size, value_bytes, index_bytes) + (k + m) * n * value_bytes
    return 2 * nnzb * block_size**2 * n / moved


@dataclass(frozen=True)
class Breakeven:
    """Where a measured speedup crosses 1x. kind: 'crosses', with its sparsity, 'always', 'never' or 'unknown'."""

    kind: str
    sparsity: float | None = None

    def __str__(self) -> str:
        return f"{self.sparsity:.2f}" if self.sparsity is not None else self.kind


def breakeven(sparsities: Sequence[float], speedups: Sequence[float]) -> Breakeven:
    """The sparsity from which on every measured speedup is at least 1x, interpolated from the point below it.

    'always': at least 1x at every measured sparsity. 'never': below 1x at the highest one. 'unknown': nothing measured.
    Time is linear in density (slides, n^2 - K), so the relative time 1 / speedup is what is interpolated.
    """
    points = sorted(zip(sparsities, speedups, strict=True))
    if not points:
        return Breakeven("unknown")
    below = [index for index, (_, value) in enumerate(points) if value < 1.0]
    if not below:
        return Breakeven("always")
    if below[-1] == len(points) - 1:
        return Breakeven("never")
    (low, slow), (high, fast) = points[below[-1]], points[below[-1] + 1]
    share = (1.0 / slow - 1.0) / (1.0 / slow - 1.0 / fast)
    return Breakeven("crosses", low + share * (high - low))
