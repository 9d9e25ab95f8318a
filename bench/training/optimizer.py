"""The optimizer of a training cell, its learning rate over the run, and the averages of ASGD in evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import ASGD, SGD, Adam, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from bench.cells import TrainCell
from bench.training.settings import OptimizerSettings

LOW = 0.1  # of the peak rate: where four_phases begins, and where its last phase does


class NTASGD(SGD):
    """SGD that averages its iterates from a step on (Merity et al., 1708.02182, algorithm 1).

    The average of a parameter is its state `ax`, as torch's ASGD names it, so that masks reach it; the weight that the
    next iterate had in it is `mu`. torch's ASGD itself applies a changed learning rate one step late.
    """

    def average_from_now(self) -> None:
        """Average from the next step on."""
        for group in self.param_groups:
            group["averaging"] = True

    @property
    def averaging(self) -> bool:
        """Whether it averages by now."""
        return any(group.get("averaging", False) for group in self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of SGD, then the averages."""
        loss: float | None = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"] if group.get("averaging", False) else ():
                state = self.state[parameter]
                state["mu"] = 1.0 / (1.0 + 1.0 / state["mu"]) if "mu" in state else 1.0
                state["ax"] = state["ax"].lerp_(parameter, state["mu"]) if "ax" in state else parameter.detach().clone()
        return loss


class AdamOfRows(Adam):
    """Adam, by torch's SparseAdam for parameters whose gradients are sparse: rows without a gradient stay as they are.

    Both keep their averages under the same names in one state.
    """

    def __init__(
        self,
        dense: list[Parameter],
        sparse: list[Parameter],
        rate: float,
        betas: tuple[float, float],
        fused: bool | None,
    ):
        super().__init__([{"params": dense}, {"params": sparse}], rate, betas=betas, fused=fused)
        self.rows = SparseAdam(sparse, rate, betas=betas)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch's, which makes a float32 tensor of the number of steps; SparseAdam counts in Python's integers."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for parameter in self.param_groups[1]["params"]:
            if own := self.state.get(parameter):
                own["step"] = int(own["step"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        dense, *rows = groups = self.param_groups
        self.rows.param_groups, self.rows.state = rows, self.state
        self.param_groups = [dense]
        try:
            loss: float | None = super().step(closure)
        finally:
            self.param_groups = groups
        self.rows.step()  # type: ignore[no-untyped-call]
        return loss


class NonMonotone:
    """The trigger of NT-ASGD: a validation perplexity above the best of those more than `patience` epochs back.

    It must see epochs at final sparsity only: pruning raises the perplexity, and would set it off.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.history: list[float] = []

    def sees(self, val_ppl: float) -> bool:
        """Whether the averages are to start after this epoch."""
        before = self.history[: -self.patience]
        self.history.append(val_ppl)
        return bool(before) and val_ppl > min(before)


def make_optimizer(cell: TrainCell, model: nn.Module, steps: int) -> Optimizer:
    """The cell's optimizer.

    ASGD averages from where the ramp ends, for every schedule alike (also without pruning): the masks are final by
    then, so no average mixes different patterns. Its own decay and step decay are off (lambd = 0), as in AWD-LSTM.
    On a GPU they are torch's fused ones where there are, and none waits for the GPU.
    """
    rate, decay, on_gpu = cell.learning_rate, cell.weight_decay, cell.device == "cuda"
    fused = True if on_gpu else None
    if cell.optimizer == "adam" and cell.embedding_gradient == "sparse":
        rows: list[Parameter] = [model.embedding.weight]  # type: ignore[union-attr, list-item]
        others = [parameter for parameter in model.parameters() if parameter is not rows[0]]
        return AdamOfRows(others, rows, rate, (cell.beta1, cell.beta2), fused)
    if cell.optimizer == "adam":
        return Adam(model.parameters(), rate, betas=(cell.beta1, cell.beta2), weight_decay=decay, fused=fused)
    if cell.optimizer == "sgd":
        return SGD(model.parameters(), rate, momentum=cell.momentum, weight_decay=decay, fused=fused)
    if cell.optimizer == "nt_asgd":
        return NTASGD(model.parameters(), rate, weight_decay=decay, fused=fused)
    final = math.ceil(max(cell.prune_begin, cell.prune_end) * steps)
    return ASGD(model.parameters(), rate, lambd=0.0, t0=final, weight_decay=decay, capturable=on_gpu)


def four_phases(step: int, steps: int) -> tuple[float, float]:
    """(rate as a share of its peak, depth of beta1's dip as a share) at a step.

    Of twelve parts of the run: up in one, held for five, down in five, and to 0 along a cosine in the last; beta1 goes
    down, stays and comes back against the first three. That is the 90-epoch recipe of sgugger/Adam-experiments.
    """
    part = 12 * step / steps
    if part < 1:
        height = part
    elif part < 6:
        height = 1.0
    elif part < 11:
        height = (11 - part) / 5
    else:
        return LOW * (1 + math.cos(math.pi * min(1.0, part - 11))) / 2, 0.0
    return LOW + (1 - LOW) * height, height


class FourPhases(LambdaLR):
    """`four_phases` of Adam's learning rate and first beta, or of another optimizer's learning rate."""

    def __init__(self, optimizer: Optimizer, cell: OptimizerSettings, steps: int) -> None:
        self.cell, self.steps = cell, steps
        super().__init__(optimizer, lambda step: four_phases(step, steps)[0])

    def step(self, epoch: int | None = None) -> None:
        """Go on to the next step of the optimizer."""
        super().step(epoch)
        beta1 = self.cell.beta1 - self.cell.beta1_dip * four_phases(self.last_epoch, self.steps)[1]
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (beta1, group["betas"][1])

    def state_dict(self) -> dict[str, Any]:
        """How far it is, in plain numbers."""
        return {name: value for name, value in super().state_dict().items() if name not in ("cell", "steps")}


def make_rates(cell: OptimizerSettings, optimizer: Optimizer, steps: int) -> LRScheduler | None:
    """What sets the learning rate of each step; None where it is constant."""
    if cell.lr_schedule == "one_cycle":
        return OneCycleLR(optimizer, cell.learning_rate, total_steps=steps, cycle_momentum=False)
    return FourPhases(optimizer, cell, steps) if cell.lr_schedule == "four_phases" else None


def clip_gradients(parameters: Iterable[Parameter], largest: float) -> None:
    """Scale all gradients so that their norm is at most `largest`, as torch's clip_grad_norm_; sparse ones too."""
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
    if not any(parameter.grad is not None and parameter.grad.is_sparse for parameter in parameters):
        nn.utils.clip_grad_norm_(parameters, largest)
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    values = [gradient.values() if gradient.is_sparse else gradient for gradient in gradients]
    norm = nn.utils.get_total_norm(values)
    for each in values:
        each.mul_((largest / (norm + 1e-6)).clamp(max=1.0))


@contextmanager
def scaled_rate(optimizer: Optimizer, factor: float) -> Iterator[float]:
    """Inside, the learning rate is `factor` times its own; gives that rate."""
    own = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, own, strict=True):
        group["lr"] = rate * factor
    try:
        yield own[0] * factor
    finally:
        for group, rate in zip(optimizer.param_groups, own, strict=True):
            group["lr"] = rate


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
