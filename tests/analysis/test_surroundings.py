"""What is around a report: settings of matplotlib, encodings, homes, readers that leave, names that are no text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import made
import matplotlib as mpl
import pandas as pd
import pytest

from analysis.figures import style
from analysis.load import load
from analysis.report import write_figures, write_report
from analysis.reporting import execution
from analysis.study import read

ROOT = Path(__file__).parents[2]
Sweep = Callable[..., Path]

SPOILED = """
text.usetex: True
text.latex.preamble: \\nosuchcommand
axes.facecolor: black
savefig.bbox: tight
font.size: 60
axes.prop_cycle: cycler("color", ["white"])
axes.formatter.use_locale: True
backend: TkAgg
"""

COMMANDS = """
import os, pwd, sys
def nobody(*_):
    raise KeyError("no such user")
pwd.getpwuid = pwd.getpwnam = nobody
from analysis import __main__
sys.argv = ["analysis", *sys.argv[1:]]
__main__.main()
"""


def spoiled(folder: Path, *arguments: str, redirected: str = "") -> subprocess.CompletedProcess[bytes]:
    """A command where everything around it is ill: no home, no user, no screen, ascii, and a spoiled matplotlibrc."""
    (folder / "matplotlibrc").write_text(SPOILED)
    lost = ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "BENCH_RESULTS")
    environment = {name: value for name, value in os.environ.items() if name not in lost} | {
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "ascii:strict",
        "MPLBACKEND": "no such thing",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", COMMANDS, *arguments]
    if redirected:
        command = ["bash", "-c", f'"$@" {redirected}', "bash", *command]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=100)


@pytest.mark.examples
def test_a_report_and_pictures_in_spoiled_surroundings(sweep: Sweep, tmp_path: Path) -> None:
    train = pd.DataFrame(made.train_frame(seeds=1, variants=("dense", "gradual")))
    folder = sweep(gemm=made.gemm_frame(backends=("native",)), train=train)
    done = spoiled(tmp_path, "report", str(folder))
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    assert done.stdout.startswith(b"Speed: the fastest") and b"x" in done.stdout
    assert "×" in (folder / "report.html").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("~*"))
    lost = spoiled(tmp_path, "figures", str(folder), "--out", "drawn", redirected=">/dev/full 2>/dev/full")
    assert lost.returncode == 0
    assert (tmp_path / "drawn" / "table.md").read_text(encoding="utf-8")


def test_the_style_is_the_same_whatever_was_set_before() -> None:
    style.use()
    kept = {name for name in mpl.rcParams if name.startswith(("backend", "interactive"))}
    wanted = {name: value for name, value in dict.items(mpl.rcParams) if name not in kept}
    backend = mpl.get_backend()
    mpl.rcParams.update({"text.usetex": True, "axes.facecolor": "black", "savefig.bbox": "tight", "figure.dpi": 7})
    style.figure(1.0)
    assert {name: value for name, value in dict.items(mpl.rcParams) if name not in kept} == wanted
    assert mpl.get_backend() == backend


def test_paths_may_be_strings_and_names_no_text(sweep: Sweep, tmp_path: Path, blank_pictures: None) -> None:
    folder = sweep(gemm=made.gemm_frame(backends=("native",)))
    odd = tmp_path / os.fsdecode(b"odd \xff")
    try:
        folder.rename(odd)
    except OSError:
        pytest.skip("this file system takes only names that are text")
    assert write_report(str(odd)).read_text(encoding="utf-8").count("odd ?")
    assert load(str(odd), "gemm").equals(read(str(odd)).tables["gemm"])
    assert write_figures(str(odd), str(tmp_path / "out"))[-1] == tmp_path / "out" / "table.md"


@pytest.mark.examples
def test_a_notebook_runs_without_a_home_and_away_from_the_users_start_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture, and a start file of the user's that would end every kernel; the lock of an editor beside it."""
    start = tmp_path / "ipython" / "profile_default" / "startup"
    start.mkdir(parents=True)
    (start / "00.py").write_text("import os; os._exit(1)")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", "no such thing")
    monkeypatch.setattr(execution, "EXPECTED", ("one.ipynb",))
    source = "%matplotlib inline\nfrom analysis.figures import style\nprint('ρ')\nstyle.figure(1.0)[0]"
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": source, "outputs": [], "execution_count": None}
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "one.ipynb").write_text(
        json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    (tmp_path / "made" / ".#one.ipynb").symlink_to("somebody@elsewhere.123")
    (done,) = execution.execute_all(str(tmp_path / "out"), None, tmp_path / "made")
    written = done.read_text(encoding="utf-8")
    assert "ρ" in written and "image/png" in written
