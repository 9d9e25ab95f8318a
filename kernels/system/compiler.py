"""C++ compiled once at first use into a cache folder of the user, and loaded with ctypes.

A library's name is the hash of its source and headers, flags, compiler version and CPU model, so that a changed source,
a new compiler or a home folder shared between machines never finds a wrong one. It is compiled under a name of its own
and then renamed; of several processes that want it one compiles, and the others wait. A kept one is loaded only if it
is whole (`kernels.system.cache`), which takes 0.2 ms a library.

What the machine lacks today (space, memory, permission, time) is a ResourceError, and asked again at the next call; it
is no property of its compilers, as a CompileError is.

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
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kernels.system.cache import cache_folder, found_or_made, is_kept, keep, set_aside
from kernels.system.programs import run
from kernels.system.resources import ResourceError, in_words, is_lack, shown
from kernels.system.temporary import temporary_folder

HOW_TO_GET_ONE = "install g++ or clang++, set CXX, or pip install ziglang"
COMPILE_SECONDS = 300
ROOM = 2**20  # bytes: on a disk with less, that is the reason of a failure, whatever the compiler says
KILLED = ("SIGKILL", "SIGTERM", "SIGBUS", "SIGXFSZ", "SIGXCPU")  # from outside; a compiler that crashes does not work
FLAGS_VARIABLE = "BENCH_KERNEL_FLAGS"


class CompileError(Exception):
    """No compiler, or none that works; one line."""


@dataclass(frozen=True)
class Library:
    """A loaded library, the first line of its compiler's version, and the flags that BENCH_KERNEL_FLAGS added."""

    handle: ctypes.CDLL
    compiler: str
    added_flags: tuple[str, ...] = ()


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
    """Standard output of `command`. CompileError with the first line that has an error, ResourceError for a lack."""
    zig = folder / "zig"
    if not zig.is_dir():  # but a file, which zig would fail over
        set_aside(zig)
    environment = {
        "ZIG_GLOBAL_CACHE_DIR": str(zig),
        "ZIG_LOCAL_CACHE_DIR": str(zig),
        **os.environ,
        "LC_ALL": "C",  # the words for a lack are known in English
    }
    program = Path(command[0]).name
    try:
        done = run(command, COMPILE_SECONDS, environment)
    except subprocess.TimeoutExpired:
        raise ResourceError(f"{program} took more than {COMPILE_SECONDS} s") from None
    except OSError as error:
        raise (ResourceError if is_lack(error) else CompileError)(f"{program}: {error}") from error
    if done.returncode:
        lines = [line.strip()[:200] for line in done.stderr.strip().splitlines()] or [_ended(done.returncode)]
        if lack := next(filter(is_lack, lines), None) or _killed(done.returncode) or full(folder):
            raise ResourceError(f"{program}: {lack} (compiled in {shown(folder)})")
        raise CompileError(next((line for line in lines if "error" in line), lines[0]))
    return done.stdout


def _ended(status: int) -> str:
    """How a program ended, or one that it ran, as shells tell it."""
    number = -status if status < 0 else status - 128
    return f"killed by {signal.Signals(number).name}" if number in set(signal.Signals) else f"exit status {status}"


def _killed(status: int) -> str | None:
    """What killed a program from outside, if anything did."""
    ended = _ended(status)
    return ended if ended.split()[-1] in KILLED else None


def full(folder: Path) -> str | None:
    """Which of the disks that a compiler writes to has no room, or None."""
    for each in (folder, Path(tempfile.gettempdir())):
        with suppress(OSError):
            if shutil.disk_usage(each).free < ROOM:
                return f"No space left on device: {shown(each)}"
    return None


def source_text(source: Path, folders: tuple[Path, ...] = ()) -> str:
    """The source and, after it, the headers that it includes from its folder or `folders`, each once."""
    texts, waiting = {}, [source]
    while waiting:
        path = waiting.pop()
        if path in texts:
            continue
        texts[path] = path.read_text(encoding="utf-8", errors="replace")
        for name in re.findall(r'^#include "(.+)"', texts[path], re.MULTILINE):
            found = [folder / name for folder in (path.parent, *folders) if (folder / name).exists()]
            waiting += found[:1]  # none: what only another compiler includes
    return "\n".join(texts.values())


def _build(command: list[str], source: Path, defines: tuple[str, ...], options: tuple[str, ...]) -> Library:
    folder = cache_folder()
    version = next(iter(_run([*command, "--version"], folder).splitlines()), "")
    arguments = [*flags(command), *(f"-D{define}" for define in defines), *options]
    folders = tuple(Path(option[2:]) for option in options if option.startswith("-I"))
    parts = [source_text(source, folders), *command, *arguments, version, platform.platform(), cpu_model()]
    name = f"{source.stem}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}"
    path = folder / (name + (".dll" if sys.platform == "win32" else ".so"))

    def loaded() -> Library | None:
        if is_kept(path):
            with suppress(OSError):  # whole, and yet it does not load: compiled again below
                return Library(ctypes.CDLL(str(path)), version, added_flags())
        return None

    def compiled() -> Library:
        with temporary_folder(".compiling-", folder) as temporary:
            fresh = temporary / path.name
            _run([*command, *arguments, str(source), "-o", str(fresh)], folder)
            keep(fresh, path)
        try:
            return Library(ctypes.CDLL(str(path)), version, added_flags())
        except OSError as error:
            lack = str(error) if is_lack(error) else full(folder)
            raise (ResourceError if lack else CompileError)(
                f"the compiled library does not load: {lack or error}"
            ) from error

    return found_or_made(path, COMPILE_SECONDS, loaded, compiled)


def compile_library(source: Path, defines: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> Library:
    """`source` compiled by the first compiler that manages, and loaded; CompileError, one line, where none does.

    defines: 'NAME=VALUE' macros. options: compiler options that win over ours; headers are looked for in their
    '-IFOLDER'. Tried once per process, with or without success. ResourceError where the machine lacks something today:
    no other compiler is tried then, whose library would be another, and the next call tries again.
    """
    library, reason = _compile_once(source, defines, options)
    if library is None:
        raise CompileError(reason)
    return library


@functools.cache
def _compile_once(source: Path, defines: tuple[str, ...], options: tuple[str, ...]) -> tuple[Library | None, str]:
    """(a library, '') or (None, why there is none)."""
    commands = candidates()
    if not commands:
        return None, f"no C++ compiler found; {HOW_TO_GET_ONE}"
    failures = []
    for command in commands:
        try:
            return _build(command, source, defines, options), ""
        except CompileError as error:
            failures.append(f"{' '.join([Path(command[0]).name, *command[1:]])}: {error}")
        except (OSError, ResourceError) as error:
            raise ResourceError(_short(f"kernels cannot be compiled today: {in_words(error)}", source)) from error
    added = os.environ.get(FLAGS_VARIABLE)
    remedy = f"{FLAGS_VARIABLE} adds {added!r}" if added else HOW_TO_GET_ONE
    return None, _short(f"no C++ compiler works here ({failures[0]}); {remedy}", source)


def _short(reason: str, source: Path) -> str:
    return reason.replace("\n", " ").replace(f"{source.parent}{os.sep}", "")
