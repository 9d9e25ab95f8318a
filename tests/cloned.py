"""A fresh clone of this checkout, with what is not committed yet, and commands that run there as a new user's do.

A clone has no environment of its own: `python` there is the one that runs the tests, also for nox. Of the variables
around the tests it gets none that would lead git, Python, nox or the suite elsewhere; only where the data lie.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LED_BY = ("GIT_", "BENCH_", "PYTHON", "PYTEST_", "NOX")  # variables that would lead what a clone runs elsewhere


def needed() -> None:
    """Skip where nothing can be cloned."""
    if shutil.which("git") is None or os.name == "nt" or not (ROOT / ".git").exists():
        pytest.skip("needs git, a checkout and a POSIX shell")


def surroundings(**more: str) -> dict[str, str]:
    """The variables around the tests, without those that lead elsewhere."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(LED_BY) or name == "BENCH_DATA_DIR"
    }
    return kept | more


def git(*arguments: str, **more: str) -> str:
    command, given = ["git", *arguments], surroundings(**more)
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def clone_into(folder: Path) -> Path:
    """A clone with the working tree's files, and in its .nox/env the environment of the tests.

    The checkout may be somebody else's, which git must be told is no danger: in a file, for the git that reads what is
    cloned hears of nothing else.
    """
    settings = folder.with_name(f"{folder.name}.gitconfig")
    settings.write_text("[safe]\n\tdirectory = *\n")
    trusting = {"GIT_CONFIG_GLOBAL": str(settings)}
    git("clone", "--quiet", "--shared", str(ROOT), str(folder), **trusting)
    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard", **trusting).split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True) if name else None
    python = folder / ".nox" / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    asked = [sys.executable, "-c", "import noxfile; print(noxfile.digest_of_installed(noxfile.ROOT), end='')"]
    digest = subprocess.run(asked, cwd=folder, env=surroundings(), capture_output=True, text=True, check=True).stdout
    (python.parents[1] / "installed").write_text(digest)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Of a shell there; pip finds nothing, so an environment that nox makes anew is an error."""
    path = os.pathsep.join([str(folder / ".nox" / "env" / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return surroundings(PATH=path, PYTHONPATH=str(folder), PIP_NO_INDEX="1")


def shell(command: str, folder: Path) -> str:
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {(done.stdout + done.stderr)[-3000:]}"
    return done.stdout
