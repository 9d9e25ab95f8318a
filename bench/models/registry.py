"""The models by name: one module of this folder each, holding `model(cell, vocabulary) -> nn.Module`.

A model has `prunable() -> dict[str, Parameter]`; `start_from_frequencies(counts)`, what it does before training with
how often the training text says each word; `layers`, each a `bench.models.layers.LSTMLayer`; `run_layers(x, states)`,
these alone; and `penalty`, what the last training call adds to the loss, or None.
"""

from kernels.registry import Catalogue

MODELS = Catalogue("model", "bench.models", "model", helpers=("registry", "layers", "settings"))
