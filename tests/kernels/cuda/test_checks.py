"""The checks that a campaign on a GPU begins with, on an emulated one: what can be wrong in Python is found here."""

from __future__ import annotations

import pytest
from emulated_gpu import emulated_gpu

from bench import checks
from bench.cells import CheckCell
from bench.checks import check_cell

TYPES = [("float32", "ieee"), ("float32", "tf32"), ("bfloat16", "ieee"), ("float16", "ieee")]
OPS = ["dsd", "dsd_t", "sdd", "forward", "forward_backward"]


def check(cell: CheckCell) -> set[str]:
    """The kernels that ran, all right."""
    with emulated_gpu():
        rows = check_cell(cell, lambda _: None)
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
