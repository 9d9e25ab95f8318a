"""Settings of a model: its architecture and sizes, and what is dropped and penalised in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from bench.models.registry import MODELS
from bench.pruning.settings import Sparsifying
from bench.settings import Count, NonNegative, ProperFraction

OWN = {  # settings that not every model has; a model that is not named here may use them all
    "lstm": ("dropout",),
    "awd_lstm": (
        "input_dropout",
        "hidden_dropout",
        "output_dropout",
        "embedding_dropout",
        "weight_drop",
        "activation_penalty",
        "temporal_penalty",
    ),
}


class ModelSettings(Sparsifying):
    """A language model of LSTM layers between an embedding and the decoder tied to it."""

    model: Annotated[str, MODELS] = Field("lstm", description="architecture")
    embedding_size: Count = Field(64, description="width of the embedding and of the tied decoder")
    hidden_size: Count = Field(128, description="width of every LSTM layer but the last, which has the embedding's")
    num_layers: Count = Field(2, description="LSTM layers")
    dropout: ProperFraction = Field(0.0, description="dropout between layers, fraction (lstm)")
    input_dropout: ProperFraction = Field(
        0.0, description="locked dropout of the embedded words, fraction (awd_lstm, as all dropouts that follow)"
    )
    hidden_dropout: ProperFraction = Field(0.0, description="locked dropout between LSTM layers, fraction")
    output_dropout: ProperFraction = Field(0.0, description="locked dropout of the last layer's output, fraction")
    embedding_dropout: ProperFraction = Field(
        0.0, description="share of words whose whole embedding is dropped in a window, fraction"
    )
    weight_drop: ProperFraction = Field(
        0.0, description="dropout of the recurrent weights, one mask a window, fraction"
    )
    activation_penalty: NonNegative = Field(
        0.0, description="AR: this times the mean square of the last output, dropped (awd_lstm)"
    )
    temporal_penalty: NonNegative = Field(
        0.0,
        description="TAR: this times the mean square of the last raw output's change from step to step (awd_lstm)",
    )
    decoder_bias: Literal["frequencies", "zeros"] = Field(
        "frequencies", description="start of the decoder bias: log word frequencies of the training text, or zeros"
    )

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if self.model in OWN:
            yield from {name for names in OWN.values() for name in names} - set(OWN[self.model])

    @property
    def layer_widths(self) -> list[int]:
        """What goes into the first layer and comes out of each: the last has the width that the tied decoder needs."""
        return [self.embedding_size, *[self.hidden_size] * (self.num_layers - 1), self.embedding_size]

    @property
    def divided(self) -> dict[str, int]:
        return super().divided | {"hidden_size": self.hidden_size, "embedding_size": self.embedding_size}
