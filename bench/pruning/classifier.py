"""FinalClassifier: an mlp exported for inference, its pruned weights as BSR, batch normalisation folded into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.mlp import MLP, Classifier, States
from bench.pruning.stored import Exported, field, here, pack, require_masks, unpack
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.layers.weight import BlockSparseWeight, blocks_of
from kernels.modules import BlockSparseLinear, freeze
from kernels.tensors.operands import require_memory

PAIR = ("weight", "bias")
Pair = dict[str, Any]  # of one layer: weight [out, in], block-sparse or dense, and bias [out]


class FinalClassifier(Classifier, Exported):
    """An mlp in evaluation, its pruned weights block-sparse: calls give the logits that it gives.

    layers: weight [units, in], block-sparse or dense, and bias [units] of each hidden layer, which become
    `BlockSparseLinear` or torch's; output: those of the output layer, dense. No parameter asks for a gradient, and the
    block-sparse weights are frozen, as of `bench.pruning.finalize.FinalModel`.
    ValueError naming the field where the tensors are not those of one model.
    """

    FORMAT = "block-sparse classifier 1"

    def __init__(self, layers: Sequence[Mapping[str, Any]], output: Mapping[str, Any]) -> None:
        super().__init__()
        _check(layers, output)
        self.layers = nn.ModuleList(map(_linear, layers))
        self.output = _linear(output)
        freeze(self.eval().requires_grad_(False))

    def forward(self, inputs: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits of the classes, and no states. inputs: [batch, features] -> [batch, classes]."""
        x, after = self.run_layers(inputs, states)
        return self.output(x), after

    def run_layers(self, x: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """The hidden layers alone. x: [batch, features] -> [batch, units]."""
        assert not states
        for layer in self.layers:
            x = F.relu(layer(x))
        return x, []

    @property
    def widths(self) -> list[int]:
        """Units of each hidden layer."""
        return [len(layer.bias) for layer in self.layers]  # type: ignore[arg-type]

    def content(self) -> dict[str, Any]:
        layers = [{"weight": pack(layer.weight), "bias": here(layer.bias)} for layer in self.layers]  # type: ignore[arg-type]
        return {"layers": layers, "output": {name: here(getattr(self.output, name)) for name in PAIR}}

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> Self:
        stored = field(content, "layers", "layers")
        if not isinstance(stored, list):
            raise ValueError(f"layers must be a list, got {type(stored).__name__}")
        layers = [_pair(each, f"layers[{number}]") for number, each in enumerate(stored)]
        return cls(layers, _pair(field(content, "output", "output"), "output"))


@torch.no_grad()
def final_classifier(model: MLP, masks: Mapping[str, BlockMask]) -> FinalClassifier:
    """The model as it computes in evaluation, without its masks. masks: by the names of `model.prunable()`.

    A weight without a mask stays dense. What batch normalisation does in evaluation, y = γ (x - μ) / √(σ² + ε) + β, is
    folded into weight and bias. Nothing of the model is shared. ValueError for a mask of another name or size.
    """
    shapes = {f"layers.{number}.weight": tuple(layer.weight.shape) for number, layer in enumerate(model.layers)}  # type: ignore[arg-type]
    require_masks(masks, shapes)
    layers = []
    for number, layer in enumerate(model.layers):
        weight, bias = _folded(layer, None if model.norms is None else model.norms[number])
        own = masks.get(f"layers.{number}.weight")
        layers.append({"weight": weight if own is None else blocks_of(weight, own), "bias": bias})
    output = {name: getattr(model.output, name).detach().clone() for name in PAIR}
    return FinalClassifier(layers, output)


def _folded(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer and of the normalisation behind it, as one layer's."""
    weight, bias = (getattr(layer, name).detach().clone() for name in PAIR)
    if not isinstance(norm, nn.BatchNorm1d):
        return weight, bias
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return weight * scale[:, None], (bias - norm.running_mean) * scale + norm.bias


def _linear(pair: Mapping[str, Any]) -> nn.Module:
    """A linear layer that has these tensors, not copies of them."""
    weight, bias = pair["weight"], pair["bias"]
    rows, into = _shape(weight)
    if not isinstance(weight, BSRMatrix):
        dense = nn.Linear(into, rows, device="meta")
        dense.weight, dense.bias = nn.Parameter(weight), nn.Parameter(bias)
        return dense
    made = BlockSparseLinear(into, rows, weight.mask, device="meta", dtype=bias.dtype, pad=True)
    made.weight, made.bias = BlockSparseWeight(weight, (rows, into)), nn.Parameter(bias)
    return made


def _pair(stored: Any, place: str) -> Pair:
    return {name: unpack(f"{place}.{name}", field(stored, name, f"{place}.{name}")) for name in PAIR}


def _check(layers: Sequence[Mapping[str, Any]], output: Mapping[str, Any]) -> None:
    """ValueError naming the field where the tensors are not those of one model."""
    if not layers:
        raise ValueError("layers must be one or more, got none")
    places = [*((f"layers[{number}]", layer) for number, layer in enumerate(layers)), ("output", output)]
    first = output["bias"]
    require_memory("output.bias", first)
    if not first.is_floating_point():
        raise ValueError(f"output.bias must be real numbers, got {_kind(first)}")
    for place, pair in places:
        weight, bias = pair["weight"], pair["bias"]
        if not isinstance(weight, BSRMatrix):
            require_memory(f"{place}.weight", weight)
        require_memory(f"{place}.bias", bias)
        values, shape = weight.data, _shape(weight)
        alike = all(each.dtype == first.dtype and each.device == first.device for each in (values, bias))
        if len(shape) != 2 or 0 in shape or tuple(bias.shape) != shape[:1] or not alike:
            wanted = f"{_kind(first)} [out, in] and [out] on {first.device}"
            given = f"{_kind(values)} {list(shape)} and {_kind(bias)} {list(bias.shape)} on {values.device}"
            raise ValueError(f"{place} must be {wanted}, got {given}")
    if isinstance(output["weight"], BSRMatrix):
        raise ValueError("output.weight must be dense, got a block-sparse one")
    for (_, below), (place, pair) in pairwise(places):
        if _shape(pair["weight"])[1] != _shape(below["weight"])[0]:
            given = f"got {_shape(pair['weight'])[1]} columns"
            raise ValueError(f"{place}.weight must read the {_shape(below['weight'])[0]} units below it, {given}")


def _shape(weight: Tensor | BSRMatrix) -> tuple[int, ...]:
    """Of a weight, without padding."""
    return weight.unpadded if isinstance(weight, BSRMatrix) else tuple(weight.shape)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
