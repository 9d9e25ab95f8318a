"""Patterns: where the kept blocks of a layer's dense weight lie, and a layer that may multiply by these alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.measuring.clocks import Stopwatch
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.layers.weight import blocks_of
from kernels.native.library import POOL
from kernels.tensors.operands import require_memory, require_values
from kernels.tensors.padding import in_blocks, padded, unpadded
from kernels.tensors.tracing import batched, lasting, transformed, watched

OURS = {"cpu": "native", "cuda": "cuda"}  # by device: what the sparse path is computed by; plain torch on others
LEVELS = 2**16  # of the 16 bits that say whether an element of a weight is dropped
A_WORD = 4  # elements for which a random word of 64 bits lasts


def drop_bits(weight: Tensor) -> Tensor:
    """16 random bits for each element of a weight, whatever the path will read of them: int16, of its shape.

    A word of the generator is cut into four: a draw an element, as in torch's dropout, would take a large part of a
    sparse layer's time. The elements must be a multiple of four, as those of [4 * size, size] are.
    """
    words = torch.randint(-(2**63), 2**63 - 1, (weight.numel() // A_WORD,), device=weight.device)
    return words.view(torch.int16).view(weight.shape)


def dropped(values: Tensor, bits: Tensor, drop: float) -> Tensor:
    """Elements of a weight, a share `drop` of them (in steps of 1/65536, one at least) zero, the others as much larger.

    bits: of the same elements, from `drop_bits`.
    """
    gone = max(1, round(drop * LEVELS))
    keep = bits.gt(gone - 1 - LEVELS // 2).to(values.dtype)
    return values * keep.mul_(LEVELS / max(1, LEVELS - gone))


class Pattern:
    """Where the kept blocks of one weight lie, each of its gates padded by itself where they do not divide it."""

    def __init__(self, weight: Tensor, mask: BlockMask, gates: int = 1) -> None:
        self.mask, self.gates, self.shape = mask, gates, tuple(weight.shape)
        with lasting():
            self.matrix = blocks_of(weight.detach(), mask, gates)
            size, (_, grid_cols) = mask.block_size, mask.grid
            rows = self.matrix.row_indices.long()[:, None] * size + torch.arange(size, device=weight.device)
            self.slices = (rows * grid_cols + self.matrix.indices.long()[:, None]).flatten()  # of `as_slices`

    def as_slices(self, weight: Tensor) -> Tensor:
        """Rows of blocks as rows of a matrix, a view where `weight` lies row by row.

        weight: [rows, cols] -> [rows * grid_cols, b].
        """
        return weight.reshape(-1, self.mask.block_size)

    def gather(self, weight: Tensor) -> Tensor:
        """The kept blocks, copied. [rows, cols] -> [nnzb, b, b]."""
        blocks = self.as_slices(padded(weight, self.gates, self.mask.shape)).index_select(0, self.slices)
        return blocks.view(-1, self.mask.block_size, self.mask.block_size)

    def spread(self, grad: Tensor) -> Tensor:
        """The gradient of the whole weight, zero in empty blocks, in memory of its own.

        grad: [nnzb, b, b] -> [rows, cols].
        """
        slices, shape = self.as_slices(grad), self.mask.shape
        if torch.is_grad_enabled() or watched(grad) or batched(grad):
            zeros = torch.zeros(shape, dtype=grad.dtype, device=grad.device)
            whole = self.as_slices(zeros).index_copy(0, self.slices, slices).view(shape)
            return unpadded(whole, self.gates, self.shape)
        whole = POOL.empty(shape, grad.dtype) if grad.is_cpu else grad.new_empty(shape)
        self.as_slices(whole.zero_()).index_copy_(0, self.slices, slices)
        return unpadded(whole, self.gates, self.shape)

    def of(self, weight: Tensor, drop: float, dtype: torch.dtype, inside: torch.dtype) -> BSRMatrix:
        """The kept blocks of `weight`, rounded to `dtype`, as `inside`, a share `drop` of their elements dropped.

        Which ones is drawn for the whole weight, as on the dense path: the generator goes on alike on both, and what a
        run comes to does not depend on where it changes over. Differentiable in `weight`.
        """
        kept = _KeptBlocks.apply
        data: Tensor = self.gather(weight) if transformed() else kept(weight, self)  # type: ignore[no-untyped-call]
        data = data.to(dtype)
        data = dropped(data, self.gather(drop_bits(weight)), drop) if drop else data
        return self.matrix.with_data(data.to(inside))


class _KeptBlocks(torch.autograd.Function):
    """Gather kept blocks.

    The gradient lies in memory that comes back when nobody holds it: fresh one takes a fault a page.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        return pattern.gather(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        pattern: Pattern = ctx.pattern
        return pattern.spread(grad), None


class Followed(nn.Module):
    """A layer on one of two paths: dense, or by kernels that skip the blocks that its masks empty.

    KINDS: sets of weights that masks may be of, by names without what `suffix` adds to a parameter's. seconds: time
    spent in it with gradients, forward and backward, since it was last set to 0; a GPU's own time there.
    """

    KINDS: tuple[frozenset[str], ...] = ()
    GATES = 1  # parts of a weight's rows that share no block
    suffix = ""

    patterns: dict[str, Pattern]
    stopwatch: Stopwatch

    def start_dense(self) -> None:
        """On the dense path, with no seconds: to be done once the layer is made."""
        self.patterns = {}
        self.stopwatch = Stopwatch()

    @property
    def seconds(self) -> float:
        return self.stopwatch.seconds

    @seconds.setter
    def seconds(self, seconds: float) -> None:
        self.stopwatch.seconds = seconds

    @property
    def sparse(self) -> bool:
        """Whether the kernels that skip empty blocks run."""
        return bool(self.patterns)

    def follow(self, masks: Mapping[str, BlockMask]) -> None:
        """Take the sparse path with these masks, by kinds of weights; the dense path where there are none.

        The weights must be zero in empty blocks already. A mask that is the same object as before costs nothing.
        ValueError where the masks are not of these weights.
        """
        if masks and frozenset(masks) not in self.KINDS:
            names, accepted = ", ".join(map(str, masks)), ", or ".join(map(_listed, self.KINDS))
            raise ValueError(f"masks: there are those of {names}; accepted: {accepted}")
        before = self.patterns
        self.patterns = {
            kind: before[kind] if kind in before and before[kind].mask is mask else self._pattern_of(kind, mask)
            for kind, mask in masks.items()
        }

    def weight_of(self, kind: str) -> Tensor:
        """The parameter that masks of a kind are of."""
        weight: Tensor = getattr(self, kind + self.suffix)
        return weight

    def _pattern_of(self, kind: str, mask: BlockMask) -> Pattern:
        """ValueError where `mask` is none of that weight."""
        weight, name = self.weight_of(kind), kind + self.suffix
        require_values(name, weight)
        if weight.ndim != 2 or in_blocks((weight.shape[0], weight.shape[1]), self.GATES, mask.block_size) != mask.shape:
            raise ValueError(f"{name} is {list(weight.shape)}, and the mask it follows {list(mask.shape)}")
        return Pattern(weight, mask, self.GATES)

    def pattern(self, kind: str) -> Pattern:
        """That of one weight, on the device where the weight is by now.

        ValueError where the mask no longer is one of it.
        """
        weight, pattern = self.weight_of(kind), self.patterns[kind]
        require_memory(kind + self.suffix, weight)
        if weight.device != pattern.slices.device or tuple(weight.shape) != pattern.shape:
            pattern = self.patterns[kind] = self._pattern_of(kind, pattern.mask)
        return pattern


def _listed(kinds: frozenset[str]) -> str:
    return " and ".join(sorted(kinds, reverse=True))
