"""What lies here can be imported by every test of bench and by the workers that it starts.

`work`, `rows`, `pretend`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@functools.cache
def texts_of_pydoc() -> tuple[list[str], ...]:
    from bench.data import pydoc  # not of every test

    return pydoc.words()


@contextmanager
def vocabulary(at_least: int) -> Iterator[None]:
    """What is trained in this process knows the words of pydoc that its training text has so often."""
    from bench.data import datasets, pydoc

    *texts, every = texts_of_pydoc()
    known = every if at_least == 2 else [pydoc.UNK, *pydoc.build_vocabulary(texts[0], at_least)]
    kept = (datasets._load_data, datasets.known_sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydoc, "words", lambda: (*texts, known))
        for read in kept:
            read.cache_clear()
        yield
    for read in kept:
        read.cache_clear()


@pytest.fixture(scope="module")
def few_words() -> Iterator[None]:
    """A vocabulary of a few hundred words: that of 2,400 is half of the work of the small networks of tests."""
    with vocabulary(at_least=40):
        yield


@pytest.fixture
def every_word(few_words: None) -> Iterator[None]:
    """The whole vocabulary again, for a run that is compared with one of another process."""
    with vocabulary(at_least=2):
        yield


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loss of every training step from now on."""
    from bench import train  # not of every test

    seen: list[float] = []
    finite = train.finite
    monkeypatch.setattr(train, "finite", lambda nats, epoch: seen.append(nats) or finite(nats, epoch))
    return seen
