"""Which LSTM layers of a model run on the sparse path: the setting `path` at work.

dense: none. sparse: all, from the first step on. auto: each from its break-even sparsity on, where that was measured to
be on this machine (`bench.breakeven`). The two paths add up in different orders, so under auto the last digits of a result
depend on the choice.
"""

from __future__ import annotations

import torch
from torch import nn

from bench.breakeven import NEVER, Shape, breakeven
from bench.cells import TrainCell
from bench.models.layers import LSTMLayer
from bench.pruning.pruner import share_empty
from kernels.backends.native_library import describe, library
from kernels.blockmask import BlockMask
from kernels.ops import kernel_for


def missing_kernel() -> str | None:
    """Why nothing can run on the sparse path here, or None."""
    try:
        kernel_for("native", torch.float32, torch.device("cpu"))
    except ValueError as error:
        return str(error)
    return None


def kernel() -> str:
    """What computes the sparse path here: kernel, compiler and threads."""
    return describe(library("dsd", torch.float32), torch.get_num_threads())


class Paths:
    """The choice for every LSTM layer of `model`, made anew whenever a mask changes.

    kernel: what computes the sparse path, empty as long as nothing ran on it. reason: why auto never leaves the dense path,
    empty where it can. ValueError where path is sparse and there are no kernels. May measure for a minute at first use.
    """

    def __init__(self, model: nn.Module, cell: TrainCell, thresholds: list[float] | None = None) -> None:
        """thresholds: break-even sparsities of the layers that a run began with; None asks for them now."""
        layers: list[LSTMLayer] = list(model.layers)  # type: ignore[arg-type]
        self.layers, self.path = layers, cell.path
        self.kernel, self.reason = "", ""
        self._masks: dict[str, BlockMask] = {}
        missing = missing_kernel() if cell.path != "dense" else None
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
        return breakeven(Shape(*sizes, cell.block_size, cell.scope, "float32", threads, drop))

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
        if self.sparse_layers and not self.kernel:
            self.kernel = kernel()
