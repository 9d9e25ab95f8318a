"""The models by name: one module of this folder each, holding `model(cell, vocabulary) -> nn.Module`.

A model has `prunable() -> dict[str, Parameter]` and `start_from_frequencies(counts)`: what it does before training with how
often the training text says each word.
"""

from kernels.registry import Catalogue

MODELS = Catalogue("model", "bench.models", "model", helpers=("registry",))
