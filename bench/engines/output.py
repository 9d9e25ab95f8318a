"""Standard output and error that take every text and outlive their reader: what is printed never ends the work.

A pipe that was closed, a full disk, a stream that was closed from the start and an encoding without a character are
each the reader's loss alone, unless a command makes nothing else (`lost_text`). A reader who stops reading, as a
pager or a terminal that stands still, is waited for, but not by a command that runs cells (`be_hasty`).
`analysis.reporting.output` is the same on the other side of the parquet wall.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
import unicodedata
from typing import Any

HANDLER = "spelled"
PATIENCE = 5.0  # seconds that a run waits for a reader
AT_ONCE = 256  # bytes that pipes and terminals take without waiting once they take any
SPELLINGS = {"×": "x", "−": "-", "–": "-", "—": "-", "…": "...", "ρ": "rho", "→": "->", "≤": "<=", "≥": ">=", "’": "'"}


def outlive_readers(patience: float | None = None) -> None:
    """Let nothing that is printed from here on raise. For the start of a process, not for a library.

    patience: seconds that a reader who stopped reading is waited for; None waits for ever.
    """
    _Lasting.patience = patience
    codecs.register_error(HANDLER, _spelled)
    for number in (0, 1, 2):
        _fill(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        before: Any = getattr(sys, name)
        writer = io.TextIOWrapper(
            io.BufferedWriter(_Lasting(number)),
            encoding=getattr(before, "encoding", None) or "utf-8",
            errors=HANDLER,
            line_buffering=getattr(before, "line_buffering", number == 2),
            write_through=getattr(before, "write_through", False),
        )
        if before is not None:
            before.flush()
        setattr(sys, name, writer)


def be_hasty() -> None:
    """From here on, a reader who reads nothing for PATIENCE seconds loses what is printed until he reads again."""
    _Lasting.patience = PATIENCE


def lost_text() -> str:
    """Why something that was printed is nowhere, as on a full disk; empty where all is or its reader has gone."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, _Lasting) else ""


class _Lasting(io.RawIOBase):
    """A file descriptor that takes what nobody reads any more, at once or after `patience` seconds; None: never."""

    patience: float | None = None

    def __init__(self, number: int) -> None:
        self.number, self.lost, self.given_up = number, "", False

    def fileno(self) -> int:
        return self.number

    def isatty(self) -> bool:
        return os.isatty(self.number)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        while True:
            try:
                if self.patience is None:
                    return os.write(self.number, data)
                if not self._takes_some(self.patience):
                    return len(data)
                return os.write(self.number, memoryview(data)[:AT_ONCE])
            except BlockingIOError:
                select.select([], [self.number], [])
            except OSError as error:
                if error.errno != errno.EPIPE:  # a reader who has gone has read what he wanted
                    self.lost = self.lost or error.strerror or str(error)
                return len(data)

    def _takes_some(self, patience: float) -> bool:
        """Whether a write would not wait. Who did not read in that time is not waited for again."""
        try:
            ready = bool(select.select([], [self.number], [], 0.0 if self.given_up else patience)[1])
        except (OSError, ValueError):  # not on this system, or for this kind of file
            return True
        self.given_up = not ready
        return ready


def _fill(number: int) -> None:
    """Put the null device where a standard stream was closed, so that no other file gets its number."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, number)
        if null != number:
            os.close(null)
        os.set_inheritable(number, True)


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """What an encoding lacks, in plain letters where there is a usual spelling, else a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(letter: str) -> str:
    bare = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return SPELLINGS.get(letter) or bare or "?"
