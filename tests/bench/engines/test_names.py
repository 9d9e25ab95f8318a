"""Names that collide: a sweep's results lie in a folder of its name, and never get mixed with anything else's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import work
from rows import ended_ok, timed

import bench.commands.campaign
import bench.engines.driver
from bench.__main__ import app
from bench.commands.campaign import run_campaign
from bench.engines.driver import Terms
from bench.engines.origin import ORIGIN, RETIRED
from bench.run import make_plan, run_sweep
from bench.store import Store
from bench.storing.parquet import from_parquet, read_table
from bench.storing.tables import Tables
from bench.sweep import RESERVED, Sweep, SweepError, load, names

PROVENANCE: dict[str, Any] = {"source_hash": "x", "cell_seconds": 1.0, "started_at": "2026-01-01"}


def sweep_file(path: Path, *seeds: int, kind: str = "gemm") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'kind = "{kind}"\n[axes]\nseed = {list(seeds)}\n')
    return path


def store_all(sweep: Sweep, results: Path) -> Store:
    store = Store(results / sweep.name)
    store.cells.mkdir(parents=True, exist_ok=True)
    for cell in sweep.cells:
        store.put(cell, timed(), PROVENANCE)
    return store


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which a command ends as for bad input."""
    with pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and err.count("\n") == 1, (ended.value.code, out, err)
    return str(err)


@pytest.mark.parametrize(
    "name", [*RESERVED, "Reference", "README.md", "check.parquet", "x.sha256", "tuned.json", ".hidden", "-flag", "a b"]
)
def test_a_name_that_means_something_else_in_results_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = sweep_file(tmp_path / "files" / f"{name}.toml", 1)
    campaign = ("campaign", file, "--out", "out", "--budget", "9", "--device", "cpu")
    for command in (("run", file), ("plan", file), campaign):
        assert name in refused(capsys, *command)
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


@pytest.mark.parametrize("command", ["campaign", "tune"])
def test_two_files_of_one_name_are_refused_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    files = [sweep_file(tmp_path / "a" / "mine.toml", 1), sweep_file(tmp_path / "b" / "Mine.toml", 2)]
    out = tmp_path / "out" / "tuned.json"
    line = refused(capsys, command, *files, "--out", out, "--budget", "9", "--device", "cpu")
    assert str(files[0]) in line and str(files[1]) in line and "different names" in line
    assert not out.parent.exists()
    with pytest.raises(SweepError, match="same name"):
        run_campaign([load(file) for file in files], out.parent, 9.0, "cpu")
    assert not out.parent.exists()


def test_the_sweeps_of_the_suite_are_files_that_nobody_hid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.sweep.SWEEPS", tmp_path)
    sweep_file(tmp_path / "one.toml", 1)
    (tmp_path / ".#one.toml").symlink_to("somebody@elsewhere.123")
    (tmp_path / "gone.toml").symlink_to("nowhere.toml")
    (tmp_path / "folder.toml").mkdir()
    assert names() == ["one"]


def test_another_file_of_a_name_does_not_take_the_tables_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    mine, other = sweep_file(tmp_path / "a" / "mine.toml", 1, 2), sweep_file(tmp_path / "b" / "mine.toml", 2, 3)
    store = store_all(load(mine), results)
    assert run_sweep(load(mine), results) == 0
    before = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    for command in ("run", "plan", "show"):
        capsys.readouterr()
        line = refused(capsys, command, other, "--results", results)
        assert "holds 1 cell of another file called mine" in line and str(other) in line
    assert {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()} == before

    moved = tmp_path / "elsewhere" / "mine.toml"
    moved.parent.mkdir()
    shutil.move(mine, moved)  # the same cells: the same sweep
    assert run_sweep(load(moved), results) == 0
    sweep_file(moved, 3)  # edited where it lies
    plan = make_plan(load(moved), str(results))
    assert plan.other == 2 and any("outside the tables" in line for line in plan.lines())
    (store.folder / ORIGIN).write_bytes(b"\xff\x00 not a digest")  # says nothing, and is no reason to stop
    assert make_plan(load(other), results).other == 1


def test_a_campaign_does_not_mix_an_unrelated_sweep_into_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, other = sweep_file(tmp_path / "a" / "mine.toml", 1), sweep_file(tmp_path / "b" / "mine.toml", 2)
    out = tmp_path / "out"
    Tables(out / "mine", []).put(load(mine).cells[0], timed(), PROVENANCE)
    before = (out / "mine" / "gemm.parquet").read_bytes()
    line = refused(capsys, "campaign", other, "--out", out, "--budget", "9", "--device", "cpu")
    assert "another sweep called mine" in line and "another --out" in line
    resumed = ("campaign", other, "--out", tmp_path / "new", "--resume-from", out, "--budget", "9", "--device", "cpu")
    assert "another sweep called mine" in refused(capsys, *resumed)
    assert (out / "mine" / "gemm.parquet").read_bytes() == before and not (tmp_path / "new" / "mine").exists()


@pytest.fixture
def campaign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, list[int]]]:
    """campaign(file, folder) -> (what is said, seeds of the table that is left); stand-in work."""
    monkeypatch.setattr(bench.engines.driver, "facts", lambda _: PROVENANCE)
    monkeypatch.setattr(bench.commands.campaign, "check_datasets", lambda *_: None)

    def call(file: Path, out: str = "out", **more: Any) -> tuple[str, list[int]]:
        capsys.readouterr()
        assert run_campaign([load(file)], tmp_path / out, 1e5, "cpu", terms=Terms(work.succeed), **more) == 0
        return str(capsys.readouterr().out), seeds(tmp_path / out / file.stem)

    return call


def seeds(folder: Path, kind: str = "train") -> list[int]:
    """Of the cells of a table, in their order."""
    path = folder / f"{kind}.parquet"
    rows = from_parquet(read_table(path)).to_pylist() if path.exists() else []
    return list({row["cell_id"]: row["seed"] for row in rows}.values())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_campaign_knows_a_sweep_by_its_file_as_run_does(
    tmp_path: Path, campaign: Callable[..., tuple[str, list[int]]], capsys: pytest.CaptureFixture[str]
) -> None:
    mine = sweep_file(tmp_path / "a" / "mine.toml", 1, 2, kind="train")
    other = sweep_file(tmp_path / "b" / "mine.toml", 2, 3, kind="train")  # a cell in common
    out = tmp_path / "out"
    assert campaign(mine)[1] == [1, 2]
    before = contents(out)
    arguments = ("--budget", "9", "--device", "cpu")
    for where, option in (
        (("--out", out), "--out"),
        (("--out", tmp_path / "new", "--resume-from", out), "--resume-from"),
    ):
        line = refused(capsys, "campaign", other, *where, *arguments)
        assert "holds 1 cell of another file called mine" in line and f"another {option}" in line and str(other) in line
    assert contents(out) == before and not list((tmp_path / "new").glob("m*"))
    moved = sweep_file(tmp_path / "elsewhere" / "mine.toml", 1, 2, kind="train")  # the same cells: the same sweep
    assert "0 to run" in campaign(moved)[0]


def test_cells_that_a_sweep_no_longer_has_are_kept_beside_a_campaigns_tables(
    tmp_path: Path, campaign: Callable[..., tuple[str, list[int]]]
) -> None:
    mine, folder = sweep_file(tmp_path / "mine.toml", 1, 2, kind="train"), tmp_path / "out" / "mine"
    campaign(mine)
    sweep_file(mine, 3, kind="train")  # edited where it lies, every cell
    said, found = campaign(mine)
    assert found == [3] and seeds(folder / RETIRED) == [1, 2] and "1 to run" in said
    assert f"note: not in {mine}: 2 stored cells of mine; kept in {folder / RETIRED}" in said
    sweep_file(mine, 3, 1, kind="train")  # and taken back
    said, found = campaign(mine)
    assert found == [3, 1] and "0 to run" in said and ": 1 stored cell of mine; kept in" in said
    assert 2 in seeds(folder / RETIRED)
    said, found = campaign(mine, "new", resume_from=tmp_path / "out")
    assert found == [3, 1] and "0 to run" in said and 2 in seeds(tmp_path / "new" / "mine" / RETIRED)
    sweep_file(mine, 2, kind="train")
    assert campaign(mine, "new")[1] == [2] and sorted(seeds(tmp_path / "new" / "mine" / RETIRED)) == [1, 2, 3]
    sweep_file(mine, 7, kind="gemm")  # no cell of that kind is left
    mine.write_text(mine.read_text() + '[base]\ndevice = "cuda"\n')
    assert campaign(mine, "new")[1] == [] and not (tmp_path / "new" / "mine" / "train.parquet.sha256").exists()
    assert sorted(seeds(tmp_path / "new" / "mine" / RETIRED)) == [1, 2, 3]


def test_a_campaign_of_one_device_leaves_the_cells_of_the_other_in_the_tables(
    tmp_path: Path, campaign: Callable[..., tuple[str, list[int]]]
) -> None:
    mine, out = tmp_path / "mine.toml", tmp_path / "out" / "mine"
    mine.write_text('kind = "train"\n[axes]\nseed = [1, 2]\ndevice = ["cpu", "cuda"]\n')
    old = sweep_file(tmp_path / "old.toml", 5, kind="train")
    tables = Tables(out, [])
    for cell in (*load(mine).cells[1:2], *load(old).cells):
        tables.put(cell, ended_ok(cell), PROVENANCE)
    said, found = campaign(mine)  # the folder does not say whose it is, as one of an older version
    assert sorted(found) == [1, 1, 2] and seeds(out / RETIRED) == [5] and ": 1 stored cell of mine; kept in" in said
    assert campaign(mine, resume_from=tmp_path / "out")[1] == found


def test_a_folder_to_resume_from_that_holds_nothing_is_told_of(
    tmp_path: Path, campaign: Callable[..., tuple[str, list[int]]]
) -> None:
    (tmp_path / "empty").mkdir()
    said, _ = campaign(sweep_file(tmp_path / "mine.toml", 1, kind="train"), resume_from=tmp_path / "empty")
    assert f"note: nothing of these sweeps is stored in {tmp_path / 'empty'}" in said


def test_a_cell_of_several_sweeps_runs_once_and_is_stored_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.engines.driver, "facts", lambda _: PROVENANCE)
    monkeypatch.setattr(bench.commands.campaign, "check_datasets", lambda *_: None)
    content = {"one": (1, 2, 2), "two": (2, 3), "three": (3, 1)}
    files = {name: sweep_file(tmp_path / f"{name}.toml", *seeds, kind="train") for name, seeds in content.items()}
    out = tmp_path / "out"

    def campaign(*names: str) -> str:
        assert run_campaign([load(files[name]) for name in names], str(out), 1e5, "cpu", terms=Terms(work.succeed)) == 0
        return str(capsys.readouterr().out)

    def stored(name: str) -> dict[int, float]:
        rows = from_parquet((out / name / "train.parquet").read_bytes()).to_pylist()
        return {row["seed"]: row["train_seconds"] for row in rows}

    said = campaign("one", "two", "one")
    assert "3 to run" in said and "[3/3] ok" in said and "4 of 4 cells stored" in said
    assert list(stored("one")) == [1, 2] and list(stored("two")) == [2, 3] and stored("one")[2] == stored("two")[2]
    assert "0 to run" in campaign("three", "one", "two")
    assert stored("three") == {3: stored("two")[3], 1: stored("one")[1]}
