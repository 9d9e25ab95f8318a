"""Pruner: empties blocks by a schedule and a criterion, and keeps them exactly zero."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from bench.pruning.criteria import CRITERIA, Evidence, as_blocks, looked_at
from bench.pruning.curvature import curvature
from bench.pruning.lasso import block_norms
from bench.pruning.ranking import above, ranked
from bench.pruning.rewinding import Rewinding
from bench.pruning.schedules import cuts_done, sparsity_at
from bench.pruning.settings import PruningSettings
from kernels.blockmask import BlockMask, padded_share
from kernels.tensors.padding import in_blocks, unpadded

Bias = tuple[Parameter, tuple[str, ...]]


def share_empty(masks: Collection[BlockMask]) -> float:
    """Share of empty blocks over all masks, which have one block size; 0 where there are none."""
    blocks = sum(mask.kept.numel() for mask in masks)
    return sum(mask.num_empty for mask in masks) / blocks if blocks else 0.0


class Pruner:
    """One BlockMask per prunable weight; a block once empty stays empty, unless the cell regrows blocks.

    Momentum, Adam's moments and ASGD's average would revive a pruned weight, so all of them are masked with it. The
    random patterns come from a generator of the pruner's own, seeded by the cell. A cell that does not prune has no
    masks.

    sparse: names of weights whose gradients come exactly zero in empty blocks (the sparse path's). What was zeroed when
    the mask changed then stays zero through every optimizer step, so it is not zeroed again but checked, a block row at
    each step: multiplying whole matrices by masks took a quarter as long as a sparse layer.

    lazy: on a GPU all weights are treated so, their gradients being masked, and looked at whole by `check` at an
    epoch's end, for looking waits for the GPU.
    """

    def __init__(
        self,
        weights: dict[str, Parameter],
        cell: PruningSettings,
        steps: int,
        parameters: Mapping[str, Parameter] | None = None,
        biases: Mapping[str, Bias] | None = None,
    ) -> None:
        """parameters: all of the model, by name, which are rewound where the cell rewinds; None: the weights.

        biases: those of the weights' rows, each with the names of the weights that have these rows.
        """
        self.weights = weights if cell.prunes else {}
        self.cell, self.steps = cell, steps
        # 'pre' cuts before anything was learned: its pattern is random whatever the criterion (slides).
        name = "random" if cell.schedule == "pre" else cell.criterion
        self.criterion, self.looks_at = CRITERIA[name], looked_at(name)
        self._sums: dict[str, dict[str, Tensor]] = {}  # of each weight, what the criterion looks at beside it
        self._growing: dict[str, Tensor] = {}  # norms of the blocks' gradients, between a step's look and its end
        self._curvature: dict[str, Tensor] = {}  # of the weights, likewise
        self._steps_seen = 0  # in the sums but that of `movement`, which goes on
        self.generator = torch.Generator().manual_seed(cell.seed)
        self.masks = {name: self._full(weight) for name, weight in self.weights.items()}
        self._emptied: dict[str, Tensor] = {}  # bool[rows, cols], True = pruned
        self.biases = dict(biases or {}) if cell.prunes and cell.prune_biases else {}
        self._bare: dict[str, Tensor] = {}  # of each bias, bool[rows]: no block is kept of the row, in any weight
        self._sparsity: float | None = None  # of the masks as they are
        self.lazy = cell.device != "cpu"
        self._asked = 0.0
        self.sparse: Collection[str] = ()
        rewinds = cell.prunes and cell.rewind != "none"
        self.rewinding = Rewinding(parameters or weights, int(cell.rewind_to * steps)) if rewinds else None
        self.lowest, self.stopped = math.inf, False  # validation perplexity so far; whether it rose too far
        self.after_step(0)
        if cell.scaled_start and cell.schedule == "pre":
            self._scale()

    def _full(self, weight: Tensor) -> BlockMask:
        """The mask of a weight that keeps all of it."""
        size, shape = self.cell.block_size, (weight.shape[0], weight.shape[1])
        return BlockMask.full(*in_blocks(shape, self.cell.gates, size), size)

    @torch.no_grad()
    def _scale(self) -> None:
        """Make up for the pruned weights of a row in the variance of its sum: those kept times 1/sqrt(density)."""
        for name, weight in self.weights.items():
            density = 1.0 - self.masks[name].sparsity
            if density:
                weight.mul_(density**-0.5)

    def state_dict(self) -> dict[str, Any]:
        """Masks, what the schedule asked for last, the generator of the random patterns, and what was summed."""
        kept = {name: mask.kept for name, mask in self.masks.items()}
        seen = {"sums": self._sums, "steps_seen": self._steps_seen}
        early = {"early": self.rewinding.early} if self.rewinding else {}
        heard = {"lowest": self.lowest, "stopped": self.stopped} if self.cell.stop_rise else {}
        return {"kept": kept, "asked": self._asked, "generator": self.generator.get_state(), **seen, **early, **heard}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with these masks; the weights must be zero in their empty blocks."""
        for name, kept in state["kept"].items():
            self._take(name, BlockMask(kept, self.cell.block_size))
        self._asked = state["asked"]
        self.generator.set_state(state["generator"])
        self._sums = {
            name: {each: total.clone() for each, total in sums.items()} for name, sums in state["sums"].items()
        }
        self._steps_seen = state["steps_seen"]
        if self.rewinding:
            self.rewinding.early = {name: value.clone() for name, value in state["early"].items()}
        if self.cell.stop_rise:
            self.lowest, self.stopped = state["lowest"], state["stopped"]

    def _take(self, name: str, mask: BlockMask) -> None:
        self.masks[name], self._sparsity = mask, None
        self._emptied[name] = ~self._expanded(name)
        for of, (bias, rows) in self.biases.items():
            if name in rows:
                held = torch.stack([self.masks[each].kept.any(dim=1) for each in rows]).any(dim=0)
                whole = held.repeat_interleave(mask.block_size)[:, None].to(bias.device)
                self._bare[of] = ~unpadded(whole, self.cell.gates, (len(bias), 1))[:, 0]

    def _expanded(self, name: str) -> Tensor:
        """The mask of a weight, bool[rows, cols]."""
        weight = self.weights[name]
        return self.masks[name].inside(weight.shape, self.cell.gates, weight.device)

    @property
    def padded_share(self) -> float:
        """Share of the elements of the kept blocks that is padding; 0 where nothing is padded, or no block is kept."""
        return padded_share(self.masks, {name: each.shape for name, each in self.weights.items()}, self.cell.gates)

    def scheduled(self, step: int) -> float | None:
        """The sparsity the schedule asks for after `step` optimizer steps; None where a threshold decides."""
        return None if self.cell.threshold and self.cell.prunes else self._wanted(step)

    @property
    def _goal(self) -> float:
        """What a schedule asks for in the end: a sparsity, or the whole of a threshold."""
        return 1.0 if self.cell.threshold else self.cell.target_sparsity

    def _wanted(self, step: int) -> float:
        """What the schedule asks for after `step` steps: a sparsity, or the share of a threshold, in rounds of cuts."""
        cell = self.cell
        place = step, self.steps
        if cell.threshold and cell.schedule == "iterative":
            return cuts_done(*place, cell.prune_begin, cell.prune_end, cell.prune_rounds) / cell.prune_rounds
        ends = cell.prune_begin, cell.prune_end, cell.initial_sparsity
        return sparsity_at(cell.schedule, *place, self._goal, *ends, rounds=cell.prune_rounds)

    def is_final(self, step: int) -> bool:
        """Whether nothing more is emptied after `step` steps: the ramp has ended, or no more cuts are made."""
        return self.stopped or self._wanted(step) == self._goal or not self.cell.prunes

    def hear(self, val_ppl: float) -> None:
        """Hear the validation perplexity of an epoch, which may end a pruning in rounds (setting `stop_rise`)."""
        if self.cell.stop_rise and self.cell.prunes and not self.is_done:
            self.stopped = val_ppl > (1.0 + self.cell.stop_rise) * self.lowest
            self.lowest = min(self.lowest, val_ppl)

    @property
    def sparsity(self) -> float:
        """Achieved share of empty blocks over all prunable weights (their blocks have one size)."""
        if self._sparsity is None:
            self._sparsity = share_empty(self.masks.values())
        return self._sparsity

    @torch.no_grad()
    def look(self, step: int) -> None:
        """See the gradients of step `step`: to be done after its backward pass, before they are changed.

        What the criterion looks at is added up; where empty blocks will grow by their gradients, those are kept.
        """
        if self.cell.reads_empty_gradients and self._regrows(step):
            size, gates = self.cell.block_size, self.cell.gates
            weights = self.weights.items()
            self._growing = {
                name: block_norms(weight.grad, size, gates) for name, weight in weights if weight.grad is not None
            }
        summed = [each for each in self.looks_at if each != "curvature"]
        if not summed or self.is_done:
            return
        self._steps_seen += 1
        for name, weight in self.weights.items():
            if weight.grad is None:
                continue
            sums = self._sums.setdefault(name, {each: torch.zeros_like(weight) for each in summed})
            for each, total in sums.items():
                if each == "gradient":
                    total.add_(weight.grad)
                elif each == "square":
                    total.addcmul_(weight.grad, weight.grad)
                else:
                    total.addcmul_(weight, weight.grad, value=-1.0)

    def wants_curvature(self, step: int) -> bool:
        """Whether `see_curvature` is to be called in step `step`, before the optimizer's."""
        return "curvature" in self.looks_at and self._tightens(step)

    def see_curvature(self, loss: Tensor) -> None:
        """See how the loss is curved in the kept blocks. loss: of the step's batch, twice differentiable."""
        kept = {name: self._expanded(name) for name in self.masks}
        self._curvature = curvature(loss, self.weights, self.generator, self.cell.curvature_probes, kept)

    @property
    def is_done(self) -> bool:
        """Whether nothing will be pruned any more."""
        return self.stopped or self._asked == self._goal

    def _evidence(self, name: str) -> Evidence:
        """What the criterion gets of a weight; zeros of what was never summed."""
        weight, steps = self.weights[name].detach(), self._steps_seen or 1
        found = self._sums.get(name) or {each: torch.zeros_like(weight) for each in self.looks_at}
        means = {each: total if each == "movement" else total / steps for each, total in found.items()}
        if "curvature" in self.looks_at:
            means["curvature"] = self._curvature.get(name, torch.zeros_like(weight))
        return Evidence(weight, self.cell.block_size, self.generator, **means, gates=self.cell.gates)

    def mask_gradients(self) -> None:
        """Zero the gradients of pruned blocks: to be done before clipping, so that they do not count in the norm."""
        for name, emptied in self._emptied.items():
            gradient = self.weights[name].grad
            if gradient is not None and name not in self.sparse:
                gradient.masked_fill_(emptied, 0.0)
        for name, bare in self._bare.items():
            gradient = self.biases[name][0].grad
            if gradient is not None:
                gradient.masked_fill_(bare, 0.0)

    @property
    def bias_sparsity(self) -> float | None:
        """Share of the biases that are masked; None where the cell masks none."""
        count = sum(bias.numel() for bias, _ in self.biases.values())
        return sum(int(bare.sum()) for bare in self._bare.values()) / count if count else None

    def after_step(self, step: int, optimizer: Optimizer | None = None) -> None:
        """After `step` optimizer steps: empty more blocks where the schedule wants it, then zero what is pruned."""
        tightened, regrown = self._tightens(step), self._regrows(step)
        if self.rewinding:
            self.rewinding.keep(step)
        if tightened:
            self._tighten(self._wanted(step))
            if self.rewinding:
                self.rewinding.back(optimizer)
        elif regrown:
            self._regrow(step)
        self._zero(optimizer, () if tightened or regrown else self._left_zero)
        if not self.lazy:
            self.check(optimizer, step)

    def _tightens(self, step: int) -> bool:
        """Whether more blocks are emptied after `step` steps."""
        cell, wanted = self.cell, self._wanted(step)
        due = cell.schedule == "iterative" or step % cell.prune_every == 0 or wanted == self._goal
        return due and wanted > self._asked and not self.stopped

    def _regrows(self, step: int) -> bool:
        """Whether blocks are exchanged after `step` steps."""
        cell = self.cell
        due = 0 < step < cell.prune_end * self.steps and step % cell.prune_every == 0
        return due and cell.regrow != "none" and cell.prunes

    @torch.no_grad()
    def _regrow(self, step: int) -> None:
        """Exchange the kept blocks of least norm for blocks that were empty; those begin at zero.

        As many as ζ/2 (1 + cos(π t / T)) of those kept, in each matrix: at random (SET: Mocanu et al., 1707.04780), or
        with the largest gradient (RigL: Evci et al., 1911.11134).
        """
        share = 0.5 * self.cell.regrow_share * (1.0 + math.cos(math.pi * step / (self.cell.prune_end * self.steps)))
        for name, mask in self.masks.items():
            norms = block_norms(self.weights[name].detach(), mask.block_size, self.cell.gates).cpu()
            count = min(int(share * int(mask.kept.sum())), mask.num_empty)
            if self.cell.regrow == "set":
                scores = torch.rand(mask.kept.shape, generator=self.generator, dtype=torch.float64, device="cpu")
            else:
                scores = self._growing[name].cpu()
            kept = mask.kept.clone().flatten()
            going = norms.masked_fill(~mask.kept, torch.inf).flatten().argsort(stable=True)[:count]
            coming = scores.masked_fill(mask.kept, -torch.inf).flatten().argsort(descending=True, stable=True)[:count]
            kept[going], kept[coming] = False, True
            self._take(name, BlockMask(kept.view(mask.kept.shape), mask.block_size))
        self._growing = {}

    @property
    def _left_zero(self) -> Collection[str]:
        """Weights of which everything stays zero in empty blocks until the mask changes."""
        return self.masks if self.lazy else self.sparse

    @torch.no_grad()
    def _tighten(self, wanted: float) -> None:
        """Empty blocks. wanted: the sparsity asked for, or the share of a threshold."""
        cell, scores = self.cell, {}
        for name, mask in self.masks.items():
            found = self.criterion(self._evidence(name))
            # Blocks that are empty already rank below all others: the mask only ever shrinks.
            scores[name] = found.masked_fill(~mask.kept.to(found.device), -torch.inf)
        if cell.threshold:
            risen = 1.0 if cell.schedule == "iterative" else wanted
            masks = above(scores, cell.block_size, risen * cell.threshold)
        else:
            masks = ranked(scores, cell.block_size, wanted, cell.allocation)
        for name, after in masks.items():
            assert not (after.kept & ~self.masks[name].kept).any(), "a pruned block came back"
            self._take(name, after)
        self._asked, self._steps_seen, self._curvature = wanted, 0, {}
        for sums in self._sums.values():
            for each, total in sums.items():
                if each != "movement":
                    total.zero_()
        if self.is_done:
            self._sums = {}

    def _tensors(self, weight: Parameter, optimizer: Optimizer | None) -> Iterator[Tensor]:
        """The weight, its gradient and every optimizer state of the weight's shape."""
        state = optimizer.state[weight].values() if optimizer is not None else ()
        for tensor in (weight, weight.grad, *state):
            if isinstance(tensor, Tensor) and tensor.shape == weight.shape:
                yield tensor

    @torch.no_grad()
    def _zero(self, optimizer: Optimizer | None, zero_already: Collection[str]) -> None:
        """Zero the pruned blocks of everything that belongs to a weight."""
        for name, emptied in self._emptied.items():
            if name not in zero_already:
                for tensor in self._tensors(self.weights[name], optimizer):
                    tensor.masked_fill_(emptied, 0.0)
        for name, bare in self._bare.items():
            for tensor in self._tensors(self.biases[name][0], optimizer):
                tensor.masked_fill_(bare, 0.0)

    @torch.no_grad()
    def check(self, optimizer: Optimizer | None, step: int | None = None) -> None:
        """Assert exact zeros in the empty blocks of all that belongs to a weight which is not zeroed at each step.

        step: looks at one block row only, another one at each step.
        """
        for name in self._left_zero:
            if name not in self._emptied:
                continue  # nothing of it is pruned yet
            mask, emptied = self.masks[name], self._emptied[name]
            for tensor in self._tensors(self.weights[name], optimizer):
                if step is None or mask.shape != tuple(tensor.shape):
                    leaks = (tensor.ne(0.0) & emptied).any()
                else:
                    row = step % mask.grid[0]
                    leaks = as_blocks(tensor, mask.block_size)[row][:, ~mask.kept[row]].any()
                assert not leaks, f"{name}: a pruned block is not zero"
