"""Whether other work keeps this machine's processors busy: timings would take its pauses for their own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

from bench.measuring.machine import processors

BUSY = 0.3  # processors' worth of other work at which timings are warned of
LOOK_SECONDS = 0.5  # a look at an idle machine that happens to fall on a moment's work is followed by a second one
WAIT_LOOK_SECONDS = 2.0
NAMED = 3  # programs listed in a warning
NAMED_FROM = 0.1  # processors that a program keeps busy to be listed


def busy_processors(seconds: float) -> float:
    """How many of the processors that this process may use were busy during the next `seconds`; ours is asleep then."""
    usage = psutil.cpu_percent(interval=seconds, percpu=True)
    if hasattr(os, "sched_getaffinity"):
        usage = [usage[place] for place in os.sched_getaffinity(0) if place < len(usage)]
    return sum(usage) / 100


def busiest_programs(seconds: float) -> str:
    """'python 0.98, gcc 0.5': what keeps processors busy for the next `seconds`, as far as this process may see."""
    seen = []
    for process in psutil.process_iter():
        try:
            process.cpu_percent()
            seen.append(process)
        except psutil.Error:
            continue
    time.sleep(seconds)
    found = []
    for process in seen:
        try:
            found.append((process.cpu_percent() / 100, process.name()))
        except psutil.Error:
            continue
    found = sorted((share, name) for share, name in found if share >= NAMED_FROM)[: -NAMED - 1 : -1]
    return ", ".join(f"{name} {share:.1f}" for share, name in found)


def disturbance(seconds: float = LOOK_SECONDS, looks: int = 2) -> str | None:
    """'other work keeps 1.0 of 2 processors busy (python 1.0)', or None where a look finds the machine quiet."""
    for _ in range(looks):
        busy = busy_processors(seconds)
        if busy < BUSY:
            return None
    programs = busiest_programs(seconds)
    return f"other work keeps {busy:.1f} of {processors()} processors busy" + (f" ({programs})" if programs else "")


def await_quiet(patience: float, say: Callable[[str], None]) -> None:
    """Before something is timed: say that the machine is busy, after up to `patience` seconds in which it was."""
    why = disturbance()
    if why and patience > 0:
        say(f"waiting up to {patience:g} s for a quiet machine: {why}")
        deadline = time.monotonic() + patience
        while why and time.monotonic() < deadline:
            why = disturbance(WAIT_LOOK_SECONDS, looks=1)
    if why:
        hint = "" if patience > 0 else "; --wait-quiet SECONDS waits for a quiet machine"
        say(f"warning: {why}: times measured now may be wrong, not only uncertain{hint}")
