"""The fastest of several ways to compute the same: a baseline must be the strongest that the library has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

ROUNDS = 5
PATIENCE_SECONDS = 1.0  # then no further round begins
LONG_SECONDS = 0.1  # filling the caches is nothing to such a launch


def fastest(ways: Mapping[str, Callable[[], object]], device: str) -> str:
    """The name of the way with the shortest launch. In turns; twice each, so that its own operands are in the caches."""
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    shortest, begin = dict.fromkeys(ways, float("inf")), time.perf_counter()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            for _again in range(2):
                began = time.perf_counter()
                way()
                wait()
                taken = time.perf_counter() - began
                shortest[name] = min(shortest[name], taken)
                if taken > LONG_SECONDS:
                    break
        if time.perf_counter() - begin > PATIENCE_SECONDS:
            break
    return min(shortest, key=lambda name: shortest[name])
