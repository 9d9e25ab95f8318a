"""Peaks of memory: each cell's own, in every kind of table."""

from __future__ import annotations

import json
import subprocess
import sys
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
    """In a process of its own: here other threads give memory back meanwhile, and what is allocated may be memory that
    was kept."""
    peaks_of = "peaks.peaks(True)['peak_memory_mib']"
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json, mmap; from bench.measuring import peaks; assert peaks.forget()\n"
            f"before = {peaks_of}\n"
            "with mmap.mmap(-1, 40 * 2**20) as large:\n"  # MiB
            "    large.write(b'1' * len(large))\n"
            f"    grown = {peaks_of}\n"
            f"assert peaks.forget(); print(json.dumps([before, grown, {peaks_of}]))",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    before, grown, after = json.loads(told.stdout)
    assert grown >= before + 35.0
    assert after < grown - 35.0
    assert peaks.peaks(False)["peak_memory_mib"] is None
    assert peaks.peaks(True)["peak_gpu_memory_mib"] is None or torch.cuda.is_available()


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
