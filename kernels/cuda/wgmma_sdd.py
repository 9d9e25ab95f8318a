"""The sampled product by wgmma (Hopper GPUs only): the kept blocks of grad^T x, grad [n, m] and x [n, k]."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.bsr import BSRIndex
from kernels.cuda import device
from kernels.cuda.device import Kernel, Variant
from kernels.cuda.mma import AddParts
from kernels.cuda.wgmma import (
    BLOCKS,
    BYTES,
    EPILOGUE,
    MOST_SHARED,
    MULTIPLIERS,
    THREADS,
    Dealt,
    Listed,
    deal,
    list_columns,
    unsupported,
)
from kernels.system.resources import UnsupportedError

MOST_PARTS = 4
ADDING = 3500  # cycles that a launch of add_parts takes beside its bytes: 2 us
CYCLE_BYTES = 36  # that a multiprocessor gets from the L2 cache in a cycle: 8.5 TB/s for 132 at 1.755 GHz, as estimated
CYCLE_PRODUCTS = 2048  # multiply-adds of 16 bits


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

    def step_cycles(self, block_size: int) -> float:
        """Of a stage: what its products or its bytes take, whichever is more."""
        rows, columns = self.strips(block_size)
        across = columns * block_size
        return self.depth * max(rows * across / CYCLE_PRODUCTS, (rows + across) * 2 / CYCLE_BYTES)

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


class Division(NamedTuple):
    """Tasks from number `first` on, whose blocks are those from `block` on, go in `parts` parts of the tokens each."""

    parts: int
    first: int
    block: int


def divide(
    places: Sequence[tuple[int, int]], steps: int, tile: WgmmaSampledTile, block_size: int, ctas: int
) -> Division:
    """How few of the tasks are best divided so that no CTA idles in the last round, in 2 to MOST_PARTS parts, or none.

    Rounds of parts are `ceil(tasks parts / ctas)`; what is not divided fills the whole rounds in them. A division must
    save more than adding the parts takes, by the estimates above: each number is written and read as a float a part.
    places: where a task begins whose blocks lie behind those of all before it, (task, block); last (tasks, nnzb).
    """
    tasks, nnzb = places[-1]
    best, least = Division(1, tasks, nnzb), float(-(-tasks // ctas) * steps)
    for parts in range(2, min(MOST_PARTS, steps) + 1):
        rounds = -(-tasks * parts // ctas)
        first, block = places[bisect_right(places, (ctas * (rounds // parts), nnzb)) - 1]
        bytes_ = (nnzb - block) * block_size**2 * (8 * parts + 2)
        adding = (ADDING + bytes_ / (ctas * CYCLE_BYTES)) / tile.step_cycles(block_size)
        if rounds * steps / parts + adding < least:
            best, least = Division(parts, first, block), rounds * steps / parts + adding
    return best


def places_of(tasks: Tensor, listed: Listed, index: BSRIndex, heights: int) -> list[tuple[int, int]]:
    """What `divide` takes: beginnings of strips, or of all tasks where a strip's `heights` block rows are one."""
    strips, firsts, _ = tasks.T.tolist()
    if heights == 1:
        blocks = listed.blocks[:, 0].tolist()
        return [*((task, blocks[first]) for task, first in enumerate(firsts)), (len(firsts), index.indices.numel())]
    indptr = index.indptr.tolist()
    begins = [task for task, strip in enumerate(strips) if not task or strips[task - 1] != strip]
    return [*((task, indptr[strips[task] * heights]) for task in begins), (len(strips), index.indices.numel())]


def deal_tasks(tasks: Tensor, division: Division, n: int, depth: int, ctas: int) -> Dealt:
    """Tasks and parts of them, longest first: int32 [.., 8], as struct Task of sdd_wgmma.cu reads them."""
    steps, parts = -(-n // depth), division.parts
    cuts = [steps * part // parts for part in range(parts + 1)]
    work, costs = [], []
    for number, task in enumerate(tasks.tolist()):
        whole = number < division.first
        for part in range(1 if whole else parts):
            begin, end = (0, steps) if whole else cuts[part : part + 2]
            work.append((*task, begin * depth, min(n, end * depth), -1 if whole else part, 0, 0))
            costs.append(end - begin + EPILOGUE)
    table = torch.tensor(work, dtype=torch.int32, device="cpu").view(-1, 8).to(tasks.device)
    return deal(table, costs, ctas)


class SampledArguments(ctypes.Structure):
    """As struct Arguments in sdd_wgmma.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("grad", "x", "values", "parts", "tasks", "begins", "columns", "blocks")),
        *((name, ctypes.c_int) for name in ("n", "k", "m", "divided", "numbers")),
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
        self.tile, self.kernel = tile, load(sampled_variant(element, block_size, tile))
        rows, columns = tile.strips(block_size)
        listed = list_columns(index, block_size, rows)
        tasks = cut_columns(listed, columns)
        places = places_of(tasks, listed, index, rows // block_size)
        division = divide(places, -(-n // tile.depth), tile, block_size, ctas)
        self.dealt = deal_tasks(tasks, division, n, tile.depth, ctas)
        numbers, self.parts = (index.indices.numel() - division.block) * block_size**2, division.parts
        self.add = None
        if numbers:
            skipped = division.block * block_size**2 * BYTES[element]
            self.add = AddParts(element, numbers, division.parts, index.indices.device, load, skipped)
        self.tables = self.dealt.work, self.dealt.begins, listed.columns, listed.blocks
        pointers = (each.data_ptr() for each in self.tables)
        k, m = ((each.numel() - 1) * block_size for each in (index.column_indptr, index.indptr))
        self.arguments = SampledArguments(None, None, None, None, *pointers, n, k, m, division.block, numbers)
        self.grid = (len(self.dealt.loads), 1, 1)

    def __call__(self, grad: Tensor, x: Tensor, values: Tensor) -> None:
        """grad: [n, m]; x: [n, k], all contiguous and at multiples of 16 bytes; only addresses are read."""
        if self.grid[0]:  # else nothing is kept
            arguments = self.arguments
            arguments.grad, arguments.x, arguments.values = grad.data_ptr(), x.data_ptr(), values.data_ptr()
            if self.add is None:
                self.kernel(self.grid, arguments)
                return
            parts = self.add.empty()
            arguments.parts = parts.data_ptr()
            self.kernel(self.grid, arguments)
            self.add(parts, values)
