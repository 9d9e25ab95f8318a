"""Intervals: a bootstrap for the median of timing ratios, Student's t with a pooled residual for replicates over seeds.

Three seeds say little about their own scatter: t with two degrees of freedom is 4.3, and the half width of such an
interval is itself known to a factor of two or three only. All settings of a sweep are therefore taken to scatter alike,
on the scale of logarithms, and what is known of it is pooled over them (`residual`, `scatter`). Comparisons that answer
one question are a family (`compared`): each has an interval of its own, and its verdict is corrected for the others.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

NORMAL = NormalDist()
RESAMPLES = 2000
FARTHEST = (
    600.0  # a ratio's logarithm is cut there: replicates that differ wildly bound nothing, and no double holds it
)
ERROR_RATE = 0.05  # of a question: the chance that any of its verdicts is wrong
MARGIN = 0.01  # perplexities, or bits a character, that differ by less, as a share, are called equal
EXACT = 1e-12  # no logarithm of a perplexity is known better


class Estimate(NamedTuple):
    """A value with its 95 % interval and the number of observations; low and high are NaN where n = 1 allows none."""

    value: float
    low: float
    high: float
    n: int

    def side(self, of: float) -> int:
        """1 where the whole interval lies above `of`, -1 where it lies below, 0 where it holds it or there is none."""
        return int(self.low > of) - int(self.high < of)


NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


def median_interval(ratios: Sequence[float], seed: int = 0) -> Estimate:
    """Median with its 95 % percentile-bootstrap interval (Efron 1979), the same at every call.

    Drawn from order statistics: the middle of n uniform draws is Beta distributed, and floor(n u) is the position in
    the sorted sample that a resample's middle takes. This equals resampling in distribution and costs no n x RESAMPLES
    array.
    Samples taken in a row are not independent, so the interval is rather too narrow than too wide.
    """
    values = np.sort(np.asarray(ratios, dtype=float))
    n = len(values)
    if n < 2:
        return Estimate(float(values[0]) if n else math.nan, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    lower_rank = (n + 1) // 2
    lower = rng.beta(lower_rank, n + 1 - lower_rank, RESAMPLES)
    upper = lower if n % 2 else lower + (1.0 - lower) * rng.beta(1, n - lower_rank, RESAMPLES)
    positions = [np.minimum((n * draw).astype(int), n - 1) for draw in (lower, upper)]
    medians = (values[positions[0]] + values[positions[1]]) / 2.0
    low, high = np.quantile(medians, [0.025, 0.975])
    return Estimate(float(np.median(values)), float(low), float(high), n)


def step_weights(steps: Sequence[float], total: float) -> np.ndarray:
    """How many of `total` steps each probe stands for: the trapezoid rule over [0, total], its ends held constant.

    steps: where the probes were taken, increasing. The weights sum to `total`.
    """
    at = np.asarray(steps, dtype=float)
    edges = np.concatenate([[0.0], (at[1:] + at[:-1]) / 2.0, [max(float(total), at[-1])]])
    return np.diff(edges)


def integral_ratio(
    above: Sequence[Sequence[float]], below: Sequence[Sequence[float]], weights: Sequence[float], seed: int = 0
) -> Estimate:
    """sum(weight x median of above) / sum(weight x median of below) over probes, with a bootstrap interval.

    above[i], below[i]: the paired samples of probe i; pairs are drawn together, within their probe. NaN bounds where no
    probe has two pairs. n: pairs in all. The interval knows the scatter of the pairs, not the error of the quadrature.
    """
    rng = np.random.default_rng(seed)
    sums = np.zeros((2, RESAMPLES + 1))  # the first column is the sample itself
    for over, under, weight in zip(above, below, weights, strict=True):
        pairs = np.asarray([over, under], dtype=float)
        count = pairs.shape[1]
        drawn = np.vstack([np.arange(count), rng.integers(0, count, (RESAMPLES, count))])
        sums += weight * np.median(pairs[:, drawn], axis=2)
    ratios = sums[0] / sums[1]
    pairs_in_all = sum(map(len, above))
    if max(map(len, above)) < 2:
        return Estimate(float(ratios[0]), math.nan, math.nan, pairs_in_all)
    low, high = np.quantile(ratios[1:], [0.025, 0.975])
    return Estimate(float(ratios[0]), float(low), float(high), pairs_in_all)


def scaled(estimate: Estimate, divisor: float) -> Estimate:
    """An estimate over a number that is known without error, such as a prediction; nothing where that has no bound."""
    if not math.isfinite(divisor):
        return NOTHING
    return Estimate(estimate.value / divisor, estimate.low / divisor, estimate.high / divisor, estimate.n)


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean with its 95 % t-interval over replicates; one replicate has a value and no interval."""
    array = np.asarray(values, dtype=float)
    n = len(array)
    if n < 2:
        return Estimate(float(array[0]) if n else math.nan, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, 0.975)) * float(array.std(ddof=1)) / math.sqrt(n)
    mean = float(array.mean())
    return Estimate(mean, mean - half, mean + half, n)


def ratio_interval(ratios: Sequence[float]) -> Estimate:
    """Geometric mean of ratios with its 95 % interval: `mean_interval` of their logarithms."""
    if len(ratios) == 0:
        return NOTHING
    logs = mean_interval([math.log(ratio) for ratio in ratios])
    value, low, high = map(_exp, logs[:3])
    return Estimate(value, low, high, logs.n)


def quotient(one: Estimate, other: Estimate) -> tuple[Estimate, float]:
    """(one / other, p of their being equal), of two positive figures measured apart, each with its 95 % interval.

    On logarithms the half widths of the intervals add in squares, as those of independent figures do; the test is that
    of the normal distribution.
    """
    log = math.log(one.value / other.value)
    halves = [(math.log(each.high) - math.log(each.low)) / 2.0 for each in (one, other)]
    half = math.hypot(*halves)
    if math.isnan(half):
        return Estimate(math.exp(log), math.nan, math.nan, 0), math.nan
    p = 2.0 * NORMAL.cdf(-abs(log) * NORMAL.inv_cdf(0.975) / half) if half else float(log == 0.0)
    return Estimate(math.exp(log), math.exp(log - half), math.exp(log + half), 0), p


def p_of_one(ratios: Sequence[float]) -> float:
    """p of ratios being 1 in the mean (t, on logarithms); NaN of fewer than two, or where all are the same."""
    logs = _logs(ratios)
    spread = float(np.std(logs, ddof=1)) if len(logs) > 1 else 0.0
    if not spread:
        return math.nan
    t = float(np.mean(logs)) / (spread / math.sqrt(len(logs)))
    return 2.0 * float(stdtr(len(logs) - 1, -abs(t)))


def _exp(log: float) -> float:
    return math.exp(min(max(log, -FARTHEST), FARTHEST))


def _logs(values: Sequence[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):  # no bits at all are few bits
        logs: np.ndarray = np.clip(np.log(np.asarray(values, dtype=float)), -FARTHEST, FARTHEST)
    return logs


class Scatter(NamedTuple):
    """A variance of logarithms with its degrees of freedom; without any it is unknown, and bounds nothing."""

    variance: float
    dof: float

    def error(self, share: float) -> float:
        """The standard error of what has `share` of the variance; NaN where it is unknown."""
        return max(math.sqrt(self.variance * share), EXACT) if self.dof > 0 else math.nan


UNKNOWN = Scatter(math.nan, 0.0)


def residual(settings: Sequence[Hashable], seeds: Sequence[Hashable], values: Sequence[float]) -> Scatter:
    """What is left of log(value) = setting + seed + residual, by least squares: the scatter of comparisons.

    A randomised block design with the seeds as blocks (Montgomery, Design and Analysis of Experiments, ch. 4); settings
    with fewer seeds are welcome (Searle, Linear Models for Unbalanced Data, ch. 4): degrees of freedom are runs less
    the rank of the model. One seed leaves none. Each argument has one entry a run.
    """
    within, dof, _ = _sums(settings, seeds, values)
    return Scatter(within / dof, float(dof)) if dof else UNKNOWN


def scatter(settings: Sequence[Hashable], seeds: Sequence[Hashable], values: Sequence[float]) -> Scatter:
    """How log(value) scatters over the seeds of a setting, pooled over settings: the scatter of one setting's mean.

    Settings share their seeds, so they do not tell it independently: it is the sum of two mean squares, of the seeds
    and of the residual, and has the degrees of freedom of such a sum (Satterthwaite, Biometrics Bulletin 2 (1946) 110).
    Where the seeds alone scatter, these are as many as of one setting.
    """
    rest, rest_dof, (total, dof) = _sums(settings, seeds, values)
    if not dof:
        return UNKNOWN
    parts = [(max(total - rest, 0.0), dof - rest_dof), (rest, rest_dof)]
    spread = sum(part**2 / of for part, of in parts if of)
    return Scatter(total / dof, min(total**2 / spread, float(dof)) if spread else float(dof))


def _sums(
    settings: Sequence[Hashable], seeds: Sequence[Hashable], values: Sequence[float]
) -> tuple[float, int, tuple[float, int]]:
    """Sum of squares and degrees of freedom that setting + seed leaves of log(value); both that setting leaves."""
    logs = _logs(values)
    if not len(logs):
        return 0.0, 0, (0.0, 0)
    by_setting, by_seed = (
        np.array([[one == other for other in dict.fromkeys(labels)] for one in labels], dtype=float)
        for labels in (settings, seeds)
    )
    found = []
    for design in (np.hstack([by_setting, by_seed]), by_setting):
        fitted, _, rank, _ = np.linalg.lstsq(design, logs, rcond=None)
        found.append((float(np.sum((logs - design @ fitted) ** 2)), len(logs) - int(rank)))
    (rest, rest_dof), total = found
    return rest, rest_dof, total


def level(values: Sequence[float], known: Scatter) -> Estimate:
    """Mean over the seeds of a setting with its 95 % interval, by the `scatter` that is pooled over settings."""
    n = len(values)
    if n == 0:
        return NOTHING
    mean = float(np.mean(np.asarray(values, dtype=float)))
    half = float(stdtrit(known.dof, 0.975)) * known.error(1.0 / n) if known.dof > 0 else math.nan
    if math.isnan(half):
        return Estimate(mean, math.nan, math.nan, n)
    low, high = (_exp(float(_logs([mean])[0]) + side) for side in (-half, half))
    return Estimate(mean, low, high, n)


class Comparison(NamedTuple):
    """A ratio with its own 95 % interval, the number of seeds that both sides have, and what the question says of it.

    p: that they are equal; p_equal: that they differ by MARGIN or more. Both are corrected for the other comparisons of
    the question, so a verdict may be 'undecided' although the interval, which holds by itself, leaves out 1. NaN
    without an interval.
    """

    value: float
    low: float
    high: float
    n: int
    p: float = math.nan
    p_equal: float = math.nan

    @property
    def side(self) -> int:
        """1 where the ratio is above 1, -1 where it is below, 0 where this is not decided."""
        return 0 if not self.p < ERROR_RATE else 1 if self.value > 1.0 else -1

    @property
    def is_equal(self) -> bool:
        """Whether the two are shown to differ by less than the margin."""
        return self.p_equal < ERROR_RATE

    @property
    def verdict(self) -> str:
        """'higher', 'lower' (either maybe 'by less than 1 %'), 'equal within 1 %', 'undecided'; '' without interval."""
        if math.isnan(self.low):
            return ""
        share = f"{100.0 * MARGIN:.2g} %"
        if self.side:
            return ("higher" if self.side > 0 else "lower") + (f" by less than {share}" if self.is_equal else "")
        return f"equal within {share}" if self.is_equal else "undecided"


def compared(family: Sequence[Sequence[float]], known: Scatter, margin: float = MARGIN) -> list[Comparison]:
    """Comparisons of perplexities, or of bits, that answer one question, each of ratios paired by seed.

    The interval of each is t's with the `residual` of the whole sweep: a pair has twice its variance. Two tests of
    each: whether the two differ, and whether they differ by less than `margin` (two one-sided tests: Schuirmann, J.
    Pharmacokin. Biopharm. 15 (1987) 657), on logarithms: 1 % is from 1/1.01 to 1.01. Each kind is corrected over the
    family (Holm, Scand. J. Statist. 6 (1979) 65): in 95 % of such families no two settings that are alike are called
    different, and in 95 % none that are not alike are called equal. A comparison that stands there twice counts once.
    """
    each = {tuple(ratios): _alone(ratios, known, math.log1p(margin)) for ratios in family}
    differ = holm([one.p for one in each.values()])
    equal = holm([one.p_equal for one in each.values()])
    corrected = {
        ratios: one._replace(p=p, p_equal=p_equal)
        for (ratios, one), p, p_equal in zip(each.items(), differ, equal, strict=True)
    }
    return [corrected[tuple(ratios)] for ratios in family]


def _alone(ratios: Sequence[float], known: Scatter, bound: float) -> Comparison:
    """A comparison before it is corrected for any others."""
    n = len(ratios)
    if n == 0:
        return Comparison(*NOTHING)
    log = float(np.mean(_logs(ratios)))
    if known.dof <= 0:
        return Comparison(_exp(log), math.nan, math.nan, n)
    error = known.error(2.0 / n)
    half = float(stdtrit(known.dof, 0.975)) * error
    p = 2.0 * float(stdtr(known.dof, -abs(log) / error))
    p_equal = float(stdtr(known.dof, (abs(log) - bound) / error))
    return Comparison(_exp(log), _exp(log - half), _exp(log + half), n, p, p_equal)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for each other, step down (Holm 1979); what is NaN was not tested and does not count."""
    tested = sorted((p, at) for at, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for done, (p, at) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - done) * p))
        corrected[at] = largest
    return corrected


def difference(ratio: Comparison, other: float) -> Estimate:
    """A comparison as a difference from the perplexity `other` of its second side, whose own error is left out."""
    value, low, high = (other * (part - 1.0) for part in ratio[:3])
    return Estimate(value, low, high, ratio.n)


def signed(estimate: Estimate, digits: int = 1) -> str:
    """'-2.0 [-5.1, +1.2]', without the interval where there is none."""
    if estimate.n == 0:
        return "–"
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"
    return f"{estimate.value:+.{digits}f}{interval}"


def words(estimate: Estimate, digits: int = 1) -> str:
    """'108.1 [105.2, 111.0]', or '108.1 (one seed)' where there is no interval."""
    if estimate.n == 0:
        return "–"
    value = f"{estimate.value:.{digits}f}"
    if math.isnan(estimate.low):
        return f"{value} (one seed)"
    return f"{value} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def plus_minus(estimate: Estimate, digits: int = 1) -> str:
    """'108.1 ± 2.9 (3 seeds)', or '108.1 (1 seed)' where there is no interval."""
    if estimate.n == 0:
        return "–"
    interval = "" if math.isnan(estimate.high) else f" ± {(estimate.high - estimate.low) / 2.0:.{digits}f}"
    return f"{estimate.value:.{digits}f}{interval} ({_seeds(estimate.n)})"


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def change(ratio: Estimate | Comparison) -> str:
    """A ratio as a change in per cent: '+12.0 % [+10.1, +13.9] (3 seeds)', without the interval where there is none."""
    if ratio.n == 0:
        return "–"
    value, low, high = (f"{100 * (part - 1):+.1f}" for part in ratio[:3])
    interval = "" if math.isnan(ratio.low) else f" [{low}, {high}]"
    return f"{value} %{interval} ({_seeds(ratio.n)})"


def judged(ratio: Comparison) -> str:
    """`change` with its verdict: '+12.0 % [+10.1, +13.9] (3 seeds), higher'."""
    return ", ".join(filter(None, (change(ratio), ratio.verdict)))


def times(estimate: Estimate) -> str:
    """A speedup with its interval: '4.21× [4.10, 4.33]'."""
    if math.isnan(estimate.value):
        return "–"
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}×{interval}"


NOTHING_KEPT = "no block kept"


def factor(value: float) -> str:
    """A speedup without an interval: '5.00×', '–' where there is none, and why where theory has no bound."""
    return "–" if math.isnan(value) else f"no bound: {NOTHING_KEPT}" if math.isinf(value) else f"{value:.2f}×"
