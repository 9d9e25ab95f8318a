"""Schedules: the share of blocks wanted empty after `step` of `steps` optimizer steps.

A schedule is `(step, steps, target, begin, end) -> sparsity`: non-decreasing in `step` (0 is before training) and
exactly `target` from `end` on. `begin` and `end` are fractions of all steps. A ramp may begin at a sparsity above 0,
and `iterative` goes in rounds (`sparsity_at`).
"""

# ruff: noqa: ARG001  (all members have one signature)

from __future__ import annotations

import math
from collections.abc import Callable

from kernels.registry import Registry

Schedule = Callable[[int, int, float, float, float], float]

SCHEDULES: Registry[Schedule] = Registry("schedule")


def ramp_position(step: int, steps: int, begin: float, end: float) -> float:
    """How far `step` is between begin and end: 0 up to begin, 1 from end on."""
    if step >= end * steps:
        return 1.0
    if step <= begin * steps:
        return 0.0
    return (step - begin * steps) / ((end - begin) * steps)


@SCHEDULES.register
def none(step: int, steps: int, target: float, begin: float, end: float) -> float:
    """Never prune."""
    return 0.0


@SCHEDULES.register
def pre(step: int, steps: int, target: float, begin: float, end: float) -> float:
    """All before the first step: a fixed random pattern whatever the criterion (slides, "Random Pre-pruning")."""
    return target


@SCHEDULES.register
def one_shot(step: int, steps: int, target: float, begin: float, end: float) -> float:
    """Everything at once at `begin`; what follows is fine-tuning."""
    return target if step >= begin * steps else 0.0


@SCHEDULES.register
def linear(step: int, steps: int, target: float, begin: float, end: float) -> float:
    """The same number of blocks at each update (slides, appendix: rho_t = a (t - 1) + b)."""
    return target * ramp_position(step, steps, begin, end)


@SCHEDULES.register
def narang(step: int, steps: int, target: float, begin: float, end: float) -> float:
    """Two slopes, the second half one and a half times as steep (Narang et al., 1704.05119, of their threshold)."""
    position = ramp_position(step, steps, begin, end)
    return target * (0.8 * position if position < 0.5 else 1.2 * position - 0.2) if position < 1.0 else target


@SCHEDULES.register
def cubic(step: int, steps: int, target: float, begin: float, end: float) -> float:
    """Fast at first, slow near the target (Zhu & Gupta, 1710.01878, equation 1, from sparsity 0)."""
    left = 1.0 - ramp_position(step, steps, begin, end)
    return target * (1.0 - left * left * left)


@SCHEDULES.register
def iterative(step: int, steps: int, target: float, begin: float, end: float) -> float:
    """The same share of what is left at each step, so that density falls geometrically; `sparsity_at` makes rounds.

    Pruning and fine-tuning in turns (Han et al., 1506.02626), of equal shares (Frankle & Carbin, 1803.03635).
    """
    position = ramp_position(step, steps, begin, end)
    return target if position == 1.0 else min(target, 1.0 - (1.0 - target) ** position)


def cuts_done(step: int, steps: int, begin: float, end: float, rounds: int) -> int:
    """How many of `rounds` cuts, spread evenly from `begin` to `end`, the last one there, are made after `step` steps.

    A round trains and then cuts: the first cut is a round after `begin`.
    """
    return math.floor(rounds * ramp_position(step, steps, begin, end) + 1e-9)


def is_ramp(schedule: str) -> bool:
    """Whether it goes on from `begin` to `end`, and does not cut at once or never."""
    return schedule not in ("none", "pre", "one_shot")


def sparsity_at(
    schedule: str, step: int, steps: int, target: float, begin: float, end: float, initial: float = 0.0, rounds: int = 1
) -> float:
    """What a schedule asks for; a ramp begins at sparsity `initial` (Zhu & Gupta's s_i, the slides' b), at `begin`.

    iterative: after `rounds` cuts the target is reached, and between two of them nothing changes.
    """
    if schedule == "iterative":
        if step < begin * steps:
            return 0.0
        done = cuts_done(step, steps, begin, end, rounds)
        left = (1.0 - initial) * iterative(done, rounds, _of_the_rest(target, initial), 0.0, 1.0)
        return target if done == rounds else min(target, initial + left)
    if not initial or not is_ramp(schedule):
        return SCHEDULES[schedule](step, steps, target, begin, end)
    if step < begin * steps:
        return 0.0
    position = SCHEDULES[schedule](step, steps, 1.0, begin, end)
    return target if position == 1.0 else initial + (target - initial) * position


def _of_the_rest(target: float, initial: float) -> float:
    """The share of what `initial` leaves that is to go for a sparsity of `target`."""
    return (target - initial) / (1.0 - initial) if initial < 1.0 else 0.0
