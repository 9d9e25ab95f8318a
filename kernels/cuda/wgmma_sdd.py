"""The sampled product by wgmma (Hopper GPUs only): the kept blocks of grad^T x, grad [n, m] and x [n, k]."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.bsr import BSRIndex
from kernels.cuda import device
from kernels.cuda.device import Kernel, Variant
from kernels.cuda.wgmma import (
    BLOCKS,
    BYTES,
    MOST_SHARED,
    MULTIPLIERS,
    THREADS,
    Listed,
    deal,
    list_columns,
    unsupported,
)
from kernels.system.resources import UnsupportedError


@dataclass(frozen=True)
class WgmmaSampledTile:
    """What sdd makes at a time: `columns` columns a warpgroup; its ring: `stages` of `depth` tokens."""

    columns: int
    depth: int
    stages: int

    def strips(self, block_size: int) -> tuple[int, int]:
        """(rows of a CTA, block columns of a CTA)."""
        return (128, self.columns // 128) if block_size == 128 else (64, MULTIPLIERS * self.columns // block_size)

    def shared_bytes(self, block_size: int) -> int:
        """As the kernel divides it: stages, and two barriers and a word of each."""
        rows, columns = self.strips(block_size)
        return self.stages * ((rows + columns * block_size) * 2 * self.depth + 24)

    def fits(self, block_size: int) -> bool:
        return self.columns >= block_size and self.shared_bytes(block_size) <= MOST_SHARED


def sampled_variant(element: str, block_size: int, tile: WgmmaSampledTile) -> Variant:
    """sdd's kernel to compile; ValueError with the reason where there is none."""
    reason = unsupported("sdd", element, block_size)
    if reason is None and not tile.fits(block_size):
        reason = f"{tile} does not fit blocks of {block_size}"
    if reason is not None:
        raise UnsupportedError(reason)
    numbers = {
        "BLOCK": block_size,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "STAGES": tile.stages,
        "WARPGROUPS": MULTIPLIERS,
    }
    defines: tuple[tuple[str, str | int], ...] = (("ELEMENT", element), *numbers.items())
    return Variant("sdd_wgmma.cu", "sdd", tuple(sorted(defines)), THREADS, tile.shared_bytes(block_size), needs=90)


def sampled_tiles(block_size: int) -> Iterator[WgmmaSampledTile]:
    """Every tile of sdd worth trying."""
    for columns in (256, 128, 64):
        for depth in (64, 32):
            deepest = (WgmmaSampledTile(columns, depth, stages) for stages in (6, 4, 3))
            yield from [tile for tile in deepest if tile.fits(block_size)][:1]


def default_sampled_tile(block_size: int, nnzb: int, ctas: int) -> WgmmaSampledTile:
    """Without measurements: the widest tile that still leaves a task for each of `ctas` CTAs, or else the narrowest."""
    found = [tile for tile in sampled_tiles(block_size) if tile.stages >= 4]
    enough = [tile for tile in found if nnzb >= ctas * tile.strips(block_size)[1]]
    return enough[0] if enough else found[-1]


def all_variants() -> Iterator[Variant]:
    """Every kernel that `sampled_tiles` leads to."""
    for element in BYTES:
        for block_size in BLOCKS:
            if unsupported("sdd", element, block_size) is None:
                yield from (sampled_variant(element, block_size, tile) for tile in sampled_tiles(block_size))


def cut_columns(listed: Listed, most: int) -> Tensor:
    """Groups cut into tasks of at most `most` listed columns, about equal in a group: int32[tasks, 3].

    Of each its group, where its columns begin in the list, and how many they are.
    """
    counts = listed.first.diff().long()
    pieces = (counts + most - 1) // most
    size = (counts + pieces - 1) // pieces.clamp(min=1)
    group = torch.arange(counts.numel(), device=counts.device).repeat_interleave(pieces)
    number = torch.arange(group.numel(), device=counts.device) - (pieces.cumsum(0) - pieces)[group]
    begin = number * size[group]
    tasks = (group, listed.first.long()[group] + begin, torch.minimum(size[group], counts[group] - begin))
    return torch.stack(tasks, dim=1).to(torch.int32).contiguous()


class SampledArguments(ctypes.Structure):
    """As struct Arguments in sdd_wgmma.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("grad", "x", "values", "tasks", "begins", "columns", "blocks")),
        *((name, ctypes.c_int) for name in ("n", "k", "m")),
    )


class WgmmaSampled:
    """A prepared sdd for one pattern and one n: values [nnzb, b, b] = kept blocks of grad^T x. A call launches only."""

    def __init__(
        self,
        element: str,
        block_size: int,
        index: BSRIndex,
        n: int,
        tile: WgmmaSampledTile,
        ctas: int,
        load: Callable[[Variant], Kernel] = device.load,
    ) -> None:
        """n: at least 1; at most `ctas` CTAs, one a multiprocessor."""
        self.kernel = load(sampled_variant(element, block_size, tile))
        rows, columns = tile.strips(block_size)
        listed = list_columns(index, block_size, rows)
        tasks = cut_columns(listed, columns)
        self.dealt = deal(tasks, [-(-n // tile.depth)] * len(tasks), ctas)  # columns that are none are multiplied, too
        self.tables = self.dealt.work, self.dealt.begins, listed.columns, listed.blocks
        pointers = (each.data_ptr() for each in self.tables)
        k, m = ((each.numel() - 1) * block_size for each in (index.column_indptr, index.indptr))
        self.arguments = SampledArguments(None, None, None, *pointers, n, k, m)
        self.grid = (len(self.dealt.loads), 1, 1)

    def __call__(self, grad: Tensor, x: Tensor, values: Tensor) -> None:
        """grad: [n, m]; x: [n, k], all contiguous and at multiples of 16 bytes; only addresses are read."""
        if self.grid[0]:  # else nothing is kept
            arguments = self.arguments
            arguments.grad, arguments.x, arguments.values = grad.data_ptr(), x.data_ptr(), values.data_ptr()
            self.kernel(self.grid, arguments)
