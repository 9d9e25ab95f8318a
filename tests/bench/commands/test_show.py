"""What is shown for programs: JSON and CSV of list, plan, show, doctor and of a report."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import work
from commands import command

from bench.commands.show import as_csv, as_json, listed, planned
from bench.engines.driver import Terms
from bench.run import make_plan, run_sweep
from bench.sweep import Sweep, load, names

ROOT = Path(__file__).parents[3]
FILE = 'kind = "gemm"\n[base]\nm = 64\nk = 64\nn = 4\nthreads = 1\n[axes]\nblock_size = [8, 16]\n'


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    (tmp_path / "small.toml").write_text(FILE)
    return load(tmp_path / "small.toml")


def test_a_list_has_every_sweep_and_name() -> None:
    found = json.loads(listed())
    assert [each["name"] for each in found["sweeps"]] == names()
    assert all(each["cells"] > 0 for each in found["sweeps"]) and "native" in found["backend"]


def test_before_a_run_all_is_to_run(sweep: Sweep, tmp_path: Path) -> None:
    plan = make_plan(sweep, tmp_path / "results")
    content = json.loads(planned(plan))
    assert (content["cells"], content["to_run"], content["stored"], content["kinds"]) == (2, 2, {}, {"gemm": 2})
    assert content["seconds"] > 0.0 and content["lines"][0].startswith("small: 2 cells")
    cells = json.loads(as_json(plan))["cells"]
    assert {each["status"] for each in cells} == {"to run"} and {each["last_row"] for each in cells} == {None}
    assert not (tmp_path / "results").exists()


def test_after_it_each_cell_has_its_row(sweep: Sweep, tmp_path: Path) -> None:
    assert run_sweep(sweep, tmp_path / "results", terms=Terms(work.succeed)) == 0
    plan = make_plan(sweep, tmp_path / "results")
    content = json.loads(planned(plan))
    assert (content["to_run"], content["stored"], content["seconds"]) == (0, {"ok": 2}, 0.0)
    cells = json.loads(as_json(plan))["cells"]
    assert [each["settings"]["block_size"] for each in cells] == [8, 16]
    assert all(each["status"] == "ok" and each["last_row"]["time_ms"] > 0.0 for each in cells)
    lines = list(csv.DictReader(io.StringIO(as_csv(plan))))
    assert [line["block_size"] for line in lines] == ["8", "16"]
    assert all(line["status"] == "ok" and float(line["time_ms"]) > 0.0 and "[" not in line["kernel"] for line in lines)


def run(module: str, *arguments: Any, folder: Path) -> str:
    done = command(module, folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow(8)
def test_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(FILE)
    run("bench", "run", "small.toml", folder=tmp_path)
    assert json.loads(run("bench", "plan", "small.toml", "--json", folder=tmp_path))["stored"] == {"ok": 2}
    assert len(json.loads(run("bench", "show", "small.toml", "--json", folder=tmp_path))["cells"]) == 2
    assert run("bench", "show", "small.toml", "--csv", folder=tmp_path).count("\n") == 3
    assert "native" in json.loads(run("bench", "list", "--json", folder=tmp_path))["backend"]
    whats = [each["what"] for each in json.loads(run("bench", "doctor", "--json", folder=tmp_path))]
    assert {"suite", "torch", "compiler"} <= set(whats)
    said = run("analysis", "report", "small", "--csv", folder=tmp_path)
    assert f"Table: {Path('results') / 'small' / 'gemm.csv'}" in said or "gemm.csv" in said
    with (tmp_path / "results" / "small" / "gemm.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and all(float(row["measured_speedup"]) > 0.0 and "samples_ms" not in row for row in rows)
