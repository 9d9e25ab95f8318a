"""The gate of test_regression itself: what passes, what fails, and that nothing is skipped in silence."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("regression_gate", Path(__file__).with_name("test_regression.py"))
assert SPEC is not None and SPEC.loader is not None
gate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gate)


def test_verdicts() -> None:
    assert gate.verdict([2.0, 2.1, 1.9] * 14, 1.5) == "ok"
    assert gate.verdict([1.0, 1.1, 0.9] * 14, 1.5) == "slow"
    assert gate.verdict([1.0, 2.0] * 20, 1.5) == "undecided"


def test_a_few_disturbed_samples_decide_nothing() -> None:
    assert gate.verdict([2.0] * 34 + [0.1] * 6, 1.5) == "ok"


def test_every_shape_has_a_floor() -> None:
    assert all(gate.floor_of(name) > 0 for name in gate.SHAPES)


def test_a_missing_floor_fails(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="no floor"):
        gate.floor_of("unheard-of")
    with pytest.raises(pytest.fail.Exception, match="no floor"):
        gate.floor_of("square-b32", tmp_path / "none.toml")
