"""Forms in which a matrix is stored: the tensors of each, the file that holds them, and the product with a dense X.

The forms are those of "Pruning Neural Networks" (Mao), every element or the coordinates of those that are not zero, and
the compressed rows that libraries multiply (Saad, Iterative Methods for Sparse Linear Systems, 2003, section 3.4).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.native.library import describe, library, pool_for
from kernels.native.products import packed_nbytes
from kernels.ops import block_sparse_matmul, kernel_for
from kernels.system.resources import UnsupportedError

Arrays = dict[str, Tensor]  # 'values' and indices by name
Shape = tuple[int, int]
Call = Callable[[], Tensor]
VALUES, SIDES = "values", "shape"
AS_INTEGERS = {torch.bfloat16: torch.int16}  # types that numpy lacks, bit by bit


@dataclass(frozen=True)
class Form:
    """How a matrix is stored.

    taken: the arrays of a dense matrix [m, k] of which a mask keeps blocks, with indices of a type. built: what is
    multiplied, of such arrays and the sides. held: the arrays that it holds. dense: [m, k] again. product: a call that
    multiplies it with X[k, n], and what runs there in words; UnsupportedError where it cannot. packed: bytes that such
    calls keep beside the arrays.
    """

    taken: Callable[[Tensor, BlockMask, torch.dtype], Arrays]
    built: Callable[[Arrays, Shape], Any]
    held: Callable[[Any], Arrays]
    dense: Callable[[Any], Tensor]
    product: Callable[[Any, Tensor], tuple[Call, str]]
    packed: Callable[[Any], int] = lambda _: 0


def nbytes(array: Tensor) -> int:
    """Bytes of the elements."""
    return array.numel() * array.element_size()


def write(path: Path, arrays: Arrays, shape: Shape) -> int:
    """Store the arrays and the sides as an uncompressed .npz file: its bytes."""
    stored = {name: _as_numpy(array) for name, array in arrays.items()}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **{SIDES: np.array(shape)}, **stored)
    return path.stat().st_size


def read(path: Path, dtype: torch.dtype) -> tuple[Arrays, Shape]:
    """What `write` stored of a matrix with values of `dtype`."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    rows, columns = arrays.pop(SIDES).tolist()
    arrays[VALUES] = arrays[VALUES].view(dtype)
    return arrays, (rows, columns)


def _as_numpy(array: Tensor) -> np.ndarray:
    return array.cpu().view(AS_INTEGERS.get(array.dtype, array.dtype)).numpy()


def alike(one: Arrays, other: Arrays) -> bool:
    """Whether two matrices have the same arrays, bit by bit."""
    return one.keys() == other.keys() and all(_same_bits(one[name].cpu(), other[name].cpu()) for name in one)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    bits = torch.uint8
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and (not one.numel() or torch.equal(one.contiguous().view(bits), other.contiguous().view(bits)))


def _every_element(weight: Tensor, _: BlockMask, __: torch.dtype) -> Arrays:
    return {VALUES: weight}


def _values_alone(arrays: Arrays, _: Shape) -> Tensor:
    return arrays[VALUES]


def _coordinates(weight: Tensor, _: BlockMask, __: torch.dtype) -> Arrays:
    indices = weight.nonzero().T.contiguous()
    return {VALUES: weight[indices[0], indices[1]], "coordinates": indices}


def _coo(arrays: Arrays, shape: Shape) -> Tensor:
    coordinates, values = arrays["coordinates"], arrays[VALUES]
    return torch.sparse_coo_tensor(coordinates, values, shape, is_coalesced=True, check_invariants=True)


def _coo_arrays(matrix: Tensor) -> Arrays:
    return {VALUES: matrix.values(), "coordinates": matrix.indices()}


def _compressed_rows(weight: Tensor, _: BlockMask, indices: torch.dtype) -> Arrays:
    rows, columns = weight.nonzero(as_tuple=True)
    offsets = torch.zeros(weight.shape[0] + 1, dtype=torch.int64, device=weight.device)
    offsets[1:] = (weight != 0).sum(dim=1).cumsum(0)
    return {VALUES: weight[rows, columns], "offsets": offsets.to(indices), "columns": columns.to(indices)}


def _csr(arrays: Arrays, shape: Shape) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse .* tensor support is in beta")
        parts = arrays["offsets"], arrays["columns"], arrays[VALUES]
        return torch.sparse_csr_tensor(*parts, size=shape, check_invariants=True)


def _csr_arrays(matrix: Tensor) -> Arrays:
    return {VALUES: matrix.values(), "offsets": matrix.crow_indices(), "columns": matrix.col_indices()}


def _blocks(weight: Tensor, mask: BlockMask, _: torch.dtype) -> Arrays:
    return _bsr_arrays(BSRMatrix.from_dense(weight, mask))


def _bsr(arrays: Arrays, shape: Shape) -> BSRMatrix:
    return BSRMatrix(arrays[VALUES], arrays["columns"], arrays["offsets"], shape).freeze()


def _bsr_arrays(matrix: BSRMatrix) -> Arrays:
    return {VALUES: matrix.data, "offsets": matrix.indptr, "columns": matrix.indices}


def _by_torch(name: str, dtypes: tuple[torch.dtype, ...], matrix: Tensor, x: Tensor) -> tuple[Call, str]:
    """torch.mm, on a CPU where sparse ones have it."""
    if x.dtype not in dtypes:
        raise UnsupportedError(f"torch multiplies no {name} of {str(x.dtype).removeprefix('torch.')} on a CPU")
    if name != "dense" and x.device.type != "cpu":
        raise UnsupportedError(f"products of {name} are measured on the CPU only")
    return partial(torch.mm, matrix, x), f"torch.mm, {name}"


def _by_ours(matrix: BSRMatrix, x: Tensor) -> tuple[Call, str]:
    """Our kernel of the device; its public operator, on a frozen weight."""
    wanted = "native" if x.device.type == "cpu" else "cuda"
    chosen = kernel_for(wanted, x.dtype, x.device, block_size=matrix.block_size, nnzb=matrix.nnzb)
    words = chosen
    if chosen == "native":
        words = describe(library("dsd", x.dtype), pool_for(matrix.data.numel() * x.shape[1]).threads)
    return partial(block_sparse_matmul, matrix, x, chosen), f"{words}, block_sparse_matmul"


EVERY = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FORMS = {
    "dense": Form(_every_element, _values_alone, lambda matrix: {VALUES: matrix}, lambda matrix: matrix,
                  partial(_by_torch, "dense", EVERY)),
    "coo": Form(_coordinates, _coo, _coo_arrays, Tensor.to_dense, partial(_by_torch, "coo", EVERY)),
    "csr": Form(_compressed_rows, _csr, _csr_arrays, Tensor.to_dense,
                partial(_by_torch, "csr", (torch.float32, torch.float64))),
    "bsr": Form(_blocks, _bsr, _bsr_arrays, BSRMatrix.to_dense, _by_ours, packed_nbytes),
}  # fmt: skip
