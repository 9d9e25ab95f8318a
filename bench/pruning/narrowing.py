"""Dead neurons of a classifier: those that can be removed without a change of what it computes.

A unit is unread where every weight that goes out of it is zero. It is constant where none of its weights is for an
input that changes: then it is relu(b_i + Σ_j W_ij c_j) with the constants c_j below it, and what that brings to the
layer above goes into the bias there. The document of the mathematics of pruning has the case b_i = 0, where it stays
zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.pruning.classifier import PAIR, FinalClassifier, Pair
from bench.pruning.removal import live_blocks, narrowed_bias, narrowed_weight
from bench.pruning.stored import as_dense


@torch.no_grad()
def live_neurons(model: FinalClassifier) -> list[Tensor]:
    """Of each hidden layer, bool[units]: which change and are read, by a unit that is read or by the output."""
    layers = _dense(model)
    return _live(layers, _constants(layers))


def _dense(model: FinalClassifier) -> list[Pair]:
    """The layers, the output's among them, as dense tensors."""
    return [{name: as_dense(getattr(layer, name)) for name in PAIR} for layer in (*model.layers, model.output)]


def _live(layers: list[Pair], constants: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    live: list[Tensor] = []
    read = torch.ones_like(layers[-1]["bias"], dtype=torch.bool)
    for number in reversed(range(len(layers) - 1)):
        read = (layers[number + 1]["weight"] != 0)[read].any(dim=0) & ~constants[number][0]
        live.insert(0, read)
    return live


def _constants(layers: list[Pair]) -> list[tuple[Tensor, Tensor]]:
    """Of each hidden layer: which units are constant, and the values of those (0 of the others)."""
    constant, values = torch.zeros_like(layers[0]["weight"][0], dtype=torch.bool), layers[0]["weight"][0] * 0.0
    found = []
    for layer in layers[:-1]:
        weight, bias = layer["weight"], layer["bias"]
        here = ~(weight != 0)[:, ~constant].any(dim=1)
        values = torch.where(here, F.relu(weight @ values + bias), 0.0)
        constant = here
        found.append((constant, values))
    return found


@torch.no_grad()
def without_dead_neurons(model: FinalClassifier) -> FinalClassifier:
    """The model without its dead neurons; of block-sparse weights without those blocks of units that are dead whole.

    What it computes is the same, up to the order of sums. Of every layer a unit or a block of them remains.
    """
    layers, size = _dense(model), model.block_size
    constants = _constants(layers)  # of the whole model: below, biases take them in
    kept = [*(live_blocks(live, size) for live in _live(layers, constants)), None]  # all of the output
    found: list[Pair] = []
    below = None
    for number, (part, layer, own) in enumerate(zip((*model.layers, model.output), layers, kept, strict=True)):
        bias = layer["bias"]
        if below is not None:
            stays = below.repeat_interleave(size)[: layer["weight"].shape[1]]
            gone = torch.where(stays, 0.0, constants[number - 1][1])
            bias = bias + layer["weight"] @ gone
        weight = narrowed_weight(part.weight, own, below, size)
        found.append({"weight": weight, "bias": narrowed_bias(bias, own, size)})
        below = own
    return FinalClassifier(found[:-1], found[-1])
