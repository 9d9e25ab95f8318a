"""A machine that is busy with other work: noticed, named, waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.measuring import quiet

ROOT = Path(__file__).parents[3]


@pytest.fixture
def work_elsewhere() -> Iterator[None]:
    """A process that keeps each processor busy."""
    count = psutil.cpu_count() or 1
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    yield
    for each in spinners:
        each.kill()
        each.wait()


@pytest.mark.alone
@pytest.mark.usefixtures("work_elsewhere")
def test_other_work_is_counted_and_named() -> None:
    why = quiet.disturbance()
    assert why is not None
    assert f" of {len(os.sched_getaffinity(0))} processors busy" in why
    assert Path(sys.executable).resolve().name[:6] in why  # python3.11 or python


def test_a_quiet_machine_is_one_look_of_two_below_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([1.0, 0.1])
    monkeypatch.setattr(quiet, "busy_processors", lambda _: next(looks))
    assert quiet.disturbance() is None


@pytest.mark.parametrize(
    ("patience", "looks", "said"),
    [
        (0.0, [0.0], []),
        (0.0, [2.0, 2.0], ["warning: other work keeps 2.0"]),
        (60.0, [2.0, 2.0, 2.0, 0.0], ["waiting up to 60 s for a quiet machine: other work keeps 2.0"]),
        (1e-9, [2.0, 2.0], ["waiting up to", "warning: other work keeps 2.0"]),
    ],
)
def test_waiting(monkeypatch: pytest.MonkeyPatch, patience: float, looks: list[float], said: list[str]) -> None:
    given, lines = iter(looks), []
    monkeypatch.setattr(quiet, "busy_processors", lambda _: next(given))
    monkeypatch.setattr(quiet, "busiest_programs", lambda _: "")
    quiet.await_quiet(patience, lines.append)
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))
    assert next(given, None) is None
    assert all(("--wait-quiet" in line) == (patience == 0) for line in lines)


@pytest.mark.alone
@pytest.mark.usefixtures("work_elsewhere")
def test_a_run_on_a_busy_machine_says_so_before_it_times(tmp_path: Path) -> None:
    sweep = tmp_path / "tiny.toml"
    sweep.write_text('kind = "gemm"\n[base]\nm = 32\nk = 32\nn = 4\nblock_size = 16\nbackend = "reference"\n')
    start = str(ROOT / "tests" / "bench" / "start_main.py")  # stand-in work
    command = [sys.executable, start, "run", str(sweep), "--results", str(tmp_path / "results")]
    done = subprocess.run([*command, "--wait-quiet", "1"], cwd=ROOT, capture_output=True, text=True, check=False)
    waiting, warning, ended = (done.stdout.index(words) for words in ("waiting up to 1 s", "warning: other", "[1/1]"))
    assert waiting < warning < ended
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "other work" not in again.stdout  # nothing is left to time
