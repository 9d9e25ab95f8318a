"""What is counted and timed: a meter for one epoch of training, the norms of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bench.measuring.moments import wall_clock
from bench.pruning.lasso import block_norms
from bench.training.paths import Paths

COUNTED = ("nats", "targets", "sparsities", "sparse_layers", "probes")


class Meter:
    """Nats, sparsity and times of one epoch, from when it is made; `stopped` around what is no training.

    nats: a number, or a tensor on the GPU that nobody waited for yet. A GPU is waited for where the clock is read.
    """

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.nats: float | Tensor = 0.0
        self.targets = 0
        self.sparsities: list[float] = []
        self.sparse_layers = 0
        self.probes: list[dict[str, Any]] = []
        for layer in paths.layers:
            layer.seconds = 0.0
        self.began, self.aside = self.clock(), 0.0

    def clock(self) -> float:
        """Seconds of the wall clock, when all that was begun is done."""
        return wall_clock(self.paths.device)

    @property
    def mean_nats(self) -> float:
        """Mean nats per target so far; waits for the GPU where it has them."""
        return float(self.nats) / self.targets

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The time inside is not counted as training."""
        began = self.clock()
        try:
            yield
        finally:
            self.aside += self.clock() - began

    def step(self, sparsity: float, nats: float | Tensor, targets: int) -> None:
        """Count one step: achieved sparsity and path it ran with, mean nats of its targets as a double."""
        self.sparsities.append(sparsity)
        self.sparse_layers += self.paths.sparse_layers
        self.nats += nats * targets
        self.targets += targets

    def state_dict(self) -> dict[str, Any]:
        """All that was counted and timed so far."""
        return {
            **{name: getattr(self, name) for name in COUNTED},
            "nats": float(self.nats),
            "train_seconds": self.clock() - self.began - self.aside,
            "lstm_seconds": [layer.seconds for layer in self.paths.layers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting and timing from there, now."""
        for name in COUNTED:
            setattr(self, name, state[name])
        for layer, seconds in zip(self.paths.layers, state["lstm_seconds"], strict=True):
            layer.seconds = seconds
        self.began, self.aside = self.clock() - state["train_seconds"], 0.0

    def columns(self) -> dict[str, Any]:
        """The columns of the epoch, which ends now."""
        steps = len(self.sparsities)
        return {
            "mean_sparsity": sum(self.sparsities) / steps,
            "train_tokens_seen": self.targets,
            "train_seconds": self.clock() - self.began - self.aside,
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
