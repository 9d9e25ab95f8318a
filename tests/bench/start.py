"""Run a sweep with stand-in work, a process that tests can interrupt and kill.

start.py FILE RESULTS WORK [WORKERS [share|retry]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import work

import bench.engines.driver
import bench.run
from bench.engines.driver import Terms
from bench.sweep import load

if __name__ == "__main__":
    bench.engines.driver.facts = lambda _: {}  # torch is not needed here, and slow to import
    bench.run.check_datasets = lambda _: None  # nor is a text
    file, results, name, workers, how = [*sys.argv[1:], *["0", ""][len(sys.argv) - 4 :]]
    terms = Terms(work=getattr(work, name))
    options = {"terms": terms, "share": how == "share", "retry": how == "retry"}
    sys.exit(bench.run.run_sweep(load(file), Path(results), int(workers), **options))
