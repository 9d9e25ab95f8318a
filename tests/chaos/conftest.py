"""`nox -s chaos` tries every fault as often as it takes to believe that nothing is lost, and prints how often that was.

Without --full a few of each are tried, in seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

Count = Callable[..., None]


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--full"))


@pytest.fixture
def tell(request: pytest.FixtureRequest, record_property: Callable[[str, Any], None]) -> Count:
    """tell(fault, reached): a line of the table."""

    def line(fault: str, reached: str) -> None:
        record_property("chaos", f"{fault:<58} {reached}")

    return line


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [each for outcome in ("passed", "failed") for each in terminalreporter.stats.get(outcome, [])]
    lines = [str(value) for report in reports for name, value in report.user_properties if name == "chaos"]
    if lines:
        terminalreporter.section("what was tried, and what came of it")
        for line in sorted(set(lines)):
            terminalreporter.write_line(line)
