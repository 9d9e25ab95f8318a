"""The models by name: one module of this folder each, holding `model(cell, vocabulary) -> nn.Module`."""

from kernels.registry import Catalogue

MODELS = Catalogue("model", "bench.models", "model", helpers=("registry",))
