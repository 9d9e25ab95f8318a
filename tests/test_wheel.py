"""A built wheel: installed in an environment of its own, it works from any folder, and has all that it reads."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from analysis.load import ROOT

pytestmark = [pytest.mark.examples, pytest.mark.slow(30)]

CELLS = ("--only", "kind=gemm", "--only", "backend=native,dense", "--set", "m=128", "--set", "k=128")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git tracks, so that nothing is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in (os.fsdecode(each) for each in files if each):
        if name.split("/")[0] in ("kernels", "bench", "analysis", "pyproject.toml", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source], source)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment with the wheel, which has its dependencies from the one that runs this test."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=False)
    paths = sysconfig.get_paths(vars={"base": str(home), "platbase": str(home)})
    python = Path(paths["scripts"]) / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel], home)
    # a path alone: what lies there is found, and no .pth of it is followed, as that of this checkout
    beside = Path(paths["purelib"]) / "dependencies.pth"
    beside.write_text("\n".join(dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))))
    return Path(paths["scripts"])


def run(command: Sequence[str | Path], folder: Path) -> str:
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_has_all_that_is_read(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("bench/sweeps", "kernels/native/src", "kernels/cuda/src", "analysis/notebooks"):
        here = {each.relative_to(ROOT).as_posix() for each in (ROOT / folder).iterdir() if each.is_file()}
        assert here and here <= names, f"{folder} is not whole"
    modules = {
        each.relative_to(ROOT).as_posix()
        for name in ("kernels", "bench", "analysis")
        for each in (ROOT / name).rglob("*.py")
    }
    assert modules <= names and not any(name.startswith("tests/") for name in names)
    assert {"analysis/reporting/report.html.jinja", "analysis/loading/columns.json", "kernels/PLUGINS.md"} <= names


def test_it_measures_and_reports_from_another_folder(scripts: Path, tmp_path: Path) -> None:
    where = run([scripts / "python", "-c", "import bench.sweep; print(bench.sweep.ROOT)"], tmp_path).strip()
    assert not Path(where).is_relative_to(ROOT), "or this tests the checkout"
    assert "wikitext2_words" in run([scripts / "block-sparse-bench", "list"], tmp_path)
    said = run([scripts / "block-sparse-bench", "run", "smoke", *CELLS], tmp_path)
    assert "cells ok" in said
    (folder,) = (each for each in (tmp_path / "results").iterdir() if each.is_dir())
    run([scripts / "block-sparse-analysis", "report", folder.name], tmp_path)
    assert (folder / "report.html").stat().st_size > 10_000
    assert "compiler" in run([scripts / "python", "-m", "bench", "doctor"], tmp_path)


@pytest.mark.parametrize("script", ["block-sparse-bench", "block-sparse-analysis"])
def test_shells_complete_its_commands(script: str, scripts: Path, tmp_path: Path) -> None:
    variable = f"_{script.upper().replace('-', '_')}_COMPLETE"
    own = {**os.environ, variable: "complete_bash", "COMP_WORDS": f"{script} ", "COMP_CWORD": "1"}
    done = subprocess.run([str(scripts / script)], cwd=tmp_path, env=own, capture_output=True, text=True, timeout=120)
    assert "compare" in done.stdout.split(), done.stdout + done.stderr
