"""The models by name: one module of this folder each, holding `model(cell, vocabulary) -> nn.Module`.

A model has `prunable() -> dict[str, Parameter]`, and `biases()`, those of the rows of these weights; `layers`, each a
`bench.models.patterns.Followed`, and `names()`, those of the prunable weights of each layer by their kind;
`enter(inputs)`, what goes into the first layer, and `run_layers(x, states)`, the layers alone; `loss(inputs, targets,
states, reduction)`; and `penalty`, what the last training call adds to the loss, or None. A language model has
`start_from_frequencies(counts)` too: what it does before training with how often the text says each word. For a
classifier, vocabulary is the number of classes.
"""

from kernels.registry import Catalogue

MODELS = Catalogue(
    "model",
    "bench.models",
    "model",
    helpers=("registry", "layers", "linear", "patterns", "spans", "decoders", "settings"),
)
