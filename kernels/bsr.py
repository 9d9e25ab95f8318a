"""BSRMatrix: a block-sparse matrix that stores only its kept blocks (block compressed sparse row)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.blockmask import BlockMask, grid_shape
from kernels.tensors import exchange
from kernels.tensors.index import BSRIndex as BSRIndex
from kernels.tensors.index import checked, derive, plain, unobserved
from kernels.tensors.operands import contiguous, require_memory, require_values
from kernels.tensors.padding import padded, unpadded
from kernels.tensors.rounding import in_blocks
from kernels.tensors.tracing import lasting


class TransposedIndex(NamedTuple):
    """The same blocks by block column: an index into `BSRMatrix.data`, which stays where it is.

    Block column j holds the blocks `positions[indptr[j]:indptr[j + 1]]` of `data`, in the block rows `indices[...]`,
    ascending. All int32.
    """

    indptr: Tensor
    indices: Tensor
    positions: Tensor


@dataclass(frozen=True, eq=False)
class BSRMatrix:
    """Kept blocks of a matrix, block row by block row, columns ascending.

    data: [nnzb, b, b]; indices: int32[nnzb], block column of each block; indptr: int32[grid_rows + 1], where each block
    row begins, all on one device; shape: (rows, cols) in elements, in whole blocks. The values may change at any time
    and in any way: kernels read them anew at each product, unless the matrix was frozen (`freeze`). The pattern is
    copied and never changes: `plans` holds what kernels have prepared for it, whatever the values.
    unpadded: of a matrix whose sizes its blocks do not divide, those sizes, which products take and give; zeros fill up
    the last blocks.
    """

    data: Tensor
    indices: Tensor
    indptr: Tensor
    shape: tuple[int, int]
    unpadded: tuple[int, int] = (0, 0)  # as `shape`, unless it is given
    plans: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    _packed: dict[Any, Any] | None = field(
        default=None, init=False, repr=False
    )  # what kernels keep of values that stay

    def __post_init__(self) -> None:
        for name in ("data", "indices", "indptr"):
            require_memory(name, getattr(self, name))
        if self.data.ndim != 3 or self.data.shape[1] != self.data.shape[2]:
            raise ValueError(f"data must be [nnzb, b, b] with square blocks, got {tuple(self.data.shape)}")
        if not isinstance(self.shape, tuple | list) or len(self.shape) != 2:
            raise ValueError(f"shape must be (rows, columns), got {self.shape!r}")
        object.__setattr__(self, "shape", tuple(self.shape))
        grid_rows, _ = grid_shape(*self.shape, self.block_size)
        object.__setattr__(self, "unpadded", self._without_padding())
        if self.indices.dtype != torch.int32 or self.indptr.dtype != torch.int32:
            raise ValueError(f"indices and indptr must be int32, got {self.indices.dtype} and {self.indptr.dtype}")
        if self.indptr.shape != (grid_rows + 1,) or self.indices.shape != (self.nnzb,):
            raise ValueError(
                f"{self.nnzb} blocks in {grid_rows} block rows need indices[{self.nnzb}] and indptr[{grid_rows + 1}], "
                f"got {tuple(self.indices.shape)} and {tuple(self.indptr.shape)}"
            )
        if not self.data.device == self.indices.device == self.indptr.device:
            devices = f"{self.data.device}, {self.indices.device} and {self.indptr.device}"
            raise ValueError(f"data, indices and indptr must be on one device, got {devices}")
        with lasting():
            for name in ("indices", "indptr"):  # what others hold, they may change
                object.__setattr__(self, name, contiguous(getattr(self, name).detach().clone()))

    def _without_padding(self) -> tuple[int, int]:
        """The size that was given, or all of it; ValueError where it has other blocks."""
        rows, cols = self.unpadded
        if (rows, cols) == (0, 0):
            return self.shape
        if in_blocks((rows, cols), 1, self.block_size) != self.shape:
            raise ValueError(f"{(rows, cols)} in whole blocks of {self.block_size} is not {self.shape}")
        return rows, cols

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: the fields, not what was derived from them or packed by a kernel."""
        indices, indptr = self.pattern
        state = {each.name: getattr(self, each.name) for each in fields(self)}
        return state | {"indices": indices, "indptr": indptr, "plans": {}, "_packed": None}

    @classmethod
    def from_dense(cls, weight: Tensor, mask: BlockMask, pad: bool = False) -> BSRMatrix:
        """The blocks of `weight` that `mask` keeps, copied; what lies outside them is dropped. weight: [rows, cols].

        pad: blocks need not divide the weight; the mask covers it in whole ones, which zeros fill up. Products take and
        give the sizes of the weight then.
        """
        require_values("weight", weight)
        sizes = tuple(weight.shape)
        whole = in_blocks((sizes[0], sizes[1]), 1, mask.block_size) if len(sizes) == 2 and 0 not in sizes else sizes
        if mask.shape != (whole if pad else sizes):
            to = f", padded to {whole}" if pad and whole != sizes else ""
            to = f"; pad=True pads it to {whole}" if mask.shape == whole else to
            raise ValueError(f"the mask covers {mask.shape}, the weight is {sizes}{to}")
        with lasting():
            weight = padded(weight, 1, whole)
            kept, size = mask.kept.to(weight.device), mask.block_size
            rows, cols = kept.nonzero(as_tuple=True)
            blocks = weight.reshape(kept.shape[0], size, kept.shape[1], size).permute(0, 2, 1, 3)
            indptr = torch.zeros(kept.shape[0] + 1, dtype=torch.int32, device=weight.device)
            indptr[1:] = kept.sum(dim=1).cumsum(0)
            unpadded = sizes[0], sizes[1]
            return cls(blocks[rows, cols].contiguous(), cols.to(torch.int32), indptr, mask.shape, unpadded)

    @classmethod
    def from_torch(cls, matrix: Tensor) -> BSRMatrix:
        """A tensor of torch.sparse_bsr: its values, shared and differentiable; its pattern copied, int64 too.

        ValueError where it is of another layout or a batch, has blocks that are not square or out of order, or a
        pattern that points outside.
        """
        return cls._of(exchange.torch_parts(matrix))

    @classmethod
    def from_scipy(cls, matrix: Any) -> BSRMatrix:
        """A scipy.sparse.bsr_array or bsr_matrix, copied; its blocks are put in order. ValueError as of `from_torch`.

        Blocks that lie in one place are added up, as scipy does.
        """
        return cls._of(exchange.scipy_parts(matrix))

    @classmethod
    def _of(cls, parts: exchange.Parts) -> BSRMatrix:
        matrix = BSRMatrix(*parts)
        _ = matrix.index  # looked at, so that a pattern that points outside is refused here
        return matrix if cls is BSRMatrix else matrix.freeze()

    def to_torch(self) -> Tensor:
        """A tensor of torch.sparse_bsr with indices of int32, sharing the values (not those of a frozen matrix).

        Of a padded matrix the whole blocks: torch has no others.
        """
        return exchange.to_torch(self.data, *self.pattern, self.shape)

    def to_scipy(self) -> Any:
        """A scipy.sparse.bsr_array, a copy without gradient; of a padded matrix the whole blocks.

        ValueError of bfloat16 and float16, which scipy lacks.
        """
        return exchange.to_scipy(self.data, *self.pattern, self.shape)

    @property
    def _operand(self) -> BSRMatrix:
        """What kernels multiply, and write nothing to: this one, or of a frozen matrix the one that holds its values.

        ValueError where a tensor of the user's that holds the values was given another size since.
        """
        if self.data.shape != self.blocks:
            raise ValueError(
                f"data must be {list(self.blocks)} as when the matrix was made, got {list(self.data.shape)}"
            )
        return self

    @cached_property
    def blocks(self) -> tuple[int, int, int]:
        """(nnzb, b, b) by the pattern alone."""
        size = self.shape[0] // (self.indptr.shape[0] - 1)
        return self.indices.shape[0], size, size

    @property
    def frozen(self) -> bool:
        """Whether the values can no longer change."""
        return False

    def freeze(self) -> FrozenBSRMatrix:
        """The matrix with a copy of today's values that nobody can change: kernels may keep what they pack of them.

        For inference: products on a CPU pack the values, which takes about as long as a product with 20 columns, and of
        a frozen matrix they do so once. It costs memory: the copy, and beside it one packed copy as large for each
        height of tiles that the numbers of columns call for (one or two). No gradient reaches it. `unfreeze` gives an
        ordinary matrix again; copies are frozen, and so is what a pickle brings back. ValueError where there are no
        values to copy: of fake tensors, and of those that vmap maps over.
        """
        return FrozenBSRMatrix.of(self)

    def unfreeze(self) -> BSRMatrix:
        """An ordinary matrix of these values: this one if it is, else with a copy of them."""
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return self.data.dtype

    @property
    def block_size(self) -> int:
        return self.data.shape[1]

    @property
    def nnzb(self) -> int:
        """Number of stored blocks."""
        return self.data.shape[0]

    @property
    def grid(self) -> tuple[int, int]:
        return self.shape[0] // self.block_size, self.shape[1] // self.block_size

    @property
    def values_nbytes(self) -> int:
        """Bytes of the stored values."""
        return self.data.numel() * self.data.element_size()

    @property
    def index_nbytes(self) -> int:
        """Bytes of `indices` and `indptr`."""
        return 4 * (self.indices.numel() + self.indptr.numel())

    @cached_property
    def index(self) -> BSRIndex:
        """Everything products need to know of the pattern; ValueError where it points outside the matrix or `data`."""
        return derive(self.indptr, self.indices, self.grid[1])

    @property
    def pattern(self) -> tuple[Tensor, Tensor]:
        """`indices` and `indptr` as products have them, whatever was written to those since the first one; copies."""
        found: Any = checked(self.index) if "index" in self.__dict__ else self
        return found.indices.clone(), found.indptr.clone()

    @property
    def row_indices(self) -> Tensor:
        """Block row of each block: int32[nnzb]."""
        return self.index.rows

    @property
    def transposed_index(self) -> TransposedIndex:
        """The blocks by block column, for products with the transpose; no value is copied."""
        index = self.index
        return TransposedIndex(index.column_indptr, index.column_rows, index.positions)

    def with_data(self, data: Tensor) -> BSRMatrix:
        """The same pattern with other values, sharing what was derived from the pattern. data: [nnzb, b, b]."""
        require_memory("data", data)
        if data.shape != self.blocks or data.device != self.indices.device:
            wanted = f"{list(self.blocks)} on {self.indices.device}"
            raise ValueError(f"data must be {wanted}, got {list(data.shape)} on {data.device}")
        other, index = object.__new__(BSRMatrix), self.index
        same = {name: self.__dict__[name] for name in ("indices", "indptr", "shape", "unpadded", "plans", "blocks")}
        other.__dict__.update(same, data=data, _packed=None, index=index)
        return other

    @property
    def whole(self) -> BSRMatrix:
        """The matrix of `shape`, sharing the values: its padding is as any other zeros."""
        made = self.with_data(self.data)
        made.__dict__["unpadded"] = self.shape
        return made

    @property
    def mask(self) -> BlockMask:
        kept, index = torch.zeros(self.grid, dtype=torch.bool, device="cpu"), checked(self.index)
        kept[index.rows.cpu(), index.indices.cpu()] = True
        return BlockMask(kept, self.block_size)

    def to_dense(self) -> Tensor:
        """[rows, cols] without the padding, zero outside the stored blocks; differentiable in `data`."""
        (grid_rows, grid_cols), index = self.grid, checked(self.index)
        blocks = self.data.new_zeros(grid_rows, grid_cols, self.block_size, self.block_size)
        blocks = blocks.index_put((index.rows.long(), index.indices.long()), self.data)
        return unpadded(blocks.permute(0, 2, 1, 3).reshape(self.shape), 1, self.unpadded)


class FrozenBSRMatrix(BSRMatrix):
    """A BSRMatrix whose values are its own: `data` is a copy, made at each access, so writing to it changes nothing."""

    def __init__(
        self,
        data: Tensor,
        indices: Tensor,
        indptr: Tensor,
        shape: tuple[int, int],
        unpadded: tuple[int, int] = (0, 0),
    ) -> None:
        self._hold(BSRMatrix(data, indices, indptr, shape, unpadded))

    @classmethod
    def of(cls, matrix: BSRMatrix) -> FrozenBSRMatrix:
        """`matrix` with a copy of today's values."""
        frozen = object.__new__(cls)
        frozen._hold(matrix)
        return frozen

    def _hold(self, matrix: BSRMatrix) -> None:
        with unobserved(), torch.no_grad():
            inner = matrix.with_data(contiguous(plain("data", matrix.data).detach().clone()))
        self._show(inner)

    def _show(self, inner: BSRMatrix) -> None:
        """`inner`, which holds values that nobody else does, as this matrix."""
        inner.__dict__["_packed"] = {}
        same = {name: getattr(inner, name) for name in ("indices", "indptr", "shape", "unpadded", "plans", "index")}
        self.__dict__.update(_inner=inner, **same)

    @cached_property
    def whole(self) -> BSRMatrix:
        made = object.__new__(FrozenBSRMatrix)
        made._show(self._operand.whole)
        return made

    @property
    def data(self) -> Tensor:
        return self._operand.data.clone()

    @property
    def _operand(self) -> BSRMatrix:
        inner: BSRMatrix = self.__dict__["_inner"]
        return inner

    @property
    def frozen(self) -> bool:
        return True

    def freeze(self) -> FrozenBSRMatrix:
        return self

    def unfreeze(self) -> BSRMatrix:
        with lasting():
            return self.with_data(self.data)

    def __reduce__(self) -> tuple[Any, ...]:
        return _refrozen, (self.data, *self.pattern, self.shape, self.unpadded)

    @property
    def dtype(self) -> torch.dtype:
        return self._operand.dtype

    @property
    def block_size(self) -> int:
        return self._operand.block_size

    @property
    def nnzb(self) -> int:
        return self._operand.nnzb

    @property
    def values_nbytes(self) -> int:
        return self._operand.values_nbytes

    def to_dense(self) -> Tensor:
        return self._operand.to_dense()


def _refrozen(
    data: Tensor, indices: Tensor, indptr: Tensor, shape: tuple[int, int], unpadded: tuple[int, int] = (0, 0)
) -> BSRMatrix:
    """A frozen matrix as it was copied or pickled; an ordinary one where the values were loaded to the device meta."""
    matrix = BSRMatrix(data, indices, indptr, shape, unpadded)
    return matrix if data.is_meta else matrix.freeze()


def require_sparse(name: str, weight: object) -> BSRMatrix:
    """`weight`; ValueError where it is no BSRMatrix."""
    if not isinstance(weight, BSRMatrix):
        raise ValueError(f"{name} must be a BSRMatrix, {exchange.said_of(weight)}")
    return weight
