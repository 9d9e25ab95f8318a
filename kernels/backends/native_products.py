"""Products of torch tensors by our CPU kernels: pack, dsd with a matrix or its transpose, sdd.

X and Y are [k, n] and [m, n] in either memory order: as such ("row by row") or as the transposed view of a [n, k] tensor
("column by column", as activations of a network lie). The output comes in the order of the input.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.backends import native_library
from kernels.backends.native_library import Matrix, Pool, entry, launch, pool_for, structure
from kernels.bsr import BSRIndex

CHUNK_BYTES = 512 * 1024  # of X beside one chunk of columns: about half a core's second-level cache
TILE_COLUMNS = 48

Product = structure("Product", "x y packed", "k n chunk x_down x_along down along", matrix=Matrix, pool=Pool)
Packing = structure("Packing", "data indptr positions values", "block_size grid_rows panel_rows", pool=Pool)
Sampled = structure(
    "Sampled",
    "grad x blocks columns panels indices indptr",
    "grad_down grad_along x_down x_along n chunk block_size width grid_rows grid_cols",
    pool=Pool,
)


class Packed(NamedTuple):
    """A matrix or its transpose in the order that dsd reads; `keeps` are the buffers behind `matrix`."""

    matrix: Matrix
    values: Tensor
    keeps: tuple[Tensor, ...]


def pointer(tensor: Tensor) -> int | None:
    """Address of the elements, None where there are none."""
    return tensor.data_ptr() or None


def by_rows(x: Tensor) -> bool:
    """Whether the memory order is row by row; the other one is column by column."""
    return x.is_contiguous() or not x.mT.is_contiguous()


def plain(x: Tensor) -> Tensor:
    """`x` in one of the two memory orders, copied only where it is in neither."""
    return x if x.mT.is_contiguous() else x.contiguous()


def strides(x: Tensor) -> tuple[int, int]:
    """(from row to row, from column to column) in elements."""
    return (x.shape[1], 1) if by_rows(x) else (1, x.shape[0])


def empty_like_order(x: Tensor, rows: int) -> Tensor:
    """[rows, n], uninitialised, in the memory order of `x`: [k, n]."""
    n = x.shape[1]
    return (
        native_library.empty((rows, n), dtype=x.dtype)
        if by_rows(x)
        else native_library.empty((n, rows), dtype=x.dtype).mT
    )


def tiles_for(dtype: torch.dtype, block_size: int, n: int) -> tuple[int, int]:
    """(vectors of a tall tile or 0 for wide ones, rows of a panel)."""
    tall = entry("dsd", dtype, "tall_vectors", "block_size", "n")(block_size, n)
    return tall, entry("dsd", dtype, "panel_rows", "block_size", "vectors")(block_size, tall)


def pack(data: Tensor, index: BSRIndex, n: int, turned: bool = False) -> Packed:
    """The matrix with blocks `data` [nnzb, b, b], or its transpose, ready for products with n columns."""
    data, size = data.contiguous(), data.shape[1]
    tall, panel_rows = tiles_for(data.dtype, size, n)
    indptr, indices = (index.column_indptr, index.column_rows) if turned else (index.indptr, index.indices)
    values = native_library.empty((data.shape[0] * -(-size // panel_rows), size, panel_rows), dtype=data.dtype)
    grid_rows = indptr.numel() - 1
    positions = pointer(index.positions) if turned else None
    pointers = (pointer(data), pointer(indptr), positions, pointer(values))
    launch("dsd", data.dtype, "pack", Packing(*pointers, size, grid_rows, panel_rows, pool_for(values.numel())))
    matrix = Matrix(pointer(values), pointer(indices), pointer(indptr), size, grid_rows, panel_rows, tall)
    return Packed(matrix, values, (indices, indptr))


def chunk_of(k: int, n: int, itemsize: int) -> int:
    """Columns that are multiplied at a time: about half a core's second-level cache, in whole register tiles."""
    widest = max(1, CHUNK_BYTES // (k * itemsize * TILE_COLUMNS)) * TILE_COLUMNS
    return n if n <= 2 * widest else widest


def product(packed: Packed, x: Tensor, out: Tensor) -> tuple[ctypes.Structure, tuple[Tensor, ...]]:
    """The arguments of `out` = matrix @ `x`, and the buffers that they need. Each of x and out in either order."""
    k, n = x.shape
    chunk = chunk_of(k, n, x.element_size())
    scratch = () if by_rows(x) and chunk == n else (native_library.empty((k, chunk), dtype=x.dtype),)
    pointers = (packed.matrix, pointer(x), pointer(out), pointer(scratch[0]) if scratch else None)
    pool = pool_for(packed.values.numel() * n)
    return Product(*pointers, k, n, chunk, *strides(x), *strides(out), pool), scratch


def dsd(packed: Packed, x: Tensor) -> Tensor:
    """matrix @ x: [m, n] in the memory order of `x`: [k, n]."""
    x = plain(x)
    out = empty_like_order(x, packed.matrix.grid_rows * packed.matrix.block_size)
    arguments, _scratch = product(packed, x, out)
    launch("dsd", x.dtype, "dsd", arguments)
    return out


def sdd(grad: Tensor, x: Tensor, index: BSRIndex, size: int) -> Tensor:
    """The kept blocks of grad @ x^T, [nnzb, b, b]. grad: [m, n], x: [k, n]."""
    grad, x = plain(grad), plain(x)
    n, pool = x.shape[1], pool_for(index.indices.numel() * size**2 * x.shape[1])
    blocks = native_library.empty((index.indices.numel(), size, size), dtype=x.dtype)
    if n == 0:
        return blocks.zero_()
    width, rows = (entry("sdd", x.dtype, name, "block_size")(size) for name in ("sampled_width", "panel_rows_together"))
    grid_rows, grid_cols = index.indptr.numel() - 1, index.column_indptr.numel() - 1
    chunk = min(n, max(16, CHUNK_BYTES // (grid_cols * width * x.element_size())))
    columns = native_library.empty((grid_cols, chunk, width), dtype=x.dtype)
    panels = native_library.empty((pool.threads, rows, chunk), dtype=x.dtype)
    pointers = [pointer(each) for each in (grad, x, blocks, columns, panels, index.indices, index.indptr)]
    sizes = (*strides(grad), *strides(x), n, chunk, size, width, grid_rows, grid_cols)
    launch("sdd", x.dtype, "sdd", Sampled(*pointers, *sizes, pool))
    return blocks
