"""sdd by wgmma through the emulator.

Every element against its bound, guards around the output, planted faults caught.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import emulator
import pytest
import torch
from emulator import EmulationError
from torch import Tensor
from wgmma_cases import DTYPES, GUARD, PATTERNS, SCHEDULES, WIDTHS, grid_of, guarded, kept_blocks, plant

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.check import error_bound
from kernels.cuda import wgmma, wgmma_sdd
from kernels.cuda.device import Kernel, Variant
from kernels.cuda.mma import AddParts
from kernels.cuda.wgmma import list_columns
from kernels.cuda.wgmma_sdd import (
    Division,
    WgmmaSampled,
    WgmmaSampledTile,
    cut_columns,
    default_sampled_tile,
    divide,
    places_of,
    sampled_tiles,
    sampled_variant,
)

CASES = [
    (element, block_size)
    for element in DTYPES
    for block_size in wgmma.BLOCKS
    if wgmma.unsupported("sdd", element, block_size) is None
]


def check(
    element: str,
    kept: Tensor,
    block_size: int,
    n: int,
    tile: WgmmaSampledTile,
    schedule: tuple[str, str],
    source: str | None = None,
    parts: int = 1,
) -> None:
    """Launch on few CTAs, so that each takes several tasks, and compare with float64.

    parts: into which the tokens are divided, of all but the first third of the tasks.
    """
    generator, mask, dtype = torch.Generator().manual_seed(n), BlockMask(kept, block_size), DTYPES[element]
    bsr = BSRMatrix.from_dense(torch.ones(mask.shape), mask)
    (_, grad), (_, x) = (guarded((n, size), dtype) for size in mask.shape)
    for each in (grad, x):
        each.copy_(torch.randn(each.shape, generator=generator))
    buffer, flat = guarded((bsr.nnzb, block_size**2), dtype)
    out = flat.view(-1, block_size, block_size)

    def load(wanted: Variant) -> Kernel:
        wanted = replace(wanted, source=source) if source and wanted.source == "sdd_wgmma.cu" else wanted
        return emulator.load(wanted, order=schedule[0], copies=schedule[1], seed=n)  # type: ignore[arg-type]

    def divided(places: list[tuple[int, int]], *_: object) -> Division:
        return Division(parts, *places[len(places) // 3 if parts > 1 else -1])

    with mock.patch.object(wgmma_sdd, "divide", divided):
        run = WgmmaSampled(element, block_size, bsr.index, n, tile, 3, load)
    with mock.patch.object(AddParts, "empty", lambda self: torch.full(self.shape, float("nan"))):
        run(grad, x, out)
    expected = grad.mT.double() @ x.double()
    bound = error_bound(grad.mT, x, expected)
    expected, bound = (BSRMatrix.from_dense(each, mask).data for each in (expected, bound))
    assert bool(((out.double() - expected).abs() <= bound).all())
    assert bool(buffer[:GUARD].isnan().all() and buffer[-GUARD:].isnan().all()), "wrote outside the output"


@pytest.mark.parametrize(("element", "block_size"), CASES)
def test_default_tile(element: str, block_size: int) -> None:
    kept = kept_blocks("random", *grid_of(block_size))
    check(element, kept, block_size, 33, default_sampled_tile(block_size, 10000, 132), ("random", "random"))


@pytest.mark.emulate
@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("element", "block_size"), CASES)
def test_patterns(element: str, block_size: int, pattern: str, n: int) -> None:
    kept = kept_blocks(pattern, *grid_of(block_size))
    for schedule in SCHEDULES:
        check(element, kept, block_size, n, default_sampled_tile(block_size, 10000, 132), schedule)


@pytest.mark.emulate
@pytest.mark.parametrize(("element", "block_size"), CASES)
def test_every_tile(element: str, block_size: int) -> None:
    kept = kept_blocks("random", *grid_of(block_size))
    for tile in sampled_tiles(block_size):
        for schedule in SCHEDULES:
            check(element, kept, block_size, 100, tile, schedule)


@pytest.mark.parametrize("block_size", wgmma.BLOCKS)
def test_tokens_of_the_last_tasks_are_divided(block_size: int) -> None:
    kept = kept_blocks("random", *grid_of(block_size))
    check("Bfloat16", kept, block_size, 100, WgmmaSampledTile(128, 32, 3), ("random", "random"), parts=3)


@pytest.mark.emulate
@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("element", "block_size"), CASES)
def test_divisions(element: str, block_size: int, pattern: str, parts: int) -> None:
    kept, tile = kept_blocks(pattern, *grid_of(block_size)), WgmmaSampledTile(max(64, block_size), 32, 3)
    for schedule in SCHEDULES:
        check(element, kept, block_size, 130, tile, schedule, parts=parts)


FAULTS = {
    "no proxy fence": ("wgmma_ring.h", "        proxy_fence();\n", ""),
    "no wait for products": ("sdd_wgmma.cu", "        wgmma_wait<1>();\n", ""),
    "no last wait for products": ("sdd_wgmma.cu", "    wgmma_wait<0>();\n", ""),
    "a stage let go while it is read": (
        "sdd_wgmma.cu",
        "if (token > task.begin) ring.release(used - 1)",
        "ring.release(used)",
    ),
    "the other strip's parts": ("sdd_wgmma.cu", "(strips + span * (COLUMNS / 64))", "(span * (COLUMNS / 64))"),
    "all parts in one place": ("sdd_wgmma.cu", "(u64)task.part * given.numbers", "0"),
    "all blocks in one place": ("sdd_wgmma.cu", "(block - given.divided)", "0"),
    "one stage more of a part": ("sdd_wgmma.cu", "end = when.x,", "end = when.x + DEPTH,"),
    "off by one token": ("sdd_wgmma.cu", "token + down < given.n", "token + down <= given.n"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    source = plant(tmp_path, "sdd_wgmma.cu", FAULTS[fault])
    for schedule in SCHEDULES:
        with pytest.raises((EmulationError, AssertionError)):
            check("Bfloat16", kept_blocks("full", 3, 5), 64, 73, WgmmaSampledTile(128, 32, 3), schedule, source, 2)


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_tasks_cover_each_listed_column_once(most: int) -> None:
    mask = BlockMask(kept_blocks("empty rows", 19, 11), 16)
    listed = list_columns(BSRMatrix.from_dense(mask.expand().float(), mask).index, 16, 64)
    tasks = cut_columns(listed, most)
    seen = torch.zeros_like(listed.columns)
    for group, first, count in tasks.tolist():
        assert 1 <= count <= most and listed.first[group] <= first and first + count <= listed.first[group + 1]
        seen[first : first + count] += 1
    assert bool((seen == 1).all())


@pytest.mark.parametrize("block_size", wgmma.BLOCKS)
def test_a_division_begins_where_all_blocks_lie_behind(block_size: int) -> None:
    mask = BlockMask(kept_blocks("random", *grid_of(block_size)), block_size)
    index, tile = BSRMatrix.from_dense(mask.expand().float(), mask).index, WgmmaSampledTile(128, 32, 3)
    rows, columns = tile.strips(block_size)
    listed = list_columns(index, block_size, rows)
    tasks = cut_columns(listed, columns)
    places = places_of(tasks, listed, index, rows // block_size)
    assert places[0] == (0, 0) and places[-1] == (len(tasks), len(index.indices))
    for first, block in places:
        for task, (_, begin, count) in enumerate(tasks.tolist()):
            blocks = listed.blocks[begin : begin + count]
            assert bool(((blocks[blocks >= 0] >= block) == (task >= first)).all())


def test_a_division_leaves_no_round_half_empty_where_that_is_worth_its_sum() -> None:
    tile = WgmmaSampledTile(256, 64, 4)
    places = [(number, number) for number in range(266)]
    assert divide(places, 64, tile, 128, 132) == Division(4, 264, 264)  # one task more than two rounds
    assert divide(places[:265], 64, tile, 128, 132) == Division(1, 264, 264)
    assert divide(places[:41], 64, tile, 128, 132) == Division(3, 0, 0)  # 120 parts
    assert divide(places, 2, tile, 128, 132).parts == 1  # too short
    assert divide([(0, 0)], 64, tile, 128, 132) == Division(1, 0, 0)


def test_what_is_not_possible_is_refused_with_a_reason() -> None:
    for element, block_size, word in (("Float32", 64, "Float32"), ("Tf32", 64, "16 bits"), ("Float16", 8, "not 8")):
        with pytest.raises(ValueError, match=word):
            sampled_variant(element, block_size, WgmmaSampledTile(128, 32, 3))
    with pytest.raises(ValueError, match="does not fit"):
        sampled_variant("Float16", 128, WgmmaSampledTile(64, 32, 3))
