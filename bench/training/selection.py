"""Selection: which epoch of a run is reported, and the weights it had.

An epoch at less than the final sparsity is another, less sparse model: it is never selected, however low its perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from bench.cells import TrainCell


class Selection:
    """The epoch to report of the run of `cell`: the last, or the best by validation perplexity.

    epoch, val_ppl: of the epoch selected so far. weights: what it was evaluated with, by the parameters' names, where it
    is to be the best (the last epoch's are the model's own).
    """

    def __init__(self, cell: TrainCell) -> None:
        self.best = cell.selection == "best"
        self.epoch, self.val_ppl = 0, math.inf
        self.weights: dict[str, Tensor] = {}

    def consider(self, epoch: int, val_ppl: float, model: nn.Module) -> None:
        """Select an epoch at final sparsity if it is to be reported by now; `model` has the weights it was evaluated with."""
        if self.best and val_ppl >= self.val_ppl:
            return
        self.epoch, self.val_ppl = epoch, val_ppl
        if self.best:
            self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @contextmanager
    def restored(self, model: nn.Module) -> Iterator[None]:
        """Inside, the parameters of `model` are the selected ones, where they were kept."""
        own = {name: parameter.data for name, parameter in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.data = self.weights.get(name, parameter.data)
        try:
            yield
        finally:
            for name, parameter in model.named_parameters():
                parameter.data = own[name]
