"""Plans of the CUDA products list every piece once; choices fit their GPUs."""

from __future__ import annotations

from collections.abc import Iterator

import plans_by_loops
import pytest
import torch
from products_cases import grid_of, kept_blocks

from kernels.blockmask import BlockMask
from kernels.bsr import BSRIndex, BSRMatrix
from kernels.cuda import lstm_plan, mma_plan
from kernels.cuda.mma import (
    BLOCKS,
    ELEMENTS,
    OPS,
    SHARED_BYTES,
    SMALLEST_SHARED_BYTES,
    all_variants,
    default,
    parts_for,
    variants,
)
from kernels.cuda.mma_plan import ProductTile, SampledTile, product_plan, sampled_plan
from kernels.cuda.recurrence import Sizes, plans_for, tiles_for


def pieces_of(plan: mma_plan.ProductPlan, tile: ProductTile) -> list[tuple[int, int, int]]:
    """(row, column, place in the values) of each piece that a plan lists, read as the kernel does."""
    found, columns = [], tile.depth // tile.wide
    for first_row, first, count, _ in plan.groups.tolist():
        for stage in plan.stages[first : first + count].tolist():
            for word in stage[2 * columns + 1 : 2 * columns + 1 + stage[2 * columns]]:
                place, begin = word & 255, (word & 0xFFFFFFFF) >> 8
                assert stage[columns + place % columns] >> (place // columns) & 1
                if begin != mma_plan.ZEROS:
                    found.append((first_row + place // columns * tile.high, stage[place % columns], begin * 16))
    return found


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("block", "rows", "depth"), [(8, 256, 64), (8, 32, 32), (32, 16, 64), (128, 64, 32), (16, 64, 64)]
)
def test_a_plan_lists_every_piece_once(transposed: bool, block: int, rows: int, depth: int) -> None:
    mask = BlockMask(kept_blocks("random", *grid_of(block)), block)
    bsr = BSRMatrix.from_dense(torch.ones(mask.shape), mask)
    tile = ProductTile(block, rows, depth, transposed, paired=False)
    values = torch.arange(bsr.data.numel()).view(bsr.data.shape)
    dense = bsr.with_data(values).to_dense()
    found = pieces_of(product_plan(bsr.index, tile), tile)
    for row, column, place in found:
        assert dense.T[row, column] == place if transposed else dense[row, column] == place
    assert len(set(found)) == len(found) == bsr.data.numel() // (tile.high * tile.wide)


def test_groups_come_by_falling_work() -> None:
    kept = torch.arange(8)[:, None] > torch.arange(8)  # row i keeps i blocks
    bsr = BSRMatrix.from_dense(torch.ones(128, 128), BlockMask(kept, 16))
    plan = product_plan(bsr.index, ProductTile(16, 32, 64, False, False))
    assert plan.groups[:, 0].tolist() == [96, 64, 32, 0]
    assert plan.groups[:, 3].tolist() == [13, 9, 5, 1] and plan.work == 13


@pytest.mark.parametrize("paired", [False, True])
def test_jobs_cover_every_block_once(paired: bool) -> None:
    bsr = BSRMatrix.from_dense(torch.ones(152, 184), BlockMask(kept_blocks("random", 19, 23), 8))
    tile = SampledTile(8, 64, 64, 8, 2, 8, paired)
    jobs, places = sampled_plan(bsr.index, tile).jobs, []
    for job in jobs:
        for packed, col, to, other_to in job[tile.units_at :].view(-1, 4).tolist():
            rows = ((packed & 0xFFFF, to), (packed >> 16, other_to)) if paired else ((packed & 0xFFFF, to),)
            for row, place in rows:
                if to < 0 or place < 0:
                    continue
                slot = place // 64
                assert int(job[0]) + row == int(bsr.row_indices[slot]) * 8
                assert int(job[4 + col // 8]) == int(bsr.indices[slot]) * 8
                places.append(slot)
    assert sorted(places) == list(range(bsr.nnzb))


def indices(grid_rows: int, grid_cols: int) -> Iterator[BSRIndex]:
    """Patterns at many sparsities, and with empty rows and columns; an index does not know the size of its blocks."""
    generator = torch.Generator().manual_seed(grid_rows)
    for sparsity in (0.0, 0.1, 0.5, 0.8, 0.95, 1.0):
        mask = BlockMask.random(grid_rows, grid_cols, 1, sparsity, generator)
        yield BSRMatrix.from_dense(torch.ones(mask.shape), mask).index
        mask.kept[::3], mask.kept[:, 1::4] = False, False
        yield BSRMatrix.from_dense(torch.ones(mask.shape), mask).index


@pytest.mark.parametrize("element", ["Bfloat16", "Tf32", "Float32"])
@pytest.mark.parametrize("block", BLOCKS)
def test_jobs_are_those_of_the_loops(element: str, block: int) -> None:
    tiles = {choice.tile for choice in variants("sdd", element, block, 100)}
    for index in indices(19, 11):
        for tile in tiles:
            found, wanted = sampled_plan(index, tile).jobs, plans_by_loops.sampled_plan(index, tile).jobs
            assert found.dtype == wanted.dtype and torch.equal(found, wanted)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("block", BLOCKS)
def test_steps_of_a_layer_are_those_of_the_loops(block: int, itemsize: int) -> None:
    for index in indices(4 * 9, 9):
        for name in ("forward_plan", "backward_plan"):
            plans = [getattr(module, name)(index, block, itemsize) for module in (lstm_plan, plans_by_loops)]
            for found, wanted in zip(*plans, strict=True):
                if isinstance(found, int):
                    assert found == wanted
                else:
                    assert found.dtype == wanted.dtype and torch.equal(found, wanted)
                    assert found.is_contiguous()


def cut(block: int, batch: int, multiprocessors: int = 132) -> list[tuple[int, int, int]]:
    """(CTAs along the units, along the samples, samples of each) for 1152 units in bfloat16, forward and backward."""
    mask = BlockMask.random(4 * 1152, 1152, block, 0.8, torch.Generator().manual_seed(0))
    index = BSRMatrix.from_dense(torch.zeros(mask.shape, dtype=torch.bool), mask).index
    plans, device = (
        plans_for(index, block, torch.bfloat16),
        lstm_plan.Device()._replace(multiprocessors=multiprocessors),
    )
    chosen = tiles_for(plans, Sizes(batch, 1152, block), False, device, True)
    return [(*tiles.grid(1152, batch)[:2], tiles.samples) for tiles in chosen]


def test_layers_take_most_multiprocessors() -> None:
    """At batch 20 they were 72 of 132, before samples were dealt out."""
    assert cut(16, 20) == [(144, 2, 10), (72, 3, 7)]
    assert cut(32, 20) == cut(64, 20) == cut(128, 20) == [(36, 3, 7), (36, 3, 7)]
    assert cut(16, 80) == [(72, 5, 16), (72, 5, 16)]
    assert cut(32, 80) == cut(128, 80) == [(36, 3, 27), (36, 3, 27)]
    assert cut(64, 80) == [(36, 3, 27), (36, 5, 16)]


def test_few_multiprocessors_get_few_ctas() -> None:
    assert all(across * groups <= 2 * 72 for across, groups, _ in cut(32, 20, multiprocessors=72))


@pytest.mark.parametrize("batch", [1, 5, 16, 20, 33, 80, 81, 4000])
def test_samples_are_dealt_out_evenly(batch: int) -> None:
    tried = list(lstm_plan.candidates(32, batch, exact=False))
    assert tried == list(dict.fromkeys(tried))
    for tiles in tried:
        groups = tiles.grid(64, batch)[1]
        assert tiles.samples <= 16 * tiles.tiles < tiles.samples + 16
        assert 0 <= groups * tiles.samples - batch < groups  # with one sample less they would be too few
    assert max(tiles.samples for tiles in tried) == (batch if batch <= 80 else max(ceil_of(batch)))


def ceil_of(batch: int) -> list[int]:
    """Samples of a CTA where they are dealt out to any number of CTAs, at most 80 each."""
    found = {-(-batch // groups) for groups in range(1, batch + 1)}
    return [each for each in found if each <= 80]


def test_too_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mma_plan, "MOST_NUMBERS", 255)
    bsr = BSRMatrix.from_dense(torch.ones(16, 16), BlockMask.full(16, 16, 16))
    with pytest.raises(ValueError, match="at most 255 values"):
        product_plan(bsr.index, ProductTile(16, 32, 64, False, False))
    with pytest.raises(ValueError, match="at most 255 values"):
        sampled_plan(bsr.index, SampledTile(16, 64, 64, 16, 4, 2, False))


def test_every_variant_has_room_and_a_small_one_everywhere() -> None:
    for variant in all_variants():
        assert variant.shared_bytes <= SHARED_BYTES and dict(variant.defines).get("STAGES", 2) >= 2, str(variant)
    for op in OPS:
        for element in ELEMENTS:
            for block in BLOCKS:
                for n in (1, 20, 33, 80, 100, 160, 4096):
                    small = default(op, element, block, n, shared_bytes=SMALLEST_SHARED_BYTES)
                    assert small.variant.shared_bytes <= SMALLEST_SHARED_BYTES


@pytest.mark.parametrize(
    ("ctas", "stages", "parts"), [(132, 64, 1), (51, 128, 5), (16, 64, 4), (16, 18, 1), (1000, 64, 1), (1, 1, 1)]
)
def test_parts_fill_the_multiprocessors(ctas: int, stages: int, parts: int) -> None:
    assert parts_for(ctas, stages) == parts
