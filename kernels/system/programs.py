"""Other programs run to their end: a compiler, git, a sanitizer.

Cut short, by the time limit or by whatever is raised meanwhile, one ends with all that it started: its children would
hold its pipes and go on.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil


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
    """Kill a process and all that it started, as far as they are there."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        process.suspend()  # so that it starts no more meanwhile
        for each in [*process.children(recursive=True), process]:
            with suppress(psutil.Error):
                each.kill()
