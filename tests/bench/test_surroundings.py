"""What is around a run: readers that leave, encodings, homes, other repositories, files of editors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rows import trained

from bench.cells import TrainCell
from bench.commands.campaign import run_tuner
from bench.data.datasets import load_corpus
from bench.measuring import machine
from bench.measuring.machine import revision, source_hash
from bench.run import make_plan, run_sweep
from bench.store import Store
from bench.storing.tables import Tables
from bench.sweep import load
from bench.train import train_cell
from bench.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
START = Path(__file__).parent / "start_main.py"

READERS = {
    "leaves after a line": "{} | head -1; exit ${{PIPESTATUS[0]}}",
    "full disk": "{} >/dev/full 2>/dev/full",
    "closed": "{} >&- 2>&- <&-",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.kills
def test_a_run_goes_on_without_its_reader_and_ends_with_its_own_status(tmp_path: Path, reader: str) -> None:
    """Three cells, of which one fails: status 1, whoever listens."""
    (tmp_path / "some.toml").write_text('kind = "gemm"\n[axes]\nseed = [0, 1, 20]\n')
    command = READERS[reader].format(f"'{sys.executable}' '{START}' run some.toml")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, timeout=100)
    assert done.returncode == 1 and done.stderr == b"", done.stderr.decode()
    sweep = load(tmp_path / "some.toml")
    stored = Store(tmp_path / "results" / "some").finished()
    assert [stored[cell.cell_id].status for cell in sweep.cells] == ["ok", "failed", "ok"]
    Store(tmp_path / "results" / "some").read("gemm")


ENCODINGS = """
import io, os, sys
from bench.__main__ import app
from bench.engines.output import outlive_readers
for encoding in ("ascii", "cp1252", "utf-8"):
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, io.TextIOWrapper(os.fdopen(os.dup(number), "wb"), encoding=encoding, errors="strict"))
    outlive_readers()
    for arguments in (
        ["list"],
        ["plan", "odd.toml"],
        ["show", "odd.toml"],
        ["columns"],
        ["run", "ρ×−.toml"],
        ["run", "--help"],
    ):
        try:
            app(arguments)
        except SystemExit as ended:
            print("@@", ended.code)
    print("−×…ρ é → \\udcff 中 @@")
    sys.stdout.flush()
"""


def test_every_encoding_takes_what_is_printed(tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_text('description = "ρ → 1, 2×"\nkind = "gemm"\n[base]\nm = 64\n', encoding="utf-8")
    done = _python(ENCODINGS, tmp_path)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    lines = [line for line in done.stdout.splitlines() if b"@@" in line]
    assert lines[:6] == [b"@@ 0"] * 4 + [b"@@ 2", b"@@ 0"]
    assert lines[6::7] == [
        b"-x...rho e -> ? ? @@",
        "-×…rho é -> ? ? @@".encode("cp1252"),
        "−×…ρ é → ? 中 @@".encode(),
    ]
    from bench.schema import documentation

    assert (tmp_path / "results" / "README.md").read_text(encoding="utf-8") == documentation()


def _python(code: str, folder: Path, **more: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, timeout=100)


NOBODY = """
import os, pwd
def nobody(*_):
    raise KeyError("no such user")
pwd.getpwuid = pwd.getpwnam = nobody
for name in ("HOME", "USER", "LOGNAME", "USERNAME", "LNAME", "XDG_CACHE_HOME", "BENCH_DATA_DIR"):
    os.environ.pop(name, None)
"""


def test_a_user_without_a_name_and_a_home_can_measure(tmp_path: Path) -> None:
    """As in a container."""
    code = f"""{NOBODY}
import tempfile
from pathlib import Path
from bench.data.corpus import data_dir
from bench.cells import GemmCell, TrainCell
from bench.engines.local import measure
from bench import timing
from kernels.system.compiler import cache_folder
timing.MIN_SECONDS, timing.ATTEMPTS = 0.05, 1
assert "~" not in str(data_dir()) and data_dir().is_relative_to(tempfile.gettempdir()), data_dir()
assert cache_folder().is_dir()
cells = [
    GemmCell(backend="torch_bsr", m=32, k=32, n=4, block_size=8),
    TrainCell(train_tokens=2000, eval_tokens=1000, embedding_size=16, hidden_size=16, num_layers=1, epochs=1),
]
for cell in cells:
    rows = measure(cell, lambda _: None)
    assert rows[-1]["status"] == "ok", rows[-1]
os.environ["BENCH_DATA_DIR"] = "~/data"
from bench.commands.doctor import _datasets
print(dict(_datasets()))
"""
    done = _python(code, tmp_path, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr.decode()
    assert b"BENCH_DATA_DIR: ~/data: no such home folder; accepted: a path without ~" in done.stdout
    assert not list(tmp_path.glob("~*"))


def test_what_is_no_source_does_not_change_or_stop_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "a.py").write_text("1")
    before = source_hash.__wrapped__()
    (folder / ".#a.py").symlink_to("somebody@elsewhere.123:456")  # the lock of an editor
    (folder / "gone.py").symlink_to("nowhere.py")
    (folder / "loop.py").symlink_to("loop.py")
    (folder / "folder.py").mkdir()
    (folder / "._a.py").write_bytes(b"\0\5\26\7")
    os.mkfifo(folder / "pipe.py")
    assert source_hash.__wrapped__() == before
    (folder / os.fsdecode(b"\xff.py")).write_text("2")
    assert source_hash.__wrapped__() != before


def test_a_source_that_cannot_be_read_is_said_and_one_that_vanishes_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.py").write_text("1")
    alone = source_hash.__wrapped__()
    (tmp_path / "kernels" / "b.py").write_text("2")
    both = source_hash.__wrapped__()
    read = Path.read_bytes
    found = []
    for error in (PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file or directory")):

        def refuse(path: Path, error: OSError = error) -> bytes:
            if path.name == "b.py":
                raise error
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", refuse)
        found.append(source_hash.__wrapped__())
    assert len({alone, both, found[0]}) == 3 and found[1] == alone


def _git(*arguments: str, folder: Path) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", *who, *arguments], cwd=folder, env=environment, capture_output=True, check=True)
    return done.stdout.decode().strip()


def test_the_commit_is_that_of_the_checkout_whatever_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = {}
    for name in ("ours", "other"):
        folder = tmp_path / name
        folder.mkdir()
        _git("init", "-q", folder=folder)
        (folder / "a").write_text(name)
        _git("add", "a", folder=folder)
        _git("commit", "-q", "-m", name, folder=folder)
        commits[name] = _git("rev-parse", "HEAD", folder=folder)
    ours, other = tmp_path / "ours", tmp_path / "other"
    monkeypatch.setattr(machine, "ROOT", ours)
    somebody = tmp_path / "bin"  # git's own way to try a folder of somebody else
    somebody.mkdir()
    (somebody / "git").write_text(f"#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec '{shutil.which('git')}' \"$@\"\n")
    (somebody / "git").chmod(0o755)
    surroundings: list[dict[str, Any]] = [
        {"GIT_DIR": other / ".git"},
        {"GIT_DIR": other / ".git", "GIT_WORK_TREE": ours},
        {"GIT_INDEX_FILE": other / ".git" / "index"},
        {"GIT_COMMON_DIR": other / ".git"},
        {"GIT_OBJECT_DIRECTORY": other / ".git" / "objects"},
        {"GIT_CEILING_DIRECTORIES": tmp_path},
        {"PATH": f"{somebody}{os.pathsep}{os.environ['PATH']}"},
        {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "status.showUntrackedFiles", "GIT_CONFIG_VALUE_0": "no"},
    ]
    for variables in surroundings:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, str(value))
            assert revision() == (commits["ours"], False), variables
    (ours / "b").write_text("new")
    assert revision() == (commits["ours"], True)
    (ours / ".git" / "index").write_bytes(b"broken")  # git cannot tell any more whether something changed
    assert revision() == (commits["ours"], None)


def test_paths_may_be_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everywhere that a function of ours takes a folder or a file."""
    monkeypatch.setattr("bench.engines.driver.facts", lambda _: {})
    (tmp_path / "some.toml").write_text('kind = "train"\n[axes]\nseed = [0, 20]\n')
    sweep, results, out = load(str(tmp_path / "some.toml")), str(tmp_path / "results"), str(tmp_path / "out")
    store = Store(f"{results}/some")
    store.cells.mkdir(parents=True)
    for cell in sweep.cells:
        store.put(cell, trained(), {"cell_seconds": 1.0, "started_at": "2026-01-01"})
        machine = {"cell_seconds": 1.0, "started_at": "2026-01-01"}
        Tables(f"{out}/some", []).put(cell, trained(), machine)
        Tables(f"{out}/some", sweep.cells).load(f"{out}/some")
    assert run_sweep(sweep, results) == 0
    assert make_plan(sweep, results).todo == ()
    assert run_tuner([sweep], f"{out}/tuned.json", 1.0, "cpu") == 0
    assert Checkpoints(out).path("x") == Path(out) / "x.pt"
    assert load_corpus("pydoc", str(tmp_path)) is load_corpus("pydoc", tmp_path)
    with pytest.raises(ValueError, match="export"):
        train_cell(TrainCell(), lambda _: None, export=f"{tmp_path}/nowhere/model.pt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.kills
@pytest.mark.slow(15)
def test_a_full_disk_is_status_3_where_the_text_is_all_and_a_closed_pipe_is_silent(tmp_path: Path) -> None:
    """`run` makes tables: what it prints is the reader's loss alone."""
    (tmp_path / "some.toml").write_text('kind = "check"\n[base]\nbackend = "reference"\nblock_size = 64\n')
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begin = [sys.executable, "-m", "bench"]
    commands = [["list"], ["plan", "some.toml"], ["show", "some.toml"], ["doctor"], ["run", "some.toml"]]
    for command in commands:
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [*begin, *command], cwd=tmp_path, env=environment, stdout=full, stderr=subprocess.PIPE, text=True
            )
        wanted = (0, "") if command[0] == "run" else (3, "standard output: No space left on device\n")
        assert (done.returncode, done.stderr) == wanted, command
    for command in commands[:-1]:
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [*begin, *command], cwd=tmp_path, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, ""), command


@pytest.mark.parametrize("command", [("doctor",), ("run", "some.toml"), ("plan", "some.toml")])
def test_a_torch_that_cannot_be_imported_is_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "some.toml").write_text('kind = "gemm"\n[base]\nseed = 1\n')
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "raise ImportError('libtorch.so: cannot open\\nmore', name='torch')"
    )
    code = f"from bench.__main__ import app\napp({list(command)})"
    done = _python(code, tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    if command[0] == "plan":
        assert done.returncode == 0, "a plan needs no torch"
    else:
        assert done.stderr == b"torch cannot be imported here: libtorch.so: cannot open\n" and done.returncode == 3
