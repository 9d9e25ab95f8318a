"""Turns of the runs on one machine to time: two that do so at once would each measure the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from bench.store import LockedError, locked
from kernels.system.folders import make_private, user_cache

LOOK_SECONDS = 0.25
NAME = "timing-{}.lock"  # by device


@contextmanager
def turn_to_time(device: str, wait: Callable[[bool], None]) -> Iterator[None]:
    """Hold this user's turn to time on `device` of this machine, once no other process holds it.

    wait: called between two looks at whether it is free, with whether that was the first; it may raise. Where nothing
    can be locked, or there is no home folder, nobody waits for anybody.
    """
    with ExitStack() as held:
        is_first = True
        while True:
            try:
                folder = user_cache()
                make_private(folder)
                held.enter_context(locked(folder, name=NAME.format(device)))
                break
            except LockedError:
                wait(is_first)
            except (OSError, RuntimeError):
                break
            is_first = False
            time.sleep(LOOK_SECONDS)
        yield
