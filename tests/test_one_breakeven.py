"""Where sparse starts to pay is one rule on both sides of the wall.

What training switches by, and what the tables say.
"""

from __future__ import annotations

import math

import pytest

from analysis import theory
from bench.training.paths import crossing

Curve = list[tuple[float, float]]  # (sparsity, speedup)
CASES: dict[str, tuple[Curve, str, float | None]] = {  # -> kind, and the sparsity where it crosses
    "time is linear in density": ([(0.5, 0.8), (0.75, 1.6)], "crosses", 0.6),
    "in any order": ([(0.9, 2.0), (0.5, 0.5)], "crosses", 0.5 + 0.4 * 2 / 3),
    "the last crossing counts": ([(0.1, 1.1), (0.3, 0.9), (0.5, 0.8), (0.7, 1.6)], "crosses", 0.5 + 0.2 * 0.25 / 0.625),
    "exactly 1 is enough": ([(0.2, 0.5), (0.4, 1.0), (0.6, 1.5)], "crosses", 0.4),
    "always": ([(0.25, 1.0), (0.5, 1.5)], "always", None),
    "never": ([(0.5, 0.4), (0.95, 0.99)], "never", None),
    "a dip at the end": ([(0.5, 1.2), (0.95, 0.9)], "never", None),
    "one point above": ([(0.7, 1.3)], "always", None),
    "one point below": ([(0.7, 0.3)], "never", None),
    "nothing measured": ([], "unknown", None),
}


@pytest.mark.parametrize("case", CASES)
def test_both_sides_of_the_wall_agree(case: str) -> None:
    curve, kind, where = CASES[case]
    found = theory.breakeven([sparsity for sparsity, _ in curve], [speedup for _, speedup in curve])
    assert found.kind == kind
    assert found.sparsity == (None if where is None else pytest.approx(where))
    switch = {"always": min((sparsity for sparsity, _ in curve), default=0.0), "crosses": found.sparsity}
    assert crossing([[*point] for point in curve]) == switch.get(kind, math.inf)
