"""Starts of worker processes, counted: one that dies or hangs before it takes up a cell is tried again a few times."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock
from typing import Any

from bench.engines.families import kill_groups, start_tracker

TRIES = 3
LONGEST_PAUSE = 2.0  # seconds before another try
START_SECONDS = 300.0  # a worker may take to be ready: a slow disk gives torch in minutes


class Starts:
    """Stands for multiprocessing's context 'spawn', and looks what becomes of the processes that are made from it.

    folder: where a worker says that it took up a cell (`took_up`). died: starts without that, since the last with it.
    door: where it says, once, that it is ready (`be_ready`); one that does not in START_SECONDS is killed.
    """

    def __init__(self, folder: Path, cause: Callable[[int | None], str]) -> None:
        start_tracker()
        self.context, self.folder, self.cause = get_context("spawn"), folder, cause
        self.fresh: dict[BaseProcess, float] = {}  # and when each was made
        self.hung: set[BaseProcess] = set()
        self.made: set[BaseProcess] = set()  # whose groups are not known to be gone
        self.ready: set[int] = set()  # process ids
        self.listener, self.door = self.context.Pipe(duplex=False)
        self.died, self.reason = 0, ""
        self.lock = Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)

    def Process(self, *given: Any, **named: Any) -> BaseProcess:  # noqa: N802
        """A process that is watched from now on; after failures only some time later."""
        if self.look():
            time.sleep(min(LONGEST_PAUSE, 0.1 * 2**self.died))
        process = self.context.Process(*given, **named)
        with self.lock:
            self.fresh[process] = time.monotonic()
            self.made.add(process)
        return process

    def leaders(self) -> list[int]:
        """Process ids of the workers, which lead groups of their own."""
        with self.lock:
            return [process.pid for process in self.made if process.pid is not None]

    def end_families(self) -> None:
        """End what workers that are gone have left running."""
        with self.lock:
            gone = [process for process in self.made if process.exitcode is not None]
            self.made.difference_update(gone)
        kill_groups(process.pid for process in gone if process.pid is not None)

    def look(self) -> int:
        """How many starts in a row failed until now."""
        with self.lock:  # the pool starts processes from a thread of its own
            while self.listener.poll():
                self.ready.add(int(self.listener.recv_bytes()))
            for process, made in list(self.fresh.items()):
                exitcode, pid = process.exitcode, process.pid
                if pid is not None and self._mark(pid).exists():
                    del self.fresh[process]
                    self.died = 0
                elif exitcode is not None:
                    del self.fresh[process]
                    self.died, self.reason = self.died + 1, self._cause_of(process, exitcode)
                elif pid is not None and pid not in self.ready and time.monotonic() - made > START_SECONDS:
                    self.hung.add(process)
                    process.kill()  # what hangs may not heed SIGTERM; its exit is seen at the next look
            return self.died

    def _cause_of(self, process: BaseProcess, exitcode: int) -> str:
        return f"it was not ready after {START_SECONDS:g} s" if process in self.hung else self.cause(exitcode)

    @property
    def failed(self) -> str:
        """What to say of a cell that no worker took up, once that was tried often enough; else nothing."""
        return f"no worker could start, {self.died} times: {self.reason}" if self.look() >= TRIES else ""

    def one_more(self) -> None:
        """Let the next cell have one try."""
        self.died = min(self.died, TRIES - 1)

    def forget(self) -> None:
        """Those that are being started are about to be stopped: that is no failure."""
        self.look()
        with self.lock:
            self.fresh.clear()

    def refused(self, error: BaseException) -> None:
        """Count a start that the system refused."""
        with self.lock:
            self.died, self.reason = self.died + 1, " ".join(f"{error.__cause__ or error}".split())

    def _mark(self, pid: int) -> Path:
        return self.folder / f"{pid}.took-up"

    def took_up(self, cell_id: str) -> bool:
        """Whether a worker began a cell."""
        return (self.folder / f"{cell_id}.took-up").exists()


def be_ready(door: Connection) -> None:
    """Say, in a worker, that it waits for cells: by a pipe, which a full disk does not close."""
    door.send_bytes(str(os.getpid()).encode())


def take_up(folder: Path, cell_id: str) -> None:
    """Say, in a worker, that it began a cell."""
    for name in (str(os.getpid()), cell_id):
        with suppress(OSError):
            (folder / f"{name}.took-up").touch()
