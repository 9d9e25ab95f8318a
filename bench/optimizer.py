"""The optimizer of a training cell, and ASGD's averages in evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.optim import ASGD, SGD, Adam, Optimizer

from bench.cells import TrainCell


def make_optimizer(cell: TrainCell, model: nn.Module, steps: int) -> Optimizer:
    """The cell's optimizer.

    ASGD averages from where the ramp ends, for every schedule alike (also without pruning): the masks are final by then,
    so no average mixes different patterns. Its own decay and step decay are off (lambd = 0), as in AWD-LSTM.
    """
    rate, decay = cell.learning_rate, cell.weight_decay
    if cell.optimizer == "adam":
        return Adam(model.parameters(), rate, weight_decay=decay)
    if cell.optimizer == "sgd":
        return SGD(model.parameters(), rate, momentum=cell.momentum, weight_decay=decay)
    final = math.ceil(max(cell.prune_begin, cell.prune_end) * steps)
    return ASGD(model.parameters(), rate, lambd=0.0, t0=final, weight_decay=decay)


@contextmanager
def averaged_weights(optimizer: Optimizer) -> Iterator[None]:
    """Inside, the parameters are ASGD's averages if it averages already; with any other optimizer nothing changes.

    Pruned blocks are zero in the average too. Blocks that only the proximal step zeroed need not be: they come and go,
    and ASGD averages the weights as its own step leaves them, before that step.
    """
    averages = {parameter: state for parameter, state in optimizer.state.items() if state.get("mu", 1.0) < 1.0}
    own = {parameter: parameter.data for parameter in averages}
    for parameter in own:
        parameter.data = averages[parameter]["ax"]
    try:
        yield
    finally:
        for parameter, data in own.items():
            parameter.data = data
