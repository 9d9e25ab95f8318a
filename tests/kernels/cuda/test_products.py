"""The CUDA products against float64 through the emulator; plans, choices, and faults that must be caught.

A short subset runs by default, the whole grid with `-m emulate` (nox -s emulate).
"""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import emulator
from emulator import EmulationError
from products_cases import PATTERNS, Case, Loader, kept_blocks

from kernels.backends import cuda_plan
from kernels.backends.cuda_kernel import FOLDER, Kernel, Variant
from kernels.backends.cuda_plan import ProductTile, SampledTile, product_plan, sampled_plan
from kernels.backends.cuda_products import dsd, parts_for, sdd
from kernels.backends.cuda_variants import (
    BLOCKS,
    ELEMENTS,
    OPS,
    SHARED_BYTES,
    SMALLEST_SHARED_BYTES,
    ProductChoice,
    SampledChoice,
    all_variants,
    default,
    product_choice,
    sampled_choice,
    variants,
)
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix

WIDTHS = (1, 7, 33, 100)
needs_emulator = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the emulator's fibres are for x86-64 Linux"
)
Choice = ProductChoice | SampledChoice


@functools.cache
def grid_of(block: int) -> tuple[int, int]:
    """Blocks along rows and columns: more than one group and one stage, and neither a whole one."""
    return {8: (19, 23), 16: (11, 13), 32: (7, 6), 64: (3, 4), 128: (2, 3)}[block]


def case(element: str, block: int, n: int, pattern: str) -> Case:
    return Case(element, block, n, kept_blocks(pattern, *grid_of(block)))


def narrow(op: str, element: str, block: int) -> Choice:
    """A small tile that is quick to emulate, with several groups, stages and warps."""
    if op == "sdd":
        rows, cols = max(32, block), max(64, block)
        units = 1 if block >= 64 else 2
        return sampled_choice(element, block, rows, cols, 8 if element == "Float32" else 4, units)
    warps = (2, 2, 1) if element == "Float32" else (1, 2, 2)
    return product_choice(element, block, op == "dsd_t", 32, 32, warps, 3)


def loaders() -> Iterator[tuple[str, Loader]]:
    """The emulator in each order of threads, copies as late as may be, as early, or either."""
    yield "forward, late", emulator.load
    yield "reverse, early", functools.partial(emulator.load, order="reverse", copies="early")
    yield "random, random", functools.partial(emulator.load, order="random", copies="random", seed=5)


LOADERS = dict(loaders())


@needs_emulator
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("element", "blocks"), [("Float32", BLOCKS), ("Tf32", (8, 64)), ("Bfloat16", BLOCKS), ("Float16", (32,))]
)
def test_random_pattern(op: str, element: str, blocks: tuple[int, ...]) -> None:
    for block in blocks:
        each, choice = case(element, block, 33, "random"), narrow(op, element, block)
        assert each.error(choice, each.result(choice, emulator.load)) <= 1.0


@needs_emulator
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("element", "block"), [("Bfloat16", 16), ("Float16", 8), ("Tf32", 8), ("Float32", 32)])
def test_patterns(op: str, pattern: str, element: str, block: int) -> None:
    choice = narrow(op, element, block)
    for n in (1, 7):
        each = case(element, block, n, pattern)
        assert each.error(choice, each.result(choice, emulator.load)) <= 1.0


@needs_emulator
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("element", ELEMENTS)
def test_orders_of_threads_and_copies_change_no_bit(op: str, element: str) -> None:
    each, choice = case(element, 16, 33, "random"), narrow(op, element, 16)
    first, *others = (each.result(choice, load) for load in LOADERS.values())
    assert all(torch.equal(first, other) for other in others)


@needs_emulator
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("element", ["Bfloat16", "Float32"])
def test_parts_of_a_reduction(op: str, element: str) -> None:
    each = case(element, 16, 100, "random")
    choice = list(variants(op, element, 16, 32, parts=True))[-1]
    results = [each.result(choice, emulator.load, parts) for parts in (1, 2, 3, 3)]
    assert all(each.error(choice, result) <= 1.0 for result in results)
    assert torch.equal(results[2], results[3])


@needs_emulator
def test_a_launch_takes_any_n_and_any_values() -> None:
    choice = narrow("dsd", "Bfloat16", 16)
    first, second = (case("Bfloat16", 16, n, "random") for n in (33, 7))
    assert isinstance(choice, ProductChoice)
    plan = product_plan(first.bsr.index, choice.tile)
    for each in (first, second):
        out = torch.full_like(each.grad, float("nan"))
        dsd(each.bsr.data, plan, each.x, out, choice, emulator.load)
        assert each.error(choice, out) <= 1.0
    sampling = narrow("sdd", "Bfloat16", 16)
    assert isinstance(sampling, SampledChoice)
    blocks = torch.full_like(second.bsr.data, float("nan"))
    sdd(second.grad, second.x, sampled_plan(second.bsr.index, sampling.tile), blocks, sampling, emulator.load)
    assert second.error(sampling, blocks) <= 1.0


@needs_emulator
@pytest.mark.emulate
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("n", WIDTHS)
def test_whole_grid(op: str, element: str, block: int, pattern: str, n: int) -> None:
    each = case(element, block, n, pattern)
    order = list(LOADERS.values())[(n + len(pattern)) % len(LOADERS)]
    choice = default(op, element, block, n)
    assert each.error(choice, each.result(choice, order)) <= 1.0


@needs_emulator
@pytest.mark.emulate
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("n", [20, 64, 80, 160])
@pytest.mark.parametrize("parts", [1, 2])
def test_every_variant(op: str, element: str, block: int, n: int, parts: int) -> None:
    each = case(element, block, n, "random")
    for choice in variants(op, element, block, n, parts > 1):
        assert each.error(choice, each.result(choice, emulator.load, parts)) <= 1.0, str(choice.variant)


FAULTS = {  # source: (text, what stands there instead) by name
    "no barrier before a stage is read": (
        "copy_wait<STAGES - 2>();\n        __syncthreads();",
        "copy_wait<STAGES - 2>();",
    ),
    "no wait for the copies": ("copy_wait<STAGES - 2>();\n", "\n"),
    "one stage too few is waited for": ("copy_wait<STAGES - 2>();\n", "copy_wait<STAGES - 1>();\n"),
}
OFF_BY_ONE = {
    "dsd": ("dsd.cu", "first_token + token >= given.n", "first_token + token > given.n"),
    "dsd_t": ("dsd.cu", "warp.token + 16 * t + 8 * half", "warp.token + 16 * t + 8 * half + 1"),
    "sdd": ("sampled.h", "token + more < last_token", "token + more < last_token - 1"),
}


def planted(folder: Path, choice: Choice, header: str, text: str, instead: str) -> Loader:
    """A loader of the variant's source with a fault in one of its files, all of them copied into `folder`."""
    for path in FOLDER.iterdir():
        (folder / path.name).write_text(path.read_text())
    before = (folder / header).read_text()
    assert before.count(text) == 1, "the fault has no place"
    (folder / header).write_text(before.replace(text, instead))
    source = str(folder / choice.variant.source)

    def load(variant: Variant) -> Kernel:
        faulty = Variant(source, variant.name, variant.defines, variant.threads, variant.shared_bytes)
        return emulator.load(faulty, order="random", seed=3)

    return load


@needs_emulator
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_races_are_caught(op: str, fault: str, tmp_path: Path) -> None:
    choice = narrow(op, "Bfloat16", 16)
    load = planted(tmp_path, choice, "sampled.h" if op == "sdd" else "listed.h", *FAULTS[fault])
    with pytest.raises(EmulationError):
        case("Bfloat16", 16, 100, "full").result(choice, load)


@needs_emulator
@pytest.mark.parametrize("op", OPS)
def test_planted_off_by_one_is_caught(op: str, tmp_path: Path) -> None:
    choice, each = narrow(op, "Bfloat16", 16), case("Bfloat16", 16, 33, "random")
    load = planted(tmp_path, choice, *OFF_BY_ONE[op])
    try:
        caught = each.error(choice, each.result(choice, load)) > 1.0
    except (EmulationError, AssertionError):
        caught = True
    assert caught


def pieces_of(plan: cuda_plan.ProductPlan, tile: ProductTile) -> list[tuple[int, int, int]]:
    """(row, column, place in the values) of each piece that a plan lists, read as the kernel does."""
    found, columns = [], tile.depth // tile.wide
    for first_row, first, count, _ in plan.groups.tolist():
        for stage in plan.stages[first : first + count].tolist():
            for word in stage[2 * columns + 1 : 2 * columns + 1 + stage[2 * columns]]:
                place, begin = word & 255, (word & 0xFFFFFFFF) >> 8
                assert stage[columns + place % columns] >> (place // columns) & 1
                if begin != cuda_plan.ZEROS:
                    found.append((first_row + place // columns * tile.high, stage[place % columns], begin * 16))
    return found


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("block", "rows", "depth"), [(8, 256, 64), (8, 32, 32), (32, 16, 64), (128, 64, 32), (16, 64, 64)]
)
def test_a_plan_lists_every_piece_once(turned: bool, block: int, rows: int, depth: int) -> None:
    mask = BlockMask(kept_blocks("random", *grid_of(block)), block)
    bsr = BSRMatrix.from_dense(torch.ones(mask.shape), mask)
    tile = ProductTile(block, rows, depth, turned, paired=False)
    values = torch.arange(bsr.data.numel()).view(bsr.data.shape)
    dense = bsr.with_data(values).to_dense()
    found = pieces_of(product_plan(bsr.index, tile), tile)
    for row, column, place in found:
        assert dense.T[row, column] == place if turned else dense[row, column] == place
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


def test_too_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_plan, "MOST_NUMBERS", 255)
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
