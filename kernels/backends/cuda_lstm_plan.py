"""What an LSTM kernel multiplies when: a pattern as the tables that cuda/lstm.h reads.

Weights are multiplied in items of four pieces; a piece is 16 bytes of a row of what the weight is multiplied by, so that a
block is a few pieces wide. Forward, the four gates of some units are multiplied together: columns kept by the same gates
share an item, so that they are read once. Items of many gates come first, so that the warps that share them end together.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.bsr import BSRIndex

GATES = 4
PIECES = 4  # of an item
PIECE_BYTES = 16
ITEM_BYTES = 32

Piece = tuple[int, dict[int, int]]  # where it begins in a row; by gate, where its weights begin in the values
Items = list[list[Piece]]


class PlanPointers(ctypes.Structure):
    """`Plan` of cuda/lstm.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("items", "first_item", "first_slot", "sources")]


class Plan(NamedTuple):
    """Items and weights of each block of hidden units, all int32, on the GPU; the greatest numbers of each in one block.

    items: [items, 8]; first_item, first_slot: [hidden / block + 1]; sources: [slots, 4].
    """

    items: Tensor
    first_item: Tensor
    first_slot: Tensor
    sources: Tensor
    most_items: int
    most_slots: int
    most_pieces: int

    @property
    def pointers(self) -> PlanPointers:
        return PlanPointers(*(each.data_ptr() for each in self[:4]))


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
