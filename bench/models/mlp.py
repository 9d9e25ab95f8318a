"""mlp: a classifier of linear layers, x <- relu(W x + b), and an output layer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from bench.cells import TrainCell
from bench.models.linear import LinearLayer

States = list[tuple[Tensor, Tensor]]  # none, of layers that do not go through time


class Classifier(nn.Module):
    """What gives logits of classes, and no states."""

    def loss(
        self,
        inputs: Tensor,
        targets: Tensor,
        states: States | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> tuple[Tensor, States]:
        """Nats of the classes `targets`, in float32, and no states. inputs: [batch, features]; targets: [batch]."""
        logits, after = self(inputs, states)
        return F.cross_entropy(logits.float(), targets, reduction=reduction), after


class MLP(Classifier):
    """A multilayer perceptron: `num_layers` hidden layers of `hidden_size` units, each perhaps batch-normalised.

    Biases before a normalisation stay zero (Ioffe and Szegedy 2015, section 3.2): it takes them away again, so that
    their gradients are rounding errors and nothing else, of which Adam makes steps as large as any. Dropout acts on
    what comes out of each hidden layer. penalty: as of `bench.models.lstm.LSTM`.
    """

    penalty: Tensor | None = None

    def __init__(self, cell: TrainCell, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LinearLayer(into, out) for into, out in pairwise(cell.layer_widths))
        widths = cell.layer_widths[1:]
        self.norms = nn.ModuleList(map(nn.BatchNorm1d, widths)) if cell.batch_norm else None
        if cell.batch_norm:
            for layer in self.layers:
                nn.init.zeros_(layer.bias.requires_grad_(False))  # type: ignore[arg-type]
        self.output = nn.Linear(widths[-1], classes)
        self.dropout = nn.Dropout(cell.dropout)
        self.scope = cell.scope

    def forward(self, inputs: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits of the classes, and no states. inputs: [batch, features] -> [batch, classes]."""
        x, after = self.run_layers(inputs, states, between=self.dropout)
        return self.output(self.dropout(x)), after

    def enter(self, inputs: Tensor) -> Tensor:
        """What goes into the first layer: the inputs."""
        return inputs

    def run_layers(
        self, x: Tensor, states: States | None = None, between: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, States]:
        """The hidden layers alone, `between` them what is given. x: [batch, features] -> [batch, units]."""
        assert not states
        for number, layer in enumerate(self.layers):
            x = layer(between(x) if between and number else x)
            x = F.relu(x if self.norms is None else self.norms[number](x))
        return x, []

    def prunable(self) -> dict[str, nn.Parameter]:
        """The weights to prune, by torch's names: [units, in] each; the output layer's is none of them."""
        return {f"layers.{number}.weight": self.layers[number].weight for number in self._pruned()}  # type: ignore[misc]

    def biases(self) -> dict[str, tuple[nn.Parameter, tuple[str, ...]]]:
        """The trained biases of the prunable weights' rows, by torch's names, with the names of these weights."""
        trained = () if self.norms is not None else self._pruned()
        return {
            f"layers.{number}.bias": (self.get_parameter(f"layers.{number}.bias"), (f"layers.{number}.weight",))
            for number in trained
        }

    def names(self) -> list[dict[str, str]]:
        """The names of each layer's prunable weights, by their kind."""
        pruned = self._pruned()
        return [{"weight": f"layers.{at}.weight"} if at in pruned else {} for at in range(len(self.layers))]

    def _pruned(self) -> range:
        return range(1 if self.scope == "weight_hh" else 0, len(self.layers))

    def decoder_multiply_adds(self, counts: Tensor | None = None) -> float:  # noqa: ARG002
        """Of one example in the output layer."""
        return float(self.output.weight.numel())


def model(cell: TrainCell, classes: int) -> MLP:
    """A freshly initialised model, drawn from torch's global generator."""
    return MLP(cell, classes)
