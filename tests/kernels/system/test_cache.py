"""Caches that are not believed: what lies in the place of a kept file is taken up only if it is whole and the user's own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, closing
from pathlib import Path

import pytest

from kernels.system import cache, compiler, folders
from kernels.system.cache import DoubtError, cache_folder, checksum_of, publish, read, read_sealed, say, sealed
from kernels.system.compiler import CompileError, candidates, compile_library
from kernels.system.resources import ResourceError, is_lack

TINY = 'extern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }\n'
PLANTED = """#include <stdio.h>
extern "C" __attribute__((visibility("default"))) int answer() { return 13; }
__attribute__((constructor)) static void ran() { fclose(fopen(MARKER, "w")); }
"""
COPIER = """#!/bin/sh
[ "$1" = --version ] && { echo 'copier 1.0'; exit 0; }
while [ "$1" != -o ]; do shift; done
echo x >> '%s'
cp '%s' "$2"
"""
POSIX = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
AS_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
needs_compiler = pytest.mark.skipif(not candidates(), reason="no C++ compiler here")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache home of this test's own."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("XDG_CACHE_HOME", "WIN_PD_OVERRIDE_LOCAL_APPDATA"):
        monkeypatch.setenv(name, str(folder))
    compiler._compile_once.cache_clear()
    say.cache_clear()
    yield folder
    compiler._compile_once.cache_clear()


def script(path: Path, text: str) -> list[str]:
    """A command of that shell script."""
    path.write_text(text)
    path.chmod(0o755)
    return [str(path)]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Compiled once: the right library, another one, and one that leaves a mark where it is loaded."""
    folder = tmp_path_factory.mktemp("libraries")
    sources = {
        "right": (TINY, "-DANSWER=42"),
        "other": (TINY.replace("answer()", "question()"), "-DANSWER=13"),
        "planted": (PLANTED, f'-DMARKER="{folder / "marker"}"'),
    }
    for name, (text, define) in sources.items():
        (folder / f"{name}.cpp").write_text(text)
        command = [*candidates()[0], "-fPIC", "-shared", define, str(folder / f"{name}.cpp")]
        subprocess.run([*command, "-o", str(folder / f"{name}.so")], check=True)
    return {name: folder / f"{name}.so" for name in sources} | {"marker": folder / "marker"}


class Kept:
    """A library that was compiled and kept, by a compiler that copies the right one and counts."""

    def __init__(self, folder: Path, right: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.source = folder / "count", folder / "tiny.cpp"
        self.source.write_text(TINY)
        command = script(folder / "copier", COPIER % (self.count, right))
        monkeypatch.setattr(compiler, "candidates", lambda: [command])
        self.load()
        (self.path,) = cache_folder().glob("tiny-*.so")

    def load(self) -> int:
        """What it answers when it is asked for as by a new process."""
        compiler._compile_once.cache_clear()
        answer: int = compile_library(self.source).handle.answer()
        return answer

    @property
    def compiled(self) -> int:
        return len(self.count.read_text().splitlines())

    def replace(self, data: bytes, path: Path | None = None) -> None:
        """Other bytes in the place of a file that may be loaded here."""
        path = path or self.path
        path.unlink()
        path.write_bytes(data)
        path.chmod(0o600)


@pytest.fixture
def kept(tmp_path: Path, libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Kept:
    return Kept(tmp_path, libraries["right"], monkeypatch)


@needs_compiler
def test_no_truncated_and_no_altered_library_is_loaded(kept: Kept) -> None:
    data, checksum = kept.path.read_bytes(), checksum_of(kept.path)
    assert (kept.load(), kept.compiled) == (42, 1), "a whole one is loaded as it is"
    places = sorted({0, 1, 63, 64, len(data) - 1, *range(0, len(data), len(data) // 16)})
    damaged = [data[:place] for place in places]
    damaged += [data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :] for place in places]
    for times, content in enumerate([*damaged, data + b"\0"], 2):
        kept.replace(content)
        assert (kept.load(), kept.compiled) == (42, times)
        assert kept.path.read_bytes() == data and kept.load() == 42 and kept.compiled == times
    whole = checksum.read_bytes()
    for content in (b"", whole[:-1], whole[:40], whole.upper(), b"\xff" + whole[1:], whole.replace(b"tiny", b"tidy")):
        kept.replace(content, checksum)
        times += 1
        assert (kept.load(), kept.compiled) == (42, times) and checksum.read_bytes() == whole


def a_pipe(path: Path, _: dict[str, Path]) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path, _: dict[str, Path]) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere")))


def a_link_to_itself(path: Path, _: dict[str, Path]) -> None:
    path.unlink()
    path.symlink_to(path)


def a_link_to_nothing(path: Path, _: dict[str, Path]) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def a_folder(path: Path, _: dict[str, Path]) -> None:
    path.unlink()
    (path / "with something" / "in it").mkdir(parents=True)


def a_socket(path: Path, _: dict[str, Path]) -> None:
    path.unlink()
    with chdir(path.parent), closing(socket.socket(socket.AF_UNIX)) as it:  # whole paths may be too long for it
        it.bind(path.name)


def writable_by_others(path: Path, _: dict[str, Path]) -> None:
    path.chmod(0o666)


def another_users(path: Path, _: dict[str, Path]) -> None:
    os.chown(path, 1234, 1234)


def missing(path: Path, _: dict[str, Path]) -> None:
    path.unlink()


NO_FILES = (a_pipe, a_link, a_link_to_itself, a_link_to_nothing, a_folder, a_socket)


@POSIX
@needs_compiler
@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", ["", ".sha256"])
@pytest.mark.parametrize("what", [*NO_FILES, writable_by_others, pytest.param(another_users, marks=AS_ROOT), missing])
def test_what_is_no_file_of_the_users_own_is_made_anew(
    what: Callable[[Path, dict[str, Path]], None], suffix: str, kept: Kept, libraries: dict[str, Path], capfd
) -> None:
    path = kept.path.with_name(kept.path.name + suffix)
    what(path, libraries)
    assert (kept.load(), kept.compiled) == (42, 2)
    assert stat.S_ISREG(path.lstat().st_mode) and path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o077
    assert (kept.load(), kept.compiled) == (42, 2)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == (what is not missing) and all("compiled anew" in line for line in lines)


@POSIX
@needs_compiler
@pytest.mark.parametrize("what", [a_pipe, a_link_to_nothing, missing])
def test_what_is_no_folder_is_not_where_zig_is_told_to_compile(
    what: Callable[[Path, dict[str, Path]], None], kept: Kept, libraries: dict[str, Path]
) -> None:
    zig = kept.path.with_name("zig")
    zig.write_text("")
    what(zig, libraries)
    kept.path.unlink()
    assert (kept.load(), kept.compiled) == (42, 2) and not os.path.lexists(zig)


@POSIX
@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", NO_FILES)
def test_whatever_lies_in_the_place_of_a_file_makes_way_for_it(
    what: Callable[[Path, dict[str, Path]], None], tmp_path: Path
) -> None:
    publish(path := tmp_path / "kept", b"before")
    what(path, {})
    for data in (b"after", b"again"):
        publish(path, data)
        assert read(path) == data
    assert len(list(tmp_path.glob(".aside-*"))) == 1, "what is no file of ours is not thrown away"


@needs_compiler
def test_another_library_in_its_place_is_compiled_over_whatever_lies_beside_it(
    kept: Kept, libraries: dict[str, Path]
) -> None:
    other = libraries["other"].read_bytes()
    kept.replace(other)
    assert (kept.load(), kept.compiled) == (42, 2)
    shutil.copy(libraries["other"], fresh := kept.path.with_name("fresh"))
    cache.keep(fresh, elsewhere := kept.path.with_name("tiny-other.so"))
    elsewhere.replace(kept.path)  # with its own checksum, which names it
    checksum_of(elsewhere).replace(checksum_of(kept.path))
    assert (kept.load(), kept.compiled) == (42, 3)


@POSIX
@AS_ROOT
@needs_compiler
def test_planted_code_never_runs(
    home: Path, kept: Kept, libraries: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Of another user, in a folder that anybody may write to, with a right checksum."""
    folder = kept.path.parent
    shutil.copy(libraries["planted"], fresh := folder / "fresh")
    cache.keep(fresh, kept.path)
    (folder / "zig").mkdir()
    for path in (kept.path, checksum_of(kept.path), folder / "zig"):
        os.chown(path, 1234, 1234)
    folder.chmod(0o777)
    assert (kept.load(), kept.compiled) == (42, 2) and not libraries["marker"].exists()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "could be written by others" in lines[0]
    assert not (folder / "zig").exists(), "what ziglang would take objects from"
    os.chown(folder, 1234, 1234)
    assert kept.load() == 42 and not libraries["marker"].exists() and cache_folder() != folder
    assert "belongs to another user" in capfd.readouterr().err


@POSIX
@pytest.mark.parametrize("what", ["a file", "a dangling link", "anybody may rename it", "read-only"])
def test_a_folder_that_cannot_be_ones_own_is_not_used(
    what: str, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = home / cache.NAME
    if what == "a file":
        folder.write_text("")
    elif what == "a dangling link":
        folder.symlink_to(home / "nowhere")
    elif what == "anybody may rename it":
        home.chmod(0o777)
    else:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(30, "Read-only file system", str(folder))

        monkeypatch.setattr(cache.tempfile, "TemporaryFile", refuse)
    found = cache_folder()
    assert found == cache_folder() != folder and stat.S_IMODE(found.stat().st_mode) == 0o700
    (line,) = capfd.readouterr().err.splitlines()
    assert "not kept" in line and "XDG_CACHE_HOME" in line


@POSIX
def test_a_folder_of_ones_own_is_shut_and_may_be_elsewhere(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (home / "big").mkdir(mode=0o755)
    (home / cache.NAME).symlink_to(home / "big")
    assert cache_folder() == home / cache.NAME and stat.S_IMODE((home / "big").stat().st_mode) == 0o700
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("raises", [True, False])
def test_without_a_home_there_is_a_folder(raises: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of platformdirs some versions raise then, others give a path that begins with ~."""

    def homeless(_: str) -> Path:
        if raises:
            raise RuntimeError("Could not determine home directory.")
        return Path("~/.cache/block-sparse-bench")

    monkeypatch.setattr(folders.platformdirs, "user_cache_path", homeless)
    monkeypatch.chdir(tmp_path)
    assert cache_folder().is_dir() and not Path("~").exists()


def test_the_temporary_folder_goes_with_its_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    script = "from kernels.system.cache import cache_folder; print(cache_folder().is_dir())"
    root = Path(cache.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True)
    assert done.stdout == "True\n" and {path.name for path in tmp_path.iterdir()} == {"home", "file"}


# What a compiler says of its failure, and whether that is a lack.
TODAY = (
    "cc1plus: fatal error: error writing to /tmp/cc.s: No space left on device",
    "/usr/bin/ld: final link failed: No space left on device",
    "g++: fatal error: Killed signal terminated program cc1plus",
    "cc1plus: out of memory allocating 65536 bytes after a total of 1024 bytes",
    "virtual memory exhausted: Cannot allocate memory",
    "collect2: fatal error: ld terminated with signal 7 [Bus error], core dumped",
    "LLVM ERROR: out of memory",
    "error: unable to create temporary file: Permission denied",
    "error: unable to open output file 'x.so': 'Read-only file system'",
    "c++: fatal error: cannot fork: Resource temporarily unavailable",
    "error: unable to build: NoSpaceLeft",
    "x.cpp:1: error: cannot write: Disk quota exceeded",
)
FOR_GOOD = (
    "g++: error: unrecognized command-line option '-mprefer-vector-width=512'",
    "g++: fatal error: cannot execute 'cc1plus': execvp: No such file or directory",
    "internal compiler error: Segmentation fault",
    "error: out of paper",
    "error: unknown target CPU 'native'",
)


def failing(folder: Path, ending: str) -> list[list[str]]:
    """A compiler that ends so, and one after it that must not be asked where the first lacks something."""
    version = '#!/bin/sh\n[ "$1" = --version ] && { echo compiler 1.0; exit 0; }\n'
    second = script(folder / "second", f"{version}echo asked > '{folder / 'asked'}'\nexit 1\n")
    return [script(folder / "first", f"{version}{ending}\n"), second]


@POSIX
@pytest.mark.parametrize(
    "ending", [*(f'echo "{said}" >&2; exit 1' for said in TODAY), "kill -9 $$", "kill -XFSZ $$", "exit 137"]
)
def test_a_lack_is_no_answer(ending: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = failing(tmp_path, ending)
    monkeypatch.setattr(compiler, "candidates", lambda: commands)
    (tmp_path / "tiny.cpp").write_text(TINY)
    for _ in range(2):  # the second time it is asked again
        with pytest.raises(ResourceError, match="cannot be compiled today: first: ") as raised:
            compile_library(tmp_path / "tiny.cpp")
        assert "\n" not in str(raised.value) and not (tmp_path / "asked").exists()
    said = ending.split('"')[1] if '"' in ending else "killed by SIG"
    assert said in str(raised.value)


@POSIX
@pytest.mark.parametrize("said", FOR_GOOD)
def test_a_compiler_that_does_not_work_is_an_answer(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = failing(tmp_path, f'echo "{said}" >&2; exit 1')
    monkeypatch.setattr(compiler, "candidates", lambda: commands)
    (tmp_path / "tiny.cpp").write_text(TINY)
    with pytest.raises(CompileError) as raised:
        compile_library(tmp_path / "tiny.cpp")
    assert said in str(raised.value) and (tmp_path / "asked").exists() and not is_lack(said)


@POSIX
@pytest.mark.timeout(30)
def test_a_compiler_that_hangs_is_stopped_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = failing(tmp_path, "sleep 100 &\nwait")
    monkeypatch.setattr(compiler, "candidates", lambda: commands)
    monkeypatch.setattr(compiler, "COMPILE_SECONDS", 0.2)
    (tmp_path / "tiny.cpp").write_text(TINY)
    with pytest.raises(ResourceError, match=r"first took more than 0.2 s"):
        compile_library(tmp_path / "tiny.cpp")


LIMITED = """
import resource, sys
from pathlib import Path
from kernels.system.compiler import compile_library
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    compile_library(Path(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, error)
"""


@POSIX
@needs_compiler
@pytest.mark.parametrize("size", [0, 100, 4096])
def test_where_nothing_can_be_written_that_is_said(size: int, home: Path, tmp_path: Path) -> None:
    """A real compiler that may write no more than `size` bytes a file, as on a full disk."""
    (tmp_path / "tiny.cpp").write_text(TINY.replace("ANSWER", "42"))
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "tiny.cpp"), str(size)]
    done = subprocess.run(
        command, cwd=Path(cache.__file__).parents[1], env=os.environ.copy(), capture_output=True, text=True
    )
    assert done.stdout.startswith("ResourceError kernels cannot be compiled today: "), done.stdout + done.stderr
    assert not [path for path in (home / cache.NAME).iterdir() if path.suffix in (".so", ".sha256")]


@needs_compiler
def test_a_full_disk_is_the_reason_whatever_the_compiler_says(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    missing(kept.path, {})
    monkeypatch.setattr(compiler, "ROOM", 2**63)
    monkeypatch.setattr(compiler, "candidates", lambda: failing(kept.source.parent, "echo nonsense >&2; exit 1"))
    with pytest.raises(ResourceError, match="No space left on device"):
        kept.load()


def test_a_kept_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept"
    publish(path, b"before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        publish(path, b"after")
    assert read(path) == b"before" and {each.name for each in tmp_path.iterdir()} == {"home", "kept"}


def test_every_altered_bit_of_sealed_json_is_seen(tmp_path: Path) -> None:
    path, content = tmp_path / "sealed.json", {"entries": {"a": [1, 0.5, None, True, "µ"]}, "more": {}}
    data = json.dumps(sealed(content), indent=1).encode()
    for place in range(8 * len(data)):
        altered = bytearray(data)
        altered[place // 8] ^= 1 << place % 8
        path.write_bytes(altered)
        try:
            assert read_sealed(path, own=False) == content, "what is read says what was sealed"
        except DoubtError:
            continue
    for place in range(len(data)):
        path.write_bytes(data[:place])
        with pytest.raises(DoubtError, match=f"^{path} "):
            read_sealed(path, own=False)
    path.write_text(json.dumps(sealed(content)))
    assert read_sealed(path, own=False) == content, "however it is laid out"


@pytest.mark.parametrize("depth", [20, 300, 700, 900, *range(950, 1000, 5), 2000, 100_000])
def test_json_however_deep_is_damaged(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "sealed.json"
    for text in ('{"sha256": "0", "a": ' + "[" * depth + "]" * depth + "}", '{"sha256": ' * depth + "0" + "}" * depth):
        path.write_text(text)
        with pytest.raises(DoubtError, match="is damaged"):
            read_sealed(path, own=False)
