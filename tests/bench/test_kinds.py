"""Kinds of cells are asked of the cell: a new one touches its class, its work and its columns."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
import throwaway

from bench.__main__ import app
from bench.cells import KINDS
from bench.schema import COLUMNS
from bench.storing.parquet import from_parquet, read_table

SOURCES = sorted((Path(__file__).parents[2] / "bench").rglob("*.py"))


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """said(command, *options) -> what a command says of a sweep of naps."""
    monkeypatch.setitem(KINDS, "nap", throwaway.NapCell)
    monkeypatch.setitem(COLUMNS, "nap", throwaway.COLUMNS)
    monkeypatch.chdir(tmp_path)
    Path("naps.toml").write_text('kind = "nap"\n[axes]\nmilliseconds = [2, 1]\n')

    def call(command: str, *options: str) -> str:
        with pytest.raises(SystemExit) as ended:
            app([command, "naps.toml", *options])
        out, err = capsys.readouterr()
        assert (ended.value.code or 0, err) == (0, "")
        return str(out)

    return call


def test_a_new_kind_is_planned_run_and_shown(said: Callable[..., str]) -> None:
    assert "naps: 2 cells (2 nap)\nstored: 0\nto run: 2, about 3 s" in said("plan")
    out = said("run", "--workers", "1")
    assert "[1/2] ok in 0 s: nap milliseconds=2\n[2/2] ok" in out and "2 of 2 cells ok" in out
    rows = from_parquet(read_table(Path("results/naps/nap.parquet"))).to_pylist()
    assert [row["milliseconds"] for row in rows] == [2, 1]
    assert all(row["slept_ms"] >= row["milliseconds"] and row["workers"] == 1 and row["torch"] for row in rows)
    assert f"{rows[0]['slept_ms']:.4g} ms asleep" in said("show")
    assert "to run: 0" in said("run")


def test_a_new_kind_takes_part_in_a_campaign(said: Callable[..., str]) -> None:
    budget = ("--out", "out", "--budget", "1000", "--device", "cpu")
    assert "campaign on cpu: 2 cells, 0 of them checks; 2 to run" in said("campaign", *budget)
    rows = from_parquet(read_table(Path("out/naps/nap.parquet"))).to_pylist()
    assert [(row["status"], row["milliseconds"]) for row in rows] == [("ok", 2), ("ok", 1)]
    assert "2 cells, 0 of them checks; 0 to run" in said("campaign", *budget)
    assert "nothing to tune" in said("tune", "--out", "out/tuned.json", "--budget", "9", "--device", "cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_of_every_kind_is_there(kind: str) -> None:
    assert callable(pkgutil.resolve_name(KINDS[kind].work))
    assert KINDS[kind].figures.format_map(dict.fromkeys(_names(KINDS[kind].figures), "1"))


def _names(figures: str) -> list[str]:
    return [part.partition("}")[0] for part in figures.split("{")[1:]]


def test_no_module_asks_for_the_class_of_a_cell() -> None:
    classes = {kind.__name__ for kind in KINDS.values()} | {"TimedCell", "ProductCell"}
    found = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
        if classes & {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
    ]
    assert found == []
