"""The gate of test_regression itself: what passes, what fails, and that nothing is skipped in silence."""

import importlib.util
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import waits

from bench.timing import Samples

SPEC = importlib.util.spec_from_file_location("regression_gate", Path(__file__).with_name("test_regression.py"))
assert SPEC is not None and SPEC.loader is not None
gate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gate)


def samples(ratios: list[float]) -> Samples:
    """A backend that always takes 1 ms, and a baseline that takes as many times as long."""
    return Samples(1, [1.0] * len(ratios), ratios)


def test_verdicts() -> None:
    assert gate.verdict(samples([2.0, 2.1, 1.9] * 14), 1.5) == "ok"
    assert gate.verdict(samples([1.0, 1.1, 0.9] * 14), 1.5) == "slow"
    assert gate.verdict(samples([1.0, 2.0] * 20), 1.5) == "undecided"


def test_a_few_disturbed_samples_decide_nothing() -> None:
    assert gate.verdict(samples([2.0] * 34 + [0.1] * 6), 1.5) == "ok"


def test_a_busy_machine_decides_nothing() -> None:
    both = [0.1, 0.1, *[12.0] * 38]
    assert gate.verdict(Samples(1, both, both), 1.5) == "undecided"


@pytest.mark.parametrize(
    ("ratios", "disturbed", "quiet", "looks", "outcome"),
    [
        ([2.0], False, True, [12], "ok"),
        ([1.0, 2.0], False, True, [12, 40], "ok"),  # noise at first
        ([1.0], False, True, [12, 40, 160], "slow"),
        ([1.0], True, True, [12, 40], "undecided"),  # more would decide nothing either
        ([1.0], False, False, [12], "undecided"),
        ([2.0], False, False, [12], "ok"),  # among others' work, too
    ],
)
def test_looks(
    ratios: list[float],
    disturbed: bool,
    quiet: bool,
    looks: list[int],
    outcome: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = []

    def made(launches: object, pairs: int) -> tuple[Samples, bool]:
        taken.append(pairs)
        ratio, backend = ratios[min(len(taken), len(ratios)) - 1], [0.1 if disturbed else 1.0, *[1.0] * (pairs - 1)]
        return Samples(1, backend, [ratio * each for each in backend]), quiet

    monkeypatch.setattr(gate, "measure", made)
    samples, found = gate.looked_at((None, None), 1.5)
    assert (taken, found, len(samples.ratios)) == (looks, outcome, looks[-1])


class Machine:
    """Launches, their clock, and the accounts of what they waited for."""

    def __init__(self, waits: Callable[[int], float]) -> None:
        self.now = self.waited = 0.0  # seconds
        self.waits, self.launches = waits, 0

    def launch(self) -> None:
        waited = self.waits(self.launches)
        self.launches += 1
        self.waited += waited
        self.now += 0.001 + waited


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], float]], Machine]:
    def make(waited: Callable[[int], float]) -> Machine:
        made = Machine(waited)
        monkeypatch.setattr("time.perf_counter", lambda: made.now)
        monkeypatch.setattr("time.perf_counter_ns", lambda: int(made.now * 1e9))
        monkeypatch.setattr(waits, "waited_ns", lambda: int(made.waited * 1e9))
        return made

    return make


def test_nobody_waits_for_a_core_of_its_own(machine: Callable[..., Machine]) -> None:
    made = machine(lambda _: 0.0)
    samples, quiet = gate.measure((made.launch, made.launch), 12)
    assert quiet and len(samples.ratios) >= 12 and made.now >= gate.LEAST_SECONDS


def test_pairs_that_waited_are_left_out(machine: Callable[..., Machine]) -> None:
    random = Random(0)
    made = machine(lambda _: 0.01 if random.random() < 0.05 else 0.0)
    samples, quiet = gate.measure((made.launch, made.launch), 40)
    assert quiet and len(samples.ratios) >= 40
    assert samples.ratios == pytest.approx([1.0] * len(samples.ratios))


@pytest.mark.parametrize("wait", [0.003, 3.0])
def test_where_most_pairs_wait_no_more_are_taken(wait: float, machine: Callable[..., Machine]) -> None:
    made = machine(lambda _: wait)
    _, quiet = gate.measure((made.launch, made.launch), 40)
    assert not quiet and made.now < 5 * gate.BUSY_SECONDS + 4 * wait


@pytest.mark.skipif(not waits.waited_ns(), reason="this system keeps no accounts of waiting")
@pytest.mark.alone
def test_a_thread_that_shares_its_core_waits_for_it() -> None:
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(ours)})
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # on the same core
    try:
        time.sleep(0.5)
        assert not waits.cores_are_free(patience=0.3)
    finally:
        busy.kill()
        busy.wait()
        os.sched_setaffinity(0, ours)


def test_accounts_that_cannot_be_read_count_nothing(tmp_path: Path) -> None:
    for thread, text in (("1", "5 7 1\n"), ("2", ""), ("3", "none kept here\n")):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(text)
    assert waits.waited_ns(tmp_path) == 7
    assert waits.waited_ns(tmp_path / "none") == 0


def test_every_entry_has_a_floor_and_every_floor_an_entry() -> None:
    assert all(gate.floor_of(name) > 0 for name in gate.PROBLEMS)
    assert set(gate.PROBLEMS) == set(tomllib.loads(gate.FLOORS.read_text()))


def test_a_missing_floor_fails(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="no floor"):
        gate.floor_of("unheard-of")
    with pytest.raises(pytest.fail.Exception, match="no floor"):
        gate.floor_of("dsd-n20", tmp_path / "none.toml")


def test_a_floor_without_an_entry_fails(tmp_path: Path) -> None:
    floors = tmp_path / "floors.toml"
    floors.write_text(gate.FLOORS.read_text() + "renamed = 2.0\n")
    with pytest.raises(pytest.fail.Exception, match="nothing is measured against: renamed"):
        gate.floor_of("dsd-n20", floors)


def test_what_a_step_packs_is_packed() -> None:
    problem = gate.LstmProblem(32, 64, 3, 2, 16, 0.5)
    if gate.BACKENDS["native"].unsupported(problem):
        pytest.skip("no C++ compiler here")
    packing, packed = gate.Packing(problem), []
    gate.pack, real = lambda *given, **_: packed.append(given[2:]), gate.pack
    try:
        packing()
    finally:
        gate.pack = real
    assert sorted(packed) == [(3, False), (3, True), (6, False), (6, True)]
