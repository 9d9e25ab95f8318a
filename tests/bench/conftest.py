"""What lies here can be imported by every test of bench and by the workers that it starts.

`work`, `rows`, `pretend`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import forked

from bench.engines import starts


@pytest.fixture(autouse=True)
def workers_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of sweeps that a test runs in its own process are forked from one that has torch imported.

    Unless the test or its file is marked `spawned`.
    """
    if request.node.get_closest_marker("spawned") is None and sys.platform == "linux":
        monkeypatch.setattr(starts, "get_context", lambda _: forked.AtOnce())
