"""Faults at random moments and places: what they cost, counted.

Seeds are fixed: a failure comes again.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
import torch
import work
from forked import Forked, gone, ready
from malformed import BAD, check_line, commands, write_bad

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
from bench.sweep import Sweep, load
from bench.timing import pinned_threads, sample_pairs
from bench.training.checkpoint import FOLDER, whole, write
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


def fast_sweep(folder: Path, cells: int, workers: int) -> tuple[Callable[[Path], Forked], list[dict[str, Any]]]:
    """What starts a sweep `fast` of cells that succeed at once, into a folder; and what it stores undisturbed."""
    file = folder / "fast.toml"
    file.write_text(f'kind = "train"\n[axes]\nseed = {list(range(cells))}\n')
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ready()

    def started(results: Path) -> Forked:
        arguments = [START, file, results, "succeed", workers, "retry"]
        return Forked(list(map(str, arguments)), environment, folder / "said")

    with started(folder / "reference") as run:
        assert run.wait(60) == 0
    return started, deterministic(folder / "reference" / "fast", "train")


def test_signals_at_random_moments(full: bool, tell: Any, tmp_path: Path) -> None:
    """To the driver and to workers, which are replaced: nothing lost, nothing twice, no finished cell run again."""
    sweeps, wanted = (20, 300) if full else (2, 6)
    rng, tried, again = random.Random(7), Counter[str](), 0
    started, reference = fast_sweep(tmp_path, cells=24, workers=2)
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


def test_malformed_sweep_files(full: bool, tell: Any, tmp_path: Path) -> None:
    """Each is refused with exit status 2 and one line in less than a second, and nothing is created."""
    names = list(BAD) if full else list(BAD)[1::12]
    ready()
    took = []
    with commands(tmp_path) as bench:
        for number, name in enumerate(names):
            folder = tmp_path / str(number)
            folder.mkdir()
            path = write_bad(folder, name)
            before = sorted(folder.rglob("*"))
            done, seconds = bench("run", str(path), cwd=folder)
            assert done.returncode == 2 and not done.stdout and len(done.stderr.splitlines()) == 1, done
            check_line(name, done.stderr, path)
            assert sorted(folder.rglob("*")) == before
            took.append(seconds)
    usual = median(took)  # processor seconds, imports among them: of one file others on the machine make more
    assert usual < 1.0
    tell(f"{len(names)} malformed sweep files", f"exit status 2, one line, {usual:.2f} s, nothing created")


RESUMED = {
    "sgd, lasso, masked": {"optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.9, "lasso": "proximal"},
    "adam, sparse path": {"path": "sparse", "lr_schedule": "one_cycle"},
    "asgd, auto, random blocks": {"path": "auto", "optimizer": "asgd", "learning_rate": 5.0, "criterion": "random"},
    "awd_lstm": {"model": "awd_lstm", "weight_drop": 0.3, "embedding_dropout": 0.1},
}
TRAINED = {
    "train_tokens": 16000, "eval_tokens": 1000, "embedding_size": 16, "hidden_size": 32, "block_size": 8, "epochs": 2,
    "dropout": 0.3, "schedule": "cubic", "target_sparsity": 0.8, "prune_every": 2, "threads": 1,
}  # fmt: skip


def test_training_runs_that_are_killed_and_go_on(full: bool, tell: Any, tmp_path: Path) -> None:
    """What they store, norms of all blocks and perplexities among it, is to the bit what an unbroken run stores."""
    kills, rng, resumed = (10 if full else 1), random.Random(11), 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for number, settings in enumerate(list(RESUMED.values())[: None if full else 2]):
        file = tmp_path / f"variant{number}.toml"
        lines = [f"{name} = {json.dumps(value)}" for name, value in (TRAINED | settings).items()]
        file.write_text("\n".join(['kind = "train"', "[base]", *lines]))
        for results in (tmp_path / "whole", tmp_path / "killed"):
            run = ["-m", "bench", "run", str(file), "--results", str(results), "--workers", "1"]
            seen: set[tuple[str, int]] = set()
            for _ in range(kills if results.name == "killed" else 0):
                with Forked([*run, "--checkpoint-seconds", "0.02"], environment, tmp_path / "said") as process:
                    if _new_checkpoint(results / file.stem / FOLDER, seen, process):
                        time.sleep(rng.uniform(0.0, 0.1))
                    process.send_signal(signal.SIGKILL)
                    process.wait(30)
            with Forked(run, environment, tmp_path / "said") as process:
                out, err = process.communicate(timeout=300)
                assert process.returncode == 0, out + err
        rows = Store(tmp_path / "killed" / file.stem).read("train").to_pylist()
        resumed += max(row["resumed"] for row in rows)
        assert deterministic(tmp_path / "killed" / file.stem, "train") == deterministic(
            tmp_path / "whole" / file.stem, "train"
        )
    variants = number + 1
    assert resumed >= variants * kills * 0.5, "or this tests little"
    tell(
        f"{variants} variants trained, {kills} times killed each, {resumed} times taken up",
        "every result, norms of blocks too, is bit-equal to an unbroken run's",
    )


def _new_checkpoint(folder: Path, seen: set[tuple[str, int]], process: Forked) -> bool:
    """Whether a checkpoint that is not in `seen` was made before the run ended; `seen` has it then."""
    while process.poll() is None:
        found = set()
        for path in folder.glob("*.pt"):
            with suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_mtime_ns))
        if found - seen:
            seen |= found
            return True
        time.sleep(0.002)
    return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True)
    if not made or made.returncode:
        pytest.skip("a small file system cannot be mounted here: needs Linux and root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_at_every_stage(full: bool, tell: Any, small_disk: Path, tmp_path: Path) -> None:
    """The room that is left ends a page later each time: within a shard, its checksum, the table ...

    Files from before stay as they are, a line says what is full, and once there is room the same run goes on.
    """
    started, reference = fast_sweep(tmp_path, cells=6, workers=1)
    pages, waited, ended = (range(0, 80, 1) if full else (1, 9)), 0, 0
    for left in pages:
        results, ballast = small_disk / "results", small_disk / "ballast"
        before = _with_one_cell(results, tmp_path / "fast.toml")
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(b"\0" * max(0, free - left * 4096))
        with started(results) as run:
            full_up = _says_that_it_is_full(run, tmp_path / "said")
            assert {path: path.read_bytes() for path in before} == before
            ballast.unlink()
            status = run.wait(90)
        waited, ended = waited + full_up, ended + bool(status)
        if status:  # there was no room for what a run needs before its first cell
            with started(results) as run:
                assert run.wait(90) == 0
        assert deterministic(results / "fast", "train") == reference
        shutil.rmtree(results)
    assert waited > len(pages) // 4, "or this tests little"
    tell(
        f"{len(pages)} amounts of room left on a disk, a page apart",
        f"{waited} runs waited and went on, {ended} ended with a line first, earlier files as they were, all complete",
    )


def _with_one_cell(results: Path, file: Path) -> dict[Path, bytes]:
    """A store with the first cell of a sweep, and what lies in it."""
    sweep = load(file)
    one = Sweep(sweep.name, "", file, sweep.cells[:1])
    assert run_sweep(one, results, terms=Terms(work.succeed)) == 0
    return {path: path.read_bytes() for path in (results / "fast").rglob("*.parquet*")}


def _says_that_it_is_full(run: Forked, said: Path) -> bool:
    """Wait until a run has ended, or says that it waits for room."""
    while run.poll() is None:
        if any("No space left" in path.read_text(errors="replace") for path in said.iterdir() if path.is_file()):
            return True
        time.sleep(0.01)
    return False


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


@pytest.mark.timeout(14400)
@pytest.mark.parametrize(("busy", "times"), [("always", 20), ("by turns", 4)])
def test_the_gate_of_speed_beside_a_busy_process(busy: str, times: int, full: bool, tell: Any) -> None:
    """`nox -s bench` of unchanged code, as often as it takes to believe that noise does not fail it."""
    if not full:
        pytest.skip("takes half an hour on two processors: nox -s chaos")
    rest = "time.sleep(0.5); end = time.monotonic() + 0.5" if busy == "by turns" else "end = float('inf')"
    work = f"import time\nwhile True:\n    {rest}\n    while time.monotonic() < end: pass"
    other = subprocess.Popen([sys.executable, "-c", work])
    try:
        command = [sys.executable, "-m", "pytest", "-q", "tests/perf", "--benchmark-only", "-p", "no:cacheprovider"]
        ran = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True) for _ in range(times)]
    finally:
        other.kill()
        other.wait()
    failed = [one.stdout for one in ran if one.returncode]
    counts = [match.groups() for one in ran if (match := re.search(r"^speed: (\d+) of (\d+) above", one.stdout, re.M))]
    above, gated = (sum(map(int, numbers)) for numbers in zip(*counts, strict=True))
    said = f"{len(failed)} failures, {above} of {gated} speeds decided"
    tell(f"the gate of speed beside a process that is busy {busy}, {times} times unchanged", said)
    assert not failed, failed[0]
    assert len(counts) == times
