"""Curvature: what the loss rises by to second order without a weight, from the diagonal of its Hessian."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor


def curvature(
    loss: Tensor,
    weights: Mapping[str, Tensor],
    generator: Generator,
    probes: int,
    kept: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """An estimate of w² H_ii for every weight w: the mean of u ⊙ Hu over u = w ⊙ z, signs z.

    Hutchinson's estimator of a diagonal (Bekas et al., 2007; Yao et al., 2006.00719), of that of diag(w) H diag(w): its
    mean is what w² times the plain one has, and Σ_j≠i w_i w_j H_ij z_i z_j, what one product adds to it, has the mean
    0, is 0 where H is diagonal, and is small where either weight is. Hu is the gradient of the gradient's product with
    u. Signs are drawn on the CPU, for all weights together. kept: bool of the weights' shapes; the others are held
    where they are, and have 0. The loss must be twice differentiable. No gradient is left.
    """
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for probe in range(probes):
        moves = [weight.detach() * _signs(weight, generator) for weight in weights.values()]
        if kept is not None:
            moves = [move * kept[name] for name, move in zip(weights, moves, strict=True)]
        products = torch.autograd.grad(
            gradients, list(weights.values()), moves, retain_graph=probe + 1 < probes, materialize_grads=True
        )
        for total, move, product in zip(found.values(), moves, products, strict=True):
            total.addcmul_(move, product, value=1.0 / probes)
    return found


def _signs(weight: Tensor, generator: Generator) -> Tensor:
    """-1 or 1, each as likely."""
    drawn = torch.randint(0, 2, weight.shape, generator=generator, dtype=torch.int8, device="cpu")
    return drawn.to(weight.device, weight.dtype).mul_(2.0).sub_(1.0)
