"""The speed of native against its baseline must not fall below its floor: paired ratios taken in one process.

A bootstrap interval of the median ratio wholly above the floor is ok, wholly below is slow, else undecided. Few pairs
are believed where they say ok; more, and then four times as many, are taken where they do not, and only `slow` at the
last look fails.

Pairs in which our threads waited for a core that others kept busy tell how long they waited, and are left out. Where
most are such, or a median time is twice its minimum all the same (a hypervisor says nothing of its waits), nothing is
decided, however many more there were, and no more are taken. What stays undecided is said at the end of the session.
Run by `nox -s bench`; other sessions skip it.
"""

import ctypes
import random
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from torch import Tensor
from waits import Watched, cores_are_free

from bench.timing import Samples, pinned_threads, sampled
from kernels.bsr import BSRMatrix
from kernels.check import check
from kernels.native.products import pack
from kernels.problem import GemmProblem, Launch, LstmProblem, Problem
from kernels.registry import BACKENDS

pytestmark = pytest.mark.alone
FLOORS = Path(__file__).with_name("floors.toml")
LOOKS = 12, 40, 160  # pairs in which nobody waited
FEWEST = 6  # pairs before anything is said of them
LEAST_SECONDS = 0.5  # of a look
BUSY_SECONDS = 1.5  # then most pairs have waited or have not
MOST_SECONDS = 20.0
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
THREADS = 2

OPERATOR: dict[str, Any] = {"call": "operator"}
ACTIVATIONS: dict[str, Any] = {"call": "operator", "layout": "column"}
# The recurrent step of AWD-LSTM at batch 20 and 80, and a layer of it in training; what people hold and call (the sweep
# `operators`): a linear layer, odd blocks, a wide weight, one column, layers of published sizes
LAYER = LstmProblem(1152, 1152, 20, 35, 16, 0.8)
PROBLEMS: dict[str, Problem] = {
    **{f"{op}-n{n}": GemmProblem(4608, 1152, n, 16, 0.8, op=op) for op in ("dsd", "dsd_t", "sdd") for n in (20, 80)},
    "lstm-b16": LAYER,
    "lstm-b32": LstmProblem(1152, 1152, 20, 35, 32, 0.8),
    "lstm-dense": LstmProblem(1152, 1152, 20, 35, 16, 0.0),
    "packing": LAYER,
    "linear": GemmProblem(3072, 768, 128, 32, 0.8, **ACTIVATIONS),
    "linear-b8": GemmProblem(3072, 768, 128, 8, 0.8, **ACTIVATIONS),
    "linear-row": GemmProblem(3072, 768, 128, 32, 0.8, **OPERATOR),
    "step-activations": GemmProblem(4608, 1152, 80, 16, 0.8, **ACTIVATIONS),
    "odd-b13": GemmProblem(2600, 650, 32, 13, 0.8, **ACTIVATIONS),
    "wide": GemmProblem(2048, 8192, 512, 32, 0.8, **ACTIVATIONS),
    "one-column": GemmProblem(6144, 1536, 1, 32, 0.8, **OPERATOR),
    "lstm-650": LstmProblem(650, 650, 20, 35, 10, 0.8),
    "lstm-1500": LstmProblem(1500, 1500, 20, 35, 20, 0.8),
    "lstm-256": LstmProblem(256, 256, 64, 100, 16, 0.8),
    "lstm-512": LstmProblem(512, 512, 32, 35, 16, 0.9),
    "lstm-few": LstmProblem(1152, 1152, 20, 35, 16, 0.95),
}


@pytest.fixture(autouse=True, scope="module")
def memory_is_kept() -> None:
    """As in the workers of a sweep: glibc would give large tensors back, and get them again zeroed page by page."""
    if hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_MMAP_MAX, 0)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class Packing:
    """What a step of training packs: both weights, as such for the forward pass and turned for the backward pass."""

    kernel = "packing"

    def __init__(self, problem: LstmProblem) -> None:
        self.weights = [BSRMatrix.from_dense(problem.weights[name], mask) for name, mask in problem.masks.items()]
        columns = {"weight_ih": problem.steps * problem.batch_size, "weight_hh": problem.batch_size}
        self.columns = [columns[name] for name in problem.masks]

    def __call__(self) -> None:
        for weight, columns in zip(self.weights, self.columns, strict=True):
            for turned in (False, True):
                pack(weight.data, weight.index, columns, turned, lies=True, in_layer=True)

    def outputs(self) -> dict[str, Tensor]:
        return {}

    def poison(self) -> None: ...


def interval(ratios: list[float], draws: int = 500) -> tuple[float, float]:
    """The middle 99 % of medians of resamples."""
    source = random.Random(0)
    medians = sorted(median(source.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[draws // 200], medians[-1 - draws // 200]


def verdict(samples: Samples, floor: float) -> str:
    low, high = interval(samples.ratios)
    return "ok" if low >= floor else "slow" if high < floor and not samples.disturbed else "undecided"


def floor_of(name: str, path: Path = FLOORS) -> float:
    """The floor of one entry; fails loudly where there is none, or one that nothing is measured against."""
    floors: dict[str, Any] = tomllib.loads(path.read_text()) if path.exists() else {}
    if name not in floors:
        pytest.fail(f"{path.name} has no floor for {name!r}: a gate without a baseline is no gate")
    if orphans := sorted(floors.keys() - PROBLEMS.keys()):
        pytest.fail(f"{path.name} has floors that nothing is measured against: {', '.join(orphans)}")
    return float(floors[name])


def prepare(name: str) -> tuple[Launch, Launch]:
    """What is gated and its baseline, both checked."""
    problem = PROBLEMS[name]
    reason = BACKENDS["native"].unsupported(problem)
    if reason:
        pytest.fail(f"native cannot be measured: {reason}")
    native = BACKENDS["native"].prepare(problem)
    assert check(native, problem)[1] is None
    if name == "packing":
        assert isinstance(problem, LstmProblem)
        return Packing(problem), native
    baseline = BACKENDS["torch_lstm" if isinstance(problem, LstmProblem) else "dense"].prepare(problem)
    assert check(baseline, problem)[1] is None
    return native, baseline


def measure(launches: tuple[Launch, Launch], pairs: int) -> tuple[Samples, bool]:
    """So many pairs in which nobody waited, or fewer where they take long, and whether most were such.

    All pairs, and no, where so few were that they say nothing.
    """
    timer, begin = Watched(), time.perf_counter()
    kept: list[int] = []
    for samples in sampled(*launches, timer):
        spent, taken = time.perf_counter() - begin, len(samples.backend)
        if not timer.pair_waited():
            kept.append(taken - 1)
        quiet = 2 * len(kept) >= taken
        told = spent >= (BUSY_SECONDS if taken >= FEWEST else 2 * BUSY_SECONDS)
        if (told and not quiet) or spent >= MOST_SECONDS or (len(kept) >= pairs and spent >= LEAST_SECONDS):
            break
    if len(kept) < FEWEST:
        return samples, False
    backend, baseline = ([times[pair] for pair in kept] for times in (samples.backend, samples.baseline))
    return Samples(samples.launches, backend, baseline), quiet


def looked_at(launches: tuple[Launch, Launch], floor: float) -> tuple[Samples, str]:
    """The samples that decided, and the verdict."""
    for pairs in LOOKS:
        samples, quiet = measure(launches, pairs)
        outcome = verdict(samples, floor)
        if outcome == "ok":
            break
        if not quiet or (samples.disturbed and pairs > LOOKS[0]):
            return samples, "undecided"
    return samples, outcome


@pytest.mark.parametrize("name", PROBLEMS)
def test_native_keeps_its_lead(name: str, benchmark: Any, record_property: Callable[[str, object], None]) -> None:
    if benchmark.disabled:
        pytest.fail("pytest-benchmark is disabled here (xdist?), so nothing was measured")
    floor = floor_of(name)
    with pinned_threads(THREADS):
        if not cores_are_free():
            record_property("verdict", "undecided")
            pytest.skip("undecided: others keep the cores busy")
        pair = prepare(name)
        samples, outcome = looked_at(pair, floor)
        ratios = samples.ratios
        low, high = interval(ratios)
        benchmark.extra_info |= {"ratio": median(ratios), "low": low, "high": high, "floor": floor, "verdict": outcome}
        benchmark.extra_info |= {"pairs": len(ratios), "kernel": pair[0].kernel, "baseline": pair[1].kernel}
        benchmark.pedantic(pair[0], rounds=20, warmup_rounds=2)
    record_property("verdict", outcome)
    assert outcome != "slow", f"{name} is {median(ratios):.2f}x [{low:.2f}, {high:.2f}], its floor is {floor}x"
