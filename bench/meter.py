"""What is counted and timed: a meter for one epoch of training, the norms of blocks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from bench.paths import Paths
from bench.pruning.lasso import block_norms

COUNTED = ("nats", "targets", "sparsities", "sparse_layers", "probes")


class Meter:
    """Nats, sparsity and times of one epoch, from when it is made; `stopped` around what is no training."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.nats, self.targets = 0.0, 0
        self.sparsities: list[float] = []
        self.sparse_layers = 0
        self.probes: list[dict[str, Any]] = []
        for layer in paths.layers:
            layer.seconds = 0.0
        self.began, self.aside = time.perf_counter(), 0.0

    @property
    def mean_nats(self) -> float:
        """Mean nats per target so far."""
        return self.nats / self.targets

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The time inside is not counted as training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.aside += time.perf_counter() - began

    def step(self, sparsity: float, nats: float, targets: int) -> None:
        """Count one step: achieved sparsity and path it ran with, mean nats of its targets."""
        self.sparsities.append(sparsity)
        self.sparse_layers += self.paths.sparse_layers
        self.nats += nats * targets
        self.targets += targets

    def state_dict(self) -> dict[str, Any]:
        """All that was counted and timed so far."""
        return {
            **{name: getattr(self, name) for name in COUNTED},
            "train_seconds": time.perf_counter() - self.began - self.aside,
            "lstm_seconds": [layer.seconds for layer in self.paths.layers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting and timing from there, now."""
        for name in COUNTED:
            setattr(self, name, state[name])
        for layer, seconds in zip(self.paths.layers, state["lstm_seconds"], strict=True):
            layer.seconds = seconds
        self.began, self.aside = time.perf_counter() - state["train_seconds"], 0.0

    def columns(self) -> dict[str, Any]:
        """The columns of the epoch, which ends now."""
        steps = len(self.sparsities)
        return {
            "mean_sparsity": sum(self.sparsities) / steps,
            "train_tokens_seen": self.targets,
            "train_seconds": time.perf_counter() - self.began - self.aside,
            "lstm_kernel": self.paths.kernel,
            "sparse_share": self.sparse_layers / (steps * len(self.paths.layers)),
            "lstm_seconds": sum(layer.seconds for layer in self.paths.layers),
            "probes": self.probes if self.paths.path != "dense" else None,
        }


def norm_maps(weights: dict[str, nn.Parameter], block_size: int) -> list[dict[str, Any]]:
    """The L2 norm of every block, row by row, for each weight that the block size divides (a dense run's may not be)."""
    maps = []
    for name, weight in weights.items():
        if weight.shape[0] % block_size == weight.shape[1] % block_size == 0:
            norms = block_norms(weight.detach(), block_size)
            rows, cols = norms.shape
            maps.append({"weight": name, "grid_rows": rows, "grid_cols": cols, "norms": norms.flatten().tolist()})
    return maps
