"""What a campaign on a GPU does, on an emulated one.

Checks, timings and the tuner, for what can be wrong in their Python.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from emulated_gpu import emulated_gpu

from bench.cells import CheckCell, GemmCell, LstmCell, TimedCell, TuneCell
from bench.measuring import checks, smoke
from bench.measuring.checks import check_cell
from bench.measuring.tuning import tune_cell
from bench.timing import time_cell
from kernels.problem import GemmProblem, LstmProblem

TYPES = [("float32", "ieee"), ("float32", "tf32"), ("bfloat16", "ieee"), ("float16", "ieee")]
OPS = ["dsd", "dsd_t", "sdd", "forward", "forward_backward"]


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU, that has tf32 too."""
    for problem in (GemmProblem, LstmProblem):
        monkeypatch.setattr(problem, "missing_device", lambda _: None)
    with emulated_gpu():
        yield


def silent(_: dict[str, float | int | str]) -> None: ...


def check(cell: CheckCell) -> set[str]:
    """The kernels that ran, all right."""
    rows = check_cell(cell, silent)
    assert {(row["status"], row["reason"]) for row in rows} == {("ok", "")}
    assert all(0 <= row["error_ratio"] <= 1 for row in rows)
    return {row["kernel"] for row in rows}


@pytest.mark.parametrize(("dtype", "math"), TYPES)
@pytest.mark.parametrize("op", OPS)
def test_every_op_and_type_is_checked(op: str, dtype: str, math: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "PATTERNS", ("random", "all empty"))
    monkeypatch.setattr(checks, "LAYER_SPARSITIES", {"random": 0.6})
    monkeypatch.setattr(checks, "COLUMNS_OF_X", (20,))
    monkeypatch.setattr(checks, "BATCHES", (5,))
    kernels = check(CheckCell(backend="cuda", op=op, block_size=16, dtype=dtype, math=math))
    assert len(kernels) == 1 and kernels.pop().startswith("cuda lstm " if "forward" in op else "cuda ")


@pytest.mark.emulate
@pytest.mark.parametrize("block_size", [8, 16, 32, 64, 128])
@pytest.mark.parametrize(("dtype", "math"), TYPES)
@pytest.mark.parametrize("op", OPS)
def test_every_check_of_a_campaign(op: str, dtype: str, math: str, block_size: int) -> None:
    check(CheckCell(backend="cuda", op=op, block_size=block_size, dtype=dtype, math=math))


CELLS = [
    GemmCell(backend="cuda", m=64, k=64, n=20, block_size=16, dtype="bfloat16"),
    LstmCell(backend="cuda", baseline="torch_lstm", input_size=32, hidden_size=48, batch_size=5, bptt=3, block_size=16),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.kind)
def test_a_cell_is_timed(cell: TimedCell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.timing.MIN_SECONDS", 0.0)
    (row,) = time_cell(cell, silent)
    assert (row["status"], row["reason"]) == ("ok", "") and row["kernel"].startswith("cuda ")
    assert row["weight_bytes"] > 0 and row["index_bytes"] > 0 and row["time_ms"] > 0


@pytest.mark.emulate
def test_a_product_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measuring.tuning.ROUNDS", 2)
    rows = tune_cell(TuneCell(backend="cuda", op="sdd", m=64, k=64, n=20, block_size=16, dtype="bfloat16"), silent)
    assert {(row["status"], row["reason"]) for row in rows} == {("ok", "")} and sum(row["chosen"] for row in rows) == 1
    assert any("wgmma" in row["variant"] for row in rows)


@pytest.mark.parametrize("cluster", [1, 2])
def test_a_look_at_kernels_by_tma_runs_each_and_finds_a_wrong_one(
    cluster: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = GemmProblem(384, 128, 160, 64, 0.5, dtype="bfloat16")
    with emulated_gpu(90, 16):
        found = smoke._all_right(problem, cluster)
        assert found["status"] == "ok" and found["count"] >= 1 and found["error_ratio"] < 1
        assert capsys.readouterr().out.count(f'"cluster": {cluster}') == found["count"]
        monkeypatch.setattr("kernels.check.check", lambda *_: (3.0, "it is wrong"))
        found = smoke._all_right(problem, cluster)
    assert found["status"] == "wrong" and "wgmma tma" in found["kernel"]
