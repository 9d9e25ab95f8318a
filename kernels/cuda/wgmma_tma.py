"""Products by wgmma with operands that TMA brings (Hopper GPUs only): a rung beside that of kernels.cuda.wgmma.

One warp asks for boxes of X and of the kept blocks by tensor maps, where in the other rung a warpgroup gathers them;
sums leave as boxes, which are stored while the next tile is multiplied. In clusters of two CTAs each brings half of
what both read to both (multicast): of blocks of 64 and 128 the blocks, for neighbours in tokens; of 32 and 16 X, for
neighbours in rows, for whom every column of X is brought, listed or not.
Nothing here is measured: a tuned table alone says where this rung runs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.bsr import BSRIndex
from kernels.cuda import device, wgmma
from kernels.cuda.device import Kernel, Variant
from kernels.cuda.tensor_map import SWIZZLES, Map, TensorMap, encoded, placed
from kernels.cuda.wgmma import (
    BLOCKS,
    BYTES,
    LINE,
    MULTIPLIERS,
    OPS,
    OUTPUT_BYTES,
    Dealt,
    Listed,
    WgmmaTile,
    deal_tiles,
    list_columns,
)

MOST_MAPS = 64  # of tensors that a product has met; all are forgotten then
CLUSTERS = (1, 2)
FEWEST = 128  # tokens of a tile: fewer gather few bytes
TALL = 64  # blocks from here on fill a warpgroup's rows


@dataclass(frozen=True)
class TmaTile(WgmmaTile):
    """A tile as of the other rung, made by each of `cluster` CTAs that share what they read."""

    cluster: int = 1

    def shared_bytes(self, element: str, block_size: int) -> int:
        """As in the other rung, but for two boxes of sums of each warpgroup."""
        return super().shared_bytes(element, block_size) - OUTPUT_BYTES + MULTIPLIERS * 2 * 64 * LINE

    def fits(self, element: str, block_size: int) -> bool:
        """As in the other rung; small blocks with tokens in registers alone, for of a step they may keep none."""
        return super().fits(element, block_size) and (block_size >= TALL or self.register_a)


def variant(op: str, element: str, block_size: int, tile: TmaTile) -> Variant:
    """The kernel to compile; UnsupportedError with the reason where there is none."""
    known = wgmma.variant(op, element, block_size, tile)
    named = tuple(sorted({**dict(known.defines), "CLUSTER": tile.cluster}.items()))
    return replace(known, source="products_wgmma_tma.cu", defines=named)


def tiles(element: str, block_size: int) -> Iterator[TmaTile]:
    """Every tile worth trying: the other rung's of many tokens, each CTA alone and in clusters of two."""
    for tile in wgmma.tiles(element, block_size):
        for cluster in CLUSTERS if tile.tokens >= FEWEST else ():
            found = TmaTile(tile.rows, tile.tokens, tile.stages, tile.panels, tile.register_a, cluster=cluster)
            if found.fits(element, block_size):
                yield found


def all_variants() -> Iterator[Variant]:
    """Every kernel that `tiles` leads to."""
    for element in BYTES:
        for block_size in BLOCKS:
            for op in OPS:
                if wgmma.unsupported(op, element, block_size) is None:
                    yield from (variant(op, element, block_size, tile) for tile in tiles(element, block_size))


def list_all(index: BSRIndex, block_size: int, rows: int, cluster: int, transposed: bool) -> Listed:
    """As `list_columns`, but of each row group every column; groups without rows at the end make whole clusters."""
    kept = list_columns(index, block_size, rows, transposed)
    across = (index.indptr if transposed else index.column_indptr).numel() - 1
    counts = kept.first.diff().long()
    groups = -(-counts.numel() // cluster) * cluster
    place = torch.arange(counts.numel(), device=counts.device).repeat_interleave(counts) * across + kept.columns
    blocks = torch.full((groups * across, kept.blocks.shape[1]), -1, dtype=torch.int32, device=counts.device)
    blocks[place] = kept.blocks
    every = torch.arange(across, dtype=torch.int32, device=counts.device).repeat(groups)
    return Listed(torch.arange(groups + 1, dtype=torch.int32, device=counts.device) * across, every, blocks)


def deal_clusters(listed: Listed, tile: TmaTile, element: str, block_size: int, n: int, ctas: int) -> Dealt:
    """As `deal_tiles`, to clusters: a piece of work is the tiles of one, told by the first.

    Of blocks of 64 and 128 these are neighbours in tokens, of smaller ones in rows.
    """
    cluster, clusters = tile.cluster, max(1, ctas // tile.cluster)
    if block_size >= TALL:
        wide = replace(tile, tokens=tile.tokens * cluster, band=-(-tile.band // cluster))
        return deal_tiles(listed, wide, element, block_size, n, clusters)
    pairs = (listed.first.numel() - 1) // cluster
    dealt = deal_tiles(Listed(listed.first[: pairs + 1], *listed[1:]), tile, element, block_size, n, clusters)
    scale = torch.tensor([cluster, 1, cluster, 1], dtype=torch.int32, device=dealt.work.device)
    return dealt._replace(work=dealt.work * scale)


class TmaArguments(ctypes.Structure):
    """As struct Arguments in wgmma_boxes.h."""

    _fields_ = (
        *((name, TensorMap) for name in ("x_map", "values_map", "y_map")),
        *((name, ctypes.c_void_p) for name in ("tiles", "begins", "columns", "blocks")),
        *((f"unused_{number}", ctypes.c_uint64) for number in range(4)),
    )


class TmaProduct:
    """A prepared out = x W^T (or x W) for one pattern, one n and any values: `WgmmaProduct` by this rung."""

    parts = 1  # of a reduction

    def __init__(
        self,
        op: str,
        element: str,
        block_size: int,
        index: BSRIndex,
        n: int,
        tile: TmaTile,
        ctas: int,
        load: Callable[[Variant], Kernel] = device.load,
    ) -> None:
        """At most `ctas` CTAs, one a multiprocessor, but a whole cluster always."""
        transposed = op == "dsd_t"
        k, m = wgmma.widths(index, block_size, transposed)
        self.kernel = load(variant(op, element, block_size, tile))
        if block_size >= TALL:
            listed = list_columns(index, block_size, tile.rows, transposed)
        else:
            listed = list_all(index, block_size, tile.rows, tile.cluster, transposed)
        self.dealt = deal_clusters(listed, tile, element, block_size, n, ctas)
        self.tables = self.dealt.work, self.dealt.begins, listed.columns, listed.blocks
        self.arguments = placed(TmaArguments)
        for name, table in zip(("tiles", "begins", "columns", "blocks"), self.tables, strict=True):
            setattr(self.arguments, name, table.data_ptr())
        self.grid = (len(self.dealt.loads) * tile.cluster, 1, 1)
        tall, width = block_size >= TALL, BYTES[element]
        across = min(block_size, LINE // width)
        halves = 1 if tall else tile.cluster  # of the tokens, each brought by another CTA
        self.element, self.nnzb = element, index.indices.numel()
        self.maps: dict[tuple[str, int], Map] = {}
        self.boxes = {  # shape, box and swizzle of each
            "x_map": ((n, k), (tile.tokens // halves, LINE // width), SWIZZLES[LINE]),
            "values_map": (
                (max(1, self.nnzb) * block_size, block_size),
                (min(block_size, TALL), across),
                SWIZZLES[across * width],
            ),
            "y_map": ((n, m), (min(tile.tokens, LINE // width) if tall else 16, LINE // width), SWIZZLES[LINE]),
        }

    def _map(self, name: str, pointer: int) -> Map:
        """The map of a tensor at `pointer`, encoded when it is first met there."""
        found = self.maps.get((name, pointer))
        if found is None:
            if len(self.maps) >= MOST_MAPS:
                self.maps.clear()
            found = encoded(self.kernel.encode_tiled, self.element, pointer, *self.boxes[name])
            self.maps[name, pointer] = found
        return found

    def __call__(self, values: Tensor, x: Tensor, out: Tensor) -> None:
        """values: [nnzb, b, b]; x: [n, k]; out: [n, m], contiguous, at multiples of 16 bytes: addresses are read."""
        arguments = self.arguments
        x_pointer = x.data_ptr()
        arguments.x_map = self._map("x_map", x_pointer)
        arguments.values_map = self._map("values_map", values.data_ptr() if self.nnzb else x_pointer)  # of none: any
        arguments.y_map = self._map("y_map", out.data_ptr())
        self.kernel(self.grid, arguments)
