"""The speed of native against dense must not fall below its floor: paired ratios taken in one process.

A bootstrap interval of the median ratio wholly above the floor is ok, wholly below is slow, else undecided: then four
times the samples decide, and only `slow` fails. Run by `nox -s bench`; other sessions skip it.
"""

import random
import tomllib
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from bench.timing import Samples, WallTimer, pinned_threads, sample_pairs
from kernels.check import check
from kernels.problem import GemmProblem
from kernels.registry import BACKENDS

FLOORS = Path(__file__).with_name("floors.toml")
PAIRS = 40

# m, k, n, block_size, sparsity
SHAPES = {
    "recurrent-b16": (1024, 256, 20, 16, 0.8),
    "square-b32": (1024, 1024, 32, 32, 0.9),
    "wide-b8": (1024, 1024, 80, 8, 0.8),
    "dense-b16": (1024, 1024, 32, 16, 0.0),
}


def interval(ratios: list[float], draws: int = 500) -> tuple[float, float]:
    """The middle 99 % of medians of resamples."""
    source = random.Random(0)
    medians = sorted(median(source.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[draws // 200], medians[-1 - draws // 200]


def verdict(ratios: list[float], floor: float) -> str:
    low, high = interval(ratios)
    return "ok" if low >= floor else "slow" if high < floor else "undecided"


def floor_of(name: str, path: Path = FLOORS) -> float:
    """The floor of one shape; fails loudly where there is none."""
    floors: dict[str, Any] = tomllib.loads(path.read_text()) if path.exists() else {}
    if name not in floors:
        pytest.fail(f"{path.name} has no floor for {name!r}: a gate without a baseline is no gate")
    return float(floors[name])


def measure(name: str, pairs: int) -> Samples:
    problem = GemmProblem(*SHAPES[name])
    reason = BACKENDS["native"].unsupported(problem)
    if reason:
        pytest.fail(f"native cannot be measured: {reason}")
    native, dense = (BACKENDS[side].prepare(problem) for side in ("native", "dense"))
    assert check(native, native.weight, problem.x)[1] is None
    return sample_pairs(native, dense, WallTimer("cpu"), min_pairs=pairs)


@pytest.mark.parametrize("name", SHAPES)
def test_native_keeps_its_lead_over_dense(name: str, benchmark: Any) -> None:
    if benchmark.disabled:
        pytest.fail("pytest-benchmark is disabled here (xdist?), so nothing was measured")
    floor = floor_of(name)
    with pinned_threads(1):
        ratios = measure(name, PAIRS).ratios
        outcome = verdict(ratios, floor)
        if outcome == "undecided":
            ratios = measure(name, 4 * PAIRS).ratios
            outcome = verdict(ratios, floor)
        benchmark.extra_info |= {"ratio": median(ratios), "floor": floor, "verdict": outcome, "pairs": len(ratios)}
        benchmark.pedantic(BACKENDS["native"].prepare(GemmProblem(*SHAPES[name])), rounds=20, warmup_rounds=2)
    low, high = interval(ratios)
    assert outcome != "slow", f"native / dense is {median(ratios):.2f}x [{low:.2f}, {high:.2f}], its floor is {floor}x"
