"""The fastest of several ways to compute the same: a baseline must be the strongest that the library has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

ROUNDS = 5
PATIENCE_SECONDS = 1.0  # then no further round begins


def fastest(ways: Mapping[str, Callable[[], object]], device: str) -> str:
    """The name of the way with the shortest launch; each is launched untimed before it is timed, in turns."""
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    shortest, begin = dict.fromkeys(ways, float("inf")), time.perf_counter()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            way()
            wait()
            began = time.perf_counter()
            way()
            wait()
            shortest[name] = min(shortest[name], time.perf_counter() - began)
        if time.perf_counter() - begin > PATIENCE_SECONDS:
            break
    return min(shortest, key=lambda name: shortest[name])
