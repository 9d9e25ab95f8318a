"""The tuner: every variant checked and timed in turns, winners as a table that backends read."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.cells import TuneCell
from bench.commands.campaign import _is_stale, run_tuner, tune_cells, winner
from bench.engines.driver import Terms
from bench.measuring import tuning
from bench.measuring.machine import source_hash
from bench.measuring.tuning import tune_cell
from bench.schema import TUNE
from bench.storing.parquet import checksum_line, checksum_of, from_parquet
from bench.sweep import load
from kernels.backends.dense import BACKEND as DENSE
from kernels.backends.dense import DenseLaunch
from kernels.cuda.choose import choices, nearest
from kernels.problem import GemmProblem
from kernels.system.cache import SEAL, read_sealed, sealed

SWEEP = """
kind = "gemm"
[base]
m = 64
k = 64
backend = "native"
[axes]
n = [4, 8]
cache = ["hot", "cold"]
baseline = ["dense", "torch_bsr"]
[[grids]]
[grids.base]
block_size = 8
[[grids]]
[grids.base]
backend = "torch_bsr"
"""


def silent(_: dict[str, float | int | str]) -> None: ...


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SWEEP)
    return path


def test_the_variants_of_a_cpu_are_timed_in_turns() -> None:
    rows = tune_cell(TuneCell(backend="scipy_bsr", m=64, k=64, n=4), silent)
    assert [json.loads(row["variant"])["threads"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(set(row) == {column.name for column in TUNE} | {"status", "reason"} for row in rows)
    assert sum(row["chosen"] for row in rows) == 1 and all(len(row["samples_ms"]) >= 5 for row in rows)
    assert min(row["time_ms"] for row in rows) == next(row["time_ms"] for row in rows if row["chosen"])


class Spoiled(DenseLaunch):
    def __call__(self) -> None:
        super().__call__()
        self.result[0, 0] += 1


def test_a_variant_that_is_left_out_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "physical_cores", lambda: 2)
    monkeypatch.setenv(tuning.LEFT_OUT, "cluster=2,threads=2")
    cell = TuneCell(backend="scipy_bsr", m=64, k=64, n=4)
    first, second = tune_cell(cell, silent)
    assert first["status"] == "ok" and first["chosen"] and json.loads(first["variant"]) == {"threads": 1}
    assert second["status"] == "unsupported" and second["reason"] == "BENCH_TUNE_WITHOUT has threads=2"


def test_a_wrong_or_broken_variant_has_a_row_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: GemmProblem) -> DenseLaunch:
        raise RuntimeError("too many resources\nrequested")

    def candidates(_: str, problem: GemmProblem) -> tuning.Variants:
        ways = {"right": DENSE.prepare, "wrong": Spoiled, "broken": broken, "again": DENSE.prepare}
        return {name: partial(way, problem) for name, way in ways.items()}

    monkeypatch.setattr(tuning, "candidates", candidates)
    rows = {row["variant"]: row for row in tune_cell(TuneCell(m=64, k=64, n=4), silent)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "right": "ok",
        "wrong": "wrong",
        "broken": "failed",
        "again": "ok",
    }
    assert rows["broken"]["reason"] == "RuntimeError: too many resources requested"
    assert "time_ms" not in rows["wrong"] and rows["right"]["chosen"] != rows["again"]["chosen"]


def test_what_cannot_be_tuned_says_why() -> None:
    (row,) = tune_cell(TuneCell(backend="scipy_bsr", op="sdd"), silent)
    assert row["status"] == "unsupported" and row["reason"] == "scipy has no product sampled at blocks"


def test_each_shape_of_ours_is_tuned_once(sweep_file: Path) -> None:
    cells = tune_cells([load(sweep_file)], "cpu")
    assert [(cell.n, cell.block_size) for cell in cells] == [(4, 8), (8, 8)]
    assert tune_cells([load(sweep_file)], "cuda") == []
    assert {cell.backend for cell in tune_cells([load("gemm_gpu")], "cuda")} == {"cuda"}


def test_the_table_is_a_result_with_provenance(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "tuned.json"
    assert run_tuner([load(sweep_file)], out, 200.0, "cpu") == 0
    table = json.loads(out.read_text())
    assert {SEAL: table[SEAL], **read_sealed(out)} == table and out.read_text().count("\n") == 8
    assert table["provenance"]["torch"] and table["provenance"]["device_name"]
    assert [choice["n"] for choice in table["choices"]] == [4, 8]
    stored = out.parent / "tune.parquet"
    assert checksum_of(stored).read_text() == checksum_line(stored, stored.read_bytes())
    assert set(from_parquet(stored.read_bytes())["status"].to_pylist()) == {"ok"}
    assert run_tuner([load(sweep_file)], out, 200.0, "cpu") == 0
    assert "0 to tune" in capsys.readouterr().out and json.loads(out.read_text()) == table
    variant = nearest("dsd", "float32", "ieee", 8, 64, 64, 5, 0.8, out)
    assert variant == table["choices"][0]["variant"]


def test_what_was_tuned_is_stale_by_other_sources_or_for_want_of_room() -> None:
    row = {"status": "failed", "reason": "RuntimeError: x", "source_hash": source_hash()}
    assert not _is_stale([row])
    assert _is_stale([]) and _is_stale([{**row, "source_hash": "old"}])
    assert _is_stale([row, {**row, "reason": "ResourceError: kernels cannot be compiled today"}])


def ended(status: str, cell: Any, tell: Any) -> list[dict[str, Any]]:
    return [{"status": status, "reason": "so it is", "variant": "{}"}]


@pytest.mark.parametrize("earlier", [False, True])
def test_no_table_is_named_that_was_not_written(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], earlier: bool
) -> None:
    """Where nothing fits the budget, and where a sweep has no products of ours.

    An earlier table stays, and is called so.
    """
    out = tmp_path / "out" / "tuned.json"
    if earlier:
        out.parent.mkdir()
        out.write_text("{}")
    other = tmp_path / "other.toml"
    other.write_text('kind = "gemm"\n[base]\nbackend = "reference"\n')
    for file, words in (
        (
            sweep_file,
            "2 left after 1 s: run again with the same --out to go on and a larger --budget: none fits this one",
        ),
        (other, "nothing to tune: no product of native on cpu in other"),
    ):
        assert run_tuner([load(file)], out, 1.0, "cpu") == 0
        said = capsys.readouterr().out
        assert words in said and "table in" not in said and "tuned; no table is written" in said
        assert (f"{out} is an earlier one" in said) is earlier
        assert out.exists() is earlier


@pytest.mark.parametrize(("status", "again"), [("timeout", 2), ("crashed", 2), ("wrong", 0)])
def test_shapes_that_fail_are_counted_and_status_1(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: str, again: int
) -> None:
    out = tmp_path / "out" / "tuned.json"
    assert run_tuner([load(sweep_file)], out, 2000.0, "cpu", terms=Terms(partial(ended, status))) == 1
    said = capsys.readouterr().out
    assert f"2 shapes with failures: 2 {status}; the first: {status}: so it is" in said and not out.exists()
    assert run_tuner([load(sweep_file)], out, 1.0, "cpu") == 1
    assert f"{again} to tune" in capsys.readouterr().out


def entry(n: int, name: str, **more: Any) -> dict[str, Any]:
    shape = {"op": "dsd", "dtype": "bfloat16", "math": "ieee", "block_size": 32, "m": 4096, "k": 4096, "n": n}
    return {**shape, "target_sparsity": 0.8, "variant": {"name": name}, **more}


def test_the_nearest_shape_is_taken_and_nothing_far(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    entries = [entry(20, "a"), entry(80, "b"), entry(80, "c", m=1024), entry(80, "d", target_sparsity=0.5)]
    path.write_text(json.dumps(sealed({"provenance": {}, "choices": entries})))

    def found(n: int, m: int = 4096, sparsity: float = 0.8, **other: Any) -> str | None:
        wanted = {"op": "dsd", "dtype": "bfloat16", "math": "ieee", "block_size": 32, **other}
        variant = nearest(m=m, k=4096, n=n, sparsity=sparsity, path=path, **wanted)
        return variant["name"] if variant else None

    assert (found(16), found(30), found(64)) == ("a", "a", "b")
    assert (found(80, m=1100), found(80, sparsity=0.55)) == ("c", "d")
    assert (found(4096), found(80, op="sdd"), found(80, block_size=16), found(80, dtype="float16")) == (None,) * 4


def test_without_a_table_the_default_rule_holds(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    for path in (tmp_path / "absent.json", damaged):
        assert choices(path) == () and nearest("dsd", "float32", "ieee", 8, 64, 64, 4, 0.8, path) is None


def test_where_nothing_was_right_there_is_no_winner() -> None:
    assert winner([{"status": "wrong", "time_ms": None, "chosen": None, "variant": "{}"}]) == []
