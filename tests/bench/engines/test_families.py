"""Workers and what they start end with the run, however that ends; what trains is put aside first."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import psutil
import pytest
import work

import bench.engines.driver
from bench.cells import GemmCell
from bench.engines.driver import Terms
from bench.engines.local import run_cells
from bench.run import run_sweep
from bench.store import UNSEEN, Store
from bench.sweep import Sweep
from kernels.system import programs
from kernels.system.temporary import ALIVE, temporary_folder

fcntl = pytest.importorskip("fcntl", reason="signals and process groups")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and process groups")

ROOT = Path(__file__).parents[3]
START = Path(__file__).parents[1] / "start.py"


def until(met: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `met` says once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := met()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def sweep_of(*cells: Any) -> Sweep:
    return Sweep("sweep", "", Path("sweep.toml"), tuple(cells))


TRAINS = """
kind = "train"
[base]
train_tokens = 40000
eval_tokens = 1000
embedding_size = 16
hidden_size = 32
num_layers = 1
epochs = 2000
threads = 1
[axes]
seed = [0, 1]
"""


@pytest.mark.kills
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_trains_in_a_worker_that_took_anothers_place_is_put_aside(number: signal.Signals, tmp_path: Path) -> None:
    """A death signal that a worker asks for comes when the thread that started it ends: before it put itself aside."""
    file, results = tmp_path / "sweep.toml", tmp_path / "results"
    file.write_text(TRAINS.replace("[0, 1]", "[0, 1, 2]"))
    command = [sys.executable, "-m", "bench", "run", str(file), "--results", str(results), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--checkpoint-seconds", "1000000"], env=environment, text=True, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as run:  # fmt: skip
        folder = until(lambda: _folder_of(run.pid))
        until(lambda: len(_under_way(folder)) == 2)
        first, _ = _busy(folder, 2)
        os.kill(first, signal.SIGKILL)
        until(lambda: (results / "sweep" / "cells").is_dir() and any((results / "sweep" / "cells").iterdir()))
        until(lambda: len(_under_way(folder)) == 3)
        told = time.time()
        if number == signal.SIGINT:
            os.killpg(run.pid, number)
        else:
            run.send_signal(number)
            run.send_signal(number)  # shells and systems say it twice
        out, _ = run.communicate(timeout=60)
    assert run.returncode == 130, out
    aside = [path for path in (results / "sweep" / ".checkpoints").glob("*.pt") if path.stat().st_mtime > told]
    assert len(aside) == 2, out
    assert not folder.exists()


def _folder_of(run: int) -> Path | None:
    """The temporary folder of a run, known by the files of its cells."""
    for child in psutil.Process(run).children():
        for folder in Path(tempfile.gettempdir()).glob("bench-*"):
            if (folder / f"{child.pid}.took-up").exists():
                return folder
    return None


def _under_way(folder: Path) -> list[Path]:
    """What each cell told that came to its tenth step."""
    told = [path for path in folder.iterdir() if not path.suffix and path.name != ALIVE]
    return [path for path in told if json.loads(path.read_text()).get("step", 0) >= 10]


def _busy(folder: Path, count: int) -> list[int]:
    """Process ids of workers that took up a cell and still run, once so many cells were taken up."""
    taken = [path.name.removesuffix(".took-up") for path in folder.glob("*.took-up")]
    pids = [int(name) for name in taken if len(name) < 10 and name.isdigit() and runs(int(name))]
    return pids if len(taken) - len([name for name in taken if name.isdigit() and len(name) < 10]) >= count else []


def test_what_a_cell_has_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it ends well, takes too long or is killed; programs that those have started, too."""
    monkeypatch.setenv("BENCH_TEST_FOLDER", str(tmp_path))
    cells = [GemmCell(seed=seed) for seed in range(3)]
    found, gone = {}, []
    for ending in run_cells(cells, work.leave_children, 1, 2.0, lambda _: None):
        found[ending.cell.seed] = ending.rows[0]["status"]
        pids = [int(pid) for pid in (tmp_path / f"{ending.cell.seed}.children").read_text().split()]
        until(lambda pids=pids: not any(map(runs, pids)), 5.0)
        gone += pids
    assert found == {0: "ok", 1: "timeout", 2: "crashed"} and len(gone) == 6


def test_a_program_that_takes_too_long_ends_with_what_it_started(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        programs.run(["sh", "-c", f"sleep 1000 & echo $! > {tmp_path / 'pid'}; wait"], 1.0)
    assert not runs(int((tmp_path / "pid").read_text()))


def test_a_clock_that_is_set_ends_no_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    real, began = time.time, time.monotonic()
    monkeypatch.setattr(time, "time", lambda: real() + 1e6 * (time.monotonic() - began))
    (ending,) = run_cells([GemmCell()], work.linger, 1, 30.0, lambda _: None)
    assert ending.rows[0]["status"] == "ok"


@pytest.mark.kills
def test_ctrl_z_stops_the_workers_and_their_time(tmp_path: Path) -> None:
    file, results = tmp_path / "sweep.toml", tmp_path / "results"
    file.write_text('kind = "gemm"\n[axes]\nseed = [0, 1]\n')
    with subprocess.Popen(
        [sys.executable, str(START), str(file), str(results), "linger"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, process_group=0,
    ) as run:  # fmt: skip
        folder = until(lambda: _folder_of(run.pid))
        (worker,) = until(lambda: _busy(folder, 1))
        os.kill(run.pid, signal.SIGTSTP)
        until(lambda: psutil.Process(run.pid).status() == psutil.STATUS_STOPPED)
        until(lambda: psutil.Process(worker).status() == psutil.STATUS_STOPPED)
        os.kill(run.pid, signal.SIGCONT)
        assert run.wait(30) == 0
    assert len(Store(results / "sweep").finished()) == 2


@pytest.mark.kills
def test_a_reader_who_stops_reading_holds_no_run(tmp_path: Path) -> None:
    file, results = tmp_path / "sweep.toml", tmp_path / "results"
    file.write_text('kind = "gemm"\n[base]\nthreads = 1\nm = 32\nk = 32\nn = 2\n[axes]\nseed = [0, 1, 2]\n')
    end, pipe = os.pipe()
    os.set_blocking(pipe, False)
    try:
        while True:
            os.write(pipe, b"x" * 512)
    except BlockingIOError:
        os.set_blocking(pipe, True)
    command = [sys.executable, "-m", "bench", "run", str(file), "--results", str(results)]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=ROOT) as run:
        assert run.wait(90) == 0
    os.close(end)
    os.close(pipe)
    assert len(Store(results / "sweep").finished()) == 3


def test_temporary_folders_of_processes_that_were_killed_go(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib; from kernels.system.temporary import temporary_folder\n"
        "with temporary_folder('mine-', pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'something').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    (left,) = tmp_path.iterdir()
    (tmp_path / "mine-another").mkdir()  # which does not say whose it is
    with temporary_folder("mine-", tmp_path) as folder:
        assert not left.exists() and (folder / ALIVE).exists()
        with temporary_folder("mine-", tmp_path) as beside:
            assert folder.exists() and beside != folder
    assert [path.name for path in tmp_path.iterdir()] == ["mine-another"]


def test_rows_wait_for_room_and_no_cell_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, began = Store.put, []
    monkeypatch.setattr(bench.engines.driver, "STORE_AGAIN", 0.1)

    def put(store: Store, *given: Any) -> Path:
        began.append(time.monotonic())
        if time.monotonic() - began[0] < 1.0:
            raise OSError(errno.ENOSPC, "No space left on device", "somewhere")
        return real(store, *given)

    monkeypatch.setattr(Store, "put", put)
    sweep = sweep_of(*(GemmCell(seed=seed) for seed in range(3)))
    assert run_sweep(sweep, tmp_path, terms=Terms(work.succeed)) == 0
    said = capsys.readouterr().out
    assert said.count("No space left on device: somewhere: nothing more begins until what ended is stored") == 1
    assert [line.split(":")[0] for line in said.splitlines() if line.startswith("[")] == [
        f"[{done}/3] ok in 0 s" for done in (1, 2, 3)
    ]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_nothing_can_be_locked_a_line_says_so(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    sweep = sweep_of(GemmCell())
    for _ in range(2):  # what the first leaves is no lock
        assert run_sweep(sweep, tmp_path, terms=Terms(work.succeed)) == 0
        assert UNSEEN.format(folder=tmp_path / "sweep") in capsys.readouterr().out


def test_two_runs_that_cannot_see_each_other_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each passes over what the other has stored; of a cell that both ran one result stays."""
    monkeypatch.setattr(filelock.FileLock, "acquire", _cannot)
    sweep = sweep_of(*(GemmCell(seed=seed) for seed in range(6)))
    stores = [Store(tmp_path / "sweep") for _ in range(2)]
    with stores[0].lock() as lines, stores[1].lock():
        assert lines == [UNSEEN.format(folder=tmp_path / "sweep")]
        for later, store in enumerate(stores):
            store.put(
                sweep.cells[0],
                work.rows_of(sweep.cells[0]),
                {"started_at": f"2026-01-0{later + 1}", "cell_seconds": 1.0},
            )
        assert stores[0].newer(sweep.cells[0], None) and len(list(stores[0].cells.glob("*.parquet"))) == 1
        older = stores[0].put(sweep.cells[0], work.rows_of(sweep.cells[0]), {"started_at": "2025", "cell_seconds": 1.0})
        assert older.exists() and stores[1].finished()[sweep.cells[0].cell_id].started_at == "2026-01-02"
    ran: list[int] = []

    def takes(store: Store, cell: Any, than: Any) -> bool:
        if cell.seed == 3:  # the other run has it by now
            stores[1].put(cell, work.rows_of(cell), {"started_at": "2026-01-03", "cell_seconds": 1.0})
        ran.append(cell.seed)
        return real(store, cell, than)

    real = Store.newer
    monkeypatch.setattr(Store, "newer", takes)
    assert run_sweep(sweep, tmp_path, terms=Terms(work.succeed)) == 0
    assert ran == [1, 2, 3, 4, 5]
    assert Store(tmp_path / "sweep").finished()[sweep.cells[3].cell_id].started_at == "2026-01-03"


def _cannot(*_: object, **__: object) -> None:
    raise NotImplementedError


def test_rows_that_say_they_are_another_cells_are_a_failed_cell(tmp_path: Path) -> None:
    sweep = sweep_of(GemmCell(seed=0), GemmCell(seed=1))
    assert run_sweep(sweep, tmp_path, terms=Terms(work.meddle)) == 1
    said = [stored.reason for stored in Store(tmp_path / "sweep").finished().values()]
    assert sorted(said) == [
        f"its rows do not fit the table: a gemm row says that cell_id is 'abc', its cell '{sweep.cells[1].cell_id}'",
        "its rows do not fit the table: a gemm row says that seed is 99, its cell 0",
    ]
