"""Products on the CPU at the edges, each element against its own bound, with guards around every buffer.

`test_builds.py` runs this file with kernels built for narrower vectors and with sanitizers.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import builds
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from products import PATTERNS, PLACES, SIZES, WIDTHS, assert_right, kept_blocks, operands, products

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.native import library as native_library
from kernels.native.library import library, text_of
from kernels.native.products import Product, Shape, by_rows, dsd, empty_panels, pack, sdd, tiling_for
from kernels.system.resources import refusal

Guards = Callable[[], AbstractContextManager[None]]
Threads = Callable[[int], AbstractContextManager[None]]
needs_native = pytest.mark.skipif(
    refusal(native_library.require_kernel, torch.float32, torch.device("cpu")) is not None,
    reason="no C++ compiler here",
)


@pytest.mark.skipif(builds.ISA_VARIABLE not in os.environ, reason="any vectors will do")
def test_these_are_the_kernels_that_were_asked_for() -> None:
    compiled = native_library.library("dsd", torch.float32)
    assert f"native {os.environ[builds.ISA_VARIABLE]}," in native_library.describe(compiled, 1)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_every_pattern(guards: Guards, pinned_threads: Threads, size: int, dtype: torch.dtype) -> None:
    places = list(PLACES.values())
    for number, pattern in enumerate(PATTERNS):
        n = WIDTHS[(SIZES.index(size) * 3 + number * 5) % len(WIDTHS)]
        bsr, x, grad = operands(kept_blocks(pattern, 3, 4), size, n, dtype)
        place = places[(number + SIZES.index(size)) % len(places)]
        with guards(), pinned_threads(2 if pattern == "chequered" else 1):
            found = products(bsr.with_data(place(bsr.data)), place(x), place(grad))
        assert_right(found, bsr, x, grad)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [*WIDTHS, 256])
def test_every_width_and_place(guards: Guards, pinned_threads: Threads, n: int, dtype: torch.dtype) -> None:
    for number, place in enumerate(PLACES.values()):
        size = (4, 16, 12, 32, 5, 8)[number]
        bsr, x, grad = operands(kept_blocks("chequered", 3, 4), size, n, dtype)
        with guards(), pinned_threads(1):
            found = products(bsr.with_data(place(bsr.data)), place(x), place(grad))
        assert_right(found, bsr, x, grad)


@needs_native
@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 5),
    cols=st.integers(1, 5),
    pattern=st.sampled_from(PATTERNS),
    size=st.one_of(st.sampled_from(SIZES), st.integers(1, 40)),
    n=st.one_of(st.sampled_from(WIDTHS), st.integers(1, 60)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    places=st.tuples(*(st.sampled_from(list(PLACES)) for _ in range(3))),
    seed=st.integers(0, 99),
)
def test_fuzz(
    guards: Guards,
    pinned_threads: Threads,
    rows: int,
    cols: int,
    pattern: str,
    size: int,
    n: int,
    dtype: torch.dtype,
    places: tuple[str, ...],
    seed: int,
) -> None:
    bsr, x, grad = operands(kept_blocks(pattern, rows, cols, seed), size, n, dtype, seed)
    data, there, back = (PLACES[place](each) for place, each in zip(places, (bsr.data, x, grad), strict=True))
    with guards(), pinned_threads(1):
        found = products(bsr.with_data(data), there, back)
    assert_right(found, bsr, x, grad)


@needs_native
@pytest.mark.parametrize("place", ["by rows", "by columns"])
def test_several_chunks(guards: Guards, place: str) -> None:
    bsr, x, grad = operands(kept_blocks("random", 2, 64), 16, 900, torch.float32)
    with guards():
        found = products(bsr, PLACES[place](x), PLACES[place](grad))
    assert by_rows(found[0]) == (place == "by rows")
    assert_right(found, bsr, x, grad)


@needs_native
@settings(max_examples=8, deadline=None)  # few: waiting threads take turns where the cores are busy
@given(
    size=st.sampled_from([3, 8, 16, 20]),
    n=st.sampled_from([1, 20, 97]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    place=st.sampled_from(["by rows", "by columns"]),
    seed=st.integers(0, 99),
)
def test_repeats_and_threads_change_no_bit(
    pinned_threads: Threads, size: int, n: int, dtype: torch.dtype, place: str, seed: int
) -> None:
    bsr, x, grad = operands(kept_blocks("random", 9, 7, seed), size, n, dtype, seed)
    results = []
    for threads in (1, 1, 2, 2):
        with pinned_threads(threads):
            results.append(products(bsr, PLACES[place](x), PLACES[place](grad)))
    for other in results[1:]:
        assert all(torch.equal(got, wanted) for got, wanted in zip(other, results[0], strict=True))


@needs_native
@pytest.mark.parametrize("size", [4, 5, 10, 13, 20, 25, 26, 50])
def test_blocks_that_fill_no_vector(guards: Guards, size: int) -> None:
    """Packed for either order of the operands, whichever they have; gradients of so many columns that sums go along."""
    with guards():
        for number, n in enumerate((1, 5, 9, 20, 32, 127, 128, 1030, 2049)):
            bsr, x, grad = operands(kept_blocks("random", 4, 5, number), size, n, torch.float32, number)
            for place in ("by rows", "surrounded by columns"):
                there, back = PLACES[place](x), PLACES[place](grad)
                assert_right(products(bsr, there, back), bsr, x, grad)
                for lies, in_layer in ((False, False), (True, False), (True, True)):
                    turned = pack(bsr.data, bsr.index, n, transposed=True, lies=lies, in_layer=in_layer)
                    as_it_is = pack(bsr.data, bsr.index, n, lies=lies, in_layer=in_layer)
                    found = dsd(as_it_is, there), dsd(turned, back)
                    assert_right((*found, sdd(grad, x, bsr.index, size)), bsr, x, grad)


@needs_native
def test_activations_are_turned_where_that_pays() -> None:
    """Small blocks fill no vectors of rows; of few large ones the turning would take longer than the product."""
    if "avx512" not in text_of(library("dsd", torch.float32), "isa"):
        pytest.skip("the times were measured with vectors of 512 bits")
    dense, sparse = (Shape(3072, 768, 3072 * 768 // share) for share in (5, 20))
    assert not tiling_for(torch.float32, 8, 128, True, dense).lying
    assert not tiling_for(torch.float32, 8, 128, True, sparse).lying
    assert tiling_for(torch.float32, 64, 128, True, sparse).lying
    assert not tiling_for(torch.float32, 16, 512, True, Shape(2048, 8192, 2048 * 8192 // 20)).lying
    assert tiling_for(torch.float32, 8, 128, True).lying, "in a layer nothing is turned"


@needs_native
def test_with_few_registers_activations_are_multiplied_where_they_lie() -> None:
    """Tiles of standing columns read X again for every four rows: measured with vectors of 256 bits."""
    if text_of(library("dsd", torch.float32), "isa") != "avx":
        pytest.skip("the times were measured with vectors of 256 bits")
    for m, k, n, size in ((3072, 768, 128, 16), (3072, 768, 128, 64), (4608, 1152, 80, 16), (1024, 256, 700, 32)):
        for share in (5, 20):
            assert tiling_for(torch.float32, size, n, True, Shape(m, k, m * k // share)).lying
    assert not tiling_for(torch.float32, 10, 32, True, Shape(2600, 650, 2600 * 650 // 20)).lying
    assert not tiling_for(torch.float32, 16, 128, False, Shape(3072, 768, 3072 * 768 // 5)).lying, "row by row"


@needs_native
@pytest.mark.parametrize("before", [1, 2])
def test_each_thread_turns_columns_for_itself_where_it_has_room(pinned_threads: Threads, before: int) -> None:
    """Room is made for the threads of the first product; where there are more of them later, all use the first one."""
    bsr, x, _ = operands(kept_blocks("random", 40, 8), 8, 48, torch.float32)
    found = []
    with pinned_threads(before):
        packed = pack(bsr.data, bsr.index, 48)
        found.append(dsd(packed, PLACES["surrounded by columns"](x)))
    with pinned_threads(3 - before):
        found.append(dsd(packed, PLACES["surrounded by columns"](x)))
    (plan,) = packed.plans.values()
    assert Product.from_buffer_copy(plan.arguments).rooms == before
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], bsr.to_dense() @ x, rtol=1e-4, atol=1e-4)


@needs_native
def test_the_shape_of_a_matrix_and_of_its_transpose() -> None:
    bsr, _, _ = operands(kept_blocks("full", 3, 2), 16, 1, torch.float32)
    assert Shape.of(bsr.nnzb, 16, bsr.index, False) == (48, 32, 48 * 32)
    assert Shape.of(bsr.nnzb, 16, bsr.index, True) == (32, 48, 48 * 32)


@needs_native
@pytest.mark.parametrize("size", [10, 16])
def test_panels_of_another_gradient_are_refused(size: int) -> None:
    bsr, x, _ = operands(kept_blocks("full", 3, 2), size, 256, torch.float32)
    for rows, dtype in ((2 * size, torch.float32), (3 * size, torch.float64)):
        with pytest.raises(ValueError, match=r"grad must have 3 block rows of torch\.float32"):
            sdd(empty_panels(rows, 256, size, dtype), x, bsr.index, size)


@needs_native
def test_calls_from_several_threads_at_once() -> None:
    bsr, x, grad = operands(kept_blocks("chequered", 8, 8), 16, 40, torch.float32)
    expected = products(bsr, x, grad)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: products(bsr, x, grad), range(40)))
    for result in results:
        assert all(torch.equal(got, wanted) for got, wanted in zip(result, expected, strict=True))


@needs_native
def test_pack_orders_the_values_of_a_panel_by_columns() -> None:
    weight = torch.arange(1.0, 49.0).view(4, 12)
    bsr = BSRMatrix.from_dense(weight, BlockMask.full(4, 12, 4))
    packed = pack(bsr.data, bsr.index, 32)
    assert (packed.matrix.lying, packed.matrix.abreast) == (0, 1)
    assert torch.equal(packed.values.view(3, 4, 4), weight.view(4, 3, 4).permute(1, 2, 0))  # block, column, row
    values = pack(bsr.data, bsr.index, 32, transposed=True).values  # block column after block column
    assert torch.equal(values.view(3, 4, 4), weight.view(4, 3, 4).permute(1, 0, 2))


@needs_native
@pytest.mark.parametrize("lies", [False, True])
@pytest.mark.parametrize("n", [1, 8, 20, 128])
@pytest.mark.parametrize("size", [1, 3, 4, 8, 10, 13, 16, 20, 23, 25, 33, 50, 64, 127])
def test_nothing_is_padded(size: int, n: int, lies: bool) -> None:
    bsr, _, _ = operands(kept_blocks("random", 3, 4), size, 1, torch.float32)
    for transposed in (False, True):
        packed = pack(bsr.data, bsr.index, n, transposed, lies=lies, in_layer=lies)
        assert torch.equal(packed.values.flatten().sort().values, bsr.data.flatten().sort().values)
