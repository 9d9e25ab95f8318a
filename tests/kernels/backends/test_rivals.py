"""Rivals that run on a GPU only: what can be known of them without one."""

from __future__ import annotations

import ctypes
import re
from contextlib import nullcontext

import pytest
import torch

from kernels import cusparse
from kernels.backends.triton_bsr import require_shape
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.check import check
from kernels.cusparse import LAYOUTS, BlockedEll
from kernels.launches import left_factor
from kernels.problem import GemmProblem, LstmProblem
from kernels.registry import BACKENDS
from kernels.system.resources import UnsupportedError

RIVALS = ["cusparse_bsr", "cusparse_ell", "triton_bsr"]


def uneven() -> GemmProblem:
    kept = torch.tensor([[1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    return GemmProblem(32, 40, 4, 8, 0.5, given_mask=BlockMask(kept, 8))


def test_blocked_ell_pads_every_row_to_the_fullest() -> None:
    problem = uneven()
    ell = BlockedEll.from_bsr(left_factor(problem)[0])
    assert ell.indices.tolist() == [[0, 1, 2, 3], [-1, -1, -1, -1], [2, 4, -1, -1], [0, -1, -1, -1]]
    assert torch.equal(ell.to_dense(), problem.weight)
    assert ell.data.shape == (32, 32) and ell.cols == 32 and ell.indices.dtype == torch.int32
    padding = ell.data.view(4, 8, 4, 8).permute(0, 2, 1, 3)[ell.indices < 0]
    assert not padding.any(), "a product with padding must not see what memory held"
    assert ell.values_nbytes == 4 * 4 * 64 * 4 > left_factor(problem)[0].values_nbytes and ell.index_nbytes == 4 * 16


def test_the_two_layouts_hold_the_same_blocks() -> None:
    rows, blocks = (BlockedEll.from_bsr(left_factor(uneven())[0], layout) for layout in LAYOUTS)
    transposed = rows.data.view(4, 8, 4, 8).permute(0, 2, 1, 3).reshape(-1)
    assert torch.equal(transposed, blocks.data.reshape(-1)) and torch.equal(rows.indices, blocks.indices)


def test_blocked_ell_of_nothing_has_one_column_of_padding() -> None:
    mask = BlockMask(torch.zeros(2, 3, dtype=torch.bool), 8)
    ell = BlockedEll.from_bsr(BSRMatrix.from_dense(torch.randn(16, 24), mask))
    assert ell.data.shape == (16, 8) and ell.indices.tolist() == [[-1], [-1]]
    assert torch.equal(ell.to_dense(), torch.zeros(16, 24))


def test_the_transpose_is_turned_beforehand() -> None:
    problem = GemmProblem(32, 48, 4, 8, 0.5, op="dsd_t")
    assert torch.equal(left_factor(problem)[0].to_dense(), problem.weight.T)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
def test_without_a_gpu_there_is_a_reason(name: str, op: str) -> None:
    assert "GPU only" in str(BACKENDS[name].unsupported(GemmProblem(32, 32, 16, 16, 0.5, op=op))) or op == "sdd"
    assert (
        BACKENDS[name].unsupported(GemmProblem(32, 32, 16, 16, 0.5, op=op, device="cuda")) or torch.cuda.is_available()
    )
    assert "no LSTM layer" in str(BACKENDS[name].unsupported(LstmProblem(16, 16, 2, 3, 8, 0.5)))


def test_a_missing_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cusparse, "LIBRARIES", ("libnothing_like_it.so",))
    monkeypatch.setattr(cusparse, "load", cusparse.load.__wrapped__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UnsupportedError, match=r"^cuSPARSE cannot be used[^\n]*$"):
        cusparse.load()


def test_a_refusal_is_told_in_the_librarys_words() -> None:
    library = object.__new__(cusparse.Cusparse)
    refused = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 10)

    class Stub:
        cusparseSpMM = refused  # noqa: N815
        cusparseGetErrorString = staticmethod(lambda _: b"operation not supported")  # noqa: N815

    library.library = Stub()  # type: ignore[assignment]
    with pytest.raises(cusparse.CusparseError, match="cusparseSpMM: operation not supported"):
        library.call("cusparseSpMM")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"n": 20}, "n divisible by 16, got 20"),
        ({"n": 80, "block_size": 32}, "n = 80 into 2 tiles"),
        ({"n": 80, "block_size": 16}, None),
        ({"n": 80, "block_size": 64}, "n = 80 into 1 tiles"),
        ({"n": 4096, "block_size": 128}, None),
        ({"n": 16, "block_size": 8}, "blocks of a power of two from 16 on, not 8"),
        ({"n": 16, "dtype": "float64"}, "no float64"),
        ({"n": 16, "math": "tf32"}, "without TF32"),
        ({"n": 20, "op": "sdd"}, None),
    ],
)
def test_what_tritons_tiles_cannot_cut_is_refused(settings: dict[str, object], reason: str | None) -> None:
    given = {"block_size": 16, "device": "cuda", **settings}
    refused = nullcontext() if reason is None else pytest.raises(UnsupportedError, match=re.escape(reason))
    with refused:
        require_shape(GemmProblem(256, 256, sparsity=0.5, **given))  # type: ignore[arg-type]


@pytest.mark.parametrize("op", ["dsd", "dsd_t"])
def test_the_masked_product_multiplies_the_pruned_weight(op: str) -> None:
    problem = GemmProblem(32, 48, 4, 8, 0.5, op=op)
    launch = BACKENDS["dense_masked"].prepare(problem)
    assert not launch.dense and check(launch, problem)[1] is None
    assert "sdd has no weight" in str(BACKENDS["dense_masked"].unsupported(GemmProblem(32, 48, 4, 8, 0.5, op="sdd")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
def test_on_a_gpu_they_are_right_or_decline(name: str, dtype: str, op: str) -> None:
    problem = GemmProblem(256, 192, 64, 32, 0.6, dtype=dtype, device="cuda", op=op)
    reason = BACKENDS[name].unsupported(problem)
    if reason:
        pytest.skip(reason)
    assert check(BACKENDS[name].prepare(problem), problem)[1] is None
