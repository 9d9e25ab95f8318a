"""Finalize: a pruned language model exported, its LSTM weights as BSR, for inference only.

W <- W * M, then the masks are dropped: a kept block is stored whole, an empty one not at all.
A file of it is a dictionary of plain tensors as torch saves it, with its sha256 beside it (`sha256sum -c` reads that),
because torch loads a file with a flipped bit without a word. Whatever a kill leaves is the export before, or the new
one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.decoders import AdaptiveSoftmax, Decoder, adaptive_of
from bench.storing.parquet import DamagedError, publish_pair, read_table, require_pair
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix, require_sparse
from kernels.ops import block_sparse_lstm
from kernels.system.resources import in_words
from kernels.tensors.operands import require_memory

FORMAT = "block-sparse LSTM language model 1"
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
PARTS = ("data", "indices", "indptr", "shape")  # of a block-sparse weight

State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class FinalLayer:
    """One LSTM layer: weight_ih [4 size, in], block-sparse or dense; weight_hh [4 size, size]; biases [4 size]."""

    weight_ih: Tensor | BSRMatrix
    weight_hh: BSRMatrix
    bias_ih: Tensor
    bias_hh: Tensor


@dataclass(frozen=True)
class FinalModel:
    """The model of `bench.models.lstm` in evaluation, its pruned weights as BSR; calls give what that gives.

    embedding: [vocabulary, size], the decoder's weight too where decoder_bias, [vocabulary], is given; else head is
    the decoder.
    The block-sparse weights are frozen: a copy of each is kept, and on a CPU a packed one beside it from the first
    call on.
    """

    embedding: Tensor
    decoder_bias: Tensor | None
    layers: tuple[FinalLayer, ...]
    head: AdaptiveSoftmax | None = None

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "layers", tuple(map(_frozen, self.layers)))

    @torch.no_grad()
    def __call__(self, inputs: Tensor, states: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """Logits of the next word and the states to go on from. inputs: [time, batch] -> [time * batch, vocabulary]."""
        x, after = self.run_layers(F.embedding(inputs, self.embedding), states)
        return self.decoder.logits(x), after

    @torch.no_grad()
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

    @torch.no_grad()
    def run_layers(self, x: Tensor, states: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """The LSTM layers alone. x: [time, batch, size] -> the same, and the states."""
        after = []
        for number, layer in enumerate(self.layers):
            state = states[number] if states else None
            x, state = block_sparse_lstm(x, state, layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh)
            after.append(state)
        return x, after

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> FinalModel:
        """The same model there, its values as `dtype`."""

        def moved(weight: Tensor | BSRMatrix) -> Any:
            if isinstance(weight, Tensor):
                return weight.to(device, dtype)
            data = weight.data.to(device, dtype)
            indices, indptr = (each.to(device) for each in weight.pattern)
            return BSRMatrix(data, indices, indptr, weight.shape)

        layers = tuple(FinalLayer(**{name: moved(getattr(layer, name)) for name in WEIGHTS}) for layer in self.layers)
        bias = None if self.decoder_bias is None else moved(self.decoder_bias)
        head = self.head and adaptive_of({name: moved(each) for name, each in self.head.state_dict().items()})
        return FinalModel(moved(self.embedding), bias, layers, head)

    @property
    def sparse_weights(self) -> list[BSRMatrix]:
        """The weights that were pruned."""
        both = (weight for layer in self.layers for weight in (layer.weight_ih, layer.weight_hh))
        return [weight for weight in both if isinstance(weight, BSRMatrix)]

    @property
    def nbytes(self) -> int:
        """Bytes of the pruned weights as they are stored: values and indices."""
        return sum(weight.values_nbytes + weight.index_nbytes for weight in self.sparse_weights)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the same weights as dense matrices."""
        return sum(weight.shape[0] * weight.shape[1] * weight.dtype.itemsize for weight in self.sparse_weights)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model to `path`, as tensors of the CPU, and its checksum to `path`.sha256.

        OSError where no file can be written there, or what lies there is none.
        """
        path = Path(path)
        require_pair(path)
        here = self.to("cpu", self.embedding.dtype)
        layers = [{name: _pack(getattr(layer, name)) for name in WEIGHTS} for layer in here.layers]
        content: dict[str, Any] = {"format": FORMAT, "embedding": here.embedding, "layers": layers}
        if here.head is None:
            content["decoder_bias"] = here.decoder_bias
        else:
            content["head"] = dict(here.head.state_dict())
        buffer = io.BytesIO()
        torch.save(content, buffer)
        before = None
        with suppress(DamagedError):
            before = read_table(path)
        publish_pair(path, buffer.getvalue(), before)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> FinalModel:
        """The model that was saved to `path`; ValueError, one line, where that is not what lies there.

        The file may have been renamed with its checksum since: the sum counts, not the name beside it.
        """
        path = Path(path)
        try:
            data = read_table(path)
        except DamagedError as error:
            raise ValueError(f"{error}; export the model again") from None
        except OSError as error:
            raise ValueError(f"an exported model cannot be read: {in_words(error)}") from None
        try:
            content: Any = torch.load(io.BytesIO(data), weights_only=True)
            ours = content["format"] == FORMAT
        except Exception:  # torch and pickle have many ways to say that bytes are not theirs
            ours = False
        if not ours:
            raise ValueError(f"{path} is no exported model; accepted: files of the format {FORMAT!r}")
        try:
            return cls(*_unpacked(content))
        except ValueError as error:
            raise ValueError(f"{path} is no exported model: {error}") from None


@torch.no_grad()
def finalize(model: nn.Module, masks: Mapping[str, BlockMask]) -> FinalModel:
    """The model as it computes in evaluation, without its masks. masks: by the names of `model.prunable()`.

    Every weight_hh needs a mask; a weight_ih without one stays dense. Nothing of the model is shared.
    ValueError otherwise, and for a mask of another name or size.
    """
    shapes = {
        f"{kind}_l{number}": tuple(getattr(layer, f"{kind}_l0").shape)
        for number, layer in enumerate(model.layers)  # type: ignore[arg-type]
        for kind in ("weight_ih", "weight_hh")
    }
    for name in shapes:
        if name.startswith("weight_hh") and name not in masks:
            raise ValueError(f"masks: {name} has none; accepted: a mask of every weight_hh")
    for name, mask in masks.items():
        if name not in shapes:
            raise ValueError(f"masks: {name!r} is no weight of the model; accepted: {', '.join(shapes)}")
        if mask.shape != shapes[name]:
            raise ValueError(f"masks: that of {name} covers {mask.shape}, and the weight is {shapes[name]}")

    def final(number: int, layer: nn.Module, name: str) -> Tensor | BSRMatrix:
        weight, mask = getattr(layer, f"{name}_l0").detach(), masks.get(f"{name}_l{number}")
        return weight.clone() if mask is None else BSRMatrix.from_dense(weight, mask)

    layers = [
        FinalLayer(**{name: final(number, layer, name) for name in WEIGHTS})  # type: ignore[arg-type]
        for number, layer in enumerate(model.layers)  # type: ignore[arg-type]
    ]
    embedding: Tensor = model.embedding.weight.detach().clone()  # type: ignore[operator, union-attr]
    if isinstance(model.head, AdaptiveSoftmax):
        head = adaptive_of({name: each.detach().clone() for name, each in model.head.state_dict().items()})
        return FinalModel(embedding, None, tuple(layers), head)
    return FinalModel(embedding, model.decoder_bias.detach().clone(), tuple(layers))  # type: ignore[operator]


def _frozen(layer: FinalLayer) -> FinalLayer:
    """The same layer, its block-sparse weights frozen, where they have values."""
    weights: dict[str, Any] = {name: getattr(layer, name) for name in WEIGHTS}
    sparse = {name: each for name, each in weights.items() if isinstance(each, BSRMatrix)}
    weights |= {name: each.freeze() for name, each in sparse.items() if not each.indices.is_meta}
    return FinalLayer(**weights)


def _pack(weight: Tensor | BSRMatrix) -> Tensor | dict[str, Any]:
    if isinstance(weight, Tensor):
        return weight
    return dict(zip(PARTS, (weight.data, *weight.pattern, weight.shape), strict=True))


def _unpacked(content: dict[str, Any]) -> tuple[Tensor, Tensor | None, tuple[FinalLayer, ...], AdaptiveSoftmax | None]:
    """The fields of the model that a file holds; ValueError naming the one that is none."""
    layers = _field(content, "layers", "layers")
    if not isinstance(layers, list):
        raise ValueError(f"layers must be a list, got {type(layers).__name__}")
    unpacked = []
    for number, layer in enumerate(layers):
        weights = {name: _field(layer, name, f"layers[{number}].{name}") for name in WEIGHTS}
        unpacked.append(
            FinalLayer(**{name: _unpack(f"layers[{number}].{name}", each) for name, each in weights.items()})
        )
    embedding = _field(content, "embedding", "embedding")
    if "head" not in content:
        return embedding, _field(content, "decoder_bias", "decoder_bias"), tuple(unpacked), None
    if not isinstance(content["head"], dict):
        raise ValueError(f"head must be a dictionary of tensors, got {type(content['head']).__name__}")
    return embedding, None, tuple(unpacked), adaptive_of(content["head"])


def _field(stored: Any, name: str, place: str) -> Any:
    if not isinstance(stored, dict) or name not in stored:
        raise ValueError(f"{place} is missing")
    return stored[name]


def _unpack(place: str, stored: Any) -> Any:
    if not isinstance(stored, dict):
        return stored
    if set(stored) != set(PARTS):
        raise ValueError(f"{place} must have {', '.join(PARTS)}, got {', '.join(map(str, stored)) or 'nothing'}")
    try:
        matrix = BSRMatrix(**stored)
        _ = matrix.index  # looked at, so that a pattern that points outside is refused here
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return matrix


def _check(model: FinalModel) -> None:
    """ValueError naming the field where the tensors are not those of one model."""
    embedding = model.embedding
    require_memory("embedding", embedding)
    if embedding.ndim != 2 or 0 in embedding.shape or not embedding.is_floating_point():
        raise ValueError(
            f"embedding must be real numbers, [vocabulary, size], got {embedding.dtype} {list(embedding.shape)}"
        )
    vocabulary, size = embedding.shape
    if model.head is None:
        if model.decoder_bias is None:
            raise ValueError("decoder_bias: neither it nor a head is given; accepted: one of both")
        _require("decoder_bias", model.decoder_bias, (vocabulary,), embedding)
    if not model.layers:
        raise ValueError("layers must be one or more, got none")
    for number, layer in enumerate(model.layers):
        place, recurrent = f"layers[{number}]", require_sparse(f"layers[{number}].weight_hh", layer.weight_hh)
        into, size = size, recurrent.shape[1]
        _require(f"{place}.weight_hh", recurrent, (4 * size, size), embedding)
        _require(f"{place}.weight_ih", layer.weight_ih, (4 * size, into), embedding)
        for name in ("bias_ih", "bias_hh"):
            _require(f"{place}.{name}", getattr(layer, name), (4 * size,), embedding)
    if model.head is not None:
        _check_head(model.head, vocabulary, size, embedding)
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
    values = weight.data
    if tuple(weight.shape) != shape or values.dtype != like.dtype or values.device != like.device:
        kind = f"{str(values.dtype).removeprefix('torch.')} {list(weight.shape)} on {values.device}"
        wanted = f"{str(like.dtype).removeprefix('torch.')} {list(shape)} on {like.device}, as the embedding"
        raise ValueError(f"{place} must be {wanted}, got {kind}")
