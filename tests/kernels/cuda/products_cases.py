"""CUDA products at the edges: operands, the product by the emulator, and how far from float64 it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.check import error_bound
from kernels.cuda.device import Kernel, Variant
from kernels.cuda.mma import MmaProduct, MmaSampled, ProductChoice, SampledChoice
from kernels.cuda.mma_plan import product_plan, sampled_plan

DTYPES = {
    "Float32": torch.float32,
    "Tf32": torch.float32,
    "Bfloat16": torch.bfloat16,
    "Float16": torch.float16,
}
PATTERNS = ("empty rows", "all empty", "one block", "full row", "full", "random")
GUARD = 1024  # numbers around each output: more than one line of it
Loader = Callable[[Variant], Kernel]


def kept_blocks(pattern: str, rows: int, cols: int) -> Tensor:
    """bool[rows, cols]."""
    kept = torch.zeros(rows, cols, dtype=torch.bool)
    if pattern == "one block":
        kept[-1, cols // 2] = True
    if pattern == "full row":
        kept[rows // 2] = True
    if pattern in ("full", "empty rows"):
        kept[:] = True
    if pattern == "empty rows":
        kept[::2] = False
    if pattern == "random":
        kept = torch.rand(rows, cols, generator=torch.Generator().manual_seed(rows)) < 0.3
    return kept


def grid_of(block: int) -> tuple[int, int]:
    """Blocks along rows and columns: more than one group and one stage, and neither a whole one."""
    return {8: (19, 23), 16: (11, 13), 32: (7, 6), 64: (3, 4), 128: (2, 3)}[block]


def rounded(x: Tensor, element: str) -> Tensor:
    """What is multiplied: of Tf32 the nearest number of 10 bits of fraction, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) if element == "Tf32" else x


@dataclass
class Guarded:
    """A NaN-filled output between guards, at a multiple of 16 bytes."""

    whole: Tensor
    view: Tensor

    @classmethod
    def like(cls, shape: tuple[int, ...], dtype: torch.dtype) -> Guarded:
        size = int(torch.tensor(shape).prod())
        whole = torch.full((size + 2 * GUARD,), float("nan"), dtype=dtype)
        return cls(whole, whole[GUARD : GUARD + size].view(shape))

    def untouched(self) -> bool:
        ends = self.whole[:GUARD], self.whole[self.whole.numel() - GUARD :]
        return all(bool(end.isnan().all()) for end in ends)


@dataclass
class Case:
    """A weight of some blocks and n tokens on both of its sides."""

    element: str
    block: int
    n: int
    kept: Tensor

    def __post_init__(self) -> None:
        generator, dtype = torch.Generator().manual_seed(self.n), DTYPES[self.element]
        self.mask = BlockMask(self.kept, self.block)
        rows, cols = self.mask.shape
        weight = torch.randn(rows, cols, generator=generator) * self.mask.expand()
        self.weight = weight.to(dtype)
        self.bsr = BSRMatrix.from_dense(self.weight, self.mask)
        self.x = torch.randn(self.n, cols, generator=generator).to(dtype)
        self.grad = torch.randn(self.n, rows, generator=generator).to(dtype)

    def product(self, choice: ProductChoice, load: Loader, parts: int = 1) -> Tensor:
        """dsd, or its transpose where the choice is turned, by the kernel."""
        plan = product_plan(self.bsr.index, choice.tile)
        given, like = (self.grad, self.x) if choice.tile.transposed else (self.x, self.grad)
        out = Guarded.like(tuple(like.shape), like.dtype)
        launch = MmaProduct(choice, plan, *given.shape, like.shape[1], load, parts)
        return self._launched(out, launch, self.bsr.data, given)

    def sampled(self, choice: SampledChoice, load: Loader, parts: int = 1) -> Tensor:
        """sdd by the kernel."""
        plan = sampled_plan(self.bsr.index, choice.tile)
        out = Guarded.like(tuple(self.bsr.data.shape), self.x.dtype)
        launch = MmaSampled(
            choice, plan, self.n, self.bsr.data.numel(), self.grad.shape[1], self.x.shape[1], load, parts
        )
        return self._launched(out, launch, self.grad, self.x)

    @staticmethod
    def _launched(out: Guarded, launch: MmaProduct | MmaSampled, first: Tensor, second: Tensor) -> Tensor:
        launch(first, second, out.view)
        assert out.untouched(), "a guard was written"
        return out.view

    def result(self, choice: ProductChoice | SampledChoice, load: Loader, parts: int = 1) -> Tensor:
        if isinstance(choice, SampledChoice):
            return self.sampled(choice, load, parts)
        return self.product(choice, load, parts)

    def error(self, choice: ProductChoice | SampledChoice, result: Tensor) -> float:
        """Largest error over what rounding allows; infinite where anything is NaN."""
        weight, x, grad = (rounded(each, self.element) for each in (self.weight, self.x, self.grad))
        if isinstance(choice, SampledChoice):
            left, right = grad.T, x
        else:
            left, right = (weight.T, grad.T) if choice.tile.transposed else (weight, x.T)
        wanted = left.double() @ right.double()
        bound = error_bound(left, right, wanted)
        if isinstance(choice, SampledChoice):
            wanted, bound = (BSRMatrix.from_dense(each, self.mask).data for each in (wanted, bound))
        else:
            wanted, bound = wanted.T, bound.T
        wrong = (result.double() - wanted).abs()
        ratio = torch.where(wrong == 0, 0.0, wrong / bound).nan_to_num(nan=float("inf"))
        return float(ratio.max()) if ratio.numel() else 0.0
