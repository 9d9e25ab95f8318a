"""Operands of products at the edges (every pattern, block size and place in memory) and what must come out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.check import error_bound
from kernels.native.products import by_rows, dsd, pack, plain, sdd

SIZES = (1, 2, 3, 4, 5, 7, 8, 12, 16, 20, 24, 31, 32, 33, 48, 64, 100, 128)
WIDTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 47, 48, 49, 97, 130, 300)


def kept_blocks(pattern: str, rows: int, cols: int, seed: int = 0) -> Tensor:
    """bool[rows, cols]."""
    kept = torch.zeros(rows, cols, dtype=torch.bool)
    if pattern == "random":
        kept = torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < 0.3 + seed % 5 / 10
    if pattern == "first block":
        kept[0, 0] = True
    if pattern == "last block":
        kept[-1, -1] = True
    if pattern == "chequered":
        kept.flatten()[::2] = True
    if pattern in ("full", "empty rows", "empty columns"):
        kept[:] = True
    if pattern == "empty rows":
        kept[::2] = False
    if pattern == "empty columns":
        kept[:, ::2] = False
    return kept


PATTERNS = ("empty", "full", "first block", "last block", "chequered", "empty rows", "empty columns", "random")


def _surrounded(x: Tensor) -> Tensor:
    """A copy of `x`, at an address that only its elements divide, between NaNs."""
    wide = torch.full((x.numel() + 2 * 67,), float("nan"), dtype=x.dtype)
    return wide[67 : 67 + x.numel()].view(x.shape).copy_(x)


def _spread(x: Tensor) -> Tensor:
    """A copy of `x` with NaNs between its elements."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype)
    return wide[..., ::2].copy_(x)


PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "by rows": lambda x: x.contiguous(),
    "by columns": lambda x: x.mT.contiguous().mT,
    "surrounded by rows": _surrounded,
    "surrounded by columns": lambda x: _surrounded(x.mT.contiguous()).mT,
    "spread": _spread,
    "spread by columns": lambda x: _spread(x.mT).mT,
}


def operands(kept: Tensor, size: int, n: int, dtype: torch.dtype, seed: int = 0) -> tuple[BSRMatrix, Tensor, Tensor]:
    """(W, X for W X, X for W^T X)."""
    generator = torch.Generator().manual_seed(seed)
    mask = BlockMask(kept, size)
    weight, x, grad = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in (mask.shape, (mask.shape[1], n), (mask.shape[0], n))
    )
    return BSRMatrix.from_dense(weight, mask), x, grad


def products(bsr: BSRMatrix, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W X, W^T dY and the kept blocks of dY X^T, as operators have them: packed for operands that lie as these do."""
    n, lies = x.shape[1], [not by_rows(plain(each)) for each in (x, grad)]
    return (
        dsd(pack(bsr.data, bsr.index, n, lies=lies[0]), x),
        dsd(pack(bsr.data, bsr.index, n, transposed=True, lies=lies[1]), grad),
        sdd(grad, x, bsr.index, bsr.block_size),
    )


def assert_right(found: tuple[Tensor, Tensor, Tensor], bsr: BSRMatrix, x: Tensor, grad: Tensor) -> None:
    """Every element within its own bound; exactly zero where nothing is added."""
    dense = bsr.to_dense()
    for place, (left, right) in enumerate(((dense, x), (dense.mT, grad), (grad, x.mT))):
        expected = left.double() @ right.double()
        bound = error_bound(left, right, expected)
        if place == 2:
            expected, bound = (BSRMatrix.from_dense(each, bsr.mask).data for each in (expected, bound))
        assert found[place].shape == expected.shape and found[place].dtype == x.dtype
        assert bool(((found[place].double() - expected).abs() <= bound).all()), ("W X", "W^T dY", "dY X^T")[place]
