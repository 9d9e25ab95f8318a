"""Rivals that run on a GPU only: what can be known of them without one."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from kernels import cusparse
from kernels.backends import cusparselt, gather_bmm, stk, torchao_bsr, triton_bsr
from kernels.backends.stk import StkLaunch
from kernels.backends.triton_bsr import TritonLaunch, Tuned, axes, default, require_shape, widths
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.check import check
from kernels.cusparse import LAYOUTS, BlockedEll
from kernels.launches import left_factor
from kernels.problem import Backend, GemmProblem, LstmProblem
from kernels.registry import BACKENDS
from kernels.system.resources import UnsupportedError

RIVALS = ["cusparse_bsr", "cusparse_ell", "triton_bsr"]
ON_A_GPU = [*RIVALS, "cusparselt", "gather_bmm", "stk", "torchao_bsr"]


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
        ({"n": 80, "block_size": 32}, None),
        ({"n": 80, "block_size": 16}, None),
        ({"n": 80, "block_size": 64}, None),
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


def test_the_tiles_that_triton_is_tuned_over_cut_the_columns_evenly() -> None:
    assert widths(4096) == [16, 32, 64, 128, 256] and widths(80) == [16] and widths(96) == [16, 32]
    big = GemmProblem(4096, 4096, 4096, 128, 0.8)
    assert default(big) == {"SPLIT_N": 32, "num_stages": 1, "num_warps": 4, "GROUP_SIZE_ROW": 4}
    assert [len(axis) for axis in axes(big)] == [5, 5, 2, 3]
    assert default(GemmProblem(256, 256, 80, 32, 0.8))["SPLIT_N"] == 5


BEST = ("column", {"SPLIT_N": 2, "num_stages": 4, "num_warps": 8, "GROUP_SIZE_ROW": 8})


def cost(layout: str, meta: Mapping[str, int]) -> int:
    """How far a variant is from the best one."""
    return (layout != BEST[0]) + sum(abs(meta[key] - value) for key, value in BEST[1].items())


def by_cost(ways: Mapping[str, Any], _: str) -> str:
    return min(ways, key=lambda name: cost(*ways[name].args))


def test_triton_is_tuned_along_each_axis_and_over_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variants that do not compile, as for want of shared memory, are passed over."""
    monkeypatch.setattr(triton_bsr, "fastest", by_cost)
    problem, ran = GemmProblem(64, 64, 64, 32, 0.5), []

    def run(layout: str, meta: dict[str, int]) -> None:
        ran.append((layout, tuple(meta.values())))
        if meta["num_stages"] == 5:
            raise RuntimeError("out of resource: shared memory")

    tuned = Tuned(problem, run)
    assert (tuned.layout, tuned.meta) == BEST
    assert len(ran) == len(set(ran)) == len(tuned.tried) < tuned.of == 2 * 15 * 2 * 3
    assert not any("num_stages 5" in name for name in tuned.ways)
    assert str(tuned).startswith("x by columns, SPLIT_N 2, num_stages 4") and f"of {tuned.of})" in str(tuned)


def test_tuning_ends_in_time_with_something_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_bsr, "TUNING_SECONDS", 0.0)
    assert len(Tuned(GemmProblem(64, 64, 64, 32, 0.5), lambda *_: None).ways) == 1

    def refuse(*_: object) -> None:
        raise RuntimeError("out of resource: shared memory")

    with pytest.raises(UnsupportedError, match="compiles in no variant"):
        Tuned(GemmProblem(64, 64, 64, 32, 0.5), refuse)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
def test_triton_is_told_what_it_was_tuned_to(op: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's module is pretended: it multiplies the operands that it is given, on the CPU."""
    told: list[dict[str, int]] = []

    def addmm(given: Any, bsr: Any, x: Any, *, alpha: int, beta: int, out: Any, skip_checks: bool, meta: Any) -> None:
        assert given is out and (alpha, beta, skip_checks) == (1, 0, True)
        told.append({**meta, "column": int(x.mT.is_contiguous())})
        out.copy_(bsr.to_dense() @ x)

    def sampled(bsr: Any, left: Any, x: Any, *, beta: float, out: Any, skip_checks: bool) -> None:
        assert beta == 0.0 and skip_checks
        assert bsr.values().shape == out.values().shape
        out.values().copy_(BSRMatrix.from_dense(left @ x, problem.mask).data)

    triton = ModuleType("triton")
    triton.__version__ = "3.7"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setattr(
        triton_bsr, "_operations", lambda: SimpleNamespace(bsr_dense_addmm=addmm, sampled_addmm=sampled)
    )
    monkeypatch.setattr(triton_bsr, "fastest", by_cost)
    problem = GemmProblem(64, 96, 64, 16, 0.5, op=op, dtype=dtype)
    launch = TritonLaunch(problem)
    told.clear()
    assert check(launch, problem)[1] is None
    assert ("summed in float64" in launch.kernel) is (dtype == "float32")
    if op != "sdd":
        assert told == [{**BEST[1], "column": 1}]
        assert "bsr_dense_addmm" in launch.kernel and "num_stages 4" in launch.kernel


@pytest.mark.parametrize("op", ["dsd", "dsd_t"])
def test_the_masked_product_multiplies_the_pruned_weight(op: str) -> None:
    problem = GemmProblem(32, 48, 4, 8, 0.5, op=op)
    launch = BACKENDS["dense_masked"].prepare(problem)
    assert not launch.dense and check(launch, problem)[1] is None
    assert "sdd has no weight" in str(BACKENDS["dense_masked"].unsupported(GemmProblem(32, 48, 4, 8, 0.5, op="sdd")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ON_A_GPU)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
def test_on_a_gpu_they_are_right_or_decline(name: str, dtype: str, op: str) -> None:
    problem = GemmProblem(256, 192, 64, 32, 0.6, dtype=dtype, device="cuda", op=op)
    reason = BACKENDS[name].unsupported(problem)
    if reason:
        pytest.skip(reason)
    assert check(BACKENDS[name].prepare(problem), problem)[1] is None


class PretendedStk(ModuleType):
    """stk as far as it is called, multiplying on the CPU what it is given."""

    def __init__(self) -> None:
        super().__init__("stk")
        self.ops = SimpleNamespace(dsd=lambda matrix, x: matrix.dense() @ x, sdd=self._sampled)

    class Matrix:
        def __init__(self, size: Any, data: Any, rows: Any, columns: Any, offsets: Any) -> None:
            assert data.dtype == torch.float16 and rows.dtype == columns.dtype == torch.int16
            assert offsets.dtype == torch.int32 and offsets.numel() == size[0] // 128 + 1
            self.size, self.data, self.rows, self.columns = size, data, rows.long(), columns.long()

        def dense(self) -> Any:
            grid = torch.zeros(self.size[0] // 128, self.size[1] // 128, 128, 128, dtype=self.data.dtype)
            grid[self.rows, self.columns] = self.data
            return grid.permute(0, 2, 1, 3).reshape(self.size)

    def _sampled(self, left: Any, right: Any, topology: Any) -> Any:
        product = (left @ right).view(topology.size[0] // 128, 128, -1, 128).permute(0, 2, 1, 3)
        return SimpleNamespace(data=product[topology.rows, topology.columns].contiguous())


@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
def test_stk_is_given_its_own_matrix(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stk", PretendedStk())
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.7.1")
    problem = GemmProblem(256, 384, 128, 128, 0.5, dtype="float16", op=op)
    launch = StkLaunch(problem)
    assert check(launch, problem)[1] is None and launch.kernel.startswith("stk 0.7.1, ")
    assert launch.index_bytes == 4 * problem.mask.nnzb + 4 * ((3 if op == "dsd_t" else 2) + 1)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"block_size": 64}, "blocks of 128 alone, not 64"),
        ({"n": 80}, "n divisible by 128, got 80"),
        ({"sparsity": 1.0}, "no matrix without a block"),
    ],
)
def test_what_stk_has_not_is_refused(settings: dict[str, Any], reason: str) -> None:
    given = {"block_size": 128, "n": 128, "sparsity": 0.5, "dtype": "float16", "device": "cuda", **settings}
    with pytest.raises(UnsupportedError, match=re.escape(reason)):
        stk.require_shape(GemmProblem(256, 256, **given))


@pytest.mark.parametrize(("backend", "dtype"), [(stk.BACKEND, "float16"), (torchao_bsr.BACKEND, "bfloat16")])
def test_a_rival_whose_package_is_absent_says_so(backend: Backend, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None if module != "triton" else object())
    problem = GemmProblem(256, 256, 128, 128, 0.5, dtype=dtype, device="cuda")
    with pytest.raises(UnsupportedError, match=r"the package \S+ is missing; the extra rivals has it"):
        backend.needs(problem)
    assert "GPU only" in str(backend.unsupported(GemmProblem(256, 256, 128, 128, 0.5, dtype=dtype)))


def test_torchaos_copy_is_called_and_tuned_as_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def addmm(_: Any, bsr: Any, x: Any, *, out: Any, **given: Any) -> None:
        told.append(given["meta"])
        out.copy_(bsr.to_dense() @ x)

    told: list[dict[str, int]] = []
    modules = {name: ModuleType(name) for name in ("triton", "torchao", "torchao.kernel", torchao_bsr.MODULE)}
    modules["triton"].__version__, modules["torchao"].__version__ = "3.7", "0.18.0"  # type: ignore[attr-defined]
    modules[torchao_bsr.MODULE].bsr_dense_addmm = addmm  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(triton_bsr, "fastest", by_cost)
    problem = GemmProblem(64, 96, 64, 16, 0.5)
    launch = torchao_bsr._launch(problem)
    assert check(launch, problem)[1] is None and told[-1] == BEST[1]
    assert launch.kernel.startswith("torchao 0.18.0.bsr_dense_addmm, triton 3.7, x by columns")


def test_two_of_four_keeps_the_larger_ones() -> None:
    weight = torch.tensor([[1.0, -4.0, 2.0, 3.0, 0.5, 0.25, -0.75, 0.1]])
    assert cusparselt.pruned(weight).tolist() == [[0.0, -4.0, 0.0, 3.0, 0.5, 0.0, -0.75, 0.0]]
    assert int((cusparselt.pruned(torch.ones(8, 16)) != 0).sum()) == 64, "ties too"


def test_two_of_four_is_checked_against_its_own_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuSPARSELt is pretended: packed is the weight itself, and its search takes algorithm 3."""

    def multiply(packed: Any, x: Any, *, transpose_result: bool, alg_id: int) -> Any:
        assert alg_id == 3
        found = packed[:, : x.shape[0]] @ x
        return found.T.contiguous() if transpose_result else found

    monkeypatch.setattr(torch, "_cslt_compress", lambda weight: weight)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda *_, **__: 3)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    monkeypatch.setattr(torch.backends.cusparselt, "version", lambda: 800)
    problem = GemmProblem(32, 64, 16, 16, 0.5, dtype="bfloat16")
    for chosen in range(4):
        monkeypatch.setattr(cusparselt, "fastest", lambda ways, _, chosen=chosen: list(ways)[chosen])
        launch = cusparselt.SemiStructuredLaunch(problem)
        assert check(launch, problem)[1] is None and "algorithm 3" in launch.kernel
        assert launch.weight_bytes == 32 * 64 // 2 * 2
        launch.own_weight = problem.weight
        assert check(launch, problem)[1] is not None, "the blocks' weight is another"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"op": "dsd_t"}, "dsd alone"),
        ({"sparsity": 0.8}, "2:4 sparsity empties half, not 0.8"),
        ({"n": 20}, "divisible by 16"),
    ],
)
def test_where_two_of_four_is_not_what_is_asked_for(settings: dict[str, Any], reason: str) -> None:
    given = {"n": 64, "sparsity": 0.5, "dtype": "bfloat16", "device": "cuda", **settings}
    with pytest.raises(UnsupportedError, match=re.escape(reason)):
        cusparselt.require_shape(GemmProblem(64, 64, block_size=16, **given))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
def test_plain_torch_gathers_and_multiplies(op: str, dtype: str) -> None:
    """Each way by itself; in 16 bits no sums of blocks, whose roundings the check would find."""
    problem = GemmProblem(128, 96, 20, 16, 0.6, dtype=dtype, op=op)
    launch = BACKENDS["gather_bmm"].prepare(problem)
    assert check(launch, problem)[1] is None
    if op != "sdd":
        bsr, x = left_factor(problem)[0], problem.factors(dense=False)[1].contiguous()
        wanted = bsr.to_dense().double() @ x.double()
        for way in (gather_bmm.by_row, gather_bmm.by_block)[: 2 if problem.torch_dtype.itemsize > 2 else 1]:
            torch.testing.assert_close(way(bsr, x)().double(), wanted, rtol=0.02, atol=0.2)
