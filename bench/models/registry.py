"""The models by name: one module of this folder each, holding `model(cell, vocabulary) -> nn.Module`.

A model has `prunable() -> dict[str, Parameter]`; `start_from_frequencies(counts)`, what it does before training with how often
the training text says each word; `layers`, each a `bench.models.layers.LSTMLayer`; and `run_layers(x, states)`, these alone.
"""

from kernels.registry import Catalogue

MODELS = Catalogue("model", "bench.models", "model", helpers=("registry", "layers"))
