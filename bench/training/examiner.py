"""What is measured of a run between its epochs and at its end: perplexities, the epoch to report, the finalised model."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bench.cells import TrainCell
from bench.data.corpus import EVAL_BATCH, Corpus, batchify, windows
from bench.pruning.pruner import Pruner
from bench.training.evaluation import Model, evaluate
from bench.training.optimizer import NTASGD, NonMonotone, averaged_weights
from bench.training.paths import Paths
from bench.training.precision import autocast
from bench.training.probes import measure_final
from bench.training.selection import Selection

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
