"""BSRIndex: where the blocks of a pattern lie, looked at once before kernels trust it, and nobody else's memory.

Kernels neither look where `indptr` and `indices` point nor sort them, and whoever sees a tensor may write to it in ways
that torch does not count. So an index is derived from copies and checked, and kernels read copies of it that nobody
else sees: they are found by where the index lies. One that comes from elsewhere is checked at every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from kernels.tensors.operands import contiguous, require_room, require_values
from kernels.tensors.tracing import moded

_functorch = torch._C._functorch


class BSRIndex(NamedTuple):
    """Where the blocks lie, by block row (`rows` beside `indices`) and by block column.

    Block row i holds the blocks indptr[i] to indptr[i + 1], in the block columns `indices`; block column j the blocks
    `positions[column_indptr[j]:column_indptr[j + 1]]`, in the block rows `column_rows`. All int32 and contiguous.
    """

    indptr: Tensor
    indices: Tensor
    rows: Tensor
    column_indptr: Tensor
    column_rows: Tensor
    positions: Tensor


class _OwnCopy:
    """What kernels read of a derived index, for as long as its `indptr` is there."""

    def __init__(self, index: BSRIndex) -> None:
        self.index = BSRIndex(*(each.clone() for each in index))
        self.others = index[1:]  # so that all live as long as the one that holds this


# By where the derived index lies and how long it is.
_own_copies: WeakValueDictionary[tuple[int, ...] | None, _OwnCopy] = WeakValueDictionary()


@contextmanager
def unobserved() -> Iterator[None]:
    """Inside, what is made may outlive what is going on: no inference mode, dispatch mode or transform sees it."""
    if is_dynamo_compiling():
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        if moded():
            from torch.utils._python_dispatch import _disable_current_modes

            stack.enter_context(_disable_current_modes())
        if _functorch.peek_interpreter_stack() is not None:
            from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

            stack.enter_context(temporarily_clear_interpreter_stack())
        yield


def plain(name: str, given: Tensor) -> Tensor:
    """`given` as it is outside transforms that only watch it; ValueError where it is no plain tensor with values."""
    require_values(name, given)
    if is_dynamo_compiling():
        return given
    while _functorch.is_functorch_wrapped_tensor(given) and not _functorch.is_batchedtensor(given):
        given = _functorch.get_unwrapped(given)
    if type(given) not in (Tensor, Parameter) or _functorch.is_functorch_wrapped_tensor(given):
        kind = "one of vmap's" if type(given) in (Tensor, Parameter) else f"a {type(given).__name__}"
        raise ValueError(f"{name} must be a plain tensor, got {kind}")
    require_room(name, given)
    return given


def _own(name: str, given: Tensor) -> Tensor:
    """A copy that nobody else holds: int32, row by row."""
    given = plain(name, given)
    if given.dtype != torch.int32 or given.ndim != 1:
        raise ValueError(f"{name} must be int32 of one dimension, got {given.dtype} {list(given.shape)}")
    return contiguous(given.detach().clone())


def _check(indptr: Tensor, indices: Tensor, grid_cols: int) -> None:
    """ValueError where they are no pattern of a matrix with `grid_cols` block columns."""
    count = indices.numel()
    if indptr.numel() < 2 or indptr[[0, -1]].tolist() != [0, count] or bool((indptr.diff() < 0).any()):
        raise ValueError(f"indptr must rise from 0 to {count}, the number of blocks in data")
    if bool(((indices < 0) | (indices >= grid_cols)).any()):
        raise ValueError(f"indices must lie in [0, {grid_cols}), the number of block columns")
    begins_a_row = torch.zeros(count + 1, dtype=torch.bool, device=indices.device)
    begins_a_row[indptr.long()] = True
    if bool(((indices.diff() <= 0) & ~begins_a_row[1:-1]).any()):
        raise ValueError("indices must ascend within each block row")


def derive(indptr: Tensor, indices: Tensor, grid_cols: int) -> BSRIndex:
    """The index of a pattern, of copies; ValueError where they point outside the matrix or are not in order."""
    if grid_cols < 1:
        raise ValueError(f"column_indptr must have at least 2 elements, got {grid_cols + 1}")
    with unobserved():
        indptr, indices = _own("indptr", indptr), _own("indices", indices)
        if indptr.device != indices.device:
            raise ValueError(f"indptr is on {indptr.device} and indices on {indices.device}: not on one device")
        _check(indptr, indices, grid_cols)
        rows = torch.arange(indptr.numel() - 1, dtype=torch.int32, device=indptr.device)
        rows = rows.repeat_interleave(indptr.diff(), output_size=indices.numel())
        positions = torch.argsort(indices, stable=True)
        column_indptr = torch.zeros(grid_cols + 1, dtype=torch.int32, device=indices.device)
        column_indptr[1:] = torch.bincount(indices, minlength=grid_cols).cumsum(0)
        found = BSRIndex(indptr, indices, rows, column_indptr, rows[positions], positions.to(torch.int32))
        if not is_dynamo_compiling() and not indptr.is_meta:
            indptr._own_copy = _own_copies[_places(found)] = _OwnCopy(found)  # type: ignore[attr-defined]
    return found


def _places(index: BSRIndex) -> tuple[int, ...] | None:
    """Where it lies and how long it is; None where these are no tensors of an index."""
    places: list[int] = []
    for each in index:  # a generator takes as long as all the rest
        if each.dtype is not torch.int32 or not each.is_contiguous():
            return None
        places += each.data_ptr(), each.numel()
    return tuple(places)


def own_copy(index: BSRIndex) -> BSRIndex | None:
    """What kernels read of an index that `derive` has made, whatever was written to it since; None of any other."""
    found = _own_copies.get(_places(index))
    return None if found is None else found.index


def adopted(index: BSRIndex) -> BSRIndex:
    """`index` if it was derived here, else one derived from it. ValueError where it is none."""
    if own_copy(index) is not None:
        return index
    own = derive(index.indptr, index.indices, index.column_indptr.numel() - 1)
    for name, given, wanted in zip(BSRIndex._fields, index, own, strict=True):
        if given.dtype != wanted.dtype or given.device != wanted.device or not torch.equal(given, wanted):
            raise ValueError(f"{name} is not what indptr and indices make it")
    return own


def checked(index: BSRIndex) -> BSRIndex:
    """`index` as kernels may trust it: copies that nobody else sees. ValueError where it is none."""
    if is_dynamo_compiling() or index.indptr.is_meta:  # no kernel runs then
        return index
    return own_copy(index) or own_copy(adopted(index)) or index
