"""Processes that start at once.

Forked from one that has torch and the bench imported, and so are the workers they start.

Each is a process of its own, the leader of a session, with its own signals, streams, environment and memory. What it
does not do is import torch for two seconds, and again in every worker: a kill at a random moment meets work, not
imports. Nor does it time a cell for seconds, and again where other tests disturb it: no test reads times that it
stores. A file of tests that uses them starts `python -m bench` as a user does, too.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing import forkserver, get_context
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
IMPORTED = [
    "torch._dynamo",
    "bench.commands.campaign",
    "bench.timing",
    "bench.train",
    "work",
]  # torch.optim imports _dynamo


class Forked:
    """`python ARGUMENTS` as a forked process, with what a test asks of a `subprocess.Popen`.

    arguments: those behind `python`: a script's path, or -m and a module, and their own. folder: takes what it says.
    cwd: where it runs, that of the test where None.
    """

    def __init__(
        self, arguments: list[str], environment: dict[str, str], folder: Path, cwd: Path | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.iterdir()))
        self.streams = [folder / f"{number}.out", folder / f"{number}.err"]
        for stream in self.streams:
            stream.touch()
        _serve()
        given = (arguments, environment, self.streams, cwd or Path.cwd())
        self.process = get_context("forkserver").Process(target=_become, args=given)
        self.process.start()

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if kind is not None:
            self.kill()
        self.process.join()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        if self.process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (stream.read_text(encoding="utf-8") for stream in self.streams)
        return out, err


def ready() -> None:
    """Wait until all is imported, so that the first process does not."""
    _serve()
    first = get_context("forkserver").Process(target=int)
    first.start()
    first.join()
    assert first.exitcode == 0


def gone(session: int, seconds: float) -> bool:
    """Wait until no process of a session runs any more; whether that was so within `seconds`."""
    deadline = time.monotonic() + seconds
    while alive(session):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(session: int) -> list[psutil.Process]:
    """Processes of a session that still run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            dead = process.status() == psutil.STATUS_ZOMBIE or "resource_tracker" in " ".join(process.cmdline())
            if not dead and os.getsid(process.pid) == session:
                found.append(process)
    return found


class AtOnce:
    """Stands for multiprocessing's context 'spawn' in the process of a test: workers that need not import torch.

    They get the environment of that moment, as spawned ones do.
    """

    def __init__(self) -> None:
        _serve()
        self.context = get_context("forkserver")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)

    def Process(self, *, target: Any, args: tuple[Any, ...] = (), **named: Any) -> Any:
        return self.context.Process(target=_work, args=(dict(os.environ), os.getpid(), target, args), **named)


def _serve() -> None:
    """Have the process running that others are forked from; it computes in one thread, as do they."""
    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
    try:
        forkserver.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


# What follows runs in the forked processes.


def _work(environment: dict[str, str], parent: int, target: Any, args: tuple[Any, ...]) -> None:
    """As a spawned worker does, whose parent is the process that asked for it and not the one it is forked from."""
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    os.getppid = lambda: parent
    target(*args)


def _become(arguments: list[str], environment: dict[str, str], streams: list[Path], cwd: Path) -> None:
    assert set(IMPORTED) <= set(sys.modules), "nothing lay ready"
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # it is asked for again
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_APPEND), number)
    from bench import timing
    from bench.engines import starts
    from bench.training import meter

    starts.get_context = lambda _: get_context("fork")
    timing.MIN_SECONDS, timing.ATTEMPTS = 0.05, 1
    meter.TRAINING_PAIRS, meter.INFERENCE_PAIRS = 2, 4
    first, *others = arguments
    if first == "-m":
        module, *others = others
        sys.argv = [module, *others]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(first, run_name="__main__")
