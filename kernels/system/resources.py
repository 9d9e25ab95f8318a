"""What a machine lacks today, told apart from what it cannot do: only the second is an answer that may be kept.

No space, no memory, no permission, a program that was killed or took too long: tomorrow, or with less beside it, the
same may work.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _numbers(*names: str) -> frozenset[int]:
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


OF_DISK = _numbers("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE")
OF_SYSTEM = _numbers("ENOMEM", "EAGAIN", "EMFILE", "ENFILE", "ETIMEDOUT", "EINTR")
OWN_WORDS = (  # of compilers and linkers, beside the system's
    *(r"out of memory", r"memory exhausted", r"bad_alloc", r"OutOfMemory", r"SystemResources"),
    *(r"NoSpaceLeft", r"DiskQuota", r"FileTooBig", r"ReadOnlyFileSystem", r"AccessDenied", r"FdQuotaExceeded"),
    *(
        r"\bKilled\b",
        r"\bTerminated signal\b",
        r"\bBus error\b",
        r"File size limit exceeded",
        r"CPU time limit exceeded",
    ),
)
WORDS = re.compile("|".join([*(re.escape(os.strerror(each)) for each in sorted(OF_DISK | OF_SYSTEM)), *OWN_WORDS]))


class ResourceError(RuntimeError):
    """The machine lacks something today; one line that says what. Never a reason for `unsupported`, which is kept."""


class UnsupportedError(ValueError):
    """It cannot be done here, nor will it be tomorrow; one line that says why."""


def refusal(require: Callable[..., object], *given: Any) -> str | None:
    """Why `require(*given)` says that something is unsupported, or None."""
    try:
        require(*given)
    except UnsupportedError as reason:
        return str(reason)
    return None


def is_of_disk(error: BaseException) -> bool:
    """Whether the system refused to write or read a file, for want of space or of permission."""
    return isinstance(error, OSError) and error.errno in OF_DISK


def is_lack(said: BaseException | str) -> bool:
    """Whether an exception, or what a program said of its failure, tells of a lack."""
    if isinstance(said, MemoryError) or (isinstance(said, OSError) and said.errno in OF_DISK | OF_SYSTEM):
        return True
    return WORDS.search(str(said)) is not None


def in_words(error: BaseException) -> str:
    """An exception as one line: of one of the system's what went wrong, and where."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {shown(error.filename)}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def shown(path: object) -> str:
    """A path with the user's home as ~, so that no user's name gets into a row."""
    home = os.path.expanduser("~")  # noqa: PTH111  (pathlib's raises where there is none)
    text = str(path)
    return f"~{text[len(home) :]}" if len(home) > 1 and Path(text).is_relative_to(home) else text
