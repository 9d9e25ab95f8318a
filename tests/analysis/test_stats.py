"""The pooled residual, its intervals and its verdicts: by hand, and over made-up sweeps whose truth is known."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from analysis.stats import (
    MARGIN,
    UNKNOWN,
    Comparison,
    Scatter,
    change,
    compared,
    difference,
    holm,
    judged,
    level,
    plus_minus,
    residual,
    scatter,
)

TWO = (["a", "a", "b", "b"], [0, 1, 0, 1], [math.exp(log) for log in (0.0, 0.1, 0.2, 0.5)])
T4, T4_ONE_SIDED = 2.776445, 2.131847  # Student's t with 4 degrees of freedom: 97.5 %, 95 %


def test_the_residual_of_two_settings_by_two_seeds() -> None:
    # what setting + seed leaves of each cell is ±(0.0 - 0.1 - 0.2 + 0.5) / 4 = ±0.05: squares 0.01, 4 - 3 degrees
    assert residual(*TWO) == pytest.approx((0.01, 1.0))


def test_a_setting_with_one_seed_tells_nothing_of_the_residual_and_spoils_nothing() -> None:
    assert residual([*TWO[0], "c"], [*TWO[1], 1], [*TWO[2], 700.0]) == pytest.approx((0.01, 1.0))


def test_one_seed_or_one_setting_leave_no_residual() -> None:
    assert residual(["a", "b", "c"], [0, 0, 0], [1.0, 2.0, 3.0]) == pytest.approx(UNKNOWN, nan_ok=True)
    assert residual(["a"] * 3, [0, 1, 2], [1.0, 2.0, 3.0]).dof == residual([], [], []).dof == 0.0


def test_the_scatter_of_a_mean_is_of_seeds_and_residual_together() -> None:
    # within settings 0.1² / 2 + 0.3² / 2 = 0.05 of 2 degrees: 0.04 of the seeds' one, 0.01 of the residual's
    assert scatter(*TWO) == pytest.approx((0.025, 0.05**2 / (0.04**2 + 0.01**2)))
    # seeds that are all there is say the same in each setting: the degrees of one setting
    alone = scatter(["a", "a", "a", "b", "b", "b"], [0, 1, 2] * 2, [math.exp(log) for log in (0, 1, 2, 5, 6, 7)])
    assert alone == pytest.approx((1.0, 2.0))
    assert scatter(["a", "a", "b", "b"], [0, 1, 2, 3], TWO[2]) == pytest.approx((0.025, 2.0))  # no seed is shared


def test_the_interval_of_a_level() -> None:
    found = level([100.0, 104.0, 108.0, 104.0], Scatter(0.01, 4.0))
    half = T4 * 0.1 / 2.0
    assert found == pytest.approx((104.0, 104.0 * math.exp(-half), 104.0 * math.exp(half), 4), rel=1e-6)
    assert level([104.0], UNKNOWN)[:1] == (104.0,) and math.isnan(level([104.0], UNKNOWN).low)
    assert plus_minus(level([104.0], Scatter(1e-4, 4.0))) == "104.0 ± 2.9 (1 seed)"
    assert plus_minus(level([104.0, 104.0], UNKNOWN)) == "104.0 (2 seeds)" and level([], UNKNOWN).n == 0


def test_the_interval_and_both_tests_of_a_comparison() -> None:
    known = Scatter(0.0003, 4.0)
    error = math.sqrt(0.0003 * 2 / 3)
    at = [math.exp(T4 * error)] * 3  # so far from 1 that the interval ends there
    [found] = compared([at], known)
    assert found[:4] == pytest.approx((at[0], 1.0, at[0] ** 2, 3)) and found.p == pytest.approx(0.05, rel=1e-5)
    near = [1.01 * math.exp(-T4_ONE_SIDED * error / 10)] * 3
    [found] = compared([near], Scatter(known.variance / 100, 4.0))  # so far within the margin that it counts as equal
    assert found.p_equal == pytest.approx(0.05, rel=1e-5)
    [below] = compared([[1 / ratio for ratio in near]], Scatter(known.variance / 100, 4.0))
    assert below.p_equal == pytest.approx(found.p_equal)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, math.nan, 0.03, 0.005]) == pytest.approx([0.03, 0.06, math.nan, 0.06, 0.02], nan_ok=True)
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_a_family_decides_less_than_each_of_its_comparisons() -> None:
    known = Scatter(0.0003, 4.0)
    one = [math.exp(1.1 * T4 * math.sqrt(0.0002))] * 3
    [alone] = compared([one], known)
    both = compared([one, [1.0, 1.0, 1.0], one, []], known)
    assert alone.side == 1 and both[0].side == 0 and both[0][:4] == alone[:4]
    assert both[0] == both[2], "what stands there twice counts once"
    assert both[0].p == pytest.approx(2.0 * alone.p) and both[3].n == 0


@pytest.mark.parametrize(
    ("p", "p_equal", "value", "verdict"),
    [
        (0.01, 0.9, 1.05, "higher"),
        (0.01, 0.9, 0.95, "lower"),
        (0.01, 0.02, 1.005, "higher by less than 1 %"),
        (0.2, 0.02, 1.002, "equal within 1 %"),
        (0.2, 0.4, 1.02, "undecided"),
    ],
)
def test_verdicts(p: float, p_equal: float, value: float, verdict: str) -> None:
    found = Comparison(value, 0.9, 1.1, 3, p, p_equal)
    assert found.verdict == verdict and judged(found).endswith(f"(3 seeds), {verdict}")


def test_without_a_second_seed_there_is_no_interval_and_no_verdict() -> None:
    [found] = compared([[1.12]], UNKNOWN)
    assert math.isnan(found.low) and found.side == 0 and not found.is_equal and found.verdict == ""
    assert judged(found) == change(found) == "+12.0 % (1 seed)"


def test_a_ratio_as_a_difference() -> None:
    found = difference(Comparison(1.02, 0.99, 1.05, 3, 0.5, 0.5), 400.0)
    assert found == pytest.approx((8.0, -4.0, 20.0, 3))


SEEDS, SCATTER, OF_SEEDS = 3, 0.01, 0.02
# logarithms of settings over dense: four are equal to it, two differ by the margin, three by much
TRUTH = (0.0, 0.0, 0.0, 0.0, math.log1p(MARGIN), -math.log1p(MARGIN), 0.1, 0.2, -0.3)
FEWER = {2: 1, 7: 1}  # the settings with fewer seeds


def test_intervals_hold_and_a_question_is_answered_wrongly_as_rarely_as_is_said() -> None:
    """Sweeps with fewer seeds here and there, seeds that shift all settings, one of ten without a scatter of seeds."""
    rng, draws = np.random.default_rng(14), 600
    runs = [(at, seed) for at, seed in product(range(-1, len(TRUTH)), range(SEEDS)) if seed < FEWER.get(at, SEEDS)]
    settings, seeds = [at for at, _ in runs], [seed for _, seed in runs]
    truth = {-1: 0.0} | dict(enumerate(TRUTH))
    held = levels = wrong_side = wrong_equal = powerful = 0
    for draw in range(draws):
        shift = rng.normal(0.0, OF_SEEDS if draw % 10 else 0.0, SEEDS)
        values = {run: 400.0 * math.exp(truth[run[0]] + shift[run[1]] + rng.normal(0.0, SCATTER)) for run in runs}
        known = residual(settings, seeds, list(values.values()))
        assert known.dof == len(runs) - len(TRUTH) - 1 - SEEDS + 1
        family = [[values[at, seed] / values[-1, seed] for seed in range(FEWER.get(at, SEEDS))] for at in range(9)]
        found = compared(family, known)
        held += sum(one.low <= math.exp(true) <= one.high for one, true in zip(found, TRUTH, strict=True))
        wrong_side += any(one.side != 0 for one in found[:4])
        wrong_equal += any(one.is_equal for one in found[4:])
        powerful += all(one.side == np.sign(true) for one, true in zip(found[6:], TRUTH[6:], strict=True))
        mean = level([values[0, seed] for seed in range(SEEDS)], scatter(settings, seeds, list(values.values())))
        levels += mean.low <= 400.0 <= mean.high
    assert held / draws / len(TRUTH) == pytest.approx(0.95, abs=0.015)
    assert 0.92 <= levels / draws <= 0.99
    assert wrong_side / draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)
    assert wrong_equal / draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)
    assert powerful == draws


def test_equality_is_found_where_the_scatter_allows_it() -> None:
    rng, draws = np.random.default_rng(14), 300
    equal = different = 0
    for _ in range(draws):
        values = np.exp(rng.normal(0.0, 0.003, (8, SEEDS)))
        settings, seeds = np.indices(values.shape)
        known = residual(settings.ravel().tolist(), seeds.ravel().tolist(), values.ravel().tolist())
        found = compared([(values[at] / values[0]).tolist() for at in range(1, 8)], known)
        equal += sum(one.is_equal for one in found)
        different += any(one.side for one in found)
    assert equal / draws / 7 > 0.6 and different / draws < 0.08
