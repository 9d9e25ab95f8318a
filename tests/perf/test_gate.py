"""The gate of test_regression itself: what passes, what fails, and that nothing is skipped in silence."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

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
    ("ratios", "busy", "looks", "outcome"),
    [
        ([2.0], False, [12], "ok"),
        ([1.0, 2.0], False, [12, 40], "ok"),  # noise at first
        ([1.0], False, [12, 40, 160], "slow"),
        ([1.0], True, [12, 40], "undecided"),  # more would decide nothing either
    ],
)
def test_looks(
    ratios: list[float], busy: bool, looks: list[int], outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def made(launches: object, pairs: int, times: int) -> Samples:
        taken.append(pairs * times)
        ratio, backend = ratios[min(len(taken), len(ratios)) - 1], [0.1 if busy else 1.0, *[1.0] * (pairs * times - 1)]
        return Samples(1, backend, [ratio * each for each in backend])

    monkeypatch.setattr(gate, "measure", made)
    samples, found = gate.looked_at((None, None), 1.5)
    assert (taken, found, len(samples.ratios)) == (looks, outcome, looks[-1])


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
