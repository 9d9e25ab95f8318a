"""Which LSTM layers of a model run on the sparse path: the setting `path` at work.

dense: none. sparse: all, from the first step on. auto: each from its break-even sparsity on, where that was measured to
be on this machine (`bench.training.breakeven`). The two paths add up in different orders, so under auto the last digits of a result
depend on the choice.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from bench.cells import TrainCell
from bench.models.layers import OURS, LSTMLayer
from bench.pruning.pruner import share_empty
from bench.training.breakeven import NEVER, Shape, breakeven
from bench.training.precision import type_of_products
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.native.library import describe, library
from kernels.ops import kernel_for, lstm_kernel
from kernels.system.threads import in_force


def missing_kernel(device: str = "cpu", precision: str = "ieee", block_size: int = 16) -> str | None:
    """Why nothing can run on the sparse path of `device` here, or None. ResourceError where that is so today only."""
    dtype = type_of_products(precision)
    try:
        kernel_for(OURS[device], dtype, torch.device(device), layer=True, block_size=block_size)
    except ValueError as error:
        return str(error)
    return None


def missing_kernel_of(cell: TrainCell) -> str | None:
    """Why nothing can run on the sparse path of a cell here, or None."""
    return missing_kernel(cell.device, cell.precision, cell.block_size)


def kernel(device: str = "cpu") -> str:
    """What computes the sparse path of `device` here: kernel, compiler and threads; of a GPU its name, the rest hangs on the weights."""
    if device == "cuda":
        return OURS[device]
    return describe(library("dsd", torch.float32), in_force())


def kernel_of(recurrent: Iterable[BSRMatrix], batch: int) -> str:
    """What goes through the steps of layers with these recurrent weights, `batch` sequences side by side."""
    first, *others = recurrent
    if not first.data.is_cuda:
        native = kernel_for("auto", first.data.dtype, first.data.device, layer=True) == "native"
        return kernel() if native else "torch"
    return "; ".join(dict.fromkeys(lstm_kernel(weight, batch) for weight in (first, *others)))


class Paths:
    """The choice for every LSTM layer of `model`, made anew whenever a mask changes.

    kernel: what computes the sparse path, empty as long as nothing ran on it. reason: why auto never leaves the dense path,
    empty where it can. ValueError where path is sparse and there are no kernels. May measure for a minute at first use.
    """

    def __init__(self, model: nn.Module, cell: TrainCell, thresholds: list[float] | None = None) -> None:
        """thresholds: break-even sparsities of the layers that a run began with; None asks for them now."""
        layers: list[LSTMLayer] = list(model.layers)  # type: ignore[arg-type]
        self.layers, self.path, self.batch_size = layers, cell.path, cell.batch_size
        self.device, self.precision = cell.device, cell.precision
        self.kernel, self.reason = "", ""
        self._masks: dict[str, BlockMask] = {}
        missing = missing_kernel_of(cell) if cell.path != "dense" else None
        if missing and cell.path == "sparse":
            raise ValueError(f"path: no sparse path here: {missing}")
        if missing:
            self.reason = f"dense path: {missing}"
        self.thresholds = thresholds or [self._threshold(layer, cell) for layer in layers]

    def _threshold(self, layer: LSTMLayer, cell: TrainCell) -> float:
        if cell.path == "dense" or self.reason:
            return NEVER
        if cell.path == "sparse":
            return 0.0
        sizes = (layer.input_size, layer.hidden_size, cell.batch_size, cell.bptt)
        threads, drop = torch.get_num_threads(), layer.weight_drop
        where = cell.device, cell.precision
        return breakeven(Shape(*sizes, cell.block_size, cell.scope, "float32", threads, drop, *where))

    @property
    def sparse_layers(self) -> int:
        """How many layers run on the sparse path."""
        return sum(layer.sparse for layer in self.layers)

    @property
    def sparse_weights(self) -> frozenset[str]:
        """Names of the weights whose gradients come without empty blocks."""
        return frozenset(f"{kind}_l{number}" for number, layer in enumerate(self.layers) for kind in layer.patterns)

    def update(self, masks: dict[str, BlockMask]) -> None:
        """Put every layer on its path. masks: as `Pruner.masks`, whose members are replaced when they change."""
        if masks.keys() == self._masks.keys() and all(masks[name] is self._masks[name] for name in masks):
            return
        self._masks = dict(masks)
        for number, (layer, threshold) in enumerate(zip(self.layers, self.thresholds, strict=True)):
            own = {kind: masks[name] for kind in ("weight_ih", "weight_hh") if (name := f"{kind}_l{number}") in masks}
            layer.follow(own if own and share_empty(own.values()) >= threshold else {})
        if self.sparse_layers and (self.device == "cuda" or not self.kernel):
            self.kernel = kernel_of(self._recurrent_weights(), self.batch_size)

    def _recurrent_weights(self) -> list[BSRMatrix]:
        """Those of the layers on the sparse path, as they are multiplied."""
        dtype = type_of_products(self.precision)
        found = [layer.patterns["weight_hh"].matrix for layer in self.layers if layer.sparse]
        return [weight.with_data(weight.data.to(dtype)) for weight in found]
