"""The command line with stand-in work, as a process: start_main.py ARGUMENTS."""

from __future__ import annotations

from functools import partial

import work

import bench.engines.driver
from bench.__main__ import main

if __name__ == "__main__":
    bench.engines.driver.facts = lambda _: {}  # torch is not needed here, and slow to import
    bench.engines.driver.Terms = partial(bench.engines.driver.Terms, work.misbehave)  # as the command asks for them
    main()
