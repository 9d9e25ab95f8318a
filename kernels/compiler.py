"""C++ compiled once at first use into a cache folder of the user, and loaded with ctypes.

A library's name is the hash of its source and headers, flags, compiler version and CPU model, so that a changed source, a new
compiler or a home folder shared between machines never finds a wrong one. It is compiled under a name of its own and
then renamed, so that two processes may compile at once.

The environment variable BENCH_KERNEL_FLAGS adds flags after ours, for all kernels of a process: sanitizers
('-fsanitize=address'), or another CPU ('-march=x86-64'). Its builds have names of their own in the cache.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HOW_TO_GET_ONE = "install g++ or clang++, set CXX, or pip install ziglang"
COMPILE_SECONDS = 300
FLAGS_VARIABLE = "BENCH_KERNEL_FLAGS"


class CompileError(Exception):
    """No compiler, or none that works; one line."""


@dataclass(frozen=True)
class Library:
    """A loaded library, the first line of its compiler's version, and the flags that BENCH_KERNEL_FLAGS added."""

    handle: ctypes.CDLL
    compiler: str
    added_flags: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Where compiled libraries are kept: a folder of the user's, or a temporary one where that cannot be written."""
    try:
        if sys.platform == "win32":
            home = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        else:
            home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = Path(home) / "block-sparse-bench"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # the latter where the user has no home
        return Path(tempfile.mkdtemp(prefix="block-sparse-bench-"))


def candidates() -> list[list[str]]:
    """Compiler commands that exist here, best first: $CXX, c++, g++, clang++, and the PyPI wheel ziglang."""
    named = shlex.split(os.environ.get("CXX", ""))
    commands = [command for command in (named, ["c++"], ["g++"], ["clang++"]) if command and shutil.which(command[0])]
    if importlib.util.find_spec("ziglang") is not None:
        commands.append([sys.executable, "-m", "ziglang", "c++"])
    return commands


def added_flags() -> tuple[str, ...]:
    """What BENCH_KERNEL_FLAGS holds, as a shell would split it; CompileError where it cannot be split."""
    text = os.environ.get(FLAGS_VARIABLE, "")
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise CompileError(f"{FLAGS_VARIABLE} is {text!r}: {error}") from error


def flags(command: list[str]) -> list[str]:
    """Optimise for the CPU at hand and link nothing beyond C; flags of the user's come last, and so win."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    march = "-march=native" if x86 and "ziglang" not in command else "-mcpu=native"
    wide = ["-mprefer-vector-width=512"] if x86 else []
    ours = ["-std=c++17", "-O3", march, *wide, "-fPIC", "-shared", "-fvisibility=hidden", *_zig_flags(command)]
    return [*ours, *added_flags()]


def _zig_flags(command: list[str]) -> list[str]:
    return ["-nostdlib++", "-fno-sanitize=undefined"] if "ziglang" in command else []


def cpu_model() -> str:
    """The CPU's name and features, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip() in wanted}))


def _run(command: list[str], folder: Path) -> str:
    """Standard output of `command`; CompileError with the first line that mentions an error."""
    environment = {
        "ZIG_GLOBAL_CACHE_DIR": str(folder / "zig"),
        "ZIG_LOCAL_CACHE_DIR": str(folder / "zig"),
        **os.environ,
    }
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_SECONDS, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"{Path(command[0]).name}: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise CompileError(next((line for line in lines if "error" in line), lines[0])[:200])
    return done.stdout


def source_text(source: Path, folders: tuple[Path, ...] = ()) -> str:
    """The source and, after it, the headers that it includes from its folder or `folders`, each once."""
    texts, waiting = {}, [source]
    while waiting:
        path = waiting.pop()
        if path in texts:
            continue
        texts[path] = path.read_text(encoding="utf-8")
        for name in re.findall(r'^#include "(.+)"', texts[path], re.MULTILINE):
            found = [folder / name for folder in (path.parent, *folders) if (folder / name).exists()]
            waiting += found[:1]  # none: what only another compiler includes
    return "\n".join(texts.values())


def _build(command: list[str], source: Path, defines: tuple[str, ...], options: tuple[str, ...]) -> Library:
    folder = cache_folder()
    version = _run([*command, "--version"], folder).splitlines()[0]
    arguments = [*flags(command), *(f"-D{define}" for define in defines), *options]
    folders = tuple(Path(option[2:]) for option in options if option.startswith("-I"))
    parts = [source_text(source, folders), *command, *arguments, version, platform.platform(), cpu_model()]
    name = f"{source.stem}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}"
    path = folder / (name + (".dll" if sys.platform == "win32" else ".so"))
    if path.exists():
        try:
            return Library(ctypes.CDLL(str(path)), version, added_flags())
        except OSError:
            path.unlink(missing_ok=True)  # damaged: compiled again below
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=folder) as temporary:
        fresh = Path(temporary) / path.name
        _run([*command, *arguments, str(source), "-o", str(fresh)], folder)
        fresh.replace(path)
    try:
        return Library(ctypes.CDLL(str(path)), version, added_flags())
    except OSError as error:
        raise CompileError(f"the compiled library does not load: {error}") from error


def compile_library(source: Path, defines: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> Library:
    """`source` compiled by the first compiler that manages, and loaded; CompileError, one line, where none does.

    defines: 'NAME=VALUE' macros. options: compiler options that win over ours; headers are looked for in their '-IFOLDER'.
    Tried once per process, with or without success.
    """
    result = _compile_once(source, defines, options)
    if isinstance(result, str):
        raise CompileError(result)
    return result


@functools.cache
def _compile_once(source: Path, defines: tuple[str, ...], options: tuple[str, ...]) -> Library | str:
    """A library, or why there is none."""
    commands = candidates()
    if not commands:
        return f"no C++ compiler found; {HOW_TO_GET_ONE}"
    failures = []
    for command in commands:
        try:
            return _build(command, source, defines, options)
        except (CompileError, OSError) as error:
            failures.append(f"{' '.join([Path(command[0]).name, *command[1:]])}: {error}")
    added = os.environ.get(FLAGS_VARIABLE)
    remedy = f"{FLAGS_VARIABLE} adds {added!r}" if added else HOW_TO_GET_ONE
    reason = f"no C++ compiler works here ({failures[0]}); {remedy}"
    return reason.replace("\n", " ").replace(f"{source.parent}{os.sep}", "")
