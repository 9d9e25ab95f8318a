"""What recurrent layers share: arguments, shapes, directions, layers and packed sequences as torch.nn.LSTM has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.layers.sequences import Run, State, run_backwards, run_packed
from kernels.layers.weight import (
    BlockSparseWeight,
    copied,
    kept_blocks,
    require_kernel,
    require_kind,
    require_mask,
    sparse_from,
)
from kernels.ops import is_inference
from kernels.tensors.operands import require_whole
from kernels.tensors.padding import padded, widened


class Recurrent(nn.Module):
    """What an LSTM and a GRU share: arguments, shapes, directions, layers and packed sequences of torch's."""

    KIND: type[nn.RNNBase]
    GATES: int  # rows of weights for each unit
    STATES: tuple[str, ...]  # what goes from step to step
    BY_STEPS: bool  # each step is a product of its own with the recurrent weight

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        masks: Mapping[str, BlockMask],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kernel: str = "auto",
        pad: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            require_whole(name, size)
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if proj_size:
            raise ValueError(f"proj_size must be 0, got {proj_size}: a block-sparse layer has no projections")
        if isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a number in [0, 1], got {dropout!r}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, float(dropout), bidirectional
        self.proj_size, self.kernel = 0, require_kernel(kernel)
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        for name, shape in self._check_masks(masks, pad).items():
            if name in masks:
                setattr(self, name, BlockSparseWeight(kept_blocks(masks[name], **like), shape, self.GATES))
            else:
                setattr(self, name, nn.Parameter(torch.empty(shape, **like)))
        for name in self._names("bias") if bias else ():
            setattr(self, name, nn.Parameter(torch.empty(self.GATES * hidden_size, **like)))
        self.reset_parameters()

    def _names(self, kind: str) -> list[str]:
        """torch's names of all weights or biases."""
        places = [f"l{layer}{suffix}" for layer in range(self.num_layers) for suffix in self._suffixes]
        return [f"{kind}_{side}_{place}" for place in places for side in ("ih", "hh")]

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def _check_masks(self, masks: Mapping[str, BlockMask], pad: bool) -> dict[str, tuple[int, int]]:
        """The shape of every weight, by name; ValueError where `masks` are not of them."""
        rows, units = self.GATES * self.hidden_size, self.hidden_size
        above = units * len(self._suffixes)
        shapes = {
            name: (rows, units if "_hh_" in name else above if "_l0" not in name else self.input_size)
            for name in self._names("weight")
        }
        if not isinstance(masks, Mapping):
            raise ValueError(f"masks must map names of weights to masks, got {type(masks).__name__}")
        for name, mask in masks.items():
            if name not in shapes:
                raise ValueError(f"masks: {name!r} is no weight of the layer; accepted: {', '.join(shapes)}")
            require_mask(name, mask, shapes[name], pad, self.GATES)
        sizes = sorted({mask.block_size for mask in masks.values()})
        if pad and len(sizes) > 1:
            raise ValueError(f"masks of a padded layer must have one block_size, got {', '.join(map(str, sizes))}")
        return shapes

    @classmethod
    def from_dense(
        cls, module: Any, masks: Mapping[str, BlockMask], *, kernel: str = "auto", pad: bool = False
    ) -> Self:
        """The layer with the blocks of `module` that `masks` keep: copies, of its types, on its device, in its mode.

        masks: by the names of the weights of `module`; one without a mask stays dense. pad: as of the layer. ValueError
        where a mask is of no weight or of another shape, the weights are parametrized, or there is a proj_size.
        """
        require_kind(module, cls.KIND)
        names = (
            "input_size",
            "hidden_size",
            "num_layers",
            "bias",
            "batch_first",
            "dropout",
            "bidirectional",
            "proj_size",
        )
        given = {name: getattr(module, name) for name in names}
        made = cls(masks=masks, **given, device="meta", kernel=kernel, pad=pad)
        for name in made._names("weight") + (made._names("bias") if module.bias else []):
            dense = getattr(module, name)
            setattr(made, name, sparse_from(dense, masks[name], cls.GATES) if name in masks else copied(dense))
        return made.train(module.training)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Everything drawn anew, uniform as in the layer of torch's."""
        bound = 1 / math.sqrt(self.hidden_size)
        for each in self.parameters(recurse=False):
            each.uniform_(-bound, bound)
        for weight in self.children():
            assert isinstance(weight, BlockSparseWeight)
            weight.draw(bound)

    def flatten_parameters(self) -> None:
        """Nothing: there is no memory to put in order; for code that calls it of a layer of torch's."""

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """The output, and the state of every layer at the end; as of the layer of torch's.

        input: [steps, batch, input_size], [batch, steps, input_size] with batch_first, [steps, input_size], or a
        PackedSequence. ValueError where input or state do not fit.
        """
        if isinstance(input, PackedSequence):
            rows, sizes, order, back = input
            states = self._begin(hx, rows, int(sizes[0]), batched=True)
            states = states if order is None else tuple(each.index_select(1, order) for each in states)
            y, states = self._layers(rows, states, sizes.tolist())
            states = states if back is None else tuple(each.index_select(1, back) for each in states)
            return PackedSequence(y, sizes, order, back), self._state(states)
        if not isinstance(input, Tensor) or input.ndim not in (2, 3):
            given = list(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"input must be a tensor of 2 or 3 dimensions, or a PackedSequence, got {given}")
        batched = input.ndim == 3
        first = self.batch_first and batched
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if first else x
        if x.shape[0] < 1:
            raise ValueError(f"input must have at least one step, got {list(input.shape)}")
        y, states = self._layers(x, self._begin(hx, x, x.shape[1], batched), None)
        if not batched:
            return y.squeeze(1), self._state(tuple(each.squeeze(1) for each in states))
        return y.transpose(0, 1) if first else y, self._state(states)

    def _begin(self, hx: Any, x: Tensor, batch: int, batched: bool) -> State:
        """The state to begin with, [layers * directions, batch, hidden] each; ValueError where it is none."""
        if x.shape[-1] != self.input_size:
            raise ValueError(f"input must have {self.input_size} features, got {list(x.shape)}")
        shape = (self.num_layers * len(self._suffixes), batch, self.hidden_size)
        if hx is None:
            return tuple(x.new_zeros(shape) for _ in self.STATES)
        given = self._listed(hx)
        wanted = shape if batched else (shape[0], shape[2])
        for name, each in zip(self.STATES, given, strict=True):
            if not isinstance(each, Tensor) or each.shape != wanted:
                got = list(each.shape) if isinstance(each, Tensor) else type(each).__name__
                raise ValueError(f"{name} must be {list(wanted)}, got {got}")
        return given if batched else tuple(each.unsqueeze(1) for each in given)

    def _listed(self, hx: Any) -> State:
        """The parts of a state; ValueError where there are others."""
        raise NotImplementedError

    def _state(self, states: State) -> Any:
        """What a caller gets of them."""
        raise NotImplementedError

    def _layers(self, x: Tensor, states: State, batch_sizes: list[int] | None) -> tuple[Tensor, State]:
        """All layers over x [steps, batch, in], or over the rows of a packed sequence; and their states at the end."""
        after: list[State] = []
        for layer in range(self.num_layers):
            outputs = []
            for backwards, suffix in enumerate(self._suffixes):
                state = tuple(each[len(after)] for each in states)
                run = self._run(f"l{layer}{suffix}", batch_sizes is not None)
                if batch_sizes is not None:
                    y, state = run_packed(run, x, batch_sizes, state, bool(backwards))
                else:
                    y, state = run_backwards(run, x, state) if backwards else run(x, state)
                outputs.append(y)
                after.append(state)
            x = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x, tuple(torch.stack(parts) for parts in zip(*after, strict=True))

    def _run(self, place: str, again: bool) -> Run:
        """One direction of a layer. again: it goes over more than one stretch of time."""
        names = [f"weight_{side}_{place}" for side in ("ih", "hh")]
        biases = [getattr(self, f"bias_{side}_{place}", None) for side in ("ih", "hh")]
        weights = [self._weight(names[0], again), self._weight(names[1], again or self.BY_STEPS)]
        rows = max([0, *(each.shape[0] for each in weights if isinstance(each, BSRMatrix))])
        size, units = self.hidden_size, rows // self.GATES
        if units > size:
            into = weights[0].shape[1]
            whole = [(rows, into), (rows, units)]
            weights = [
                each if isinstance(each, BSRMatrix) else padded(each, self.GATES, shape)
                for each, shape in zip(weights, whole, strict=True)
            ]
        inner = [each if each is None else padded(each, self.GATES, (max(rows, len(each)),)) for each in biases]

        def run(x: Tensor, state: State) -> tuple[Tensor, State]:
            if not x.shape[1] or not rows:
                dense = [
                    each.to_dense() if isinstance(each, BlockSparseWeight) else each for each in map(self._get, names)
                ]
                return self._by_torch(x, state, [each for each in (*dense, *biases) if each is not None])
            state = tuple(widened(each, units) for each in state)
            y, state = self._by_blocks(widened(x, weights[0].shape[1]), state, weights, inner)
            if units == size:
                return y, state
            return y[..., :size].contiguous(), tuple(each[..., :size] for each in state)

        return run

    def _get(self, name: str) -> Any:
        return getattr(self, name)

    def _by_torch(self, x: Tensor, state: State, flat: list[Tensor]) -> tuple[Tensor, State]:
        """One direction by torch's layer, its weights dense. flat: weights, then biases where there are any."""
        raise NotImplementedError

    def _by_blocks(
        self, x: Tensor, state: State, weights: list[Tensor | BSRMatrix], biases: list[Tensor | None]
    ) -> tuple[Tensor, State]:
        """One direction by block-sparse products, with one block-sparse weight at least."""
        raise NotImplementedError

    def _weight(self, name: str, again: bool) -> Tensor | BSRMatrix:
        """A weight for products: one that is multiplied again, with no gradient, is packed once."""
        weight = getattr(self, name)
        if not isinstance(weight, BlockSparseWeight):
            assert isinstance(weight, Tensor)
            return weight
        return weight.matrix.freeze() if again and is_inference(weight.values) else weight.matrix

    def extra_repr(self) -> str:
        settings = {name: getattr(self, name) for name in ("num_layers", "bias", "batch_first", "dropout")}
        shown = [f"{name}={each}" for name, each in (settings | {"bidirectional": self.bidirectional}).items()]
        return ", ".join([str(self.input_size), str(self.hidden_size), *shown])
