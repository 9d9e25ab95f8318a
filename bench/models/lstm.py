"""lstm: a stack of LSTM layers between an embedding and a decoder, which share one weight or have one each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from bench.cells import TrainCell
from bench.models.decoders import AdaptiveSoftmax, Decoder, frequencies
from bench.models.layers import LSTMLayer, State


class Embedding(nn.Embedding):
    """torch's, as a class of its own, that `bench.training.compiling` can keep torch.compile out of."""


class LSTM(nn.Module):
    """A language model of LSTM layers, with a decoder tied to its embedding or an adaptive softmax.

    Zaremba et al. 1409.2329; the tied decoder is that of Press & Wolf 1608.05859.
    Every layer has `hidden_size` units but the last, which has the embedding's width for a tied decoder's sake. Dropout
    acts on what goes into each layer and into the decoder, never on the recurrent connection.
    penalty: what the last training call adds to the loss, or None.
    """

    penalty: Tensor | None = None

    def __init__(self, cell: TrainCell, vocabulary: int) -> None:
        super().__init__()
        tied, sparse = cell.decoder == "tied", cell.embedding_gradient == "sparse"
        self.embedding = Embedding(vocabulary, cell.embedding_size, sparse=sparse)
        self.layers = nn.ModuleList(LSTMLayer(into, out) for into, out in pairwise(cell.layer_widths))
        self.decoder_bias = nn.Parameter(torch.zeros(vocabulary)) if tied else None
        self.head = None if tied else AdaptiveSoftmax(cell.layer_widths[-1], vocabulary, cell.cutoffs)
        self.dropout = nn.Dropout(cell.dropout)
        self.scope = cell.scope
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    @torch.no_grad()
    def start_from_frequencies(self, counts: Tensor) -> None:
        """Set the decoder's bias to the log frequency of each word (half a count added). counts: [vocabulary].

        From a zero bias, Adam first teaches the recurrent state to say word frequencies: it saturates, and a short run
        ends near the unigram perplexity.
        """
        if self.decoder_bias is None:
            assert self.head is not None
            self.head.start_from_frequencies(counts)
        else:
            self.decoder_bias.copy_(frequencies(counts).log())

    def forward(self, inputs: Tensor, states: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """Logits of the next word and the states to go on from. inputs: [time, batch] -> [time * batch, vocabulary]."""
        x, after = self.outputs(inputs, states)
        return self.decoder.logits(x), after

    def loss(
        self,
        inputs: Tensor,
        targets: Tensor,
        states: list[State] | None = None,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> tuple[Tensor, list[State]]:
        """Nats of the next words, `targets`, and the states to go on from. inputs, targets: [time, batch]."""
        x, after = self.outputs(inputs, states)
        return self.decoder.loss(x, targets, reduction), after

    @property
    def decoder(self) -> Decoder:
        """From the outputs to the words."""
        return Decoder(self.embedding.weight, self.decoder_bias, self.head)

    def decoder_multiply_adds(self, counts: Tensor) -> float:
        """Of one token's loss, in a text in which each word stands `counts` times. counts: [vocabulary]."""
        return float(self.embedding.weight.numel()) if self.head is None else self.head.multiply_adds(counts)

    def outputs(self, inputs: Tensor, states: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """What goes into the decoder, and the states.

        inputs: [time, batch] -> [time, batch, size of the last layer].
        """
        x = self.dropout(self.embedding(inputs))  # [time, batch, embedding]
        x, after = self.run_layers(x, states, between=self.dropout)
        return self.dropout(x), after

    def enter(self, inputs: Tensor) -> Tensor:
        """What goes into the first layer, nothing dropped. inputs: [time, batch] -> [time, batch, embedding]."""
        embedded: Tensor = self.embedding(inputs)
        return embedded

    def run_layers(
        self, x: Tensor, states: list[State] | None = None, between: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, list[State]]:
        """The LSTM layers alone, `between` them what is given.

        x: [time, batch, embedding] -> the same, and the states.
        """
        after = []
        for number, layer in enumerate(self.layers):
            x = between(x) if between and number else x
            x, state = layer(x, states[number] if states else None)  # [time, batch, size]
            after.append(state)
        return x, after

    def prunable(self) -> dict[str, nn.Parameter]:
        """The weights to prune, by torch's names. Each is [4 * size, ...]: the gates i, f, g, o stacked on rows.

        A block row lies inside one gate: the block size divides the layer's size, as the cell has checked, or each gate
        is padded by itself.
        """
        return {
            name: getattr(layer, f"{kind}_l0")
            for layer, names in zip(self.layers, self.names(), strict=True)
            for kind, name in names.items()
        }

    def biases(self) -> dict[str, tuple[nn.Parameter, tuple[str, ...]]]:
        """The biases of rows that only prunable weights have, by torch's names, with the names of these weights."""
        if self.scope == "weight_hh":
            return {}
        return {
            f"{kind}_l{number}": (getattr(layer, f"{kind}_l0"), tuple(names.values()))
            for number, (layer, names) in enumerate(zip(self.layers, self.names(), strict=True))
            for kind in ("bias_ih", "bias_hh")
        }

    def names(self) -> list[dict[str, str]]:
        """The names of each layer's prunable weights, by their kind."""
        kinds = ("weight_hh",) if self.scope == "weight_hh" else ("weight_ih", "weight_hh")
        return [{kind: f"{kind}_l{number}" for kind in kinds} for number in range(len(self.layers))]


def model(cell: TrainCell, vocabulary: int) -> LSTM:
    """A freshly initialised model, drawn from torch's global generator."""
    assert cell.pad or not (cell.uses_blocks and cell.has_odd_sizes)
    return LSTM(cell, vocabulary)
