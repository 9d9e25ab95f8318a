"""What is counted and timed of a run: a meter for one epoch, the norms of blocks, and probes.

Probes are timings within the run, always as interleaved pairs: LSTM layers while it trains, inference when it is done.
None of them touches the run: no random number is drawn, no gradient is left, every layer is back on its path, and what
batch normalisation has measured is as it was.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.measuring.clocks import interleaved, wall_clock
from bench.models.layers import State
from bench.pruning.exported import exported, live, load, narrowed
from bench.pruning.lasso import block_norms
from bench.pruning.pruner import Pruner
from bench.pruning.removal import counts
from bench.pruning.settings import BlockSettings
from bench.pruning.stored import Exported
from bench.training.paths import Paths, autocast, kernel_of, type_of_products
from bench.training.scores import Scores

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


def norms_of(weights: dict[str, nn.Parameter], cell: BlockSettings) -> dict[str, Tensor]:
    """The L2 norm of every block, [grid_rows, grid_cols], for each weight that is padded or divided.

    A dense run's need not be divided.
    """
    size = cell.block_size
    return {
        name: block_norms(weight.detach(), size, cell.gates)
        for name, weight in weights.items()
        if cell.pad or weight.shape[0] % size == weight.shape[1] % size == 0
    }


def norm_maps(norms: dict[str, Tensor], block_size: int) -> list[dict[str, Any]] | None:
    """The norms of `norms_of` as a row holds them, row by row; none of blocks of one element, which are the weights."""
    if block_size == 1:
        return None
    return [
        {"weight": name, "grid_rows": len(each), "grid_cols": each.shape[1], "norms": each.flatten().tolist()}
        for name, each in norms.items()
    ]


def zero_share(norms: dict[str, Tensor]) -> float | None:
    """Share of the blocks that are exactly zero; None where no weight has blocks."""
    blocks = sum(each.numel() for each in norms.values())
    return sum(int((each == 0.0).sum()) for each in norms.values()) / blocks if blocks else None


TRAINING_PAIRS = 5
INFERENCE_PAIRS = 15

Evaluate = Callable[[Exported], Scores]  # of the test


@contextmanager
def restored(paths: Paths, name: str) -> Iterator[None]:
    """What every layer has by that name afterwards is what it had before."""
    before = [getattr(layer, name) for layer in paths.layers]
    try:
        yield
    finally:
        for layer, value in zip(paths.layers, before, strict=True):
            setattr(layer, name, value)


@contextmanager
def all_dense(paths: Paths) -> Iterator[None]:
    """Every layer on the dense path, with the same masked weights."""
    with restored(paths, "patterns"):
        for layer in paths.layers:
            layer.patterns = {}
        yield


@contextmanager
def smooth(model: nn.Module, paths: Paths) -> Iterator[None]:
    """Inside, a loss can be differentiated twice: dense path, no dropout or penalty, none of cuDNN's LSTM layers.

    It multiplies float32, whatever the run does. The layers do not count its time as theirs; the epoch does.
    """
    cudnn = torch.backends.cudnn.enabled
    model.eval()
    torch.backends.cudnn.enabled = False
    try:
        with restored(paths, "seconds"), all_dense(paths):
            yield
    finally:
        torch.backends.cudnn.enabled = cudnn
        model.train()


@contextmanager
def untouched(model: nn.Module, paths: Paths) -> Iterator[None]:
    """Inside, steps leave no trace but gradients, which are cleared: no random number is drawn, no time is a layer's.

    What batch normalisation has measured is as it was.
    """
    measured = {name: buffer.clone() for name, buffer in model.named_buffers()}
    forked = torch.random.fork_rng(devices=[0] if paths.device == "cuda" else [])  # of what is dropped
    try:
        with restored(paths, "seconds"), forked:
            yield
    finally:
        model.zero_grad()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(measured[name])


def probe_layers(model: nn.Module, paths: Paths, inputs: Tensor, states: list[State] | None) -> dict[str, Any]:
    """Forward + backward of the layers on one batch: all on the dense path against the paths in use.

    inputs: of a step, whose gradient is computed where training computes it. To be called where no gradient is
    wanted: gradients are cleared.
    """
    entered = model.enter(inputs)  # type: ignore[operator]
    x = entered.detach().requires_grad_(entered.requires_grad)
    grad = torch.randn(*x.shape[:-1], paths.width, generator=torch.Generator().manual_seed(0)).to(x.device)

    def train() -> None:
        model.zero_grad()
        with autocast(paths.device, paths.precision):
            y, _ = model.run_layers(x, states)  # type: ignore[operator]
        y.backward(grad)

    def train_dense() -> None:
        with all_dense(paths):
            train()

    with untouched(model, paths):
        dense_ms, lstm_ms = interleaved(train_dense, train, TRAINING_PAIRS, paths.device)
    return {"sparse_layers": paths.sparse_layers, "dense_ms": dense_ms, "lstm_ms": lstm_ms}


@torch.no_grad()
def measure_final(
    model: nn.Module,
    pruner: Pruner,
    paths: Paths,
    window: Tensor,
    evaluate: Evaluate,
    export: Path | None,
    equal: Callable[[int], tuple[int, nn.Module] | None],
) -> dict[str, Any]:
    """The columns of a finalised model: exported, loaded again, evaluated, and timed against the dense path.

    window: the inputs that inference is timed on. export: where the model is kept; None keeps it nowhere. equal: the
    width of a dense network of so many stored weights, and that network, or None.
    All models have their weights in the type that the run multiplied in.
    """
    with tempfile.TemporaryDirectory(prefix="bench-export-") as folder:
        path = export or Path(folder) / "model.pt"
        exported(model, pruner.masks).save(path)
        stored = load(path)
    dtype, smaller = type_of_products(paths.precision), narrowed(stored)
    window = window.to(dtype) if window.is_floating_point() else window  # examples, not words
    beside = equal(stored.kept)
    final, narrow = (copy.deepcopy(each).to(window.device, dtype) for each in (stored, smaller))
    model.eval()
    with all_dense(paths):
        dense = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        x = dense.enter(window)  # type: ignore[operator]

        def in_pairs(
            other: nn.Module, part: str = "__call__", given: Tensor = window
        ) -> tuple[list[float], list[float]]:
            mine, others = getattr(dense, part), getattr(other, part)
            return interleaved(lambda: mine(given), lambda: others(given), INFERENCE_PAIRS, paths.device)

        whole, layers, narrower = in_pairs(final), in_pairs(final, "run_layers", x), in_pairs(narrow)
        equally = beside and in_pairs(beside[1].to(window.device, dtype))
    scores, stepped = evaluate(final), final.stepped_weights
    return {
        "padded_share": pruner.padded_share,
        "dense_bytes": stored.dense_nbytes,
        "final_bytes": stored.nbytes,
        "live_units": counts(live(stored)),
        "final_ppl": scores.perplexity,
        "final_accuracy": scores.accuracy,
        "inference_kernel": kernel_of(stepped, window.shape[1], paths.is_recurrent) if stepped else "",
        "inference_dense_ms": whole[0],
        "inference_ms": whole[1],
        "inference_lstm_dense_ms": layers[0],
        "inference_lstm_ms": layers[1],
        "narrowed_units": smaller.widths,
        "narrowed_sparsity": smaller.sparsity,
        "narrowed_bytes": smaller.nbytes,
        "narrowed_ppl": evaluate(narrow).perplexity,
        "inference_narrowed_dense_ms": narrower[0],
        "inference_narrowed_ms": narrower[1],
        "equal_units": beside and beside[0],
        "inference_equal_dense_ms": equally and equally[0],
        "inference_equal_ms": equally and equally[1],
    }
