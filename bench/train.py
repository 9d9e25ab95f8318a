"""Train one cell: a language model trained, penalised, pruned and evaluated; one row per epoch.

The same cell gives bit-equal `result` columns on the same machine, torch and thread count: every random number comes from
the cell's seed. An epoch reads the next `train_tokens` of the training text (starting over at its end), so a short run
sees as much different text as it has time for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import ASGD, SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from bench.cells import TrainCell
from bench.data.corpus import Corpus, batchify, count_windows, data_dir, epoch_slice, load_corpus, windows
from bench.models.registry import MODELS
from bench.provenance import physical_cores
from bench.pruning.lasso import Lasso, block_norms
from bench.pruning.pruner import Pruner
from bench.schema import TRAIN

Row = dict[str, Any]
Tell = Callable[[dict[str, float | int | str]], None]

EVAL_BATCH = 10
SECONDS_BETWEEN_NEWS = 0.5


class DivergedError(Exception):
    """The loss is no longer a finite number."""


def train_cell(cell: TrainCell, tell: Tell) -> list[Row]:
    """Train `cell` and return its rows: epoch 0 (before training), then one per epoch.

    If the loss becomes NaN or infinite, the finished epochs come back as 'diverged' (one row without epoch if there is
    none). torch's thread count is left pinned to the cell's. ValueError for unknown names and unusable data.
    """
    torch.set_num_threads(cell.threads or physical_cores())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        run = Run.of(cell.canonical(), tell)
        rows = [run.row(epoch=0)]
        try:
            for epoch in range(1, cell.epochs + 1):
                started = time.perf_counter()
                train_ppl, mean_sparsity, trained = run.train_epoch(epoch)
                halfway = time.perf_counter()
                val_ppl, evaluated = run.evaluate(run.corpus.valid)
                test_ppl, _ = run.evaluate(run.corpus.test)
                row = run.row(
                    epoch=epoch,
                    train_ppl=train_ppl,
                    val_ppl=val_ppl,
                    test_ppl=test_ppl,
                    mean_sparsity=mean_sparsity,
                    train_tokens_seen=trained,
                    eval_tokens_seen=evaluated,
                    train_seconds=halfway - started,
                    eval_seconds=time.perf_counter() - halfway,
                )
                rows.append(row)
                run.tell(epoch, train_ppl=train_ppl, val_ppl=val_ppl)
        except DivergedError as problem:
            return diverged(rows, run.step, str(problem))
    return rows


@dataclass
class Run:
    """Everything one training run works on, and how many optimizer steps it has done."""

    cell: TrainCell
    corpus: Corpus
    model: nn.Module
    optimizer: Optimizer
    rates: LRScheduler | None
    lasso: Lasso
    pruner: Pruner
    steps: int
    listener: Tell
    step: int = 0
    told: float = 0.0

    @classmethod
    def of(cls, cell: TrainCell, tell: Tell) -> Run:
        corpus = load_corpus(cell.dataset, data_dir())
        model = MODELS[cell.model](cell, len(corpus.vocabulary))
        if cell.decoder_bias == "frequencies":
            model.start_from_frequencies(torch.bincount(corpus.train, minlength=len(corpus.vocabulary)))
        streams = batchify(epoch_slice(corpus.train, cell.train_tokens, 1), cell.batch_size)
        steps = cell.epochs * count_windows(len(streams), cell.bptt)
        optimizer = make_optimizer(cell, model, steps)
        rates = None
        if cell.lr_schedule == "one_cycle":
            rates = OneCycleLR(optimizer, cell.learning_rate, total_steps=steps, cycle_momentum=False)
        pruner = Pruner(model.prunable(), cell, steps)
        return cls(cell, corpus, model, optimizer, rates, Lasso.of(cell), pruner, steps, tell)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        weights: dict[str, nn.Parameter] = self.model.prunable()  # type: ignore[operator]
        return weights

    def train_epoch(self, epoch: int) -> tuple[float, float, int]:
        """Train on one epoch: its perplexity (without the penalty), mean sparsity over its steps, number of targets."""
        cell, model, weights = self.cell, self.model, self.weights
        text = epoch_slice(self.corpus.train, cell.train_tokens, epoch)  # [tokens]
        streams = batchify(text, cell.batch_size)  # [length, batch]
        nats, count, sparsities, states = 0.0, 0, [], None
        model.train()
        for inputs, targets in windows(streams, cell.bptt):  # [time, batch] each
            sparsities.append(self.pruner.sparsity)
            logits, states = model(inputs, detach(states))  # [time * batch, vocabulary]
            loss = F.cross_entropy(logits, targets.flatten())
            nats, count = nats + finite(loss.item(), epoch) * targets.numel(), count + targets.numel()
            if self.lasso.in_loss:
                loss = loss + self.lasso.penalty(weights.values())

            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.pruner.mask_gradients()
            if cell.clip:
                nn.utils.clip_grad_norm_(model.parameters(), cell.clip)
            rate = self.optimizer.param_groups[0]["lr"]
            self.optimizer.step()
            self.step += 1
            self.lasso.shrink_(weights.values(), rate)
            self.pruner.after_step(self.step, self.optimizer)
            if self.rates is not None:
                self.rates.step()
            if time.monotonic() - self.told > SECONDS_BETWEEN_NEWS:
                self.tell(epoch, train_ppl=perplexity(nats / count, epoch))
        return perplexity(nats / count, epoch), sum(sparsities) / len(sparsities), count

    @torch.no_grad()
    def evaluate(self, tokens: Tensor) -> tuple[float, int]:
        """Perplexity on the first `eval_tokens` (0: all) of a text, state carried all along, and the number of targets.

        With ASGD it is the averaged weights that are evaluated, once there is an average.
        """
        text = tokens[: self.cell.eval_tokens or None]
        nats, count, states = 0.0, 0, None
        self.model.eval()
        with averaged_weights(self.optimizer):
            for inputs, targets in windows(batchify(text, EVAL_BATCH), self.cell.bptt):
                logits, states = self.model(inputs, states)
                nats += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
                count += targets.numel()
        return perplexity(nats / count, None), count

    @torch.no_grad()
    def row(self, epoch: int, **measured: float) -> Row:
        """The row of a finished epoch (0: before training), with the block norms where they are stored."""
        cell, weights = self.cell, self.weights
        norms = norm_maps(weights, cell.block_size)
        blocks = [norm for entry in norms for norm in entry["norms"]]
        keep_norms = epoch in (0, max(1, cell.epochs // 2), cell.epochs)
        return {
            **blank_row(),
            "status": "ok",
            "epoch": epoch,
            "step": self.step,
            "scheduled_sparsity": self.pruner.scheduled(self.step),
            "sparsity": self.pruner.sparsity,
            "zero_block_share": blocks.count(0.0) / len(blocks) if blocks else None,
            "lasso_penalty": self.lasso.penalty(weights.values()).item(),
            "train_tokens_seen": 0,
            "eval_tokens_seen": 0,
            "vocabulary": len(self.corpus.vocabulary),
            "corpus_sha256": self.corpus.sha256[:16],
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "prunable_parameters": sum(weight.numel() for weight in weights.values()),
            "block_norms": norms if keep_norms else None,
            **measured,
        }

    def tell(self, epoch: int, **news: float) -> None:
        """Report progress: epoch, epochs, step, steps, sparsity and what is given."""
        self.told = time.monotonic()
        place = {"epoch": epoch, "epochs": self.cell.epochs, "step": self.step, "steps": self.steps}
        self.listener({**place, "sparsity": self.pruner.sparsity, **news})


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


def norm_maps(weights: dict[str, nn.Parameter], block_size: int) -> list[Row]:
    """The L2 norm of every block, row by row, for each weight that the block size divides (a dense run's may not be)."""
    maps = []
    for name, weight in weights.items():
        if weight.shape[0] % block_size == weight.shape[1] % block_size == 0:
            norms = block_norms(weight.detach(), block_size)
            rows, cols = norms.shape
            maps.append({"weight": name, "grid_rows": rows, "grid_cols": cols, "norms": norms.flatten().tolist()})
    return maps


def diverged(rows: list[Row], step: int, reason: str) -> list[Row]:
    """The rows of a run that diverged: its finished epochs, or a single row without an epoch."""
    if len(rows) == 1:
        rows = [{**rows[0], "epoch": None, "step": step}]
    return [{**row, "status": "diverged", "reason": reason} for row in rows]


def blank_row() -> Row:
    """A row with every column of the training table null."""
    return dict.fromkeys(["status", "reason", *(column.name for column in TRAIN)])


def detach(states: list[tuple[Tensor, Tensor]] | None) -> list[tuple[Tensor, Tensor]] | None:
    """The same states, cut from the graph that made them."""
    return states and [(hidden.detach(), memory.detach()) for hidden, memory in states]


def finite(nats: float, epoch: int) -> float:
    """The loss itself; DivergedError if it is no number to go on with."""
    if not math.isfinite(nats):
        raise DivergedError(f"the loss became {nats} in epoch {epoch}")
    return nats


def perplexity(nats: float, epoch: int | None) -> float:
    """exp(mean nats per token); DivergedError where that is no finite double."""
    try:
        ppl = math.exp(nats)
    except OverflowError:
        ppl = math.inf
    if not math.isfinite(ppl):
        raise DivergedError(f"the perplexity became {ppl}" + (f" in epoch {epoch}" if epoch else " in evaluation"))
    return ppl
