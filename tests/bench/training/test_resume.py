"""Training cells that are killed in the middle of an epoch.

The next run goes on, and stores what an unbroken one does.
"""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked

from bench.cells import Cell, TrainCell
from bench.schema import TRAIN
from bench.store import Store
from bench.storing.parquet import from_parquet
from bench.sweep import load
from bench.train import train_cell
from bench.training.checkpoint import DIGEST_BYTES, FOLDER
from bench.training.paths import missing_kernel

ROOT = Path(__file__).parents[3]
CUT = Path(__file__).parent / "start_cut_campaign.py"
NO_KERNEL = missing_kernel()
pytestmark = [
    pytest.mark.kills,
    pytest.mark.slow(8),
    pytest.mark.timeout(900),
    pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path here: {NO_KERNEL}"),
]

SWEEP = """
kind = "train"
[base]
train_tokens = 16000
eval_tokens = 1000
embedding_size = 16
hidden_size = 32
block_size = 8
epochs = 2
dropout = 0.3
schedule = "cubic"
target_sparsity = 0.8
prune_every = 2
"""
GRIDS = """
[[grids]]
[grids.base]
optimizer = "sgd"
learning_rate = 1.0
momentum = 0.9
lasso = "proximal"
[[grids]]
[grids.base]
path = "sparse"
lr_schedule = "one_cycle"
[[grids]]
[grids.base]
path = "auto"
optimizer = "asgd"
learning_rate = 5.0
criterion = "random"
prune_end = 0.4
"""
Row = dict[str, Any]


Process = subprocess.Popen[str] | Forked


@contextmanager
def started(*arguments: str, said: Path | None, **variables: str) -> Iterator[Process]:
    """The leader of a session.

    said: the folder for what one says that is forked, None of one that a new interpreter runs.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    with forked_or_not(list(arguments), environment, said) as process:
        try:
            yield process
        finally:
            process.kill()


def forked_or_not(arguments: list[str], environment: dict[str, str], said: Path | None) -> Process:
    if said is not None:
        return Forked(arguments, environment, said)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)


def comparable(rows: list[Row]) -> list[Row]:
    """The identity and result columns, floats and all."""
    names = ["cell_id", "status", "reason", *(column.name for column in TRAIN if column.role == "result")]
    return [{name: row[name] for name in names} for row in rows]


def stored(results: Path, sweep: Path) -> list[Row]:
    return list(Store(results / sweep.stem).read("train").to_pylist())


def unbroken(cell: Cell) -> list[Row]:
    """The rows of a cell trained here and now."""
    assert isinstance(cell, TrainCell)
    return [{**row, "cell_id": cell.cell_id} for row in train_cell(cell, lambda _: None)]


def run(sweep: Path, results: Path, *options: str) -> list[str]:
    return ["-m", "bench", "run", str(sweep), "--results", str(results), "--workers", "1", *options]


def wait_for_change(folder: Path, seen: set[tuple[str, int]]) -> bool:
    """Wait until a checkpoint is there that is not in `seen`, and add all there are."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        found = set()
        for path in folder.glob("*.pt"):
            try:
                found.add((path.name, path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
        if found - seen:
            seen |= found
            return True
        time.sleep(0.01)
    return False


def test_kills_in_the_middle_of_epochs_change_nothing_that_is_stored(tmp_path: Path) -> None:
    sweep, rng = tmp_path / "three.toml", random.Random(3)
    sweep.write_text(SWEEP + GRIDS)
    with started(*run(sweep, tmp_path / "whole"), said=None) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    results, seen = tmp_path / "killed", set()
    checkpoints = results / "three" / FOLDER
    for _ in range(3):
        with started(*run(sweep, results, "--checkpoint-seconds", "0.1"), said=tmp_path / "said") as process:
            assert wait_for_change(checkpoints, seen)
            time.sleep(rng.uniform(0.0, 1.0))
            process.send_signal(signal.SIGKILL)
    with started(*run(sweep, results, "--checkpoint-seconds", "0.1"), said=tmp_path / "said") as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0 and "not used" not in err, out + err
    rows = stored(results, sweep)
    assert comparable(rows) == comparable(stored(tmp_path / "whole", sweep))
    assert max(row["resumed"] for row in rows) >= 1
    for row in rows:
        assert row["cell_seconds"] > row["earlier_seconds"] >= 0.0
    assert not checkpoints.exists()


@contextmanager
def stopped_while_training(
    temporary: Path,
    *arguments: str,
    said: Path | None,
    stop: Callable[[Process], None] = lambda process: process.terminate(),
) -> Iterator[tuple[str, str]]:
    """What a process said that is stopped once its cell tells of training."""
    temporary.mkdir()
    with started(*arguments, said=said, TMPDIR=str(temporary)) as process:
        deadline = time.monotonic() + 300
        while not list(temporary.glob("bench-*/????????????????")) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        stop(process)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130, out + err
    yield out, err


def test_sigterm_puts_a_run_aside_at_once(tmp_path: Path) -> None:
    """No checkpoint falls due by itself."""
    sweep, results = tmp_path / "one.toml", tmp_path / "results"
    sweep.write_text(SWEEP)
    (cell,) = load(sweep).cells
    checkpoint = results / "one" / FOLDER / f"{cell.cell_id}.pt"
    options, said = run(sweep, results, "--checkpoint-seconds", "1e8"), tmp_path / "said"
    with stopped_while_training(tmp_path / "t", *options, said=said) as (out, _):
        assert "interrupted: 0 of 1 cells are stored" in out and checkpoint.exists()
    with started(*run(sweep, results), said=said) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    assert "half done: 1 of them go on from a checkpoint" in out
    rows = stored(results, sweep)
    assert [row["resumed"] for row in rows] == [0, 1, 1]
    assert comparable(rows) == comparable(unbroken(cell))
    assert not checkpoint.parent.exists()


def test_ctrl_c_in_a_terminal_puts_a_run_aside(tmp_path: Path) -> None:
    """It reaches the worker too."""

    def interrupt(process: Process) -> None:
        os.killpg(process.pid, signal.SIGINT)

    sweep, results = tmp_path / "one.toml", tmp_path / "results"
    sweep.write_text(SWEEP)
    options = run(sweep, results, "--checkpoint-seconds", "1e8")
    with stopped_while_training(tmp_path / "t", *options, said=None, stop=interrupt) as (out, _):
        assert "interrupted: 0 of 1 cells are stored" in out
    assert list((results / "one" / FOLDER).glob("*.pt"))


def test_a_retry_goes_on_from_where_the_time_limit_struck(tmp_path: Path) -> None:
    sweep, results, limit = tmp_path / "one.toml", tmp_path / "results", 1.0
    sweep.write_text(SWEEP.replace("epochs = 2", "epochs = 12"))
    (cell,) = load(sweep).cells
    checkpoint = results / "one" / FOLDER / f"{cell.cell_id}.pt"
    while not checkpoint.exists() and limit < 100:
        with started(*run(sweep, results, "--retry", "--timeout", str(limit)), said=tmp_path / "said") as process:
            out, err = process.communicate(timeout=300)
        assert process.returncode == 1 and f"timeout: train: stopped after {limit:g} s" in out, out + err
        limit *= 2
    with started(*run(sweep, results, "--retry"), said=tmp_path / "said") as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    rows = stored(results, sweep)
    assert rows[-1]["resumed"] == 1 and comparable(rows) == comparable(unbroken(cell))
    assert not checkpoint.parent.exists()


def test_a_campaign_goes_on_from_another_folder(tmp_path: Path) -> None:
    sweep, cut, out = tmp_path / "one.toml", tmp_path / "cut", tmp_path / "out"
    sweep.write_text(SWEEP)
    (cell,) = load(sweep).cells
    command = ["-m", "bench", "campaign", str(sweep), "--device", "cpu", "--budget", "500", "--checkpoint-mib", "16"]
    with stopped_while_training(tmp_path / "t", *command, "--out", str(cut), said=tmp_path / "said") as (said, _):
        assert "interrupted; run again" in said
        assert {str(path.relative_to(cut)) for path in cut.rglob("*.*") if path.is_file()} == {
            "one/.sweep", f"{FOLDER}/{cell.cell_id}.pt",
        }  # fmt: skip
    with started(*command, "--out", str(out), "--resume-from", str(cut), said=None) as process:
        said, err = process.communicate(timeout=600)
    assert process.returncode == 0 and "not used" not in err, said + err
    rows = list(from_parquet((out / "one" / "train.parquet").read_bytes()).to_pylist())
    assert rows[-1]["resumed"] == 1 and comparable(rows) == comparable(unbroken(cell))
    assert not (out / FOLDER).exists()


def test_a_campaign_puts_aside_what_is_running_when_the_time_is_up(tmp_path: Path) -> None:
    """A cell that never fits; the budget grows until one call has begun it."""
    sweep, out, budget = tmp_path / "long.toml", tmp_path / "out", 2.0
    sweep.write_text(SWEEP.replace("epochs = 2", "epochs = 100000"))
    while not list(out.rglob("*.pt")) and budget < 300.0:
        with started(str(CUT), str(sweep), str(out), str(budget), "16", said=tmp_path / "said") as process:
            said, err = process.communicate(timeout=500)
        assert process.returncode == 0 and "1 left after" in said, said + err
        budget *= 2
    assert "the time is up" in said
    (path,) = out.rglob("*.pt")
    assert torch.load(io.BytesIO(path.read_bytes()[DIGEST_BYTES:]), weights_only=True)["state"]["run"]["step"] > 0
