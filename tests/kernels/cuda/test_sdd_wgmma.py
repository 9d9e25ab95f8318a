"""sdd by wgmma through the emulator.

Every element against its bound, guards around the output, planted faults caught.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
from kernels.cuda.wgmma import list_columns
from kernels.cuda.wgmma_sdd import (
    WgmmaSampled,
    WgmmaSampledTile,
    cut_columns,
    default_sampled_tile,
    sampled_tiles,
    sampled_variant,
)

CASES = [
    (element, block_size)
    for element in DTYPES
    for block_size in wgmma_sdd.BLOCKS
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
) -> None:
    """Launch on few CTAs, so that each takes several tasks, and compare with float64."""
    generator, mask, dtype = torch.Generator().manual_seed(n), BlockMask(kept, block_size), DTYPES[element]
    bsr = BSRMatrix.from_dense(torch.ones(mask.shape), mask)
    (_, grad), (_, x) = (guarded((n, size), dtype) for size in mask.shape)
    for each in (grad, x):
        each.copy_(torch.randn(each.shape, generator=generator))
    buffer, flat = guarded((bsr.nnzb, block_size**2), dtype)
    out = flat.view(-1, block_size, block_size)

    def load(wanted: Variant) -> Kernel:
        wanted = wanted if source is None else replace(wanted, source=source)
        return emulator.load(wanted, order=schedule[0], copies=schedule[1], seed=n)  # type: ignore[arg-type]

    WgmmaSampled(element, block_size, bsr.index, n, tile, 3, load)(grad, x, out)
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


FAULTS = {
    "no proxy fence": ("wgmma_ring.h", "        proxy_fence();\n", ""),
    "no wait for products": ("sdd_wgmma.cu", "        wgmma_wait<1>();\n", ""),
    "no last wait for products": ("sdd_wgmma.cu", "    wgmma_wait<0>();\n", ""),
    "a stage let go while it is read": ("sdd_wgmma.cu", "if (token > 0) ring.release(used - 1)", "ring.release(used)"),
    "the other strip's parts": ("sdd_wgmma.cu", "(strips + span * (COLUMNS / 64))", "(span * (COLUMNS / 64))"),
    "off by one token": ("sdd_wgmma.cu", "token + down < given.n", "token + down <= given.n"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    source = plant(tmp_path, "sdd_wgmma.cu", FAULTS[fault])
    for schedule in SCHEDULES:
        with pytest.raises((EmulationError, AssertionError)):
            check("Bfloat16", kept_blocks("full", 3, 5), 64, 73, WgmmaSampledTile(128, 32, 3), schedule, source)


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


def test_what_is_not_possible_is_refused_with_a_reason() -> None:
    for element, block_size, word in (("Float32", 64, "Float32"), ("Tf32", 64, "16 bits"), ("Float16", 8, "not 8")):
        with pytest.raises(ValueError, match=word):
            sampled_variant(element, block_size, WgmmaSampledTile(128, 32, 3))
    with pytest.raises(ValueError, match="does not fit"):
        sampled_variant("Float16", 128, WgmmaSampledTile(64, 32, 3))
