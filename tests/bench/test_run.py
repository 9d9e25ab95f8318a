"""Runs: what is stored is kept, what is not runs, and the exit status says how it went."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import work
from forked import Forked
from rows import trained

import bench.run
from bench.cells import Cell, GemmCell, LstmCell, TrainCell, number
from bench.commands.show import key_figures
from bench.data.corpus import DataError, Sizes
from bench.data.datasets import known_sizes
from bench.engines.driver import Terms
from bench.engines.estimate import Pace, rough_seconds, spoken
from bench.engines.progress import _current
from bench.run import UnusableError, make_plan, run_sweep, training_workers
from bench.store import LockedError, Store, Stored
from bench.sweep import Sweep, load

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def sweep_of(*cells: Cell) -> Sweep:
    return Sweep("sweep", "", Path("sweep.toml"), cells)


def shards(results: Path) -> dict[str, tuple[int, int]]:
    """Name, inode and time of every shard: what must not change when a run goes on."""
    paths = (results / "sweep" / "cells").glob("[!.]*.parquet")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def start(
    name: str, results: Path, sweep_file: Path, workers: int = 1, said: Path | None = None
) -> subprocess.Popen[str] | Forked:
    """The leader of a process group of its own, as a shell makes one for what Ctrl-C is to reach.

    said: the folder for what one says that is forked, as are its workers; None of one that an interpreter runs.
    """
    script = [str(HERE / "start.py"), str(sweep_file), str(results), name, str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if said is not None:
        return Forked(script, environment, said)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *script], env=environment, text=True, start_new_session=True, **pipes)


def wait_for_shards(results: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(shards(results)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text('kind = "gemm"\n[axes]\nseed = [0, 1, 2, 3, 4, 5]\n')
    return path


def test_a_second_run_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of(GemmCell(seed=3), TrainCell(), GemmCell())
    assert run_sweep(sweep, tmp_path, terms=Terms(work.succeed)) == 0
    assert "3 of 3 cells ok" in capsys.readouterr().out
    before = shards(tmp_path)
    assert len(before) == 3
    assert run_sweep(sweep, tmp_path, terms=Terms(work.misbehave)) == 0
    assert shards(tmp_path) == before
    out = capsys.readouterr().out
    assert "to run: 0" in out and "3 of 3 cells ok" in out
    store = Store(tmp_path / "sweep")
    row = store.read("gemm").to_pylist()[0]
    assert store.read("gemm")["seed"].to_pylist() == [3, 0]
    assert row["workers"] == 1 and row["cell_seconds"] > 0 and row["source_hash"] and row["torch"]
    assert row["started_at"].endswith("+00:00")


def test_a_grown_sweep_runs_only_what_is_new(tmp_path: Path) -> None:
    run_sweep(sweep_of(GemmCell()), tmp_path, terms=Terms(work.succeed))
    before = shards(tmp_path)
    run_sweep(sweep_of(GemmCell(seed=1), GemmCell()), tmp_path, terms=Terms(work.succeed))
    assert before.items() < shards(tmp_path).items()
    assert Store(tmp_path / "sweep").read("gemm")["seed"].to_pylist() == [1, 0]


def test_failed_cells_are_rows_the_status_is_1_and_retry_runs_them_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(*(GemmCell(seed=seed) for seed in (0, 1, 5, 9, 10, 12, 20)), TrainCell(seed=11))
    assert run_sweep(sweep, tmp_path, terms=Terms(work.misbehave)) == 1
    out = capsys.readouterr().out
    assert "2 of 8 cells ok; 1 unsupported here; 5 failed: " in out
    assert "failed: gemm seed=1: ValueError: two lines" in out
    assert "unsupported: gemm seed=12: not here" in out
    table = Store(tmp_path / "sweep").read("gemm")
    status = dict(zip(table["seed"].to_pylist(), table["status"].to_pylist(), strict=True))
    reason = dict(zip(table["seed"].to_pylist(), table["reason"].to_pylist(), strict=True))
    assert status == {0: "ok", 1: "failed", 5: "crashed", 9: "failed", 10: "failed", 12: "unsupported", 20: "ok"}
    assert "unknown column 'speedup'" in reason[9]
    assert "at least one row" in reason[10]
    assert Store(tmp_path / "sweep").read("train")["status"].to_pylist() == ["ok", "diverged"]
    before = shards(tmp_path)
    assert run_sweep(sweep, tmp_path, terms=Terms(work.succeed)) == 1, "failed cells are not run again by themselves"
    assert shards(tmp_path) == before
    assert run_sweep(sweep, tmp_path, retry=True, terms=Terms(work.succeed)) == 0
    kept = set(before.items()) & set(shards(tmp_path).items())
    assert len(kept) == 2 and len(shards(tmp_path)) == 8


def test_unsupported_alone_is_fine(tmp_path: Path) -> None:
    assert run_sweep(sweep_of(GemmCell(seed=12)), tmp_path, terms=Terms(work.misbehave)) == 0


def test_a_damaged_shard_is_named_and_its_cell_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of(GemmCell(), GemmCell(seed=1))
    run_sweep(sweep, tmp_path, terms=Terms(work.succeed))
    victim = Store(tmp_path / "sweep").finished()[GemmCell().cell_id].path
    before = shards(tmp_path)
    victim.write_bytes(victim.read_bytes()[:-1])
    capsys.readouterr()
    assert run_sweep(sweep, tmp_path, terms=Terms(work.succeed)) == 0
    assert f"{victim} is damaged" in capsys.readouterr().out
    assert len(set(before.items()) & set(shards(tmp_path).items())) == 1
    assert (tmp_path / "sweep" / "damaged" / victim.name).exists()


def test_timings_run_alone_and_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_TEST_FOLDER", str(tmp_path))
    sweep = sweep_of(TrainCell(), TrainCell(seed=1), GemmCell(), LstmCell(), GemmCell(seed=1))
    run_sweep(sweep, tmp_path / "results", workers=2, terms=Terms(work.look_around))
    store = Store(tmp_path / "results" / "sweep")
    gemm, train = store.read("gemm"), store.read("train")
    assert all("alone=True" in reason for kind in ("gemm", "lstm") for reason in store.read(kind)["reason"].to_pylist())
    assert max(gemm["started_at"].to_pylist()) < min(train["started_at"].to_pylist())
    assert gemm["workers"].to_pylist() == [1, 1] and set(train["workers"].to_pylist()) == {2}


def test_a_missing_data_set_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_data(name: str, folder: Path) -> Any:
        raise DataError("it could not be downloaded; put it there")

    def broken(name: str, folder: Path) -> Any:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(bench.run, "load_data", load_data)
    with pytest.raises(UnusableError, match="dataset pydoc: it could not be downloaded; put it there"):
        run_sweep(sweep_of(GemmCell(), TrainCell()), tmp_path, terms=Terms(work.succeed))
    monkeypatch.setattr(bench.run, "load_data", broken)
    with pytest.raises(ValueError, match="a fault of ours"):
        run_sweep(sweep_of(GemmCell(), TrainCell()), tmp_path, terms=Terms(work.succeed))
    assert not shards(tmp_path)
    assert run_sweep(sweep_of(GemmCell()), tmp_path, terms=Terms(work.succeed)) == 0


def test_a_disk_that_fills_up_ends_the_run_and_keeps_what_was_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.put

    def put(store: Store, *arguments: Any) -> Path:
        if len(shards(tmp_path)) == 2:
            raise OSError(28, "No space left on device")
        return real(store, *arguments)

    sweep = sweep_of(*(GemmCell(seed=seed) for seed in range(5)))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", put)
        patch.setattr(bench.engines.driver, "STORE_SECONDS", 0.0)
        with pytest.raises(OSError, match="No space left"):
            run_sweep(sweep, tmp_path, terms=Terms(work.succeed))
    before = shards(tmp_path)
    assert len(before) == 2
    assert run_sweep(sweep, tmp_path, terms=Terms(work.succeed)) == 0
    assert before.items() < shards(tmp_path).items()


def test_a_locked_folder_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path / "sweep").lock(), pytest.raises(LockedError, match="in use by another run"):
        run_sweep(sweep_of(GemmCell()), tmp_path, terms=Terms(work.succeed))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_keyboard_interrupt_that_a_cell_raises_is_no_ctrl_c(workers: int, tmp_path: Path) -> None:
    path, seeds = tmp_path / "sweep.toml", [*range(len(work.RAISED) + 2)]
    path.write_text(f'kind = "train"\n[axes]\nseed = {seeds}\n')
    run = start("raise_anything", tmp_path / "results", path, workers, tmp_path / "said" if workers > 1 else None)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 1, out + err
    assert "1 of 10 cells ok; 1 unsupported here; 8 failed: 8 failed" in out
    assert "failed: train seed=4: KeyboardInterrupt: inside" in out
    stored = Store(tmp_path / "results" / "sweep").read("train").to_pylist()
    by_cell = {row["cell_id"]: row["status"] for row in stored}
    assert list(by_cell.values()) == ["ok", *["failed"] * 8, "unsupported"]


@pytest.mark.parametrize(  # products have one worker, training two, which are spawned by an interpreter's
    ("number", "kind"), [(signal.SIGINT, "gemm"), (signal.SIGINT, "train"), (signal.SIGTERM, "gemm")]
)
@pytest.mark.kills
def test_an_interrupted_run_keeps_what_is_finished(
    number: signal.Signals, kind: str, tmp_path: Path, sweep_file: Path
) -> None:
    sweep_file.write_text(sweep_file.read_text().replace("gemm", kind))
    said = None if kind == "train" else tmp_path / "said"
    run = start("linger", tmp_path / "results", sweep_file, workers=2, said=said)
    wait_for_shards(tmp_path / "results", 2)
    before = shards(tmp_path / "results")
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # a terminal's Ctrl-C reaches the workers too
    else:
        run.send_signal(number)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 130, err
    assert " of 6 cells are stored; run again to go on" in out
    stored = len(shards(tmp_path / "results"))
    assert len(before) <= stored < 6
    assert len(set(Store(tmp_path / "results" / "sweep").read(kind)["cell_id"].to_pylist())) == stored
    again = start("succeed", tmp_path / "results", sweep_file, said=tmp_path / "said again")
    assert again.communicate(timeout=30) and again.returncode == 0
    assert before.items() <= shards(tmp_path / "results").items()


@pytest.mark.parametrize("blocked", ["file", "proc"])
def test_an_unusable_results_folder_is_status_3(blocked: str, tmp_path: Path, sweep_file: Path) -> None:
    results = tmp_path / "occupied"
    results.write_text("")
    if blocked == "proc":
        if not Path("/proc/self").exists():
            pytest.skip("needs /proc")
        results = Path("/proc")
    command = [sys.executable, "-m", "bench", "run", str(sweep_file), "--results", str(results)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("\n") == 1 and str(results) in done.stderr


def test_the_plan_changes_nothing_and_learns_from_what_is_stored(tmp_path: Path, sweep_file: Path) -> None:
    sweep = load(sweep_file)
    plan = make_plan(sweep, tmp_path / "results")
    assert plan.lines() == [
        "sweep: 6 cells (6 gemm)",
        "stored: 0",
        "to run: 6, about 9 s (a rough figure from the number of operations)",
    ]
    assert not (tmp_path / "results").exists()
    run_sweep(Sweep("sweep", "", sweep_file, sweep.cells[:2]), tmp_path / "results", terms=Terms(work.linger))
    lines = make_plan(sweep, tmp_path / "results").lines()
    assert lines[1] == "stored: 2 (2 ok)"
    assert lines[2] in ("to run: 4, about 3 s (from 2 stored cells)", "to run: 4, about 4 s (from 2 stored cells)")
    edited = Sweep("sweep", "", sweep_file, (TrainCell(),))
    other = make_plan(edited, tmp_path / "results").lines()
    assert "note: not in this sweep file: 2 more stored cells, kept outside the tables" in other


def test_a_plan_says_what_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, a data set; and that tables alone lie where cells are looked for."""
    monkeypatch.setenv("BENCH_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("bench.training.needs.has_no_gpu", lambda: True)
    cells = (GemmCell(device="cuda"), GemmCell(), TrainCell(dataset="wikitext2"))
    (tmp_path / "sweep").mkdir()
    lines = make_plan(sweep_of(*cells), tmp_path).lines()
    assert "note: 1 cell needs a GPU; there is none here: it ends unsupported" in lines
    assert f"note: dataset wikitext2 is not in {tmp_path / 'data'}; run downloads it" in lines
    assert not any("tables alone" in line for line in lines)
    (tmp_path / "sweep" / "gemm.parquet").touch()
    (line,) = [line for line in make_plan(sweep_of(GemmCell()), tmp_path).lines() if line.startswith("note")]
    assert line == (
        f"note: tables alone lie in {tmp_path / 'sweep'}, without cells/: nothing goes on from them; "
        f"read them with python -m analysis report {tmp_path / 'sweep'}"
    )
    monkeypatch.setattr("bench.training.needs.has_no_gpu", lambda: False)
    assert not any("GPU" in line for line in make_plan(sweep_of(*cells), tmp_path).lines())


@pytest.mark.parametrize("named", ["my sweeps/its.toml", "gemm_gpu"])
def test_what_is_not_listed_is_shown_by_the_command_that_is_named(
    named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a file as for a sweep of the suite, and with the folder of results."""
    file = tmp_path / named if named.endswith(".toml") else named
    if named.endswith(".toml"):
        Path(file).parent.mkdir()
        Path(file).write_text(f'kind = "gemm"\n[axes]\nseed = {list(range(22))}\n')
    sweep = load(file)
    sweep = Sweep(sweep.name, "", sweep.path, sweep.cells[:22])
    store = Store(tmp_path / "my results" / sweep.name)
    store.cells.mkdir(parents=True)
    for cell in sweep.cells:
        store.put(cell, [{"status": "failed", "reason": "x"}], {"cell_seconds": 1.0, "started_at": "2026-01-01"})
    assert run_sweep(sweep, tmp_path / "my results", terms=Terms(work.succeed)) == 1
    hint = capsys.readouterr().out.splitlines()[-1]
    assert hint.startswith("  and 2 more: python -m bench show ")
    command = [sys.executable, *shlex.split(hint.partition(": ")[2])[1:]]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and "stored: 22 (22 failed)" in done.stdout, done.stderr


def test_news_and_counts_are_told_as_people_say_them() -> None:
    told = {"epoch": 1, "epochs": 6, "step": 54, "steps": 732, "sparsity": 0.5}
    assert _current("train", told) == "epoch 1 of 6, step 54 of 732, sparsity 0.5: train"
    assert _current("gemm", {"pairs": 3, "backend_ms": 0.25}) == "pairs 3, backend_ms 0.25: gemm"
    assert (number(1), number(0), number(2, "shape")) == ("1 cell", "0 cells", "2 shapes")


def test_training_takes_as_many_workers_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.run, "physical_cores", lambda: 8)
    assert training_workers([TrainCell(threads=3), TrainCell()], None) == 2
    assert training_workers([TrainCell(threads=0)], None) == 1
    assert training_workers([TrainCell(threads=16)], None) == 1
    assert training_workers([TrainCell(threads=16)], 5) == 5
    assert training_workers([GemmCell()], None) == 8


def test_estimates_go_by_the_sizes_that_a_data_set_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = TrainCell(dataset="wikitext2", epochs=40)
    whole, told = rough_seconds(cell), known_sizes("wikitext2")
    assert told is not None
    half = Sizes(told.train // 2, told.valid // 2, told.test // 2, told.vocabulary)
    monkeypatch.setattr("bench.engines.estimate.known_sizes", lambda _: half)
    assert rough_seconds(cell) == pytest.approx(whole / 2, rel=0.01)
    monkeypatch.setattr("bench.engines.estimate.known_sizes", lambda _: None)
    assert 0 < rough_seconds(cell) < whole / 10, "of a data set that tells none, a small text's are taken"


def test_estimates_scale_with_work() -> None:
    assert rough_seconds(TrainCell(epochs=8)) > 1.5 * rough_seconds(TrainCell(epochs=4))
    assert rough_seconds(TrainCell(dataset="wikitext2")) > 10 * rough_seconds(TrainCell())
    assert rough_seconds(LstmCell(hidden_size=2048, input_size=2048)) > 2 * rough_seconds(LstmCell())
    assert rough_seconds(LstmCell(passes="forward")) < rough_seconds(LstmCell())
    pace = Pace()
    pace.learn(GemmCell(), 7 * rough_seconds(GemmCell()))
    assert pace.seconds([GemmCell(), GemmCell()]) == pytest.approx(14 * rough_seconds(GemmCell()))
    assert pace.seconds([TrainCell()], workers=2) == pytest.approx(rough_seconds(TrainCell()) / 2)
    assert [spoken(seconds) for seconds in (5, 300, 7800)] == ["5 s", "5 min", "2 h 10 min"]


def test_what_is_shown_of_a_classifier_is_how_many_it_gets_right() -> None:
    settings = TrainCell(model="mlp", dataset="digits")
    for accuracy, words in (
        (0.9733, "test_ppl 100, 97.3 % of the test right, sparsity"),
        (None, "test_ppl 100, sparsity"),
    ):
        row = {**trained(4, test_accuracy=accuracy)[-1]}
        assert words in key_figures(settings, Stored("", Path(), "ok", "", 1.0, "", "", None, row))
