"""A real campaign on the CPU that begins cells for any moment that is left.

start_cut_campaign.py FILE OUT BUDGET MIB.
"""

from __future__ import annotations

import sys
from pathlib import Path

import bench.engines.driver
from bench.commands.campaign import run_campaign
from bench.sweep import load

if __name__ == "__main__":
    bench.engines.driver.SHORTEST_PIECE = 0.0
    file, out, budget, mib = sys.argv[1:]
    sys.exit(run_campaign([load(file)], Path(out), float(budget), "cpu", checkpoint_mib=float(mib)))
