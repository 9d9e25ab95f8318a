"""Train one cell: a network trained, penalised, pruned and evaluated; one row per epoch.

The same cell gives bit-equal `result` columns on the same machine, torch and thread count: every random number comes
from the cell's seed. With path = "auto" their last digits depend on the measured break-even too, which is kept.
An epoch reads the next `train_tokens` of the training text (starting over at its end), so a short run sees as much
different text as it has time for; of labelled examples it reads all, in an order of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bench.cells import TrainCell
from bench.measuring.causes import ends_the_caller, status_of
from bench.measuring.machine import physical_cores
from bench.measuring.memory import require_memory
from bench.measuring.modes import initial_modes
from bench.models.layers import State
from bench.models.registry import MODELS
from bench.pruning.lasso import Lasso
from bench.pruning.pruner import Pruner
from bench.pruning.scales import Scales
from bench.schema import TRAIN
from bench.training.checkpoint import Attributes, Checkpoints, GlobalRandom, Keeper, Part
from bench.training.compiling import Loss, missing_compiler
from bench.training.examiner import Examiner
from bench.training.meter import Meter, norm_maps, norms_of, probe_layers, smooth, zero_share
from bench.training.needs import require_data, require_writable
from bench.training.optimizer import clip_gradients, make_optimizer, make_rates, scaled_rate
from bench.training.paths import Paths, autocast, missing_kernel_of, multiplying
from bench.training.paths import kernel as sparse_kernel
from bench.training.scores import DivergedError, finite, perplexity
from bench.training.tasks import Task, load_for, task_on
from kernels.system.driver import missing_gpu

Row = dict[str, Any]
Tell = Callable[[dict[str, float | int | str]], None]

PROBES_AN_EPOCH = 5
SECONDS_BETWEEN_NEWS = 0.5
STEPS_BETWEEN_LOOKS = 50  # on a GPU: each look waits for it


@initial_modes()
def train_cell(
    cell: TrainCell, tell: Tell, export: str | PathLike[str] | None = None, checkpoints: Checkpoints | None = None
) -> list[Row]:
    """Train `cell` and return its rows: epoch 0 (before training), then one per epoch.

    checkpoints: where the run is put aside, and gone on from; it ends with the same `result` columns.
    export: where the finalised model is kept, its weights dense where the cell does not prune;
    `bench.pruning.exported.load` reads it.

    If the loss becomes NaN or infinite, the finished epochs come back as 'diverged' (one row without epoch if there is
    none); where anything else ends the run after an epoch, SystemExit too but not Ctrl-C, they come back as 'failed' or
    'out_of_memory', and its checkpoint stays. Until the end torch's thread count is the cell's, its modes are
    `initial_modes`.
    ValueError for unknown names, unusable data and what `initial_modes` refuses, MemoryError where a step cannot fit
    the memory there is; all before the first step.
    """
    torch.set_num_threads(cell.threads or physical_cores())
    export = None if export is None else Path(export)
    if cell.device == "cuda" and (missing := missing_gpu()):
        return [{"status": "unsupported", "reason": missing}]
    if export is not None:
        if not export.parent.is_dir():
            raise ValueError(f"export: {export}: accepted: a path in a folder that exists")
        require_writable(export)
    if cell.canonical().path == "sparse" and (missing := missing_kernel_of(cell)):
        return [{"status": "unsupported", "reason": f"path = sparse: {missing}"}]
    if cell.canonical().compile != "none" and (missing := missing_compiler(cell.device)):
        return [{"status": "unsupported", "reason": f"compile = {cell.compile}: {missing}"}]
    gpus = [0] if cell.device == "cuda" else []
    with torch.random.fork_rng(devices=gpus), multiplying(cell.device, cell.precision):
        torch.manual_seed(cell.seed)
        run = Run.of(cell.canonical(), tell, checkpoints)
        rows = run.rows = run.rows or [run.row(epoch=0)]
        try:
            with run.loss:
                for epoch in range(len(rows), cell.epochs + 1):
                    trained = run.train_epoch(epoch)
                    measured = {**trained, **run.examiner.after(epoch, run.step)}
                    rows.append(run.row(epoch=epoch, **measured))
                    if epoch == cell.epochs:
                        rows[-1] |= run.examiner.at_the_end(measured, export)
                    run.tell(epoch, train_ppl=trained["train_ppl"], val_ppl=measured["val_ppl"])
        except DivergedError as problem:
            return diverged(rows, run.step, str(problem))
        except BaseException as problem:
            if len(rows) == 1 or ends_the_caller(problem):
                raise  # no epoch to keep, or no fault of the cell
            return stopped(rows, *status_of(problem))
    return rows


@dataclass
class Run:
    """Everything one training run works on, and how many optimizer steps it has done."""

    cell: TrainCell
    task: Task
    model: nn.Module
    optimizer: Optimizer
    rates: LRScheduler | None
    lasso: Lasso
    pruner: Pruner
    scales: Scales
    paths: Paths
    loss: Loss
    examiner: Examiner
    listener: Tell
    keeper: Keeper
    meter: Meter
    rows: list[Row] = field(default_factory=list)
    states: list[State] | None = None
    step: int = 0
    told: float = 0.0

    @classmethod
    def of(cls, cell: TrainCell, tell: Tell, checkpoints: Checkpoints | None = None) -> Run:
        """A run at its beginning, or where its checkpoint left it.

        The first weights are drawn on the CPU, whatever the device.
        """
        data = load_for(cell)
        require_data(cell, data.sizes)
        require_memory(cell, data.sizes)
        kernel = "" if cell.path == "dense" else missing_kernel_of(cell) or sparse_kernel(cell.device)
        keeper = Keeper(checkpoints, cell, text=data.sha256, kernel=kernel)
        saved = keeper.find()
        task = task_on(cell, data)
        model = MODELS[cell.model](cell, task.classes)
        task.prepare(model)
        model.to(cell.device)
        steps = sum(map(len, task.lengths))
        optimizer = make_optimizer(cell, model, steps)
        pruner = Pruner(model.prunable(), cell, steps, dict(model.named_parameters()), model.biases())
        as_trained = cell.model_copy(update=task.largest_step)
        paths = Paths(model, as_trained, saved["paths"]["thresholds"] if saved else None)
        run = cls(
            cell=cell,
            task=task,
            model=model,
            optimizer=optimizer,
            rates=make_rates(cell, optimizer, steps),
            lasso=Lasso.of(cell),
            pruner=pruner,
            scales=Scales(model, cell, steps),
            paths=paths,
            loss=Loss(model, cell, paths),
            examiner=Examiner(cell, task, model, optimizer, pruner, paths),
            listener=tell,
            keeper=keeper,
            meter=Meter(paths),
        )
        if saved:
            for name, part in run.parts().items():
                part.load_state_dict(saved[name])
        run.choose_paths()
        return run

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.pruner.steps

    @property
    def last_tenth(self) -> int:
        """The step behind which the last tenth of the run begins; 0 where that is no step."""
        return self.steps - self.steps // 10 if self.steps >= 10 else 0

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
            "selection": Attributes(self.examiner.selection, "epoch", "val_ppl", "val_accuracy", "weights"),
            "trigger": Attributes(self.examiner.trigger, "history"),
            "examiner": Attributes(self.examiner, "late"),
            "random": GlobalRandom(self.cell.device),
            "keeper": self.keeper,
            "meter": self.meter,
            "run": Attributes(self, "step", "states", "rows"),
        }
        cell = self.cell
        dual: dict[str, Part] = {"lasso": Attributes(self.lasso, "multiplier")} if cell.lasso == "dual" else {}
        scales: dict[str, Part] = {"scales": self.scales} if cell.prunes_neurons else {}
        timed: dict[str, Part] = {"loss": Attributes(self.loss, "pairs")} if cell.compile != "none" else {}
        return parts | dual | scales | timed | ({"rates": self.rates} if self.rates else {})

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
        model.train()
        for inputs, targets in self.keeper.left(self.task.epoch(epoch), self.state, meter.stopped):
            self.states = before = detach(self.states)
            self.optimizer.zero_grad()
            if self.probe_is_due(epoch):
                with meter.stopped():
                    meter.probes.append(self.probe(inputs, self.states))
            if self.loss.is_new(inputs, self.states):
                with meter.stopped():
                    self.loss.prepare(inputs, targets, self.states)
            with autocast(cell.device, cell.precision):
                loss, self.states = self.loss(inputs, targets, self.states)
            meter.step(self.pruner.sparsity, self.nats(loss, epoch), targets.numel())
            if self.lasso.in_loss:
                loss = loss + self.lasso.penalty(weights.values())
            if self.scales.in_loss:
                loss = loss + self.scales.penalty()
            if isinstance(model.penalty, Tensor):
                loss = loss + model.penalty

            loss.backward()  # type: ignore[no-untyped-call]
            self.pruner.look(self.step + 1)
            if self.pruner.wants_curvature(self.step + 1):
                with smooth(model, self.paths):
                    self.pruner.see_curvature(model.loss(inputs, targets, before)[0])  # type: ignore[operator]
            self.pruner.mask_gradients()
            if cell.clip:
                clip_gradients(model.parameters(), cell.clip)
            with scaled_rate(self.optimizer, len(inputs) / cell.bptt if cell.rate_by_length else 1.0) as rate:
                self.optimizer.step()
            self.step += 1
            self.lasso.shrink_(weights.values(), rate)
            self.pruner.after_step(self.step, self.optimizer)
            self.scales.after_step(self.step, self.optimizer)
            self.choose_paths()
            if self.rates is not None:
                self.rates.step()
            if self.step == self.last_tenth:
                with meter.stopped():
                    self.examiner.look_late()
                    model.train()
            if not self.deferred or self.step % STEPS_BETWEEN_LOOKS == 0:
                self.look(epoch)
        self.keeper.windows = 0
        return {"train_ppl": self.train_ppl(epoch), **meter.columns(), **self.loss.columns()}

    @property
    def deferred(self) -> bool:
        """Whether the loss stays on a GPU that nobody waits for.

        It is looked at every STEPS_BETWEEN_LOOKS steps only.
        """
        return self.cell.device != "cpu"

    def nats(self, loss: Tensor, epoch: int) -> float | Tensor:
        """The loss of a step as a double: a number that was seen to be one, or what is to be looked at later."""
        return loss.detach().double() if self.deferred else finite(loss.item(), epoch)

    def look(self, epoch: int) -> None:
        """See that the nats so far are finite, and tell of them now and then."""
        train_ppl = self.train_ppl(epoch) if self.deferred else None
        if time.monotonic() - self.told > SECONDS_BETWEEN_NEWS:
            self.tell(epoch, train_ppl=train_ppl or self.train_ppl(epoch))

    def train_ppl(self, epoch: int) -> float:
        """The perplexity of the epoch so far; DivergedError where it is none any more."""
        mean = self.meter.mean_nats
        return perplexity(finite(mean, epoch) if self.deferred else mean, epoch)

    def probe_is_due(self, epoch: int) -> bool:
        """Whether this step is one of the PROBES_AN_EPOCH, the first of the epoch among them."""
        lengths = self.task.lengths
        before, an_epoch = sum(map(len, lengths[: epoch - 1])), len(lengths[epoch - 1])
        due = {before + number * an_epoch // PROBES_AN_EPOCH for number in range(PROBES_AN_EPOCH)}
        return self.cell.path != "dense" and self.step in due

    def probe(self, inputs: Tensor, states: list[State] | None) -> Row:
        """One entry of the column `probes`."""
        measured = probe_layers(self.model, self.paths, inputs, states)
        return {"step": self.step, "sparsity": self.pruner.sparsity, **measured}

    @torch.no_grad()
    def row(self, epoch: int, **measured: Any) -> Row:
        """The row of a finished epoch (0: before training), with the block norms where they are stored."""
        cell, weights = self.cell, self.weights
        self.pruner.check(self.optimizer)
        norms = norms_of(weights, cell)
        keep_norms = epoch in (0, max(1, cell.epochs // 2), cell.epochs)
        return {
            **blank_row(),
            "status": "ok",
            "reason": self.paths.reason or None,
            "epoch": epoch,
            "step": self.step,
            "scheduled_sparsity": self.pruner.scheduled(self.step),
            "sparsity": self.pruner.sparsity,
            "zero_block_share": zero_share(norms),
            "lasso_penalty": self.lasso.penalty(weights.values()).item(),
            "kept_neurons": self.scales.kept,
            "bias_sparsity": self.pruner.bias_sparsity,
            "lasso_multiplier": float(self.lasso.multiplier) if cell.lasso == "dual" else None,
            "train_tokens_seen": 0,
            "eval_tokens_seen": 0,
            **self.task.columns(self.model),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "prunable_parameters": sum(weight.numel() for weight in weights.values()),
            "block_norms": norm_maps(norms, cell.block_size) if keep_norms else None,
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
    return stopped(rows, "diverged", reason)


def stopped(rows: list[Row], status: str, reason: str) -> list[Row]:
    """The rows of finished epochs of a run that did not end ok, and why."""
    return [{**row, "status": status, "reason": reason} for row in rows]


def blank_row() -> Row:
    """A row with every column of the training table null."""
    return dict.fromkeys(["status", "reason", *(column.name for column in TRAIN)])


def detach(states: list[tuple[Tensor, Tensor]] | None) -> list[tuple[Tensor, Tensor]] | None:
    """The same states, cut from the graph that made them."""
    return states and [(hidden.detach(), memory.detach()) for hidden, memory in states]
