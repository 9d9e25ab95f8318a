"""Every command and program of README and CONTRIBUTING, run as a new user does: in a fresh clone, with what is not committed yet.

The clone has no environment of its own: `python` there is the one that runs the tests, also for nox. A command that is
neither run nor in NOT_RUN fails the last test, as does one there that nobody writes any more.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bench.sweep import load

ROOT = Path(__file__).parents[1]
LONG, TRAINS = "takes minutes, on a machine that does nothing else", "trains for hours"
GPU = "needs a GPU, or what the commands above it wrote on one"
NOT_RUN = {
    "python -m pip install nox && nox -s sweep": "installs, and times and trains for 5 minutes; a tiny sweep is run below",
    "python -m pip install nox && nox -s lint types tests": "installs, and is what runs this test",
    "nox -s sweep -- wikitext2_small": TRAINS,
    "nox -s bench": LONG,
    "nox -s sanitize": LONG,
    "nox -s cuda": LONG,
    "nox -s emulate": LONG,
    "python -m bench run wikitext2_small": TRAINS,
    "python -m bench tune gemm_gpu --out out/tuned.json --budget 300": GPU,
    "cp out/tuned.json kernels/backends/cuda/tuned.json": GPU,
    "python -m bench campaign gemm_gpu lstm_gpu --out out --budget 600": GPU,
    "cp -r out/gemm_gpu out/lstm_gpu results/reference/": GPU,
    "python -m bench campaign wikitext2_paper --out out --budget 540 --checkpoint-mib 600 --together 3": GPU,
}
TINY = 'kind = "gemm"\n[base]\nm = 64\nk = 64\nn = 4\nblock_size = 16\ntarget_sparsity = 0.5\nbackend = "torch_bsr"\n'
SMALLER = "TrainCell(train_tokens=4000, eval_tokens=1000, epochs=1, "  # a second instead of half a minute


def blocks(language: str) -> list[str]:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")]
    return [found for text in texts for found in re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)]


def commands() -> list[str]:
    """Each once, without what is said about it."""
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks("console") for line in block.splitlines()]
    return list(dict.fromkeys(filter(None, lines)))


RUN = [command for command in commands() if command not in NOT_RUN]


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the working tree's files, and in its .nox/env the environment of the tests."""
    if shutil.which("git") is None or os.name == "nt" or not (ROOT / ".git").exists():
        pytest.skip("needs git, a checkout and a POSIX shell")
    folder = tmp_path_factory.mktemp("fresh") / "clone"
    git("clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder))
    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True) if name else None
    python = folder / ".nox" / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    inputs = (folder / "pyproject.toml").read_bytes() + (folder / "constraints.txt").read_bytes()
    (python.parents[1] / "installed").write_text(hashlib.sha256(inputs + sys.version.encode()).hexdigest())
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Of a shell there; pip finds nothing, so an environment that nox makes anew is an error."""
    path = os.pathsep.join([str(folder / ".nox" / "env" / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "PIP_NO_INDEX": "1"}


def shell(command: str, folder: Path) -> str:
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {(done.stdout + done.stderr)[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("command", RUN)
def test_a_command_runs_in_a_fresh_clone(command: str, clone: Path) -> None:
    shell(command, clone)
    if "notebooks" in command:
        assert len(list((clone / "results" / "notebooks").glob("*.ipynb"))) == 5


def test_the_clone_is_what_runs(clone: Path) -> None:
    found = shell("python -c 'import bench, analysis, kernels; print(bench.__path__, kernels.__path__)'", clone)
    assert found.count(str(clone)) == 2


def test_a_sweep_of_ones_own_is_run_and_reported(clone: Path) -> None:
    (clone / "own.toml").write_text(TINY)
    said = shell("nox -s sweep -- own.toml", clone)
    assert "[1/1]" in said and (clone / "results" / "own" / "report.html").is_file()


@pytest.mark.parametrize("program", blocks("python"))
def test_a_program_runs_in_a_fresh_clone(program: str, clone: Path) -> None:
    """The cell that is trained is a smaller one."""
    smaller = program.replace("TrainCell(", SMALLER)
    assert program.count("TrainCell(") == 1 and "FinalModel" in program
    (clone / "program.py").write_text(f"{smaller}\nassert logits.shape == (words.numel(), logits.shape[1])\n")
    shell("python program.py", clone)
    assert (clone / "model.pt").is_file() and (clone / "model.pt.sha256").is_file()


@pytest.mark.parametrize("text", blocks("toml"))
def test_a_sweep_file_loads(text: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(text)
    sizes = [len(values) for values in tomllib.loads(text)["axes"].values()]
    assert len(load(tmp_path / "own.toml").cells) == sizes[0] * sizes[1]


def test_what_is_not_run_is_written_somewhere_and_something_is_run() -> None:
    assert [command for command in NOT_RUN if command not in commands()] == []
    assert len(RUN) >= 6 and all(NOT_RUN.values())
