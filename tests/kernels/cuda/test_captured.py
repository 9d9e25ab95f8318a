"""What a CUDA graph that is being captured asks of products and layers, on an emulated GPU that says it captures."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from emulated_gpu import emulated_gpu
from lstm_work import Work

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.cuda import products as cuda_products
from kernels.cuda.mma import AddParts
from kernels.cuda.products import pattern_of
from kernels.ops import block_sparse_matmul, dsd

FIRST = "call it once before capturing"


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    with emulated_gpu(), mock.patch.object(cuda_products, "_pinned", {}):
        yield


@contextmanager
def capturing() -> Iterator[None]:
    with mock.patch.object(cuda_products, "is_captured", return_value=True):
        yield


def operands(seed: int = 0) -> tuple[BSRMatrix, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = BlockMask.random(48, 32, 16, 0.5, generator)
    return BSRMatrix.from_dense(torch.randn(mask.shape, generator=generator), mask), torch.randn(32, 5)


def test_a_first_call_is_refused_in_one_line() -> None:
    weight, x = operands()
    with capturing(), pytest.raises(RuntimeError, match=FIRST):
        block_sparse_matmul(weight, x, "cuda")
    wanted = block_sparse_matmul(weight, x, "cuda")
    with capturing():
        assert torch.equal(block_sparse_matmul(weight, x, "cuda"), wanted)
        with pytest.raises(RuntimeError, match=FIRST):
            block_sparse_matmul(weight, x[:, :2], "cuda")  # of another batch


def test_an_index_from_elsewhere_is_not_compared() -> None:
    weight, x = operands()
    foreign = type(weight.index)(*(each.clone() for each in weight.index))
    dsd(weight.data, *foreign, x, False, "cuda")
    with capturing(), pytest.raises(RuntimeError, match=FIRST):
        dsd(weight.data, *foreign, x, False, "cuda")


def test_a_layer_s_first_call_is_refused_and_its_next_is_kept() -> None:
    work = Work("Float32")
    with capturing(), pytest.raises(RuntimeError, match=FIRST):
        work.computed()
    work.computed()
    with capturing():
        work.computed()
    kinds = {type(each).__name__ for each in cuda_products._pinned.values()}
    assert kinds == {"Prepared", "Recurrence"}


def test_what_was_captured_outlives_what_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_products, "MOST_PREPARED", 1)
    monkeypatch.setattr(cuda_products, "MOST_PATTERNS", 1)
    (weight, x), (other, _) = operands(), operands(1)
    alive = {}
    for captured in (True, False):
        pattern = pattern_of(weight.index, 16)
        pattern.dsd(weight.data, x)
        if captured:
            with capturing():
                pattern.dsd(weight.data, x)
        (prepared,) = pattern.prepared.values()
        alive[captured] = weakref.ref(prepared.run)
        del prepared
        pattern.dsd(weight.data, x[:, :2])  # takes its place
        pattern_of(other.index, 16)  # and the pattern's
        del pattern
        weight = weight.with_data(weight.data)
        gc.collect()
    assert alive[True]() is not None and alive[False]() is None


def test_launches_do_not_share_the_parts_of_a_sum() -> None:
    mask = BlockMask.full(16, 4096, 16)
    weight = BSRMatrix.from_dense(torch.randn(mask.shape), mask)
    x, seen = torch.randn(4096, 3), []
    empty = AddParts.empty

    def watched(self: AddParts) -> torch.Tensor:
        seen.append(empty(self))
        return seen[-1]

    with mock.patch.object(AddParts, "empty", watched):
        for _ in range(2):
            block_sparse_matmul(weight, x, "cuda")
    assert len(seen) == 2 and seen[0].data_ptr() != seen[1].data_ptr()


def test_a_gpu_is_asked_and_a_cpu_is_not() -> None:
    assert not cuda_products.is_captured(torch.device("cpu"))
    with mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True):
        assert cuda_products.is_captured(torch.device("cuda", 0))
