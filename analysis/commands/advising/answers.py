"""The answer: from which sparsity on layers and the whole model are faster, by how much, and what that costs.

Times of a layer are those of its cells, as pairs of samples of dense and block-sparse; times of the model's layers
together are sums of these (Amdahl), whose intervals come from drawing pairs anew within each cell. A sparsity that was
not measured is interpolated between its neighbours, and says so; nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, median
from typing import Any, NamedTuple

from analysis import theory
from analysis.commands.advising.stored import Measured, Row
from analysis.stats import Estimate, integral_ratio, median_interval
from analysis.theory import Breakeven

SHOWN = (0.5, 0.8, 0.9, 0.95)
GOAL = 0.8
RAMP_END = 0.5  # share of a training run after which its final sparsity is reached
STEPS = 1000  # of a training run, for its integral
MEASURED, INTERPOLATED = "measured", "interpolated"
OUTPUTS = ("passes", "block_size", "target_sparsity", "status", "reason", "error", "cosine")


class Pairs(NamedTuple):
    """Paired samples of one cell, in ms, and how often its work is done."""

    dense: list[float]
    sparse: list[float]
    times: float


class Point(NamedTuple):
    """A speedup over dense at a sparsity; how: measured or interpolated; noisy: a cell that it rests on is."""

    sparsity: float
    speedup: Estimate
    how: str
    noisy: bool


@dataclass(frozen=True)
class Curve:
    """Speedups of one thing in one block size, by sparsity; what was not measured is missing."""

    passes: str
    block_size: int
    points: dict[float, Point]

    @cached_property
    def measured(self) -> list[Point]:
        return [point for _, point in sorted(self.points.items()) if point.how == MEASURED]

    def _crossing(self, of: Callable[[Estimate], float]) -> Breakeven:
        speeds = [of(each.speedup) for each in self.measured]
        if any(map(math.isnan, speeds)):
            return Breakeven("unknown")
        return theory.breakeven([each.sparsity for each in self.measured], speeds)

    @cached_property
    def breakeven(self) -> Breakeven:
        """Where it crosses 1x."""
        return self._crossing(lambda speedup: speedup.value)

    @cached_property
    def bounds(self) -> tuple[Breakeven, Breakeven]:
        """Where the upper ends of the intervals cross 1x, and the lower ones: an interval of the break-even."""
        return self._crossing(lambda speedup: speedup.high), self._crossing(lambda speedup: speedup.low)

    @property
    def sparsest(self) -> Point | None:
        """Of what was measured."""
        return self.measured[-1] if self.measured else None

    def at(self, sparsity: float) -> Point | None:
        return self.points.get(sparsity)


@dataclass(frozen=True)
class Alike:
    """Layers of equal sizes through which as much goes. lost, lost_at_random: means, by (block size, sparsity)."""

    label: str
    names: list[str]
    curves: dict[tuple[str, int], Curve]
    lost: dict[tuple[int, float], tuple[float, float]]
    notes: list[str]
    why_dense: dict[int, str]


@dataclass(frozen=True)
class Integral:
    """What a training run gains over dense when sparsity rises by a ramp to a target: of what decides (`best`)."""

    block_size: int
    ramp: str
    target: float
    theory: float
    measured: Estimate


@dataclass(frozen=True)
class Answer:
    """All that is said of a model. whole: of its layers together; model: measured end to end."""

    measured: Measured
    layers: list[Alike]
    whole: list[Curve]
    model: list[Curve]
    share: dict[str, float]
    bytes: dict[tuple[int, float], tuple[int, int]]
    integrals: list[Integral] = field(default_factory=list)

    def best(self, passes: str) -> Curve | None:
        """What decides: the whole model end to end where it was timed, else its layers; in the best block size.

        That whose interval begins highest at GOAL, else at the sparsest measured; quiet ones first.
        """
        found = self.deciding(passes)
        there = [each for each in found if each.at(GOAL)] or found

        def rank(curve: Curve) -> tuple[bool, float, int]:
            point = curve.at(GOAL) or curve.measured[-1]
            low = point.speedup.value if math.isnan(point.speedup.low) else point.speedup.low
            return not point.noisy, low, -curve.block_size

        return max(there, key=rank, default=None)

    def deciding(self, passes: str) -> list[Curve]:
        """The curves of `best`, in every block size."""
        model = [each for each in self.model if each.passes == passes and each.measured]
        return model or [each for each in self.whole if each.passes == passes and each.measured]


def answer(measured: Measured) -> Answer:
    """What the measurements say."""
    groups = _groups(measured)
    layers = [_alike(label, rows, measured) for label, rows in groups.items()]
    passes, sizes = measured.values("passes"), sorted(measured.values("block_size"))
    keys = [(one, size) for one in passes for size in sizes]
    # Of a GRU products alone are timed, while the layer of torch's is fused and a block-sparse one goes step by step.
    told = [row for row in measured.timed if row["kind"] != "gru"]
    whole = [_curve(measured, key, told) for key in keys]
    model = [_model_curve(measured.model, *key) for key in keys]
    found = Answer(
        measured,
        layers,
        [each for each in whole if each.points],
        [each for each in model if each.points],
        {one: _share(measured, one) for one in passes},
        _bytes(measured),
    )
    return Answer(**{**found.__dict__, "integrals": _integrals(found)})


def _groups(measured: Measured) -> dict[str, list[Row]]:
    """The rows of layers by sizes and load, those of the most work first."""
    found: dict[str, list[Row]] = {}
    heaviest = sorted(measured.timed, key=lambda row: -row["weights"] * row["calls"] * _load(row))
    for row in heaviest:
        recurrent = row["kind"] != "linear"
        load = f"batch {row['batch_size']}, {row['steps']} steps" if recurrent else f"n {row['tokens']}"
        found.setdefault(f"{row['sizes']}, {load}", []).append(row)
    return found


def _load(row: Row) -> int:
    return int(row["tokens"] if row["kind"] == "linear" else row["batch_size"] * row["steps"])


def _alike(label: str, rows: list[Row], measured: Measured) -> Alike:
    names = list(dict.fromkeys(row["name"] for row in rows))
    count = sum({row["name"]: row["count"] for row in rows}.values())
    curves = {
        (passes, size): _curve(measured, (passes, size), rows)
        for passes in measured.values("passes")
        for size in sorted(measured.values("block_size"))
        if any(row["candidate"] and row["block_size"] == size for row in rows)
    }
    lost: dict[tuple[int, float], tuple[float, float]] = {}
    for key in {(row["block_size"], row["target_sparsity"]) for row in rows}:
        mine = [row for row in rows if (row["block_size"], row["target_sparsity"]) == key and row["lost"] is not None]
        if mine:
            lost[key] = fmean(row["lost"] for row in mine), fmean(row["lost_at_random"] for row in mine)
    notes = list(dict.fromkeys(note for row in rows if row["note"] for note in row["note"].split("; ")))
    dense = {row["block_size"]: row["reason"] for row in rows if not row["candidate"]}
    return Alike(f"{count} × {label}" if count > 1 else label, names, curves, lost, notes, dense)


def _curve(measured: Measured, key: tuple[str, int], rows: Sequence[Row]) -> Curve:
    """Of layers together: each sparsity at which all are measured, or can be interpolated where it is one of SHOWN."""
    passes, size = key
    mine = [row for row in rows if (row["passes"], row["block_size"]) == key]
    by_layer: dict[str, list[Row]] = {}
    for row in mine:
        by_layer.setdefault(row["name"], []).append(row)
    points: dict[float, Point] = {}
    if any(row["candidate"] for row in mine):
        for sparsity in sorted({row["target_sparsity"] for row in mine} | set(SHOWN)):
            point = _point(measured, list(by_layer.values()), sparsity)
            if point is not None:
                points[sparsity] = point
    return Curve(passes, size, points)


def _point(measured: Measured, layers: Sequence[Sequence[Row]], sparsity: float) -> Point | None:
    """Of layers together at one sparsity; None where one of them is not known there."""
    pairs, how, noisy = [], MEASURED, False
    for rows in layers:
        row = next((each for each in rows if each["target_sparsity"] == sparsity), None)
        found = None if row is None else _pairs(measured, row)
        if found is None:
            found, how = _between(measured, rows, sparsity), INTERPOLATED
        if found is None:
            return None
        pairs += found[0]
        noisy |= found[1]
    return Point(sparsity, _ratio(pairs), how, noisy)


Found = tuple[list[Pairs], bool]  # the pairs of a layer's cells, and whether one of them is noisy


def _pairs(measured: Measured, row: Row) -> Found | None:
    """The pairs of a layer at a sparsity; None where a cell has no time."""
    pairs, noisy = [], False
    for cell_id, times in zip(row["cells"], row["times"], strict=True):
        cell = measured.cells.get(cell_id)
        if cell is None or cell["status"] != "ok":
            return None
        dense = list(cell["baseline_samples_ms"])
        is_dense = cell["backend"] == cell["baseline"]
        pairs.append(Pairs(dense, dense if is_dense else list(cell["samples_ms"]), times))
        noisy |= bool(cell["noisy"])
    return pairs, noisy


def _between(measured: Measured, rows: Sequence[Row], sparsity: float) -> Found | None:
    """A layer at a sparsity between two that were measured: time is linear in density."""
    known = sorted((row["target_sparsity"], found) for row in rows if (found := _pairs(measured, row)) is not None)
    below = [each for each in known if each[0] < sparsity]
    above = [each for each in known if each[0] > sparsity]
    if not below or not above:
        return None
    (low, one), (high, other) = below[-1], above[0]
    share = (sparsity - low) / (high - low)
    relative = (1.0 - share) / _ratio(one[0]).value + share / _ratio(other[0]).value
    pairs = [Pairs(each.dense, [dense * relative for dense in each.dense], each.times) for each in other[0]]
    return pairs, one[1] or other[1]


def _ratio(pairs: Iterable[Pairs]) -> Estimate:
    """Dense time of all over block-sparse time of all; equal cells count once, as often as they are done."""
    merged: dict[int, Pairs] = {}
    for each in pairs:
        key = hash((tuple(each.dense), tuple(each.sparse)))
        before = merged.get(key)
        merged[key] = each if before is None else each._replace(times=before.times + each.times)
    found = list(merged.values())
    return integral_ratio([one.dense for one in found], [one.sparse for one in found], [one.times for one in found])


def _model_curve(rows: Sequence[Row], passes: str, size: int) -> Curve:
    """The whole model, end to end."""
    points = {
        row["target_sparsity"]: Point(
            row["target_sparsity"],
            median_interval([dense / ours for dense, ours in zip(row["dense_ms"], row["sparse_ms"], strict=True)]),
            MEASURED,
            bool(row["noisy"]),
        )
        for row in rows
        if (row["passes"], row["block_size"], row["status"]) == (passes, size, "ok")
    }
    return Curve(passes, size, points)


def _share(measured: Measured, passes: str) -> float:
    """Dense time of the layers as a share of the whole model's; NaN where that is not known."""
    whole = [median(row["dense_ms"]) for row in measured.model if (row["passes"], row["status"]) == (passes, "ok")]
    layers: dict[str, float] = {}
    for row in measured.timed:
        if row["passes"] == passes and row["kind"] != "gru" and (found := _pairs(measured, row)) is not None:
            layers.setdefault(row["name"], sum(median(each.dense) * each.times for each in found[0]))
    return sum(layers.values()) / median(whole) if whole and layers else math.nan


def _bytes(measured: Measured) -> dict[tuple[int, float], tuple[int, int]]:
    """(dense, block-sparse) bytes of the weights of all layers, by block size and sparsity."""
    found: dict[tuple[int, float], tuple[int, int]] = {}
    passes = measured.values("passes")[0]
    for row in (row for row in measured.timed if row["passes"] == passes):
        key = row["block_size"], row["target_sparsity"]
        dense, sparse = found.get(key, (0, 0))
        found[key] = dense + row["dense_bytes"], sparse + row["sparse_bytes"]
    return dict(sorted(found.items()))


def _integrals(found: Answer) -> list[Integral]:
    """Of every block size in which training was timed, by each ramp to the sparsities that are shown."""
    return [
        Integral(curve.block_size, kind, target, *_integral(curve, kind, target))
        for curve in found.deciding("training")
        for target in SHOWN
        if (point := curve.at(target)) and point.how == MEASURED
        for kind in theory.RAMPS
    ]


def _integral(curve: Curve, kind: str, target: float) -> tuple[float, Estimate]:
    """(theory, measured): dense time over the time of a run, each step on the faster path at its sparsity.

    The relative time is interpolated between the measured sparsities, and is 1 at none, where the dense path runs.
    """
    rhos = [theory.ramp(kind, target, (step + 0.5) / STEPS, RAMP_END) for step in range(STEPS)]

    def over(of: Callable[[Estimate], float]) -> float:
        known = {0.0: 1.0} | {each.sparsity: min(1.0, 1.0 / of(each.speedup)) for each in curve.measured}
        return 1.0 / fmean(_interpolated(known, rho) for rho in rhos)

    measured = Estimate(
        over(lambda one: one.value), over(lambda one: one.low), over(lambda one: one.high), len(curve.measured)
    )
    return theory.training_speedup(STEPS, rhos), measured


def _interpolated(known: dict[float, float], at: float) -> float:
    """Linear between the points of `known`; the last one beyond it, where rounding leads there."""
    ordered = sorted(known)
    right = next((each for each in ordered if each >= at), ordered[-1])
    left = max((each for each in ordered if each <= at), default=right)
    if right == left:
        return known[right]
    share = (at - left) / (right - left)
    return (1.0 - share) * known[left] + share * known[right]


def as_json(found: Answer) -> dict[str, Any]:
    """The answer as plain values, for programs."""
    measured = found.measured
    return {
        "source": measured.source,
        "layers": [_layer_json(each) for each in found.layers],
        "left": [
            {"name": row["name"], "reason": row["reason"]} for row in measured.layers if row["block_size"] is None
        ],
        "together": [_curve_json(each) for each in found.whole],
        "end_to_end": [_curve_json(each) for each in found.model],
        "outputs": [{name: row[name] for name in OUTPUTS} for row in measured.model],
        "share_of_model": {name: _plain(value) for name, value in found.share.items()},
        "bytes": [
            {"block_size": size, "sparsity": at, "dense": dense, "sparse": sparse}
            for (size, at), (dense, sparse) in found.bytes.items()
        ],
        "training_integral": [
            {"block_size": each.block_size, "ramp": each.ramp, "target": each.target, "theory": each.theory,
             "measured": _estimate_json(each.measured)}
            for each in found.integrals
        ],
    }  # fmt: skip


def _layer_json(layer: Alike) -> dict[str, Any]:
    return {
        "label": layer.label,
        "names": layer.names,
        "curves": [_curve_json(each) for each in layer.curves.values()],
        "lost": [
            {"block_size": size, "sparsity": at, "by_magnitude": by, "at_random": random}
            for (size, at), (by, random) in sorted(layer.lost.items())
        ],
        "notes": layer.notes,
        "dense_in": {str(size): reason for size, reason in layer.why_dense.items()},
    }


def _curve_json(curve: Curve) -> dict[str, Any]:
    low, high = curve.bounds
    return {
        "passes": curve.passes,
        "block_size": curve.block_size,
        "breakeven": {"kind": curve.breakeven.kind, "sparsity": curve.breakeven.sparsity,
                      "low": low.sparsity, "high": high.sparsity},
        "speedups": [
            {"sparsity": at, **_estimate_json(point.speedup), "how": point.how, "noisy": point.noisy}
            for at, point in sorted(curve.points.items())
        ],
    }  # fmt: skip


def _estimate_json(one: Estimate) -> dict[str, Any]:
    return {"value": _plain(one.value), "low": _plain(one.low), "high": _plain(one.high)}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
