"""Runs on one machine time one after another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.engines.turns import NAME, turn_to_time
from bench.store import locked

ROOT = Path(__file__).parents[3]
SWEEP = 'kind = "gemm"\n[base]\nm = 32\nk = 32\nn = 4\nblock_size = 16\nthreads = 1\n[axes]\nseed = [0, 1]\n'
WAITS = "another run is timing on this machine: waiting until it is done"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "block-sparse-bench"


def test_a_second_run_waits_for_the_first_to_have_timed(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "some.toml").write_text(SWEEP)
    command = [sys.executable, "-u", "-m", "bench", "run", "some.toml", "--results", "results"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with locked(cache, name=NAME.format("cpu")):
        run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None
        said = []
        for line in run.stdout:
            said.append(line)
            if WAITS in line:
                break
        assert run.poll() is None, said
        assert not list((tmp_path / "results" / "some" / "cells").iterdir())
    rest = run.communicate(timeout=120)[0]
    assert run.returncode == 0, [*said, rest]
    assert "2 cells ok" in rest and WAITS not in rest


def test_the_turn_of_a_device_is_not_that_of_another_and_waiting_may_end(cache: Path) -> None:
    looks: list[bool] = []

    def wait(is_first: bool) -> None:
        looks.append(is_first)
        if len(looks) == 2:
            raise KeyboardInterrupt

    with turn_to_time("cpu", wait), turn_to_time("cuda", wait):
        assert looks == []
        with pytest.raises(KeyboardInterrupt), turn_to_time("cpu", wait):
            raise AssertionError
    assert looks == [True, False]
    with turn_to_time("cpu", wait):
        pass
    assert len(looks) == 2


def test_where_nothing_can_be_locked_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: Any) -> None:
        raise AssertionError

    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with turn_to_time("cpu", never), turn_to_time("cpu", never):
        pass
