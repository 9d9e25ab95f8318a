"""Plans of the CUDA kernels by loops over rows, columns and blocks: slow and obvious, what the fast ones must equal."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.bsr import BSRIndex
from kernels.cuda.lstm_plan import GATES, PIECE_BYTES, PIECES, Plan
from kernels.cuda.mma_plan import SampledPlan, SampledTile, slots

Piece = tuple[int, dict[int, int]]  # where it begins in a row; by gate, where its weights begin in the values
Items = list[list[Piece]]


def sampled_plan(index: BSRIndex, tile: SampledTile) -> SampledPlan:
    """Jobs that cover every kept block once: groups of rows, cut where the columns or the units of a job are full."""
    grid, size, height = slots(index), tile.block_size, tile.rows // tile.block_size
    jobs: list[Tensor] = []
    for first in range(0, grid.shape[0], height):
        group = grid[first : first + height]
        kept = group >= 0
        per_block = (size // tile.unit) ** 2
        counts = (-(-kept.sum(dim=0) // 2) if tile.paired else kept.sum(dim=0)) * per_block
        runs = _cut(counts, tile.cols // size, tile.bins * tile.units)
        jobs += [_job(group[:, columns], columns, first * size, tile) for columns in runs]
    numbers = torch.stack(jobs) if jobs else torch.zeros(0, tile.job)
    return SampledPlan(numbers.to(device=index.indices.device, dtype=torch.int32))


def _cut(counts: Tensor, most_columns: int, most_units: int) -> list[Tensor]:
    """Runs of the columns that have units, each within both limits."""
    runs: list[list[int]] = []
    units = 0
    for column in counts.nonzero().flatten().tolist():
        more = int(counts[column])
        if not runs or len(runs[-1]) == most_columns or units + more > most_units:
            runs.append([])
            units = 0
        runs[-1].append(column)
        units += more
    return [torch.tensor(run) for run in runs]


def _job(group: Tensor, columns: Tensor, first_row: int, tile: SampledTile) -> Tensor:
    """One job's ints. group: the slots of its rows at its columns."""
    job = torch.full((tile.job,), -1)
    job[0] = first_row
    job[4 : 4 + len(columns)] = columns * tile.block_size
    units = _pairs(group, tile) if tile.paired else _units(group, tile)
    bins = torch.arange(tile.bins + 1) * len(units) // tile.bins  # neighbours, which often share rows, stay together
    for number in range(tile.bins):
        mine = units[bins[number] : bins[number + 1]]
        at = tile.units_at + 4 * tile.units * number
        job[at : at + 4 * len(mine)] = mine.flatten()
    return job


def _units(group: Tensor, tile: SampledTile) -> Tensor:
    """[units, 4], by rows: row | other row << 16, column, place in the values, place of the other 8 rows."""
    size, unit = tile.block_size, tile.unit
    row, column = (group >= 0).nonzero(as_tuple=True)
    down, along = (
        inside.flatten() * unit for inside in torch.meshgrid(*(torch.arange(size // unit),) * 2, indexing="ij")
    )
    rows, cols = row[:, None] * size + down, column[:, None] * size + along
    places = group[row, column][:, None] * size * size + down * size + along
    units = torch.stack([rows | (rows + 8) << 16, cols, places, places + 8 * size], dim=2).flatten(0, 1)
    return units[torch.argsort(rows.flatten(), stable=True)]


def _pairs(group: Tensor, tile: SampledTile) -> Tensor:
    """As `_units`, of blocks of 8.

    Two of the same column are in one unit, the second missing (-1) where their number is odd.
    """
    size = tile.block_size
    column, row = (group.T >= 0).nonzero(as_tuple=True)
    counts = torch.bincount(column, minlength=group.shape[1])
    rank = torch.arange(len(column)) - (counts.cumsum(0) - counts)[column]
    head = rank % 2 == 0
    follows = torch.cat([~head[1:], head.new_zeros(1)])[head]
    at = head.nonzero().flatten()
    other = torch.where(follows, at + 1, at)
    places = group[row, column] * size * size
    units = [
        row[at] * size | (row[other] * size) << 16,
        column[at] * size,
        places[at],
        torch.where(follows, places[other], -1),
    ]
    return torch.stack(units, dim=1)


def forward_plan(index: BSRIndex, block: int, itemsize: int) -> Plan:
    """The rows of each block of units, in all four gates. index: of the recurrent weight [4 hidden, hidden]."""
    indptr, columns = index.indptr.tolist(), index.indices.tolist()
    grid = (len(indptr) - 1) // GATES
    rows = []
    for row in range(grid):
        kept: dict[int, dict[int, int]] = {}  # by block column: its value block, by gate
        for gate in range(GATES):
            for place in range(indptr[gate * grid + row], indptr[gate * grid + row + 1]):
                kept.setdefault(columns[place], {})[gate] = place
        classes: dict[tuple[int, ...], list[Piece]] = {}
        for column in sorted(kept):
            pieces = classes.setdefault(tuple(kept[column]), [])
            for at in range(0, block, PIECE_BYTES // itemsize):
                places = {gate: place * block * block + at for gate, place in kept[column].items()}
                pieces.append((column * block + at, places))
        rows.append([item for gates in sorted(classes, key=len, reverse=True) for item in fours(classes[gates])])
    return tables(rows, index.indptr.device)


def backward_plan(index: BSRIndex, block: int, itemsize: int) -> Plan:
    """The columns of each block of units: sums over all rows of the weight, read where they are. index: as above."""
    indptr, rows, positions = (each.tolist() for each in (index.column_indptr, index.column_rows, index.positions))
    columns = []
    for column in range(len(indptr) - 1):
        pieces = [
            (rows[place] * block + at, {0: (positions[place] * block + at) * block})
            for place in range(indptr[column], indptr[column + 1])
            for at in range(0, block, PIECE_BYTES // itemsize)
        ]
        columns.append(list(fours(pieces)))
    return tables(columns, index.indptr.device)


def fours(pieces: list[Piece]) -> Iterator[list[Piece]]:
    return (pieces[at : at + PIECES] for at in range(0, len(pieces), PIECES))


def tables(rows: list[Items], device: torch.device) -> Plan:
    """rows: the items of each block of units."""
    items: list[list[int]] = []
    sources: list[list[int]] = []
    first_item, first_slot = [0], [0]
    for row in rows:
        for item in row:
            gates, missing = sorted(item[0][1]), [-1] * (PIECES - len(item))
            slot = len(sources) - first_slot[-1]
            items.append([*(column for column, _ in item), *missing, sum(1 << gate for gate in gates), slot, 0, 0])
            sources += [[*(places[gate] for _, places in item), *missing] for gate in gates]
        first_item.append(len(items))
        first_slot.append(len(sources))

    def tensor(values: list[list[int]] | list[int], *width: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device).reshape(-1, *width)

    most_items, most_slots = (int(torch.tensor(first).diff().max()) for first in (first_item, first_slot))
    most_pieces = max(sum(map(len, row)) for row in rows)
    indptrs = tensor(first_item), tensor(first_slot)
    return Plan(tensor(items, 8), *indptrs, tensor(sources, PIECES), most_items, most_slots, most_pieces)
