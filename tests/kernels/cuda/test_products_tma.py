"""Products by wgmma with operands by TMA through the emulator.

Alone and in clusters of two; what is planted is caught.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch
from emulator import EmulationError
from wgmma_cases import CASES, PATTERNS, SCHEDULES, WIDTHS, check, grid_of, kept_blocks, plant

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.cuda import wgmma_tma
from kernels.cuda.tensor_map import ALIGNMENT
from kernels.cuda.wgmma import list_columns
from kernels.cuda.wgmma_tma import CLUSTERS, TmaProduct, TmaTile, deal_clusters, list_all, tiles


def small_tile(block_size: int, cluster: int) -> TmaTile:
    """Of few tokens, so that there are several."""
    if block_size >= wgmma_tma.TALL:
        return TmaTile(128, 32, 3, cluster=cluster)
    return TmaTile(128, 128, 3, register_a=True, cluster=cluster)


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize(("op", "element", "block_size"), CASES)
def test_few_tokens(op: str, element: str, block_size: int, cluster: int) -> None:
    kept = kept_blocks("random", *grid_of(block_size))
    check(op, element, kept, block_size, 100, small_tile(block_size, cluster), ("random", "random"))


@pytest.mark.emulate
@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize(("op", "element", "block_size"), CASES)
def test_patterns(op: str, element: str, block_size: int, cluster: int, pattern: str, n: int) -> None:
    kept = kept_blocks(pattern, *grid_of(block_size))
    for schedule in SCHEDULES:
        check(op, element, kept, block_size, n, small_tile(block_size, cluster), schedule)


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("block_size", [128, 16])
@pytest.mark.parametrize("pattern", ["empty", "one block"])
def test_hardly_any_block(pattern: str, block_size: int, cluster: int) -> None:
    kept = kept_blocks(pattern, *grid_of(block_size))
    check("dsd", "Bfloat16", kept, block_size, 33, small_tile(block_size, cluster), ("forward", "late"))


@pytest.mark.parametrize("block_size", [64, 16])
def test_bands_of_clusters(block_size: int) -> None:
    kept = kept_blocks("random", *grid_of(block_size))
    tile = TmaTile(128, 32, 3, band=3, cluster=2)
    if block_size == 16:
        tile = TmaTile(128, 128, 3, register_a=True, band=1, cluster=2)
    for schedule in SCHEDULES:
        check("dsd", "Bfloat16", kept, block_size, 150, tile, schedule)


@pytest.mark.emulate
@pytest.mark.parametrize(("op", "element", "block_size"), CASES)
def test_every_tile(op: str, element: str, block_size: int) -> None:
    kept = kept_blocks("random", *grid_of(block_size))
    for tile in tiles(element, block_size):
        for schedule in SCHEDULES:
            check(op, element, kept, block_size, 100, tile, schedule)


BOXES, KERNEL, STORE, SUMS = "wgmma_boxes.h", "products_wgmma_tma.cu", "wgmma_store.h", "wgmma_sums.h"
TALL_FENCE = "            proxy_fence();\n            barrier_wait(1 + group, 128);\n            if"
FLAT_FENCE = "            proxy_fence();\n            __syncwarp();\n            if"
FAULTS = {  # block size and cluster, then what is planted
    "fewer bytes are expected": (64, 1, (BOXES, "x_bytes + __popcll(blocks) * block_bytes", "x_bytes")),
    "more bytes are expected": (64, 2, (BOXES, "x_bytes + __popcll", "128 + x_bytes + __popcll")),
    "what is kept is not told": (
        64,
        1,
        (BOXES, "        kept[number % STAGES] = blocks;\n        mbarrier_expect", "        mbarrier_expect"),
    ),
    "no wait for a full stage": (64, 1, (SUMS, "        ring.wait_full(used);\n", "")),
    "no wait for an empty stage": (64, 1, (KERNEL, "            ring.wait_empty(filled);\n", "")),
    "no wait for the other's empty stage": (64, 2, (BOXES, "4 * WARPGROUPS * CLUSTER", "4 * WARPGROUPS")),
    "the other is not told": (64, 2, (BOXES, "if (lane < CLUSTER)", "if (lane == blockIdx.x % CLUSTER)")),
    "exits before the other is done": (64, 2, (KERNEL, "    if (CLUSTER > 1) ring.meet();", "    ")),
    "begins before the other is there": (64, 2, (BOXES, "        meet();\n", "        __syncthreads();\n")),
    "mbarriers are not published": (64, 1, (BOXES, "            mbarrier_publish();\n", "")),
    "boxes are not shared": (64, 2, (BOXES, "if (shared) copy_box_to", "if (false) copy_box_to")),
    "both bring the same blocks": (64, 2, (BOXES, "group % CLUSTER != blockIdx.x % CLUSTER", "false")),
    "the next column of X": (64, 1, (BOXES, "column * BLOCK + step.part", "column * BLOCK + 8 + step.part")),
    "one token on": (64, 1, (BOXES, "tile.token + tokens_on, full", "tile.token + tokens_on + 1, full")),
    "one row of blocks on": (64, 2, (BOXES, "block * BLOCK + row, full", "block * BLOCK + row + 1, full")),
    "always the first part": (128, 1, (BOXES, ": step.part * per_line;", ": 0;")),
    "always the upper half": (128, 2, (BOXES, "block * BLOCK + row, full", "block * BLOCK, full")),
    "the other's tokens are not brought": (16, 2, (BOXES, "halves_on = tall ? 0 : rank", "halves_on = 0")),
    "small blocks of another place": (16, 2, (BOXES, "step.block[i] * BLOCK, full", "step.block[i] * 8, full")),
    "the first columns of X always": (16, 1, (BOXES, "(at * PANELS + panel)", "panel")),
    "the other's rows": (16, 2, ("wgmma_tile.h", "tile.x + groups_on", "tile.x")),
    "sums are not fenced": (64, 1, (STORE, TALL_FENCE, TALL_FENCE.replace("proxy_fence();", ""))),
    "no barrier before a box leaves": (64, 1, (STORE, TALL_FENCE, "            proxy_fence();\n            if")),
    "no wait for a box of sums": (64, 1, (STORE, "            if (thread == 0) store_wait<unread>();\n", "")),
    "no barrier after a box of sums": (
        64,
        1,
        (STORE, "store_wait<unread>();\n            barrier_wait(1 + group, 128);", "store_wait<unread>();"),
    ),
    "no last wait for a box of sums": (64, 1, (STORE, "if (thread == 0) store_wait<0>();", "")),
    "a box of sums of other rows": (64, 1, (STORE, "+ group * 64;", ";")),
    "small sums are not fenced": (16, 1, (STORE, FLAT_FENCE, FLAT_FENCE.replace("proxy_fence();", ""))),
    "no wait for a box of small sums": (16, 1, (STORE, "            if (lane == 0) store_wait<unread>();\n", "")),
    "no last wait for a box of small sums": (16, 1, (STORE, "if (thread % 32 == 0) store_wait<0>();", "")),
    "no commit of a box of small sums": (
        16,
        1,
        (STORE, "tile.token + token, to);\n            store_commit();", "tile.token + token, to);"),
    ),
    "the other's tokens": (64, 2, ("wgmma_tile.h", "(rank - groups_on) * TOKENS", "0")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    block_size, cluster, planted = FAULTS[fault]
    source = plant(tmp_path, KERNEL, planted)
    kept = kept_blocks("full", 3, 5) if block_size == 64 else kept_blocks("random", *grid_of(block_size))
    if block_size == 16:
        kept = kept_blocks("random", 9, 30)  # more steps than stages
    n = 300 if "small sums" in fault else 70  # a box laid in a buffer for the second time, by some CTA
    for schedule in SCHEDULES:
        with pytest.raises((EmulationError, AssertionError)):
            check("dsd", "Bfloat16", kept, block_size, n, small_tile(block_size, cluster), schedule, source)


@pytest.mark.parametrize("block_size", [64, 16])
def test_another_swizzle_is_caught(block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wgmma_tma, "SWIZZLES", {32: 0, 64: 0, 128: 0})
    kept = kept_blocks("full", 3, 5)
    with pytest.raises(AssertionError):
        check("dsd", "Bfloat16", kept, block_size, 33, small_tile(block_size, 1), SCHEDULES[0])


@pytest.mark.parametrize("transposed", [False, True])
def test_every_column_of_every_row_group_is_listed(transposed: bool) -> None:
    mask = BlockMask(kept_blocks("random", 19, 11), 16)
    index = BSRMatrix.from_dense(mask.expand().float(), mask).index
    some, every = list_columns(index, 16, 128, transposed), list_all(index, 16, 128, 2, transposed)
    across, groups = (19, 2) if transposed else (11, 4)  # whole clusters: two of two groups, the last without rows
    assert every.first.tolist() == [across * group for group in range(groups + 1)]
    assert every.columns.view(groups, across).tolist() == [list(range(across))] * groups
    blocks = every.blocks.view(groups, across, 8)
    for group in range(some.first.numel() - 1):
        begin, end = some.first[group : group + 2].tolist()
        columns = some.columns[begin:end].long()
        assert torch.equal(blocks[group, columns], some.blocks[begin:end])
        others = torch.ones(across, dtype=torch.bool)
        others[columns] = False
        assert bool((blocks[group, others] == -1).all())
    assert bool((blocks[some.first.numel() - 1 :] == -1).all())


def test_clusters_make_every_tile_once() -> None:
    mask = BlockMask(kept_blocks("random", 37, 11), 16)
    index = BSRMatrix.from_dense(mask.expand().float(), mask).index
    tile, n = TmaTile(128, 128, 3, register_a=True, cluster=2), 300
    dealt = deal_clusters(list_all(index, 16, 128, 2, False), tile, "Bfloat16", 16, n, 5)
    assert len(dealt.loads) == 2  # of two CTAs each
    found = [(group + rank, token) for group, token, *_ in dealt.work.tolist() for rank in range(2)]
    assert sorted(found) == [(group, token) for group in range(6) for token in (0, 128, 256)]
    assert all(first == group * 11 and count == 11 for group, _, first, count in dealt.work.tolist())
    wide = TmaTile(128, 128, 3, cluster=2)
    listed = list_columns(index, 16, 128)  # any list: what matters is who takes which tokens
    tokens = [(group, token) for group, token, *_ in deal_clusters(listed, wide, "Bfloat16", 64, n, 5).work.tolist()]
    assert sorted(tokens) == [(group, token) for group in range(5) for token in (0, 256)]


class Kernel:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.encodings: list[int] = []
        self.launches: list[tuple[int, list[int], list[int]]] = []

    def encode_tiled(self, to: Any, _kind: int, _rank: int, address: Any, *_: Any) -> int:
        self.encodings.append(address.value)
        to._obj[0] = address.value
        return 0

    def __call__(self, _: tuple[int, int, int], arguments: Any) -> None:
        self.launches.append((ctypes.addressof(arguments), list(arguments.x_map), list(arguments.values_map)))


def test_maps_are_encoded_once_for_a_pointer_and_lie_at_multiples_of_64() -> None:
    mask, kernel = BlockMask(kept_blocks("random", 5, 4), 64), Kernel()
    bsr = BSRMatrix.from_dense(mask.expand().bfloat16(), mask)
    tile = TmaTile(128, 128, 6, cluster=2)
    product = TmaProduct("dsd", "Bfloat16", 64, bsr.index, 200, tile, 132, lambda _: kernel)  # type: ignore[arg-type, return-value]
    first, second, out = (torch.zeros(200, 256, dtype=torch.bfloat16) for _ in range(3))
    for x in (first, second, first, first):
        product(bsr.data, x, out)
    assert kernel.encodings == [each.data_ptr() for each in (first, bsr.data, out, second)]
    assert [x_map[0] for _, x_map, _ in kernel.launches] == [each.data_ptr() for each in (first, second, first, first)]
    assert all(address % ALIGNMENT == 0 and of[0] == bsr.data.data_ptr() for address, _, of in kernel.launches)
    for place in range(3 * wgmma_tma.MOST_MAPS):
        product._map("x_map", 16 * place + 16)
    assert len(product.maps) <= wgmma_tma.MOST_MAPS
