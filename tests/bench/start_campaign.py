"""Run a campaign on the CPU with stand-in work, as a process that tests can kill.

start_campaign.py FILE OUT BUDGET [TOGETHER [WORK]].
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import work

import bench.commands.campaign
import bench.engines.driver
from bench.cells import Cell
from bench.commands.campaign import run_campaign
from bench.engines.driver import Terms
from bench.engines.local import Tell
from bench.measuring.machine import source_hash
from bench.sweep import load


def fake(cell: Cell, tell: Tell) -> list[dict[str, Any]]:
    if cell.kind == "check":
        return [{"status": "ok", "pattern": "full", "n": 1}]
    return work.linger(cell, tell)


def slow_checks(cell: Cell, tell: Tell) -> list[dict[str, Any]]:
    """Beyond a limit of a second."""
    if cell.kind == "check":
        time.sleep(60)
    return fake(cell, tell)


if __name__ == "__main__":
    bench.engines.driver.facts = lambda _: {"source_hash": source_hash()}  # torch is slow to import
    bench.commands.campaign.check_datasets = lambda *_: None
    file, out, budget, together, name = [*sys.argv[1:], *("1", "fake")[len(sys.argv) - 4 :]]
    terms = Terms(globals()[name], 1.0 if name == "slow_checks" else 120.0, int(together))
    sys.exit(run_campaign([load(file)], Path(out), float(budget), "cpu", terms=terms))
