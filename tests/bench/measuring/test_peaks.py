"""Peaks of memory: each cell's own, in every kind of table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.cells import GemmCell, TrainCell
from bench.measuring import peaks
from bench.run import run_sweep
from bench.store import Store
from bench.sweep import Sweep

pytestmark = pytest.mark.skipif(not peaks.CLEAR.exists(), reason="only Linux tells a process's peak, and forgets it")


def test_a_peak_is_forgotten() -> None:
    assert peaks.forget()
    before = peaks.peaks(True)["peak_memory_mib"]
    assert before is not None
    large = torch.ones(40 * 2**20 // 4)  # MiB of floats
    grown = peaks.peaks(True)["peak_memory_mib"]
    del large
    assert grown is not None and grown >= before + 35.0
    assert peaks.forget()
    after = peaks.peaks(True)
    assert after["peak_memory_mib"] is not None and after["peak_memory_mib"] < grown - 20.0
    assert after["peak_gpu_memory_mib"] is None or torch.cuda.is_available()
    assert peaks.peaks(False)["peak_memory_mib"] is None


@pytest.mark.slow(8)
def test_every_cell_has_its_own(tmp_path: Path) -> None:
    """Cells of one worker: the large one first."""
    small = {"n": 8, "block_size": 8}
    cells = (GemmCell(m=4096, k=2048, **small), GemmCell(m=64, k=64, **small))
    train = TrainCell(train_tokens=3000, eval_tokens=1000, embedding_size=16, hidden_size=16, num_layers=1, epochs=1)
    assert run_sweep(Sweep("peaks", "", tmp_path / "peaks.toml", (*cells, train)), tmp_path) == 0
    store = Store(tmp_path / "peaks")
    large, little = sorted((row["peak_memory_mib"] for row in store.read("gemm").to_pylist()), reverse=True)
    assert large > little + 60.0, "two matrices of 32 MiB"
    assert all(row["peak_memory_mib"] > 100.0 for row in store.read("train").to_pylist())
