"""What an LSTM kernel multiplies when: a pattern as the tables that cuda/lstm.h reads.

Weights are multiplied in items of four pieces; a piece is 16 bytes of a row of what the weight is multiplied by, so that a
block is a few pieces wide. Forward, the four gates of some units are multiplied together: columns kept by the same gates
share an item, so that they are read once. Items of many gates come first, so that the warps that share them end together.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.bsr import BSRIndex

GATES = 4
PIECES = 4  # of an item
PIECE_BYTES = 16
ITEM_BYTES = 32


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


class Pieces(NamedTuple):
    """In the order in which they are multiplied: int64 [pieces], or [pieces, gates] where so it says.

    unit: block of hidden units; kind: pieces of one kind share items; gates: whose bits are set; begin: in a row of what the
    weight is multiplied by; places: [pieces, gates], where its weights begin in the values, of the gates that it has.
    """

    unit: Tensor
    kind: Tensor
    gates: Tensor
    begin: Tensor
    places: Tensor


def forward_plan(index: BSRIndex, block: int, itemsize: int) -> Plan:
    """The rows of each block of units, in all four gates. index: of the recurrent weight [4 hidden, hidden]."""
    rows, columns = index.rows.cpu().long(), index.indices.cpu().long()
    grid, width = (index.indptr.numel() - 1) // GATES, index.column_indptr.numel() - 1
    slots = torch.full((grid, width, GATES), -1, device="cpu")
    slots[rows % grid, columns, rows // grid] = torch.arange(len(rows), device="cpu")
    bits = ((slots >= 0).long() << torch.arange(GATES, device="cpu")).sum(dim=2)
    unit, column = bits.nonzero(as_tuple=True)
    gates, slots = bits[unit, column], slots[unit, column]
    first = torch.full(
        (grid * 2**GATES,), width, device="cpu"
    )  # column of these gates: so their pieces are sorted, after the number of gates
    first.scatter_reduce_(0, unit * 2**GATES + gates, column, "amin")
    kind = (unit * (GATES + 1) + (slots < 0).sum(dim=1)) * width + first[unit * 2**GATES + gates]
    order = torch.argsort(kind * width + column)
    inside, each = torch.arange(0, block, PIECE_BYTES // itemsize, device="cpu"), -(-block * itemsize // PIECE_BYTES)
    unit, kind, gates = (part[order].repeat_interleave(each) for part in (unit, kind, gates))
    begin = column[order, None] * block + inside
    places = slots[order, None] * block * block + inside[:, None]
    return tables(Pieces(unit, kind, gates, begin.flatten(), places.flatten(0, 1)), grid, index.indptr.device)


def backward_plan(index: BSRIndex, block: int, itemsize: int) -> Plan:
    """The columns of each block of units: sums over all rows of the weight, read where they are. index: as above."""
    indptr, rows, positions = (each.cpu().long() for each in (index.column_indptr, index.column_rows, index.positions))
    inside, each = torch.arange(0, block, PIECE_BYTES // itemsize, device="cpu"), -(-block * itemsize // PIECE_BYTES)
    unit = torch.arange(len(indptr) - 1, device="cpu").repeat_interleave(indptr.diff()).repeat_interleave(each)
    begin = rows[:, None] * block + inside
    places = (positions[:, None] * block + inside) * block
    pieces = Pieces(unit, unit, torch.ones_like(unit), begin.flatten(), places.flatten()[:, None])
    return tables(pieces, len(indptr) - 1, index.indptr.device)


def tables(pieces: Pieces, units: int, device: torch.device) -> Plan:
    """Items of up to four pieces of a kind; `units`: number of blocks of hidden units."""
    unit, kind, gates, begin, places = pieces
    number = torch.arange(len(kind), device="cpu")
    starts = torch.ones_like(kind, dtype=torch.bool)
    starts[1:] = kind[1:] != kind[:-1]
    rank = number - number[starts][starts.cumsum(0) - 1]  # among its kind
    heads = rank % PIECES == 0
    item, place = heads.cumsum(0) - 1, rank % PIECES
    has = (gates[heads, None] >> torch.arange(places.shape[1], device="cpu") & 1).bool()  # of each item
    of_item = has.sum(dim=1)
    of_unit = torch.zeros(2, units, dtype=torch.long, device="cpu")  # items and slots
    of_unit.index_add_(1, unit[heads], torch.stack([torch.ones_like(of_item), of_item]))
    first = torch.nn.functional.pad(of_unit.cumsum(dim=1), (1, 0))
    slot = of_item.cumsum(0) - of_item
    items = torch.full((len(of_item), ITEM_BYTES // 4), -1, device="cpu")
    items[item, place] = begin
    items[:, PIECES] = gates[heads]
    items[:, PIECES + 1] = slot - first[1, unit[heads]]
    items[:, PIECES + 2 :] = 0
    sources = torch.full((int(of_item.sum()), PIECES), -1, device="cpu")
    piece, gate = has[item].nonzero(as_tuple=True)
    sources[slot[item[piece]] + (has.cumsum(dim=1) - 1)[item[piece], gate], place[piece]] = places[piece, gate]
    tensors = [each.to(device=device, dtype=torch.int32) for each in (items, first[0], first[1], sources)]
    most_items, most_slots = of_unit.amax(dim=1).tolist()
    most_pieces = int(torch.bincount(unit, minlength=units).max())
    return Plan(tensors[0], tensors[1], tensors[2], tensors[3], most_items, most_slots, most_pieces)
