"""Criteria: a score for every block of a weight; the lowest are pruned first.

A criterion is `(evidence) -> scores`, [grid_rows, grid_cols]. Most look at the weight alone. One that looks at
gradients names in `@looks_at` what it wants summed while the network trains, one that looks at the curvature that; only
it is kept. Of criteria only `random` draws from the generator, as the estimate of the curvature does. The blocks of a
cell have one size, so l2 and rms rank alike: they are one cell, that of l2, unless scores are held to a threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.registry import Registry
from kernels.tensors.rounding import in_blocks

if TYPE_CHECKING:
    from torch import Generator, Tensor

    Criterion = Callable[["Evidence"], Tensor]

CRITERIA: Registry[Criterion] = Registry("criterion")


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at: a weight [rows, cols], and of the same shape what it named in `@looks_at`.

    gradient: mean of the loss's gradient over the steps since the masks changed last. square: mean of its square over
    the same steps, the diagonal of the empirical Fisher matrix up to the size of a batch. movement: -Σ w ∂L/∂w over all
    steps so far. The gradients are those of what is minimised, a penalty in the loss among them, before clipping; in
    the empty blocks of the sparse path they are zero. curvature: w² times the Hessian's diagonal, as `curvature`
    estimates it on the batch of the step at whose end masks change, of the loss alone, without penalties and dropout.
    gates: parts of the rows that are padded by themselves, where blocks do not divide the weight.
    """

    weight: Tensor
    block_size: int
    generator: Generator
    gradient: Tensor | None = None
    square: Tensor | None = None
    movement: Tensor | None = None
    curvature: Tensor | None = None
    gates: int = 1

    def blocks(self, x: Tensor) -> Tensor:
        """A view with the blocks' elements on dimensions 1 and 3. [rows, cols] -> [grid_rows, b, grid_cols, b]."""
        return as_blocks(x, self.block_size, self.gates)


def as_blocks(weight: Tensor, block_size: int, gates: int = 1) -> Tensor:
    """A view with the blocks' elements on dimensions 1 and 3. [rows, cols] -> [grid_rows, b, grid_cols, b].

    Where whole blocks are more than the weight it is of a copy with zeros behind the rows of each gate, and behind the
    columns.
    """
    rows, cols = in_blocks((weight.shape[0], weight.shape[1]), gates, block_size)
    if (rows, cols) != tuple(weight.shape):
        from kernels.tensors.padding import padded  # here, for naming the criteria must not load torch

        weight = padded(weight, gates, (rows, cols))
    return weight.view(rows // block_size, block_size, cols // block_size, block_size)


def looks_at(*names: str) -> Callable[[Criterion], Criterion]:
    """Decorator: the fields of `Evidence` that a criterion needs beside the weight."""

    def marked(criterion: Criterion) -> Criterion:
        criterion.looks_at = names  # type: ignore[attr-defined]
        return criterion

    return marked


def looked_at(name: str) -> tuple[str, ...]:
    """What the criterion of that name needs beside the weight."""
    found: tuple[str, ...] = getattr(CRITERIA[name], "looks_at", ())
    return found


@CRITERIA.register
def l2(evidence: Evidence) -> Tensor:
    """Euclidean norm (the slides' choice)."""
    return evidence.blocks(evidence.weight).square().sum(dim=(1, 3)).sqrt()


@CRITERIA.register
def l1(evidence: Evidence) -> Tensor:
    """Sum of magnitudes."""
    return evidence.blocks(evidence.weight).abs().sum(dim=(1, 3))


@CRITERIA.register
def max(evidence: Evidence) -> Tensor:
    """Largest magnitude (Narang et al., 1711.02782)."""
    return evidence.blocks(evidence.weight).abs().amax(dim=(1, 3))


@CRITERIA.register
def rms(evidence: Evidence) -> Tensor:
    """Root of the mean square: l2 per element, comparable between block sizes."""
    return evidence.blocks(evidence.weight).square().mean(dim=(1, 3)).sqrt()


@CRITERIA.register
def random(evidence: Evidence) -> Tensor:
    """Uniform noise, drawn on the CPU: the control."""
    import torch  # here, for naming the criteria must not load it

    shape, size = (evidence.weight.shape[0], evidence.weight.shape[1]), evidence.block_size
    rows, cols = in_blocks(shape, evidence.gates, size)
    drawn = torch.empty(rows // size, cols // size, dtype=evidence.weight.dtype).uniform_(generator=evidence.generator)
    return drawn.to(evidence.weight.device)


@CRITERIA.register
@looks_at("gradient")
def taylor(evidence: Evidence) -> Tensor:
    """|Σ w ∂L/∂w|: by how much the loss changes to first order without the block (Molchanov et al., 1906.10771)."""
    assert evidence.gradient is not None
    return evidence.blocks(evidence.weight * evidence.gradient).sum(dim=(1, 3)).abs()


@CRITERIA.register
@looks_at("gradient")
def gradient(evidence: Evidence) -> Tensor:
    """Euclidean norm of the gradient."""
    assert evidence.gradient is not None
    return evidence.blocks(evidence.gradient).square().sum(dim=(1, 3)).sqrt()


@CRITERIA.register
@looks_at("square")
def obd(evidence: Evidence) -> Tensor:
    """½ Σ w² E[g²]: the loss's rise to second order, its Hessian by the empirical Fisher (LeCun et al., 1989)."""
    assert evidence.square is not None
    return 0.5 * evidence.blocks(evidence.weight.square() * evidence.square).sum(dim=(1, 3))


@CRITERIA.register
@looks_at("curvature")
def hessian(evidence: Evidence) -> Tensor:
    """½ Σ h w²: the loss's rise to second order by the Hessian's own diagonal h, where the gradient is zero.

    LeCun et al., 1989; h by Hutchinson's estimator, as Yu et al., 2101.08940. Negative where the loss would fall.
    """
    assert evidence.curvature is not None
    return 0.5 * evidence.blocks(evidence.curvature).sum(dim=(1, 3))


@CRITERIA.register
@looks_at("movement")
def movement(evidence: Evidence) -> Tensor:
    """-Σ_t Σ w ∂L/∂w: low where training moves the weights towards zero (Sanh et al., 2005.07683)."""
    assert evidence.movement is not None
    return evidence.blocks(evidence.movement).sum(dim=(1, 3))
