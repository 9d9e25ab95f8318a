"""Block lasso: lambda times the sum of block norms, ||W_g||_2, each times sqrt(p_g) if scaled (p_g elements a block).

Three forms (slides, "Primal Relaxation" and "Empirical Risk Minimization"; Yuan & Lin 2006 for sqrt(p_g)):
subgradient adds the penalty to the loss: block norms shrink, none becomes exactly zero;
hinge adds lambda max(sum - k, 0): silent while the sum is below the budget k;
proximal leaves the loss alone and shrinks every block's norm by eta lambda sqrt(p_g) after the optimizer's step, to
exactly zero where less is left (group soft threshold).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.pruning.criteria import as_blocks
from bench.pruning.settings import LassoSettings


def block_norms(weight: Tensor, block_size: int) -> Tensor:
    """The L2 norm of every block; its gradient at a zero block is zero. [rows, cols] -> [grid_rows, grid_cols]."""
    norms: Tensor = torch.linalg.vector_norm(as_blocks(weight, block_size), dim=(1, 3))
    return norms


@dataclass(frozen=True)
class Lasso:
    """One block lasso: `strength` is lambda, `budget` the hinge's k, on blocks of block_size x block_size elements."""

    form: str
    strength: float
    block_size: int
    scaled: bool = True
    budget: float = 0.0

    @classmethod
    def of(cls, cell: LassoSettings) -> Lasso:
        return cls(cell.lasso, cell.lasso_strength, cell.block_size, cell.lasso_scaled, cell.lasso_budget)

    @property
    def scale(self) -> float:
        """sqrt(p_g) = block_size for a square block, or 1."""
        return float(self.block_size) if self.scaled else 1.0

    def penalty(self, weights: Iterable[Tensor]) -> Tensor:
        """The penalty in nats, lambda included; 0 where there is no lasso."""
        if self.form == "none":
            return torch.zeros(())
        total = self.scale * torch.stack([block_norms(weight, self.block_size).sum() for weight in weights]).sum()
        if self.form == "hinge":
            total = torch.clamp(total - self.budget, min=0.0)
        return self.strength * total

    @property
    def in_loss(self) -> bool:
        """Whether the penalty is added to the loss."""
        return self.form in ("subgradient", "hinge")

    @torch.no_grad()
    def shrink_(self, weights: Iterable[Tensor], learning_rate: float) -> None:
        """The proximal step: W_g <- W_g max(0, 1 - eta lambda sqrt(p_g) / ||W_g||), in place; nothing in other forms.

        It runs after the optimizer's step, so gradient clipping does not touch it. It is the prox in the Euclidean
        metric with eta = the learning rate: exact proximal gradient for plain SGD. Adam moves in the metric of its
        second moments, so with Adam this is a decoupled shrinkage (as AdamW's decay is), not the prox of its step.
        """
        if self.form != "proximal":
            return
        threshold = learning_rate * self.strength * self.scale
        for weight in weights:
            norms = block_norms(weight, self.block_size)
            keep = (1.0 - threshold / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(min=0.0)
            as_blocks(weight, self.block_size).mul_(keep[:, None, :, None])
