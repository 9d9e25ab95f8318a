"""What is measured of a run between its epochs and at its end: perplexities, the epoch to report, the finalised model.

An epoch at less than the final sparsity is another, less sparse model: it is never selected, however low its perplexity.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from bench.cells import TrainCell
from bench.data.corpus import EVAL_BATCH, Corpus, batchify, windows
from bench.models.layers import State
from bench.pruning.pruner import Pruner
from bench.schema import LARGEST_PPL
from bench.training.meter import measure_final
from bench.training.optimizer import NTASGD, NonMonotone, averaged_weights
from bench.training.paths import Paths, autocast
from bench.training.settings import ReportSettings


class Selection:
    """The epoch to report of the run of `cell`: the last, or the best by validation perplexity.

    epoch, val_ppl: of the epoch selected so far. weights: what it was evaluated with, by the parameters' names, where it
    is to be the best (the last epoch's are the model's own).
    """

    def __init__(self, cell: ReportSettings) -> None:
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


Model = Callable[[Tensor, list[State] | None], tuple[Tensor, list[State]]]


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


@torch.no_grad()
def evaluate(model: Model, tokens: Tensor, batch_size: int, bptt: int) -> tuple[float, int]:
    """Perplexity of a model in evaluation on a text, and the number of targets.

    The state is carried all along each of the batch_size streams that the text is cut into. tokens: [n].
    """
    nats = torch.zeros((), dtype=torch.float64, device=tokens.device)  # read at the end: a GPU need not be waited for
    count, states = 0, None
    for inputs, targets in windows(batchify(tokens, batch_size), bptt):  # [time, batch] each
        logits, states = model(inputs, states)  # [time * batch, vocabulary]
        nats += F.cross_entropy(logits.float(), targets.flatten(), reduction="sum")
        count += targets.numel()
    return perplexity(nats.item() / count, None), count


Columns = dict[str, Any]


@dataclass
class Examiner:
    """Evaluates the model of the run of `cell`, by ASGD's averages where there are any, and leaves its weights as they were.

    selection: the epoch to report so far. trigger: starts the averages of NT-ASGD.
    """

    cell: TrainCell
    corpus: Corpus
    model: nn.Module
    optimizer: Optimizer
    pruner: Pruner
    paths: Paths
    selection: Selection = field(init=False)
    trigger: NonMonotone = field(init=False)

    def __post_init__(self) -> None:
        self.selection, self.trigger = Selection(self.cell), NonMonotone(self.cell.nonmonotone)

    def after(self, epoch: int, step: int) -> Columns:
        """The columns of the evaluation of an epoch that ended with optimizer step `step`.

        An epoch at final sparsity may be the one that is reported, and may start the averages of NT-ASGD.
        """
        began, is_final = time.perf_counter(), self.pruner.is_final(step)
        averaging = isinstance(self.optimizer, NTASGD) and self.optimizer.averaging
        with averaged_weights(self.optimizer):
            val_ppl, evaluated = self.evaluate(self.model, self.corpus.valid)
            test_ppl, _ = self.evaluate(self.model, self.corpus.test)
            if is_final:
                self.selection.consider(epoch, val_ppl, self.model)
        if isinstance(self.optimizer, NTASGD) and is_final and self.trigger.sees(val_ppl):
            self.optimizer.average_from_now()
        return {
            "val_ppl": val_ppl,
            "test_ppl": test_ppl,
            "averaging": averaging,
            "eval_tokens_seen": evaluated,
            "eval_seconds": time.perf_counter() - began,
        }

    def at_the_end(self, test_ppl: float, export: Path | None) -> Columns:
        """The columns of the selected epoch and of its model finalised. test_ppl: of the last epoch."""
        cell, selection = self.cell, self.selection
        with averaged_weights(self.optimizer), selection.restored(self.model):
            if selection.epoch != cell.epochs or cell.test_batch_size != EVAL_BATCH:
                test_ppl, _ = self.evaluate(self.model, self.corpus.test, cell.test_batch_size)
            final = self.finalise(export) if cell.path != "dense" else {}
        reported = {"epoch": selection.epoch, "val_ppl": selection.val_ppl, "test_ppl": test_ppl}
        return {**{f"reported_{name}": value for name, value in reported.items()}, **final}

    def finalise(self, export: Path | None) -> Columns:
        """The columns of the finalised model."""
        window, _ = next(windows(batchify(self.corpus.test, EVAL_BATCH).to(self.cell.device), self.cell.bptt))

        def test_ppl(final: Model) -> float:
            return self.evaluate(final, self.corpus.test)[0]

        return measure_final(self.model, self.pruner, self.paths, window, test_ppl, export)

    def evaluate(self, model: Model, tokens: Tensor, batch_size: int = EVAL_BATCH) -> tuple[float, int]:
        """Perplexity on the first `eval_tokens` (0: all) of a text, and the number of targets."""
        cell = self.cell
        self.model.eval()
        tokens = tokens[: cell.eval_tokens or None].to(cell.device)
        with autocast(cell.device, cell.precision):
            return evaluate(model, tokens, batch_size, cell.bptt)
