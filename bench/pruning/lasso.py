"""Block lasso: lambda times the sum of block norms, ||W_g||_2, each times sqrt(p_g) if scaled (p_g elements a block).

Five forms (slides, "Primal Relaxation", "Dual Problem" and "Empirical Risk Minimization"; Yuan & Lin 2006 for
sqrt(p_g)):
subgradient adds the penalty to the loss: block norms shrink, none becomes exactly zero;
hinge adds lambda max(sum - k, 0): silent while the sum is below the budget k;
dual adds lambda sum, and after each step ascends in lambda: lambda <- max(0, lambda + rate (sum - k));
proximal leaves the loss alone and shrinks every block's norm by eta lambda sqrt(p_g) after the optimizer's step, to
exactly zero where less is left (group soft threshold);
projection leaves it alone, too, and moves the weights to the nearest ones whose sum is at most k, all blocks of all
matrices together: their norms are projected onto an l1 ball (Duchi et al., 2008), the least ones to exactly zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.pruning.criteria import as_blocks
from bench.pruning.settings import LassoSettings
from kernels.tensors.padding import in_blocks, unpadded


def block_norms(weight: Tensor, block_size: int, gates: int = 1) -> Tensor:
    """The L2 norm of every block; its gradient at a zero block is zero. [rows, cols] -> [grid_rows, grid_cols]."""
    norms: Tensor = torch.linalg.vector_norm(as_blocks(weight, block_size, gates), dim=(1, 3))
    return norms


@dataclass
class Lasso:
    """One block lasso: `strength` is lambda, `budget` is k, on blocks of block_size x block_size elements.

    multiplier: lambda as it is now, which begins as `strength`; only the dual form changes it, by `rate` a step. gates:
    of the weights, padded by themselves where blocks do not divide these; p_g is that of a whole block there, too.
    """

    form: str
    strength: float
    block_size: int
    scaled: bool = True
    budget: float = 0.0
    rate: float = 0.0
    gates: int = 1
    multiplier: float | Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.multiplier = self.strength

    @classmethod
    def of(cls, cell: LassoSettings) -> Lasso:
        given = cell.lasso_strength, cell.block_size, cell.lasso_scaled, cell.lasso_budget, cell.lasso_rate
        return cls(cell.lasso, *given, gates=cell.gates)

    @property
    def scale(self) -> float:
        """sqrt(p_g) = block_size for a square block, or 1."""
        return float(self.block_size) if self.scaled else 1.0

    def penalty(self, weights: Iterable[Tensor]) -> Tensor:
        """The penalty in nats, lambda included; 0 where there is no lasso."""
        if self.form in ("none", "projection"):
            return torch.zeros(())
        total = self.total(weights)
        if self.form == "hinge":
            total = torch.clamp(total - self.budget, min=0.0)
        return self.multiplier * total

    def total(self, weights: Iterable[Tensor]) -> Tensor:
        """The sum of the block norms of all weights, scaled."""
        return self.scale * torch.stack([self._norms(weight).sum() for weight in weights]).sum()

    @property
    def in_loss(self) -> bool:
        """Whether the penalty is added to the loss."""
        return self.form in ("subgradient", "hinge", "dual")

    @torch.no_grad()
    def shrink_(self, weights: Iterable[Tensor], learning_rate: float) -> None:
        """What a form does after the optimizer's step, in place.

        The proximal step: W_g <- W_g max(0, 1 - eta lambda sqrt(p_g) / ||W_g||). The projection: the same, with the
        threshold at which the sum is k, if it was more. The dual form's step of lambda, which leaves the weights alone.

        It runs after the optimizer's step, so gradient clipping does not touch it. It is the prox in the Euclidean
        metric with eta = the learning rate: exact proximal gradient for plain SGD. Adam moves in the metric of its
        second moments, so with Adam this is a decoupled shrinkage (as AdamW's decay is), not the prox of its step.
        """
        held = list(weights)
        if self.form == "dual":
            risen = self.multiplier + self.rate * (self.total(held) - self.budget)
            self.multiplier = torch.clamp(risen, min=0.0)
        if self.form not in ("proximal", "projection"):
            return
        norms = [self._norms(weight) for weight in held]
        threshold: float | Tensor
        if self.form == "projection":
            threshold = ball_threshold(torch.cat([each.flatten() for each in norms]), self.budget / self.scale)
        else:
            threshold = learning_rate * self.strength * self.scale
        for weight, each in zip(held, norms, strict=True):
            keep = (1.0 - threshold / each.clamp(min=torch.finfo(each.dtype).tiny)).clamp(min=0.0)
            self._scale_(weight, keep)

    def _norms(self, weight: Tensor) -> Tensor:
        return block_norms(weight, self.block_size, self.gates)

    def _scale_(self, weight: Tensor, by: Tensor) -> None:
        """Multiply the blocks of a weight in place. by: [grid_rows, grid_cols]."""
        size = self.block_size
        if in_blocks((weight.shape[0], weight.shape[1]), self.gates, size) == tuple(weight.shape):
            as_blocks(weight, size).mul_(by[:, None, :, None])
        else:
            whole = by.repeat_interleave(size, 0).repeat_interleave(size, 1)
            weight.mul_(unpadded(whole, self.gates, weight.shape))


def ball_threshold(norms: Tensor, most: float) -> Tensor:
    """What is to be taken off norms >= 0, none below zero, for their sum to be `most`; 0 where it is no more.

    norms: [n]. Duchi et al., "Efficient projections onto the l1-ball", 2008, figure 1, in double precision.
    """
    falling = norms.double().sort(descending=True).values
    thresholds = (falling.cumsum(0) - most) / torch.arange(1, len(falling) + 1, device=norms.device)
    last = (falling > thresholds).sum().clamp(min=1) - 1
    return thresholds[last].clamp(min=0.0).to(norms.dtype)
