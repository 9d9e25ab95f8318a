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


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that a test trains in its own process are probed once an epoch and timed once or twice.

    Probing five times takes longer than such a run; a test that looks at probes or at times asks for more.
    """
    if "bench.train" in sys.modules:
        monkeypatch.setattr("bench.train.PROBES_AN_EPOCH", 1)
        monkeypatch.setattr("bench.training.meter.TRAINING_PAIRS", 1)
        monkeypatch.setattr("bench.training.meter.INFERENCE_PAIRS", 2)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loss of every training step from now on."""
    from bench import train  # not of every test

    seen: list[float] = []
    finite = train.finite
    monkeypatch.setattr(train, "finite", lambda nats, epoch: seen.append(nats) or finite(nats, epoch))
    return seen
