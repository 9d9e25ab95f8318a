"""Tests that run side by side share the processors: each worker, and what it starts, computes on its own part of them."""

from __future__ import annotations

import os

import pytest


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is imported, and inherited by what the tests start
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, processors() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker for each processor, as far as their memory goes: `-n logical` counts those of the whole machine."""
    return min(processors(), 16)
