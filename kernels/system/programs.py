"""Other programs run to their end: a compiler, git, a sanitizer.

Cut short, by the time limit or by whatever is raised meanwhile, one ends with all that it started: its children would
hold its pipes and go on.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil

END_SECONDS = 5.0  # what the system may take to end what was killed


def run(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`command` run to its end, without input, and what it said.

    environment: in place of this process's. subprocess.TimeoutExpired after so many `seconds`, OSError where it cannot
    be started.
    """
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding="utf-8", errors="replace", env=environment,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            end(process.pid)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def end(pid: int) -> None:
    """Kill a process and all that it started, as far as they are there, and wait until none runs."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        process.suspend()  # so that it starts no more meanwhile
        family = [*process.children(recursive=True), process]
        for each in family:
            with suppress(psutil.Error):
                each.kill()
        until = time.monotonic() + END_SECONDS
        while any(map(_runs, family)) and time.monotonic() < until:
            time.sleep(0.005)


def _runs(process: psutil.Process) -> bool:
    """Whether a process runs; one that is dead and that nobody has asked for yet does not."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
