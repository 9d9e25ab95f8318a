"""The CUDA products against float64 through the emulator, and faults that must be caught.

A short subset runs by default, the whole grid with `-m emulate` (nox -s emulate).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import emulator
import pytest
import torch
from emulator import EmulationError
from products_cases import PATTERNS, Case, Loader, grid_of, kept_blocks

from kernels.cuda.device import FOLDER, Kernel, Variant
from kernels.cuda.mma import (
    BLOCKS,
    ELEMENTS,
    HALF_SHARED_BYTES,
    OPS,
    MmaProduct,
    MmaSampled,
    ProductChoice,
    SampledChoice,
    default,
    product_choice,
    sampled_choice,
    variants,
)
from kernels.cuda.mma_plan import product_plan, sampled_plan

WIDTHS = (1, 7, 33, 100)
Choice = ProductChoice | SampledChoice


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


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("element", "blocks"), [("Float32", BLOCKS), ("Tf32", (8, 64)), ("Bfloat16", BLOCKS), ("Float16", (32,))]
)
def test_random_pattern(op: str, element: str, blocks: tuple[int, ...]) -> None:
    for block in blocks:
        each, choice = case(element, block, 33, "random"), narrow(op, element, block)
        assert each.error(choice, each.result(choice, emulator.load)) <= 1.0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("element", "block"), [("Bfloat16", 8), ("Bfloat16", 32), ("Tf32", 16), ("Float16", 64)])
def test_tiles_of_which_two_share_100_kb(op: str, element: str, block: int) -> None:
    chosen = [each for each in variants(op, element, block, 4096) if each.variant.shared_bytes <= HALF_SHARED_BYTES]
    each = case(element, block, 33, "random")
    for loader in list(LOADERS.values())[:2]:
        assert each.error(chosen[0], each.result(chosen[0], loader)) <= 1.0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("element", "block"), [("Bfloat16", 16), ("Float16", 8), ("Tf32", 8), ("Float32", 32)])
def test_patterns(op: str, pattern: str, element: str, block: int) -> None:
    choice = narrow(op, element, block)
    for n in (1, 7):
        each = case(element, block, n, pattern)
        assert each.error(choice, each.result(choice, emulator.load)) <= 1.0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("element", ELEMENTS)
def test_orders_of_threads_and_copies_change_no_bit(op: str, element: str) -> None:
    each, choice = case(element, 16, 33, "random"), narrow(op, element, 16)
    first, *others = (each.result(choice, load) for load in LOADERS.values())
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("element", ["Bfloat16", "Float32"])
def test_parts_of_a_reduction(op: str, element: str) -> None:
    each = case(element, 16, 100, "random")
    choice = list(variants(op, element, 16, 32, parts=True))[-1]
    results = [each.result(choice, emulator.load, parts) for parts in (1, 2, 3, 3)]
    assert all(each.error(choice, result) <= 1.0 for result in results)
    assert torch.equal(results[2], results[3])


def test_a_launch_takes_any_n_and_any_values() -> None:
    choice = narrow("dsd", "Bfloat16", 16)
    first, second = (case("Bfloat16", 16, n, "random") for n in (33, 7))
    assert isinstance(choice, ProductChoice)
    plan = product_plan(first.bsr.index, choice.tile)
    for each in (first, second):
        out = torch.full_like(each.grad, float("nan"))
        launch = MmaProduct(choice, plan, len(each.x), each.x.shape[1], out.shape[1], emulator.load)
        launch(each.bsr.data, each.x, out)
        assert each.error(choice, out) <= 1.0
    sampling = narrow("sdd", "Bfloat16", 16)
    assert isinstance(sampling, SampledChoice)
    blocks = torch.full_like(second.bsr.data, float("nan"))
    (n, m), k, sampled = second.grad.shape, second.x.shape[1], sampled_plan(second.bsr.index, sampling.tile)
    MmaSampled(sampling, sampled, n, blocks.numel(), m, k, emulator.load)(second.grad, second.x, blocks)
    assert second.error(sampling, blocks) <= 1.0


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


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_races_are_caught(op: str, fault: str, tmp_path: Path) -> None:
    choice = narrow(op, "Bfloat16", 16)
    load = planted(tmp_path, choice, "sampled.h" if op == "sdd" else "listed.h", *FAULTS[fault])
    with pytest.raises(EmulationError):
        case("Bfloat16", 16, 100, "full").result(choice, load)


@pytest.mark.parametrize("op", OPS)
def test_planted_off_by_one_is_caught(op: str, tmp_path: Path) -> None:
    choice, each = narrow(op, "Bfloat16", 16), case("Bfloat16", 16, 33, "random")
    load = planted(tmp_path, choice, *OFF_BY_ONE[op])
    try:
        caught = each.error(choice, each.result(choice, load)) > 1.0
    except (EmulationError, AssertionError):
        caught = True
    assert caught
