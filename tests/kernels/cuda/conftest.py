"""Tests of CUDA kernels on the CPU: `import emulator` finds the emulator, and where it cannot run the tests are skipped."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import emulator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the emulator where there is none."""
    reason = emulator.unsupported()
    for item in items:
        if reason is not None and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))
