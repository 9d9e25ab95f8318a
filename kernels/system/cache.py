"""The user's cache folder, and files there that are believed only if they are whole: what does not hold is made anew.

The folder is the user's own and shut to all others, for code is loaded from it. A file is taken up only if it is a
regular one of the user's, which nobody else can write, and has the sha256 that was kept with it: of a compiled file in
a file beside it, together with its name; of JSON inside it, under the key sha256. All reach the disk before they get
their name. What else lies in the place of a file (a folder, a pipe, a link) is given another name, and the file is made
anew.
"""

from __future__ import annotations

import atexit
import errno
import functools
import hashlib
import json
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import filelock

from kernels.system.folders import NAME, OTHERS_WRITE, PRIVATE, doubt, make_private, user_cache
from kernels.system.resources import in_words, shown
from kernels.system.temporary import temporary_folder

T = TypeVar("T")

SEAL = "sha256"
DEEPEST = 20  # levels of JSON: of what is kept here nothing has half as many
POSIX = os.name == "posix"
UNKNOWN = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})  # to a file system
# Neither a link nor a pipe nor a device is followed, or waited for.
AT_ONCE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class DoubtError(ValueError):
    """A kept file or folder that is not to be believed; one line that says why."""


@functools.cache
def say(line: str) -> None:
    """One line on standard error, once in a process."""
    print(line, file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Where compiled libraries are kept: a folder of the user's alone, else a temporary one, and a line says why.

    OSError where there is no room for that either.
    """
    try:
        folder = user_cache()
        _claim(folder)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError, DoubtError) as error:  # RuntimeError: there is no home
        say(
            f"compiled kernels are not kept: {in_words(error)}; "
            "mend that, or set XDG_CACHE_HOME to a folder of your own"
        )
        return _temporary_folder()


@functools.cache
def _temporary_folder() -> Path:
    """A folder of this process, gone with it."""
    stack, owner = ExitStack(), os.getpid()
    folder = stack.enter_context(temporary_folder(f"{NAME}-"))

    def remove() -> None:
        if os.getpid() == owner:  # not a fork
            stack.close()

    atexit.register(remove)
    return folder


def _claim(folder: Path) -> None:
    """Make `folder` where it is missing, and shut it to others. DoubtError where it is not ours, or not to be shut."""
    if POSIX and (why := doubt(folder)):  # before anything is left in a folder of another's
        raise DoubtError(why)
    make_private(folder)
    if not POSIX:
        return
    if folder.lstat().st_uid != os.geteuid() or (found := folder.stat()).st_uid != os.geteuid():
        raise DoubtError(f"{shown(folder)} belongs to another user")
    if not stat.S_ISDIR(found.st_mode):
        raise DoubtError(f"{shown(folder)} is no folder")
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(PRIVATE)
        if folder.stat().st_mode & OTHERS_WRITE:  # as on a file system without owners
            raise DoubtError(f"{shown(folder)} can be written by others")
        if found.st_mode & OTHERS_WRITE:
            for entry in list(folder.iterdir()):  # compilers keep whole folders there
                if entry.lstat().st_uid != os.geteuid():
                    set_aside(entry)
            say(
                f"{shown(folder)} could be written by others: "
                "its mode is 700 now, and what is not yours there is not used"
            )


def set_aside(path: Path) -> None:
    """Give what lies at `path` a name beside it that nothing looks for; another process may have done so."""
    with suppress(FileNotFoundError):
        path.rename(path.with_name(f".aside-{secrets.token_hex(4)}"))


def make_way(path: Path) -> None:
    """Set aside what lies at `path` and is no regular file: a folder, or a link, behind which it would be another."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            set_aside(path)


def read(path: Path, own: bool = True) -> bytes:
    """The bytes of a regular file, without following a link or waiting for a pipe.

    own: it must be the user's, and nobody else may write it. FileNotFoundError where there is none, DoubtError where
    what is there is something else.
    """
    try:
        with os.fdopen(os.open(path, AT_ONCE | (NO_LINK if own else 0)), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise DoubtError(f"{shown(path)} is no regular file")
            if own and POSIX and found.st_uid != os.geteuid():
                raise DoubtError(f"{shown(path)} belongs to another user")
            if own and POSIX and found.st_mode & OTHERS_WRITE:
                raise DoubtError(f"{shown(path)} can be written by others")
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DoubtError(f"{shown(path)} cannot be read: {error.strerror or error}") from None


def settle(fresh: Path, path: Path, mode: int = 0o600) -> None:
    """Give a finished file its name: all of it reaches the disk first, so that no kill and no full disk leaves a part.

    What lies there and is no file is set aside.
    """
    handle = os.open(fresh, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        if POSIX:
            os.fchmod(handle, mode)
        to_disk(handle)
    finally:
        os.close(handle)
    make_way(path)
    rename(fresh, path)


def rename(fresh: Path, path: Path) -> None:
    """Give a file whose content is on the disk its name, and see that the name gets there too."""
    fresh.replace(path)
    if POSIX:
        with suppress(OSError):  # some file systems know no such thing of a folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def to_disk(handle: int) -> None:
    """Wait until what was written to an open file is on the disk, where the file system knows how to."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise


def publish(path: Path, data: bytes) -> None:
    """All of `data` under `path`, or nothing. Several processes may publish at once."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    fresh = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        settle(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def checksum_of(path: Path) -> Path:
    """Where the checksum of a file stands."""
    return path.with_name(f"{path.name}.sha256")


def checksum_line(path: Path, data: bytes) -> str:
    """What stands there, as sha256sum writes it."""
    return f"{hashlib.sha256(data).hexdigest()}  {path.name}\n"


def keep(fresh: Path, path: Path) -> None:
    """Give a compiled file its name, with its checksum beside it."""
    data = fresh.read_bytes()
    settle(fresh, path, 0o700)
    publish(checksum_of(path), checksum_line(path, data).encode())


def is_kept(path: Path) -> bool:
    """Whether what `keep` put at `path` is there and whole. A line says why where it is there and is not."""
    try:
        wanted, data = read(checksum_of(path)), read(path)
        if wanted != checksum_line(path, data).encode():
            raise DoubtError(f"{shown(path)} is damaged: its sha256 is not the one beside it")
    except FileNotFoundError:
        return False
    except DoubtError as doubt:
        say(f"{doubt}; compiled anew")
        return False
    return True


def found_or_made(path: Path, seconds: float, find: Callable[[], T | None], make: Callable[[], T]) -> T:
    """What `find` finds of `path`, else what `make` makes of it, after what another process makes of it meanwhile.

    The other is waited for up to so many seconds. Only work is saved: whoever waited in vain, or may not lock here,
    makes the file beside the other.
    """
    if (found := find()) is not None:
        return found
    lock = path.with_name(f".{path.name}.lock")
    held = filelock.FileLock(lock, timeout=seconds)
    try:
        held.acquire()
    except (filelock.Timeout, OSError, NotImplementedError):
        return make() if (found := find()) is None else found
    try:
        return make() if (found := find()) is None else found
    finally:
        with suppress(OSError):  # who has opened it by now goes on with the file that it has
            lock.unlink()
        held.release()


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """`content`, which JSON can hold, with its sha256 as the first entry."""
    return {SEAL: _digest(content), **content}


def read_sealed(path: Path, own: bool = True) -> dict[str, Any]:
    """What was sealed and written to `path` as JSON, in any layout. As `read`; DoubtError if it does not hold."""
    try:
        content: Any = json.loads(read(path, own).decode())
        seal = content.pop(SEAL, None) if isinstance(content, dict) else None
        digest = _digest(content)
    except DoubtError:
        raise
    except (ValueError, RecursionError):
        raise DoubtError(f"{shown(path)} is damaged: it is no JSON") from None
    if is_deeper(content, DEEPEST):  # than what can be written again, compared or shown
        raise DoubtError(f"{shown(path)} is damaged: its JSON is more than {DEEPEST} levels deep")
    if seal is None or not isinstance(content, dict):
        raise DoubtError(f"{shown(path)} has no {SEAL} of its content")
    if seal != digest:
        raise DoubtError(f"{shown(path)} is damaged: its {SEAL} is not that of its content")
    return content


def is_deeper(part: object, levels: int) -> bool:
    """Whether lists and dictionaries lie in each other in more than so many levels."""
    inside = part.values() if isinstance(part, dict) else part if isinstance(part, list) else None
    return inside is not None and (levels == 0 or any(is_deeper(each, levels - 1) for each in inside))


def _digest(content: dict[str, Any]) -> str:
    """Of canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
