"""How long the threads of this process waited for a core that somebody else had, by the kernel's own accounts.

Linux counts it thread by thread (the second number of /proc/PID/task/TID/schedstat, nanoseconds); elsewhere nothing is
known, and nobody is said to have waited.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from bench.measuring.clocks import WallTimer
from kernels.problem import Launch

THREADS = Path("/proc/self/task")
MOST_WAITED = 0.05  # of the time of a probe, or of a pair of samples
PROBE_SECONDS = 0.1


def waited_ns(threads: Path = THREADS) -> int:
    """Nanoseconds, of all threads together since each began."""
    total = 0
    for accounts in threads.glob("*/schedstat"):
        try:
            total += int(accounts.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # it has ended meanwhile, or its system keeps no accounts
            continue
    return total


def cores_are_free(patience: float = 2.0) -> bool:
    """Whether torch's threads have cores to themselves, in any PROBE_SECONDS of the next `patience` seconds.

    In a session of many threads on a busy machine each step of a layer waits for the thread that waits for its core:
    hundreds of times longer than the step takes, which nobody should sit through to learn nothing.
    """
    data, end = torch.zeros(2**18), time.perf_counter() + patience
    while True:
        begin, before = time.perf_counter(), waited_ns()
        while time.perf_counter() - begin < PROBE_SECONDS:
            data.add_(1.0)
        now = time.perf_counter()
        if (waited_ns() - before) / 1e9 <= MOST_WAITED * (now - begin):
            return True
        if now >= end:
            return False


class Watched(WallTimer):
    """A wall clock for pairs of samples that knows which of them waited for a core.

    What went untimed before a sample counts too: the accounts are read after a sample, so that nothing stands between
    it and the launch that fills its caches.
    """

    def __init__(self) -> None:
        super().__init__("cpu")
        self.took: list[float] = []  # milliseconds of each sample
        self.waited: list[float] = []
        self.before = waited_ns()

    def time(self, launch: Launch, launches: int) -> float:
        took, now = super().time(launch, launches), waited_ns()
        self.took.append(took * launches)
        self.waited.append((now - self.before) / 1e6)
        self.before = now
        return took

    def pair_waited(self) -> bool:
        """Whether somebody waited longer than MOST_WAITED of the time of the last two samples."""
        return sum(self.waited[-2:]) > MOST_WAITED * sum(self.took[-2:])
