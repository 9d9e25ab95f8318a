"""Faults at random moments and places: what they cost, counted.

Seeds are fixed: a failure comes again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import work
from forked import Forked, gone, ready

from analysis import report
from analysis.stats import median_interval
from bench.cells import GemmCell, TrainCell
from bench.engines.driver import Terms
from bench.measuring.clocks import timer_for
from bench.run import run_sweep
from bench.schema import columns
from bench.store import Store
from bench.storing.parquet import DamagedError, read_table
from bench.storing.tables import Tables
from bench.sweep import Sweep
from bench.timing import pinned_threads, sample_pairs
from bench.training.checkpoint import whole, write
from kernels.system import cache

pytestmark = [pytest.mark.kills, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
START = ROOT / "tests" / "bench" / "start.py"
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


def deterministic(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The identity and result columns of a table."""
    names = [column.name for column in columns(kind) if column.role in ("identity", "result")]
    rows: list[dict[str, Any]] = Store(folder).read(kind).select(names).to_pylist()
    return rows


def shards(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every shard of a cell that ended well."""
    store = Store(folder)
    return {
        stored.path.name: (stored.path.stat().st_ino, stored.path.stat().st_mtime_ns)
        for stored in store.finished().values()
        if stored.status == "ok"
    }


def test_signals_at_random_moments(full: bool, tell: Any, tmp_path: Path) -> None:
    """To the driver and to workers, which are replaced: nothing lost, nothing twice, no finished cell run again."""
    sweeps, wanted = (20, 300) if full else (2, 6)
    rng, tried, again = random.Random(7), Counter[str](), 0
    file = tmp_path / "fast.toml"
    file.write_text(f'kind = "train"\n[axes]\nseed = {list(range(24))}\n')
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ready()

    def started(results: Path) -> Forked:
        return Forked([str(START), str(file), str(results), "succeed", "2", "retry"], environment, tmp_path / "said")

    with started(tmp_path / "reference") as run:
        assert run.wait(60) == 0
    reference = deterministic(tmp_path / "reference" / "fast", "train")
    moments = 0
    for number in range(sweeps):
        results, kept = tmp_path / f"results{number}", {}
        for _ in range(wanted // sweeps):
            with started(results) as run:
                _disturb(run, rng, tried)
                run.wait(90)
            assert gone(run.pid, 5.0), "something outlived its run"
            moments += 1
            found = shards(results / "fast") if (results / "fast").is_dir() else {}
            again += sum(found.get(name) != seen for name, seen in kept.items())
            kept = found
        with started(results) as run:
            assert run.wait(90) == 0
        assert kept.items() <= shards(results / "fast").items()
        assert deterministic(results / "fast", "train") == reference
        shutil.rmtree(results)
    assert again == 0
    said = ", ".join(f"{count} {name}" for name, count in sorted(tried.items()))
    tell(f"signals at {moments} moments of {sweeps} sweeps ({said})", "0 lost, 0 twice, 0 finished cells run again")


def _disturb(run: Forked, rng: random.Random, tried: Counter[str]) -> None:
    """Send a signal to a run, or to one of its workers, after a moment; a worker's end, and then one to the run."""
    time.sleep(rng.uniform(0.02, 0.5))
    if rng.random() < 0.4:
        workers = [each for each in _children(run.pid) if each.pid != run.pid]
        if workers:
            victim = rng.choice(workers)
            try:
                victim.send_signal(signal.SIGKILL)
                tried["worker"] += 1
            except psutil.Error:
                pass
            time.sleep(rng.uniform(0.02, 0.4))
    number = rng.choice(SIGNALS)
    tried[number.name] += 1
    run.send_signal(number)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.Error:
        return []


FILES: dict[str, Callable[[Path], tuple[Path, Callable[[], bool]]]] = {}


def kind_of_file(make: Callable[[Path], tuple[Path, Callable[[], bool]]]) -> Callable[..., Any]:
    """Register what makes a file of a kind that we write, and says whether it is believed."""
    FILES[make.__name__.strip("_")] = make
    return make


CELLS = [GemmCell(seed=seed) for seed in range(2)]


def _stored(folder: Path) -> Store:
    store = Store(folder / "sweep")
    store.cells.mkdir(parents=True)
    for cell in CELLS:
        store.put(cell, work.rows_of(cell), {"started_at": "2026-01-01", "cell_seconds": 1.0})
    return store


@kind_of_file
def shard(folder: Path) -> tuple[Path, Callable[[], bool]]:
    store = _stored(folder)
    path = sorted(store.cells.iterdir())[0]
    return path, lambda: len(Store(store.folder).finished()) == len(CELLS)


@kind_of_file
def table(folder: Path) -> tuple[Path, Callable[[], bool]]:
    store = _stored(folder)
    store.compact(CELLS)
    return store.folder / "gemm.parquet", lambda: _reads(store.folder / "gemm.parquet")


@kind_of_file
def table_of_a_campaign(folder: Path) -> tuple[Path, Callable[[], bool]]:
    tables = Tables(folder / "out", CELLS)
    (folder / "out").mkdir()
    for cell in CELLS:
        tables.put(cell, work.rows_of(cell), {"started_at": "2026-01-01", "cell_seconds": 1.0})
    return folder / "out" / "gemm.parquet", lambda: Tables(folder / "another", CELLS).load(folder / "out") == []


def _reads(path: Path) -> bool:
    try:
        read_table(path)
    except DamagedError:
        return False
    return True


@kind_of_file
def checkpoint(folder: Path) -> tuple[Path, Callable[[], bool]]:
    write(folder / "a.pt", {"cell": "a"}, {"step": 1})
    return folder / "a.pt", lambda: whole(folder / "a.pt")


@kind_of_file
def sealed_json(folder: Path) -> tuple[Path, Callable[[], bool]]:
    path = folder / "tuned.json"
    path.write_text(json.dumps(cache.sealed({"choices": [{"tile": number} for number in range(20)]})))
    path.chmod(0o600)

    def believed() -> bool:
        try:
            cache.read_sealed(path)
        except cache.DoubtError:
            return False
        return True

    return path, believed


@kind_of_file
def compiled_library(folder: Path) -> tuple[Path, Callable[[], bool]]:
    fresh = folder / "fresh"
    fresh.write_bytes(random.Random(3).randbytes(20_000))
    cache.keep(fresh, folder / "library.so")
    cache.say.cache_clear()
    return folder / "library.so", lambda: cache.is_kept(folder / "library.so")


def _damages(data: bytes, flips: int, rng: random.Random) -> Iterator[bytes]:
    for length in range(0, len(data), 64):
        yield data[:length]
    for _ in range(flips):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield bytes(flipped)


@pytest.mark.parametrize("kind", FILES)
def test_truncations_and_flipped_bits(kind: str, full: bool, tell: Any, tmp_path: Path) -> None:
    path, believed = FILES[kind](tmp_path)
    data, mode = path.read_bytes(), path.stat().st_mode
    assert believed()
    unnoticed, tried = [], 0
    for damaged in _damages(data, 1000 if full else 25, random.Random(5)):
        path.write_bytes(damaged)
        path.chmod(mode)
        tried += 1
        if believed() and _says_something_else(kind, data, damaged):
            unnoticed.append(len(damaged))
    path.write_bytes(data)
    assert believed() and not unnoticed
    tell(f"{kind.replace('_', ' ')}: {tried} truncations and flipped bits", f"{tried} noticed")


def _says_something_else(kind: str, data: bytes, damaged: bytes) -> bool:
    """Of JSON a flipped bit may be one of a blank; all else is its bytes."""
    return kind != "sealed_json" or json.loads(data) != json.loads(damaged)


@pytest.mark.parametrize("kind", ["shard", "table"])
def test_what_is_damaged_is_set_aside_and_its_cell_runs_again(kind: str, tmp_path: Path) -> None:
    sweep = Sweep("sweep", "", Path("sweep.toml"), tuple(CELLS))
    assert run_sweep(sweep, tmp_path, terms=Terms(work.succeed)) == 0
    folder = tmp_path / "sweep"
    path = sorted((folder / "cells").iterdir())[0] if kind == "shard" else folder / "gemm.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert run_sweep(sweep, tmp_path, terms=Terms(work.succeed)) == 0
    assert len(Store(folder).finished()) == 2 and len(list((folder / "damaged").iterdir())) >= 1
    assert Store(folder).read("gemm").num_rows == 2


def test_faults_in_six_of_twenty_cells(tell: Any, tmp_path: Path) -> None:
    """NaN, an exception, a hang, no memory, a killed worker, one that leaves: rows, exit status and every summary."""
    file = tmp_path / "faulty.toml"
    file.write_text(f'kind = "train"\n[axes]\nseed = {list(range(20))}\n')
    start = [sys.executable, str(ROOT / "tests" / "chaos" / "start_faulty.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "bench")])}
    command = [*start, "run", str(file), "--results", str(tmp_path / "results"), "--timeout", "4", "--workers", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "14 of 20 cells ok" in done.stdout and "6 failed" in done.stdout
    finished = Store(tmp_path / "results" / "faulty").finished().values()
    assert Counter(stored.status for stored in finished) == {
        "ok": 14, "diverged": 1, "failed": 1, "timeout": 1, "out_of_memory": 1, "crashed": 2,
    }  # fmt: skip
    page = report.write_report(tmp_path / "results" / "faulty").read_text("utf-8")
    assert "14 of 20" in page
    tell("faults in 6 of 20 cells (NaN, raise, hang, memory, kill, exit)", "6 rows say which, 14 ok, exit status 1")


SMALL: dict[str, Any] = {
    "train_tokens": 3000, "eval_tokens": 1000, "embedding_size": 16, "hidden_size": 32, "num_layers": 1, "epochs": 1,
    "threads": 1, "schedule": "cubic", "target_sparsity": 0.5, "block_size": 8,
}  # fmt: skip


def test_other_cells_change_none(tell: Any, tmp_path: Path) -> None:
    """In another order, and with more of them beside."""
    cells = [TrainCell(**SMALL, seed=seed) for seed in range(3)]
    found = []
    for name, some in (("one", cells), ("two", cells[::-1]), ("more", [TrainCell(**SMALL, seed=9), *cells])):
        assert run_sweep(Sweep(name, "", tmp_path / f"{name}.toml", tuple(some)), tmp_path, 2) == 0
        ids = {cell.cell_id for cell in cells}
        rows = [row for row in deterministic(tmp_path / name, "train") if row["cell_id"] in ids]
        found.append(sorted(rows, key=lambda row: (row["cell_id"], row["epoch"])))
    assert found[0] == found[1] == found[2]
    tell("cells in another order, and more of them", "every result is the same to the digit")


def test_timings_of_the_same_are_equal_and_a_slowdown_is_seen(full: bool, tell: Any) -> None:
    """A/A: how often the 95 % interval of a ratio leaves 1 out. A fifth slower: how often it is seen."""
    a, b = torch.randn(160, 160), torch.randn(160, 160)

    def call() -> None:
        torch.mm(a, b)

    def slower() -> None:
        began = time.perf_counter()
        torch.mm(a, b)
        until = began + 1.2 * (time.perf_counter() - began)
        while time.perf_counter() < until:
            pass

    if not full:
        pytest.skip("times, with nothing beside it: nox -s chaos")
    times, slow = 200, 20
    with pinned_threads(1):
        alarms = sum(_differs(call, call) for _ in range(times))
        seen = sum(_differs(slower, call) for _ in range(slow))
    tell(f"timing: A/A {times} times, a slowdown of 20 % {slow} times", f"{alarms} false alarms, {seen} seen")
    assert seen >= 0.95 * slow
    assert alarms <= 0.05 * times


def _differs(one: Callable[[], None], other: Callable[[], None]) -> bool:
    """Whether one is told to be slower or faster than the other, as cells are: paired, in turns, by medians."""
    launches: list[Any] = [one, other]
    timer, _ = timer_for("cpu", launches)
    found = median_interval(sample_pairs(one, other, timer).ratios)  # type: ignore[arg-type]
    return not found.low <= 1.0 <= found.high
