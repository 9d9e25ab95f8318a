"""Intervals: a bootstrap for the median of timing ratios, Student's t for replicates over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

RESAMPLES = 2000
FARTHEST = (
    600.0  # a ratio's logarithm is cut there: replicates that differ wildly bound nothing, and no double holds it
)


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
    value, low, high = (math.exp(min(max(log, -FARTHEST), FARTHEST)) for log in logs[:3])
    return Estimate(value, low, high, logs.n)


def compared(family: Sequence[Sequence[float]]) -> list[Estimate]:
    """Comparisons of perplexities that are read together, each of ratios paired by seed: `ratio_interval` of each.

    Every comparison of two settings is made here: each against dense, neighbours of the slides, equal stored weights.
    """
    return [ratio_interval(ratios) for ratios in family]


def differences(family: Sequence[Sequence[float]]) -> list[Estimate]:
    """The same of differences paired by seed: `mean_interval` of each."""
    return [mean_interval(paired) for paired in family]


def signed(estimate: Estimate) -> str:
    """'-2.0 [-5.1, +1.2]', without the interval where there is none."""
    if estimate.n == 0:
        return "–"
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:+.1f}, {estimate.high:+.1f}]"
    return f"{estimate.value:+.1f}{interval}"


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
    value = f"{estimate.value:.{digits}f}"
    if estimate.n == 1:
        return f"{value} (1 seed)"
    return f"{value} ± {estimate.high - estimate.value:.{digits}f} ({estimate.n} seeds)"


def change(ratio: Estimate) -> str:
    """A ratio as a change in per cent: '+12.0 % [+10.1, +13.9] (3 seeds)'."""
    if ratio.n == 0:
        return "–"
    value, low, high = (f"{100 * (part - 1):+.1f}" for part in ratio[:3])
    return f"{value} % (1 seed)" if ratio.n == 1 else f"{value} % [{low}, {high}] ({ratio.n} seeds)"


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
