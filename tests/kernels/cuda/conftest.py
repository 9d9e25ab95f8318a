"""Tests of CUDA kernels on the CPU.

`import emulator` finds the emulator, and where it cannot run the tests are skipped.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import emulator

HERE = Path(__file__).parent
NO_EMULATOR = ("test_compile.py", "test_kernel.py", "test_on_gpu.py")
GRIDS = ("emulate", "nvrtc")
PATIENCE = 1800  # seconds that a test of the emulated grid may take: half a minute, but beside others on a busy machine


@pytest.fixture
def by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """No layer fits on the GPU at once: a launch a step."""
    from kernels.cuda import lstm as cuda_lstm
    from kernels.system.resources import UnsupportedError

    tiles_for = cuda_lstm.tiles_for

    def too_large_together(*given: object) -> object:
        if given[-1]:
            raise UnsupportedError("too large")
        return tiles_for(*given)

    monkeypatch.setattr(cuda_lstm, "tiles_for", too_large_together)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files whose every test the emulator runs are not imported where -m leaves `builds` out."""
    named = collection_path.match("test_*.py") and collection_path.name not in NO_EMULATOR
    return True if named and "not builds" in config.getoption("markexpr") else None


@pytest.hookimpl(tryfirst=True)  # marks, before -m looks at them
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What the emulator runs is of `builds`, and skipped where there is none; long grids only where -m names them."""
    reason = emulator.unsupported()
    wanted = config.getoption("markexpr")
    left_out = [item for item in items if any(item.get_closest_marker(grid) and grid not in wanted for grid in GRIDS)]
    for item in items:
        if HERE in item.path.parents and item.path.name not in NO_EMULATOR:
            item.add_marker(pytest.mark.builds)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("emulate"):
            item.add_marker(pytest.mark.timeout(PATIENCE))
    config.hook.pytest_deselected(items=left_out)
    left = set(left_out)
    items[:] = [item for item in items if item not in left]
