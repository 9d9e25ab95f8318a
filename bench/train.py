"""Train one cell: a language model trained, penalised, pruned and evaluated; one row per epoch.

The same cell gives bit-equal `result` columns on the same machine, torch and thread count: every random number comes from
the cell's seed. With path = "auto" their last digits depend on the measured break-even too, which is kept. An epoch reads
the next `train_tokens` of the training text (starting over at its end), so a short run sees as much different text as it
has time for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from bench.cells import TrainCell
from bench.checkpoint import Attributes, Checkpoints, GlobalRandom, Keeper, Part
from bench.data.corpus import Corpus, batchify, count_windows, data_dir, epoch_slice, load_corpus, windows
from bench.meter import Meter, norm_maps
from bench.models.layers import State
from bench.models.registry import MODELS
from bench.optimizer import averaged_weights, make_optimizer
from bench.paths import Paths, missing_kernel
from bench.paths import kernel as sparse_kernel
from bench.probes import measure_final, probe_layers
from bench.provenance import physical_cores
from bench.pruning.lasso import Lasso
from bench.pruning.pruner import Pruner
from bench.schema import TRAIN

Row = dict[str, Any]
Tell = Callable[[dict[str, float | int | str]], None]

Model = Callable[[Tensor, list[State] | None], tuple[Tensor, list[State]]]

EVAL_BATCH = 10
PROBES_AN_EPOCH = 5
SECONDS_BETWEEN_NEWS = 0.5


class DivergedError(Exception):
    """The loss is no longer a finite number."""


def train_cell(
    cell: TrainCell, tell: Tell, export: Path | None = None, checkpoints: Checkpoints | None = None
) -> list[Row]:
    """Train `cell` and return its rows: epoch 0 (before training), then one per epoch.

    checkpoints: where the run is put aside, and gone on from; it ends with the same `result` columns. export: where the finalised model of a cell that prunes with path "sparse" or "auto" is kept; `FinalModel.load` reads it.

    If the loss becomes NaN or infinite, the finished epochs come back as 'diverged' (one row without epoch if there is
    none). torch's thread count is left pinned to the cell's. ValueError for unknown names and unusable data.
    """
    torch.set_num_threads(cell.threads or physical_cores())
    if export is not None and (cell.canonical().path == "dense" or not export.parent.is_dir()):
        raise ValueError(
            f"export: {export}: accepted: a path in a folder that exists, of a cell that prunes on another path than dense"
        )
    if cell.canonical().path == "sparse" and (missing := missing_kernel()):
        return [{"status": "unsupported", "reason": f"path = sparse: {missing}"}]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        run = Run.of(cell.canonical(), tell, checkpoints)
        rows = run.rows = run.rows or [run.row(epoch=0)]
        try:
            for epoch in range(len(rows), cell.epochs + 1):
                trained = run.train_epoch(epoch)
                began = time.perf_counter()
                val_ppl, evaluated = run.evaluate(run.model, run.corpus.valid)
                test_ppl, _ = run.evaluate(run.model, run.corpus.test)
                measured = {
                    **trained,
                    "val_ppl": val_ppl,
                    "test_ppl": test_ppl,
                    "eval_tokens_seen": evaluated,
                    "eval_seconds": time.perf_counter() - began,
                }
                if epoch == cell.epochs and run.cell.path != "dense":
                    measured |= run.finalise(export)
                rows.append(run.row(epoch=epoch, **measured))
                run.tell(epoch, train_ppl=trained["train_ppl"], val_ppl=val_ppl)
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
    paths: Paths
    steps: int
    listener: Tell
    keeper: Keeper
    meter: Meter
    rows: list[Row] = field(default_factory=list)
    states: list[State] | None = None
    step: int = 0
    told: float = 0.0

    @classmethod
    def of(cls, cell: TrainCell, tell: Tell, checkpoints: Checkpoints | None = None) -> Run:
        """A run at its beginning, or where its checkpoint left it."""
        corpus = load_corpus(cell.dataset, data_dir())
        kernel = "" if cell.path == "dense" else missing_kernel() or sparse_kernel()
        keeper = Keeper(checkpoints, cell, text=corpus.sha256, kernel=kernel)
        saved = keeper.find()
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
        paths = Paths(model, cell, saved["paths"]["thresholds"] if saved else None)
        meter = Meter(paths)
        run = cls(cell, corpus, model, optimizer, rates, Lasso.of(cell), pruner, paths, steps, tell, keeper, meter)
        if saved:
            for name, part in run.parts().items():
                part.load_state_dict(saved[name])
        run.choose_paths()
        return run

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        self.states = detach(self.states)
        return {name: part.state_dict() for name, part in self.parts().items()}

    def parts(self) -> dict[str, Part]:
        """Everything that the rest of the run depends on, and all that its rows will say."""
        parts: dict[str, Part] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "pruner": self.pruner,
            "paths": Attributes(self.paths, "thresholds"),
            "random": GlobalRandom(),
            "keeper": self.keeper,
            "meter": self.meter,
            "run": Attributes(self, "step", "states", "rows"),
        }
        return parts | ({"rates": self.rates} if self.rates else {})

    def choose_paths(self) -> None:
        """Put every layer on the path that its masks ask for; the pruner then knows which gradients need no mask."""
        self.paths.update(self.pruner.masks)
        self.pruner.sparse = self.paths.sparse_weights

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        weights: dict[str, nn.Parameter] = self.model.prunable()  # type: ignore[operator]
        return weights

    def train_epoch(self, epoch: int) -> Row:
        """Train on one epoch or what is left of it; its perplexity (without the penalty) and what the meter says."""
        if not self.keeper.windows:
            self.meter, self.states = Meter(self.paths), None
        cell, model, weights, meter = self.cell, self.model, self.weights, self.meter
        text = epoch_slice(self.corpus.train, cell.train_tokens, epoch)  # [tokens]
        model.train()
        batches = windows(batchify(text, cell.batch_size), cell.bptt)
        for inputs, targets in self.keeper.left(batches, self.state, meter.stopped):  # [time, batch] each
            self.states = detach(self.states)
            self.optimizer.zero_grad()
            if self.probe_is_due():
                with meter.stopped():
                    meter.probes.append(self.probe(inputs, self.states))
            logits, self.states = model(inputs, self.states)  # [time * batch, vocabulary]
            loss = F.cross_entropy(logits, targets.flatten())
            meter.step(self.pruner.sparsity, finite(loss.item(), epoch), targets.numel())
            if self.lasso.in_loss:
                loss = loss + self.lasso.penalty(weights.values())

            loss.backward()  # type: ignore[no-untyped-call]
            self.pruner.mask_gradients()
            if cell.clip:
                nn.utils.clip_grad_norm_(model.parameters(), cell.clip)
            rate = self.optimizer.param_groups[0]["lr"]
            self.optimizer.step()
            self.step += 1
            self.lasso.shrink_(weights.values(), rate)
            self.pruner.after_step(self.step, self.optimizer)
            self.choose_paths()
            if self.rates is not None:
                self.rates.step()
            if time.monotonic() - self.told > SECONDS_BETWEEN_NEWS:
                self.tell(epoch, train_ppl=perplexity(meter.mean_nats, epoch))
        self.keeper.windows = 0
        return {"train_ppl": perplexity(meter.mean_nats, epoch), **meter.columns()}

    def probe_is_due(self) -> bool:
        """Whether this step is one of the PROBES_AN_EPOCH, the first of the epoch among them."""
        an_epoch = self.steps // self.cell.epochs
        due = {number * an_epoch // PROBES_AN_EPOCH for number in range(PROBES_AN_EPOCH)}
        return self.cell.path != "dense" and self.step % an_epoch in due

    def probe(self, inputs: Tensor, states: list[State] | None) -> Row:
        """One entry of the column `probes`."""
        measured = probe_layers(self.model, self.paths, inputs, states)
        return {"step": self.step, "sparsity": self.pruner.sparsity, **measured}

    def finalise(self, export: Path | None) -> Row:
        """The columns of the finalised model, ASGD's average where there is one."""
        window, _ = next(windows(batchify(self.corpus.test, EVAL_BATCH), self.cell.bptt))

        def test_ppl(final: Model) -> float:
            return self.evaluate(final, self.corpus.test)[0]

        with averaged_weights(self.optimizer):
            return measure_final(self.model, self.pruner, self.paths, window, test_ppl, export)

    @torch.no_grad()
    def evaluate(self, model: Model, tokens: Tensor) -> tuple[float, int]:
        """Perplexity on the first `eval_tokens` (0: all) of a text, state carried all along, and the number of targets.

        With ASGD it is the averaged weights that are evaluated, once there is an average.
        """
        text = tokens[: self.cell.eval_tokens or None]
        nats, count, states = 0.0, 0, None
        self.model.eval()
        with averaged_weights(self.optimizer):
            for inputs, targets in windows(batchify(text, EVAL_BATCH), self.cell.bptt):
                logits, states = model(inputs, states)
                nats += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
                count += targets.numel()
        return perplexity(nats / count, None), count

    @torch.no_grad()
    def row(self, epoch: int, **measured: Any) -> Row:
        """The row of a finished epoch (0: before training), with the block norms where they are stored."""
        cell, weights = self.cell, self.weights
        self.pruner.check(self.optimizer)
        norms = norm_maps(weights, cell.block_size)
        blocks = [norm for entry in norms for norm in entry["norms"]]
        keep_norms = epoch in (0, max(1, cell.epochs // 2), cell.epochs)
        return {
            **blank_row(),
            "status": "ok",
            "reason": self.paths.reason or None,
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
            **self.keeper.columns(),
            **measured,
        }

    def tell(self, epoch: int, **news: float) -> None:
        """Report progress: epoch, epochs, step, steps, sparsity and what is given."""
        self.told = time.monotonic()
        place = {"epoch": epoch, "epochs": self.cell.epochs, "step": self.step, "steps": self.steps}
        self.listener({**place, "sparsity": self.pruner.sparsity, **news})


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
