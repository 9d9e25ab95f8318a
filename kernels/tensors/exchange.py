"""Block-sparse matrices as torch and scipy hold them, taken apart into what a `BSRMatrix` is made of, and made of it.

scipy is imported inside functions: who exchanges nothing with it does not load it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.tensors.operands import require_values

LARGEST = torch.iinfo(torch.int32).max
SPARSE = torch.sparse_coo, torch.sparse_csr, torch.sparse_csc  # what torch makes one of torch.sparse_bsr of


class Parts(NamedTuple):
    """The arguments of a `BSRMatrix`."""

    data: Tensor
    indices: Tensor
    indptr: Tensor
    shape: tuple[int, int]


def said_of(weight: object) -> str:
    """What was given in the place of a BSRMatrix, and what makes one of it: the end of an error message."""
    kind = type(weight).__name__
    if isinstance(weight, Tensor) and weight.layout is torch.sparse_bsr:
        return "got a tensor of torch.sparse_bsr; BSRMatrix.from_torch makes one of it"
    if isinstance(weight, Tensor) and weight.layout in SPARSE:
        return f"got a tensor of {weight.layout}; BSRMatrix.from_torch makes one of its to_sparse_bsr((b, b))"
    if hasattr(weight, "tobsr"):
        return f"got scipy's {kind}; BSRMatrix.from_scipy makes one of its tobsr((b, b))"
    return f"got {kind}; BSRMatrix.from_dense makes one of a tensor and a mask"


def refuse_sparse(name: str, weight: object) -> None:
    """ValueError where `weight` is sparse as torch or scipy hold it: it may be dense or a BSRMatrix."""
    if hasattr(weight, "tobsr") or (isinstance(weight, Tensor) and weight.layout in (torch.sparse_bsr, *SPARSE)):
        raise ValueError(f"{name} must be a dense tensor or a BSRMatrix, {said_of(weight)}")


def _as_int32(name: str, given: Tensor) -> Tensor:
    """`given` as int32; ValueError where a number of it does not fit."""
    if given.dtype == torch.int32:
        return given
    if given.numel() and not -LARGEST <= int(given.min()) <= int(given.max()) <= LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, got {int(given.min())} to {int(given.max())}")
    return given.to(torch.int32)


def _require_square(block: Sequence[int], otherwise: str) -> None:
    height, width = block
    if height != width:
        raise ValueError(f"blocks must be square, got {height} x {width}; {otherwise} cuts it into others")


def torch_parts(matrix: Tensor) -> Parts:
    """Of a tensor of torch.sparse_bsr, its values shared. ValueError where it is another one, a batch or not square."""
    if not isinstance(matrix, Tensor) or matrix.layout is not torch.sparse_bsr:
        raise ValueError(f"matrix must be a tensor of torch.sparse_bsr, {_otherwise(matrix)}")
    if matrix.ndim != 2:
        raise ValueError(
            f"matrix must be one matrix, got {list(matrix.shape)}: of a batch, or with dense dimensions; "
            "accepted: a BSRMatrix for each"
        )
    values, indices, indptr = matrix.values(), matrix.col_indices(), matrix.crow_indices()
    require_values("matrix", values)
    _require_square(values.shape[1:], "matrix.to_dense().to_sparse_bsr((b, b))")
    rows, cols = matrix.shape
    return Parts(values, _as_int32("indices", indices), _as_int32("indptr", indptr), (rows, cols))


def _otherwise(matrix: object) -> str:
    """What was given in the place of one of torch.sparse_bsr, and what makes one of it."""
    if not isinstance(matrix, Tensor):
        scipys = "; BSRMatrix.from_scipy takes scipy's" if hasattr(matrix, "tobsr") else ""
        return f"got {type(matrix).__name__}{scipys}"
    if matrix.layout in SPARSE:
        return f"got one of {matrix.layout}; its to_sparse_bsr((b, b)) is one"
    return f"got one of {matrix.layout}; BSRMatrix.from_dense takes a dense one and a mask"


def to_torch(data: Tensor, indices: Tensor, indptr: Tensor, shape: tuple[int, int]) -> Tensor:
    """A tensor of torch.sparse_bsr that shares the values; differentiable in them."""
    return torch.sparse_bsr_tensor(indptr, indices, data, size=shape, check_invariants=False)


def scipy_parts(matrix: Any) -> Parts:
    """Of one of scipy's BSR, copied, blocks in order, those that lie in one place added up. ValueError of another."""
    if getattr(matrix, "format", None) != "bsr" or not hasattr(matrix, "tobsr"):
        of_it = "; its tobsr((b, b)) is one" if hasattr(matrix, "tobsr") else ""
        raise ValueError(f"matrix must be a scipy.sparse.bsr_array or bsr_matrix, got {type(matrix).__name__}{of_it}")
    _require_square(matrix.blocksize, "matrix.tobsr((b, b))")
    own = matrix.copy()
    own.sum_duplicates()
    try:
        data = torch.from_numpy(own.data)
    except TypeError:
        raise ValueError(f"matrix must have a type that torch has, got {matrix.dtype}") from None
    indices, indptr = (
        _as_int32(name, torch.from_numpy(each)) for name, each in (("indices", own.indices), ("indptr", own.indptr))
    )
    rows, cols = (int(size) for size in matrix.shape)
    return Parts(data, indices, indptr, (rows, cols))


def to_scipy(data: Tensor, indices: Tensor, indptr: Tensor, shape: tuple[int, int]) -> Any:
    """A scipy.sparse.bsr_array, copied to the memory of the CPU. ValueError where scipy has no such type."""
    from scipy.sparse import bsr_array

    require_values("data", data)
    if data.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(f"scipy has no products of {data.dtype}; accepted: a matrix with data.float()")
    arrays = (each.detach().resolve_conj().resolve_neg().cpu().numpy() for each in (data, indices, indptr))
    return bsr_array(tuple(arrays), shape=shape, copy=True)
