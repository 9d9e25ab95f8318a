"""Peaks of memory while a cell runs: of its process, and of what torch keeps on the GPU."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

MIB = 2**20
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # of Linux
PEAK = "5"  # what resets the peak of the resident set (proc(5))


def forget() -> bool:
    """Begin anew; whether the process's own peak could be. A worker runs many cells, and each has its own."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with suppress(RuntimeError):
            torch.cuda.reset_peak_memory_stats()
    try:
        CLEAR.write_text(PEAK)
    except OSError:
        return False
    return True


def peaks(forgotten: bool) -> dict[str, float | None]:
    """The columns: the largest since `forget`. Null where nothing tells it: of the process outside Linux, or without
    a GPU in use."""
    torch = sys.modules.get("torch")
    on_gpu = None
    if torch is not None and torch.cuda.is_initialized():
        with suppress(RuntimeError):
            on_gpu = torch.cuda.max_memory_allocated() / MIB
    return {"peak_memory_mib": _resident() if forgotten else None, "peak_gpu_memory_mib": on_gpu}


def _resident() -> float | None:
    with suppress(OSError, ValueError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None
