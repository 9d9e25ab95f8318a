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
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bench.cells import TrainCell
from bench.data.corpus import EVAL_BATCH, Corpus, batchify, windows
from bench.models.layers import State
from bench.pruning.finalize import FinalModel, finalize
from bench.pruning.pruner import Pruner
from bench.schema import LARGEST_PPL
from bench.training.meter import measure_final
from bench.training.optimizer import NTASGD, NonMonotone, averaged_weights
from bench.training.paths import Paths, autocast
from bench.training.settings import ReportSettings


class Selection:
    """The epoch to report of the run of `cell`: the last, or the best by validation perplexity.

    epoch, val_ppl: of the epoch selected so far.
    weights: what it was evaluated with, by the parameters' names, where it is to be the best (the last epoch's are the
    model's own).
    """

    def __init__(self, cell: ReportSettings) -> None:
        self.best = cell.selection == "best"
        self.epoch, self.val_ppl = 0, math.inf
        self.weights: dict[str, Tensor] = {}

    def consider(self, epoch: int, val_ppl: float, model: nn.Module) -> None:
        """Select an epoch at final sparsity if it is to be reported by now.

        model: has the weights that the epoch was evaluated with.
        """
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


class Model(Protocol):
    """A language model that tells the nats of a text."""

    def loss(
        self, inputs: Tensor, targets: Tensor, states: list[State] | None, reduction: Literal["mean", "sum"]
    ) -> tuple[Tensor, list[State]]:
        """As `bench.models.lstm.LSTM.loss`."""


class DivergedError(Exception):
    """The loss is no longer a finite number."""


def finite(nats: float, epoch: int) -> float:
    """The loss itself; DivergedError if it is no number to go on with."""
    if not math.isfinite(nats):
        raise DivergedError(f"the loss became {nats} in epoch {epoch}")
    return nats


def perplexity(nats: float, epoch: int | None) -> float:
    """exp(mean nats per token); DivergedError where that is beyond what a table holds."""
    try:
        ppl = math.exp(nats)
    except OverflowError:
        ppl = math.inf
    if not ppl <= LARGEST_PPL:
        raise DivergedError(f"the perplexity became {ppl:g}" + (f" in epoch {epoch}" if epoch else " in evaluation"))
    return ppl


@dataclass(frozen=True)
class Scores:
    """A text in windows: nats and number of the targets of each."""

    nats: list[float]
    targets: list[int]

    @property
    def count(self) -> int:
        return sum(self.targets)

    @property
    def perplexity(self) -> float:
        return perplexity(math.fsum(self.nats) / self.count, None)

    def change_since(self, earlier: list[float]) -> tuple[float, float]:
        """By how many nats a target it is above `earlier`, the windows' nats before, and the standard error of that.

        The error is that of a mean over windows, each by its number of targets, as if they were independent.
        """
        mean = (math.fsum(self.nats) - math.fsum(earlier)) / self.count
        pairs = zip(self.nats, earlier, self.targets, strict=True)
        spread = math.fsum((now - before - mean * targets) ** 2 for now, before, targets in pairs)
        number = len(self.nats)
        return mean, math.sqrt(spread * number / (number - 1)) / self.count if number > 1 else math.nan


@torch.no_grad()
def score(model: Model, tokens: Tensor, batch_size: int, bptt: int) -> Scores:
    """What a model in evaluation makes of a text.

    The state is carried all along each of the batch_size streams that the text is cut into. tokens: [n].
    """
    nats, targets_seen, states = [], [], None
    for inputs, targets in windows(batchify(tokens, batch_size), bptt):  # [time, batch] each
        loss, states = model.loss(inputs, targets, states, "sum")
        nats.append(loss.double())
        targets_seen.append(targets.numel())
    return Scores(torch.stack(nats).tolist(), targets_seen)  # read at the end: a GPU need not be waited for


Columns = dict[str, Any]


@dataclass
class Examiner:
    """Evaluates the model of the run of `cell`, and leaves its weights as they were.

    By ASGD's averages where there are any.
    selection: the epoch to report so far. trigger: starts the averages of NT-ASGD. late: nats of the validation text's
    windows when the last tenth of the run began.
    """

    cell: TrainCell
    corpus: Corpus
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
            valid = self.score(self.model, self.corpus.valid)
            val_ppl, evaluated = valid.perplexity, valid.count
            self.pruner.hear(val_ppl)
            is_final = self.pruner.is_final(step)
            test_ppl, _ = self.evaluate(self.model, self.corpus.test)
            if is_final:
                self.selection.consider(epoch, val_ppl, self.model)
        if isinstance(self.optimizer, NTASGD) and is_final and self.trigger.sees(val_ppl):
            self.optimizer.average_from_now()
        change, error = valid.change_since(self.late) if self.late and epoch == self.cell.epochs else (None, None)
        return {
            "val_change": change,
            "val_change_error": None if error is None or math.isnan(error) else error,
            "val_ppl": val_ppl,
            "test_ppl": test_ppl,
            "averaging": averaging,
            "eval_tokens_seen": evaluated,
            "eval_seconds": time.perf_counter() - began,
        }

    def look_late(self) -> None:
        """See what the validation text costs when the last tenth of the run begins, to say how far it still falls."""
        with averaged_weights(self.optimizer):
            self.late = self.score(self.model, self.corpus.valid).nats

    def at_the_end(self, test_ppl: float, export: Path | None) -> Columns:
        """The columns of the selected epoch and of its model finalised. test_ppl: of the last epoch."""
        cell, selection = self.cell, self.selection
        with averaged_weights(self.optimizer), selection.restored(self.model):
            if selection.epoch != cell.epochs or cell.test_batch_size != EVAL_BATCH:
                test_ppl, _ = self.evaluate(self.model, self.corpus.test, cell.test_batch_size)
            final: Columns = {}
            if cell.path != "dense":
                final = self.finalise(export)
            elif export is not None:
                pruned = {name: mask for name, mask in self.pruner.masks.items() if mask.num_empty}
                finalize(self.model, pruned).save(export)
        reported = {"epoch": selection.epoch, "val_ppl": selection.val_ppl, "test_ppl": test_ppl}
        return {**{f"reported_{name}": value for name, value in reported.items()}, **final}

    def finalise(self, export: Path | None) -> Columns:
        """The columns of the finalised model."""
        window, _ = next(windows(batchify(self.corpus.test, EVAL_BATCH).to(self.cell.device), self.cell.bptt))

        def test_ppl(final: FinalModel) -> float:
            return self.evaluate(final, self.corpus.test)[0]

        return measure_final(self.model, self.pruner, self.paths, window, test_ppl, export)

    def evaluate(self, model: Model | nn.Module, tokens: Tensor, batch_size: int = EVAL_BATCH) -> tuple[float, int]:
        """Perplexity on the first `eval_tokens` (0: all) of a text, and the number of targets."""
        scores = self.score(model, tokens, batch_size)
        return scores.perplexity, scores.count

    def score(self, model: Model | nn.Module, tokens: Tensor, batch_size: int = EVAL_BATCH) -> Scores:
        """What a model makes of the first `eval_tokens` (0: all) of a text."""
        cell = self.cell
        self.model.eval()
        tokens = tokens[: cell.eval_tokens or None].to(cell.device)
        with autocast(cell.device, cell.precision):
            return score(cast(Model, model), tokens, batch_size, cell.bptt)
