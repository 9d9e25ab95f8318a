"""Products by wgmma through the emulator.

Every element against its bound, guards around the output, planted faults caught.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from emulator import EmulationError
from wgmma_cases import CASES, PATTERNS, SCHEDULES, WIDTHS, check, grid_of, kept_blocks, plant

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.cuda.wgmma import WgmmaTile, default_tile, list_columns, tiles, variant


@pytest.mark.parametrize(("op", "element", "block_size"), CASES)
def test_default_tile(op: str, element: str, block_size: int) -> None:
    kept = kept_blocks("random", *grid_of(block_size))
    check(op, element, kept, block_size, 33, default_tile(element, block_size, 33), ("random", "random"))


def test_blocks_of_16_are_looked_for_in_few_rows() -> None:
    assert default_tile("Bfloat16", 16, 4096) == WgmmaTile(128, 256, 4, register_a=True)
    assert default_tile("Tf32", 16, 4096) == WgmmaTile(128, 256, 4, register_a=True)
    assert default_tile("Bfloat16", 32, 4096) == WgmmaTile(256, 128, 4, register_a=True)


@pytest.mark.emulate
@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("op", "element", "block_size"), CASES)
def test_patterns(op: str, element: str, block_size: int, pattern: str, n: int) -> None:
    kept = kept_blocks(pattern, *grid_of(block_size))
    for schedule in SCHEDULES:
        check(op, element, kept, block_size, n, default_tile(element, block_size, 300), schedule)


def test_bands() -> None:
    kept = kept_blocks("random", *grid_of(64))
    for schedule in SCHEDULES:
        check("dsd", "Bfloat16", kept, 64, 150, WgmmaTile(128, 32, 3, band=2), schedule)


@pytest.mark.emulate
@pytest.mark.parametrize(("op", "element", "block_size"), CASES)
def test_every_tile(op: str, element: str, block_size: int) -> None:
    kept = kept_blocks("random", *grid_of(block_size))
    for tile in tiles(element, block_size):
        for schedule in SCHEDULES:
            check(op, element, kept, block_size, 100, tile, schedule)


FAULTS = {
    "no proxy fence": ("wgmma_ring.h", "        proxy_fence();\n", ""),
    "no wait for copies": ("wgmma_ring.h", "        copy_wait<lag>();\n", ""),
    "copies waited for one stage late": ("wgmma_ring.h", "copy_wait<lag>", "copy_wait<lag + 1>"),
    "no wait for products": ("wgmma_tall.h", "    wgmma_wait<behind>();\n", ""),
    "no wait where nothing is multiplied": ("wgmma_tall.h", "        wgmma_wait<0>();", "        "),
    "no commit": ("wgmma_tall.h", "    wgmma_commit();\n", ""),
    "a stage let go while it is read": ("wgmma_sums.h", "release(used - behind)", "release(used)"),
    "stage not let go": ("wgmma_sums.h", "if (at >= behind) ring", "if (at > behind) ring"),
    "wrong phase": ("wgmma_ring.h", "(number / STAGES & 1) ^ 1", "number / STAGES & 1"),
    "no fence of sums": ("wgmma_tall.h", "    wgmma_fence();\n", ""),
    "next stage's blocks": ("wgmma_tall.h", "stage + blocks_at + group", "stage + stage_bytes + blocks_at + group"),
    "off by one step": ("wgmma_tall.h", "descriptor_step(32 * i), true", "descriptor_step(32 * i + 32), true"),
    "no fence of sums of small blocks": ("wgmma_flat.h", "                wgmma_fence();\n", ""),
    "no commit of small blocks": ("wgmma_flat.h", "                wgmma_commit();\n", ""),
    "no wait for small blocks": ("wgmma_flat.h", "    wgmma_wait<behind>();\n}", "}"),
    "four block rows too few": (
        "wgmma_flat.h",
        "first = 0; first < slots; first += together",
        "first = together; first < slots; first += together",
    ),
    "the next four are asked for": ("wgmma_flat.h", "slots + first) & any", "slots + first + together) & any"),
    "one token too many": ("wgmma_tile.h", "tile.token + token < given.n", "tile.token + token <= given.n"),
    "no barrier before the store": (
        "wgmma_tall.h",
        "        barrier_wait(1 + group, 128);\n        for",
        "        for",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    source, kept = plant(tmp_path, "products_wgmma.cu", FAULTS[fault]), kept_blocks("full", 3, 5)
    if fault == "no wait where nothing is multiplied":
        kept[0, 1:] = False
    small = FAULTS[fault][0] == "wgmma_flat.h"
    block_size, tile = (16, WgmmaTile(128, 128, 3, register_a=True)) if small else (64, WgmmaTile(128, 32, 3))
    if small:
        kept = kept_blocks("random", 9, 30)  # more steps than stages
    for schedule in SCHEDULES:
        if fault == "no barrier before the store" and schedule[0] == "forward":
            continue  # ordinary stores are found by their values alone
        with pytest.raises((EmulationError, AssertionError)):
            check("dsd", "Bfloat16", kept, block_size, 33, tile, schedule, source)


def test_lists_name_each_kept_block_once() -> None:
    kept = kept_blocks("random", 19, 11)
    mask = BlockMask(kept, 16)
    bsr = BSRMatrix.from_dense(mask.expand().float(), mask)
    for transposed, grid in ((False, kept), (True, kept.mT)):
        listed = list_columns(bsr.index, 16, 128, transposed)
        found = torch.zeros_like(grid)
        for group in range(-(-grid.shape[0] // 8)):
            begin, end = listed.first[group : group + 2].tolist()
            columns, blocks = listed.columns[begin:end], listed.blocks[begin:end]
            assert bool((columns.diff() > 0).all()) and bool((blocks >= 0).any(dim=1).all())
            at, slot = (blocks >= 0).nonzero(as_tuple=True)
            numbers = blocks[at, slot].long()
            rows, cols = 8 * group + slot, columns[at].long()
            found[rows, cols] = True
            stored = (bsr.row_indices[numbers], bsr.indices[numbers])
            assert torch.equal(rows, stored[transposed].long()) and torch.equal(cols, stored[not transposed].long())
        assert torch.equal(found, grid)


def test_what_is_not_possible_is_refused_with_a_reason() -> None:
    for op, element, block_size, word in (
        ("dsd", "Float32", 64, "Float32"),
        ("dsd", "Bfloat16", 8, "16, 32, 64 or 128"),
        ("dsd_t", "Tf32", 64, "16 bits"),
        ("dds", "Bfloat16", 64, "dds"),
    ):
        with pytest.raises(ValueError, match=re.escape(word)):
            variant(op, element, block_size, WgmmaTile(128, 128, 3))
    with pytest.raises(ValueError, match="does not fit"):
        variant("dsd", "Bfloat16", 64, WgmmaTile(128, 256, 6))
