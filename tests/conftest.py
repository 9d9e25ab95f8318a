"""Tests that run side by side share the processors.

Each worker, and what it starts, computes on its own part of them.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from itertools import islice
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # what tests of several packages share: `read_back`
A_FEW_SECONDS = 8.0
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a suite that a shell started with `&`, and inherited
    signal.signal(signal.SIGINT, signal.default_int_handler)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is imported, and inherited by what the tests start
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, processors() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that waits leaves its processor to other tests


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "in tests/chaos: every fault as often as nox -s chaos tries it"
    parser.addoption("--full", action="store_true", help=told)


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays to the end: no collection of garbage goes through it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than processors, for one that waits for a process; not more than memory goes.

    `-n logical` counts those of the whole machine.
    """
    return min(processors() + 1, 16)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m alone` imports only files that speak of that mark, which are a few of a hundred."""
    if config.getoption("markexpr") != "alone" or not collection_path.match("test_*.py"):
        return None
    return True if b"mark.alone" not in collection_path.read_bytes() else None


def _why_skipped(item: pytest.Item) -> str | None:
    """The reason of a test of which it is known beforehand that it will be skipped."""
    for mark in item.iter_markers("skip"):
        return str(mark.kwargs.get("reason", *mark.args[:1]))
    for mark in item.iter_markers("skipif"):
        if any(condition is True for condition in mark.args):
            return str(mark.kwargs["reason"])
    return None


@pytest.hookimpl(trylast=True)  # after -k and -m, so that the number is of those that would have run
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the tests of a file that are skipped for one reason a single one stays, and says how many they are."""
    skipped: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        if (reason := _why_skipped(item)) is not None:
            skipped.setdefault((item.path, reason), []).append(item)
    for (_, reason), (first, *others) in skipped.items():
        told = pytest.mark.skipif(True, reason=f"{len(others) + 1} tests of this file: {reason}")  # asked before skip
        first.add_marker(told, append=False)
        config.hook.pytest_deselected(items=others)
    left_out = {id(item) for _, *others in skipped.values() for item in others}
    items[:] = [item for item in items if id(item) not in left_out]
    if "PYTEST_XDIST_WORKER" in os.environ:
        items[:] = dealt(items, int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


def seconds_of(item: pytest.Item) -> float:
    """About how long a test takes, as its mark says: slow(SECONDS), a few where it names none; 0 of others."""
    mark = item.get_closest_marker("slow")
    return 0.0 if mark is None else float(mark.args[0]) if mark.args else A_FEW_SECONDS


def dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Long tests first and to all workers alike, so that none ends long after the others.

    `--dist worksteal` gives each worker a part of the list, one after another, and later the ends of others' parts. The
    long tests of a file stay together, for they share fixtures; the longest lot comes first, each where the least is
    waiting. The other tests fill the parts up in their order.
    """
    lots: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if seconds_of(item):
            lots.setdefault(item.path, []).append(item)
    parts: list[list[pytest.Item]] = [[] for _ in range(workers)]
    waiting = [0.0] * workers
    for lot in sorted(lots.values(), key=lambda lot: -sum(map(seconds_of, lot))):
        first = waiting.index(min(waiting))
        parts[first] += lot
        waiting[first] += sum(map(seconds_of, lot))
    others = (item for item in items if not seconds_of(item))
    sizes = [len(items) * (part + 1) // workers - len(items) * part // workers for part in range(workers)]
    for part, size in zip(parts, sizes, strict=True):
        part += islice(others, max(0, size - len(part)))
    return [item for part in parts for item in part] + list(others)
