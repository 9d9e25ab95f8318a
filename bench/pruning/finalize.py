"""Finalize: a language model exported for inference, its pruned LSTM weights as BSR.

W <- W * M, then the masks are dropped: a kept block is stored whole, an empty one not at all. What comes out is a
torch.nn.Module of `kernels.modules`: with a state_dict, for torch.compile and torch.export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.decoders import AdaptiveSoftmax, Decoder, adaptive_of
from bench.pruning.stored import Exported, field, here, pack, require_masks, unpack
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.layers.weight import BlockSparseWeight, blocks_of
from kernels.modules import BlockSparseLSTM, freeze
from kernels.tensors.operands import require_memory
from kernels.tensors.rounding import in_blocks

FORMAT = "block-sparse LSTM language model 1"
GATES = BlockSparseLSTM.GATES
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

State = tuple[Tensor, Tensor]
Weights = dict[str, Tensor | BSRMatrix]  # of one LSTM layer, by `WEIGHTS`


class FinalModel(Exported):
    """A model of `bench.models` in evaluation, its pruned weights block-sparse; calls give what that gives.

    embedding: [vocabulary, size], the decoder's weight too where decoder_bias, [vocabulary], is given; else head is
    the decoder. layers: of each `weight_ih` [4 units, in] and `weight_hh` [4 units, units], block-sparse or dense,
    `bias_ih` and `bias_hh` [4 units]; block-sparse ones in whole blocks, each gate padded by itself. They become
    `BlockSparseLSTM`s of one layer.
    No parameter asks for a gradient, and the block-sparse weights are frozen: a copy of each is kept, and on a CPU a
    packed one beside it from the first call on. `requires_grad_()` makes it one to be trained further, without dropout.
    ValueError naming the field where the tensors are not those of one model.
    """

    FORMAT = FORMAT

    def __init__(
        self,
        embedding: Tensor,
        decoder_bias: Tensor | None,
        layers: Sequence[Mapping[str, Tensor | BSRMatrix]],
        head: AdaptiveSoftmax | None = None,
    ) -> None:
        super().__init__()
        _check(embedding, decoder_bias, layers, head)
        self.embedding = nn.Parameter(embedding, requires_grad=False)
        self.decoder_bias = None
        if decoder_bias is not None and head is None:
            self.decoder_bias = nn.Parameter(decoder_bias, requires_grad=False)
        widths = pairwise([embedding.shape[1], *(layer["bias_ih"].shape[0] // GATES for layer in layers)])
        self.layers = nn.ModuleList(_layer(each, *sizes) for each, sizes in zip(layers, widths, strict=True))
        self.head = head
        freeze(self.eval().requires_grad_(False))

    def forward(self, inputs: Tensor, states: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """Logits of the next word and the states to go on from. inputs: [time, batch] -> [time * batch, vocabulary]."""
        x, after = self.run_layers(F.embedding(inputs, self.embedding), states)
        return self.decoder.logits(x), after

    def loss(
        self,
        inputs: Tensor,
        targets: Tensor,
        states: list[State] | None = None,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> tuple[Tensor, list[State]]:
        """Nats of the next words, `targets`, and the states to go on from. inputs, targets: [time, batch]."""
        x, after = self.run_layers(F.embedding(inputs, self.embedding), states)
        return self.decoder.loss(x, targets, reduction), after

    @property
    def decoder(self) -> Decoder:
        """From the outputs of the last layer to the words."""
        return Decoder(self.embedding, self.decoder_bias, self.head)

    def run_layers(self, x: Tensor, states: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """The LSTM layers alone. x: [time, batch, size] -> the same, and the states."""
        after = []
        for number, layer in enumerate(self.layers):
            x, state = layer(x, states[number] if states else None)
            after.append(state)
        return x, after

    @property
    def lstms(self) -> list[BlockSparseLSTM]:
        """The layers, by their type."""
        return [layer for layer in self.layers if isinstance(layer, BlockSparseLSTM)]

    @property
    def stepped_weights(self) -> list[BSRMatrix]:
        """The pruned weights that multiply states, a layer each."""
        weights = (layer.weight_hh_l0 for layer in self.layers)
        return [each.matrix for each in weights if isinstance(each, BlockSparseWeight)]

    @property
    def widths(self) -> list[int]:
        """Units of each layer."""
        return [layer.hidden_size for layer in self.lstms]

    def content(self) -> dict[str, Any]:
        layers = [{name: pack(getattr(layer, f"{name}_l0")) for name in WEIGHTS} for layer in self.layers]
        content: dict[str, Any] = {"embedding": here(self.embedding), "layers": layers}
        if self.head is None:
            content["decoder_bias"] = self.decoder_bias if self.decoder_bias is None else here(self.decoder_bias)
        else:
            content["head"] = {name: here(each) for name, each in self.head.state_dict().items()}
        return content

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> Self:
        return cls(*_unpacked(content))


@torch.no_grad()
def finalize(model: nn.Module, masks: Mapping[str, BlockMask]) -> FinalModel:
    """The model as it computes in evaluation, without its masks. masks: by the names of `model.prunable()`.

    A weight without a mask stays dense. Nothing of the model is shared. ValueError for a mask of another name or size.
    """
    shapes = {
        f"{kind}_l{number}": tuple(getattr(layer, f"{kind}_l0").shape)
        for number, layer in enumerate(model.layers)  # type: ignore[arg-type]
        for kind in ("weight_ih", "weight_hh")
    }
    require_masks(masks, shapes, GATES)

    def final(number: int, layer: nn.Module, name: str) -> Tensor | BSRMatrix:
        weight, mask = getattr(layer, f"{name}_l0").detach(), masks.get(f"{name}_l{number}")
        return weight.clone() if mask is None else blocks_of(weight, mask, GATES)

    layers = [{name: final(number, layer, name) for name in WEIGHTS} for number, layer in enumerate(model.layers)]  # type: ignore[arg-type]
    embedding: Tensor = model.embedding.weight.detach().clone()  # type: ignore[operator, union-attr]
    if isinstance(model.head, AdaptiveSoftmax):
        head = adaptive_of({name: each.detach().clone() for name, each in model.head.state_dict().items()})
        return FinalModel(embedding, None, layers, head)
    return FinalModel(embedding, model.decoder_bias.detach().clone(), layers)  # type: ignore[operator]


def _layer(weights: Mapping[str, Tensor | BSRMatrix], into: int, units: int) -> BlockSparseLSTM:
    """An LSTM layer that has these weights, not copies of them."""
    masks = {f"{name}_l0": each.mask for name, each in weights.items() if isinstance(each, BSRMatrix)}
    layer = BlockSparseLSTM(into, units, masks, device="meta", dtype=weights["bias_ih"].dtype, pad=True)
    for name, each in weights.items():
        shape = GATES * units, into if name == "weight_ih" else units
        part = BlockSparseWeight(each, shape, GATES) if isinstance(each, BSRMatrix) else nn.Parameter(each)
        setattr(layer, f"{name}_l0", part)
    return layer


def _unpacked(content: Mapping[str, Any]) -> tuple[Tensor, Tensor | None, list[Weights], AdaptiveSoftmax | None]:
    """The fields of the model that a file holds; ValueError naming the one that is none."""
    layers = field(content, "layers", "layers")
    if not isinstance(layers, list):
        raise ValueError(f"layers must be a list, got {type(layers).__name__}")
    unpacked = []
    for number, layer in enumerate(layers):
        weights = {name: field(layer, name, f"layers[{number}].{name}") for name in WEIGHTS}
        unpacked.append({name: unpack(f"layers[{number}].{name}", each) for name, each in weights.items()})
    embedding = field(content, "embedding", "embedding")
    if "head" not in content:
        return embedding, field(content, "decoder_bias", "decoder_bias"), unpacked, None
    if not isinstance(content["head"], dict):
        raise ValueError(f"head must be a dictionary of tensors, got {type(content['head']).__name__}")
    return embedding, None, unpacked, adaptive_of(content["head"])


def _check(
    embedding: Tensor,
    decoder_bias: Tensor | None,
    layers: Sequence[Mapping[str, Tensor | BSRMatrix]],
    head: AdaptiveSoftmax | None,
) -> None:
    """ValueError naming the field where the tensors are not those of one model."""
    require_memory("embedding", embedding)
    if embedding.ndim != 2 or 0 in embedding.shape or not embedding.is_floating_point():
        raise ValueError(
            f"embedding must be real numbers, [vocabulary, size], got {embedding.dtype} {list(embedding.shape)}"
        )
    vocabulary, size = embedding.shape
    if head is None:
        if decoder_bias is None:
            raise ValueError("decoder_bias: neither it nor a head is given; accepted: one of both")
        _require("decoder_bias", decoder_bias, (vocabulary,), embedding)
    if not layers:
        raise ValueError("layers must be one or more, got none")
    for number, layer in enumerate(layers):
        place, recurrent = f"layers[{number}]", layer["weight_hh"]
        if isinstance(recurrent, BSRMatrix):
            require_memory(f"{place}.bias_ih", layer["bias_ih"])
            into, size = size, layer["bias_ih"].data.numel() // GATES
        else:
            require_memory(f"{place}.weight_hh", recurrent)
            into, size = size, recurrent.shape[-1] if recurrent.shape else 0
        _require(f"{place}.weight_hh", recurrent, (4 * size, size), embedding)
        _require(f"{place}.weight_ih", layer["weight_ih"], (4 * size, into), embedding)
        for name in ("bias_ih", "bias_hh"):
            _require(f"{place}.{name}", layer[name], (4 * size,), embedding)
    if head is not None:
        _check_head(head, vocabulary, size, embedding)
    elif size != embedding.shape[1]:
        wanted = f"the last layer must have the embedding's {embedding.shape[1]} units"
        raise ValueError(f"layers[{number}].weight_hh: {wanted}, got {size}")


def _check_head(head: AdaptiveSoftmax, vocabulary: int, size: int, embedding: Tensor) -> None:
    """ValueError where the adaptive softmax is not one from `size` units to the vocabulary.

    It must be of the embedding's type and on its device.
    """
    if (head.in_features, head.n_classes) != (size, vocabulary):
        sizes = f"{size} units to {vocabulary} words"
        raise ValueError(f"head must lead from {sizes}, got one from {head.in_features} to {head.n_classes}")
    for name, weight in head.state_dict().items():
        _require(f"head.{name}", weight, tuple(weight.shape), embedding)


def _require(place: str, weight: Tensor | BSRMatrix, shape: tuple[int, ...], like: Tensor) -> None:
    """ValueError where `weight` is not of that shape, and of the type and on the device of `like`, the embedding."""
    if not (isinstance(weight, BSRMatrix) and len(shape) == 2):
        require_memory(place, weight)
    values, whole = weight.data, shape
    if isinstance(weight, BSRMatrix):
        whole = in_blocks((shape[0], shape[1]), GATES, weight.block_size) if len(shape) == 2 else ()
    if tuple(weight.shape) != whole or values.dtype != like.dtype or values.device != like.device:
        kind = f"{str(values.dtype).removeprefix('torch.')} {list(weight.shape)} on {values.device}"
        wanted = f"{str(like.dtype).removeprefix('torch.')} {list(shape)} on {like.device}, as the embedding"
        raise ValueError(f"{place} must be {wanted}, got {kind}")
