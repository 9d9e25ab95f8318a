"""Dead units of an LSTM model: those that can be removed without a change of what it computes.

A unit is unread where no other unit that is read, and no decoder, has a weight for it: it may change, and nobody sees
it. It stays zero where its candidate g has neither a bias nor a weight for anything that does not stay zero: c is then
f 0 + i tanh(0) = 0 at every step, and h = o tanh(0) = 0, whatever the other gates are. That is so from states that are
zero there at the beginning, as those of a model's own are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.pruning.allocation import GATES
from bench.pruning.finalize import WEIGHTS, FinalModel, Weights
from bench.pruning.stored import as_dense
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.layers.weight import BlockSparseWeight, blocks_of
from kernels.modules import BlockSparseLSTM

CANDIDATE = 2  # of the gates i, f, g, o


@torch.no_grad()
def live_units(model: FinalModel) -> list[Tensor]:
    """Of each layer, bool[units]: which are read and do not stay zero. The decoder reads the last layer's."""
    layers = [_dense(layer) for layer in model.lstms]
    zero: list[Tensor] = []
    for layer in layers:
        below = zero[-1] if zero else torch.zeros_like(layer["weight_ih"][0], dtype=torch.bool)
        zero.append(_stays_zero(layer, below))
    live: list[Tensor] = []
    read = ~zero[-1]
    for number in reversed(range(len(layers))):
        own = _reads(layers[number]["weight_hh"]) & ~zero[number][:, None] & ~zero[number]
        read = read & ~zero[number]
        while not torch.equal(read, wider := read | own[read].any(dim=0)):
            read = wider
        live.insert(0, read)
        if number:
            read = _reads(layers[number]["weight_ih"])[read].any(dim=0)
    return live


@torch.no_grad()
def without_dead_units(model: FinalModel) -> FinalModel:
    """The model without its dead units; of block-sparse weights without those blocks of units that are dead whole.

    What it computes is the same, up to the order of sums. The last layer stays as wide as the decoder is, and of every
    layer a unit or a block of them remains. States are of the narrower layers.
    """
    size = model.block_size
    *inner, _ = live_units(model)
    kept = [*(live_blocks(live, size) for live in inner), None]  # all of the last layer
    layers = [
        _narrowed(layer, below, own, size) for layer, below, own in zip(model.lstms, [None, *kept], kept, strict=False)
    ]
    bias = model.decoder_bias
    return FinalModel(
        model.embedding.detach().clone(),
        bias if bias is None else bias.detach().clone(),
        layers,
        copy.deepcopy(model.head),
    )


def _dense(layer: BlockSparseLSTM) -> dict[str, Tensor]:
    return {name: as_dense(getattr(layer, f"{name}_l0")) for name in WEIGHTS}


def _reads(weight: Tensor) -> Tensor:
    """Which unit, by any of its gates, has a weight for which input. [4 units, in] -> bool[units, in]."""
    return (weight != 0).view(GATES, -1, weight.shape[1]).any(dim=0)


def _stays_zero(layer: dict[str, Tensor], below: Tensor) -> Tensor:
    """Which units stay zero, where the inputs `below` do. The largest set that holds itself at zero."""
    units = layer["weight_hh"].shape[1]
    of_g = {name: each.view(GATES, units, *each.shape[1:])[CANDIDATE] for name, each in layer.items()}
    zero = (of_g["bias_ih"] + of_g["bias_hh"] == 0) & ~(of_g["weight_ih"] != 0)[:, ~below].any(dim=1)
    while not torch.equal(zero, left := zero & ~(of_g["weight_hh"] != 0)[:, ~zero].any(dim=1)):
        zero = left
    return zero


def _narrowed(layer: BlockSparseLSTM, below: Tensor | None, own: Tensor | None, size: int) -> Weights:
    """The weights of a layer with those blocks of inputs and of units that are kept; None keeps all."""
    found: Weights = {}
    for name in WEIGHTS:
        part = getattr(layer, f"{name}_l0")
        if name.startswith("bias"):
            found[name] = narrowed_bias(part, own, size, GATES)
        else:
            found[name] = narrowed_weight(part, own, below if name == "weight_ih" else own, size, GATES)
    return found


def live_blocks(live: Tensor, size: int) -> Tensor:
    """Which blocks of `size` units have a live one; the first, where none has. bool[units] -> bool[⌈units / size⌉]."""
    blocks = F.pad(live, (0, -len(live) % size)).view(-1, size).any(dim=1)
    blocks[0] |= ~blocks.any()
    return blocks


def narrowed_weight(
    part: Tensor | BlockSparseWeight, units: Tensor | None, inputs: Tensor | None, size: int, gates: int = 1
) -> Tensor | BSRMatrix:
    """A weight with those blocks of units, in every gate, and of inputs that are kept; None keeps all."""
    narrow = _take(as_dense(part), units, inputs, size, gates).clone(memory_format=torch.contiguous_format)
    if not isinstance(part, BlockSparseWeight):
        return narrow
    mask = BlockMask(_take(part.matrix.mask.kept, units, inputs, 1, gates), part.block_size)
    return blocks_of(narrow, mask, gates)


def narrowed_bias(bias: Tensor, units: Tensor | None, size: int, gates: int = 1) -> Tensor:
    """The same of a bias."""
    return _take(bias[:, None], units, None, size, gates)[:, 0].clone()


def _take(matrix: Tensor, units: Tensor | None, inputs: Tensor | None, size: int, gates: int) -> Tensor:
    """The rows of some blocks of units in every gate, and the columns of some blocks of inputs. [gates units, in]."""
    if units is not None:
        parts = matrix.view(gates, -1, matrix.shape[1])
        matrix = parts[:, _each(units, size, parts.shape[1]).to(matrix.device)].flatten(0, 1)
    return matrix if inputs is None else matrix[:, _each(inputs, size, matrix.shape[1]).to(matrix.device)]


def _each(blocks: Tensor, size: int, count: int) -> Tensor:
    """Of blocks of units, bool[count] of the units; the last block may have fewer than `size`."""
    return blocks.repeat_interleave(size)[:count]


def counts(live: Sequence[Tensor]) -> list[int]:
    """How many of each layer."""
    return [int(each.sum()) for each in live]
