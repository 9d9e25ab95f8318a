"""Stand-ins for timing and training, for tests of the machinery around them: what a cell does depends on its seed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from rows import ended_ok

from bench.cells import Cell
from bench.engines.local import Tell

Row = dict[str, Any]


def rows_of(cell: Cell, **more: Any) -> list[Row]:
    """Rows that are ok, and tell by a time when they were made."""
    made_at = {"train_seconds" if cell.kind == "train" else "time_ms": time.perf_counter()}
    return ended_ok(cell, **{"sparsity": cell.seed / 1000, **made_at, **more})


def succeed(cell: Cell, tell: Tell) -> list[Row]:
    tell({"epoch": 1, "train_ppl": 12.5})
    time.sleep(0.02)
    return rows_of(cell)


def linger(cell: Cell, tell: Tell) -> list[Row]:
    tell({"epoch": 1, "train_ppl": 12.5})
    time.sleep(0.7)
    return rows_of(cell)


class Stopped(BaseException):
    """Neither an Exception nor one of Python's own."""


class MuteError(Exception):
    """What it says is an error."""

    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


RAISED: list[BaseException] = [  # by seed, from 1 on
    *(GeneratorExit("closed"), asyncio.CancelledError("cancelled"), Stopped("stopped"), KeyboardInterrupt("inside")),
    *(SystemExit(0), MuteError(), ValueError("half \udcff"), ValueError(" a\n" * 3_000_000)),
]


def raise_anything(cell: Cell, tell: Tell) -> list[Row]:
    """Seed 0 is well, and the last one says more than a line."""
    if 0 < cell.seed <= len(RAISED):
        raise RAISED[cell.seed - 1]
    return rows_of(cell) if cell.seed == 0 else [{"status": "unsupported", "reason": "no\nline \ud800" + 1000 * "x"}]


def break_starts(cell: Cell, tell: Tell) -> list[Row]:
    """The first cell runs long, and no worker can start any more; the second takes its worker with it."""
    broken = Path(os.environ["BENCH_TEST_FOLDER"]) / "broken"
    if cell.seed == 0:
        broken.write_text("x" * 10_000)
        time.sleep(3.0)
    else:
        while not broken.exists():
            time.sleep(0.01)
        os._exit(7)
    return rows_of(cell)


def misbehave(cell: Cell, tell: Tell) -> list[Row]:
    """One way to fail for each seed from 1 on; 0 is well."""
    match cell.seed:
        case 1:
            raise ValueError("two\nlines")
        case 2:
            raise MemoryError
        case 3:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"
            )
        case 4:
            time.sleep(60)
        case 5:
            os._exit(7)
        case 6:
            os.kill(os.getpid(), signal.SIGKILL)
        case 7:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 8:
            raise SystemExit("gone")
        case 9:
            return rows_of(cell, speedup=2.0)
        case 10:
            return []
        case 11:
            return [*rows_of(cell)[:1], {"status": "diverged", "reason": "the loss is NaN", "epoch": None}]
        case 12:
            return [{"status": "unsupported", "reason": "not here"}]
        case 13:
            return rows_of(cell, kernel=lambda: None)  # cannot travel back
    return rows_of(cell)


def look_around(cell: Cell, tell: Tell) -> list[Row]:
    """What a worker finds in its environment, and whether another cell is running beside it."""
    flag = Path(os.environ["BENCH_TEST_FOLDER"]) / cell.kind
    alone = not any(flag.parent.glob("*.running"))
    mine = flag.with_suffix(f".{cell.seed}.running")
    mine.touch()
    time.sleep(0.4)
    alone = alone and len(list(flag.parent.glob("*.running"))) == 1
    mine.unlink()
    settings = [os.environ.get("MALLOC_MMAP_MAX_"), os.environ.get("MALLOC_TRIM_THRESHOLD_")]
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return rows_of(cell, reason=f"alone={alone} malloc={settings} ignores_interrupt={ignored}")


def leave_children(cell: Cell, tell: Tell) -> list[Row]:
    """Start a program that starts another and outlives it: seed 0 ends well, 1 waits too long, 2 is killed."""
    note = Path(os.environ["BENCH_TEST_FOLDER"]) / f"{cell.seed}.children"
    subprocess.Popen(["sh", "-c", f"sleep 1000 & echo $! >> {note}; echo $$ >> {note}; wait"])
    while not note.exists() or len(note.read_text().split()) < 2:
        time.sleep(0.01)
    if cell.seed == 1:
        time.sleep(60)
    if cell.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return rows_of(cell)


def meddle(cell: Cell, tell: Tell) -> list[Row]:
    """Rows that say they are another cell's."""
    return rows_of(cell, **({"seed": 99} if cell.seed == 0 else {"cell_id": "abc"}))


def note(cell: Cell, tell: Tell) -> list[Row]:
    """Leave a file for each time that a cell runs."""
    (Path(os.environ["BENCH_TEST_FOLDER"]) / f"{cell.seed}.{os.getpid()}.{time.monotonic_ns()}").touch()
    time.sleep(0.05)
    return rows_of(cell)


def poison(cell: Cell, tell: Tell) -> list[Row]:
    """Seed 1 kills the process that started its worker."""
    if cell.seed == 1:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return rows_of(cell)


def say_who_is_beside(cell: Cell, tell: Tell) -> list[Row]:
    """Which other cells run at the same time on the node that this one runs on."""
    node = Path(os.environ["BENCH_TEST_FOLDER"]) / os.environ.get("RAY_NODE_ID", str(os.environ.get("RAY_RAYLET_PID")))
    node.mkdir(exist_ok=True)
    mine = node / f"{cell.seed}"
    mine.touch()
    time.sleep(0.6)
    beside = [path.name for path in node.iterdir() if path != mine]
    mine.unlink()
    return rows_of(cell, reason=" ".join(beside))


def end_well(cell: Cell, tell: Tell) -> list[Row]:
    """Rows of any kind of cell."""
    return ended_ok(cell)


def end_ill(cell: Cell, tell: Tell) -> list[Row]:
    """Six faults, by seed; all else is well."""
    match cell.seed:
        case 1:
            return [{"status": "diverged", "reason": "the loss is NaN in epoch 1"}]
        case 4:
            raise ValueError("injected")
        case 7:
            time.sleep(1000)
        case 11:
            raise MemoryError
        case 13:
            os.kill(os.getpid(), signal.SIGKILL)
        case 17:
            os._exit(3)
    return rows_of(cell)
