"""A worker and the processes it starts: they end with it, and it ends with its parent, however that dies.

A worker leads a process group of its own, which its children are in unless they ask for another. What a cell leaves
running ends with the cell.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import wait
from typing import Any

import psutil

IN_SLURM = "SLURM_JOB_ID" in os.environ
PARENT_SECONDS = 1.0  # how often a worker looks whether its parent lives, where it is not told


def lead(parent: int) -> None:
    """In a worker, of the process `parent`: lead a group, and end with it when the parent is gone."""
    if hasattr(os, "setpgid"):
        with suppress(OSError):
            os.setpgid(0, 0)
    if IN_SLURM and hasattr(signal, "SIGUSR2"):  # which the parent hears, and tells
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def start_tracker() -> None:
    """Start what counts the semaphores of multiprocessing, before it starts itself.

    Deaf to SIGUSR2 in a job of SLURM, which sends that to every process there: what is blocked stays so in what is
    started.
    """
    if IN_SLURM and hasattr(signal, "SIGUSR2"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            resource_tracker.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


def _end_with(parent: int) -> None:
    """Not PR_SET_PDEATHSIG, which asks for the thread that started this process and not for the process of that."""
    mother = parent_process()
    told = [mother.sentinel] if mother is not None else []
    while os.getppid() == parent and not wait(told, PARENT_SECONDS):
        pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def signal_groups(leaders: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to the groups of workers, whether or not those still live."""
    for pid in leaders:
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)


def kill_groups(leaders: Iterable[int]) -> None:
    """End those of the groups that are still there."""
    if hasattr(signal, "SIGKILL"):
        signal_groups(leaders, signal.SIGKILL)


def children() -> set[psutil.Process]:
    """What this process has started and what that has, as far as it runs."""
    with suppress(psutil.Error):
        return set(psutil.Process().children(recursive=True))
    return set()


def end_children(but: Collection[psutil.Process]) -> None:
    """End what this process has started but for those, and wait until it is gone."""
    ended = [each for each in children() if each not in but]
    for each in ended:
        with suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(ended, timeout=5.0)


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP wait for a look, and so does Ctrl-Z; at a look the first three are KeyboardInterrupt.

    Raised anywhere, as Python does, one may come where a lock is held. Those count that would raise it, and are not
    ignored. The second Ctrl-C or SIGTERM, once a moment has passed, raises at once. A terminal that has gone says so
    more than once: all but the first SIGHUP are left unheard.
    """

    MOMENT = 0.5  # seconds in which one press of a key, or one end of a session, may be told several times

    def __init__(self) -> None:
        self.came: list[float] = []
        self.stop_asked = False
        self.before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2") if hasattr(signal, name)]
            self.before = {each: signal.getsignal(each) for each in map(signal.Signals.__getitem__, names)}
            self.before = {each: handler for each, handler in self.before.items() if callable(handler)}
            if hasattr(signal, "SIGTSTP") and signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
                self.before[signal.SIGTSTP] = signal.SIG_DFL
        for number in self.before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, error: object, *_: object) -> None:
        for number, handler in self.before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)  # type: ignore[arg-type]
        if self.came and error is None:  # since the last look
            raise KeyboardInterrupt

    def _note(self, number: int, _: object) -> None:
        if number == getattr(signal, "SIGTSTP", None):
            self.stop_asked = True
            return
        self.came.append(time.monotonic())
        if number == getattr(signal, "SIGHUP", None):
            signal.signal(number, signal.SIG_IGN)
        elif self.came[-1] - self.came[0] > self.MOMENT:
            raise KeyboardInterrupt

    def pause(self, seconds: float) -> None:
        """Wait, but not once a signal came."""
        until = time.monotonic() + seconds
        while not self.came and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def look(self, leaders: Iterable[int] = ()) -> float:
        """KeyboardInterrupt where one of the signals came. Stop where Ctrl-Z did, and the groups of `leaders` too.

        The seconds for which they were stopped.
        """
        if self.came:
            raise KeyboardInterrupt
        if not self.stop_asked:
            return 0.0
        self.stop_asked, began = False, time.monotonic()
        leaders = list(leaders)
        signal_groups(leaders, signal.SIGSTOP)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # returns when somebody has it go on
        signal.signal(signal.SIGTSTP, self._note)
        signal_groups(leaders, signal.SIGCONT)
        return time.monotonic() - began


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: finished cells stay, workers go, tables are written.

    SIGUSR2 does in a job of SLURM, which sends it before its time limit to every process there. What is ignored, as
    SIGHUP under nohup, stays so; a terminal that has gone may say so again, which is not heard.
    """

    def interrupt(number: int, _: Any) -> None:
        if number == getattr(signal, "SIGHUP", None):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    names = ("SIGTERM", "SIGHUP", *(("SIGUSR2",) if IN_SLURM else ()))
    ending = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {each: signal.getsignal(each) for each in ending if signal.getsignal(each) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is interrupt:
                signal.signal(number, handler)
