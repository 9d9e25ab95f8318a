"""Tables rewritten after every cell: complete at any moment, whatever a kill leaves."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from rows import timed

from bench.cells import Cell, CheckCell, GemmCell
from bench.storing import parquet as module
from bench.storing.parquet import from_parquet
from bench.storing.tables import Tables

PROVENANCE: dict[str, Any] = {"commit": "c0ffee", "cell_seconds": 1.5, "started_at": "2026-01-01", "source_hash": "a"}
CELLS: list[Cell] = [GemmCell(seed=seed) for seed in range(3)]


def row(value: float = 0.5) -> list[dict[str, Any]]:
    return timed(value)


def seeds(folder: Path) -> list[int]:
    """Of the table on the disk, its checksum verified as sha256sum does."""
    data = (folder / "gemm.parquet").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert (folder / "gemm.parquet.sha256").read_text() == f"{digest}  gemm.parquet\n"
    return list(from_parquet(data)["seed"].to_pylist())


def test_cells_come_in_the_order_of_the_sweep_whenever_they_end(tmp_path: Path) -> None:
    tables = Tables(tmp_path, CELLS)
    for cell in (CELLS[2], CELLS[0], CELLS[1]):
        tables.put(cell, row(), PROVENANCE)
    assert seeds(tmp_path) == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gemm.parquet", "gemm.parquet.sha256"]


def test_they_are_taken_up_again_and_replaced(tmp_path: Path) -> None:
    tables = Tables(tmp_path, CELLS)
    tables.put(CELLS[0], row(1.0), PROVENANCE)
    tables.put(CheckCell(), [{"status": "ok", "pattern": "full", "n": n} for n in (1, 7)], PROVENANCE)
    again = Tables(tmp_path, CELLS)
    assert again.load() == []
    assert again.rows(CELLS[0])[0]["time_ms"] == 1.0 and again.rows(CELLS[1]) == []
    assert [found["n"] for found in again.rows(CheckCell())] == [1, 7]
    again.put(CELLS[0], row(2.0), PROVENANCE)
    again.put(CELLS[1], row(3.0), PROVENANCE)
    assert seeds(tmp_path) == [0, 1]
    assert from_parquet((tmp_path / "gemm.parquet").read_bytes())["time_ms"].to_pylist() == [2.0, 3.0]


def test_tables_of_another_folder_are_taken_up(tmp_path: Path) -> None:
    Tables(tmp_path / "old", CELLS).put(CELLS[1], row(), PROVENANCE)
    tables = Tables(tmp_path / "new", CELLS)
    tables.load(tmp_path / "old")
    tables.put(CELLS[0], row(), PROVENANCE)
    assert seeds(tmp_path / "new") == [0, 1] and seeds(tmp_path / "old") == [1]


@pytest.mark.parametrize("survived", range(4))
def test_a_kill_between_any_two_writes_loses_nothing(
    survived: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = Tables(tmp_path, CELLS)
    tables.put(CELLS[0], row(), PROVENANCE)
    writes, real = 0, module.publish

    def publish(path: Path, data: bytes) -> None:
        nonlocal writes
        if writes == survived:
            raise KeyboardInterrupt
        writes += 1
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", publish)
        try:
            tables.put(CELLS[1], row(), PROVENANCE)
        except KeyboardInterrupt:
            assert survived < 3
    again = Tables(tmp_path, CELLS)
    assert again.load() == []
    assert len(again.rows(CELLS[0])) == 1 and len(again.rows(CELLS[1])) == (survived >= 2)
    again.put(CELLS[2], row(), PROVENANCE)
    assert seeds(tmp_path) == ([0, 2] if survived < 2 else [0, 1, 2])


def test_damage_is_told_and_the_cells_run_again(tmp_path: Path) -> None:
    Tables(tmp_path, CELLS).put(CELLS[0], row(), PROVENANCE)
    path = tmp_path / "gemm.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    tables = Tables(tmp_path, CELLS)
    (line,) = tables.load()
    assert "gemm.parquet is damaged" in line and tables.rows(CELLS[0]) == []
    assert (tmp_path / "damaged" / "gemm.parquet").read_bytes() == data
    tables.put(CELLS[1], row(), PROVENANCE)
    assert seeds(tmp_path) == [1]


def test_a_table_of_which_no_cell_is_intact_is_kept_aside(tmp_path: Path) -> None:
    """Every row lacks its start."""
    Tables(tmp_path, CELLS).put(CELLS[0], row(), {**PROVENANCE, "started_at": None})
    tables = Tables(tmp_path, CELLS)
    assert tables.load() != [] and tables.rows(CELLS[0]) == []
    assert (tmp_path / "damaged" / "gemm.parquet").is_file()
