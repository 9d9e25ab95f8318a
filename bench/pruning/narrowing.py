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
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.layers.weight import BlockSparseWeight


@torch.no_grad()
def live_neurons(model: FinalClassifier) -> list[Tensor]:
    """Of each hidden layer, bool[units]: which change and are read, by a unit that is read or by the output."""
    layers = [dense(layer) for layer in (*model.layers, model.output)]
    live: list[Tensor] = []
    read = torch.ones_like(layers[-1]["bias"], dtype=torch.bool)
    changing = [~constant for constant, _ in _constants(layers)]
    for number in reversed(range(len(layers) - 1)):
        read = (layers[number + 1]["weight"] != 0)[read].any(dim=0) & changing[number]
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
    parts = [*model.layers, model.output]
    layers, live = [dense(part) for part in parts], live_neurons(model)
    constants = [values for _, values in _constants(layers)]  # of the whole model: below, biases take them in
    sizes = [part.weight.block_size for part in parts if isinstance(part.weight, BlockSparseWeight)]
    size = max(sizes, default=1)
    kept = [_in_blocks(each, size) for each in live]
    found, below = [], None
    for number, (part, layer) in enumerate(zip(parts, layers, strict=True)):
        own = kept[number] if number < len(kept) else None
        if below is not None:
            gone = torch.where(below, 0.0, constants[number - 1])
            layer["bias"] = layer["bias"] + layer["weight"] @ gone
        found.append(_narrowed(part, layer, below, own, size))
        below = own
    return FinalClassifier(found[:-1], found[-1])


def dense(layer: torch.nn.Module) -> Pair:
    """Weight and bias of a layer as dense tensors."""
    weight, bias = (getattr(layer, name) for name in PAIR)
    return {"weight": weight.to_dense() if isinstance(weight, BlockSparseWeight) else weight, "bias": bias}


def _in_blocks(live: Tensor, size: int) -> Tensor:
    """bool[units]: all of a block of units stay where one of them is live; one block always does."""
    blocks = live.view(-1, size).any(dim=1)
    blocks[0] |= ~blocks.any()
    return blocks.repeat_interleave(size)


def _narrowed(part: torch.nn.Module, layer: Pair, below: Tensor | None, own: Tensor | None, size: int) -> Pair:
    """A layer with those inputs and units that are kept; None keeps all."""
    weight, bias = layer["weight"], layer["bias"]
    if own is not None:
        weight, bias = weight[own], bias[own]
    if below is not None:
        weight = weight[:, below]
    weight, bias = weight.clone(memory_format=torch.contiguous_format), bias.clone()
    if not isinstance(part.weight, BlockSparseWeight):
        return {"weight": weight, "bias": bias}
    kept = part.weight.matrix.mask.kept
    kept = kept if own is None else kept[own.view(-1, size)[:, 0].cpu()]
    kept = kept if below is None else kept[:, below.view(-1, size)[:, 0].cpu()]
    return {"weight": BSRMatrix.from_dense(weight, BlockMask(kept, size)), "bias": bias}
