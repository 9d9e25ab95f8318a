"""The transposed product and sdd on the CPU, fuzzed against float64, with guards around every buffer."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from kernels.backends import native_library
from kernels.backends.native_products import by_rows, dsd, pack, sdd
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.check import error_bound

pytestmark = pytest.mark.skipif(
    native_library.unsupported(torch.float32, torch.device("cpu")) is not None, reason="no C++ compiler here"
)
Guards = Callable[[], AbstractContextManager[None]]
Threads = Callable[[int], AbstractContextManager[None]]

SIZES = st.one_of(st.integers(1, 20), st.sampled_from([1, 2, 4, 8, 16, 24, 31, 32, 40, 48, 64, 100, 128]))
WIDTHS = st.one_of(st.integers(1, 100), st.sampled_from([1, 15, 16, 17, 31, 33, 80, 300]))


def operands(
    grid: tuple[int, int], size: int, n: int, density: float, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[BSRMatrix, Tensor, Tensor]:
    """(W, X for W X, X for W^T X)."""
    generator = torch.Generator().manual_seed(seed)
    mask = BlockMask(torch.rand(grid, generator=generator) < density, size)
    weight, x, grad = (
        torch.randn(shape, generator=generator, dtype=dtype)
        for shape in (mask.shape, (mask.shape[1], n), (mask.shape[0], n))
    )
    return BSRMatrix.from_dense(weight, mask), x, grad


def turned(x: Tensor) -> Tensor:
    """The same elements in the other memory order."""
    return x.T.contiguous().T


def assert_within_bound(output: Tensor, left: Tensor, right: Tensor, mask: BlockMask | None = None) -> None:
    """`output` is left @ right within the componentwise bound, at the blocks of `mask` where given."""
    expected = left.double() @ right.double()
    bound = error_bound(left, right, expected)
    if mask is not None:
        expected, bound = (BSRMatrix.from_dense(each, mask).data for each in (expected, bound))
    assert output.shape == expected.shape and output.dtype == left.dtype
    assert bool(((output.double() - expected).abs() <= bound).all())


@settings(max_examples=150, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=SIZES,
    n=WIDTHS,
    density=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    by_columns=st.booleans(),
    threads=st.sampled_from([1] * 9 + [3]),
    seed=st.integers(0, 99),
)
def test_fuzz(
    guards: Guards,
    pinned_threads: Threads,
    grid: tuple[int, int],
    size: int,
    n: int,
    density: float,
    dtype: torch.dtype,
    by_columns: bool,
    threads: int,
    seed: int,
) -> None:
    bsr, x, grad = operands(grid, size, n, density, dtype, seed)
    if by_columns:
        x, grad = turned(x), turned(grad)
    dense = bsr.to_dense()
    with pinned_threads(threads), guards():
        product = dsd(pack(bsr.data, bsr.index, n), x)
        transposed = dsd(pack(bsr.data, bsr.index, n, turned=True), grad)
        blocks = sdd(grad, x, bsr.index, size)
    assert_within_bound(product, dense, x)
    assert_within_bound(transposed, dense.T, grad)
    assert_within_bound(blocks, grad, x.T, bsr.mask)


@pytest.mark.parametrize("by_columns", [False, True])
def test_several_chunks(guards: Guards, by_columns: bool) -> None:
    bsr, x, grad = operands((2, 64), 16, 900, 0.2)
    if by_columns:
        x, grad = turned(x), turned(grad)
    with guards():
        product, blocks = dsd(pack(bsr.data, bsr.index, 900), x), sdd(grad, x, bsr.index, 16)
    assert by_rows(product) != by_columns
    assert_within_bound(product, bsr.to_dense(), x)
    assert_within_bound(blocks, grad, x.T, bsr.mask)


def test_threads_and_repeats_change_no_bit(pinned_threads: Threads) -> None:
    bsr, x, grad = operands((12, 9), 16, 40, 0.4)
    outputs = []
    for threads in (1, 1, 2, 3, 3):
        with pinned_threads(threads):
            outputs.append((dsd(pack(bsr.data, bsr.index, 40, turned=True), grad), sdd(grad, x, bsr.index, 16)))
    for transposed, blocks in outputs[1:]:
        assert torch.equal(transposed, outputs[0][0]) and torch.equal(blocks, outputs[0][1])


def test_pack_pads_and_orders_panels() -> None:
    weight = torch.arange(1.0, 73.0).view(6, 12)
    bsr = BSRMatrix.from_dense(weight, BlockMask.full(6, 12, 6))
    packed = pack(bsr.data, bsr.index, 8)
    assert packed.matrix.panel_rows == 4
    assert packed.values.shape == (4, 6, 4)  # two panels of two blocks, six columns, four rows
    assert packed.values[0, 0].tolist() == weight[:4, 0].tolist()
    assert packed.values[1, 0].tolist() == weight[:4, 6].tolist()
    assert packed.values[2, 1].tolist() == [*weight[4:, 1].tolist(), 0.0, 0.0]
    values = pack(bsr.data, bsr.index, 8, turned=True).values  # block column after block column
    assert values.shape == (4, 6, 4)
    assert values[0, 0].tolist() == weight[0, :4].tolist()
    assert values[2, 0].tolist() == weight[0, 6:10].tolist()
    assert values[3, 5].tolist() == [*weight[5, 10:].tolist(), 0.0, 0.0]
