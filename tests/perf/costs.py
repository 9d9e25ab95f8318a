"""How much longer one call of Python takes than another, on a machine that may be busy.

The best of many, taken in turn.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

Call = Callable[[], object]
ROUNDS = 400
BATCH_SECONDS = 2e-4  # of each side, far below what a scheduler gives at a time: many batches are not interrupted
FEWEST, MOST_CALLS = 2, 40


def seconds(call: Call, calls: int) -> float:
    """Of one call, among `calls`; nothing is collected meanwhile."""
    return timeit.timeit(call, number=calls) / calls


def calls_of(call: Call) -> int:
    """How many calls make a batch."""
    return min(MOST_CALLS, max(FEWEST, int(BATCH_SECONDS / min(seconds(call, 1) for _ in range(20)))))


def cost(ours: Call, unit: Call, rounds: int = ROUNDS) -> float:
    """What a call of `ours` takes, in calls of `unit`: the shortest batch of the one over the shortest of the other.

    What others do on the machine only ever lengthens a batch, so the shortest of many tells what the calls themselves
    take; a median tells how often they were interrupted too, and of the longer call more often. Each round has a batch
    of both.
    """
    ours(), unit()
    calls = calls_of(ours), calls_of(unit)
    times = [(seconds(ours, calls[0]), seconds(unit, calls[1])) for _ in range(rounds)]
    best, best_unit = (min(side) for side in zip(*times, strict=True))
    return best / best_unit
