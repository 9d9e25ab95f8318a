"""Rewinding: after a cut, all parameters go back to what they were early in the run (Frankle et al., 1912.05671).

Only the masks are learned anew. The averages of the optimizer, of gradients that belong to other weights, are
forgotten; its learning rate goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import ASGD, Optimizer


class Rewinding:
    """The values that parameters had after step `to`. early: these, by name, from then on."""

    def __init__(self, parameters: Mapping[str, Parameter], to: int) -> None:
        self.parameters, self.to = parameters, to
        self.early: dict[str, Tensor] = {}

    def keep(self, step: int) -> None:
        """To be called after each step, before its cut."""
        if step == self.to:
            self.early = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def back(self, optimizer: Optimizer | None) -> None:
        """Set all parameters back, in place; what is pruned of them is to be zeroed again.

        torch's ASGD keeps nothing to forget: until it averages, its average is the weight, and it counts its steps.
        """
        for name, parameter in self.parameters.items():
            parameter.copy_(self.early[name])
        if optimizer is not None and not isinstance(optimizer, ASGD):
            optimizer.state.clear()
