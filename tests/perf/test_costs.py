"""The measure of test_overhead itself: others' work does not count, a call's own does."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import costs
import pytest

SLICE = 0.004  # seconds that a scheduler gives to somebody else


def takes(seconds: float) -> Callable[[], object]:
    """A call that takes so long by the clock of `busy`."""
    return lambda: seconds


@pytest.fixture(params=[0.0, 0.5, 2.0])
def busy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """A clock of a machine with so much other work on each processor, and a little noise of its own."""
    others, random = float(request.param), Random(1)

    def timed(call: Callable[[], Any], number: int) -> float:
        took = number * float(call())
        interruptions = took / SLICE * others + random.random() * others
        return took * random.uniform(1.0, 1.3) + SLICE * int(interruptions)

    monkeypatch.setattr(costs.timeit, "timeit", timed)
    return others


@pytest.mark.parametrize("times", [0.4, 1.0, 4.1, 21.0])
def test_a_call_costs_what_it_takes_however_busy_the_machine(busy: float, times: float) -> None:
    assert costs.cost(takes(times * 6e-6), takes(6e-6)) == pytest.approx(times, rel=0.05)


def test_one_unit_more_is_seen(busy: float) -> None:
    before, after = (costs.cost(takes(times * 6e-6), takes(6e-6)) for times in (4.1, 5.1))
    assert after - before == pytest.approx(1.0, abs=0.2)


@pytest.mark.alone
def test_a_real_call_of_three_costs_three() -> None:
    def unit() -> int:
        return sum(range(300))

    assert costs.cost(lambda: (unit(), unit(), unit()), unit) == pytest.approx(3.0, rel=0.2)
