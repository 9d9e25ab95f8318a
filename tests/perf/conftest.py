"""Tests of speed: `import stubbed_gpu` finds the GPU that does nothing, `import costs` and `waits` what measures.

A session that gated speeds ends by saying which of them it could not decide.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line: how many speeds were found above their floors, and which are undecided."""
    verdicts = {
        report.nodeid.rpartition("[")[2].rstrip("]"): dict(report.user_properties)["verdict"]
        for outcome in ("passed", "failed", "skipped")
        for report in terminalreporter.stats.get(outcome, [])
        if "verdict" in dict(report.user_properties)
    }
    if not verdicts:
        return
    undecided = [name for name, verdict in verdicts.items() if verdict == "undecided"]
    line = f"speed: {sum(verdict == 'ok' for verdict in verdicts.values())} of {len(verdicts)} above their floors"
    if undecided:
        line += f"; undecided, as others kept the cores busy or the times scatter: {', '.join(undecided)}"
    terminalreporter.write_line(line)
