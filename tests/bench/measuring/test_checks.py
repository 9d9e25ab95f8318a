"""Checks of kernels on a device: every pattern, honest statuses, and compute-sanitizer where it is found."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
import torch

from bench.cells import CheckCell
from bench.measuring.checks import BATCHES, COLUMNS_OF_X, WATCHED, check_cell, pattern, problems
from bench.schema import CHECK, PATTERNS
from kernels.backends.dense import DenseLaunch
from kernels.cuda.choose import WIDE
from kernels.problem import GemmProblem
from kernels.registry import BACKENDS


def silent(_: dict[str, float | int | str]) -> None: ...


def test_the_patterns_are_what_they_are_called() -> None:
    masks = {name: pattern(name, 48, 40, 8) for name in PATTERNS}
    kept = {name: mask.kept for name, mask in masks.items()}
    assert all(mask.shape == (48, 40) for mask in masks.values())
    assert masks["all empty"].nnzb == 0 and masks["one block"].nnzb == 1 and masks["full"].num_empty == 0
    assert not kept["empty rows"][0].any() and not kept["empty rows"][:, 1].any() and masks["empty rows"].nnzb > 1
    assert kept["full row"][1].all() and masks["full row"].num_empty > 5
    assert torch.equal(kept["random"], pattern("random", 48, 40, 8).kept) and 0 < masks["random"].sparsity < 1


@pytest.mark.parametrize("block_size", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("op", ["dsd", "forward_backward"])
def test_every_block_size_has_problems(block_size: int, op: str) -> None:
    found = list(problems(CheckCell(op=op, block_size=block_size)))
    wanted = COLUMNS_OF_X if op == "dsd" else BATCHES
    assert {n for _, n, _ in found} == set(wanted)
    assert len({name for name, _, _ in found}) * len(wanted) == len(found)


def test_a_gpu_is_given_more_tiles_than_it_has_multiprocessors() -> None:
    for block_size in (16, 128):
        for op in ("dsd", "dsd_t", "sdd"):
            cell = CheckCell(backend="cuda", op=op, block_size=block_size, dtype="bfloat16", device="cuda")
            (*_, (name, n, problem)) = problems(cell)
            assert isinstance(problem, GemmProblem) and (name, n) == ("random", problem.n)
            tiles = (problem.m // 128) * (problem.k // 128 if op == "sdd" else problem.n // 256)
            assert min(problem.m, problem.k, problem.n) >= 4096 and tiles > 2 * 148  # of the largest GPU
    layer = CheckCell(backend="cuda", op="forward", dtype="bfloat16", device="cuda")
    assert {n for _, n, _ in problems(layer)} == set(BATCHES)


def test_compute_sanitizer_watches_every_kind_of_kernel() -> None:
    assert set(WATCHED) <= set(COLUMNS_OF_X) and min(WATCHED) < WIDE <= max(WATCHED)


@pytest.mark.parametrize("op", ["dsd", "dsd_t", "sdd"])
def test_every_product_of_a_backend_is_checked(op: str) -> None:
    rows = check_cell(CheckCell(backend="reference", op=op, block_size=8), silent)
    assert {row["status"] for row in rows} == {"ok"} and len(rows) == len(PATTERNS) * len(COLUMNS_OF_X)
    assert all(set(row) == {column.name for column in CHECK} | {"status", "reason"} for row in rows)
    assert all(0 <= row["error_ratio"] <= 1 for row in rows)


def test_a_layer_is_checked() -> None:
    rows = check_cell(CheckCell(backend="reference", op="forward", block_size=32), silent)
    assert {row["status"] for row in rows} == {"ok"} and {row["pattern"] for row in rows} == {
        "random",
        "all empty",
        "full",
    }


class Shifted(DenseLaunch):
    """Wrong for more than one column only."""

    dense = False

    def __init__(self, problem: GemmProblem) -> None:
        masked = GemmProblem(problem.m, problem.k, problem.n, problem.block_size, 0.0, seed=problem.seed)
        vars(masked)["full_weight"] = problem.weight
        super().__init__(masked)

    def __call__(self) -> None:
        super().__call__()
        if self.result.shape[1] == 33:
            self.result[0, 32] += 1


def test_a_wrong_kernel_is_wrong_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKENDS["dense"], "prepare", Shifted)
    rows = check_cell(CheckCell(backend="dense", block_size=8), silent)
    assert {row["n"] for row in rows if row["status"] == "wrong"} == {33}
    assert {row["status"] for row in rows if row["n"] != 33} == {"ok"}


def test_an_exception_ends_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(_: GemmProblem) -> DenseLaunch:
        raise RuntimeError("an illegal memory access\nwas encountered")

    monkeypatch.setattr(BACKENDS["dense"], "prepare", prepare)
    (row,) = check_cell(CheckCell(backend="dense"), silent)
    assert row["status"] == "failed" and row["reason"] == "RuntimeError: an illegal memory access was encountered"


def test_what_is_unsupported_says_why() -> None:
    rows = check_cell(CheckCell(backend="scipy_bsr", op="sdd"), silent)
    assert {(row["status"], row["reason"]) for row in rows} == {
        ("unsupported", "scipy has no product sampled at blocks")
    }


def test_without_compute_sanitizer_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    (row,) = check_cell(CheckCell(tool="memcheck"), silent)
    assert row == {"status": "unsupported", "reason": "compute-sanitizer is not on PATH"}


@pytest.mark.parametrize(("finds", "status"), [("true", "ok"), ("false", "wrong")])
def test_what_compute_sanitizer_finds_is_told(
    finds: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that runs what it watches, and then says what the real one would."""
    script = tmp_path / "compute-sanitizer"
    complain = "echo '========= Invalid __global__ write of size 4 bytes'; exit 86"
    script.write_text(
        f'#!/bin/sh\nwhile [ "$1" != "{sys.executable}" ]; do shift; done\n'
        f'{finds} && {{ "$@" || exit 9; }} || {{ {complain}; }}\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (row,) = check_cell(CheckCell(backend="reference", block_size=32, tool="memcheck"), silent)
    assert row["status"] == status, row
    assert (status == "ok") == (row["reason"] == "") and (status == "ok" or "Invalid __global__ write" in row["reason"])
