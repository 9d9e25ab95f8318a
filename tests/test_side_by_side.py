"""Tests side by side: threads of a worker, long tests first, and skipped tests told by their number."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SKIPPED = """
import os
import pytest

@pytest.mark.skipif(True, reason="no such device")
@pytest.mark.parametrize("case", range(40))
def test_never(case): raise AssertionError

@pytest.mark.skip(reason="no such device")
def test_never_either(): raise AssertionError

@pytest.mark.skipif(False, reason="a device")
@pytest.mark.parametrize("case", range(3))
def test_always(case): assert os.environ["OMP_NUM_THREADS"] == "HOW_MANY"
"""


TOLD = """
import os
from pathlib import Path
import pytest

@pytest.fixture(autouse=True)
def told(request):
    with Path(os.environ["PYTEST_XDIST_WORKER"]).open("a") as file:
        file.write(f"{request.node.name}\\n")
"""
LONG = f"""{TOLD}
@pytest.mark.parametrize("case", range(20))
def test_short(case): ...

@pytest.mark.slow(30)
def test_long(): ...

@pytest.mark.slow
@pytest.mark.parametrize("case", range(2))
def test_some(case): ...

@pytest.mark.slow(7)
def test_one(): ...
"""
OTHER = f"""{TOLD}
@pytest.mark.slow(30)
def test_elsewhere(): ...
"""
ALONE = """
import pytest

def test_beside_others(): raise AssertionError

@pytest.mark.alone
def test_by_itself(): ...
"""


def run(folder: Path, tests: str, *options: str) -> str:
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_one.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "--rootdir", str(folder), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "OMP_NUM"))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_many_skips_are_one_that_tells_their_number(tmp_path: Path) -> None:
    said = run(tmp_path, SKIPPED, "-k", "never")
    assert "1 skipped, 43 deselected" in said and "41 tests of this file: no such device" in said


def test_a_worker_has_its_part_of_the_processors(tmp_path: Path) -> None:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = run(tmp_path, SKIPPED.replace("HOW_MANY", str(max(1, count // 2))), "-n", "2")
    assert "3 passed, 1 skipped" in said


def test_long_tests_begin_first_on_all_workers_alike(tmp_path: Path) -> None:
    """Those of a file on one worker, the longest file first."""
    (tmp_path / "test_other.py").write_text(OTHER)
    run(tmp_path, LONG, "-n", "2", "--dist", "worksteal", "-v")
    begun = sorted((tmp_path / worker).read_text().split() for worker in ("gw0", "gw1"))
    assert sum(map(len, begun)) == 25
    assert begun[0][:2] == ["test_elsewhere", "test_short[8]"]
    assert begun[1][:5] == ["test_long", "test_some[0]", "test_some[1]", "test_one", "test_short[0]"]


def test_what_is_alone_is_found_without_importing_the_rest(tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text("raise ImportError('imported')")
    assert "1 passed, 1 deselected" in run(tmp_path, ALONE, "-m", "alone")
