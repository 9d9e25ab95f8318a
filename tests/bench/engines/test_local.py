"""The local engine: every way a cell can end becomes an ending, and the sweep goes on."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import work

from bench.cells import Cell, GemmCell, TrainCell
from bench.engines import local, starts
from bench.engines.local import WORKER_ENVIRONMENT, Ending, Work, run_cells
from bench.engines.starts import Starts, be_ready
from bench.measuring.causes import LONGEST_REASON


def endings(cells: Sequence[Cell], do: Work, workers: int = 1, timeout: float = 30.0) -> dict[int, Ending]:
    return {ending.cell.seed: ending for ending in run_cells(cells, do, workers, timeout, lambda _: None)}


@pytest.mark.alone
def test_every_way_to_fail_is_an_ending_with_a_reason_and_the_rest_goes_on() -> None:
    found = endings([GemmCell(seed=seed) for seed in (*range(14), 20)], work.misbehave, timeout=3.0)
    assert set(found) == {*range(14), 20}

    def ended(seed: int) -> tuple[str, str]:
        row = found[seed].rows[0]
        return row["status"], row.get("reason", "")

    assert ended(0) == ended(20) == ("ok", "")
    assert ended(1) == ("failed", "ValueError: two lines")
    assert ended(2) == ("out_of_memory", "MemoryError:")
    assert ended(3)[0] == "out_of_memory"
    assert ended(4) == ("timeout", "stopped after 3 s")
    assert ended(5) == ("crashed", "the worker ended with exit code 7")
    assert ended(6) == ("crashed", "the worker was killed by SIGKILL (the system may have run out of memory)")
    assert ended(7) == ("crashed", "the worker was killed by SIGSEGV")
    assert ended(8) == ("failed", "SystemExit: gone")
    assert ended(13)[0] in ("failed", "crashed")
    assert 3.0 <= found[4].seconds < 10.0
    assert all(ending.started_at.startswith("20") and ending.started_at.endswith("+00:00") for ending in found.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_whatever_a_cell_raises_is_its_own_and_said_in_one_line(workers: int) -> None:
    found = endings([TrainCell(seed=seed) for seed in range(len(work.RAISED) + 2)], work.raise_anything, workers)
    rows = [found[seed].rows[0] for seed in range(len(work.RAISED) + 2)]
    assert [row["status"] for row in rows] == ["ok", *["failed"] * len(work.RAISED), "unsupported"]
    said = [row["reason"] for row in rows[1:]]
    assert said[:7] == [
        *("GeneratorExit: closed", "CancelledError: cancelled", "Stopped: stopped", "KeyboardInterrupt: inside"),
        *("SystemExit: 0", "MuteError: its __str__ raises KeyboardInterrupt", "ValueError: half \\udcff"),
    ]
    assert said[7].startswith("ValueError: a a a") and said[8].startswith("no line \\ud800xxx")
    assert all(len(line) <= LONGEST_REASON and "\n" not in line and line.encode() for line in said)


def test_workers_find_their_environment_and_this_process_gets_its_own_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_TEST_FOLDER", str(tmp_path))
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    (ending,) = endings([GemmCell()], work.look_around).values()
    malloc = [WORKER_ENVIRONMENT[name] for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")]
    assert ending.rows[0]["reason"] == f"alone=True malloc={malloc} ignores_interrupt=True"
    assert os.environ["MALLOC_MMAP_MAX_"] == "65536" and "MALLOC_TRIM_THRESHOLD_" not in os.environ


@pytest.fixture
def breakable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a file `broken` ends every worker at its start, or has it hang, as often as it has x or z."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "broken, tries = (pathlib.Path(__file__).with_name(name) for name in ('broken', 'tries'))\n"
        "if broken.exists() and any('spawn_main' in word for word in sys.orig_argv):\n"
        "    with tries.open('a') as file:\n"
        "        file.write('.')\n"
        "    if tries.stat().st_size <= broken.stat().st_size:\n"
        "        signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "        time.sleep(1000 if 'z' in broken.read_text() else 0)\n"
        "        os._exit(3 if tries.stat().st_size % 2 else 0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("BENCH_TEST_FOLDER", str(tmp_path))
    return tmp_path


NO_START = re.compile(r"no worker could start, \d+ times: the worker ended with exit code [03]")


@pytest.mark.spawned
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_at_its_start_is_counted_and_the_cell_says_so(breakable: Path, workers: int) -> None:
    (breakable / "broken").write_text("xx")  # the third try succeeds
    found = endings([GemmCell(seed=seed) for seed in range(3)], work.succeed, workers)
    assert [found[seed].rows[0]["status"] for seed in range(3)] == ["ok"] * 3
    (breakable / "broken").write_text("x" * 10_000)
    found = endings([GemmCell(seed=seed) for seed in range(3)], work.succeed, workers)
    for seed in range(3):
        row = found[seed].rows[0]
        assert row["status"] == "crashed" and NO_START.fullmatch(row["reason"]), row
    assert (breakable / "tries").stat().st_size < 30


@pytest.mark.spawned
def test_a_worker_that_hangs_at_its_start_is_not_waited_for(breakable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (breakable / "broken").write_text("z")  # the second try succeeds
    monkeypatch.setattr(starts, "START_SECONDS", 3.0)
    assert endings([GemmCell()], work.succeed)[0].rows[0]["status"] == "ok"
    assert (breakable / "tries").stat().st_size == 2
    (breakable / "broken").write_text("z" * 1000)
    monkeypatch.setattr(starts, "START_SECONDS", 0.3)
    row = endings([GemmCell()], work.succeed)[0].rows[0]
    assert row["status"] == "crashed"
    assert re.fullmatch(r"no worker could start, \d+ times: it was not ready after 0\.3 s", row["reason"]), row


def test_a_worker_that_is_ready_may_wait_for_a_cell_as_long_as_it_likes(tmp_path: Path) -> None:
    class Waiting:
        exitcode, pid, killed = None, os.getpid(), False

        def kill(self) -> None:
            self.killed = True

    looked = Starts(tmp_path, str)
    for ready in (False, True):
        looked.fresh = {(process := Waiting()): time.monotonic() - 2 * starts.START_SECONDS}
        if ready:
            be_ready(looked.door)
        assert looked.look() == 0 and process.killed is not ready


@pytest.mark.parametrize("refusals", [2, 1000])
def test_a_system_without_processes_is_tried_again_and_then_said(
    monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    left, make = [refusals], Starts.Process

    def refuse(self: Starts, *given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return make(self, *given, **named)

    monkeypatch.setattr(Starts, "Process", refuse)
    found = endings([GemmCell(seed=seed) for seed in range(2)], work.succeed)
    rows = [found[seed].rows[0] for seed in range(2)]
    if refusals == 2:
        assert [row["status"] for row in rows] == ["ok", "ok"]
    else:
        assert [row["status"] for row in rows] == ["crashed", "crashed"] and left[0] > refusals - 10
        assert all(row["reason"].endswith("Resource temporarily unavailable") for row in rows), rows


@pytest.mark.spawned
def test_cells_that_run_go_on_beside_workers_that_cannot_start(breakable: Path) -> None:
    found = endings([TrainCell(seed=seed) for seed in range(4)], work.break_starts, 2)
    assert [found[seed].rows[0]["status"] for seed in range(4)] == ["ok", *["crashed"] * 3]
    assert found[1].rows[0]["reason"] == "the worker ended with exit code 7"
    assert all(NO_START.fullmatch(found[seed].rows[0]["reason"]) for seed in (2, 3))
    assert (breakable / "tries").stat().st_size < 30


def test_workers_run_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_TEST_FOLDER", str(tmp_path))
    found = endings([TrainCell(seed=seed) for seed in range(6)], work.look_around, workers=2)
    assert any("alone=False" in ending.rows[0]["reason"] for ending in found.values())


def test_progress_of_running_cells_is_seen() -> None:
    seen: list[dict[str, Any]] = []
    cell = TrainCell()
    list(run_cells([cell], work.linger, 1, 30.0, lambda told: seen.append(dict(told))))
    assert {cell.cell_id: {"epoch": 1, "train_ppl": 12.5}} in seen


def test_closing_early_ends_the_workers() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    running = run_cells([GemmCell(seed=seed) for seed in range(5)], work.linger, 2, 30.0, lambda _: None)
    next(running)
    running.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        alive = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        alive = [child for child in alive if "resource_tracker" not in " ".join(child.cmdline())]
        if not alive:
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {alive}")


def test_an_interrupt_is_raised_where_no_lock_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while workers are waited for.

    The wait ends first, since a lock of it that is left shut stops the workers' end.
    """
    inside: list[str] = []

    def wait(*arguments: Any, **more: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        inside.append("whole")
        return real(*arguments, **more)

    real = local.wait
    monkeypatch.setattr(local, "wait", wait)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(run_cells([GemmCell()], work.linger, 1, None, lambda _: None))
        assert inside == ["whole"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
