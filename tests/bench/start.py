"""Run a sweep with stand-in work, as a process that tests can interrupt and kill: start.py FILE RESULTS WORK."""

from __future__ import annotations

import sys
from pathlib import Path

import work

import bench.run
from bench.sweep import load

if __name__ == "__main__":
    bench.run.facts = lambda _: {}  # torch is not needed here, and slow to import
    file, results, name = sys.argv[1:]
    sys.exit(bench.run.run_sweep(load(file), Path(results), work=getattr(work, name)))
