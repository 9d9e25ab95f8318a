"""BlockSparseWeight: a block-sparse weight as a part of a torch.nn.Module; and how a layer is made of a dense one."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.ops import KERNELS
from kernels.tensors.padding import in_blocks, padded, unpadded

PATTERN = ("indices", "indptr")


class BlockSparseWeight(nn.Module):
    """A block-sparse weight of a layer: the kept `values` [nnzb, b, b] as its parameter, the pattern as buffers.

    A state_dict holds all three, so that a layer of the same sizes takes it whatever its own pattern is: one with
    another number of blocks gives the parameter another size, so load before an optimizer is made. The buffers are for
    saving; to change the pattern load another one.
    shape: of the weight; padded: the same in whole blocks, each of its `gates` padded with rows by itself. What lies in
    the padding is zero, and a gradient never moves it.
    """

    indices: Tensor
    indptr: Tensor
    _kept: BSRMatrix | None  # the pattern that the buffers have, without values
    _held: BSRMatrix | None  # the same with the values of a frozen weight

    def __init__(self, matrix: BSRMatrix, shape: tuple[int, int], gates: int = 1) -> None:
        super().__init__()
        self.shape, self.padded, self.gates = shape, matrix.shape, gates
        self.frozen = False
        self.values = nn.Parameter(matrix.data.detach())
        indices, indptr = matrix.pattern
        self.register_buffer("indices", indices)
        self.register_buffer("indptr", indptr)
        self._look_at_pattern()

    @property
    def matrix(self) -> BSRMatrix:
        """The weight with the parameter as its values: what products take, differentiable in it."""
        if self._held is not None:
            if not self.values.requires_grad:
                return self._held
            self.frozen, self._held = False, None  # it is trained again
        kept = self._kept
        if kept is None or kept.indices.device != self.indices.device:
            kept = self._pattern()
        return kept.with_data(self.values)

    def _pattern(self) -> BSRMatrix:
        """What the buffers say, with no values."""
        nothing = self.values.detach().new_zeros(1).expand(self.values.shape)
        return BSRMatrix(nothing, self.indices, self.indptr, self.padded)

    def _look_at_pattern(self) -> None:
        """Keep what the buffers say, before a compiler or torch.export comes, which cannot look at numbers.

        None of those that say nothing: on the device meta, fake, or without content yet.
        """
        self._kept = self._held = None
        if self.indices.is_meta or type(self.indices) is not Tensor:
            return
        with suppress(ValueError):
            found = self._pattern()
            self._kept = found.with_data(found.data)  # which looks at all that the pattern tells
            if self.frozen:
                self._held = self._kept.with_data(self.values).freeze()

    def freeze(self) -> None:
        """For inference: products take a copy of today's values, of which kernels keep what they pack.

        The parameter asks for no gradient any more. What is loaded or moved elsewhere is frozen anew, what is written
        to the parameter otherwise is not seen; `requires_grad_()` ends it.
        """
        self.values.requires_grad_(False)
        self.frozen = True
        self._look_at_pattern()

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def block_size(self) -> int:
        return self.values.shape[-1]

    @property
    def sparsity(self) -> float:
        """Share of empty blocks."""
        blocks = math.prod(self.padded) // self.block_size**2
        return 1 - self.values.shape[0] / blocks

    def to_dense(self) -> Tensor:
        """[rows, cols], zero outside the kept blocks; differentiable in the values."""
        return unpadded(self.matrix.to_dense(), self.gates, self.shape)

    @torch.no_grad()
    def draw(self, bound: float) -> None:
        """New values, uniform in [-bound, bound]; zero in the padding."""
        self.values.uniform_(-bound, bound)
        if self.padded != self.shape and not self.values.is_meta:
            ones = torch.ones(self.shape, dtype=self.dtype, device=self.device)
            inside = padded(ones, self.gates, self.padded)
            self.values.mul_(BSRMatrix.from_dense(inside, self.matrix.mask).data)

    def extra_repr(self) -> str:
        (rows, cols), (above, across) = self.shape, self.padded
        padding = "" if self.padded == self.shape else f" padded to {above} x {across}"
        return f"{rows} x {cols}{padding}, block_size={self.block_size}, sparsity={self.sparsity:.4g}"

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._look_at_pattern()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None, "_held": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._look_at_pattern()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *told: Any
    ) -> None:
        """torch's, after making room for another pattern; one that is none is an error of `load_state_dict`."""
        errors = told[-1]
        values, indices, indptr = (state_dict.get(f"{prefix}{name}") for name in ("values", *PATTERN))
        if isinstance(values, Tensor) and isinstance(indices, Tensor) and isinstance(indptr, Tensor):
            try:
                matrix = BSRMatrix(values, indices, indptr, self.padded)
                _ = None if matrix.indices.is_meta else matrix.index
            except ValueError as error:
                errors.append(f"{prefix.removesuffix('.')} is no block-sparse weight of {self.padded}: {error}")
                return
            self._make_room(matrix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *told)
        self._look_at_pattern()

    def _make_room(self, matrix: BSRMatrix) -> None:
        if self.values.shape != matrix.data.shape:
            self.values.data, self.values.grad = self.values.data.new_empty(matrix.data.shape), None
        for name in PATTERN:
            wanted = getattr(matrix, name)
            if getattr(self, name).shape != wanted.shape:
                setattr(self, name, getattr(self, name).new_empty(wanted.shape))


def kept_blocks(mask: BlockMask, device: Any, dtype: Any) -> BSRMatrix:
    """The pattern of `mask`, its values uninitialised, on that device."""
    data = torch.empty(mask.nnzb, mask.block_size, mask.block_size, device=device, dtype=dtype)
    rows, cols = mask.kept.nonzero(as_tuple=True)
    indptr = torch.zeros(mask.grid[0] + 1, dtype=torch.int32, device="cpu")
    indptr[1:] = torch.bincount(rows, minlength=mask.grid[0]).cumsum(0)
    return BSRMatrix(data, cols.to(data.device, torch.int32), indptr.to(data.device), mask.shape)


def require_mask(name: str, mask: object, shape: tuple[int, int], pad: bool, gates: int = 1) -> BlockMask:
    """`mask`; ValueError where it is none of that weight, or, with `pad`, of the weight in whole blocks."""
    if not isinstance(mask, BlockMask):
        raise ValueError(f"the mask of {name} must be a BlockMask, got {type(mask).__name__}")
    whole = in_blocks(shape, gates, mask.block_size)
    if mask.shape != (whole if pad else shape):
        to = f"; pad=True pads it to {whole}" if mask.shape == whole else ""
        to = f", padded to {whole}" if pad and whole != shape else to
        raise ValueError(f"the mask of {name} covers {mask.shape}, and the weight is {shape}{to}")
    return mask


def require_kind(module: object, kind: type[nn.Module]) -> None:
    """ValueError where `module` is none of `kind`, or its weights are not plain parameters."""
    if not isinstance(module, kind):
        raise ValueError(f"module must be a torch.nn.{kind.__name__}, got {type(module).__name__}")
    if any(nn.parameter.is_lazy(each) for each in module.parameters()):
        raise ValueError(f"module is a {type(module).__name__} without weights yet: call it once before")
    if is_parametrized(module):
        remove = "torch.nn.utils.parametrize.remove_parametrizations makes plain ones of them"
        raise ValueError(f"module has parametrized weights; {remove}")


def require_kernel(kernel: str) -> str:
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; accepted: {', '.join(KERNELS)}")
    return kernel


def copied(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


def blocks_of(weight: Tensor, mask: BlockMask, gates: int = 1) -> BSRMatrix:
    """The blocks of a layer's dense weight that `mask` keeps, copied; the rows of each gate are padded by themselves.

    Of one gate the product takes and gives the sizes of the weight; of more, those of the mask.
    """
    if gates == 1:
        return BSRMatrix.from_dense(weight, mask, pad=True)
    return BSRMatrix.from_dense(padded(weight, gates, mask.shape), mask)


def sparse_from(weight: Tensor, mask: BlockMask, gates: int = 1) -> BlockSparseWeight:
    """The kept blocks of a layer's dense weight, copied, that ask for gradients where it does."""
    rows, cols = weight.shape
    whole = padded(weight.detach(), gates, mask.shape)
    made = BlockSparseWeight(BSRMatrix.from_dense(whole, mask), (rows, cols), gates)
    made.values.requires_grad_(weight.requires_grad)
    return made
