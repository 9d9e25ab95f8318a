"""Temporary folders that go with their process: what a kill has left of one, the next process removes.

A folder holds a file that is locked as long as its process lives, or one that it was forked into; a lock ends with its
process, whatever ends that.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

ALIVE = ".alive"


@contextmanager
def temporary_folder(prefix: str, beside: Path | None = None) -> Iterator[Path]:
    """A new folder whose name begins with `prefix`, removed at the end; and those of processes that are gone.

    beside: where it is made, else where the system has such folders.
    """
    place = Path(tempfile.gettempdir()) if beside is None else beside
    clear(place, prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    lock = _locked(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            lock.release()


def _locked(folder: Path) -> filelock.FileLock | None:
    """The folder's lock, held under another name before it has its own; None where nothing can be locked."""
    lock = filelock.FileLock(folder / f"{ALIVE}.new", timeout=0)
    with suppress(OSError, NotImplementedError, filelock.Timeout):
        lock.acquire()
        (folder / f"{ALIVE}.new").rename(folder / ALIVE)
        return lock
    return None


def clear(place: Path, prefix: str) -> None:
    """Remove the user's folders of that name whose process is gone; those that do not say so stay."""
    for folder in place.glob(f"{prefix}*"):
        with suppress(OSError, NotImplementedError, filelock.Timeout):
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == _user() and (folder / ALIVE).is_file():
                with filelock.FileLock(folder / ALIVE, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0
