"""Products of torch tensors by our CPU kernels: pack, dsd with a matrix or its transpose, sdd.

X and Y are [k, n] and [m, n] in either memory order: as such ("row by row") or as the transposed view of a [n, k]
tensor ("column by column", as activations of a network lie). The output comes in the order of the input.

A step of a sum is one product, or two of bfloat16: their packed operands hold pairs of elements that follow each other
along the sum, in a last dimension of 2. A pair never reaches into the next block: blocks of odd size end with half a
pair and a zero. The sums are float32, rounded once.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.bsr import BSRMatrix
from kernels.native import library as native_library
from kernels.native.library import Matrix, Pool, entry, launch, library, pool_for, structure
from kernels.system.threads import in_force
from kernels.tensors.index import BSRIndex, checked
from kernels.tensors.operands import address, contiguous, require, settled

PACKED_BYTES = 4 * 1024 * 1024  # of X that are packed at a time
CHUNK_BYTES = 512 * 1024  # of X beside one chunk of columns: about half a core's second-level cache
TILE_COLUMNS = 48
MOST_SHAPES = 256  # of x that a weight keeps something of
READ_BEYOND = 16  # scalars after the end of packed operands that kernels may read, and then leave
LONGEST_SUM = 1024  # columns that sdd sums along vectors before it adds those up
OWN_BYTES = 2**20  # of columns that every thread turns for itself, together
WIDEST_SUM = 256  # steps that sdd sums before it goes back to memory

Product = structure(
    "Product", "x y packed", "k n chunk chunks stride x_down x_along down along rooms room", matrix=Matrix, pool=Pool
)
Packing = structure("Packing", "data indptr positions values", "block_size grid_rows lying abreast", pool=Pool)
Sampled = structure(
    "Sampled",
    "grad x x_first blocks sums columns panels indices indptr",
    "grad_down grad_along x_down x_along n first chunk stretch block_size grid_rows grid_cols "
    "along panel_stride column_stride",
    pool=Pool,
)


class ProductPlan(NamedTuple):
    """Of products that differ in values alone: arguments without addresses, sizes of their buffer, multiplications."""

    arguments: bytes
    scratch: tuple[int, ...] | None
    work: int


class Packed(NamedTuple):
    """A matrix or its transpose, [rows, cols], in the order that dsd reads; `keeps` are the buffers behind `matrix`.

    plans: of products with it, by the number of columns and the memory orders.
    """

    matrix: Matrix
    values: Tensor
    keeps: tuple[Tensor, ...]
    rows: int
    cols: int
    plans: dict[tuple[int, bool, bool], ProductPlan]


def by_rows(x: Tensor) -> bool:
    """Whether the memory order is row by row; the other one is column by column."""
    return x.is_contiguous() or not x.mT.is_contiguous()


def plain(x: Tensor) -> Tensor:
    """`x` in one of the two memory orders, copied only where it is in neither."""
    x = settled(x)
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


def pair(dtype: torch.dtype) -> int:
    """Elements of a sum that are added in one step."""
    return 2 if dtype == torch.bfloat16 else 1


def steps_in(dtype: torch.dtype, count: int) -> int:
    """Steps of a sum over `count` elements."""
    return -(-count // pair(dtype))


def empty_packed(dtype: torch.dtype, *shape: int) -> Tensor:
    """Room for `shape` packed elements, or pairs of them."""
    return native_library.empty(shape if pair(dtype) == 1 else (*shape, 2), dtype=dtype)


class Tiling(NamedTuple):
    """How right factors are to lie, how the rows of a block are cut and its values ordered; as in tiles.h."""

    lying: int
    abreast: int


class Shape(NamedTuple):
    """Rows and columns of a block-sparse matrix, and how many elements it keeps; zeros of a layer's, see `pack`."""

    rows: int
    columns: int
    elements: int

    @classmethod
    def of(cls, nnzb: int, size: int, index: BSRIndex, transposed: bool) -> Shape:
        """Of `nnzb` blocks of size x size elements."""
        rows, columns = ((each.numel() - 1) * size for each in (index.indptr, index.column_indptr))
        return cls(*((columns, rows) if transposed else (rows, columns)), nnzb * size**2)


IN_LAYER = Shape(0, 0, 0)


@functools.cache
def tiling_for(dtype: torch.dtype, block_size: int, n: int, lies: bool, shape: Shape = IN_LAYER) -> Tiling:
    """What is fastest for products with n columns that lie, each contiguous, or stand, as the result will."""
    sizes = "block_size", "n", "lies", *Shape._fields
    return Tiling(*(entry("dsd", dtype, name, *sizes)(block_size, n, lies, *shape) for name in Tiling._fields))


def lying_stride(k: int, dtype: torch.dtype) -> int:
    """From column to column of k elements, in steps of a sum: not so that all fall on the same places of a cache."""
    steps, line = steps_in(dtype, k), 64 // (dtype.itemsize * pair(dtype))
    return steps + (line if steps % (32 * line) == 0 else 0)


def row_stride(n: int, dtype: torch.dtype) -> int:
    """The same of rows of n elements, each of which begins a line."""
    line = 64 // dtype.itemsize
    return lying_stride(-(-n // line) * line, dtype)


def pack(
    data: Tensor, index: BSRIndex, n: int, transposed: bool = False, *, lies: bool = False, in_layer: bool = False
) -> Packed:
    """The matrix with blocks `data` [nnzb, b, b], or its transpose, ready for products with n columns, lying or not.

    in_layer: the columns come as tiles want them, so that none are turned.
    """
    index, size = checked(index), max([1, *data.shape[-1:]])
    require("data", data, (index.indices.numel(), size, size), data.dtype, index.indices.device)
    data = contiguous(data)
    shape = Shape.of(data.shape[0], size, index, transposed)
    tiling = tiling_for(data.dtype, size, n, lies, IN_LAYER if in_layer else shape)
    indptr, indices = (index.column_indptr, index.column_rows) if transposed else (index.indptr, index.indices)
    values = empty_packed(data.dtype, data.shape[0] * size + READ_BEYOND, steps_in(data.dtype, size))
    grid_rows = indptr.numel() - 1
    positions = address(index.positions) if transposed else None
    pointers = (address(data), address(indptr), positions, address(values))
    launch("dsd", data.dtype, "pack", Packing(*pointers, size, grid_rows, *tiling, pool_for(data.numel())))
    matrix = Matrix(address(values), address(indices), address(indptr), size, grid_rows, *tiling)
    return Packed(matrix, values[: data.shape[0] * size], (indices, indptr), shape.rows, shape.columns, {})


def packed(
    weight: BSRMatrix, n: int, transposed: bool = False, *, lies: bool = False, in_layer: bool = False
) -> Packed:
    """As `pack`, but once for a frozen weight, and kept with it for the next product.

    Of no other: nothing tells that values have changed. Torch's count of changes in place misses what a fused optimizer
    writes, and what is written through `tensor.data`, numpy or dlpack.
    """
    weight = weight._operand
    kept: dict[tuple[Tiling, bool], Packed] | None = weight._packed
    if kept is None:
        return pack(weight.data, weight.index, n, transposed, lies=lies, in_layer=in_layer)
    shape = IN_LAYER if in_layer else Shape.of(weight.nnzb, weight.block_size, weight.index, transposed)
    tiling = tiling_for(weight.data.dtype, weight.block_size, n, lies, shape)
    found = kept.get((tiling, transposed))
    if found is None:
        found = pack(weight.data, weight.index, n, transposed, lies=lies, in_layer=in_layer)
        kept[tiling, transposed] = found
    return found


def packed_nbytes(weight: BSRMatrix) -> int:
    """Bytes that a frozen weight keeps packed for the products that it was in; 0 of any other."""
    kept: dict[Any, Any] = weight._operand._packed or {}
    found = {id(each): each for each in kept.values() if isinstance(each, Packed)}
    return sum(each.values.numel() * each.values.element_size() for each in found.values())


def chunk_of(k: int, n: int, itemsize: int) -> int:
    """Columns that are multiplied at a time: about half a core's second-level cache, in whole register tiles."""
    widest = max(1, CHUNK_BYTES // (k * itemsize * TILE_COLUMNS)) * TILE_COLUMNS
    return n if n <= 2 * widest else widest


def plan_of(packed: Packed, n: int, x_by_rows: bool, out_by_rows: bool) -> ProductPlan:
    """What products of `packed` with `n` columns, in these memory orders, have in common; kept with it."""
    found = packed.plans.get((n, x_by_rows, out_by_rows))
    if found is None:
        if len(packed.plans) >= MOST_SHAPES:
            packed.plans.clear()
        found = packed.plans[n, x_by_rows, out_by_rows] = _plan(packed, n, x_by_rows, out_by_rows)
    return found


def _plan(packed: Packed, n: int, x_by_rows: bool, out_by_rows: bool) -> ProductPlan:
    dtype, k, matrix = packed.values.dtype, packed.cols, packed.matrix
    chunk = max(1, chunk_of(k, n, dtype.itemsize))
    chunks = max(1, min(-(-n // chunk), PACKED_BYTES // (k * chunk * dtype.itemsize)))
    steps = k // matrix.block_size * steps_in(dtype, matrix.block_size)
    x_strides, out_strides = (
        (n, 1) if rows else (1, lines) for rows, lines in ((x_by_rows, k), (out_by_rows, packed.rows))
    )
    if matrix.lying:
        stride = lying_stride(k, dtype)
        in_place, room = x_strides[0] == 1 and stride == k and pair(dtype) == 1, chunks * chunk * stride
    else:
        in_place, room = x_by_rows and chunk == n and pair(dtype) == matrix.abreast == 1, chunks * steps * chunk
        stride = n if in_place else chunk
    rooms, threads = 1, in_force()  # where more are in force later, they share the first
    if not matrix.lying and chunk * chunks >= n and not x_by_rows and threads * room * dtype.itemsize <= OWN_BYTES:
        rooms = threads
    made = Product(matrix, None, None, None, k, n, chunk, chunks, stride, *x_strides, *out_strides, rooms, room)
    scratch = (rooms * room + READ_BEYOND,) + (2,) * (pair(dtype) > 1)  # as of `empty_packed`
    return ProductPlan(bytes(made), None if in_place else scratch, packed.values.numel() * n)


def product(packed: Packed, x: Tensor, out: Tensor) -> tuple[Any, Tensor | None]:
    """The arguments of `out` = matrix @ `x`, and the buffer that they need. Each of x and out in either order."""
    n, values = x.shape[1], packed.values
    require("x", x, (packed.cols, n), values.dtype, values.device)
    require("out", out, (packed.rows, n), values.dtype, values.device)
    plan = plan_of(packed, n, by_rows(x), by_rows(out))
    scratch = None if plan.scratch is None else native_library.empty(plan.scratch, dtype=x.dtype)
    arguments: Any = Product.from_buffer_copy(plan.arguments)
    arguments.x, arguments.y, arguments.packed = address(x), address(out), address(scratch)
    arguments.pool = pool_for(plan.work)
    return arguments, scratch


def dsd(packed: Packed, x: Tensor) -> Tensor:
    """matrix @ x: [m, n] in the memory order of `x`: [k, n]."""
    x = plain(x)
    out = empty_like_order(x, packed.rows)
    if x.shape[1] == 0:
        require("x", x, (packed.cols, 0), packed.values.dtype, packed.values.device)
        return out
    arguments, _scratch = product(packed, x, out)
    launch("dsd", x.dtype, "dsd", arguments)
    return out


class Repeated(NamedTuple):
    """What a frozen weight keeps of a product with an x of one shape, memory order and type: all but addresses.

    rooms: buffers of the size that it needs, in no use; taken and put back, so that threads have one each.
    """

    run: Callable[..., object]  # of a plan, the addresses of x, the result and the buffer, and threads
    plan: int  # the address of `arguments`
    arguments: ctypes.Structure
    shape: tuple[int, ...]  # of the result as it lies in memory
    turned: bool
    scratch: tuple[int, ...] | None
    most_threads: int
    rooms: list[Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """The product with `x`. ValueError where that has no memory."""
        run, plan, _, shape, turned, size, most, rooms = self
        place = x.data_ptr() or address(x := settled(x))
        out = native_library.empty(shape, dtype=x.dtype)
        if size is None:
            run(plan, place, out.data_ptr(), None, min(in_force(), most))
        else:
            try:
                scratch = rooms.pop()
            except IndexError:
                scratch = native_library.empty(size, dtype=x.dtype)
            run(plan, place, out.data_ptr(), scratch.data_ptr(), min(in_force(), most))
            if not rooms and scratch.nbytes < native_library.SMALLEST:  # larger ones come back to where they are from
                rooms.append(scratch)
        return out.mT if turned else out


def _repeated(matrix: Packed, x: Tensor) -> Repeated:
    rows, n = by_rows(x), x.shape[1]
    plan = plan_of(matrix, n, rows, rows)
    arguments: Any = Product.from_buffer_copy(plan.arguments)
    arguments.pool = pool_for(plan.work)
    run = library("dsd", x.dtype).handle.dsd_again
    run.restype, run.argtypes = None, (*(ctypes.c_void_p,) * 4, ctypes.c_int64)
    shape = (matrix.rows, n) if rows else (n, matrix.rows)
    threads = native_library.threads_worth(plan.work)
    return Repeated(run, ctypes.addressof(arguments), arguments, shape, not rows, plan.scratch, threads, [])


def frozen_dsd(weight: BSRMatrix, x: Tensor) -> Tensor:
    """`dsd` of the values of a frozen weight, which `repeated` will know again."""
    matrix = packed(weight, x.shape[1], lies=not by_rows(x))
    if x.shape[1] and x is plain(x):
        _keep(weight, (x.shape, x.stride(), x.dtype), (matrix, _repeated(matrix, x)))
    return dsd(matrix, x)


def _keep(weight: BSRMatrix, key: tuple[Any, ...], value: tuple[Packed, Repeated]) -> None:
    kept: dict[Any, Any] = weight.__dict__["_packed"]
    if len(kept) >= MOST_SHAPES:
        kept.clear()  # what is packed, too
    kept[key] = value


def repeated(weight: BSRMatrix, x: Tensor) -> Tensor | None:
    """`frozen_dsd` where it was asked before of an `x` like this one, at a third of its price; else None.

    A small product takes less time than looking at its operands: what they must be is known by shape, strides and type.
    """
    kept: dict[Any, tuple[Packed, Repeated]] = weight.__dict__["_packed"]
    found = kept.get((x.shape, x.stride(), x.dtype))
    if found is None or not x.is_cpu:
        return None
    return found[1](settled(x) if x.is_neg() or x.is_conj() else x)


def repeated_rows(weight: BSRMatrix, x: Tensor) -> Tensor | None:
    """The same for x [..., k] that lies row by row, as [..., m]: no view of either is made."""
    kept: dict[Any, tuple[Packed, Repeated]] = weight.__dict__["_packed"]
    key = x.shape, x.stride(), x.dtype, "rows"
    found = kept.get(key) or _known_by_columns(kept, x)
    if found is None or not x.is_cpu:
        return None
    if key not in kept:
        _keep(weight, key, found)
    return found[1](settled(x) if x.is_neg() or x.is_conj() else x)


def _known_by_columns(kept: dict[Any, tuple[Packed, Repeated]], x: Tensor) -> tuple[Packed, Repeated] | None:
    """What `repeated` knows of the columns that the rows of `x` are, if its result lies as [..., m]."""
    if x.ndim < 2 or not x.is_contiguous() or not x.numel():
        return None
    like = (x if x.ndim == 2 and x.shape[0] > 1 else x.view(-1, x.shape[-1])).mT  # one row: with strides as any other's
    found = kept.get((like.shape, like.stride(), x.dtype))
    if found is None or not (found[1].turned or 1 in (like.shape[1], found[0].rows)):
        return None
    matrix, product = found
    return matrix, product._replace(shape=(*x.shape[:-1], matrix.rows), turned=False, rooms=[])


class Panels(NamedTuple):
    """A gradient [m, n] as sdd reads it, of `empty_panels`.

    values: [m / b * padded b, steps of n]; or where sdd sums along n, rows so far apart as `stride` is, which is not 0.
    """

    values: Tensor
    n: int
    stride: int


@functools.cache
def sums_along(dtype: torch.dtype, size: int, n: int) -> bool:
    """Whether sdd of blocks of that size sums along vectors of n."""
    return bool(entry("sdd", dtype, "along", "block_size", "n")(size, n))


def empty_panels(rows: int, n: int, size: int, dtype: torch.dtype) -> Panels:
    """Room for a gradient of `rows` rows in block rows of `size`."""
    if sums_along(dtype, size, n):
        stride = row_stride(n, dtype)
        return Panels(native_library.empty((rows, stride), dtype=dtype), n, stride)
    height = entry("sdd", dtype, "sampled_height", "block_size")(size)
    return Panels(empty_packed(dtype, rows // size * height, steps_in(dtype, n)), n, 0)


class Sampling(NamedTuple):
    """How sdd goes: columns at a time, and the buffers that it needs beside a gradient that is none of `Panels`."""

    chunk: int
    stretch: int
    sums: Tensor | None
    columns: Tensor | None
    column_stride: int
    panels: Tensor | None
    panel_stride: int


def _along(grad: Tensor | Panels, x: Tensor, index: BSRIndex, size: int, n: int, turned: bool) -> Sampling:
    """Sums along vectors: rows that are not where they can be read are turned."""
    chunk = -(-n // -(-n // LONGEST_SUM))
    stride, rows, cols = row_stride(chunk, x.dtype), index.indptr.numel() - 1, index.column_indptr.numel() - 1
    stretch = max(1, min(cols, CHUNK_BYTES // (size * chunk * x.element_size())))
    columns = native_library.empty((cols * size, stride), dtype=x.dtype) if turned else None
    if not isinstance(grad, Tensor):
        return Sampling(chunk, stretch, None, columns, stride, _of_rows(grad, rows, size, size, x.dtype), grad.stride)
    panels = None if by_rows(grad) else native_library.empty((rows * size, stride), dtype=x.dtype)
    return Sampling(chunk, stretch, None, columns, stride, panels, stride)


def _across(grad: Tensor | Panels, x: Tensor, index: BSRIndex, size: int, n: int, blocks: Tensor) -> Sampling:
    """Vectors of the columns of blocks."""
    width, height = (entry("sdd", x.dtype, f"sampled_{name}", "block_size")(size) for name in ("width", "height"))
    rows, cols, steps = index.indptr.numel() - 1, index.column_indptr.numel() - 1, steps_in(x.dtype, n)
    steps = -(-steps // -(-steps // WIDEST_SUM))
    chunk = steps * pair(x.dtype)
    stretch = max(1, min(cols, CHUNK_BYTES // (width * chunk * x.element_size())))
    columns = empty_packed(x.dtype, cols * width, steps)
    sums = native_library.empty(blocks.shape, dtype=torch.float32) if chunk < n and pair(x.dtype) > 1 else None
    if isinstance(grad, Tensor):
        panels = empty_packed(x.dtype, rows * height, steps_in(x.dtype, chunk))
    else:
        panels = _of_rows(grad, rows, height, size, x.dtype)
    return Sampling(chunk, stretch, sums, columns, 0, panels, 0)


def _of_rows(grad: Panels, rows: int, height: int, size: int, dtype: torch.dtype) -> Tensor:
    """The values of panels, `height` rows of each block row. ValueError where they are of another gradient."""
    if grad.values.shape[0] != rows * height or grad.values.dtype != dtype:
        raise ValueError(f"grad must have {rows} block rows of {dtype} in blocks of {size}")
    return grad.values


def sampled(
    grad: Tensor | Panels, x: Tensor, index: BSRIndex, size: int, blocks: Tensor, first: Tensor | None = None
) -> tuple[ctypes.Structure, tuple[Tensor, ...]]:
    """The arguments of `blocks` [nnzb, b, b] = the kept blocks of `grad` @ [`first`, `x`]^T, and the buffers they need.

    `first` and `x` lie column by column where `first` is given.
    """
    index, head = checked(index), 0 if first is None else first.shape[1]
    n = grad.shape[1] if isinstance(grad, Tensor) else grad.n
    _check_sampled(grad, x, index, size, first, n)
    pool = pool_for(index.indices.numel() * size**2 * n)
    along = bool(grad.stride) if isinstance(grad, Panels) else sums_along(x.dtype, size, n)
    turned = first is not None or not by_rows(x)
    how = _along(grad, x, index, size, n, turned) if along else _across(grad, x, index, size, n, blocks)
    taken = (grad, strides(grad)) if isinstance(grad, Tensor) else (None, (0, 0))
    tensors = (taken[0], x, first, blocks, how.sums, how.columns, how.panels, index.indices, index.indptr)
    pointers = [address(each) for each in tensors]
    x_strides = strides(x) if first is None else (1, x.shape[0])
    grid = index.indptr.numel() - 1, index.column_indptr.numel() - 1
    sizes = (*taken[1], *x_strides, n, head, how.chunk, how.stretch, size, *grid)
    made = Sampled(*pointers, *sizes, along, how.panel_stride, how.column_stride, pool)
    return made, (*(each for each in (how.columns, how.panels, how.sums) if each is not None), *index)


def _check_sampled(grad: Tensor | Panels, x: Tensor, index: BSRIndex, size: int, first: Tensor | None, n: int) -> None:
    """ValueError where the operands of sdd do not fit each other. Of x the columns after those of `first` are read."""
    if size < 1:
        raise ValueError(f"grad must have blocks of at least 1, got {size}")
    alike = x.dtype, index.indptr.device
    rows, cols = ((each.numel() - 1) * size for each in (index.indptr, index.column_indptr))
    if isinstance(grad, Tensor):
        require("grad", grad, (rows, n), *alike)
    if first is None:
        require("x", x, (cols, n), *alike)
    else:
        require("first", first, (cols, first.shape[1]), *alike)
        require("x", x, (cols, x.shape[1]), *alike)
        if x.shape[1] + first.shape[1] < n:
            raise ValueError(f"first and x must have {n} columns together, got {first.shape[1]} and {x.shape[1]}")


def sdd(grad: Tensor | Panels, x: Tensor, index: BSRIndex, size: int, first: Tensor | None = None) -> Tensor:
    """The kept blocks of grad @ x^T, [nnzb, b, b]. grad: [m, n], x: [k, n]; or its first columns in `first`."""
    grad, x = plain(grad) if isinstance(grad, Tensor) else grad, plain(x)
    blocks = native_library.empty((index.indices.numel(), size, size), dtype=x.dtype)
    if (grad.shape[1] if isinstance(grad, Tensor) else grad.n) == 0:
        _check_sampled(grad, x, checked(index), size, first, 0)
        return blocks.zero_()
    arguments, _scratch = sampled(grad, x, index, size, blocks, first)
    launch("sdd", x.dtype, "sdd", arguments)
    return blocks
