"""Compiling at first use: the search, the cache, and what is said where there is no compiler."""

import errno
import importlib.util
import multiprocessing
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest
import torch

from kernels.backends.native import BACKEND
from kernels.native import library as native_library
from kernels.native.library import FOLDER
from kernels.problem import GemmProblem
from kernels.system import compiler
from kernels.system.compiler import CompileError, Library, added_flags, candidates, compile_library

TINY = 'extern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }\n'
PROBLEM = GemmProblem(16, 16, 2, 4, 0.5)
needs_compiler = pytest.mark.skipif(not candidates(), reason="no C++ compiler here")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty cache folder and no memory of earlier compilations, before and after."""
    monkeypatch.setattr(compiler, "cache_folder", lambda: tmp_path)
    compiler._compile_once.cache_clear()
    yield tmp_path
    compiler._compile_once.cache_clear()


def hide_compilers(monkeypatch: pytest.MonkeyPatch, *, zig: bool) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    if zig:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ziglang" else find(name))


def libraries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".so", ".dll"))


def test_without_a_compiler_the_reason_says_how_to_get_one(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_compilers(monkeypatch, zig=True)
    reason = BACKEND.unsupported(PROBLEM)
    assert reason is not None and "no C++ compiler" in reason and "pip install ziglang" in reason and "\n" not in reason


def test_a_broken_compiler_is_a_reason(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'error: out of paper' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    hide_compilers(monkeypatch, zig=True)
    monkeypatch.setattr(compiler, "candidates", lambda: [[str(broken)]])
    reason = BACKEND.unsupported(PROBLEM)
    assert reason is not None and "out of paper" in reason and "\n" not in reason and str(tmp_path) not in reason


def test_cxx_comes_first_and_may_hold_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{sys.executable} -m something")
    assert candidates()[0] == [sys.executable, "-m", "something"]


@needs_compiler
def test_compiled_once_and_found_again(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "tiny.cpp"
    source.write_text(TINY)
    assert compile_library(source, ("ANSWER=41",)).handle.answer() == 41
    assert compile_library(source, ("ANSWER=42",)).handle.answer() == 42
    assert len(libraries(fresh)) == 2
    compiler._compile_once.cache_clear()
    before = {name: (fresh / name).stat().st_mtime_ns for name in libraries(fresh)}
    assert compile_library(source, ("ANSWER=42",)).handle.answer() == 42
    assert before == {name: (fresh / name).stat().st_mtime_ns for name in libraries(fresh)}
    assert [path for path in fresh.iterdir() if path.name.startswith(".compiling")] == []


ASKED = """
import sys
from pathlib import Path
from kernels.system.compiler import compile_library
print(compile_library(Path(sys.argv[1]), ("ANSWER=42",)).handle.answer())
"""


@pytest.fixture
def asking(tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    """Starts a process that wants a library of a compiler that takes a second, and writes a line each time."""
    (tmp_path / "tiny.cpp").write_text(TINY)
    slow = tmp_path / "slow"
    first = shlex.join(candidates()[0])
    slow.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || {{ echo >> {tmp_path / "count"}; sleep 1; }}\nexec {first} "$@"\n'
    )
    slow.chmod(0o700)
    environment = {**os.environ, "CXX": str(slow), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", ASKED, str(tmp_path / "tiny.cpp")]
    return lambda: subprocess.Popen(
        command, env=environment, cwd=FOLDER.parents[2], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@needs_compiler
@pytest.mark.skipif(os.name != "posix", reason="a compiler that is a shell script")
def test_of_several_processes_one_compiles(asking: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    processes = [asking() for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["42\n"] * 4
    assert len((tmp_path / "count").read_text()) == 1
    assert not list(tmp_path.glob("*/.tiny*"))


@needs_compiler
@pytest.mark.skipif(os.name != "posix", reason="a compiler that is a shell script")
def test_nobody_waits_for_a_process_that_was_killed(
    asking: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = asking()
    while not (tmp_path / "count").exists():
        time.sleep(0.01)
    second = asking()
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert second.communicate(timeout=60)[0] == "42\n"
    assert len((tmp_path / "count").read_text()) == 2


@needs_compiler
def test_where_a_folder_cannot_be_locked_nobody_waits(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", refused)
    (tmp_path / "tiny.cpp").write_text(TINY)
    assert compile_library(tmp_path / "tiny.cpp", ("ANSWER=43",)).handle.answer() == 43


@needs_compiler
def test_a_changed_header_is_compiled_again(fresh: Path, tmp_path: Path) -> None:
    source, header = tmp_path / "tiny.cpp", tmp_path / "tiny.h"
    source.write_text('#include "tiny.h"\n')
    for answer in (3, 4):
        header.write_text(TINY.replace("ANSWER", str(answer)))
        assert compile_library(source).handle.answer() == answer
        compiler._compile_once.cache_clear()
    assert len(libraries(fresh)) == 2


@needs_compiler
def test_options_win_and_headers_of_other_folders_count(fresh: Path, tmp_path: Path) -> None:
    source, folder = tmp_path / "tiny.cu", tmp_path / "headers"
    source.write_text('#ifdef OTHER\n#include "missing.h"\n#endif\n#include "tiny.h"\n')
    folder.mkdir()
    for answer in (5, 6):
        (folder / "tiny.h").write_text(TINY.replace("ANSWER", f"ANSWER + {answer}"))
        options = (f"-I{folder}", "-UANSWER", "-DANSWER=10", "-x", "c++")
        assert compile_library(source, ("ANSWER=1",), options).handle.answer() == 10 + answer
        compiler._compile_once.cache_clear()
    assert len(libraries(fresh)) == 2


@needs_compiler
def test_a_damaged_library_is_compiled_again(fresh: Path, tmp_path: Path) -> None:
    source = tmp_path / "tiny.cpp"
    source.write_text(TINY)
    compile_library(source, ("ANSWER=40",))
    path = fresh / libraries(fresh)[0]
    path.unlink()
    path.write_bytes(b"not a library")
    compiler._compile_once.cache_clear()
    assert compile_library(source, ("ANSWER=40",)).handle.answer() == 40


@needs_compiler
def test_bad_source_is_one_line(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = candidates()[:1]
    monkeypatch.setattr(compiler, "candidates", lambda: first)
    source = tmp_path / "bad.cpp"
    source.write_text("int f( {\n")
    with pytest.raises(CompileError) as caught:
        compile_library(source)
    assert "bad.cpp" in str(caught.value) and "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


@needs_compiler
def test_added_flags_win_and_have_a_build_of_their_own(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "tiny.cpp"
    source.write_text(TINY)
    assert compile_library(source, ("ANSWER=1",)).added_flags == added_flags()
    before = len(libraries(fresh))
    compiler._compile_once.cache_clear()
    monkeypatch.setenv("BENCH_KERNEL_FLAGS", "-UANSWER '-DANSWER=1 + 1'")
    library = compile_library(source)
    assert library.handle.answer() == 2 and library.added_flags == ("-UANSWER", "-DANSWER=1 + 1")
    assert len(libraries(fresh)) == before + 1


@needs_compiler
@pytest.mark.parametrize("flags", ["-fno-such-flag", "'unbalanced"])
def test_bad_added_flags_are_one_line_that_names_them(
    fresh: Path, flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = candidates()[:1]
    monkeypatch.setattr(compiler, "candidates", lambda: first)
    source = tmp_path / "tiny.cpp"
    source.write_text(TINY)
    monkeypatch.setenv("BENCH_KERNEL_FLAGS", flags)
    with pytest.raises(CompileError) as caught:
        compile_library(source, ("ANSWER=1",))
    assert "BENCH_KERNEL_FLAGS" in str(caught.value) and flags in str(caught.value) and "\n" not in str(caught.value)


@needs_compiler
def test_the_kernels_name_says_which_flags_were_added() -> None:
    compiled = native_library.library("dsd", torch.float32)
    name = native_library.describe(Library(compiled.handle, "g++ (Debian) 12.2.0", ("-march=x86-64", "-g1")), 1)
    assert "g++ 12.2.0 -march=x86-64 -g1, 1 thread" in name


def _answer(folder: str, source: str) -> int:
    compiler.cache_folder = lambda: Path(folder)  # in a process of its own
    value: int = compile_library(Path(source), ("ANSWER=7",)).handle.answer()
    return value


@needs_compiler
def test_two_processes_may_compile_at_once(tmp_path: Path) -> None:
    source = tmp_path / "tiny.cpp"
    source.write_text(TINY)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.starmap(_answer, [(str(tmp_path), str(source))] * 3) == [7, 7, 7]
    assert len(libraries(tmp_path)) == 1


def test_unwritable_home_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setenv("WIN_PD_OVERRIDE_LOCAL_APPDATA", str(blocked))
    assert compiler.cache_folder().is_dir()


@pytest.mark.builds
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="the ziglang wheel is not installed")
def test_the_ziglang_wheel_is_enough(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_compilers(monkeypatch, zig=False)
    library = compile_library(FOLDER / "dsd.cpp", ("ELEMENT=float",))
    assert library.handle.lying(16, 1, 0) == 1
    assert [path for path in fresh.iterdir() if path.name == "zig"]
