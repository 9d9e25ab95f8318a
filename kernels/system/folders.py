"""Folders that code is loaded from: made shut to others, and who else could put another folder in the place of one.

As ssh asks it of a home: each folder above is the user's or root's, and nobody else may write there, or the sticky bit
keeps what lies in it. As good as root are those who could change what runs here anyway: the owner of /, who in a
container may have another number, and the owner of this file.
"""

from __future__ import annotations

import functools
import os
import stat
from contextlib import suppress
from pathlib import Path

import platformdirs

from kernels.system.resources import shown

NAME = "block-sparse-bench"
PRIVATE = 0o700
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def user_cache() -> Path:
    """The folder of what can be made or downloaded anew, by the system's rule. RuntimeError where there is no home."""
    folder = platformdirs.user_cache_path(NAME)
    if not folder.is_absolute():
        raise RuntimeError("there is no home folder")
    return folder


def make_private(folder: Path) -> None:
    """Make a folder, and what is missing above it, shut to others whatever the umask. What is there stays as it is."""
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    for each in reversed(missing):
        with suppress(FileExistsError):  # another process was faster
            each.mkdir(mode=PRIVATE)
            if stat.S_IMODE(each.stat().st_mode) != PRIVATE:
                each.chmod(PRIVATE)


def doubt(folder: Path) -> str | None:
    """Why others could put another folder in the place of this one, or None; for POSIX.

    Looked at are the folders above it, by its name and where links lead; those that are missing are nobody's. OSError
    where one cannot be looked at.
    """
    for each in dict.fromkeys([*folder.absolute().parents, *folder.resolve().parents]):
        try:
            owners, found = {each.lstat().st_uid, each.stat().st_uid}, each.stat()
        except FileNotFoundError:
            continue
        if not owners <= _trusted():
            return f"{shown(each)} belongs to another user"
        if found.st_mode & stat.S_ISVTX:
            continue
        if found.st_mode & stat.S_IWOTH:
            return f"{shown(each)} can be written by everybody"
        if found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid):
            return f"{shown(each)} can be written by its group"
    return None


def _trusted() -> set[int]:
    """Users who could change what runs here without any cache."""
    return {0, os.geteuid(), Path("/").stat().st_uid, Path(__file__).stat().st_uid}


@functools.cache
def _is_own_group(gid: int) -> bool:
    """Whether a group has no member but the user and root, as the one that many systems make for each user."""
    import grp
    import pwd

    try:
        members = {pwd.getpwnam(name).pw_uid for name in grp.getgrgid(gid).gr_mem}
    except KeyError:  # nobody can say who is in it
        return False
    members |= {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid}
    return members <= {0, os.geteuid()}
