"""A dense network that stores as many weights as a pruned one: the other way to a network of that size."""

from __future__ import annotations

import torch
from torch import nn

from bench.cells import TrainCell
from bench.models.registry import MODELS

WITHIN = 0.05  # of the weights: what differs by more is no network of as many


def equal_network(cell: TrainCell, classes: int, stored: int) -> tuple[int, nn.Module] | None:
    """A dense network of the cell's kind and depth whose layers store the number of weights nearest to `stored`.

    None where no width comes near: with a tied decoder the last layer stays as wide as the embedding.

    classes: of its output, words or classes. stored: weights of the pruned network's layers that are kept, biases,
    embedding and decoder aside. The units of its hidden layers, and the network, untrained, in evaluation; no random
    number of the caller's is drawn.
    """
    width = equal_width(cell, stored)
    if abs(_weights(cell, width) - stored) > WITHIN * stored:
        return None
    with torch.random.fork_rng(devices=[]):
        return width, MODELS[cell.model](_dense(cell, width), classes).eval()


def equal_width(cell: TrainCell, stored: int) -> int:
    """The units of its hidden layers: at least 1, and no more than the cell's own."""
    low, high = 1, cell.hidden_size
    while low < high:  # the smallest width that stores at least so many
        middle = (low + high) // 2
        if _weights(cell, middle) < stored:
            low = middle + 1
        else:
            high = middle
    around = [each for each in (low - 1, low) if each]
    return min(around, key=lambda width: abs(_weights(cell, width) - stored))


def _weights(cell: TrainCell, width: int) -> int:
    """Weights of the layers of the dense network of that width."""
    return _dense(cell, width).layer_weights


def _dense(cell: TrainCell, width: int) -> TrainCell:
    return cell.model_copy(update={"hidden_size": width, "schedule": "none", "lasso": "none", "path": "dense"})
