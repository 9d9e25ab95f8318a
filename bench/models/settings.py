"""Settings of a model: its architecture and sizes, and what is dropped and penalised in it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bench.data.corpus import CLASSIFICATION, LANGUAGE
from bench.models.registry import MODELS
from bench.pruning.settings import Sparsifying
from bench.settings import Count, Natural, NonNegative, ProperFraction

NARROWER = 4.0  # torch's default: the clusters' widths are those of the head divided by 4, by 16, ...
TASKS = {"mlp": CLASSIFICATION}  # of the models; one that is not named here, nor says so itself, is a language model
OF_LANGUAGE = (  # settings of language models only
    "embedding_size",
    "decoder_bias",
    "decoder",
    "cutoff",
    "second_cutoff",
    "embedding_gradient",
)
OWN = {  # settings that not every model has; a model that is not named here may use them all
    "lstm": ("dropout",),
    "mlp": ("dropout", "batch_norm"),
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


def models_of(task: str) -> list[str]:
    """The models that learn a task."""
    return [name for name in MODELS if task_of_model(name) == task]


def task_of_model(name: str) -> str:
    """The task that a model learns; a plugin says it in `TASK`."""
    plugin = MODELS.source(name)
    return str(getattr(plugin.module, "TASK", LANGUAGE)) if plugin else TASKS.get(name, LANGUAGE)


class ModelSettings(Sparsifying):
    """A language model of LSTM layers between an embedding and a decoder, or a classifier of linear ones (mlp)."""

    model: Annotated[str, MODELS] = Field("lstm", description="architecture")
    embedding_size: Count = Field(64, description="width of the embedding and of the tied decoder")
    hidden_size: Count = Field(
        128,
        description="width of every LSTM layer (under a tied decoder the last has the embedding's), or of every hidden "
        "layer of an mlp",
    )
    num_layers: Count = Field(2, description="LSTM layers, or hidden layers of an mlp")
    dropout: ProperFraction = Field(0.0, description="dropout between layers, fraction (lstm, mlp)")
    batch_norm: bool = Field(False, description="batch normalisation before each ReLU (mlp)")
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

    decoder: Literal["tied", "adaptive"] = Field(
        "tied",
        description="tied: the embedding's weight and a bias; adaptive: torch's adaptive softmax over words ranked by "
        "frequency, whose probabilities are exact, with weights of its own",
    )
    cutoff: Count = Field(
        2000, description="words that the adaptive softmax looks at for every token; the others stand in clusters"
    )
    second_cutoff: Natural = Field(10000, description="words before the second cluster; 0 means that there is one")
    embedding_gradient: Literal["dense", "sparse"] = Field(
        "dense",
        description="sparse: the rows of the window's words, and adam updates these alone (torch's SparseAdam); needs "
        "decoder = adaptive",
    )

    @model_validator(mode="after")
    def _decoder_is_whole(self) -> Self:
        if self.decoder == "adaptive" and 0 < self.second_cutoff <= self.cutoff:
            cutoffs = f"{self.second_cutoff} does not exceed cutoff {self.cutoff}"
            raise ValueError(f"second_cutoff: {cutoffs}; accepted: 0, or more words than that")
        if self.decoder == "tied" and self.embedding_gradient == "sparse":
            raise ValueError("embedding_gradient: a tied decoder's is dense; accepted: dense, or decoder = adaptive")
        return self

    def idle(self) -> Iterator[str]:
        yield from super().idle()
        if self.task != LANGUAGE:
            yield from OF_LANGUAGE
        if self.decoder == "tied":
            yield from ("cutoff", "second_cutoff")
        if self.model in OWN:
            yield from {name for names in OWN.values() for name in names} - set(OWN[self.model])

    @property
    def task(self) -> str:
        """What the model learns: a language, or a classification."""
        return task_of_model(self.model)

    @property
    def is_recurrent(self) -> bool:
        """Whether its layers go through time, with states."""
        return self.task == LANGUAGE

    @property
    def input_width(self) -> int:
        """What goes into the first layer."""
        return self.embedding_size

    @property
    def layer_widths(self) -> list[int]:
        """What goes into the first layer and comes out of each: the last has the width that a tied decoder needs."""
        last = self.embedding_size if self.is_recurrent and self.decoder == "tied" else self.hidden_size
        return [self.input_width, *[self.hidden_size] * (self.num_layers - 1), last]

    @property
    def layer_weights(self) -> int:
        """Weights of the layers, biases aside: of an LSTM's, four gates read inputs and states."""
        sides = pairwise(self.layer_widths)
        return sum(4 * out * (into + out) if self.is_recurrent else out * into for into, out in sides)

    @property
    def cutoffs(self) -> list[int]:
        """Words before each cluster of the adaptive softmax."""
        return [self.cutoff, self.second_cutoff] if self.second_cutoff else [self.cutoff]

    def least_logits(self, vocabulary: int) -> int:
        """Logits that every token has at least: of all words, or of the adaptive softmax's head."""
        return vocabulary if self.decoder == "tied" else self.cutoff + len(self.cutoffs)

    def decoder_parameters(self, vocabulary: int) -> int:
        """Parameters of the decoder's own: a bias, or an adaptive softmax."""
        if self.decoder == "tied":
            return vocabulary
        size, edges = self.layer_widths[-1], [*self.cutoffs, vocabulary]
        clusters = sum(
            int(size // NARROWER**number) * (size + high - low) for number, (low, high) in enumerate(pairwise(edges), 1)
        )
        return self.least_logits(vocabulary) * (size + 1) + clusters

    @property
    def divided(self) -> dict[str, int]:
        if not self.is_recurrent:
            return super().divided | {"hidden_size": self.hidden_size}
        return super().divided | {"hidden_size": self.hidden_size, "embedding_size": self.embedding_size}
