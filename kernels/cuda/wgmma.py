"""Products by wgmma (Hopper GPUs only): which exist, the tiles of dsd and dsd_t and their launches.

Activations are token-major. dsd: out [n, m] = x [n, k] W^T; dsd_t: the same with W's transpose. W is given by its kept
blocks [nnzb, b, b]. sdd: kernels.cuda.wgmma_sdd.
"""

from __future__ import annotations

import ctypes
import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.bsr import BSRIndex
from kernels.cuda import device
from kernels.cuda.device import Kernel, Variant
from kernels.system.resources import UnsupportedError

BLOCKS = (16, 32, 64, 128)
BYTES = {"Bfloat16": 2, "Float16": 2, "Tf32": 4}
OPS = ("dsd", "dsd_t")
LINE = 128  # bytes of a token's line in a stage
MULTIPLIERS = 2  # warpgroups; one more gathers
OUTPUT_BYTES = MULTIPLIERS * 64 * (LINE + 16)  # where sums are rearranged on their way out
THREADS = 128 * (MULTIPLIERS + 1)
MOST_SHARED = 227 * 1024
EPILOGUE = 2  # steps that writing a tile takes the time of, as estimated from the instructions
BAND = 4  # token tiles of a band, where there are bands


def unsupported(op: str, element: str, block_size: int) -> str | None:
    """Why there is no kernel for dsd, dsd_t or sdd on `element` and blocks, in one line, or None."""
    if op not in (*OPS, "sdd"):
        return f"there is no {op} among {', '.join(OPS)}"
    if element not in BYTES:
        return f"wgmma multiplies no {element}"
    if block_size not in BLOCKS:
        return f"wgmma needs blocks of 16, 32, 64 or 128, not {block_size}"
    if op != "dsd" and BYTES[element] != 2:
        return "wgmma reads transposed operands of 16 bits only"
    return None


@dataclass(frozen=True)
class WgmmaTile:
    """What a CTA makes at a time, rows x tokens, and its ring: `stages` of `panels` lines of 128 bytes a token.

    register_a: tokens are loaded into registers once for all block rows (blocks below 64); band: token tiles whose row
    groups all come before those of the next tokens, so that X is read once and W stays in the L2 cache; 0: all tokens.
    """

    rows: int
    tokens: int
    stages: int
    panels: int = 1
    register_a: bool = False
    band: int = 0

    def columns(self, element: str, block_size: int) -> int:
        """Listed columns of a step."""
        return max(1, LINE // (block_size * BYTES[element])) * self.panels

    def steps(self, listed: int, element: str, block_size: int) -> int:
        """Steps of a row group that lists so many columns."""
        return -(-listed // self.columns(element, block_size)) * max(1, block_size * BYTES[element] // LINE)

    def stage_bytes(self, element: str, block_size: int) -> int:
        """Bytes of a stage: tokens' lines, and a place for every block that the rows may keep in its columns."""
        columns = self.columns(element, block_size)
        width = min(LINE, block_size * BYTES[element])
        return self.panels * self.tokens * LINE + columns * self.rows * width

    def shared_bytes(self, element: str, block_size: int) -> int:
        """As the kernel divides it: stages, output, and per stage two barriers and a word of what is kept."""
        return self.stages * (self.stage_bytes(element, block_size) + 24) + OUTPUT_BYTES

    def fits(self, element: str, block_size: int) -> bool:
        """Whether shared memory, registers and the 64-bit word of kept blocks suffice."""
        columns = self.columns(element, block_size)
        sums = self.rows * self.tokens // (MULTIPLIERS * 128)
        room = self.shared_bytes(element, block_size) <= MOST_SHARED and sums <= 128
        if block_size >= 64:
            return room and self.rows == 64 * MULTIPLIERS and self.panels == 1 and not self.register_a
        return room and self.tokens % (64 * MULTIPLIERS) == 0 and columns * self.rows // block_size <= 64


def variant(op: str, element: str, block_size: int, tile: WgmmaTile) -> Variant:
    """The kernel to compile; ValueError with the reason where there is none."""
    reason = unsupported(op, element, block_size)
    if reason is None and not tile.fits(element, block_size):
        reason = f"{tile} does not fit {element} blocks of {block_size}"
    if reason is not None:
        raise UnsupportedError(reason)
    assert op in OPS
    defines: dict[str, str | int] = {
        "BLOCK": block_size,
        "ELEMENT": element,
        "PANELS": tile.panels,
        "REGISTER_A": int(tile.register_a),
        "ROWS": tile.rows,
        "STAGES": tile.stages,
        "TOKENS": tile.tokens,
        "TURNED": int(op == "dsd_t"),
        "WARPGROUPS": MULTIPLIERS,
    }
    named = tuple(sorted(defines.items()))
    return Variant("products_wgmma.cu", "dsd", named, THREADS, tile.shared_bytes(element, block_size), needs=90)


def tiles(element: str, block_size: int) -> Iterator[WgmmaTile]:
    """Every tile worth trying, deepest ring first; a tuner times them, each in bands too (`in_bands`)."""
    flat = block_size < 64
    for rows in (256, 128) if flat else (64 * MULTIPLIERS,):
        for tokens in (128, 256) if flat else (256, 128, 64, 32):
            for panels in (1, 2) if flat else (1,):
                for register_a in (False, True) if flat else (False,):
                    deepest = (WgmmaTile(rows, tokens, stages, panels, register_a) for stages in (6, 4, 3))
                    yield from [tile for tile in deepest if tile.fits(element, block_size)][:1]


def in_bands(tile: WgmmaTile, n: int) -> list[WgmmaTile]:
    """The tile in the orders that differ for n tokens: all tokens of a row group together, and in bands."""
    return [tile, replace(tile, band=BAND)] if n > BAND * tile.tokens else [tile]


def default_tile(element: str, block_size: int, n: int) -> WgmmaTile:
    """Without measurements: the most rows and tokens whose sums fit, tokens no more than n asks for.

    Of blocks of 16 the most tokens, since each place of the group's rows and a step's columns is looked at whether or
    not a block is kept there; of larger ones the most rows, which share X.
    """
    found = list(tiles(element, block_size))
    enough = [tile for tile in found if tile.tokens < 2 * n or tile.tokens == min(each.tokens for each in found)]
    side = attrgetter("tokens" if block_size == 16 else "rows")
    return max(enough, key=lambda tile: (tile.rows * tile.tokens, side(tile), tile.register_a, -tile.panels))


def all_variants() -> Iterator[Variant]:
    """Every kernel that `tiles` leads to."""
    for element in BYTES:
        for block_size in BLOCKS:
            for op in OPS:
                if unsupported(op, element, block_size) is None:
                    yield from (variant(op, element, block_size, tile) for tile in tiles(element, block_size))


class Listed(NamedTuple):
    """By row group (`rows` rows of the output): the block columns that any of its block rows keeps, ascending; int32.

    first: [groups + 1], where a group's columns begin; columns: [listed]; blocks: [listed, block rows of a group], the
    block's number in the values or -1.
    """

    first: Tensor
    columns: Tensor
    blocks: Tensor


def list_columns(index: BSRIndex, block_size: int, rows: int, transposed: bool = False) -> Listed:
    """What a CTA of `rows` rows gathers, of the matrix with pattern `index` or of its transpose."""
    slots = rows // block_size
    if transposed:
        grid_rows, grid_cols = index.column_indptr.numel() - 1, index.indptr.numel() - 1
        every = torch.arange(grid_rows, device=index.indptr.device)
        row, column, block = every.repeat_interleave(index.column_indptr.diff()), index.column_rows, index.positions
    else:
        grid_rows, grid_cols = index.indptr.numel() - 1, index.column_indptr.numel() - 1
        row, column, block = (
            index.rows.long(),
            index.indices,
            torch.arange(index.rows.numel(), device=index.rows.device),
        )
    groups = -(-grid_rows // slots)
    keys, place = torch.unique(row // slots * grid_cols + column, return_inverse=True)
    counts = torch.bincount(keys // grid_cols, minlength=groups)
    blocks = torch.full((keys.numel(), slots), -1, dtype=torch.int32, device=row.device)
    blocks[place, row % slots] = block.to(torch.int32)
    first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return Listed(first.to(torch.int32), (keys % grid_cols).to(torch.int32), blocks)


class Dealt(NamedTuple):
    """The work of every CTA of a kernel whose CTAs stay.

    work: int32 [pieces, ints], CTA c's from begins[c] on; begins: int32 [CTAs + 1]; loads: what each CTA's pieces cost.
    """

    work: Tensor
    begins: Tensor
    loads: tuple[float, ...]


def first_done(costs: Iterable[float], ctas: int) -> tuple[list[int], tuple[float, ...]]:
    """Pieces of work, in their order, each to the CTA that is done first: whose each is, and what each CTA's cost.

    Longest first this is the LPT rule: at most 4/3 of the best makespan (Graham 1969, SIAM J. Appl. Math. 17(2)).
    """
    loads = [(0.0, cta) for cta in range(ctas)]
    owners = []
    for cost in costs:
        load, cta = loads[0]
        owners.append(cta)
        heapq.heapreplace(loads, (load + cost, cta))
    return owners, tuple(load for load, _ in sorted(loads, key=lambda each: each[1]))


def deal(work: Tensor, costs: Iterable[float], ctas: int) -> Dealt:
    """Pieces of work by `first_done`, on at most `ctas` CTAs, none without work."""
    ctas = min(ctas, len(work))
    whose, loads = first_done(costs, ctas)
    owners = torch.tensor(whose, dtype=torch.long, device="cpu")
    begins = torch.nn.functional.pad(torch.bincount(owners, minlength=ctas).cumsum(0), (1, 0))
    dealt = work.cpu()[torch.argsort(owners, stable=True)]
    table, firsts = (each.to(device=work.device, dtype=torch.int32).contiguous() for each in (dealt, begins))
    return Dealt(table, firsts, loads)


def deal_tiles(listed: Listed, tile: WgmmaTile, element: str, block_size: int, n: int, ctas: int) -> Dealt:
    """The tiles of n tokens, the longest first, in bands where `tile` has them.

    Of each its row group, first token, where the group's columns begin in the list, and how many they are. Costs are in
    steps of the reduction.
    """
    first, across = listed.first.tolist(), -(-n // tile.tokens)
    counts = [after - before for before, after in pairwise(first)]
    falling = sorted(range(len(counts)), key=lambda group: -counts[group])
    band = tile.band or across
    order = [
        (group, token)
        for begin in range(0, across, band)
        for group in falling
        for token in range(begin, min(begin + band, across))
    ]
    costs = [tile.steps(count, element, block_size) + EPILOGUE for count in counts]
    work = [(group, token * tile.tokens, first[group], counts[group]) for group, token in order]
    table = torch.tensor(work, dtype=torch.int32, device="cpu").to(listed.first.device)
    return deal(table, (costs[group] for group, _ in order), ctas)


def widths(index: BSRIndex, block_size: int, transposed: bool) -> tuple[int, int]:
    """k and m of out [n, m] = x [n, k] W^T, or, transposed, x W."""
    k, m = ((each.numel() - 1) * block_size for each in (index.column_indptr, index.indptr))
    return (m, k) if transposed else (k, m)


class Arguments(ctypes.Structure):
    """As struct Arguments in wgmma_gather.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "x", "y", "tiles", "begins", "columns", "blocks")),
        *((name, ctypes.c_int) for name in ("n", "k", "m")),
    )


class WgmmaProduct:
    """A prepared out = x W^T (or x W) for one pattern, one n and any values. A call launches only."""

    parts = 1  # of a reduction

    def __init__(
        self,
        op: str,
        element: str,
        block_size: int,
        index: BSRIndex,
        n: int,
        tile: WgmmaTile,
        ctas: int,
        load: Callable[[Variant], Kernel] = device.load,
    ) -> None:
        """At most `ctas` CTAs, one a multiprocessor."""
        transposed = op == "dsd_t"
        self.kernel = load(variant(op, element, block_size, tile))
        listed = list_columns(index, block_size, tile.rows, transposed)
        self.dealt = deal_tiles(listed, tile, element, block_size, n, ctas)
        self.tables = self.dealt.work, self.dealt.begins, listed.columns, listed.blocks
        pointers = (each.data_ptr() for each in self.tables)
        self.arguments = Arguments(None, None, None, *pointers, n, *widths(index, block_size, transposed))
        self.grid = (len(self.dealt.loads), 1, 1)

    def __call__(self, values: Tensor, x: Tensor, out: Tensor) -> None:
        """values: [nnzb, b, b]; x: [n, k]; out: [n, m], contiguous, at multiples of 16 bytes: addresses are read."""
        arguments = self.arguments
        arguments.values, arguments.x, arguments.y = values.data_ptr(), x.data_ptr(), out.data_ptr()
        self.kernel(self.grid, arguments)
