"""Timings within a training run, always as interleaved pairs: LSTM layers while it trains, inference when it is done.

None of them touches the run: no random number is drawn, no gradient is left, every layer is back on its path.
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

from bench.measuring.pairs import interleaved
from bench.models.layers import State
from bench.pruning.finalize import FinalModel, finalize
from bench.pruning.pruner import Pruner
from bench.training.paths import Paths, kernel_of
from bench.training.precision import autocast, type_of_products

TRAINING_PAIRS = 5
INFERENCE_PAIRS = 15

Evaluate = Callable[[FinalModel], float]


@contextmanager
def all_dense(paths: Paths) -> Iterator[None]:
    """Every layer on the dense path, with the same masked weights."""
    before = [layer.patterns for layer in paths.layers]
    for layer in paths.layers:
        layer.patterns = {}
    try:
        yield
    finally:
        for layer, patterns in zip(paths.layers, before, strict=True):
            layer.patterns = patterns


def probe_layers(model: nn.Module, paths: Paths, inputs: Tensor, states: list[State] | None) -> dict[str, Any]:
    """Forward + backward of the LSTM layers on one batch: all on the dense path against the paths in use.

    inputs: [time, batch]. To be called where no gradient is wanted: gradients are cleared.
    """
    x = model.embedding(inputs).detach().requires_grad_()  # type: ignore[operator]
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device)
    seconds = [layer.seconds for layer in paths.layers]

    def train() -> None:
        model.zero_grad()
        with autocast(paths.device, paths.precision):
            y, _ = model.run_layers(x, states)  # type: ignore[operator]
        y.backward(grad)

    def train_dense() -> None:
        with all_dense(paths):
            train()

    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):  # of the recurrent weights' dropout
        dense_ms, lstm_ms = interleaved(train_dense, train, TRAINING_PAIRS, paths.device)
    model.zero_grad()
    for layer, before in zip(paths.layers, seconds, strict=True):
        layer.seconds = before
    return {"sparse_layers": paths.sparse_layers, "dense_ms": dense_ms, "lstm_ms": lstm_ms}


@torch.no_grad()
def measure_final(
    model: nn.Module, pruner: Pruner, paths: Paths, window: Tensor, evaluate: Evaluate, export: Path | None
) -> dict[str, Any]:
    """The columns of a finalised model: exported, loaded again, evaluated, and timed against the dense path.

    window: [time, batch], what inference is timed on. export: where the model is kept; None keeps it nowhere. Both models
    have their weights in the type that the run multiplied in.
    """
    with tempfile.TemporaryDirectory(prefix="bench-export-") as folder:
        path = export or Path(folder) / "model.pt"
        finalize(model, pruner.masks).save(path)
        exported = FinalModel.load(path)
    dtype = type_of_products(paths.precision)
    final = exported.to(window.device, dtype)
    model.eval()
    with all_dense(paths):
        dense = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        x = dense.embedding(window)  # type: ignore[operator]
        whole = interleaved(lambda: dense(window), lambda: final(window), INFERENCE_PAIRS, paths.device)
        layers = interleaved(
            lambda: dense.run_layers(x),  # type: ignore[operator]
            lambda: final.run_layers(x),
            INFERENCE_PAIRS,
            paths.device,
        )
    return {
        "dense_bytes": exported.dense_nbytes,
        "final_bytes": exported.nbytes,
        "final_ppl": evaluate(final),
        "inference_kernel": kernel_of([layer.weight_hh for layer in final.layers], window.shape[1]),
        "inference_dense_ms": whole[0],
        "inference_ms": whole[1],
        "inference_lstm_dense_ms": layers[0],
        "inference_lstm_ms": layers[1],
    }
