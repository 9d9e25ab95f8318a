"""awd_lstm: the LSTM language model with dropped recurrent weights, locked dropout and activation penalties.

Merity, Keskar & Socher, 1708.02182.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn import functional as F

from bench.cells import TrainCell
from bench.models.layers import LSTMLayer, State
from bench.models.lstm import LSTM


def keep_mask(like: Tensor, shape: tuple[int, ...], drop: float) -> Tensor:
    """1 / (1 - drop) with probability 1 - drop, else 0."""
    return like.new_empty(shape).bernoulli_(1.0 - drop).div_(1.0 - drop)


def locked_dropout(x: Tensor, drop: float, training: bool) -> Tensor:
    """Dropout with one mask for all time steps (Gal & Ghahramani, 1512.05287). x: [time, batch, size]."""
    return x * keep_mask(x, (1, *x.shape[1:]), drop) if training and drop else x


class AWDLSTM(LSTM):
    """AWD-LSTM of Merity, Keskar & Socher (1708.02182); in evaluation it computes what `LSTM` does.

    While training, every call draws one mask for each weight_hh (applied to the raw weight), one for the embedding's
    rows and one for each sequence's features before, between and behind the layers, and leaves `penalty`:
    AR = activation_penalty * mean(dropped output^2) + TAR = temporal_penalty * mean((raw output_t+1 - raw output_t)^2).
    """

    def __init__(self, cell: TrainCell, vocabulary: int) -> None:
        super().__init__(cell, vocabulary)
        self.cell = cell
        for layer in self.layers:
            assert isinstance(layer, LSTMLayer)
            layer.weight_drop = cell.weight_drop

    def outputs(self, inputs: Tensor, states: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """What goes into the decoder, and the states.

        inputs: [time, batch] -> [time, batch, size of the last layer].
        """
        cell = self.cell
        x = locked_dropout(self.embed(inputs), cell.input_dropout, self.training)  # [time, batch, embedding]
        between = partial(locked_dropout, drop=cell.hidden_dropout, training=self.training)
        raw, after = self.run_layers(x, states, between)
        dropped = locked_dropout(raw, cell.output_dropout, self.training)
        self.penalty = self.activation_penalties(raw, dropped) if self.training else None
        return dropped, after

    def embed(self, inputs: Tensor) -> Tensor:
        """The words' embeddings; one that is dropped is dropped wherever it stands.

        inputs: [time, batch] -> [time, batch, embedding].
        """
        x: Tensor = self.embedding(inputs)
        drop = self.cell.embedding_dropout
        if not (self.training and drop):
            return x
        weight = self.embedding.weight
        return x * F.embedding(inputs, keep_mask(weight, (weight.shape[0], 1), drop))

    def activation_penalties(self, raw: Tensor, dropped: Tensor) -> Tensor | None:
        """AR on the dropped output and TAR on the raw one, of the last layer: [time, batch, embedding] each."""
        cell, parts = self.cell, []
        if cell.activation_penalty:
            parts.append(cell.activation_penalty * dropped.square().mean())
        if cell.temporal_penalty and len(raw) > 1:  # the mean of no differences is no number
            parts.append(cell.temporal_penalty * (raw[1:] - raw[:-1]).square().mean())
        return sum(parts[1:], parts[0]) if parts else None


def model(cell: TrainCell, vocabulary: int) -> AWDLSTM:
    """A freshly initialised model, drawn from torch's global generator."""
    return AWDLSTM(cell, vocabulary)
