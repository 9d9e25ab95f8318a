"""Runs that give way: at the lowest priority, and detached from the terminal that started them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

LOWEST = 19
AUTOGROUP = Path("/proc/self/autogroup")  # Linux: the share of a whole session, within which alone nice has a say there


def give_way() -> None:
    """Take only processor time that nobody else wants, as far as this system lets one.

    What is started from here does too.
    """
    if hasattr(os, "nice"):
        os.nice(LOWEST)
    with suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):
        if os.getsid(0) == os.getpid():  # else the session is somebody's, who would be slowed down with us
            AUTOGROUP.write_text(str(LOWEST))


def detach(arguments: Sequence[str], log: Path) -> int:
    """Start `python -m bench ARGUMENTS` in a session of its own, its output appended to `log`; its process number."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        begun = subprocess.Popen(
            [sys.executable, "-m", "bench", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return begun.pid
