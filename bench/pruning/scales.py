"""Scales: whole neurons pruned by what batch normalisation multiplies them with.

A penalty on the scales, λ Σ |γ|, draws those of neurons that are of little use to zero (network slimming: Liu et al.,
1708.06519; MorphNet: Gordon et al., 1711.06798); where |γ| is below a threshold the neuron goes: γ and β are zero from
then on, so that relu(γ x + β) is, and so are the moments that an optimizer keeps of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from bench.pruning.settings import ScaleSettings


class Scales:
    """The scales γ of a model's batch normalisation, of a run of `steps` steps. gone: bool[units] of each layer."""

    def __init__(self, model: nn.Module, cell: ScaleSettings, steps: int) -> None:
        self.cell, self.at = cell, round(cell.scale_at * steps)
        norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm1d)]
        self.norms = norms if cell.prunes_neurons or cell.scale_penalty else []
        self.gone = [torch.zeros_like(norm.weight, dtype=torch.bool) for norm in self.norms]

    def state_dict(self) -> dict[str, Any]:
        return {"gone": self.gone}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.gone = [old.to(new.device) for old, new in zip(state["gone"], self.gone, strict=True)]

    @property
    def in_loss(self) -> bool:
        """Whether the penalty is added to the loss."""
        return bool(self.norms) and self.cell.scale_penalty > 0.0

    def penalty(self) -> Tensor:
        """λ Σ |γ|, in nats."""
        return self.cell.scale_penalty * torch.stack([norm.weight.abs().sum() for norm in self.norms]).sum()

    @torch.no_grad()
    def after_step(self, step: int, optimizer: Optimizer) -> None:
        """After `step` optimizer steps: at the step for it let go of neurons, and keep zero what went.

        Of every layer the neuron with the largest scale stays.
        """
        if not self.cell.prunes_neurons or step < self.at:
            return
        for number, norm in enumerate(self.norms):
            if step == self.at:
                scale = norm.weight.abs()
                gone = scale < self.cell.scale_threshold
                gone[scale.argmax()] = False
                self.gone[number] = gone
            for tensor in self._tensors(norm, optimizer):
                tensor.masked_fill_(self.gone[number], 0.0)

    def _tensors(self, norm: nn.BatchNorm1d, optimizer: Optimizer) -> Iterator[Tensor]:
        """γ and β, their gradients and what the optimizer keeps of their shape."""
        parameter: Parameter
        for parameter in (norm.weight, norm.bias):
            for tensor in (parameter, parameter.grad, *optimizer.state[parameter].values()):
                if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                    yield tensor

    @property
    def kept(self) -> list[int] | None:
        """Neurons of each layer that did not go; None where none ever does."""
        return [int((~gone).sum()) for gone in self.gone] if self.cell.prunes_neurons else None
