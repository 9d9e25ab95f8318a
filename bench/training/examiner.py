"""What is measured of a run between its epochs and at its end: perplexities, the epoch to report, the finalised model.

An epoch at less than the final sparsity is another, less sparse model: it is never selected, however low its
perplexity.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bench.cells import TrainCell
from bench.data.corpus import EVAL_BATCH
from bench.pruning.exported import exported
from bench.pruning.pruner import Pruner
from bench.pruning.stored import Exported
from bench.training.equal import equal_network
from bench.training.meter import measure_final
from bench.training.optimizer import NTASGD, NonMonotone, averaged_weights
from bench.training.paths import Paths, autocast
from bench.training.scores import Scores
from bench.training.settings import ReportSettings
from bench.training.tasks import Task


class Selection:
    """The epoch to report of the run of `cell`: the last, or the best by validation perplexity.

    epoch, val_ppl, val_accuracy: of the epoch selected so far; the last of a classifier only.
    weights: what it was evaluated with, parameters and buffers by name, where it is to be the best (the last epoch's
    are the model's own).
    """

    def __init__(self, cell: ReportSettings) -> None:
        self.best = cell.selection == "best"
        self.epoch, self.val_ppl = 0, math.inf
        self.val_accuracy: float | None = None
        self.weights: dict[str, Tensor] = {}

    def consider(self, epoch: int, val_ppl: float, model: nn.Module, val_accuracy: float | None = None) -> None:
        """Select an epoch at final sparsity if it is to be reported by now.

        model: has the weights that the epoch was evaluated with.
        """
        if self.best and val_ppl >= self.val_ppl:
            return
        self.epoch, self.val_ppl, self.val_accuracy = epoch, val_ppl, val_accuracy
        if self.best:
            self.weights = {name: tensor.detach().clone() for name, tensor in _tensors(model)}

    @contextmanager
    def restored(self, model: nn.Module) -> Iterator[None]:
        """Inside, the parameters and buffers of `model` are the selected ones, where they were kept."""
        own = {name: tensor.data for name, tensor in _tensors(model)}
        for name, tensor in _tensors(model):
            tensor.data = self.weights.get(name, tensor.data)
        try:
            yield
        finally:
            for name, tensor in _tensors(model):
                tensor.data = own[name]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and what batch normalisation has measured."""
    yield from model.named_parameters()
    yield from model.named_buffers()


Columns = dict[str, Any]


@dataclass
class Examiner:
    """Evaluates the model of the run of `cell`, and leaves its weights as they were.

    By ASGD's averages where there are any.
    selection: the epoch to report so far. trigger: starts the averages of NT-ASGD. late: nats of the validation data's
    windows when the last tenth of the run began.
    """

    cell: TrainCell
    task: Task
    model: nn.Module
    optimizer: Optimizer
    pruner: Pruner
    paths: Paths
    selection: Selection = field(init=False)
    trigger: NonMonotone = field(init=False)
    late: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.selection, self.trigger = Selection(self.cell), NonMonotone(self.cell.nonmonotone)

    def after(self, epoch: int, step: int) -> Columns:
        """The columns of the evaluation of an epoch that ended with optimizer step `step`.

        An epoch at final sparsity may be the one that is reported, and may start the averages of NT-ASGD.
        """
        began = time.perf_counter()
        averaging = isinstance(self.optimizer, NTASGD) and self.optimizer.averaging
        with averaged_weights(self.optimizer):
            valid, test = self.score(self.model, "valid"), self.score(self.model, "test")
            val_ppl, test_ppl = valid.perplexity, test.perplexity
            self.pruner.hear(val_ppl)
            is_final = self.pruner.is_final(step)
            if is_final:
                self.selection.consider(epoch, val_ppl, self.model, valid.accuracy)
        if isinstance(self.optimizer, NTASGD) and is_final and self.trigger.sees(val_ppl):
            self.optimizer.average_from_now()
        change, error = valid.change_since(self.late) if self.late and epoch == self.cell.epochs else (None, None)
        return {
            "val_change": change,
            "val_change_error": None if error is None or math.isnan(error) else error,
            "val_ppl": val_ppl,
            "test_ppl": test_ppl,
            "val_accuracy": valid.accuracy,
            "test_accuracy": test.accuracy,
            "averaging": averaging,
            "eval_tokens_seen": valid.count,
            "eval_seconds": time.perf_counter() - began,
        }

    def look_late(self) -> None:
        """See what the validation data cost when the last tenth of the run begins, to say how far it still falls."""
        with averaged_weights(self.optimizer):
            self.late = self.score(self.model, "valid").nats

    def at_the_end(self, last: Columns, export: Path | None) -> Columns:
        """The columns of the selected epoch and of its model finalised. last: `after` of the last epoch."""
        cell, selection = self.cell, self.selection
        test_ppl, test_accuracy = last["test_ppl"], last["test_accuracy"]
        with averaged_weights(self.optimizer), selection.restored(self.model):
            if selection.epoch != cell.epochs or cell.test_batch_size != EVAL_BATCH:
                test = self.score(self.model, "test", cell.test_batch_size)
                test_ppl, test_accuracy = test.perplexity, test.accuracy
            final: Columns = {}
            if cell.path != "dense" or cell.prunes_neurons:
                final = self.finalise(export)
            elif export is not None:
                pruned = {name: mask for name, mask in self.pruner.masks.items() if mask.num_empty}
                exported(self.model, pruned).save(export)
        reported = {
            "epoch": selection.epoch,
            "val_ppl": selection.val_ppl,
            "test_ppl": test_ppl,
            "val_accuracy": selection.val_accuracy,
            "test_accuracy": test_accuracy,
        }
        return {**{f"reported_{name}": value for name, value in reported.items()}, **final}

    def finalise(self, export: Path | None) -> Columns:
        """The columns of the finalised model."""

        def of_test(final: Exported) -> Scores:
            return self.score(final, "test")

        equal = partial(equal_network, self.cell, self.task.classes)
        return measure_final(self.model, self.pruner, self.paths, self.task.window(), of_test, export, equal)

    def score(self, model: nn.Module, part: str, streams: int = EVAL_BATCH) -> Scores:
        """What a model makes of the part 'valid' or 'test' of the data. streams: that a text is cut into."""
        self.model.eval()
        with autocast(self.cell.device, self.cell.precision):
            return self.task.score(model, part, streams)
