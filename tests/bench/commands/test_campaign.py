"""A campaign as one command.

Checks first, cells by importance, a budget that holds, and kills that cost one cell at most.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from forked import Forked, gone
from rows import timed

from bench.cells import Cell, CheckCell, GemmCell, LstmCell, TrainCell
from bench.commands.campaign import Campaign, checks_for, is_finished, verdict
from bench.measuring.machine import source_hash
from bench.storing.parquet import checksum_line, checksum_of, from_parquet
from bench.storing.tables import Tables
from bench.sweep import load

ROOT = Path(__file__).parents[3]
START = Path(__file__).parents[1] / "start_campaign.py"

SWEEP = """
[[grids]]
kind = "gemm"
[grids.base]
backend = "reference"
m = 32
k = 32
n = 4
block_size = 8
threads = 1
[grids.axes]
seed = [3, 1, 2]
[[grids]]
kind = "gemm"
[grids.base]
backend = "cuda"
device = "cuda"
"""
PROVENANCE: dict[str, Any] = {"source_hash": source_hash(), "cell_seconds": 1.0, "started_at": "2026-01-01"}


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SWEEP.replace('backend = "cuda"\n', ""))
    return path


CAMPAIGN = ("-m", "bench", "campaign")


def started(*arguments: str, said: Path | None, script: tuple[str, ...] = CAMPAIGN) -> subprocess.Popen[str] | Forked:
    """said: the folder for what one says that is forked, None of one that a new interpreter runs, as a user's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if said is not None:
        return Forked([*script, *arguments], environment, said)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *script, *arguments], env=environment, text=True, **pipes)


def finished(*arguments: str, said: Path | None, script: tuple[str, ...] = CAMPAIGN) -> tuple[int | None, str, str]:
    with started(*arguments, said=said, script=script) as process:
        out, err = process.communicate(timeout=250)
    return process.returncode, out, err


def table(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    assert checksum_of(path).read_text() == checksum_line(path, data)
    return list(from_parquet(data).to_pylist())


def test_checks_come_first_then_cells_in_file_order_and_nothing_runs_twice(sweep_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(sweep_file), "--out", str(out), "--budget", "240", "--device", "cpu"]
    status, said, err = finished(*arguments, said=tmp_path / "said")
    assert status == 0, said + err
    assert "note: 1 cell of these sweeps not on cpu: left out" in said
    lines = [line for line in said.splitlines() if line.startswith("[")]
    assert [line.split(": ")[1].split()[0] for line in lines] == ["check", "gemm", "gemm", "gemm"]
    assert [row["seed"] for row in table(out / "small" / "gemm.parquet")] == [3, 1, 2]
    assert {row["status"] for row in table(out / "check.parquet")} == {"ok"}
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    tables = ["check.parquet", "check.parquet.sha256", "small/gemm.parquet", "small/gemm.parquet.sha256"]
    assert files == [tables[0], tables[1], "small/.sweep", *tables[2:]]
    status, said, _ = finished(*arguments, said=None)
    assert status == 0 and "0 to run" in said and "[1/" not in said


def test_a_check_stands_before_its_kernels_first_cell_and_sweeps_take_turns(tmp_path: Path) -> None:
    """A short lease sees cells of every sweep, and no kernel is checked that it does not come to."""
    campaign = Campaign([load("gemm_gpu"), load("lstm_gpu")], tmp_path, "cuda")
    cells = [job.cell for job in campaign.jobs()]
    assert [cell.kind for cell in cells[:7]] == ["check", "gemm", "check", "lstm", "check", "gemm", "lstm"]
    done: set[str] = set()
    for cell in cells:
        if cell.checks:
            assert cell.cell_id not in done
            done.add(cell.cell_id)
        assert all(check.cell_id in done for check in cell.kernel_checks())
    kinds = [cell.kind for cell in cells if not cell.checks]
    layers = kinds.count("lstm")
    assert kinds[: 2 * layers] == ["gemm", "lstm"] * layers and set(kinds[2 * layers :]) == {"gemm"}
    checks = [cell for cell in cells if isinstance(cell, CheckCell)]
    assert len(checks) == len(campaign.checks) + len(campaign.watched)
    assert [cell.tool for cell in cells[-len(campaign.watched) :] if isinstance(cell, CheckCell)].count("none") == 0


def test_sweeps_that_train_follow_each_other(tmp_path: Path) -> None:
    """Cells that train stand together, so that they can run side by side."""
    for name, kind, seeds in (("one", "gemm", "[1, 2]"), ("two", "train", "[1, 2]")):
        (tmp_path / f"{name}.toml").write_text(f'kind = "{kind}"\n[axes]\nseed = {seeds}\n')
    sweeps = [load(tmp_path / "one.toml"), load(tmp_path / "two.toml")]
    jobs = Campaign(sweeps, tmp_path, "cpu").jobs()
    assert [job.cell.kind for job in jobs] == ["check", "gemm", "gemm", "train", "train"]


def test_in_gemm_gpu_sparsities_gradients_and_rivals_come_before_other_types() -> None:
    cells = [cell for cell in load("gemm_gpu").cells if isinstance(cell, GemmCell)]
    first = next(number for number, cell in enumerate(cells) if cell.dtype != "bfloat16")
    early = cells[:first]
    assert {cell.op for cell in early} == {"dsd", "dsd_t", "sdd"} and {cell.cache for cell in early} == {"hot"}
    assert {cell.target_sparsity for cell in early} == {0.5, 0.7, 0.8, 0.9}
    assert {cell.baseline for cell in early} >= {"dense", "triton_bsr", "cusparse_bsr", "cusparse_ell"}
    assert all(cell.dtype == "bfloat16" and cell.op == "dsd" for cell in early[:22])


def test_timings_of_older_sources_are_taken_anew_when_asked(tmp_path: Path) -> None:
    tables = Tables(tmp_path, [])
    on_gpu, on_cpu = GemmCell(backend="cuda", device="cuda"), GemmCell()
    for cell in (on_gpu, on_cpu):
        tables.put(cell, timed(), {**PROVENANCE, "source_hash": "old"})
        assert is_finished(tables, cell)
    assert not is_finished(tables, on_gpu, renewed=True) and is_finished(tables, on_cpu, renewed=True)
    tables.put(on_gpu, timed(), PROVENANCE)
    assert is_finished(tables, on_gpu, renewed=True)


def test_without_a_gpu_it_says_so_with_status_3(sweep_file: Path, tmp_path: Path) -> None:
    given = (str(sweep_file), "--out", str(tmp_path / "out"), "--budget", "9")
    status, out, err = finished(*given, said=tmp_path / "said")
    if status != 0:
        assert (status, out) == (3, "") and err.count("\n") == 1 and "no GPU here" in err
        assert not (tmp_path / "out").exists()


def test_a_bad_sweep_is_refused_with_status_2(tmp_path: Path) -> None:
    given = ("nothing_like_it", "--out", str(tmp_path / "out"), "--budget", "9", "--device", "cpu")
    status, _, err = finished(*given, said=tmp_path / "said")
    assert status == 2 and err.count("\n") == 1 and "no such sweep" in err


def test_no_cell_begins_that_will_not_fit(tmp_path: Path, sweep_file: Path) -> None:
    """Stand-in work; the estimate of a check is a second, of a cell more."""
    status, said, err = finished(
        str(sweep_file), str(tmp_path / "out"), "1", said=tmp_path / "said", script=(str(START),)
    )
    assert status == 0, said + err
    assert (
        "[1/" not in said
        and "4 left after 1 s: run again" in said
        and "none fits this one, the shortest may take 1 s" in said
    )


@pytest.mark.kills
def test_a_kill_costs_the_running_cell_alone(tmp_path: Path) -> None:
    """SIGKILL at several moments, on and on with the same folder; stand-in work of 0.7 s a cell."""
    sweep = tmp_path / "many.toml"
    sweep.write_text('kind = "gemm"\n[axes]\nseed = [' + ",".join(map(str, range(8))) + "]\n")
    out, kept, deaths = tmp_path / "out", 0, 0
    for seconds in (1.0, 2.0, 1.5, None):
        with started(str(sweep), str(out), "200", said=tmp_path / "said", script=(str(START),)) as process:
            try:
                process.communicate(timeout=seconds or 250)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                deaths += 1
        assert gone(process.pid, 5.0)
        tables = Tables(out / "many", load(sweep).cells)
        assert tables.load() == []
        assert len(tables.tables) >= kept, "a finished cell was lost"
        kept = len(tables.tables)
    assert deaths >= 1 and kept == 8
    assert [row["seed"] for row in table(out / "many" / "gemm.parquet")] == list(range(8))


def test_cells_that_train_run_side_by_side_and_timings_alone(tmp_path: Path) -> None:
    """Stand-in work of 0.7 s a cell; two workers, four cells that train between cells that are timed."""
    sweep, out = tmp_path / "mixed.toml", tmp_path / "out"
    grids = [("gemm", [0, 1]), ("train", [0, 1, 2, 3]), ("lstm", [0, 1])]
    sweep.write_text("".join(f'[[grids]]\nkind = "{kind}"\n[grids.axes]\nseed = {seeds}\n' for kind, seeds in grids))
    status, said, err = finished(str(sweep), str(out), "20000", "2", said=tmp_path / "said", script=(str(START),))
    assert status == 0, said + err
    spans, workers = {}, {}
    for kind, _ in grids:
        rows = table(out / "mixed" / f"{kind}.parquet")
        workers[kind] = {row["workers"] for row in rows}
        for row in rows:
            began = datetime.fromisoformat(row["started_at"]).timestamp()
            spans[kind, row["seed"]] = began, began + row["cell_seconds"]
    assert workers == {"gemm": {1}, "train": {2}, "lstm": {1}}
    for one, (begin, _) in spans.items():
        beside = [other for other, span in spans.items() if other != one and span[0] < begin < span[1]]
        assert len(beside) <= 1 and all(other[0] == one[0] == "train" for other in beside)


def test_training_by_our_kernels_on_a_gpu_is_checked_first() -> None:
    settings = {"device": "cuda", "schedule": "pre", "target_sparsity": 0.8, "block_size": 32}
    cells = [TrainCell(**settings, path=path, precision=precision) for path, precision in PRECISIONS]
    found = checks_for(cells)
    assert [(check.op, check.dtype, check.math) for check in found] == [
        ("forward_backward", "float32", "tf32"),
        ("forward_backward", "bfloat16", "ieee"),
    ]
    assert {(check.backend, check.device, check.block_size) for check in found} == {("cuda", "cuda", 32)}
    assert TrainCell(schedule="pre", target_sparsity=0.8, path="sparse").kernel_checks() == ()


PRECISIONS = [("dense", "tf32"), ("sparse", "tf32"), ("auto", "bfloat16"), ("sparse", "bfloat16")]


def test_sigterm_ends_it_with_everything_finished_stored(tmp_path: Path) -> None:
    sweep = tmp_path / "many.toml"
    sweep.write_text('kind = "gemm"\n[axes]\nseed = [' + ",".join(map(str, range(200))) + "]\n")
    out = tmp_path / "out"
    path = out / "many" / "gemm.parquet"
    with started(str(sweep), str(out), "200", said=tmp_path / "said", script=(str(START),)) as process:
        deadline = time.monotonic() + 100
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; run again" in said, said + err
    assert 1 <= len(table(path)) < 200


def test_a_kernel_whose_check_failed_is_not_timed(tmp_path: Path) -> None:
    cell, other = GemmCell(block_size=8), GemmCell(block_size=16)
    tables = Tables(tmp_path, [])
    assert verdict(tables, cell) == ("", ""), "left for later while it is not checked"
    rows = [
        {"status": "ok", "pattern": "full", "n": 1},
        {"status": "wrong", "reason": "1e9 off", "pattern": "random", "n": 7},
    ]
    tables.put(cell.kernel_checks()[0], rows, PROVENANCE)
    tables.put(
        other.kernel_checks()[0],
        [{"status": "unsupported", "reason": "not here", "pattern": "full", "n": 1}],
        PROVENANCE,
    )
    status, reason = verdict(tables, cell)
    assert status == "wrong" and reason == "not timed: its check on this device ended wrong (random, n = 7): 1e9 off"
    assert verdict(tables, other) is None, "the cell itself says why it is unsupported"
    full = [{"status": "failed", "reason": "ResourceError: no room", "pattern": "full", "n": 1}]
    tables.put(other.kernel_checks()[0], full, PROVENANCE)
    assert verdict(tables, other) == ("", ""), "left for later while there is no room for its kernels"


@pytest.mark.parametrize("status", ["timeout", "crashed", "out_of_memory", "failed"])
def test_a_check_that_was_cut_short_calls_no_kernel_wrong(tmp_path: Path, status: str) -> None:
    """It says nothing of the kernel, and is made again; but one wrong output is enough to know."""
    cell = GemmCell(block_size=8)
    check, tables = cell.kernel_checks()[0], Tables(tmp_path, [])
    assert check is not None
    fine = {"status": "ok", "pattern": "full", "n": 1}
    ended = {"status": status, "reason": "stopped after 1 s"}
    for rows in ([ended], [fine, ended]):
        tables.put(check, rows, PROVENANCE)
        assert verdict(tables, cell) == ("", "") and not is_finished(tables, check)
    tables.put(check, [fine, {**ended, "status": "wrong", "pattern": "full", "n": 1}, ended], PROVENANCE)
    found = verdict(tables, cell)
    assert found is not None and found[0] == "wrong" and is_finished(tables, check)


def test_a_check_beyond_the_time_limit_leaves_its_products_for_the_next_call(tmp_path: Path) -> None:
    """With a longer limit everything is checked and timed, and nothing is stored as wrong before."""
    sweep, out = tmp_path / "big.toml", tmp_path / "out"
    grid = (
        'kind = "gemm"\n[base]\nm = 2048\nk = 2048\nn = 512\n'
        "[axes]\nblock_size = [8, 16]\ntarget_sparsity = [0.5, 0.9]\n"
    )
    sweep.write_text(grid)
    arguments = (str(sweep), str(out), "20000")
    status, said, err = finished(*arguments, "1", "slow_checks", said=tmp_path / "said", script=(str(START),))
    assert status == 1, said + err
    assert {row["status"] for row in table(out / "check.parquet")} == {"timeout"}
    assert not (out / "big" / "gemm.parquet").exists()
    assert (
        "2 checks did not say whether the kernel is right (2 timeout) and will be made again; "
        "not timed until then: 4 cells" in said
    )
    status, said, err = finished(*arguments, "1", "fake", said=tmp_path / "said", script=(str(START),))
    assert status == 0 and "6 to run" in said and "6 of 6 cells stored" in said, said + err
    assert {row["status"] for row in table(out / "big" / "gemm.parquet")} == {"ok"}


def test_rows_say_that_a_kernel_was_not_timed(tmp_path: Path, sweep_file: Path) -> None:
    out = tmp_path / "out"
    check = load(sweep_file).cells[0].kernel_checks()[0]
    assert check is not None
    Tables(out, []).put(check, [{"status": "wrong", "reason": "off", "pattern": "full", "n": 7}], PROVENANCE)
    given = (str(sweep_file), "--out", str(out), "--budget", "60", "--device", "cpu")
    status, said, err = finished(*given, said=tmp_path / "said")
    assert status == 1, said + err
    rows = table(out / "small" / "gemm.parquet")
    assert {row["status"] for row in rows} == {"wrong"} and all("not timed" in row["reason"] for row in rows)
    assert all(row["time_ms"] is None for row in rows)


def test_every_kernel_is_checked_once() -> None:
    cells: list[Cell] = [
        *(GemmCell(n=n, op=op, cache=cache) for n in (20, 80) for op in ("dsd", "sdd") for cache in ("hot", "cold")),
        GemmCell(math="tf32"),
        LstmCell(passes="forward", batch_size=80),
    ]
    found = checks_for(cells)
    assert [(check.op, check.math) for check in found] == [
        ("dsd", "ieee"),
        ("sdd", "ieee"),
        ("dsd", "tf32"),
        ("forward", "ieee"),
    ]


def test_checks_and_what_ended_ill_run_again_by_other_sources(tmp_path: Path) -> None:
    tables = Tables(tmp_path, [])
    old = {**PROVENANCE, "source_hash": "old"}
    ok, ill = [{"status": "ok"}], [{"status": "failed", "reason": "x"}]  # of a check
    today = [
        [{"status": "failed", "reason": reason}]
        for reason in ("ResourceError: c++ took more than 300 s", "OSError: [Errno 28] No space left on device")
    ]
    for cell, rows, provenance, wanted in (
        (GemmCell(), timed(), old, True),
        (GemmCell(), ill, old, False),
        (GemmCell(), ill, PROVENANCE, True),
        (CheckCell(), ok, old, False),
        (CheckCell(), ok, PROVENANCE, True),
        *((cell, rows, PROVENANCE, False) for cell in (GemmCell(), CheckCell()) for rows in today),
    ):
        tables.put(cell, rows, provenance)
        assert is_finished(tables, cell) is wanted
    assert not is_finished(tables, LstmCell())


@pytest.mark.alone  # it gives way to all other tests
def test_it_goes_on_in_the_background_and_gives_way(tmp_path: Path) -> None:
    (tmp_path / "some.toml").write_text(SWEEP.replace("[3, 1, 2]", "[3]"))
    command = [
        sys.executable,
        "-m",
        "bench",
        "campaign",
        "some.toml",
        "--out",
        "out",
        "--budget",
        "60",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--background"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said = re.search(r"process (\d+), and says in out/log\.txt", done.stdout)
    assert said is not None, done.stdout
    process, log = psutil.Process(int(said[1])), tmp_path / "out" / "log.txt"
    assert os.getsid(process.pid) == process.pid, "Ctrl-C in the terminal does not reach it"
    wait_for(lambda: process.nice() == 19)
    assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
    wait_for(lambda: "cells stored in out" in log.read_text())
    assert (tmp_path / "out" / "some" / "gemm.parquet").is_file()


def test_the_background_refuses_as_the_foreground_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "campaign", "absent", "--out", "out", "--budget", "60", "--background"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
