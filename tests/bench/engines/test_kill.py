"""kill -9 at any moment: nothing finished is lost or done twice, nothing is left running, the results are the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forked import Forked, gone, ready

from analysis.load import load as load_table
from bench.cells import KINDS, Cell, GemmCell
from bench.schema import columns
from bench.store import Store
from bench.storing.tables import Tables
from bench.sweep import load

pytestmark = pytest.mark.kills

ROOT = Path(__file__).parents[3]
START = Path(__file__).parents[1] / "start.py"
COMPACTION = Path(__file__).parent / "start_compaction.py"

REAL = """
[[grids]]
kind = "gemm"
[grids.base]
m = 64
k = 64
n = 4
threads = 1
[grids.axes]
backend = ["torch_bsr", "dense"]
[[grids]]
kind = "train"
[grids.base]
train_tokens = 3000
eval_tokens = 1000
embedding_size = 16
hidden_size = 32
num_layers = 1
epochs = 2
threads = 1
lasso = "proximal"
schedule = "cubic"
[grids.axes]
block_size = [4, 8]
target_sparsity = [0.8]
seed = [0, 1]
"""
FAST = 'kind = "train"\n[axes]\nseed = [' + ",".join(map(str, range(40))) + "]\n"


class Runs:
    """One sweep run, killed and run on; `arguments` start it on a results folder.

    anew: whether by an interpreter of its own, as a user does, and not forked from one that has imported all.
    """

    def __init__(self, sweep_file: Path, arguments: list[str]) -> None:
        self.sweep, self.arguments, self.said = load(sweep_file), arguments, sweep_file.with_name("said")

    def started(self, results: Path, anew: bool) -> subprocess.Popen[str] | Forked:
        """The leader of a session, to which its workers belong."""
        arguments = [str(results) if word == "RESULTS" else word for word in self.arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        if not anew:
            return Forked(arguments, environment, self.said)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)

    def killed_after(self, seconds: float, results: Path, anew: bool) -> bool:
        """Whether it still ran then."""
        with self.started(results, anew) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        assert process.returncode in (0, -signal.SIGKILL)
        assert gone(process.pid, 5.0), "workers outlived their run"
        return process.returncode != 0

    def finished(self, results: Path, anew: bool = False) -> float:
        """Run to the end; the seconds that it took."""
        began = time.monotonic()
        with self.started(results, anew) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        assert not list((results / self.sweep.name).rglob(".*.tmp"))
        assert not (results / self.sweep.name / "damaged").exists()
        return time.monotonic() - began

    def shards(self, results: Path) -> dict[str, tuple[int, int]]:
        """Inode and time of each shard, by name."""
        paths = (results / self.sweep.name / "cells").glob("[!.]*.parquet")
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}

    def deterministic(self, results: Path) -> dict[str, list[dict[str, Any]]]:
        """The identity, setting and result columns of every table."""
        store, tables = Store(results / self.sweep.name), {}
        for kind in sorted({cell.kind for cell in self.sweep.cells}):
            names = [column.name for column in columns(kind) if column.role in ("identity", "result")]
            tables[kind] = store.read(kind).select([*names, *KINDS[kind].model_fields]).to_pylist()
        return tables


def kill_at_random_moments(runs: Runs, shares: list[float], longest: float, folder: Path) -> int:
    """Kill a run after each of `shares` of what a whole one takes, going on where it stood, anew once it is complete.

    longest: seconds; where a whole run takes more, the shares are of them. Counts folders completed. The first run and
    the last are started as a user does; most of such a run is its start, most of the others work. What goes on is
    shorter: a share beyond 1 meets one that is done.
    """
    reference, hits = folder / "reference", 0
    ready()
    whole = {
        True: min(longest, runs.finished(reference, anew=True)),
        False: min(longest, runs.finished(folder / "forked")),
    }
    wanted, complete, kept = runs.deterministic(reference), 0, {}
    assert runs.deterministic(folder / "forked") == wanted
    for position, share in enumerate([*shares, None]):
        results, anew = folder / f"results{complete}", position == 0
        if share is not None:
            hits += runs.killed_after(share * whole[anew], results, anew)
        else:
            runs.finished(results, anew=True)
        found = runs.shards(results)
        assert kept.items() <= found.items(), f"a finished cell ran again or was lost by kill {position}"
        kept = found
        if len(found) == len(runs.sweep.cells):
            runs.finished(results)
            assert runs.shards(results) == found
            assert runs.deterministic(results) == wanted
            complete, kept = complete + 1, {}
    assert hits >= len(shares) // 10, "the moments come too late"
    return complete


def moments(count: int, seed: int, first: float, last: float) -> list[float]:
    rng = random.Random(seed)
    return [rng.uniform(first, last) for _ in range(count)]


@pytest.mark.slow(20)
def test_kills_between_fast_cells(tmp_path: Path) -> None:
    sweep_file = tmp_path / "fast.toml"
    sweep_file.write_text(FAST)
    runs = Runs(sweep_file, [str(START), str(sweep_file), "RESULTS", "succeed"])
    assert kill_at_random_moments(runs, moments(3, 0, 0.05, 1.05), 3.0, tmp_path) >= 1


def test_no_table_is_called_damaged_beside_its_writer_or_after_its_death(tmp_path: Path) -> None:
    """Both sides of the parquet wall read while a process writes, and once more after SIGKILL in the middle of it."""
    cells: list[Cell] = [GemmCell(seed=seed) for seed in range(2)]
    folder, readings = tmp_path / "campaign", 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for moment in moments(4, 2, 0.2, 1.0):
        with subprocess.Popen([sys.executable, str(COMPACTION), str(tmp_path)], env=environment) as process:
            try:
                while process.poll() is None and not campaign_has(folder, cells):
                    time.sleep(0.01)
                end = time.monotonic() + moment
                while time.monotonic() < end:
                    readings += read_both(tmp_path)
            finally:
                process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert read_both(tmp_path) == 4
        assert campaign_has(folder, cells)
    assert readings >= 40
    assert not list(tmp_path.rglob("damaged"))


def campaign_has(folder: Path, cells: list[Cell]) -> bool:
    """Whether the tables of a campaign hold all of `cells`; nothing of them is called damaged."""
    tables = Tables(folder, cells)
    assert tables.load() == []
    return len(tables.tables) == len(cells)


def read_both(folder: Path) -> int:
    """Read the tables of start_compaction.py by `bench` and by `analysis`, and count them."""
    found = [Store(folder / name).read("gemm") for name in ("sweep", "campaign")]
    frames = [load_table(folder / name, "gemm") for name in ("sweep", "campaign")]
    assert all(len(table) in (1, 2) for table in found) and all(len(frame) in (1, 2) for frame in frames)
    return len(found) + len(frames)


@pytest.mark.slow(60)
@pytest.mark.timeout(900)
def test_kills_of_a_real_sweep(tmp_path: Path) -> None:
    sweep_file = tmp_path / "real.toml"
    sweep_file.write_text(REAL)
    runs = Runs(sweep_file, ["-m", "bench", "run", str(sweep_file), "--results", "RESULTS", "--workers", "2"])
    assert kill_at_random_moments(runs, moments(20, 1, 0.02, 1.05), 11.0, tmp_path) >= 1
