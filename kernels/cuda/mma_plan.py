"""What the CUDA products read of a pattern: which pieces of blocks come in which stage, or which blocks a CTA makes.

A plan depends on the pattern and on the tile of a variant, not on the values or on n. It is made on the CPU, once, and
kept on the device of the index.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.bsr import BSRIndex

ZEROS = 0xFFFFFF  # instead of a piece's place in the values: it is empty, but multiplied beside one that is not
MOST_NUMBERS = ZEROS * 16  # values of a matrix whose places fit into 24 bits, in units of 16


@dataclass(frozen=True)
class ProductTile:
    """The part of a dsd variant that its plan depends on.

    rows: of the output, made by a CTA; depth: elements of the reduction in a stage; paired: blocks of 8 beside one
    another share a fragment, so that one is filled with zeros where only the other is kept.
    """

    block_size: int
    rows: int
    depth: int
    transposed: bool
    paired: bool

    @property
    def high(self) -> int:
        """Rows of a piece of a block."""
        return min(self.block_size, self.rows)

    @property
    def wide(self) -> int:
        """Elements of the reduction of a piece."""
        return min(self.block_size, self.depth)

    @property
    def entry(self) -> int:
        """Ints that tell of a stage: columns, masks, number of pieces, pieces; in whole chunks of 16 bytes."""
        columns, heights = self.depth // self.wide, self.rows // self.high
        return -(-(2 * columns + 1 + columns * heights) // 4) * 4


@dataclass(frozen=True)
class SampledTile:
    """The part of an sdd variant that its plan depends on.

    rows, cols: largest tile of a job; unit: side of what is summed in one place; bins of `units` units each; paired:
    units of 8 rows go by twos beside the same columns.
    """

    block_size: int
    rows: int
    cols: int
    unit: int
    bins: int
    units: int
    paired: bool

    @property
    def units_at(self) -> int:
        """Where the units begin in a job's ints: after the first row and the columns."""
        return 4 + -(-(self.cols // self.block_size) // 4) * 4

    @property
    def job(self) -> int:
        """Ints of a job."""
        return self.units_at + 4 * self.bins * self.units


@dataclass(frozen=True)
class ProductPlan:
    """Groups of rows by falling work: `groups` int32[groups, 4], `stages` int32[stages, entry], as in listed.h."""

    groups: Tensor
    stages: Tensor
    work: int  # pieces of the busiest group

    @property
    def nbytes(self) -> int:
        return 4 * (self.groups.numel() + self.stages.numel())


@dataclass(frozen=True)
class SampledPlan:
    """Jobs of about equal work: `jobs` int32[jobs, job] as cuda/sampled.h reads them."""

    jobs: Tensor

    @property
    def nbytes(self) -> int:
        return 4 * self.jobs.numel()


def slots(index: BSRIndex) -> Tensor:
    """Where each block of the grid lies in the values, -1 for an empty one: int64[grid_rows, grid_cols] on the CPU."""
    grid = torch.full((index.indptr.numel() - 1, index.column_indptr.numel() - 1), -1, device="cpu")
    grid[index.rows.cpu().long(), index.indices.cpu().long()] = torch.arange(index.indices.numel(), device="cpu")
    return grid


def _check_size(index: BSRIndex, block_size: int) -> None:
    if index.indices.numel() * block_size**2 > MOST_NUMBERS:
        raise ValueError(f"the CUDA products take at most {MOST_NUMBERS} values of a matrix")


def to_int32(words: Tensor) -> Tensor:
    """Unsigned words of 32 bits in int64 as int32 of the same bits."""
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def pieces(grid: Tensor, tile: ProductTile) -> Tensor:
    """Where each piece begins in the values, in numbers, -1 for an empty one: int64[rows, columns] of pieces.

    grid: `slots`, of the transpose where the tile is transposed.
    """
    size, high, wide = tile.block_size, tile.high, tile.wide
    down, along = torch.arange(size // high, device="cpu") * high, torch.arange(size // wide, device="cpu") * wide
    inside = down[:, None] + along[None, :] * size if tile.transposed else down[:, None] * size + along[None, :]
    begins = torch.where(grid < 0, -1, grid * size * size)
    begins = begins.repeat_interleave(size // high, 0).repeat_interleave(size // wide, 1)
    return torch.where(begins < 0, -1, begins + inside.repeat(grid.shape))


def product_plan(index: BSRIndex, tile: ProductTile) -> ProductPlan:
    """The stages of every group of `tile.rows` rows; ValueError where there are more values than places can name.

    A group lists the columns of pieces that any of its rows keeps, ascending, tile.depth elements a stage.
    """
    _check_size(index, tile.block_size)
    grid = slots(index).T if tile.transposed else slots(index)
    places = pieces(grid, tile)
    heights, columns = tile.rows // tile.high, tile.depth // tile.wide
    missing = -places.shape[0] % heights
    places = torch.cat([places, places.new_full((missing, places.shape[1]), -1)]).view(-1, heights, places.shape[1])
    listed = (places >= 0).any(dim=1)
    counts = -(-listed.sum(dim=1) // columns)  # stages of each group
    first = counts.cumsum(0) - counts
    group, column = listed.nonzero(as_tuple=True)
    rank = (listed.cumsum(dim=1) - 1)[group, column]
    stage, slot = first[group] + rank // columns, rank % columns
    begins = places.new_full((int(counts.sum()), heights, columns), -1)
    begins[stage, :, slot] = places[group, :, column]
    stages = torch.zeros(begins.shape[0], tile.entry, dtype=torch.int32, device="cpu")
    stages[:, :columns] = -1
    stages[stage, slot] = (column * tile.wide).to(torch.int32)
    _list_pieces(stages, begins, columns, tile.paired)
    work = (places >= 0).sum(dim=(1, 2))
    order = torch.argsort(work, descending=True, stable=True)
    groups = torch.stack([torch.arange(len(order), device="cpu") * tile.rows, first, counts, work], dim=1)[order].to(
        torch.int32
    )
    device = index.indices.device
    return ProductPlan(groups.to(device), stages.to(device), int(work.max()))


def _list_pieces(stages: Tensor, begins: Tensor, columns: int, paired: bool) -> None:
    """Masks, number and words of the pieces of every stage. begins: [stages, heights, columns], -1 for an empty one."""
    count, heights, _ = begins.shape
    wanted = begins >= 0
    if paired:
        pairs = wanted.view(count, heights, columns // 2, 2).any(dim=3)
        wanted = pairs.repeat_interleave(2, dim=2)
    bits = wanted.long() << torch.arange(heights, device="cpu")[:, None]
    stages[:, columns : 2 * columns] = to_int32(bits.sum(dim=1))
    stages[:, 2 * columns] = wanted.sum(dim=(1, 2))
    words = torch.where(begins < 0, ZEROS, begins // 16) * 256 + torch.arange(heights * columns, device="cpu").view(
        heights, columns
    )
    order = torch.argsort(~wanted.flatten(1), dim=1, stable=True)
    listed = 2 * columns + 1 + heights * columns
    stages[:, 2 * columns + 1 : listed] = to_int32(words.flatten(1).gather(1, order))


def sampled_plan(index: BSRIndex, tile: SampledTile) -> SampledPlan:
    """Jobs that cover every kept block once: groups of rows, cut where the columns or the units of a job are full.

    ValueError where there are more values than `product_plan` takes.
    """
    _check_size(index, tile.block_size)
    size, height = tile.block_size, tile.rows // tile.block_size
    grid = slots(index)
    grid = torch.cat([grid, grid.new_full((-grid.shape[0] % height, grid.shape[1]), -1)])
    grid = grid.view(-1, height, grid.shape[1])
    kept = grid >= 0
    counts = kept.sum(dim=1)
    units = (-(-counts // 2) if tile.paired else counts) * (size // tile.unit) ** 2
    group, column = counts.nonzero(as_tuple=True)
    begins = _cut(group, units[group, column], tile.cols // size, tile.bins * tile.units)
    number = torch.zeros_like(group)
    number[begins] = 1
    number = number.cumsum(0) - 1  # the job of each listed column
    slot = torch.arange(len(group), device="cpu") - begins[number]  # and its place there
    jobs = torch.full((len(begins), tile.job), -1, device="cpu")
    jobs[:, 0] = group[begins] * height * size
    jobs[number, 4 + slot] = column * size
    blocks = grid[group, :, column]  # [listed columns, height]
    owner, listed = _pairs(number, slot, blocks, tile) if tile.paired else _units(number, slot, blocks, tile)
    jobs[owner[:, None], _places(owner, len(begins), tile)[:, None] + torch.arange(4, device="cpu")] = listed
    return SampledPlan(jobs.to(device=index.indices.device, dtype=torch.int32))


def _cut(group: Tensor, units: Tensor, most_columns: int, most_units: int) -> Tensor:
    """Where each job begins among the listed columns: as many of a group as come within both limits."""
    total = units.cumsum(0)
    place = torch.arange(len(group), device="cpu")
    ends = torch.minimum(
        torch.searchsorted(total, total - units + most_units, right=True), torch.searchsorted(group, group, right=True)
    )
    following: list[int] = torch.maximum(torch.minimum(ends, place + most_columns), place + 1).tolist()
    begins, at = [], 0
    while at < len(following):
        begins.append(at)
        at = following[at]
    return torch.tensor(begins, dtype=torch.long, device="cpu")


def _places(owner: Tensor, jobs: int, tile: SampledTile) -> Tensor:
    """Where each unit begins in its job's ints. Neighbours, which often share rows, stay together in a bin."""
    counts = torch.bincount(owner, minlength=jobs)
    rank, count = torch.arange(len(owner), device="cpu") - (counts.cumsum(0) - counts)[owner], counts[owner]
    bin_ = ((rank + 1) * tile.bins - 1) // count
    return tile.units_at + 4 * (tile.units * bin_ + rank - bin_ * count // tile.bins)


def _units(number: Tensor, slot: Tensor, blocks: Tensor, tile: SampledTile) -> tuple[Tensor, Tensor]:
    """(job of each unit, [units, 4]), by jobs, then by rows.

    Of a unit: row | other row << 16, column, place in the values, place of the other 8 rows. number, slot: job and
    place there of each listed column; blocks: their places in the values, [columns, height].
    """
    size, unit = tile.block_size, tile.unit
    listed, row = (blocks >= 0).nonzero(as_tuple=True)
    inside = torch.arange(0, size, unit, device="cpu")
    down, along = inside[None, :, None], inside[None, None, :]
    rows, cols = (row * size)[:, None, None] + down, (slot[listed] * size)[:, None, None] + along
    places = (blocks[listed, row] * size * size)[:, None, None] + down * size + along
    given = rows | (rows + 8) << 16, cols, places, places + 8 * size
    parts = [each.expand(places.shape) for each in given]
    owner = number[listed][:, None, None].expand(places.shape)
    order = torch.argsort((owner * tile.rows + rows).flatten(), stable=True)
    return owner.flatten()[order], torch.stack(parts, dim=3).flatten(0, 2)[order]


def _pairs(number: Tensor, slot: Tensor, blocks: Tensor, tile: SampledTile) -> tuple[Tensor, Tensor]:
    """As `_units`, of blocks of 8: two of a column in one unit, the second missing (-1) where their number is odd."""
    size = tile.block_size
    listed, row = (blocks >= 0).nonzero(as_tuple=True)
    counts = torch.bincount(listed, minlength=len(number))
    rank = torch.arange(len(listed), device="cpu") - (counts.cumsum(0) - counts)[listed]
    at = (rank % 2 == 0).nonzero().flatten()
    follows = rank[at] + 1 < counts[listed[at]]
    other = torch.where(follows, at + 1, at)
    places = blocks[listed, row] * size * size
    units = [
        row[at] * size | (row[other] * size) << 16,
        slot[listed[at]] * size,
        places[at],
        torch.where(follows, places[other], -1),
    ]
    return number[listed[at]], torch.stack(units, dim=1)
