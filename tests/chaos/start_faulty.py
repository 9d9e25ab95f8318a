"""The command line with work of which six of twenty cells end ill, as a process: start_faulty.py ARGUMENTS."""

from __future__ import annotations

from functools import partial

import work

import bench.engines.driver
from bench.__main__ import main

if __name__ == "__main__":
    bench.engines.driver.Terms = partial(bench.engines.driver.Terms, work.end_ill)  # as the command asks for them
    main()
