"""What an LSTM kernel multiplies when, a pattern as the tables that lstm.h reads, and how it is cut into CTAs.

Weights are multiplied in items of four pieces; a piece is 16 bytes of a row of what the weight is multiplied by, so
that a block is a few pieces wide. Forward, the four gates of some units are multiplied together: columns kept by the
same gates share an item, so that they are read once. Items of many gates come first, so that the warps that share them
end together.

The cut is what fits on a GPU and takes least by a simple count of cycles, of the multiprocessor with most to do, for
which all others wait at each step. Its samples' part of the state comes from the L2 cache in rounds of LATENCY cycles,
at most PORT_BYTES a cycle, or L2_BYTES where all take at once; weights are read from shared memory once per 16 samples,
at about the pace at which they are multiplied, and partial sums are written and read there, LINES samples at a time.

Units go in eights, as many as an instruction has. Hidden 1152 is 144 eights: of 132 multiprocessors some have two, and
with 16 units a CTA 72 are as fast. More are of use by dealing out samples, each CTA reading its own samples' state
only: so a CTA may have fewer than its tiles hold. At batch 20 and blocks of 32 (sparsity 0.8, 16 bits), 36 x 3 CTAs of
32 units and 7 samples read half as much as 72 x 1 of 16 units and 20 samples, in one round for two, and their weights,
twice as many, for one tile instead of two: 1984 cycles a step for 2656. 144 x 2 CTAs of 8 units are three to a
multiprocessor, 264 being two to each; in 16 bits they are best only where blocks of 16 leave no 32 units. At batch 80
multiplying is most of it: 36 x 3 CTAs of 27 samples, 3968 cycles, where 32, 32 and 16 take 4178.

On an H200 (1.75 GHz) these are 1.1 and 2.3 us. To them come gates, about 0.3 us, and what each step costs: an output's
store to the L2 cache, and as much again as a load is repeated too late, about 0.4 us. Nothing of this was measured.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.bsr import BSRIndex
from kernels.system.resources import UnsupportedError

GATES = 4
PIECES = 4  # of an item
PIECE_BYTES = 16
ITEM_BYTES = 32


class PlanPointers(ctypes.Structure):
    """`Plan` of cuda/lstm.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("items", "first_item", "first_slot", "sources")]


class Plan(NamedTuple):
    """Items and weights of each block of hidden units, all int32, on the GPU; the most of each in one block.

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

    unit: block of hidden units; kind: pieces of one kind share items; gates: whose bits are set; begin: in a row of
    what the weight is multiplied by; places: [pieces, gates], where its weights begin in the values, of the gates that
    it has.
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


L2_BYTES, PORT_BYTES, SHARED_BYTES, LATENCY = 25, 64, 128, 800  # a cycle and multiprocessor; cycles
PARTITIONS, REGISTERS = 4, 16384  # of a multiprocessor; of a partition, whose warps get 8 a thread at a time
MOST_REGISTERS = 255  # of a thread
MOST_THREADS = 512  # of a CTA
SAMPLES, MOST_TILES = 16, 5  # of a tile; of a CTA
LINES = 8  # of sums, that a warp writes at once
CTA_OVERHEAD = 1024  # bytes of shared memory that a CTA takes beside its own


class Device(NamedTuple):
    """What a GPU offers; as it stands, an H200. Bytes of shared memory of a multiprocessor, and the most of one CTA."""

    multiprocessors: int = 132
    shared_bytes: int = 233472
    cta_bytes: int = 232448


class Tiles(NamedTuple):
    """Tile parameters of cuda/lstm.h: a CTA's hidden units, tiles of 16 samples, and warps that share each tile.

    ahead: items whose operands a warp loads before it multiplies; resident: weights stay in shared memory; ctas: that
    must live on one multiprocessor together; rows: samples of a CTA, 0 for as many as its tiles hold.
    """

    units: int
    tiles: int
    split: int
    ahead: int
    resident: bool = True
    ctas: int = 1
    rows: int = 0

    @property
    def samples(self) -> int:
        return self.rows or SAMPLES * self.tiles

    @property
    def threads(self) -> int:
        return 32 * self.tiles * self.split

    def grid(self, hidden: int, batch: int) -> tuple[int, int, int]:
        return hidden // self.units, ceil(batch / self.samples), 1

    def sums_bytes(self, gates: int) -> int:
        """Shared memory for partial sums, or for the sums of the bias gradients. gates: 4 forward, 1 backward."""
        return 4 * max(self.split * gates * SAMPLES * self.tiles * self.units, 8 * self.threads)

    def weight_bytes(self, plan: Plan) -> int:
        """Of the CTA with most weights: 8 rows of four pieces a slot and tile of units."""
        return plan.most_slots * self.units // 8 * 8 * PIECES * PIECE_BYTES

    def shared_bytes(self, plan: Plan, gates: int) -> int:
        weights = self.weight_bytes(plan) if self.resident else 0
        return self.sums_bytes(gates) + ITEM_BYTES * plan.most_items + weights

    def registers(self, gates: int, exact: bool) -> int:
        """About as many as a thread needs, fitted to what ptxas takes; `exact`: for sums without tensor cores."""
        pairs = max(1, self.units // (4 * self.split))
        sums = gates * self.units // 2 * (4 if exact else 1)
        return (70 if self.resident else 96) + sums + 8 * self.ahead + 18 * pairs

    def cycles(self, plan: Plan, gates: int, shape: tuple[int, int], together: bool, multiprocessors: int) -> float:
        """Of a step on the multiprocessor with most to do, without what any step costs. shape: hidden, batch."""
        across, groups, _ = self.grid(*shape)
        ctas = ceil(across * groups / multiprocessors)
        samples, weights = min(self.samples, shape[1]), self.weight_bytes(plan)
        state = samples * PIECE_BYTES * plan.most_pieces
        from_cache = state if together and self.resident else state + weights
        sums = 4 * self.split * gates * self.units * LINES * ceil(samples / LINES)
        rounds = ceil(plan.most_items / (self.split * self.ahead))
        own, everybody = ctas * from_cache / PORT_BYTES, across * groups * from_cache / (L2_BYTES * multiprocessors)
        return max(rounds * LATENCY, own, everybody) + ctas * (weights * self.tiles + 2 * sums) / SHARED_BYTES


def most_registers(warps: int) -> int:
    """Of a thread, where `warps` warps live on one multiprocessor, dealt out to its partitions."""
    return min(MOST_REGISTERS, REGISTERS // (32 * ceil(warps / PARTITIONS)) // 8 * 8)


def candidates(block: int, batch: int, exact: bool) -> Iterator[Tiles]:
    """Every cut there is code for, `ctas` not yet counted; samples are dealt out evenly, 20 among 3 as 7, 7 and 6."""
    most = min(batch, MOST_TILES * SAMPLES)
    for rows in sorted({ceil(batch / ceil(batch / rows)) for rows in range(1, most + 1)}):
        tiles = ceil(rows / SAMPLES)
        for units in (8, 16, 32):
            for split in (1, 2, 4, 8):
                for resident in (True, False):
                    tile = Tiles(units, tiles, split, 2 if exact else 4, resident, rows=rows)
                    if block % units == 0 and tile.threads <= MOST_THREADS:
                        yield tile


def choose(plan: Plan, gates: int, sizes: tuple[int, int, int], exact: bool, device: Device, together: bool) -> Tiles:
    """The cut that should take least; UnsupportedError where none can be launched. sizes: hidden, batch, block.

    together: all CTAs must be on the GPU at once, as a cooperative launch demands. Weights stay in shared memory where
    they fit.
    """
    hidden, batch, block = sizes
    legal = []
    for tile in candidates(block, batch, exact):
        across, groups, _ = tile.grid(hidden, batch)
        ctas = ceil(across * groups / device.multiprocessors)
        tile = tile._replace(ctas=ctas if together else 1)
        shared = tile.shared_bytes(plan, gates)
        fits = tile.ctas * (shared + CTA_OVERHEAD) <= device.shared_bytes and shared <= device.cta_bytes
        if fits and tile.registers(gates, exact) <= most_registers(tile.ctas * tile.threads // 32):
            cycles = tile.cycles(plan, gates, (hidden, batch), together, device.multiprocessors)
            legal.append((not tile.resident, cycles, across * groups, tile))
    if not legal:
        layer = f"an LSTM layer of {hidden} hidden units at batch {batch}"
        if together:
            raise UnsupportedError(f"{layer} does not fit on {device.multiprocessors} multiprocessors at once")
        raise UnsupportedError(f"{layer} keeps more columns in a block row or column than a CTA has shared memory for")
    return min(legal)[-1]
