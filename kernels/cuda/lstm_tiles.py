"""How an LSTM kernel is cut into CTAs: what fits on a GPU, and what takes least by a simple count of cycles.

A step of a CTA: its samples' part of the state comes from the L2 cache, about L2_BYTES a cycle and multiprocessor, in rounds
of LATENCY cycles; weights are read from shared memory once per 16 samples, and partial sums are written and read there.
On an H200 (132 multiprocessors, 1.75 GHz), hidden 1152, sparsity 0.8, 16-bit: a multiprocessor keeps 30 to 90 kB of weights
and reads 27 to 43 kB of state a step at batch 20, 43 to 65 kB at 80, which is 0.6 to 1.5 us; publishing a step and seeing it
published are three trips to the L2 cache, about 1.2 us; sums and gates 0.5 us. So a step takes 2.5 to 3.5 us by this estimate.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

from kernels.cuda.lstm_plan import ITEM_BYTES, PIECE_BYTES, PIECES, Plan

L2_BYTES, SHARED_BYTES, LATENCY = 25, 128, 800
PARTITIONS, REGISTERS = 4, 16384  # of a multiprocessor; of a partition, whose warps get 8 a thread at a time
MOST_REGISTERS = 255  # of a thread
MOST_THREADS = 512  # of a CTA
SAMPLES = 16  # of a tile
CTA_OVERHEAD = 1024  # bytes of shared memory that a CTA takes beside its own


class Device(NamedTuple):
    """What a GPU offers; as it stands, an H200. Bytes of shared memory of a multiprocessor, and the most of one CTA."""

    multiprocessors: int = 132
    shared_bytes: int = 233472
    cta_bytes: int = 232448


class Tiles(NamedTuple):
    """Tile parameters of cuda/lstm.h: a CTA's hidden units, tiles of 16 samples, and warps that share each tile.

    ahead: items whose operands a warp loads before it multiplies; resident: weights stay in shared memory; ctas: that must
    live on one multiprocessor together.
    """

    units: int
    tiles: int
    split: int
    ahead: int
    resident: bool = True
    ctas: int = 1

    @property
    def threads(self) -> int:
        return 32 * self.tiles * self.split

    def grid(self, hidden: int, batch: int) -> tuple[int, int, int]:
        return hidden // self.units, ceil(batch / (SAMPLES * self.tiles)), 1

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

    def cycles(self, plan: Plan, gates: int, batch: int, together: bool, ctas: int) -> float:
        """Of a step on the multiprocessor with most to do, `ctas` of them, without what any step costs."""
        state = min(SAMPLES * self.tiles, batch) * PIECE_BYTES * plan.most_pieces
        weights = self.weight_bytes(plan)
        from_cache = state if together and self.resident else state + weights
        shared = weights * self.tiles + 2 * self.sums_bytes(gates)
        rounds = ceil(plan.most_items / (self.split * self.ahead))
        return max(rounds * LATENCY, ctas * from_cache / L2_BYTES) + ctas * shared / SHARED_BYTES


def most_registers(warps: int) -> int:
    """Of a thread, where `warps` warps live on one multiprocessor, dealt out to its partitions."""
    return min(MOST_REGISTERS, REGISTERS // (32 * ceil(warps / PARTITIONS)) // 8 * 8)


def candidates(block: int, batch: int, exact: bool) -> Iterator[Tiles]:
    """Every cut there is code for, `ctas` not yet counted."""
    for units in (8, 16, 32):
        for tiles in range(1, min(5, ceil(batch / SAMPLES)) + 1):
            for split in (1, 2, 4, 8):
                for resident in (True, False):
                    tile = Tiles(units, tiles, split, 2 if exact else 4, resident)
                    if block % units == 0 and tile.threads <= MOST_THREADS:
                        yield tile


def choose(
    plan: Plan, gates: int, sizes: tuple[int, int, int], exact: bool, device: Device, together: bool
) -> Tiles | str:
    """The cut that should take least, or why none can be launched. sizes: hidden, batch, block.

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
            legal.append((not tile.resident, tile.cycles(plan, gates, batch, together, ctas), tile))
    if not legal:
        layer = f"an LSTM layer of {hidden} hidden units at batch {batch}"
        if together:
            return f"{layer} does not fit on {device.multiprocessors} multiprocessors at once"
        return f"{layer} keeps more columns in a block row or column than a CTA has shared memory for"
    return min(legal)[-1]
